"""From a classifier to propensity scores: priors, temperature, centring and calibration."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from psa_jax.model import CHUNK, Model, logits
from psa_jax.types import Array, Float, Int, PyTree

MAX_TEMPERATURE = 1e3
BISECTIONS = 60


def centre(logits: Float[Array, "... K"]) -> Array:
    """Subtracts the mean over treatments, because logits carry an arbitrary offset in every sample.

    `log P(t | x)` is known from logits only up to a constant of x, and a distance must not see that constant.

    Example:
        >>> centre(jnp.array([[1.0, 3.0], [11.0, 13.0]])).tolist()
        [[-1.0, 1.0], [-1.0, 1.0]]
    """
    return logits - logits.mean(-1, keepdims=True)


def propensity(
    model: Model,
    params: PyTree,
    x: Float[Array, "n ..."],
    *,
    temperature: Any = 1.0,
    log_prior: Array | None = None,
    transform: Callable[[Any], Any] = centre,
    treatments: Any = None,
    chunk: int = CHUNK,
) -> Float[Array, "n d"]:
    """The score of each sample, `transform(logits / temperature - log_prior)`, in evaluation mode.

    Compiled once for each model, transform and shape. For an ensemble, `vmap` over params:
    `jax.vmap(lambda params: propensity(model, params, x))(fitted.params)`.

    Args:
        model: the classifier; static.
        params: its parameters, `Fitted.params`; traced.
        x: features `[n, ...]`; traced.
        temperature: see `from_logits`; traced.
        log_prior: see `from_logits`; traced.
        transform: see `from_logits`; static, so a module-level function.
        treatments: see `from_logits`; traced, but of static length.
        chunk: the most samples evaluated at a time; static. It changes no result.

    Returns:
        Scores `[n, d]`, with d the number of treatments (or of `treatments`) under the default transform.
        Differentiable in params, x, temperature and log_prior.

    Raises:
        ValueError: a log prior that is not `[K]`, or a chunk below 1.

    Example:
        >>> from psa_jax.nets import linear
        >>> model, x = linear(3), jnp.ones((5, 2))
        >>> propensity(model, model.init(jax.random.key(0), x), x).shape
        (5, 3)

    References:
        Xi et al., NeurIPS 2024, arXiv 2404.01595, section 3.
    """
    if chunk < 1:
        raise ValueError(f"chunk: expected at least 1, got {chunk}")
    treatments = None if treatments is None else jnp.asarray(treatments)
    return _propensity(
        params,
        jnp.asarray(x),
        temperature,
        log_prior,
        treatments,
        model=model,
        transform=transform,
        chunk=chunk,
    )


@functools.partial(jax.jit, static_argnames=("model", "transform", "chunk"))
def _propensity(
    params: Any,
    x: Any,
    temperature: Any,
    log_prior: Any,
    treatments: Any,
    *,
    model: Any,
    transform: Any,
    chunk: int,
) -> Array:
    out = logits(model, params, x, chunk)
    return from_logits(out, temperature=temperature, log_prior=log_prior, transform=transform, treatments=treatments)


def from_logits(
    logits: Float[Array, "n K"],
    *,
    temperature: Any = 1.0,
    log_prior: Array | None = None,
    transform: Callable[[Any], Any] = centre,
    treatments: Any = None,
) -> Float[Array, "n d"]:
    """`transform(logits / temperature - log_prior)`: what `propensity` does to logits.

    The two modalities must give the same score to the same latent state. Where their treatment frequencies
    differ, `log P(t | x)` differs by the log prior; without it, it is the likelihood ratio `log P(x | t) /
    P(x)`, which does not depend on how often a treatment was given (up to the offset that centring removes).

    Args:
        logits: `[n, K]`, for instance out-of-fold ones of `crossfit`.
        temperature: divides the logits, see `calibrate`.
        log_prior: `[K]` log frequencies of the treatments in the classifier's training data, see the function
            `log_prior`. Not to be given for a classifier trained with inverse frequency class weights: those
            have made the frequencies equal already.
        transform: `[n, d] -> [n, ...]`. `centre` by default; `jax.nn.log_softmax` gives log posteriors.
        treatments: `[d]` integer ids of the columns to keep: the treatments that both modalities have.

    Raises:
        ValueError: logits that are not `[n, K]`, a log prior that is not `[K]`, treatments that are not
            integers `[d]`.

    Example:
        >>> from_logits(jnp.array([[1.0, 3.0, 9.0]]), temperature=2.0, treatments=jnp.array([0, 1])).tolist()
        [[-0.5, 0.5]]
    """
    if jnp.ndim(logits) != 2:
        raise ValueError(f"logits: expected rank 2, [n, K], got shape {jnp.shape(logits)}")
    logits = jnp.asarray(logits)
    logits = logits / jnp.asarray(temperature, logits.dtype)
    if log_prior is not None:
        if jnp.shape(log_prior) != (logits.shape[1],):
            raise ValueError(f"log_prior: expected shape ({logits.shape[1]},), got {jnp.shape(log_prior)}")
        logits = logits - jnp.asarray(log_prior, logits.dtype)[None]
    if treatments is not None:
        treatments = jnp.asarray(treatments)
        if treatments.ndim != 1 or not jnp.issubdtype(treatments.dtype, jnp.integer):
            raise ValueError(f"treatments: expected integers [d], got {treatments.dtype} {treatments.shape}")
        logits = logits[:, treatments]
    return transform(logits)


def log_prior(t: Int[Array, " n"], num_treatments: int) -> Float[Array, " K"]:
    """Log frequencies of the treatments.

    An absent treatment gets the finite value of a treatment with one sample; its column of the scores means
    nothing and must be left out through the argument `treatments` of `propensity` and `from_logits`.

    Args:
        t: `[n]` integer codes in `[0, K)`.
        num_treatments: K, static.

    Example:
        >>> jnp.exp(log_prior(jnp.array([0, 0, 0, 1]), 3)).tolist()
        [0.75, 0.25, 0.25]
    """
    counts = jnp.bincount(t, length=num_treatments).astype(jnp.float32)
    return jnp.log(jnp.maximum(counts, 1) / max(t.size, 1))


@jax.jit
def calibrate(logits: Float[Array, "n K"], t: Int[Array, " n"]) -> Float[Array, ""]:
    """The temperature that minimises the mean cross-entropy of `logits / temperature`.

    The loss is convex in `1 / temperature`; its derivative is bisected on a log scale over [1e-3, 1e3]. Use
    held-out or out-of-fold logits. Not differentiable.

    Args:
        logits: `[n, K]`.
        t: `[n]` integer codes; classes may be absent.

    Returns:
        A scalar. The end of the range is reached when all samples are classified right (1e-3) or the logits
        are no better than chance (1e3). NaN when logits are not finite.

    Raises:
        ValueError: shapes other than `[n, K]` and `[n]`, labels that are not integers.

    Example:
        >>> logits = jnp.array([[0.0, 8.0], [0.0, 8.0], [0.0, 8.0], [0.0, 8.0]])
        >>> round(float(calibrate(logits, jnp.array([1, 1, 1, 0]))), 2)  # three to one: 8 / log 3
        7.28

    References:
        Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 4.2.
    """
    _check_labels(logits, t)
    gap = logits - jnp.take_along_axis(logits, t[:, None], 1)
    limit = jnp.log(jnp.asarray(MAX_TEMPERATURE, logits.dtype))

    def halve(_: Any, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) / 2
        rising = (jax.nn.softmax(jnp.exp(middle) * gap, -1) * gap).sum(-1).mean() > 0
        return jnp.where(rising, low, middle), jnp.where(rising, middle, high)

    low, high = jax.lax.fori_loop(0, BISECTIONS, halve, (-limit, limit))
    return jnp.where(jnp.isfinite(logits).all(), jnp.exp(-(low + high) / 2), jnp.nan)


@functools.partial(jax.jit, static_argnames="bins")
def reliability(
    logits: Float[Array, "n K"], t: Int[Array, " n"], *, temperature: Any = 1.0, bins: int = 15
) -> tuple[Array, Array, Array]:
    """Confidence and accuracy of the predicted class, in bins of equal width of the confidence.

    Args:
        logits: `[n, K]`.
        t: `[n]` integer codes.
        temperature: divides the logits; traced.
        bins: static.

    Returns:
        Mean confidence `[bins]`, accuracy `[bins]` and number of samples `[bins]`; the first two are zero in
        empty bins.

    Raises:
        ValueError: shapes other than `[n, K]` and `[n]`, labels that are not integers, bins below 1.

    Example:
        >>> logits = jnp.array([[0.0, 9.0], [9.0, 0.0]])
        >>> _, accuracy, count = reliability(logits, jnp.array([1, 1]), bins=2)
        >>> accuracy.tolist(), count.tolist()
        ([0.0, 0.5], [0.0, 2.0])
    """
    _check_labels(logits, t)
    if bins < 1:
        raise ValueError(f"bins: expected at least 1, got {bins}")
    probability = jax.nn.softmax(logits / jnp.asarray(temperature, logits.dtype), -1)
    confidence, right = probability.max(-1), (probability.argmax(-1) == t).astype(logits.dtype)
    place = jnp.clip(jnp.ceil(confidence * bins).astype(jnp.int32) - 1, 0, bins - 1)
    count, total, hits = (
        jax.ops.segment_sum(values, place, bins) for values in (jnp.ones_like(right), confidence, right)
    )
    safe = jnp.maximum(count, 1)
    return total / safe, hits / safe, count


def expected_calibration_error(
    logits: Float[Array, "n K"], t: Int[Array, " n"], *, temperature: Any = 1.0, bins: int = 15
) -> Float[Array, ""]:
    """`sum_b n_b / n |accuracy_b - confidence_b|`; see `reliability` for the arguments and errors.

    Example:
        >>> logits = jnp.array([[0.0, 9.0], [9.0, 0.0]])
        >>> round(float(expected_calibration_error(logits, jnp.array([1, 1]))), 2)
        0.5

    References:
        Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 3.
    """
    confidence, accuracy, count = reliability(logits, t, temperature=temperature, bins=bins)
    return (count * jnp.abs(accuracy - confidence)).sum() / jnp.maximum(count.sum(), 1)


def _check_labels(logits: Array, t: Array) -> None:
    if logits.ndim != 2 or not logits.size:
        raise ValueError(f"logits: expected [n, K] with n at least 1, got shape {logits.shape}")
    if t.shape != logits.shape[:1] or not jnp.issubdtype(t.dtype, jnp.integer):
        raise ValueError(f"t: expected integer codes [{logits.shape[0]}], got {t.dtype} {t.shape}")


__all__ = [
    "calibrate",
    "centre",
    "expected_calibration_error",
    "from_logits",
    "log_prior",
    "propensity",
    "reliability",
]
