"""Exact nearest neighbours within one treatment, found chunk by chunk."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from psa_jax.match.cost import pairwise
from psa_jax.types import Array, Cost, Float, Int, map_rows

CHUNK_ELEMENTS = 2**22


def check_k(k: int) -> None:
    """Raises a `ValueError` unless `k` is a positive integer."""
    if isinstance(k, Tracer) or not isinstance(k, int | np.integer):
        raise ValueError(f"k: expected an integer known at trace time (it is static), got {k!r}")
    if k < 1:
        raise ValueError(f"k: expected at least 1, got {k}")


def nearest_ids(
    queries: Float[Array, "n d"], points: Float[Array, "m d"], real: Array, k: int, cost: Cost
) -> Int[Array, "n k"]:
    """The `k` points of least cost for each query `[n, min(k, m)]`, nearest first, the lower id among equals.

    Where fewer than `k` points are real the list is filled with `m`, which is no point.
    """
    m = points.shape[0]

    def best(rows: Array) -> Array:
        closeness = jnp.where(real[None], -pairwise(cost, rows, points), -jnp.inf)
        value, ids = jax.lax.top_k(closeness, min(k, m))
        return jnp.where(value > -jnp.inf, ids, m).astype(jnp.int32)

    return map_rows(best, queries, max(1, CHUNK_ELEMENTS // max(m, 1)))


def counts(lists: Int[Array, "n k"], others: Int[Array, "m k"], num_ids: int) -> Float[Array, "n m"]:
    """How many ids each list shares with each other list `[n, m]`; the id `num_ids` counts for nothing.

    Lists hold no id twice. Memory is that of the result and of `num_ids x n` bytes.
    """
    member = jnp.zeros((num_ids + 1, lists.shape[0]), jnp.bool_)
    member = member.at[lists, jnp.arange(lists.shape[0])[:, None]].set(True).at[num_ids].set(False)

    def add(total: Array, ids: Array) -> tuple[Array, None]:
        return total + member[ids].astype(total.dtype), None

    start = jnp.zeros((others.shape[0], lists.shape[0]), jnp.float32)
    return jax.lax.scan(add, start, others.T)[0].T
