"""How far a classifier's confidence can be trusted, and the temperature that mends it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from psa_jax.arguments import checked
from psa_jax.data.codes import check_codes
from psa_jax.types import Array, Float, Int, Number, pytree

MAX_TEMPERATURE = 1e3
BISECTIONS = 60


@pytree
class Calibration:
    """How far a classifier's confidence can be trusted, on samples that it was not trained on.

    Attributes:
        temperature: what its logits were divided by.
        cross_entropy: mean `-log P(t | x)` after that, in nats.
        accuracy: share of samples whose most probable treatment is theirs.
        error_before: expected calibration error of the raw logits.
        error_after: the same after division by the temperature.
        confidence: `[bins]` mean confidence of the samples in each bin, 0 where empty, after division.
        frequency: `[bins]` their accuracy.
        count: `[bins]` their number.
    """

    temperature: Float[Array, ""]
    cross_entropy: Float[Array, ""]
    accuracy: Float[Array, ""]
    error_before: Float[Array, ""]
    error_after: Float[Array, ""]
    confidence: Float[Array, " bins"]
    frequency: Float[Array, " bins"]
    count: Array


@checked
def calibrate(logits: Float[Array, "n K"], t: Int[Array, " n"]) -> Float[Array, ""]:
    """The temperature that minimises the mean cross-entropy of `logits / temperature`.

    The loss is convex in `1 / temperature`; its derivative is bisected on a log scale over [1e-3, 1e3]. Use
    held-out or out-of-fold logits. Not differentiable.

    Args:
        logits: `[n, K]`.
        t: `[n]` integer codes; classes may be absent. Traced ones that are no code are ignored.

    Returns:
        A scalar. The end of the range is reached when all samples are classified right (1e-3) or the logits
        are no better than chance (1e3). NaN when logits are not finite.

    Raises:
        ValueError: shapes other than `[n, K]` and `[n]`, labels that are not integers in [0, K).

    Example:
        >>> logits = jnp.array([[0.0, 8.0], [0.0, 8.0], [0.0, 8.0], [0.0, 8.0]])
        >>> round(float(calibrate(logits, jnp.array([1, 1, 1, 0]))), 2)  # three to one: 8 / log 3
        7.28

    References:
        Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 4.2.
    """
    _check_labels(logits, t)
    return _calibrate(logits, t)


@jax.jit
def _calibrate(logits: Array, t: Array) -> Array:
    inside = (t >= 0) & (t < logits.shape[1])
    gap = logits - jnp.take_along_axis(logits, jnp.where(inside, t, 0)[:, None], 1)
    gap = jnp.where(inside[:, None], gap, 0)
    limit = jnp.log(jnp.full_like(gap, MAX_TEMPERATURE, shape=()))

    def halve(_: Any, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) / 2
        rising = (jax.nn.softmax(jnp.exp(middle) * gap, -1) * gap).sum(-1).mean() > 0
        return jnp.where(rising, low, middle), jnp.where(rising, middle, high)

    low, high = jax.lax.fori_loop(0, BISECTIONS, halve, (-limit, limit))
    finite = jnp.isfinite(logits).all(1) | ~inside
    return jnp.where(finite.all(), jnp.exp(-(low + high) / 2), jnp.nan)


@checked
def reliability(
    logits: Float[Array, "n K"], t: Int[Array, " n"], *, temperature: Number = 1.0, bins: int = 15
) -> tuple[Array, Array, Array]:
    """Confidence and accuracy of the predicted class, in bins of equal width of the confidence.

    Args:
        logits: `[n, K]`.
        t: `[n]` integer codes; traced ones that are no code are ignored.
        temperature: divides the logits; traced.
        bins: static.

    Returns:
        Mean confidence `[bins]`, accuracy `[bins]` and number of samples `[bins]`; the first two are zero in
        empty bins.

    Raises:
        ValueError: shapes other than `[n, K]` and `[n]`, labels that are not integers in [0, K), bins below 1.

    Example:
        >>> logits = jnp.array([[0.0, 9.0], [9.0, 0.0]])
        >>> _, accuracy, count = reliability(logits, jnp.array([1, 1]), bins=2)
        >>> accuracy.tolist(), count.tolist()
        ([0.0, 0.5], [0.0, 2.0])
    """
    _check_labels(logits, t)
    if bins < 1:
        raise ValueError(f"bins: expected at least 1, got {bins}")
    return _reliability(logits, t, temperature, bins)


@functools.partial(jax.jit, static_argnames="bins")
def _reliability(logits: Array, t: Array, temperature: Number, bins: int) -> tuple[Array, Array, Array]:
    inside = ((t >= 0) & (t < logits.shape[1])).astype(logits.dtype)
    probability = jax.nn.softmax(logits / jnp.asarray(temperature, logits.dtype), -1)
    confidence, right = probability.max(-1), (probability.argmax(-1) == t).astype(logits.dtype)
    place = jnp.clip(jnp.ceil(confidence * bins).astype(jnp.int32) - 1, 0, bins - 1)
    count, total, hits = (
        jax.ops.segment_sum(inside * values, place, bins) for values in (jnp.ones_like(right), confidence, right)
    )
    safe = jnp.maximum(count, 1)
    return total / safe, hits / safe, count


@checked
def expected_calibration_error(
    logits: Float[Array, "n K"], t: Int[Array, " n"], *, temperature: Number = 1.0, bins: int = 15
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
    check_codes("t", t, logits.shape[1])


def calibration(held_out: Float[Array, "n K"], t: Int[Array, " n"]) -> Calibration:
    """Everything about the calibration of logits of samples that the classifier was not trained on."""
    temperature = calibrate(held_out, t)
    log_p = jax.nn.log_softmax(held_out / temperature)
    return Calibration(
        temperature,
        -jnp.take_along_axis(log_p, t[:, None], axis=1).mean(),
        (jnp.argmax(held_out, axis=1) == t).mean(),
        expected_calibration_error(held_out, t),
        expected_calibration_error(held_out, t, temperature=temperature),
        *reliability(held_out, t, temperature=temperature),
    )
