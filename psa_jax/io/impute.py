"""Imputed values in real feature names: cells of one modality, features of the other, as AnnData."""

import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np

import psa_jax
from psa_jax.align.alignment import Alignment
from psa_jax.align.new import expected, extends
from psa_jax.arguments import checked
from psa_jax.data.labels import is_missing, keys_of
from psa_jax.data.rows import Rows, whole
from psa_jax.io.containers import check_anndata, column, listed, places, some
from psa_jax.io.loaded import Loaded
from psa_jax.io.prepare import Preparation, normalised_rows, prepare_some


@checked
def reference(loaded: Loaded, adata: Any, *, features: Any = "all") -> Any:
    """The cells of b that were aligned, in that order, with their features normalised: what is projected from.

    Args:
        loaded: what was aligned.
        adata: the AnnData that modality b was loaded from.
        features: "all"; a number, the features that vary most; or names.

    Returns:
        An AnnData, `X` sparse where it was; `obs` and `var` whole; `uns["psa"]` says the unit.

    Raises:
        ValueError: another file: cells or features missing; features that do not exist.
    """
    import anndata
    import pandas as pd

    done = loaded.preparations[1]
    check_anndata("adata", adata)
    rows = places("adata", adata.obs_names, loaded.cells_b)
    chosen = _chosen(done, features)
    used = np.zeros(adata.n_obs, bool)
    used[rows] = True
    x = normalised_rows(done, adata, used)
    if isinstance(features, int) and features < len(chosen):
        chosen = np.sort(np.argsort(-_variances(x), kind="stable")[:features])
    names = np.asarray(done.features, object)[chosen]
    if len(chosen) < len(done.features) or isinstance(features, list | tuple):
        x = x.map(lambda part: part[:, chosen], len(chosen))
    x = whole(x)[(np.cumsum(used) - 1)[rows]]
    if done.origin.obsm is None and adata.var_names.is_unique:
        var = adata.var.loc[list(names)].copy()
    else:
        var = pd.DataFrame(index=pd.Index(names, dtype=object))
    about = {"modality": done.modality, "unit": done.normalisation}
    return anndata.AnnData(
        x.astype(np.float32, copy=False), obs=adata.obs.iloc[rows].copy(), var=var, uns={"psa": about}
    )


@checked
def impute(alignment: Alignment, loaded: Loaded, a: Any, b: Any, *, features: Any = "all") -> Any:
    """Features of b for every cell of a, in their real names and units, as an AnnData.

    What `alignment.project` expects of the normalised features. Cells of a that were not aligned (without a treatment
    that both have) are imputed by mixing treatments, see `Alignment.predict`, and marked. Where another matcher than
    `sinkhorn` was used they are NaN, as are those that it leaves over. For the other direction give `alignment.T`,
    `loaded.T` and the files exchanged.

    Args:
        alignment: of `loaded.data`.
        loaded: what was aligned.
        a: the AnnData that modality a was loaded from.
        b: the AnnData that modality b was loaded from; the same one if both were in one file.
        features: "all"; a number, the features of b that vary most; or names.

    Returns:
        Cells of a, features of b: `X` the values, `layers["std"]` how far partners spread, `obs` and `var` whole,
        `obs["psa_mixed"]` cells imputed by mixing, `obsm["psa_scores"]`, `uns["psa"]` the unit, what was done, how many
        cells were `mixed` and of how many the values are `missing`.

    Raises:
        ValueError: files or an alignment of other cells, features that do not exist.
    """
    check_anndata("a", a)
    places("a", a.obs_names, loaded.cells_a)
    return impute_from(alignment, loaded, a, reference(loaded, b, features=features))


