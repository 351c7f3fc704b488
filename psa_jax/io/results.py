"""What an alignment says of each treatment and each cell, in words and as MuData."""

import warnings
from typing import Any

import numpy as np

import psa_jax
from psa_jax.align.alignment import Alignment
from psa_jax.arguments import checked
from psa_jax.io.containers import check_anndata, places
from psa_jax.io.loaded import Loaded
from psa_jax.io.origin import feature_types
from psa_jax.metrics.pairs import project

FEW = 4


@checked
def status(alignment: Alignment) -> list[str]:
    """What became of each treatment, in words, `[num_treatments]`.

    "missing in a", "missing in b", "not converged", "matched, trivially" (one sample on a side: nothing to
    choose), "too few to judge" (fewer than 4 on a side; matched all the same) or "matched".
    """
    groups, found = alignment.groups, []
    converged = np.broadcast_to(np.asarray(alignment.coupling.info.converged), groups.sizes_a.shape)
    for n, m, done in zip(groups.sizes_a.tolist(), groups.sizes_b.tolist(), converged.tolist(), strict=True):
        if not n or not m:
            found.append("missing in both" if n == m else "missing in a" if not n else "missing in b")
        elif not done:
            found.append("not converged")
        else:
            few = "matched, trivially" if min(n, m) == 1 else "too few to judge"
            found.append(few if min(n, m) < FEW else "matched")
    return found


@checked
def to_mudata(
    alignment: Alignment, loaded: Loaded, a: Any = None, b: Any = None, *, treatment: str = "treatment"
) -> Any:
    """Writes an alignment back into a MuData, one modality each.

    Args:
        alignment: of `loaded.data`, without a query.
        loaded: what was aligned; names cells and treatments.
        a: the AnnData that modality a was loaded from, for all that is in it: every cell, `X`, `obs`, `var`, layers,
            `obsm`, `uns` and the rest. It stays as it is; arrays are shared, and read from their file if they are
            there.
        b: the same of modality b; the same one if both were in one file, of which each then gets its own features.
        treatment: name of the column of treatments that is added; one that is there already stays as it is.

    Returns:
        In `X` the features as aligned, or what is in the file. In `obs` the treatment, of stratified cells the stratum
        (`psa_within`), and `psa_status` (see `status`; "left out" for other cells of the file). In `obsm` the scores
        (`psa_scores`) and the other modality's features as aligned, by `alignment.project` (`psa_` and its name), or by
        its coupling where it was made by hand; NaN for cells without a partner or left out. In `uns["psa"]` the
        version, what was done to features, and the verdict.

    Raises:
        ImportError: mudata is not installed.
        ValueError: an alignment of other samples, or files of other cells.
    """
    try:
        import mudata
    except ImportError as error:
        raise ImportError("to_mudata needs anndata and mudata: pip install anndata mudata") from error
    out = {}
    with warnings.catch_warnings():  # of these packages, about each other
        for category in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        for side, law, own, given in (("a", alignment, loaded, a), ("b", alignment.T, loaded.T, b)):
            _check(law, own)
            there = _features(own) if given is None else _everything(side, given, own)
            out[own.modalities[0]] = _told(there, law, own, treatment)
        return mudata.MuData(out)


@checked
def to_anndata(alignment: Alignment, loaded: Loaded, k: int = 20, *, treatment: str = "treatment") -> Any:
    """Writes a coupling as an AnnData of cells of a by cells of b, as packages of optimal transport keep their maps.

    Args:
        alignment: of `loaded.data`, without a query.
        loaded: what was aligned; names cells and treatments.
        k: partners of each cell, the most probable.
        treatment: name of the column of treatments.

    Returns:
        `X` sparse `[cells of a, cells of b]`: the probability of each partner of the cell of a, those beyond the `k`
        best left out; `obs` and `var` the treatments and `psa_status` (see `status`) of either.

    Raises:
        ValueError: an alignment of other samples; `k` below 1.
    """
    import anndata
    import pandas as pd

    _check(alignment, loaded)
    tables = [
        pd.DataFrame(_columns(alignment, own, treatment), index=pd.Index(own.cells_a, dtype=object))
        for own in (loaded, loaded.T)
    ]
    about = {"version": psa_jax.__version__, "modalities": list(loaded.modalities)}
    return anndata.AnnData(alignment.coupling.to_sparse(k), obs=tables[0], var=tables[1], uns={"psa": about})


def _check(alignment: Alignment, loaded: Loaded) -> None:
    expected = len(loaded.cells_a), len(loaded.cells_b)
    if alignment.coupling.shape != expected:
        raise ValueError(f"alignment: expected one of {expected} cells, got {alignment.coupling.shape}")


def _features(loaded: Loaded) -> Any:
    """Modality a as it was aligned."""
    import anndata
    import pandas as pd

    x = np.asarray(loaded.data.a.x)
    var = pd.DataFrame(index=pd.Index([f"{loaded.modalities[0]}_{i}" for i in range(x.shape[1])], dtype=object))
    return anndata.AnnData(x, obs=pd.DataFrame(index=pd.Index(loaded.cells_a, dtype=object)), var=var)


def _everything(side: str, adata: Any, loaded: Loaded) -> Any:
    """All that is in the file of modality a, which `side` is the argument of."""
    check_anndata(side, adata)
    places(side, adata.obs_names, loaded.cells_a)
    kind = loaded.preparations[0].origin.feature_type
    if kind is not None and "feature_types" in adata.var:
        return adata[:, feature_types(adata) == kind].to_memory()
    out = adata.to_memory(copy=False)
    out.obs, out.uns = adata.obs.copy(), dict(adata.uns)
    return out


def _told(adata: Any, alignment: Alignment, loaded: Loaded, treatment: str) -> Any:
    """The AnnData of modality a with what the alignment says of its cells."""
    cells = places("a", adata.obs_names, loaded.cells_a)

    def spread(values: Any, rest: Any) -> np.ndarray:
        found = np.full((adata.n_obs, *values.shape[1:]), rest, values.dtype)
        found[cells] = values
        return found

    for name, values in _columns(alignment, loaded, treatment).items():
        if name != treatment or name not in adata.obs:
            adata.obs[name] = spread(values, "left out" if name == "psa_status" else None)
    adata.obsm["psa_scores"] = spread(np.asarray(alignment.scores_a), np.nan)
    adata.obsm[f"psa_{loaded.modalities[1]}"] = spread(_projected(alignment, loaded.data.b.x), np.nan)
    about: dict[str, Any] = {"version": psa_jax.__version__, "preparation": loaded.preparations[0].summary()}
    if alignment.projection is not None:
        about["verdict"] = [f"{name}: {text}" for name, text in alignment.verdict()]
    adata.uns["psa"] = about
    return adata


def _columns(alignment: Alignment, loaded: Loaded, treatment: str) -> dict[str, np.ndarray]:
    """What each cell of modality a is called: its treatment, its stratum if there are any, what became of it."""
    t, strata = np.asarray(loaded.data.a.t), loaded.data.strata
    states = {"psa_status": np.asarray(status(alignment), object)[t]}
    if strata is None:
        return {treatment: np.asarray(loaded.treatments, object)[t], **states}
    of, place = strata.split(t)
    named = (np.asarray(names, object) for names in (strata.treatments, strata.names))
    return (
        dict(zip((treatment, "psa_within"), (x[i] for x, i in zip(named, (of, place), strict=True)), strict=True))
        | states
    )


def _projected(alignment: Alignment, y: Any) -> np.ndarray:
    law = alignment.coupling if alignment.projection is None else alignment.projection.law
    return np.asarray(project(law, y))
