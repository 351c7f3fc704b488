"""Costs of matching one sample with one sample; any function of this form can stand in their place."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from psa_jax.arguments import checked
from psa_jax.types import Array, Cost, Float

MOST_DIFFERENCES = 32


@checked
def squared_euclidean(x: Float[Array, " d"], y: Float[Array, " d"]) -> Float[Array, ""]:
    """`|x - y|²`.

    Example:
        >>> float(squared_euclidean(jnp.zeros(2), jnp.array([3.0, 4.0])))
        25.0
    """
    _check_points(x, y)
    difference = x - y
    return jnp.sum(difference * difference)


@checked
def euclidean(x: Float[Array, " d"], y: Float[Array, " d"]) -> Float[Array, ""]:
    """`|x - y|`, the cost of the paper (Xi et al. 2024, section 4); its gradient at coincident points is zero.

    Example:
        >>> float(euclidean(jnp.zeros(2), jnp.array([3.0, 4.0])))
        5.0
    """
    return _safe_sqrt(squared_euclidean(x, y))


@checked
def cosine(x: Float[Array, " d"], y: Float[Array, " d"]) -> Float[Array, ""]:
    """`1 - <x, y> / (|x| |y|)`; 1 where either is all zeros, which has no direction.

    Example:
        >>> float(cosine(jnp.array([1.0, 0.0]), jnp.array([0.0, 2.0])))
        1.0
    """
    _check_points(x, y)
    return 1 - jnp.sum(direction(x[None]) * direction(y[None]))


def _check_points(x: Array, y: Array) -> None:
    if x.shape != y.shape:
        raise ValueError(f"x, y: expected two points of one shape [d], got {x.shape} and {y.shape}")


def pairwise(cost: Cost, u: Float[Array, "n ..."], v: Float[Array, "m ..."]) -> Float[Array, "n m"]:
    """The cost of every row of `u` with every row of `v`, `[n, m]`.

    Euclidean distances of up to 32 features are sums of squared differences, exact for near samples far from the rest;
    of more features they come from one matrix product, in full precision, of samples centred on `v`.
    """
    if cost not in (euclidean, squared_euclidean, cosine):
        return jax.vmap(jax.vmap(cost, (None, 0)), (0, None))(u, v)
    u, v = (x.reshape(x.shape[0], math.prod(x.shape[1:])) for x in (u, v))
    if cost is cosine:
        return 1 - _product(direction(u), direction(v))
    unit = power_of_two(u, v)  # squares of very small or large scores leave the range of the type
    u, v = u / unit, v / unit
    if u.shape[1] <= MOST_DIFFERENCES:
        squares = _squared_differences(u, v)
    else:
        squares = squares_by_product(u, v)
    return squares * unit * unit if cost is squared_euclidean else _safe_sqrt(squares) * unit


@jax.custom_jvp
def _squared_differences(u: Array, v: Array) -> Array:
    return ((u[:, :, None] - v.T[None]) ** 2).sum(1)


@_squared_differences.defjvp
def _differential(primals: Any, tangents: Any) -> tuple[Array, Array]:
    """By products, of samples centred on `v`: the transpose of differences would be summed feature by feature."""
    (u, v), (du, dv) = primals, tangents
    anchor = v.mean(0, keepdims=True)
    x, y = u - anchor, v - anchor
    # The sums are contractions: on the CPU, XLA (of jax 0.10) fuses several tangents' `(x * du).sum(1)` wrongly.
    rows, columns = (jnp.einsum("nd,nd->n", *pair, precision="highest") for pair in ((x, du), (y, dv)))
    change = rows[:, None] + columns[None] - _product(du, y) - _product(x, dv)
    return _squared_differences(u, v), 2 * change


def squares_by_product(u: Float[Array, "n d"], v: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """Squared distances by one matrix product; their error is that of the squared distances from the mean of `v`."""
    anchor = jax.lax.stop_gradient(v.mean(0, keepdims=True))
    x, y = u - anchor, v - anchor
    squares = (x * x).sum(1)[:, None] + (y * y).sum(1)[None] - 2 * _product(x, y)
    return jnp.where(squares < 0, 0, squares)


def power_of_two(*arrays: Array) -> Array:
    """A power of two near the largest absolute value: to divide by it rounds nothing."""
    top = jax.lax.stop_gradient(jnp.stack([jnp.abs(x).max(initial=0) for x in arrays]).max())
    fair = (top > 0) & (top < jnp.inf)
    return jnp.where(fair, jnp.exp2(jnp.floor(jnp.log2(jnp.where(fair, top, 1)))), 1)


def fill_padding(x: Float[Array, "n ..."], weights: Float[Array, " n"]) -> Float[Array, "n ..."]:
    """Samples of zero weight replaced by the mean of the others: what padding holds, NaN too, reaches nothing."""
    real = (weights > 0).reshape(-1, *[1] * (x.ndim - 1))
    count = jnp.maximum(real.sum(), 1).astype(x.dtype)
    mean = jax.lax.stop_gradient((jnp.where(real, x, 0) / count).sum(0, keepdims=True))
    return jnp.where(real, x, mean)


def all_finite(x: Float[Array, "n ..."], real: Array) -> Array:
    """Whether the real rows of `x` hold neither NaN nor infinity."""
    return (jnp.isfinite(x).reshape(x.shape[0], -1).all(1) | ~real).all()


def check(u: Any, v: Any, a: Any, b: Any) -> None:
    """Raises a `ValueError` unless `u [n, ...]`, `v [m, ...]`, `a [n]`, `b [m]` fit together."""
    for name, scores, weight_name, weights in (("u", u, "a", a), ("v", v, "b", b)):
        if not hasattr(scores, "ndim") or not hasattr(weights, "shape"):
            raise ValueError(f"{name}, {weight_name}: expected arrays, got {type(scores)} and {type(weights)}")
        if scores.ndim < 2:
            raise ValueError(f"{name}: expected rank 2 or more, [samples, ...], got shape {scores.shape}")
        if not scores.shape[0]:
            raise ValueError(f"{name}: expected at least one sample, got shape {scores.shape}")
        if 0 in scores.shape[1:]:
            raise ValueError(f"{name}: expected at least one score of each sample, got shape {scores.shape}")
        if weights.shape != scores.shape[:1]:
            raise ValueError(
                f"{weight_name}: expected shape {scores.shape[:1]}, one weight for each row of {name}, "
                f"got {weights.shape}"
            )
    if u.shape[1:] != v.shape[1:]:
        raise ValueError(f"u, v: expected the same features, got shapes {u.shape} and {v.shape}")


def _safe_sqrt(x: Array) -> Array:
    """The square root, with gradient zero instead of infinite at zero."""
    return jnp.where(x == 0, 0, jnp.sqrt(jnp.where(x == 0, 1, x)))


def direction(x: Array) -> Array:
    """Rows of unit norm; zeros stay zeros."""
    norm = _safe_sqrt((x * x).sum(1, keepdims=True))
    return x / jnp.where(norm > 0, norm, 1)


def _product(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y.T, precision="highest")
