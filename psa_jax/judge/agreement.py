"""Criteria for choosing settings without true pairs: they need scores and treatment labels only."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from psa_jax.arguments import checked
from psa_jax.coupling.coupling import Coupling
from psa_jax.data.groups import Groups
from psa_jax.match.blockwise import blockwise, split_settings
from psa_jax.types import Array, Bool, Float, Int, KeyArray


@checked
def held_out_agreement(
    key: KeyArray,
    matcher: Callable[..., Coupling],
    u: Float[Array, "n d"],
    v: Float[Array, "m d"],
    groups: Groups,
    *,
    repeats: int = 4,
) -> Float[Array, " values"]:
    """How well a coupling made from half of the scores predicts the other half, within treatments.

    The columns of the scores (treatments) are dealt into two random halves. One half is matched; through that
    coupling the other half of modality b is projected onto the rows of modality a and correlated with what modality a
    has there, after subtracting each treatment's mean, and from the held-out columns their own (centred scores sum to
    zero, so that one half would tell the sum of the other in pure noise). The correlation is positive only where the
    scores of both modalities hang together alike; with two columns, centred, it is one by construction.

    Args:
        key: decides the halves.
        matcher: of one treatment.
        u: scores `[n, d]`, d at least 2.
        v: scores `[m, d]`.
        groups: the plan.
        repeats: how many random halves to average over, each used both ways. Static.

    Returns:
        `[2 * repeats]` correlations in [-1, 1], one for each half; the higher their mean, the better.

    Raises:
        ValueError: scores with fewer than two columns.

    Example:
        >>> from psa_jax.data.groups import group
        >>> from psa_jax.match import sinkhorn
        >>> t = jnp.arange(60) % 3
        >>> u = jax.random.normal(jax.random.key(0), (60, 1)) * jnp.array([[1.0, -1.0, 2.0, 0.5]])
        >>> float(held_out_agreement(jax.random.key(1), sinkhorn, u, u, group(t, t, 3)).mean()) > 0.9
        True
    """
    if u.shape[1] < 2:
        raise ValueError(f"u: expected at least two columns to hold one out, got {u.shape[1]}")
    if repeats < 1:
        raise ValueError(f"repeats: expected at least 1, got {repeats}")
    return _agreement(split_settings(matcher), key, u, v, groups, repeats)


@functools.partial(jax.jit, static_argnames="repeats")
def _agreement(matcher: Any, key: KeyArray, u: Array, v: Array, groups: Groups, repeats: int) -> Array:
    return held_out_correlation(matcher, u, v, groups, halves(key, u.shape[1], repeats))


def held_out_correlation(
    matcher: Any, u: Array, v: Array, groups: Groups, used: Bool[Array, "values d"]
) -> Float[Array, " values"]:
    """`held_out_agreement` of these halves; composes with `jit`."""
    t = treatment_of_rows(groups)
    match = blockwise(matcher)

    def once(used: Bool[Array, " d"]) -> Float[Array, ""]:
        projected = match(keep(u, used), keep(v, used), groups).apply(hold(v, ~used))
        return correlation(within(hold(u, ~used), t, groups), within(projected, t, groups))

    return jax.lax.map(once, used)


def halves(key: KeyArray, d: int, repeats: int) -> Bool[Array, "values d"]:
    """Random halves of `d` columns to match by, and after each the other half; at least two are held out if d > 2."""
    first = [
        jnp.zeros(d, bool).at[jax.random.permutation(k, d)[: d // 2]].set(True) for k in jax.random.split(key, repeats)
    ]
    if d == 3:
        return jnp.stack([used for each in first for used in (each, jnp.roll(each, 1))])
    return jnp.stack([used for each in first for used in (each, ~each)])


def keep(y: Array, columns: Bool[Array, " d"]) -> Array:
    """The columns, zeros elsewhere: they then count neither in a distance nor in a correlation."""
    return jnp.where(columns[None], y, 0)


def hold(y: Array, columns: Bool[Array, " d"]) -> Array:
    """The columns less their mean, zeros elsewhere: what the others do not tell, though centred scores sum to zero.

    All columns, and one of two, are left as they are.
    """
    mean = keep(y, columns).sum(1, keepdims=True) / jnp.maximum(columns.sum(), 1).astype(y.dtype)
    return keep(y - jnp.where(columns.all() | (columns.size <= 2), 0, mean), columns)


def treatment_of_rows(groups: Groups) -> Int[Array, " n"]:
    """The treatment of each row, `num_treatments` for rows that are not matched."""
    t = jnp.full(groups.shape[0], groups.num_treatments, jnp.int32)
    for bucket in groups.buckets:
        t = t.at[bucket.rows].set(bucket.treatment[:, None], mode="drop")
    return t


def treatments_of(groups: Groups) -> tuple[Int[Array, " n"], Int[Array, " m"]]:
    """The treatment of each row and of each column, as `treatment_of_rows`."""
    return treatment_of_rows(groups), treatment_of_rows(groups.T)


def within(y: Array, t: Array, groups: Groups) -> Array:
    """Deviations from the treatment's mean; zero for rows that are not matched."""
    number = groups.num_treatments + 1
    total = jnp.zeros((number, y.shape[1]), y.dtype).at[t].add(y)
    count = jnp.zeros(number, y.dtype).at[t].add(1)
    deviation = y - (total / jnp.maximum(count, 1)[:, None])[t]
    return jnp.where((t < groups.num_treatments)[:, None], deviation, 0)


def correlation(x: Array, y: Array) -> Array:
    """Of deviations, all entries together; zero where one has none."""
    scale = jnp.sqrt(jnp.sum(x * x) * jnp.sum(y * y))
    return jnp.where(scale > 0, jnp.sum(x * y) / jnp.where(scale > 0, scale, 1), 0)
