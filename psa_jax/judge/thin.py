"""At most so many samples of each treatment: criteria are averages, which need not see every sample."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from psa_jax.data.groups import Bucket, Groups
from psa_jax.data.source import Source
from psa_jax.types import Array, Int, KeyArray, pytree

MOST, FEWEST = 500, 16
MOST_PADDED = 2**21  # entries of all stored problems together


@pytree
class Thinned:
    """A plan of some samples.

    Attributes:
        groups: of the samples kept, numbered anew.
        rows: `[n']` which rows of before they are; the number of rows of before stands for none.
        cols: `[m']` the same of columns.
    """

    groups: Groups
    rows: Int[Array, " kept_rows"]
    cols: Int[Array, " kept_cols"]

    def of_a(self, x: Any) -> Any:
        """What is said of all rows `[..., n, d]`, of those that are kept `[..., n', d]`; zeros for none."""
        return _kept(x, self.rows)

    def of_b(self, x: Any) -> Any:
        """What is said of all columns `[..., m, d]`, of those that are kept."""
        return _kept(x, self.cols)


def thin(key: KeyArray, groups: Groups, most: int) -> Thinned | None:
    """A random choice of at most `most` rows and columns of each treatment; None if there are no more anyway.

    Composes with `jit`: the shapes of the plan decide. Treatments cut to one size share one bucket, so that there is
    one program for all of them.

    Args:
        key: decides which.
        groups: the plan.
        most: static; at least 2.
    """
    if max((max(bucket.rows.shape[1], bucket.cols.shape[1]) for bucket in groups.buckets), default=0) <= most:
        return None
    n, m = groups.shape
    # Each sample has its place in a random order, whatever bucket it is in: the choice is the same for any plan.
    order_a, order_b = (
        jnp.append(jax.random.uniform(key, (number,)), 2.0)
        for key, number in zip(jax.random.split(key), (n, m), strict=True)
    )
    chosen: dict[tuple[int, int], list[tuple[Array, Array, Array]]] = {}
    for bucket in groups.buckets:
        rows, cols = _some(order_a, bucket.rows, most), _some(order_b, bucket.cols, most)
        chosen.setdefault((rows.shape[1], cols.shape[1]), []).append((rows, cols, bucket.treatment))
    merged = [tuple(jnp.concatenate(parts) for parts in zip(*same, strict=True)) for same in chosen.values()]
    rows, cols = (jnp.concatenate([bucket[side].ravel() for bucket in merged]) for side in (0, 1))
    buckets, sizes, first = [], [jnp.zeros_like(groups.sizes_a), jnp.zeros_like(groups.sizes_b)], [0, 0]
    for *ids, treatment in merged:
        renamed = []
        for side, (each, none, total) in enumerate(zip(ids, (n, m), (rows.size, cols.size), strict=True)):
            real = each < none
            places = first[side] + jnp.arange(each.size, dtype=each.dtype).reshape(each.shape)
            renamed.append(jnp.where(real, places, total))
            sizes[side] = sizes[side].at[treatment].add(real.sum(1).astype(sizes[side].dtype))
            first[side] += each.size
        buckets.append(Bucket(renamed[0], renamed[1], treatment))
    return Thinned(Groups(tuple(buckets), sizes[0], sizes[1], (rows.size, cols.size)), rows, cols)


def affordable(groups: Groups, most: int, pairs: int) -> int:
    """So many samples of each treatment, at most, that of all treatments there are about `pairs` of them; at least 16.

    On the host, from shapes.
    """
    number = sum(bucket.treatment.shape[0] for bucket in groups.buckets)
    return min(most, max(FEWEST, math.isqrt(pairs // max(1, number))))


def together(groups: Groups) -> Groups:
    """The same plan in one bucket, so that one program serves all treatments; as it is where padding would cost more.

    Compiling a criterion for a bucket takes seconds, running it on a few hundred samples takes none.
    """
    n, m = groups.shape
    number = sum(bucket.treatment.shape[0] for bucket in groups.buckets)
    widths = [
        max((getattr(bucket, side).shape[1] for bucket in groups.buckets), default=0) for side in ("rows", "cols")
    ]
    if len(groups.buckets) < 2 or number * widths[0] * widths[1] > MOST_PADDED:
        return groups
    rows, cols = (
        jnp.concatenate(
            [
                jnp.pad(ids, ((0, 0), (0, width - ids.shape[1])), constant_values=none)
                for ids in (getattr(bucket, side) for bucket in groups.buckets)
            ]
        )
        for side, width, none in (("rows", widths[0], n), ("cols", widths[1], m))
    )
    treatment = jnp.concatenate([bucket.treatment for bucket in groups.buckets])
    return Groups((Bucket(rows, cols, treatment),), groups.sizes_a, groups.sizes_b, groups.shape)


def _some(order: Array, ids: Array, most: int) -> Array:
    """The first `most` of the ids of each block `[blocks, N]` in the order given, padding last."""
    if ids.shape[1] <= most:
        return ids
    return jnp.take_along_axis(ids, jnp.argsort(order[ids], axis=1)[:, :most], axis=1)


def _kept(x: Any, ids: Array) -> Any:
    if isinstance(x, Source):
        return x.take(jnp.minimum(ids, x.shape[0] - 1))  # padding is in no treatment, whatever it is
    return jnp.asarray(x).at[..., ids, :].get(mode="fill", fill_value=0)
