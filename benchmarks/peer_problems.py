"""The problems that other people's methods are given, and what names tell them of features."""

import numpy as np

import psa_jax as psa
from benchmarks.cuts import paired, standard
from benchmarks.datasets import SHARED
from benchmarks.quality import scores, tempered

SACHS = (["raf", "plc", "pip3", "akt", "pkc", "jnk"], ["mek", "pip2", "erk", "pka", "p38"])
NETWORK = (  # edges between the two sides of the consensus network of Sachs et al., Science 2005, figure 2
    ("raf", "mek"), ("raf", "pka"), ("plc", "pip2"), ("pip3", "pip2"), ("akt", "pka"), ("akt", "erk"), ("pkc", "mek"),
    ("pkc", "pip2"), ("pkc", "pka"), ("pkc", "p38"), ("jnk", "pka"),
)  # fmt: skip

CODED = {  # proteins of the BMMC sample by its genes, as far as both are measured
    "CD69-1": "CD69", "CD36-1": "CD36", "HLA-E-1": "HLA-E", "HLA-A-B-C": "HLA-A", "HLA-DR": "HLA-DRA", "CD49d": "ITGA4",
    "CD103": "ITGAE", "CD94": "KLRD1", "TCR": "TRBC1",
}  # fmt: skip


def problem_of(name, seed, cut):
    """The arrays that scripts read; see `peer_scripts/problem.py`."""
    u, v = tempered(*scores(name, "today", seed, cut)[:2])
    arrays = {"u": np.asarray(u), "v": np.asarray(v)}
    for letter in "ab":
        aligned, fit = getattr(cut.aligned, letter), getattr(cut.train, letter)
        x, fit_x = (np.asarray(side.x, np.float32).reshape(len(side.t), -1) for side in (aligned, fit))
        arrays |= {f"x_{letter}": x, f"wide_{letter}": x, f"fit_wide_{letter}": fit_x}
        arrays |= {f"t_{letter}": np.asarray(aligned.t, np.int64), f"fit_t_{letter}": np.asarray(fit.t, np.int64)}
    links = [(SACHS[0].index(a), SACHS[1].index(b)) for a, b in NETWORK] if name == "Sachs" else []
    return arrays | {"links": np.asarray(links, int).reshape(-1, 2)} | (genes(seed) if name == "BMMC" else {})


def genes(seed):
    """Expression by gene instead of by component, for peers that go by names, and the proteins' genes among them."""
    import anndata

    cells = anndata.read_h5ad(SHARED / "bmmc_cite_600.h5ad")
    kind = np.asarray(cells.var["feature_types"], str)
    x = np.asarray(cells[:, kind == "GEX"].to_df(), np.float32)
    data, truth = psa.datasets.cite_seq(SHARED / "bmmc_cite_600.h5ad")
    place = np.arange(len(x), dtype=float)[:, None]  # goes where the cells go, and tells where each one came from
    order = np.argsort(np.argsort(paired(place, place, np.asarray(data.a.t), seed).train.a.x[:, 0]))
    wide = standard(x[order])
    found = {name: list(cells.var_names[kind == part]) for name, part in (("a", "GEX"), ("b", "ADT"))}
    links = [(found["a"].index(gene), found["b"].index(protein)) for protein, gene in CODED.items()]
    return {"wide_a": wide, "fit_wide_a": wide, "links": np.asarray(links, int)}
