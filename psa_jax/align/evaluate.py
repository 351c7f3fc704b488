"""How well an alignment does where the truth is known, each figure beside chance and the class mean."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psa_jax.align.alignment import Alignment
from psa_jax.arguments import checked
from psa_jax.coupling.blocked import Blocked
from psa_jax.coupling.coupling import Coupling
from psa_jax.data.samples import Truth, Unpaired, check_truth, on_host
from psa_jax.data.source import Source
from psa_jax.match import class_mean
from psa_jax.match.blockwise import blockwise
from psa_jax.metrics.pairs import by_treatment, foscttm, project, trace
from psa_jax.propensity.calibration import Calibration
from psa_jax.types import Array, KeyArray, float_dtype


@checked
def evaluate(
    key: KeyArray, alignment: Alignment, truth: Truth, data: Unpaired, *, queries: int = 2000
) -> dict[str, Any]:
    """Measures an alignment against the truth. On the host; the result is plain Python, ready for JSON.

    Each metric is a dict of `micro` (mean over samples), `macro` (mean over treatments), `chance` (a random match
    within the treatment), `class_mean` (the uniform coupling), `counted`, `excluded` and `by_treatment`:

    - `trace`: `P(true match | i)`.
    - `latent_mse`: squared error of projected latents, if the truth has latents.
    - `foscttm`: of projected scores of modality b, candidates being the same treatment's samples.
    - `foscttm_all`: the same, candidates being all samples.
    - `foscttm_sampled`: of the scores of one sampled match, same treatment.
    - `foscttm_features`: of projected features of modality b, same treatment, if they are vectors in memory.

    Where no pair is known nothing is measured, and every number is None.

    Args:
        key: for the sampled matches and the choice of queries.
        alignment: what `align` returned; to judge another coupling, `dataclasses.replace(alignment, coupling=...)`.
        truth: of the aligned data.
        data: the `Unpaired` that was aligned (the query, if there was one).
        queries: FOSCTTM compares a sample with every other. Of at most so many with a known pair, drawn at random, it
            is measured, among all candidates: its standard error is then below 0.007.

    Returns:
        A dict of `metrics`, `queries` (how many FOSCTTM was measured of), `treatments` (names, sizes and the matcher's
        report), `rows_without_partner`, `cols_without_partner` and `calibration`. A number that does not exist is None.

    Raises:
        ValueError: data or truth of other lengths than the alignment, pairs across treatments, no queries.

    Example:
        >>> from psa_jax.data.samples import Modality
        >>> from psa_jax.propensity.nets import linear
        >>> from psa_jax.align.pipeline import align
        >>> from psa_jax.propensity import Learner, Training
        >>> x, t = jax.random.normal(jax.random.key(0), (30, 2)), jnp.arange(30) % 2
        >>> data = Unpaired(*2 * [Modality(x + t[:, None], t)], 2)
        >>> quick = Learner(linear(2), training=Training(epochs=2))
        >>> alignment = align(jax.random.key(1), data, a=quick, b=quick)
        >>> report = evaluate(jax.random.key(2), alignment, Truth(jnp.arange(30)), data)
        >>> round(report["metrics"]["trace"]["chance"], 4)
        0.0667
    """
    with jax.debug_nans(False):  # what is not counted is NaN on its way
        return _evaluate(key, alignment, truth, data, queries)


def _evaluate(key: KeyArray, alignment: Alignment, truth: Truth, data: Unpaired, queries: int) -> dict[str, Any]:
    coupling, scores = alignment.coupling, alignment.scores_b
    n, m = coupling.shape
    got = len(data.a.t), len(data.b.t)
    if got != (n, m):
        raise ValueError(f"data: expected {n} and {m} samples, as were aligned, got {got[0]} and {got[1]}")
    check_truth(truth, n, m, data)
    if queries < 1:
        raise ValueError(f"queries: expected at least 1, got {queries}")
    data, truth = on_host(data), jax.tree.map(jnp.asarray, truth)
    groups, t = alignment.groups, data.a.t
    uniform = blockwise(class_mean)(alignment.scores_a, scores, groups)
    known = truth.pair >= 0
    paired = np.flatnonzero(np.asarray(known))
    if paired.size > queries:
        paired = np.sort(np.asarray(jax.random.choice(jax.random.fold_in(key, 1), paired, (queries,), replace=False)))
    features = {"foscttm": scores}
    if data.b.x.ndim == 2 and not isinstance(data.b.x, Source):
        features["foscttm_features"] = data.b.x
    if truth.z_a is not None and truth.z_b is not None:
        features |= {"latent_mse": truth.z_b, "squares": truth.z_b**2}
    latents = "latent_mse" in features
    nothing = jnp.full(n, jnp.nan, float_dtype(scores))
    if not paired.size:
        features = {name: value for name, value in features.items() if latents and name in ("latent_mse", "squares")}
    projected, blind = (_apply(law, features) if features else {} for law in (coupling, uniform))
    at_random = jnp.where(known, 0.5, jnp.nan)
    chance = jnp.where(known & (groups.sizes_b[t] > 0), 1 / jnp.maximum(groups.sizes_b[t], 1), jnp.nan)

    def rank(y_hat: Array, y: Array, candidates: Array | None) -> Array:
        """FOSCTTM of the queries, NaN for others, of predictions for the rows whose partner is known."""
        y = jnp.where(known[:, None], y[truth.pair], jnp.nan)
        return nothing.at[paired].set(foscttm(y_hat, y, t=candidates, rows=jnp.asarray(paired)).astype(nothing.dtype))

    def levels(name: str, candidates: Array | None) -> tuple[Array, Array, Array]:
        ours, theirs = (rank(law[name], features[name], candidates) for law in (projected, blind))
        return ours, at_random, theirs

    metrics: dict[str, tuple[Array, Array, Array]] = dict.fromkeys(
        ("trace", "foscttm", "foscttm_all", "foscttm_sampled"), (nothing, nothing, nothing)
    )
    if paired.size:
        metrics["trace"] = trace(coupling, truth), chance, chance
        metrics |= {"foscttm": levels("foscttm", t), "foscttm_all": levels("foscttm", None)}
        drawn = coupling.sample(key)
        sampled = jnp.where((drawn >= 0)[:, None], scores[drawn], jnp.nan)
        metrics["foscttm_sampled"] = rank(sampled, scores, t), *metrics["foscttm"][1:]
    if "foscttm_features" in features:
        metrics["foscttm_features"] = levels("foscttm_features", t)
    if truth.z_a is not None and latents:
        ours, theirs = (jnp.mean((law["latent_mse"] - truth.z_a) ** 2, axis=1) for law in (projected, blind))
        variance = jnp.mean(blind["squares"] - blind["latent_mse"] ** 2, axis=1)
        metrics["latent_mse"] = ours, theirs + variance, theirs
    info = coupling.info
    return {
        "metrics": {name: _summary(*values, data) for name, values in metrics.items()},
        "queries": int(paired.size),
        "treatments": {
            "names": None if alignment.names is None else list(alignment.names),
            "size_a": _plain(groups.sizes_a),
            "size_b": _plain(groups.sizes_b),
            "converged": _plain(info.converged),
            "num_iters": _plain(info.num_iters),
            "marginal_error": _plain(info.marginal_error),
            **{name: _plain(value) for name, value in info.details.items()},
        },
        "rows_without_partner": int(uniform.unmatched_rows),
        "cols_without_partner": int(uniform.unmatched_cols),
        "calibration": {
            "a": _calibration(alignment.calibration_a),
            "b": _calibration(alignment.calibration_b),
        },
    }


def _apply(law: Blocked | Coupling, features: dict[str, Array]) -> dict[str, Array]:
    """Projections of several features at once; NaN for rows without a partner."""
    values = [jnp.asarray(value) for value in features.values()]
    dtype = float_dtype(*values)
    out = project(law, jnp.concatenate([value.astype(dtype) for value in values], axis=1))
    edges = np.cumsum([value.shape[1] for value in values])[:-1]
    return dict(zip(features, jnp.split(out, edges, axis=1), strict=True))


def _summary(values: Array, chance: Array, class_mean: Array, data: Unpaired) -> dict[str, Any]:
    missing = jnp.isnan(values)
    found, at_random, blind = (
        by_treatment(jnp.where(missing, jnp.nan, v), data.a.t, data.num_treatments)
        for v in (values, chance, class_mean)
    )
    return {
        "micro": _plain(found.micro),
        "macro": _plain(found.macro),
        "chance": _plain(at_random.micro),
        "class_mean": _plain(blind.micro),
        "counted": int(found.count.sum()),
        "excluded": int(found.excluded.sum()),
        "by_treatment": {
            "mean": _plain(found.mean),
            "chance": _plain(at_random.mean),
            "class_mean": _plain(blind.mean),
            "counted": _plain(found.count),
        },
    }


def _calibration(calibration: Calibration | None) -> dict[str, Any] | None:
    return None if calibration is None else {name: _plain(value) for name, value in vars(calibration).items()}


def _plain(value: Any) -> Any:
    """Python numbers and lists of them; None for NaN, which JSON does not have."""
    value = np.asarray(value)
    if np.issubdtype(value.dtype, np.floating):
        value = np.where(np.isfinite(value), value.astype(object), None)
    return value.tolist()
