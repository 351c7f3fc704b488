"""Matching within one treatment by shared nearest neighbours."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from psa_jax.arguments import checked
from psa_jax.coupling.coupling import Coupling, masked
from psa_jax.coupling.info import Info
from psa_jax.match.cost import all_finite, check, fill_padding, squares_by_product
from psa_jax.match.neighbours import check_k, counts, first_same, nearest_ids
from psa_jax.types import Array, Float, alike, float_dtype


@dataclasses.dataclass(frozen=True)
class SharedNeighbours:
    """The kernel of `snn`: the log of `s / (2 k_x + 2 k_y - s)`.

    A side's leaves are its neighbour ids among the rows and among the columns, `num_rows` and `num_cols` filling up.
    """

    num_rows: int
    num_cols: int

    def __call__(self, left: tuple[Array, Array], right: tuple[Array, Array], args: Array) -> Array:
        """Log weights `[k, m]`, `-inf` where no neighbour is shared; `args` is `2 k_x + 2 k_y`."""
        flip = left[0].shape[0] > right[0].shape[0]
        shared = counts(*((right, left) if flip else (left, right)), (self.num_rows, self.num_cols))
        shared = (shared if flip else shared.T).astype(args.dtype)
        return jnp.where(shared > 0, jnp.log(jnp.where(shared > 0, shared / (args - shared), 1)), -jnp.inf)

    def sums(self, left: tuple[Array, Array], right: tuple[Array, Array], args: Array, y: Array) -> Array | None:
        """`sum_j w_ij y_j` `[n, d]` in O(n + m), where each list has one neighbour: by lists, and by pairs of them."""
        if any(ids.shape[1] > 1 for ids in (*left, *right)):
            return None
        n, number = left[0].shape[0], left[0].shape[0] + y.shape[0]
        number = max(number, self.num_rows, self.num_cols) + 1
        ids = [jnp.concatenate([mine[:, 0], theirs[:, 0]]) for mine, theirs in zip(left, right, strict=True)]
        real = [x < number for x, number in zip(ids, (self.num_rows, self.num_cols), strict=True)]
        order = jnp.lexsort(ids)
        new = (ids[0][order][1:] != ids[0][order][:-1]) | (ids[1][order][1:] != ids[1][order][:-1])
        both = jnp.zeros_like(order).at[order].set(jnp.cumsum(jnp.append(False, new), dtype=order.dtype))

        def among(same: Array, real: Array) -> Array:
            """For each row the sum over the columns whose id is the same."""
            summed = jax.ops.segment_sum(jnp.where(real[n:, None], y, 0), same[n:], number)
            return jnp.where(real[:n, None], summed[same[:n]], 0)

        one, two = ((s / jnp.where(args > s, args - s, 1)).astype(y.dtype) for s in (1, 2))
        single = among(ids[0], real[0]) + among(ids[1], real[1])
        return one * single + (two - 2 * one) * among(both, real[0] & real[1])


@checked
def snn(
    u: Float[Array, "n d"],
    v: Float[Array, "m d"],
    a: Float[Array, " n"],
    b: Float[Array, " m"],
    *,
    k: int | tuple[int, ...] = 1,
    approximate: bool = False,
) -> Any:
    r"""Matches one treatment by shared nearest neighbours.

    Scores are scaled to unit norm. Every sample has its `k` nearest rows and its `k` nearest columns (a sample is its
    own nearest neighbour). With `s` of these shared, the weight of a pair is `s / (2 k_x + 2 k_y - s)`.

    Args:
        u: scores `[n, d]`.
        v: scores `[m, d]`.
        a: weights `[n]`; only zero (padding) or not matters.
        b: weights `[m]`, likewise.
        k: neighbours, static. A treatment with fewer samples on a side uses all of that side's; `info` tells. A tuple
            gives a tuple of couplings, whose neighbours are searched once.
        approximate: static; let XLA miss a few neighbours where that is faster (`jax.lax.approx_max_k`, on TPUs).

    Returns:
        A coupling. Every row has mass: it shares its nearest column with that column. `info.converged` is False where a
        score is not finite. `info.details`: `k_rows` and
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
    several = tuple(k) if isinstance(k, tuple | list) else (k,)
    if not several:
        raise ValueError("k: expected at least one number of neighbours, got an empty tuple")
    for each in several:
        check_k(each)
    couplings = _snn(u, v, a, b, several, approximate)
    return couplings if isinstance(k, tuple | list) else couplings[0]


@functools.partial(jax.jit, static_argnames=("several", "approximate"))
def _snn(u: Array, v: Array, a: Array, b: Array, several: tuple[int, ...], approximate: bool) -> tuple[Coupling, ...]:
    n, m = u.shape[0], v.shape[0]
    dtype = float_dtype(u, v, a, b)
    u, v, a, b = alike(*(x.astype(dtype) for x in (u, v, a, b)))
    real_a, real_b = a > 0, b > 0
    x, y = (_unit(fill_padding(scores.reshape(scores.shape[0], -1), w)) for scores, w in ((u, a), (v, b)))
    search = functools.partial(nearest_ids, k=max(several), costs=squares_by_product, approximate=approximate)
    if max(several) == 1:  # a sample is its own nearest neighbour, or an equal one is
        own = first_same(x, real_a)[:, None], first_same(y, real_b)[:, None]
        left, right = (own[0], search(x, y, real_b)), (search(y, x, real_a), own[1])
    else:
        left, right = ((search(side, x, real_a), search(side, y, real_b)) for side in (x, y))
    finite = all_finite(u, real_a) & all_finite(v, real_b)
    zero_norm = (real_a & (x == 0).all(1)).sum() + (real_b & (y == 0).all(1)).sum()

    def coupling(k: int) -> Coupling:
        k_rows, k_cols = jnp.minimum(k, real_a.sum()), jnp.minimum(k, real_b.sum())
        return Coupling(
            left=tuple(ids[:, :k] for ids in left),
            right=tuple(ids[:, :k] for ids in right),
            args=(2 * k_rows + 2 * k_cols).astype(dtype),
            kernel=SharedNeighbours(n, m),
            info=Info.closed_form(finite, k_rows=k_rows, k_cols=k_cols, zero_norm=zero_norm),
        )

    return tuple(masked(coupling(k), a, b) for k in several)


def _unit(x: Array) -> Array:
    top = jnp.abs(x).max(1, keepdims=True)
    x = x / jnp.where(top > 0, top, 1)
    norm = jnp.linalg.norm(x, axis=1, keepdims=True)
    return x / jnp.where(norm > 0, norm, 1)
