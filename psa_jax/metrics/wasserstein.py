"""Wasserstein distances of order one: exact for each feature, and averaged over random directions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from psa_jax.arguments import checked
from psa_jax.devices import map_rows
from psa_jax.metrics.distributions import check_samples, weighted
from psa_jax.types import Array, Float, KeyArray

CHUNK_ELEMENTS = 2**22


@checked
def wasserstein1(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    *,
    a: Float[Array, " n"] | None = None,
    b: Float[Array, " m"] | None = None,
) -> Float[Array, " d"]:
    """`W1 = ∫ |F - G|` for each feature, between the empirical distributions `F` of `x` and `G` of `y`.

    Args:
        x: samples `[n, d]`.
        y: samples `[m, d]`.
        a: `[n]` weights, uniform by default; rows of zero weight (padding) count for nothing, whatever they hold.
        b: `[m]` weights.

    Returns:
        `[d]`, in the units of the features. If they are traced, values that are not finite give NaN for their feature
        and weights that are negative or all zero for every feature. Differentiable in samples and weights; where
        samples are tied or `F = G`, a subgradient.

    Raises:
        ValueError: shapes that do not fit or are empty, values that are not finite, weights that are negative or all
            zero.

    Example:
        >>> wasserstein1(jnp.array([[0.0, 1.0], [2.0, 1.0]]), jnp.array([[1.0, 4.0]])).tolist()
        [1.0, 3.0]

    References:
        Ramdas, García Trillos and Cuturi, On Wasserstein two-sample testing, Entropy 2017 (arXiv 1509.02237).
    """
    check_samples(x, y, a, b)
    return _wasserstein1(x, y, a, b)


@jax.jit
def _wasserstein1(x: Array, y: Array, a: Array | None, b: Array | None) -> Array:
    x, y, a, b = weighted(x, y, a, b)
    mass = jnp.concatenate([a, -b])
    area = functools.partial(_area, mass=mass)
    return map_rows(area, jnp.concatenate([x, y]).T, max(1, CHUNK_ELEMENTS // mass.size))


def _area(values: Array, mass: Array) -> Array:
    """`∫ |F - G|` for each row of `values [k, s]`, with `F - G` the sum of `mass [s]` up to a value."""
    order = jnp.argsort(jax.lax.stop_gradient(values), axis=1)
    ordered = jnp.take_along_axis(values, order, axis=1)
    height = jnp.cumsum(mass[order], axis=1)[:, :-1]
    area = (jnp.abs(height) * jnp.diff(ordered, axis=1)).sum(1)
    return jnp.where(jnp.isfinite(values).all(1), area, jnp.nan)


@checked
def sliced_wasserstein1(
    key: KeyArray,
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    *,
    num_projections: int = 128,
    a: Float[Array, " n"] | None = None,
    b: Float[Array, " m"] | None = None,
) -> Float[Array, ""]:
    """The mean over random unit directions `θ` of the one-dimensional W1 between `<θ, x>` and `<θ, y>`.

    A projection brings no two points further apart, so this is a lower bound of the Euclidean W1, for every draw of
    directions, and equal to it for one feature. It shrinks with the dimension: a shift by `s` gives
    `|s| Γ(d/2) / (√π Γ((d+1)/2))`, about `|s| √(2 / (π d))`, where W1 is `|s|`.

    Args:
        key: a typed PRNG key; draws the directions. The same key compares samples along the same directions.
        x: samples `[n, d]`.
        y: samples `[m, d]`.
        num_projections: static; the error of the mean falls with its square root.
        a: `[n]` weights, uniform by default; rows of zero weight (padding) count for nothing, whatever they hold.
        b: `[m]` weights.

    Returns:
        The mean, in the units of the features; NaN for traced values that `wasserstein1` would refuse. Differentiable
        as that is.

    Raises:
        ValueError: as `wasserstein1`, or a `num_projections` that is not a positive integer.

    Example:
        >>> x = jnp.array([[0.0], [2.0]])
        >>> float(sliced_wasserstein1(jax.random.key(0), x, x + 3))
        3.0

    References:
        Bonneel, Rabin, Peyré and Pfister, Sliced and Radon Wasserstein barycenters of measures, JMIV 2015.
    """
    check_samples(x, y, a, b)
    if isinstance(num_projections, bool) or not isinstance(num_projections, int | np.integer) or num_projections < 1:
        raise ValueError(f"num_projections: expected a positive integer (it is static), got {num_projections!r}")
    return _sliced(key, x, y, a, b, int(num_projections))


@functools.partial(jax.jit, static_argnames="num_projections")
def _sliced(key: KeyArray, x: Array, y: Array, a: Array | None, b: Array | None, num_projections: int) -> Array:
    x, y, a, b = weighted(x, y, a, b)
    mass = jnp.concatenate([a, -b])
    # Centred: far from the origin a projection would lose digits.
    points = jnp.concatenate([x, y]) - jax.lax.stop_gradient(y.mean(0, keepdims=True))
    directions = jax.random.normal(key, (num_projections, x.shape[1]), x.dtype)
    directions /= jnp.linalg.norm(directions, axis=1, keepdims=True)

    def along(directions: Array) -> Array:
        return _area(jnp.matmul(directions, points.T, precision="highest"), mass)

    return map_rows(along, directions, max(1, CHUNK_ELEMENTS // mass.size)).mean()
