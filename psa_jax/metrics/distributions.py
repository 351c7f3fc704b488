"""Two samples to compare as distributions: their checks, their weights, and comparing them treatment by treatment."""

import warnings
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from psa_jax.arguments import checked
from psa_jax.data.codes import codes
from psa_jax.data.groups import group
from psa_jax.match.cost import fill_padding
from psa_jax.types import Array, Float, float_dtype


def check_samples(x: Any, y: Any, a: Any = None, b: Any = None) -> None:
    """Raises a `ValueError` unless `x [n, d]`, `y [m, d]`, `a [n]`, `b [m]` fit together.

    If they are known (not traced) samples of positive weight must be finite, and weights finite, none negative, not
    all zero.
    """
    for name, points, weight_name, weights in (("x", x, "a", a), ("y", y, "b", b)):
        if points.ndim != 2 or 0 in points.shape:
            raise ValueError(
                f"{name}: expected shape [samples, features] with at least one of each, got {points.shape}"
            )
        if weights is not None and weights.shape != points.shape[:1]:
            raise ValueError(
                f"{weight_name}: expected shape {points.shape[:1]}, one weight for each row of {name}, "
                f"got {weights.shape}"
            )
        if isinstance(weights, Tracer):
            continue
        w = np.ones(points.shape[0]) if weights is None else np.asarray(weights).astype(np.float64)
        if not (np.isfinite(w).all() and (w >= 0).all() and (w > 0).any()):
            raise ValueError(
                f"{weight_name}: expected finite weights, none negative and not all zero, got {w.min()} to {w.max()}"
            )
        if not isinstance(points, Tracer):
            _check_finite(name, np.asarray(points), w > 0)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x, y: expected the same features, got shapes {x.shape} and {y.shape}")


def _check_finite(name: str, points: np.ndarray, real: np.ndarray) -> None:
    bad = np.flatnonzero(real & ~np.isfinite(points).all(1))
    if bad.size:
        raise ValueError(
            f"{name}: expected finite values, got NaN or infinity in {bad.size} of {real.sum()} rows, "
            f"the first at row {bad[0]}"
        )


def weighted(x: Array, y: Array, a: Array | None, b: Array | None) -> tuple[Array, Array, Array, Array]:
    """Samples in one floating type and weights that sum to one, ready to compute with inside `jit`.

    Rows of zero weight get the mean of the others, whatever they held; weights that are no weights become NaN.
    """
    dtype = float_dtype(x, y)

    def one(points: Array, weights: Array | None) -> tuple[Array, Array]:
        w = jnp.ones(points.shape[0], dtype) if weights is None else weights.astype(dtype)
        total = w.sum()
        valid = (w >= 0).all() & (total > 0) & jnp.isfinite(total)
        w = jnp.where(valid, w / jnp.where(valid, total, 1), jnp.nan)
        return fill_padding(points.astype(dtype), w), w

    (x, a), (y, b) = one(x, a), one(y, b)
    return x, y, a, b


@checked
def per_treatment(
    distance: Callable[..., Any],
    x: Float[Array, "n d"],
    t_x: Any,
    y: Float[Array, "m d"],
    t_y: Any,
    num_treatments: int,
) -> Float[Array, "T ..."]:
    """The distance between two samples of each treatment, say predicted and observed ones. On the host.

    Args:
        distance: `(x [n, d], y [m, d], *, a [n], b [m]) -> [...]`: `wasserstein1`, `kl_divergence`,
            `gaussian_kl_divergence`, `functools.partial(sliced_wasserstein1, key)`, or a function of your own. It is
            called once for each treatment, with samples padded to the few sizes that `group` plans, at most twelve
            pairs of them: a compiled distance compiles that often, not once for each treatment. Padding has weight 0
            in `a` and `b`, samples have weight 1.
        x: samples `[n, d]`.
        t_x: `[n]` integer treatment codes of `x`.
        y: samples `[m, d]`.
        t_y: `[m]` integer treatment codes of `y`.
        num_treatments: codes are in `[0, num_treatments)`.

    Returns:
        `[num_treatments, ...]`, of whatever shape the distance has; NaN for treatments with fewer than two samples on
        either side, and where the distance is NaN. A warning names both, but not treatments that have no sample at
        all. Not differentiable.

    Raises:
        ValueError: samples and codes that do not fit or are not finite, or no treatment with two samples on each side.

    Example:
        >>> from psa_jax.metrics.wasserstein import wasserstein1
        >>> x, t = jnp.arange(4.0)[:, None], jnp.array([0, 0, 1, 1])
        >>> per_treatment(wasserstein1, x, t, x + t[:, None], t, 3).tolist()
        [[0.0], [1.0], [nan]]
    """
    t_x, t_y = codes("t_x", t_x, num_treatments), codes("t_y", t_y, num_treatments)
    check_samples(x, y)
    for name, points, t in (("t_x", x, t_x), ("t_y", y, t_y)):
        if t.size != points.shape[0]:
            raise ValueError(f"{name}: expected {points.shape[0]} codes, one for each sample, got {t.size}")
    sizes_x, sizes_y = (np.bincount(t, minlength=num_treatments) for t in (t_x, t_y))
    enough = (sizes_x >= 2) & (sizes_y >= 2)
    if not enough.any():
        raise ValueError("t_x, t_y: expected at least one treatment with two samples on each side, got none")
    dtype = float_dtype(x, y)
    samples = np.asarray(x), np.asarray(y)
    found = {}
    for bucket in group(t_x, t_y, num_treatments).buckets:
        for treatment, rows, cols in zip(*map(np.asarray, (bucket.treatment, bucket.rows, bucket.cols)), strict=True):
            if enough[treatment]:
                a, b = (jnp.asarray(ids < t.size, dtype) for ids, t in ((rows, t_x), (cols, t_y)))
                mine = (jnp.asarray(p[np.minimum(i, len(p) - 1)]) for p, i in zip(samples, (rows, cols), strict=True))
                found[int(treatment)] = np.asarray(distance(*mine, a=a, b=b))
    some = next(iter(found.values()))
    out = np.full((num_treatments, *some.shape), np.nan, some.dtype)
    for treatment, value in found.items():
        out[treatment] = value
    undefined = np.isnan(out).reshape(num_treatments, -1).any(1)
    _warn("fewer than two samples on a side", (sizes_x + sizes_y > 0) & ~enough)
    _warn("the distance is NaN (too few or degenerate samples for it)", enough & undefined)
    return jnp.asarray(out)


def _warn(reason: str, which: np.ndarray) -> None:
    if which.any():
        codes = np.flatnonzero(which)
        listed = ", ".join(map(str, codes[:10])) + (" and more" if codes.size > 10 else "")
        warnings.warn(f"no distance for {codes.size} of {which.size} treatments ({listed}): {reason}", stacklevel=3)
