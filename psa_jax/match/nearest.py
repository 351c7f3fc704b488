"""Matching within one treatment by nearest neighbours, and the kernel of every sparse coupling."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from psa_jax.arguments import checked
from psa_jax.coupling.coupling import Coupling, masked
from psa_jax.coupling.info import Info
from psa_jax.match.cost import all_finite, check, euclidean, fill_padding, pairwise
from psa_jax.match.neighbours import check_k, nearest_ids
from psa_jax.types import Array, Cost, Float, alike, float_dtype


def listed(left: tuple[Array, Array], right: Array, args: Any) -> Array:
    """The kernel of sparse couplings: `left` is columns `[n, k]` and their log masses, `right` is `arange(m)`."""
    columns, log_mass = left

    def place(total: Array, listing: tuple[Array, Array]) -> tuple[Array, None]:
        column, value = listing
        return jnp.where(column[:, None] == right[None], value[:, None], total), None

    start = jnp.full_like(log_mass, -jnp.inf, shape=(columns.shape[0], right.shape[0]))
    return jax.lax.scan(place, start, (columns.T, log_mass.T))[0]


@checked
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
        A coupling. `info.converged` is False where a score is not finite. `info.details`: `k` as used.
        Not differentiable in the scores.

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
    dtype = float_dtype(u, v, a, b)
    u, v, a, b = alike(*(x.astype(dtype) for x in (u, v, a, b)))
    columns = nearest_ids(u, fill_padding(v, b), b > 0, k, functools.partial(pairwise, cost))
    used = jnp.minimum(min(k, v.shape[0]), (b > 0).sum())
    log_mass = jnp.log(jnp.where(a > 0, a, 1)) - jnp.log(used.astype(a.dtype))
    left = columns, jnp.broadcast_to(log_mass[:, None], columns.shape)
    finite = all_finite(u, a > 0) & all_finite(v, b > 0)
    info = Info.closed_form(finite, k=used)
    return masked(Coupling(left=left, right=jnp.arange(m, dtype=jnp.int32), kernel=listed, info=info), a, b)
