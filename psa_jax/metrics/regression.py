"""How much of the variance predictions explain."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from psa_jax.arguments import checked
from psa_jax.types import Array, Bool, Float, Int, float_dtype, pytree


@pytree
class R2:
    """Coefficients of determination; `float()` of it is the pooled one.

    Attributes:
        pooled: `1 - SSE / SST`, both summed over all features; NaN if every feature is undefined.
        per_feature: `[d]`, NaN where undefined.
        median: of the defined features, NaN if there is none.
        undefined: `[d]` whether the feature has no SST: it is constant, and `center` is that constant.
        counted: rows used.
        excluded: rows left out, because the prediction or the truth holds a NaN or an infinity.
    """

    pooled: Float[Array, ""]
    per_feature: Float[Array, " d"]
    median: Float[Array, ""]
    undefined: Bool[Array, " d"]
    counted: Int[Array, ""]
    excluded: Int[Array, ""]

    def __float__(self) -> float:
        return float(self.pooled)


@checked
def r2(y_true: Float[Array, "n d"], y_pred: Float[Array, "n d"], *, center: Float[Array, " d"] | None = None) -> R2:
    """`R² = 1 - SSE / SST`: one minus the squared error over that of predicting `center` for every sample.

    `SSE = sum_i (true_i - pred_i)²` and `SST = sum_i (true_i - center)²`, for each feature or summed over all. Errors
    in constant features count in the pooled SSE, though they have no R² of their own. 1 is perfect, 0 is as good as the
    mean, and there is no lower bound.

    Args:
        y_true: the truth `[n, d]`; it comes first, as in scikit-learn.
        y_pred: predictions `[n, d]`.
        center: `[d]`, the mean of the TRAINING data, which is all that a predictor could know; by default the mean of
            `y_true`, as in scikit-learn.

    Returns:
        An `R2`. A feature of equal truths is undefined if they equal `center` up to half the digits (3e-4 in single
        precision): a mean of many equal numbers is no better than that. Differentiable in both.

    Raises:
        ValueError: shapes that differ or are empty, or a `center` that is not finite, if it is known (not traced).

    Example:
        >>> y = jnp.array([[0.0, 7.0], [1.0, 7.0], [2.0, 7.0]])
        >>> found = r2(y, y + jnp.array([1.0, 0.0]))
        >>> float(found), found.per_feature.tolist(), found.undefined.tolist()
        (-0.5, [-0.5, nan], [False, True])

    References:
        Xi et al., NeurIPS 2024 (arXiv 2404.01595), section 5; sklearn.metrics.r2_score.
    """
    if y_true.ndim != 2 or y_true.shape != y_pred.shape:
        raise ValueError(f"y_true, y_pred: expected one shape [n, d], got {y_true.shape} and {y_pred.shape}")
    if 0 in y_true.shape:
        raise ValueError(f"y_true, y_pred: expected at least one sample and one feature, got shape {y_true.shape}")
    if center is not None and center.shape != y_true.shape[1:]:
        raise ValueError(f"center: expected shape {y_true.shape[1:]}, one number for each feature, got {center.shape}")
    if center is not None and not isinstance(center, Tracer) and not np.isfinite(center).all():
        raise ValueError(f"center: expected finite numbers, got {(~np.isfinite(center)).sum()} that are not")
    return _r2(y_pred, y_true, center)


@jax.jit
def _r2(y_hat: Array, y: Array, center: Array | None) -> R2:
    dtype = float_dtype(y_hat, y)
    y_hat, y = y_hat.astype(dtype), y.astype(dtype)
    usable = jnp.isfinite(y_hat).all(1) & jnp.isfinite(y).all(1)
    counted = usable.sum()
    first = jnp.where(usable.any(), y[jnp.argmax(usable)], 0)[None]
    y = jnp.where(usable[:, None], y, first)
    error = jnp.where(usable[:, None], y_hat, y) - y
    # Relative to the first sample, so that equal samples deviate by exactly nothing.
    shifted = y - first
    same = (shifted == 0).all(0, keepdims=True)
    if center is None:
        offset = shifted.sum(0, keepdims=True) / jnp.maximum(counted, 1).astype(dtype)
        constant = same
    else:
        offset = center.astype(dtype)[None] - first
        constant = same & (jnp.abs(offset) <= jnp.finfo(dtype).eps ** 0.5 * jnp.abs(first))
    deviation = jnp.where(usable[:, None] & ~constant, shifted - offset, 0)
    sse, sst = (error**2).sum(0), (deviation**2).sum(0)
    undefined = sst == 0
    score, pooled = _share(sse, sst), _share(sse.sum(), sst.sum())
    return R2(pooled, score, _median(score, ~undefined), undefined, counted, y.shape[0] - counted)


def _share(sse: Array, sst: Array) -> Array:
    return jnp.where(sst > 0, 1 - sse / jnp.where(sst > 0, sst, 1), jnp.nan)


def _median(values: Array, defined: Array) -> Array:
    """The median of the defined values, NaN without any; unlike `jnp.nanmedian` with gradients that are finite."""
    ordered = jnp.sort(jnp.where(defined, values, jnp.inf))
    count = defined.sum()
    middle = (ordered[jnp.maximum(count - 1, 0) // 2] + ordered[jnp.minimum(count // 2, values.size - 1)]) / 2
    return jnp.where(count > 0, middle, jnp.nan)
