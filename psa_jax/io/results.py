"""What an alignment says of each treatment and each cell, in words and as MuData."""

import warnings
from typing import Any

import numpy as np

from psa_jax.align.alignment import Alignment
from psa_jax.arguments import checked
from psa_jax.io.loaded import Loaded
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
def to_mudata(alignment: Alignment, loaded: Loaded, *, treatment: str = "treatment") -> Any:
    """Writes an alignment back into a MuData, one modality each.

    Args:
        alignment: of `loaded.data`, without a query.
        loaded: what was aligned; names cells and treatments.
        treatment: name of the column of treatments.

    Returns:
        Features as aligned in `X`; in `obs` the treatment (and the stratum, `psa_within`, of stratified cells) and
        `psa_status` (see `status`); in `obsm` the
        scores (`psa_scores`) and the other modality's features by `alignment.project` (`psa_` and its name; NaN for
        cells without a partner), or by its coupling where it was made by hand.

    Raises:
        ImportError: mudata is not installed.
        ValueError: an alignment of other samples.
    """
    try:
        import anndata
        import mudata
        import pandas as pd
    except ImportError as error:
        raise ImportError("to_mudata needs anndata and mudata: pip install anndata mudata") from error
    expected = len(loaded.cells_a), len(loaded.cells_b)
    if alignment.coupling.shape != expected:
        raise ValueError(f"alignment: expected one of {expected} cells, got {alignment.coupling.shape}")
    names, states, (first, second) = (
        np.asarray(loaded.treatments),
        np.asarray(status(alignment)),
        loaded.modalities,
    )
    data = loaded.data
    sides = {
        first: (data.a, loaded.cells_a, alignment.scores_a, second, _projected(alignment, data.b.x)),
        second: (data.b, loaded.cells_b, alignment.scores_b, first, _projected(alignment.T, data.a.x)),
    }
    out = {}
    for name, (own, cells, scores, other, projected) in sides.items():
        t = np.asarray(own.t)
        labels = {treatment: names[t]}
        if data.strata is not None:
            drug, place = data.strata.split(t)
            labels = {treatment: np.asarray(data.strata.treatments)[drug]}
            labels["psa_within"] = np.asarray(data.strata.names)[place]
        obs = pd.DataFrame({**labels, "psa_status": states[t]}, index=pd.Index(cells, dtype=object))
        obsm: dict[str, Any] = {"psa_scores": np.asarray(scores), f"psa_{other}": np.asarray(projected)}
        var = pd.DataFrame(index=pd.Index([f"{name}_{i}" for i in range(own.x.shape[1])], dtype=object))
        out[name] = anndata.AnnData(np.asarray(own.x), obs=obs, var=var, obsm=obsm)
    with warnings.catch_warnings():  # of these packages, about each other
        for category in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        return mudata.MuData(out)


def _projected(alignment: Alignment, y: Any) -> Any:
    law = alignment.coupling if alignment.projection is None else alignment.projection.law
    return np.asarray(project(law, y))
