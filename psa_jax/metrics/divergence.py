"""Kullback-Leibler divergence between samples: by nearest neighbours, and between fitted Gaussians."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import digamma

from psa_jax.arguments import checked
from psa_jax.devices import map_rows
from psa_jax.match.cost import MOST_DIFFERENCES, pairwise, squared_euclidean
from psa_jax.match.neighbours import check_k, largest
from psa_jax.metrics.distributions import check_samples, weighted
from psa_jax.types import Array, Float, Number, alike

CHUNK_ELEMENTS = 2**22
# Share of a feature's variance, in units of eps, that may be rounding: four times what collinear features showed.
ROUNDING = 64


@checked
def kl_divergence(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    *,
    k: int = 5,
    a: Float[Array, " n"] | None = None,
    b: Float[Array, " m"] | None = None,
) -> Float[Array, ""]:
    """`KL(P_x || P_y)` in nats, estimated from the distances to nearest neighbours.

    `d/n sum_i log(nu_k(i) / rho_k(i)) + log(m / (n - 1))`, where `rho_k(i)` is the distance from `x_i` to its `k`-th
    nearest neighbour among the other `x`, and `nu_k(i)` among `y`. Both laws should have densities: consistent then,
    but with a bias that grows with the dimension and with the divergence, and it may come out below zero.

    Repeated samples have no density, and a distance of zero would make the estimate infinite. Where the `k`-th distance
    is zero the smallest positive one is used, the `l`-th say, and `digamma(l) - digamma(k)` corrects for it as in
    the paper's estimator with neighbours chosen sample by sample: so few repetitions do little harm. If many
    samples are repeated (say drawn with replacement) the number is finite but says little.

    Args:
        x: samples `[n, d]`.
        y: samples `[m, d]`.
        k: neighbours, static; more of them lower the variance and raise the bias.
        a: `[n]` only whether a weight is zero matters: such rows (padding) count for nothing, whatever they hold.
        b: `[m]` likewise.

    Returns:
        The estimate. NaN if all other samples of `x`, or all of `y`, equal one of `x`; if weights leave fewer than
        `k + 1` samples of `x` or `k` of `y`; for traced values that are refused otherwise. Differentiable in samples
        where no two distances are equal. Distances are found in chunks of rows and summed feature by feature, exactly
        zero for equal samples: `n (n + m) d` operations.

    Raises:
        ValueError: shapes that do not fit or are empty, values that are not finite, weights that are negative or all
            zero, a `k` that is not a positive integer or, without weights, not below `n` or above `m`.

    Example:
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 2000, 1))
        >>> round(float(kl_divergence(x, y + 1)), 1)  # (shift of the mean)² / 2
        0.5

    References:
        Wang, Kulkarni and Verdú, Divergence estimation for multidimensional densities via k-nearest-neighbor
        distances, IEEE Transactions on Information Theory 55 (2009).
    """
    check_samples(x, y, a, b)
    check_k(k)
    if a is None and k >= x.shape[0]:
        raise ValueError(f"k: expected at most {x.shape[0] - 1}, the number of other samples of x, got {k}")
    if b is None and k > y.shape[0]:
        raise ValueError(f"k: expected at most {y.shape[0]}, the number of samples of y, got {k}")
    return _kl(x, y, a, b, int(k))


@functools.partial(jax.jit, static_argnames="k")
def _kl(x: Array, y: Array, a: Array | None, b: Array | None, k: int) -> Array:
    x, y, a, b = weighted(x, y, a, b)
    real_x, real_y = a > 0, b > 0
    n, m = real_x.sum(), real_y.sum()
    # The sample itself is its own nearest neighbour in x.
    rho, l = _radius(x, x, real_x, k + 1)
    nu, q = _radius(x, y, real_y, k)
    finite = jnp.isfinite(rho) & jnp.isfinite(nu)
    log_ratio = jnp.log(jnp.where(finite, nu, 1)) - jnp.log(jnp.where(finite, rho, 1))
    term = x.shape[1] / 2 * log_ratio + digamma((l - 1).astype(x.dtype)) - digamma(q.astype(x.dtype))
    defined = (n > k) & (m >= k) & (finite | ~real_x).all()
    sizes = jnp.where(defined, m, 1).astype(x.dtype), jnp.where(defined, n - 1, 1).astype(x.dtype)
    mean = jnp.where(real_x, term, 0).sum() / jnp.maximum(n, 1).astype(x.dtype)
    return jnp.where(defined, mean + jnp.log(sizes[0] / sizes[1]), jnp.nan)


def _radius(queries: Array, points: Array, real: Array, k: int) -> tuple[Array, Array]:
    """Squared distance of the `k`-th nearest point or, if that is zero, the smallest positive one; and its rank."""

    def radius(rows: Array) -> tuple[Array, Array]:
        squares = jnp.where(real[None], _squares(rows, points), jnp.inf)
        kth = -largest(-squares, min(k, points.shape[0]))[0][:, -1]
        positive = jnp.where(squares > 0, squares, jnp.inf).min(1)
        return jnp.where(kth > 0, kth, positive), jnp.maximum(k, (squares == 0).sum(1) + 1)

    return map_rows(radius, queries, max(1, CHUNK_ELEMENTS // points.shape[0]))


def _squares(u: Array, v: Array) -> Array:
    """Squared distances `[n, m]`, by differences however many features there are: exactly zero for equal samples."""
    width = MOST_DIFFERENCES
    slabs = -(-u.shape[1] // width)
    u, v = alike(u, v)
    if slabs == 1:
        return pairwise(squared_euclidean, u, v)

    def cut(points: Array) -> Array:
        points = jnp.pad(points, ((0, 0), (0, slabs * width - points.shape[1])))
        return points.reshape(-1, slabs, width).swapaxes(0, 1)

    def add(total: Array, slab: tuple[Array, Array]) -> tuple[Array, None]:
        return total + pairwise(squared_euclidean, *slab), None

    return jax.lax.scan(add, jnp.zeros_like(u, shape=(u.shape[0], v.shape[0])), (cut(u), cut(v)))[0]


@checked
def gaussian_kl_divergence(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    *,
    ridge: Number = 0.0,
    a: Float[Array, " n"] | None = None,
    b: Float[Array, " m"] | None = None,
) -> Float[Array, ""]:
    """`KL(N_x || N_y)` in nats between the Gaussians with the means and covariances `S` of `x` and `y`.

    `(tr(S_y⁻¹ S_x) + (μ_x - μ_y)' S_y⁻¹ (μ_x - μ_y) - d + log(|S_y| / |S_x|)) / 2`. It sees means and covariances
    only. Without a ridge it is invariant under invertible affine maps of both samples.

    Args:
        x: samples `[n, d]`.
        y: samples `[m, d]`.
        ridge: `ridge` times the mean variance of the features of `y` is added to both diagonals, which compares both
            laws after adding the same independent noise: a smaller divergence, finite for any number of samples. It
            keeps the invariance under rotation, shift and common scale. Traced.
        a: `[n]` weights, uniform by default; rows of zero weight (padding) count for nothing, whatever they hold.
        b: `[m]` weights.

    Returns:
        The divergence, with covariances that divide by `n - 1` (`1 - sum w²` for weights `w` that sum to one). NaN if a
        covariance, after the ridge, is singular to rounding; if weights leave fewer than two samples; for traced values
        that are refused otherwise. Differentiable in samples, weights and `ridge`.

    Raises:
        ValueError: shapes that do not fit or are empty, values that are not finite, weights that are negative or all
            zero, a `ridge` that is negative or not finite; without weights, fewer than two samples, or no more samples
            than features while `ridge` is known to be zero.

    Example:
        >>> x = jax.random.normal(jax.random.key(0), (100, 3))
        >>> round(float(gaussian_kl_divergence(x, x)), 4)
        0.0

    References:
        Kullback, Information Theory and Statistics, 1959, chapter 9.
    """
    check_samples(x, y, a, b)
    known = not isinstance(ridge, Tracer)
    if np.ndim(ridge) != 0 or (known and not 0 <= float(ridge) < np.inf):
        raise ValueError(f"ridge: expected a finite number, not negative, got {ridge}")
    for name, points, weights in (("x", x, a), ("y", y, b)):
        least = points.shape[1] + 1 if known and float(ridge) == 0 else 2
        if weights is None and points.shape[0] < least:
            raise ValueError(
                f"{name}: expected at least {least} samples for {points.shape[1]} features"
                f"{' (fewer have a singular covariance; give a ridge)' if least > 2 else ''}, got {points.shape[0]}"
            )
    return _gaussian_kl(x, y, a, b, jnp.asarray(ridge))


@jax.jit
def _gaussian_kl(x: Array, y: Array, a: Array | None, b: Array | None, ridge: Array) -> Array:
    x, y, a, b = weighted(x, y, a, b)
    d = x.shape[1]
    (mean_x, cov_x), (mean_y, cov_y) = _moments(x, a), _moments(y, b)
    added = ridge.astype(x.dtype) * jnp.trace(cov_y) / d * jnp.eye(d, dtype=x.dtype)
    (root_x, regular_x), (root_y, regular_y) = _root(cov_x + added), _root(cov_y + added)
    enough = jnp.minimum((a > 0).sum(), (b > 0).sum()) > jnp.where(ridge > 0, 1, d)
    spread = solve_triangular(root_y, root_x, lower=True)
    shift = solve_triangular(root_y, mean_x - mean_y, lower=True)
    log_volumes = jnp.log(jnp.diag(root_y)).sum() - jnp.log(jnp.diag(root_x)).sum()
    kl = ((spread**2).sum() + (shift**2).sum() - d) / 2 + log_volumes
    return jnp.where(enough & regular_x & regular_y, kl, jnp.nan)


def _moments(x: Array, w: Array) -> tuple[Array, Array]:
    """Mean and unbiased covariance for weights that sum to one."""
    # Relative to one sample, so that equal samples deviate by exactly nothing.
    anchor = jax.lax.stop_gradient(x[jnp.argmax(w)])[None]
    shifted = x - anchor
    mean = (w[:, None] * shifted).sum(0, keepdims=True)
    deviation = shifted - mean
    rest = 1 - (w**2).sum()
    cov = jnp.matmul((w[:, None] * deviation).T, deviation, precision="highest")
    return (anchor + mean)[0], cov / jnp.where(rest > 0, rest, 1)


def _root(cov: Array) -> tuple[Array, Array]:
    """The Cholesky factor, and whether every feature varies beyond rounding given those before it."""
    root = jnp.linalg.cholesky(cov)
    return root, (jnp.diag(root) ** 2 > ROUNDING * jnp.finfo(cov.dtype).eps * jnp.diag(cov)).all()
