"""Matching within one treatment by neighbours: shared nearest neighbours and plain nearest neighbours."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from psa_jax.coupling import Coupling, Info, masked
from psa_jax.match.cost import check, euclidean, squared_euclidean
from psa_jax.match.neighbours import check_k, counts, nearest_ids
from psa_jax.types import Array, Cost, Float, float_dtype


@dataclasses.dataclass(frozen=True)
class SharedNeighbours:
    """The kernel of `snn`: the log of `s / (2 k_x + 2 k_y - s)`.

    A side's leaves are its neighbour ids among the rows and among the columns, `num_rows` and `num_cols` filling up.
    """

    num_rows: int
    num_cols: int

    def __call__(self, left: tuple[Array, Array], right: tuple[Array, Array], args: Array) -> Array:
        """Log weights `[k, m]`, `-inf` where no neighbour is shared; `args` is `2 k_x + 2 k_y`."""
        sides = left, right
        fewer, more = (left, right) if left[0].shape[0] <= right[0].shape[0] else (right, left)
        shared = counts(fewer[0], more[0], self.num_rows) + counts(fewer[1], more[1], self.num_cols)
        shared = shared if fewer is sides[0] else shared.T
        shared = shared.astype(args.dtype)
        return jnp.where(shared > 0, jnp.log(jnp.where(shared > 0, shared / (args - shared), 1)), -jnp.inf)


def snn(
    u: Float[Array, "n d"],
    v: Float[Array, "m d"],
    a: Float[Array, " n"],
    b: Float[Array, " m"],
    *,
    k: int = 1,
) -> Coupling:
    r"""Matches one treatment by shared nearest neighbours.

    Scores are scaled to unit norm. Every sample has its `k` nearest rows and its `k` nearest columns (a sample is its
    own nearest neighbour). With `s` of these shared, the weight of a pair is `s / (2 k_x + 2 k_y - s)`.

    Args:
        u: scores `[n, d]`.
        v: scores `[m, d]`.
        a: weights `[n]`; only zero (padding) or not matters.
        b: weights `[m]`, likewise.
        k: neighbours, static. A treatment with fewer samples on a side uses all of that side's; `info` tells.

    Returns:
        A coupling. Every row has mass: it shares its nearest column with that column. `info.details`: `k_rows` and
        `k_cols` as used, and `zero_norm`, the number of all-zero scores (which have no direction).
        Not differentiable in the scores.

    Raises:
        ValueError: ranks and lengths that do not fit, or a `k` that is not a positive integer.

    Example:
        >>> u = jnp.array([[1.0, 0.0], [0.0, 1.0]])
        >>> C = snn(u, u[::-1], jnp.full(2, 0.5), jnp.full(2, 0.5), k=1)
        >>> C.apply(jnp.array([10.0, 20.0])).tolist()
        [20.0, 10.0]

    References:
        Xi et al., NeurIPS 2024 (arXiv 2404.01595), section 4.
    """
    check(u, v, a, b)
    check_k(k)
    return _snn(u, v, a, b, k)


@functools.partial(jax.jit, static_argnames="k")
def _snn(u: Array, v: Array, a: Array, b: Array, k: int) -> Coupling:
    n, m = u.shape[0], v.shape[0]
    real_a, real_b = a > 0, b > 0
    x, y = (_unit(scores.reshape(scores.shape[0], -1)) for scores in (u, v))
    left = nearest_ids(x, x, real_a, k, squared_euclidean), nearest_ids(x, y, real_b, k, squared_euclidean)
    right = nearest_ids(y, x, real_a, k, squared_euclidean), nearest_ids(y, y, real_b, k, squared_euclidean)
    k_rows, k_cols = jnp.minimum(k, real_a.sum()), jnp.minimum(k, real_b.sum())
    zero_norm = (real_a & (x == 0).all(1)).sum() + (real_b & (y == 0).all(1)).sum()
    return masked(
        Coupling(
            left=left,
            right=right,
            args=(2 * k_rows + 2 * k_cols).astype(float_dtype(u, v)),
            kernel=SharedNeighbours(n, m),
            info=Info.closed_form(k_rows=k_rows, k_cols=k_cols, zero_norm=zero_norm),
        ),
        a,
        b,
    )


def listed(left: tuple[Array, Array], right: Array, args: Any) -> Array:
    """The kernel of sparse couplings: `left` is columns `[n, k]` and their log masses, `right` is `arange(m)`."""
    columns, log_mass = left

    def place(total: Array, listing: tuple[Array, Array]) -> tuple[Array, None]:
        column, value = listing
        return jnp.where(column[:, None] == right[None], value[:, None], total), None

    start = jnp.full((columns.shape[0], right.shape[0]), -jnp.inf, log_mass.dtype)
    return jax.lax.scan(place, start, (columns.T, log_mass.T))[0]


def nearest(
    u: Float[Array, "n d"],
    v: Float[Array, "m d"],
    a: Float[Array, " n"],
    b: Float[Array, " m"],
    *,
    k: int = 1,
    cost: Cost = euclidean,
) -> Coupling:
    """Matches every row with its `k` nearest columns, equally probable.

    Args:
        u: scores `[n, d]`.
        v: scores `[m, d]`.
        a: weights `[n]`: the mass of each row; zero for padding.
        b: weights `[m]`; only zero or not matters.
        k: neighbours, static. A treatment with fewer columns uses all of them; `info` tells.
        cost: module-level function of one pair, `([d], [d]) -> []`. Static.

    Returns:
        A coupling. `info.details`: `k` as used. Not differentiable in the scores.

    Raises:
        ValueError: ranks and lengths that do not fit, or a `k` that is not a positive integer.

    Example:
        >>> u = jnp.array([[0.0], [1.0]])
        >>> nearest(u, u, jnp.full(2, 0.5), jnp.full(2, 0.5)).dense().tolist()
        [[0.5, 0.0], [0.0, 0.5]]
    """
    check(u, v, a, b)
    check_k(k)
    return _nearest(u, v, a, b, k, cost)


@functools.partial(jax.jit, static_argnames=("k", "cost"))
def _nearest(u: Array, v: Array, a: Array, b: Array, k: int, cost: Cost) -> Coupling:
    m = v.shape[0]
    columns = nearest_ids(u, v, b > 0, k, cost)
    used = jnp.minimum(k, (b > 0).sum())
    log_mass = jnp.log(jnp.where(a > 0, a, 1)) - jnp.log(used.astype(a.dtype))
    left = columns, jnp.broadcast_to(log_mass[:, None], columns.shape)
    info = Info.closed_form(k=used)
    return masked(Coupling(left=left, right=jnp.arange(m, dtype=jnp.int32), kernel=listed, info=info), a, b)


def _unit(x: Array) -> Array:
    norm = jnp.linalg.norm(x, axis=1, keepdims=True)
    return x / jnp.where(norm > 0, norm, 1)