def impute_from(alignment: Alignment, loaded: Loaded, a: Any, source: Any) -> Any:
    """As `impute`, of what `reference` returned."""
    if alignment.coupling.shape != (shape := (len(loaded.cells_a), len(loaded.cells_b))):
        raise ValueError(f"alignment: expected one of {shape} cells, got {alignment.coupling.shape}")
    if alignment.projection is None:
        raise ValueError("alignment: expected one with a projection, as `align` makes it, got one made by hand")
    rows = places("a", a.obs_names, loaded.cells_a)
    scores = np.full((a.n_obs, alignment.scores_a.shape[1]), np.nan, np.float32)
    mean, std = expected(alignment.projection.law, source.X, rows, a.n_obs)
    scores[rows] = alignment.scores_a
    rest = np.asarray(~np.isfinite(mean).all(axis=1))
    rest &= extends(alignment.projection.coupling)
    new_batch = None if loaded.data.a.batch is None else np.zeros(a.n_obs, bool)
    if rest.any():
        x = prepare_some(loaded.preparations[0], a, rest)
        t = np.full(a.n_obs, -1)  # what was matched and is too far is mixed; of what was not, the stratum may tell
        matched = np.minimum(np.asarray(alignment.groups.sizes_a), np.asarray(alignment.groups.sizes_b)) > 0
        t[rows] = np.where(matched[np.asarray(loaded.data.a.t)], -1, loaded.data.a.t)
        batch = None
        if loaded.data.a.batch is not None:
            batch = np.full(a.n_obs, -1)
            batch[rows] = loaded.data.a.batch
            batch = jnp.asarray(batch[rest])
        found = alignment.predict(x, t[rest], y=source.X, batch=batch)
        mean[rest], std[rest] = found.values, found.std
        scores[rest] = np.where(np.isnan(scores[rest]), alignment.score_a(jnp.asarray(x), batch), scores[rest])
        if new_batch is not None:
            new_batch[rest] = found.new_batch
    return _annotated(alignment, source, a, mean, std, scores, rest, new_batch)


@checked
def impute_new(
    alignment: Alignment,
    preparation: Preparation,
    source: Any,
    adata: Any,
    *,
    treatment: str | None = None,
    within: str | None = None,
    batch: str | None = None,
    fill_missing: bool = False,
) -> Any:
    """Features of b for new cells of a, by an alignment that is there.

    Args:
        alignment: as `align` made it.
        preparation: of modality a, `loaded.preparations[0]`.
        source: what `reference` returned.
        adata: the new cells.
        treatment: the column of `obs` with their treatments, by the names of `alignment.names`. Cells without one, or
            with one that was not matched, are imputed by mixing treatments; so are all cells if this is None.
        within: the column with their strata, for an alignment of stratified cells. Those without one are imputed
            by mixing the strata of their treatment, and marked.
        batch: the column with their batches, for an alignment of cells with batches. Cells without one that
            classifiers have seen are scored as of no batch, and marked in `obs["psa_new_batch"]`.
        fill_missing: see `Preparation.prepare`.

    Returns:
        As `impute`.

    Raises:
        ValueError: features missing, no such column.
    """
    check_anndata("adata", adata)
    t = codes_of(alignment, adata, treatment, within)
    x = preparation.prepare(adata, fill_missing=fill_missing)
    own = batch_of(alignment, adata, batch)
    found = alignment.predict(x, t, y=source.X, batch=own)
    scores = np.asarray(alignment.score_a(jnp.asarray(x), own))
    mean, std = np.asarray(found.values), np.asarray(found.std)
    new_batch = None if found.new_batch is None else np.asarray(found.new_batch)
    return _annotated(alignment, source, adata, mean, std, scores, np.asarray(found.mixed), new_batch)


def codes_of(alignment: Alignment, adata: Any, treatment: str | None, within: str | None = None) -> np.ndarray:
    """The treatment code of each cell, -1 where there is none or the alignment does not know it.

    Of an alignment of stratified cells the codes of treatment and stratum `[cells, 2]`.
    """
    t = _codes(adata, "treatment", treatment, alignment.treatments)
    if alignment.strata is None:
        if within is not None:
            raise ValueError(f"within: expected none, as the cells that were aligned had no strata, got {within!r}")
        return t
    return np.stack([t, _codes(adata, "within", within, alignment.strata.names)], axis=1)


