"""A simulated file in the layout and of the shape of GEO GSE194122, CITE-seq part, for whoever does not have it.

`python -m benchmarks.simulated_cite cells.h5ad --cells 90000` writes it; `python -m benchmarks.paper --data simulated`
makes one and runs the paper's table on it, by the same loader. Cells have a type, of which a few are common and most
rare, and a state that goes on within types, the same in all; both move genes and proteins, whose counts are Poisson. As
the type says nothing of the state, propensities cannot either, and of its figures nothing follows for real cells: what
it shows is that the table can be made, of so many cells, in what time and memory.
"""

import argparse
from typing import Any

import numpy as np
from scipy import sparse

GENES, PROTEINS, TYPES, STATE = 13_953, 134, 45, 10
CELLS = {"small": 6000, "paper": 90_000}
SPLITS = {"train": 0.7, "iid_holdout": 0.1, "test": 0.2}
AT_ONCE = 2000


def simulated(seed: int, cells: int) -> Any:
    """An AnnData of `cells` cells: log-normalised `X` and raw `layers["counts"]`, both sparse."""
    import anndata
    import pandas as pd

    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, TYPES + 1)
    kind = np.sort(np.concatenate([np.arange(TYPES), rng.choice(TYPES, cells - TYPES, p=share / share.sum())]))
    rng.shuffle(kind)
    state = rng.normal(size=(cells, STATE))
    rates = [
        _rates(rng, kind, state, base)
        for base in (rng.normal(-3.2, 1.5, size=GENES), rng.normal(2.0, 1.0, size=PROTEINS))
    ]
    parts = []
    for first in range(0, cells, AT_ONCE):
        some = slice(first, min(first + AT_ONCE, cells))
        depth = rng.lognormal(0, 0.3, size=(some.stop - first, 1))
        parts.append(sparse.csr_matrix(np.hstack([rng.poisson(depth * of(some)) for of in rates]).astype(np.float32)))
    counts = sparse.vstack(parts, format="csr")
    total = np.asarray(counts.sum(1))
    logs = counts.multiply(1e4 / np.maximum(total, 1)).tocsr().astype(np.float32)
    logs.data = np.log1p(logs.data)
    split = rng.choice(list(SPLITS), size=cells, p=list(SPLITS.values()))
    obs = pd.DataFrame({"cell_type": [f"type {k:02d}" for k in kind], "is_train": split}, dtype="category")
    obs.index = [f"cell {i}" for i in range(cells)]
    var = pd.DataFrame({"feature_types": ["GEX"] * GENES + ["ADT"] * PROTEINS}, dtype="category")
    var.index = [f"gene {i}" for i in range(GENES)] + [f"protein {i}" for i in range(PROTEINS)]
    return anndata.AnnData(logs, obs=obs, var=var, layers={"counts": counts})


def _rates(rng: np.random.Generator, kind: np.ndarray, state: np.ndarray, base: np.ndarray) -> Any:
    """Expected counts of some cells, as a function of a slice: a tenth of the features tell types apart."""
    by_type = rng.normal(size=(TYPES, base.size)) * (rng.random((TYPES, base.size)) < 0.1)
    by_state = 0.3 * rng.normal(size=(STATE, base.size)) * (rng.random((STATE, base.size)) < 0.3)
    return lambda some: np.exp(np.minimum(base + by_type[kind[some]] + state[some] @ by_state, 6))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--cells", type=int, default=CELLS["paper"])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    simulated(args.seed, args.cells).write_h5ad(args.file)


if __name__ == "__main__":
    main()
