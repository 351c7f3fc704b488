"""Both sides of a treatment halved together, again and again: couplings of rank two, refined level by level."""

import functools

import jax
import jax.numpy as jnp

from psa_jax.types import Array, Bool, Float, Int

STARTS = 4
TURNS = 8


def bounds(
    n: Int[Array, ""], m: Int[Array, ""], levels: int
) -> tuple[Int[Array, " leaves+1"], Int[Array, " leaves+1"]]:
    """Where each of `2^levels` leaves begins among `n` and among `m` samples: halves of halves.

    Leaves of the smaller side differ by one sample at most, those of the larger one have the share that theirs has,
    rounded: the masses of a leaf's two sides differ by less than one sample of the larger side.
    """
    small, large = jnp.minimum(n, m), jnp.maximum(n, m)
    own = jnp.stack([jnp.zeros_like(small), small])
    for _ in range(levels):
        halved = jnp.stack([own[:-1], (own[:-1] + own[1:]) // 2], axis=1).reshape(-1)
        own = jnp.concatenate([halved, own[-1:]])
    ratio = large.astype(jnp.float32) / jnp.maximum(small, 1).astype(jnp.float32)
    other = jnp.minimum(jnp.round(own.astype(jnp.float32) * ratio).astype(own.dtype), large)
    other = jnp.where(own == small, large, other)
    return jnp.where(n <= m, own, other), jnp.where(n <= m, other, own)


def co_clusters(
    sides: tuple[Float[Array, "n d"], Float[Array, "m d"]],
    real: tuple[Bool[Array, " n"], Bool[Array, " m"]],
    begin: tuple[Int[Array, " leaves+1"], Int[Array, " leaves+1"]],
    depth: Int[Array, ""],
) -> tuple[Int[Array, " n"], Int[Array, " m"]]:
    r"""The leaf of every sample, among those that begin at `begin` (see `bounds`); the number of leaves for padding.

    A level halves every cluster of both sides. Among couplings of rank two with an even inner marginal the transport
    cost of squared distances is, but for a constant, `-<s, t> / 2`, where `s` and `t` are the differences of the means
    of the two halves of either side. For fixed `t` the best halves are those below and above the median of `<x, t>`,
    and the other way round: steps that take turns never raise the cost. They begin at the first principal directions
    of both sides, and each cluster keeps the best of what these end in.

    Only the first `depth` levels are split: what would have become several leaves is then named by the first of them.
    """
    leaves = begin[0].shape[0] - 1
    spread = sum(
        jnp.matmul(x.T, x, precision="highest") / jnp.maximum(r.sum(), 1).astype(x.dtype)
        for x, r in zip(sides, real, strict=True)
    )
    directions = jnp.linalg.eigh(jnp.where(jnp.isfinite(spread), spread, 0))[1].T[::-1][:STARTS]

    def level(step: Array, codes: tuple[Array, Array]) -> tuple[Array, Array]:
        width = jnp.right_shift(leaves // 2, step)
        halve_x, halve_y = (
            functools.partial(_halves, x - _means(x, code, leaves)[code], code, start, width)
            for x, code, start in zip(sides, codes, begin, strict=True)
        )

        def turn(_: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
            upper_x, s = halve_x(state[3])
            upper_y, t = halve_y(s)
            return upper_x, upper_y, s, t

        def keep_better(best: tuple[Array, ...], direction: Array) -> tuple[tuple[Array, ...], None]:
            start = jnp.broadcast_to(direction, (leaves + 1, direction.shape[0]))
            *uppers, s, t = jax.lax.fori_loop(0, TURNS, turn, (best[1], best[2], start, start))
            value = (s * t).sum(1)
            better = value > best[0]
            kept = (jnp.where(better[code], new, old) for code, new, old in zip(codes, uppers, best[1:], strict=True))
            return (jnp.where(better, value, best[0]), *kept), None

        none = [code < 0 for code in codes]
        worst = jnp.full_like(directions, -jnp.inf, shape=leaves + 1)
        (_, upper_x, upper_y), _ = jax.lax.scan(keep_better, (worst, *none), directions)
        return jnp.where(upper_x, codes[0] + width, codes[0]), jnp.where(upper_y, codes[1] + width, codes[1])

    return jax.lax.fori_loop(0, depth, level, _together(real, leaves))


def regrouped(
    pairs: tuple[Float[Array, "n d"], Float[Array, "m d"]],
    real: tuple[Bool[Array, " n"], Bool[Array, " m"]],
    begin: tuple[Int[Array, " leaves+1"], Int[Array, " leaves+1"]],
    depth: Int[Array, ""],
    directions: Float[Array, "levels d"],
) -> tuple[Int[Array, " n"], Int[Array, " m"]]:
    """Other leaves than before, in which partners are together: samples are where the middle of a pair is.

    Both sides are halved by one plane a cluster, across its longer directions.
    """
    leaves = begin[0].shape[0] - 1

    def level(step: Array, codes: tuple[Array, Array]) -> tuple[Array, Array]:
        width = jnp.right_shift(leaves // 2, step)
        x, y = (z - _means(z, code, leaves)[code] for z, code in zip(pairs, codes, strict=True))
        along = x * (x * directions[step][None]).sum(1, keepdims=True)
        plane = jax.ops.segment_sum(along, codes[0], leaves + 1)
        upper_x, upper_y = (
            _halves(z, code, start, width, plane)[0] for z, code, start in zip((x, y), codes, begin, strict=True)
        )
        return jnp.where(upper_x, codes[0] + width, codes[0]), jnp.where(upper_y, codes[1] + width, codes[1])

    return jax.lax.fori_loop(0, depth, level, _together(real, leaves))


def order(code: Int[Array, " n"], along: Float[Array, " n"]) -> tuple[Int[Array, " n"], Int[Array, " n"]]:
    """The codes in order, and whose they are: those of a code by their numbers."""
    ids = jnp.arange(code.shape[0], dtype=code.dtype)
    code, _, ids = jax.lax.sort((code, along, ids), num_keys=2)
    return code, ids


def _together(real: tuple[Array, Array], leaves: int) -> tuple[Array, Array]:
    return jnp.where(real[0], 0, leaves).astype(jnp.int32), jnp.where(real[1], 0, leaves).astype(jnp.int32)


def _means(x: Array, code: Array, leaves: int) -> Array:
    count = jax.ops.segment_sum(jnp.ones_like(x[:, 0]), code, leaves + 1)
    return jax.ops.segment_sum(x, code, leaves + 1) / jnp.maximum(count, 1)[:, None]


def _halves(x: Array, code: Array, begin: Array, width: Array, direction: Array) -> tuple[Array, Array]:
    """Whether samples are in the upper half of their cluster along its direction, and the halves' means' difference.

    Samples are centred in their clusters: the sum over a lower half is that over the upper half, negative.
    """
    leaves = begin.shape[0] - 1
    ordered, ids = order(code, (x * direction[code]).sum(1))
    place = jnp.arange(code.shape[0], dtype=code.dtype)
    upper = (place >= begin[jnp.minimum(ordered + width, leaves)]) & (ordered < leaves)
    upper = jnp.zeros_like(upper).at[ids].set(upper, unique_indices=True)
    total, above, count = (
        jax.ops.segment_sum(w, code, leaves + 1)
        for w in (jnp.where(upper[:, None], x, 0), upper.astype(x.dtype), jnp.ones_like(x[:, 0]))
    )
    return upper, total * (1 / jnp.maximum(above, 1) + 1 / jnp.maximum(count - above, 1))[:, None]