def batch_of(alignment: Alignment, adata: Any, batch: str | None) -> Any:
    """The code of each cell's batch, -1 where there is none or the alignment does not know it; None without batches."""
    if alignment.scorer_a is None or alignment.scorer_a.batches is None:
        if batch is not None:
            raise ValueError(f"batch: expected none, as the cells that were aligned had no batches, got {batch!r}")
        return None
    names = alignment.batches or tuple(map(str, range(1 + int(alignment.scorer_a.batches.max()))))
    return jnp.asarray(_codes(adata, "batch", batch, names))


def _codes(adata: Any, argument: str, name: str | None, names: tuple[str, ...]) -> np.ndarray:
    """The code of each cell's label in a column, -1 where there is none of these names."""
    if name is None:
        return np.full(adata.n_obs, -1)
    keys = keys_of(f"{argument} {name!r}", column(adata.obs, name, argument, "obs"))
    code = {name: i for i, name in enumerate(names)}
    return np.array([-1 if is_missing(key) else code.get(str(key), -1) for key in keys])


def _annotated(
    alignment: Alignment,
    source: Any,
    adata: Any,
    mean: np.ndarray,
    std: np.ndarray,
    scores: np.ndarray,
    mixed: np.ndarray,
    new_batch: np.ndarray | None = None,
) -> Any:
    """Imputed values with all that is known of the cells and of the features."""
    import anndata

    assert alignment.projection is not None
    assert alignment.scorer_a is not None
    found, names = alignment.projection.evidence, alignment.treatments
    columns = alignment.scorer_a.columns.tolist()
    about = {
        "version": psa_jax.__version__,
        **{name: str(value) for name, value in source.uns["psa"].items()},
        "treatments": np.asarray([names[k] for k in columns], object),
        "evidence_p_value": float(found.p_value),
        "mixed": int(mixed.sum()),
        "missing": int((~np.isfinite(mean).all(axis=1)).sum()),
        "verdict": [f"{name}: {text}" for name, text in alignment.verdict()],
    }
    with warnings.catch_warnings():  # of anndata and pandas, about each other
        for category in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        obs = adata.obs.copy()
        obs["psa_mixed"] = mixed
        if new_batch is not None:
            obs["psa_new_batch"] = new_batch
        arrays: Any = {"psa_scores": scores}
        return anndata.AnnData(
            mean, obs=obs, var=source.var.copy(), obsm=arrays, layers={"std": std}, uns={"psa": about}
        )


def _chosen(done: Preparation, features: Any) -> np.ndarray:
    every = np.arange(len(done.features))
    if isinstance(features, str) and features == "all":
        return every
    if isinstance(features, int) and not isinstance(features, bool) and features > 0:
        return every
    if isinstance(features, str | int) or not all(isinstance(name, str) for name in features):
        raise ValueError(f"features: expected 'all', a number from 1 up or names of features, got {features!r}")
    place = {name: i for i, name in enumerate(done.features)}
    wanted = list(dict.fromkeys(features))
    absent = [name for name in wanted if name not in place]
    if absent or not wanted:
        raise ValueError(
            f"features: expected names of features of {done.modality!r} ({some(done.features)}), got {listed(absent)}"
        )
    return np.array([place[name] for name in wanted], int)


def _variances(x: Rows) -> np.ndarray:
    """The variance of each feature."""
    total, squares = np.zeros(x.shape[1]), np.zeros(x.shape[1])
    for part in x:
        total += np.asarray(part.sum(axis=0, dtype=np.float64)).ravel()
        part = part.multiply(part) if hasattr(part, "multiply") else part.astype(np.float64) ** 2
        squares += np.asarray(part.sum(axis=0, dtype=np.float64)).ravel()
    n = max(1, x.shape[0])
    return squares / n - (total / n) ** 2
