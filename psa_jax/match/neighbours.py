"""Exact nearest neighbours within one treatment, found chunk by chunk."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from psa_jax.devices import map_rows
from psa_jax.types import Array, Float, Int

CHUNK_ELEMENTS = {"cpu": 2**20}


def check_k(k: int) -> None:
    """Raises a `ValueError` unless `k` is a positive integer."""
    if isinstance(k, Tracer | bool) or not isinstance(k, int | np.integer):
        raise ValueError(f"k: expected an integer known at trace time (it is static), got {k!r}")
    if k < 1:
        raise ValueError(f"k: expected at least 1, got {k}")


def nearest_ids(
    queries: Float[Array, "n d"],
    points: Float[Array, "m d"],
    real: Array,
    k: int,
    costs: Callable[[Array, Array], Array],
    *,
    approximate: bool = False,
) -> Int[Array, "n k"]:
    """The `k` points of least cost for each query `[n, min(k, m)]`, nearest first, the lower id among equals.

    `costs` maps some queries and all points to `[k, m]`.

    Where fewer than `k` points are real the list is filled with `m`, which is no point. With `approximate` the search
    is XLA's `approx_max_k`, which on TPUs finds 95 % of them and elsewhere all.
    """
    m = points.shape[0]
    k = min(k, m)

    def best(rows: Array) -> Array:
        closeness = jnp.where(real[None], -costs(rows, points), -jnp.inf)
        if approximate:
            value, ids = jax.lax.approx_max_k(closeness, k)
        else:
            value, ids = largest(closeness, k)
        return jnp.where(value > -jnp.inf, ids, m).astype(jnp.int32)

    held = CHUNK_ELEMENTS.get(jax.default_backend(), 2**24)
    return map_rows(best, queries, max(1, held // max(m, 1)))


def first_same(x: Float[Array, "n d"], real: Array) -> Int[Array, " n"]:
    """The lowest id of the real samples that each one equals, often its own; `n` for those that are not real.

    Which is the nearest sample of its own side, without a distance. Samples are sorted by two hashes, so that equal
    ones are neighbours.
    """
    n = x.shape[0]
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0, x), jnp.uint32).reshape(n, -1)  # -0 is 0
    odd = np.random.default_rng(0).integers(0, 2**31, (2, 1, bits.shape[1])) * 2 + 1
    mixed = (bits ^ (bits >> 16))[None] * jnp.asarray(odd, jnp.uint32)  # of round numbers only the upper bits differ
    first, second = jnp.sum(mixed ^ (mixed >> 15), axis=2, dtype=jnp.uint32)
    order = jnp.lexsort((second, first, ~real))
    values = x[order]
    new = jnp.append(True, (values[1:] != values[:-1]).any(1) | (real[order][1:] != real[order][:-1]))
    start = jax.lax.cummax(jnp.where(new, jnp.arange(n), 0))
    found = jnp.zeros(n, jnp.int32).at[order].set(order[start].astype(jnp.int32))
    return jnp.where(real, found, n)


def largest(values: Float[Array, "n m"], k: int) -> tuple[Array, Array]:
    """The `k` largest values of each row and their places, `[n, k]` both, as `jax.lax.top_k` gives them.

    That is slow on long rows: it is asked for the `k` stretches of a row that hold the largest maxima, and then for
    the largest values within them.
    No other stretch can hold one of the `k` largest; equal values keep the order of their ids.
    """
    n, m = values.shape
    width = max(1, round((m / k) ** 0.5))
    if width < 4:
        value, ids = jax.lax.top_k(values, k)
        return value, ids
    stretches = -(-m // width)
    fill = jnp.full((n, stretches * width - m), -jnp.inf, values.dtype)
    cut = jnp.concatenate([values, fill], axis=1).reshape(n, stretches, width)
    chosen = jnp.sort(jax.lax.top_k(cut.max(2), k)[1], axis=1)
    held = jnp.take_along_axis(cut, chosen[:, :, None], axis=1).reshape(n, k * width)
    value, place = jax.lax.top_k(held, k)
    return value, jnp.take_along_axis(chosen, place // width, axis=1) * width + place % width


def counts(
    lists: tuple[Int[Array, "n k"], ...], others: tuple[Int[Array, "m k"], ...], num_ids: tuple[int, ...]
) -> Array:
    """How many ids each sample's lists share with each other sample's, list by list, `[m, n]`.

    Lists hold no id twice; the id `num_ids` fills up and counts for nothing. Integers are as small as the lengths of
    the lists allow; memory is that of the result and of `num_ids x n`.
    """
    most = sum(ids.shape[1] for ids in lists)
    small = jnp.uint8 if most < 2**8 else jnp.uint16 if most < 2**16 else jnp.uint32
    total = jnp.zeros_like(others[0], small, shape=(others[0].shape[0], lists[0].shape[0]))
    for own, other, num in zip(lists, others, num_ids, strict=True):
        member = jnp.zeros((num + 1, own.shape[0]), small)
        member = member.at[own, jnp.arange(own.shape[0])[:, None]].set(1).at[num].set(0)

        def add(total: Array, ids: Array, member: Array = member) -> tuple[Array, None]:
            return total + member[ids], None

        total = jax.lax.scan(add, total, other.T, unroll=2)[0]
    return total
