"""Whether two modalities' scores hang together alike within treatments: from their covariances, without a match."""

import itertools
import math
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psa_jax.data.groups import Groups
from psa_jax.judge.agreement import halves
from psa_jax.judge.diagnosis import EVIDENCE, FEWEST
from psa_jax.types import Array, Bool, Float, Int, KeyArray, pytree

MOST_COLUMNS, ORDERS, SHUFFLES, REPEATS = 32, 199, 200, 8
LEVEL, FEWEST_COLUMNS = 0.02, 5


@pytree
class Evidence:
    """What covariances within treatments say of a common state.

    Attributes:
        z: `[T]` how far, in standard deviations, both modalities' covariances between held-out and other columns agree
            within the treatment, beyond those of halves paired at random in one of them; at most the normal deviation
            of `p_value` where that is above 0.02. `-inf` where it was not matched or has too few samples.
        p_value: `[]` how often the agreement over all treatments would be as large if the columns of b had been named
            at random; 1 with fewer than five columns, which have too few orders to tell.
    """

    z: Float[Array, " T"]
    p_value: Float[Array, ""]

    @property
    def common(self) -> Bool[Array, ""]:
        """Whether the modalities share anything, which is where `p_value` is at most 0.02."""
        return self.p_value <= LEVEL

    @property
    def found(self) -> Bool[Array, " T"]:
        """Treatments with evidence, whose `z` is at least 3."""
        return self.z >= EVIDENCE


def evidence(key: KeyArray, u: Float[Array, "n d"], v: Float[Array, "m d"], groups: Groups) -> Evidence:
    r"""Tests whether the scores of two modalities hang together alike within treatments. On the host.

    If the scores of both are one function of a common state, their covariances within a treatment are alike. Columns
    are dealt into halves (at random, several times) and what is compared are the cross-covariances `A` and `B`
    `[d/2, d/2]` of the standardised halves, the held-out half freed of its mean over columns, because scores that sum
    to zero would tell it in noise. Two questions are asked of `s = <A, B>`:

    - In each treatment, is it more than chance among samples? Its deviation when the halves of b, or those of a, are
      paired at random, the larger of the two, is the unit of `z`.
    - In all of them, does it depend on which column is which? Whatever covariances two unrelated modalities have, they
      agree by accident in some treatments; but then they agree as much when the columns of b are renamed. Their orders
      (all 120 of five columns, else 199 at random) give `p_value`, without which no `z` counts.

    Args:
        key: decides halves and orders.
        u: scores `[n, d]`; of more than 32 columns 32 are drawn.
        v: scores `[m, d]`.
        groups: the plan.
    """
    d = u.shape[1]
    key_columns, key_halves, key_orders = jax.random.split(key, 3)
    missing = np.full(groups.num_treatments, -np.inf)
    if d < FEWEST_COLUMNS or not groups.buckets:
        return Evidence(jnp.asarray(missing, u.dtype), jnp.ones((), u.dtype))
    if d > MOST_COLUMNS:
        columns = jax.random.choice(key_columns, d, (MOST_COLUMNS,), replace=False)
        u, v, d = u[:, columns], v[:, columns], MOST_COLUMNS
    used = halves(key_halves, d, REPEATS)
    if math.factorial(d) <= ORDERS:
        orders = np.array(list(itertools.permutations(range(d))))
    else:
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key_orders)).ravel())
        orders = np.stack([np.arange(d), *(rng.permutation(d) for _ in range(ORDERS))])
    treatments = np.concatenate([np.asarray(bucket.treatment) for bucket in groups.buckets])
    found = [
        _bucket(jax.random.fold_in(key, place), u, v, bucket.rows, bucket.cols, used, jnp.asarray(orders))
        for place, bucket in enumerate(groups.buckets)
    ]
    s, deviation, size = (np.concatenate([np.asarray(x, float) for x in part]) for part in zip(*found, strict=True))
    enough = size >= FEWEST
    z = np.where(enough & (deviation > 0), s[:, 0] / np.where(deviation > 0, deviation, 1), -np.inf)
    total = (s * np.where(enough, size, 0)[:, None]).sum(0)
    at_least = (total >= total[0] - 1e-9 * abs(total[0])).sum()
    missing[treatments] = z
    p_value = at_least / len(orders) if enough.any() else 1.0
    if p_value > LEVEL:
        missing = np.minimum(missing, statistics.NormalDist().inv_cdf(1 - min(p_value, 1 - 1e-9)))
    return Evidence(jnp.asarray(missing, u.dtype), jnp.asarray(p_value, u.dtype))


@jax.jit
def _bucket(
    key: KeyArray,
    u: Array,
    v: Array,
    rows: Int[Array, "B N"],
    cols: Int[Array, "B M"],
    used: Bool[Array, "h d"],
    orders: Int[Array, "P d"],
) -> tuple[Array, Array, Array]:
    """Of each treatment: `s` `[B, P]`, its deviation under random pairings `[B]`, samples of its smaller side."""

    def one(args: Any) -> tuple[Array, Array, Array]:
        key, *ids = args
        (a, n), (b, m) = (_centred(x, own) for x, own in zip((u, v), ids, strict=True))
        shuffles = [
            _shuffles(k, own < x.shape[0]) for k, own, x in zip(jax.random.split(key), ids, (u, v), strict=True)
        ]

        def half(used: Array) -> tuple[Array, Array, Array]:
            (used_a, held_a), (used_b, held_b) = _halves(a, used), _halves(b, used)
            cross_a = _product(used_a.T, held_a) / jnp.maximum(n, 1)
            cross_b = _product(used_b.T, held_b) / jnp.maximum(m, 1)

            def renamed(order: Array) -> Array:
                mine, others = _halves(b[:, order], used)
                return jnp.sum(cross_a * _product(mine.T, others))

            def shuffled(by: Array, other: Array, used: Array, held: Array, count: Array) -> Array:
                reach = _product(used, other)
                return jax.lax.map(lambda order: jnp.sum(reach * held[order]), by) / jnp.maximum(count, 1)

            by_b = shuffled(shuffles[1], cross_a, used_b, held_b, m)
            by_a = shuffled(shuffles[0], cross_b, used_a, held_a, n)
            return jax.lax.map(renamed, orders) / jnp.maximum(m, 1), by_a, by_b

        s, by_a, by_b = jax.lax.map(half, used)
        deviation = jnp.maximum(by_a.mean(0).std(), by_b.mean(0).std())
        return s.mean(0), deviation, jnp.minimum(n, m)

    return jax.lax.map(one, (jax.random.split(key, rows.shape[0]), rows, cols))


def _centred(x: Array, ids: Int[Array, " N"]) -> tuple[Float[Array, "N d"], Array]:
    """The samples of one treatment less their mean, zeros for padding, and how many they are."""
    real = (ids < x.shape[0])[:, None]
    count = real.sum().astype(x.dtype)
    own = jnp.where(real, x.at[ids].get(mode="fill", fill_value=0), 0)
    return jnp.where(real, own - own.sum(0, keepdims=True) / jnp.maximum(count, 1), 0), count


def _shuffles(key: KeyArray, real: Bool[Array, " N"]) -> Int[Array, "s N"]:
    """Random orders of the real samples; padding stays behind."""
    return jnp.argsort(jnp.where(real, jax.random.uniform(key, (SHUFFLES, real.size)), 2), axis=1)


def _halves(x: Float[Array, "N d"], used: Bool[Array, " d"]) -> tuple[Array, Array]:
    """The used columns, and the others freed of their mean over columns; of unit variance, zeros elsewhere."""
    used = used[None]
    held = jnp.where(used, 0, x)
    held = jnp.where(used, 0, held - held.sum(1, keepdims=True) / jnp.maximum((~used).sum(), 1).astype(x.dtype))
    return _standard(jnp.where(used, x, 0)), _standard(held)


def _standard(x: Float[Array, "N d"]) -> Array:
    """Columns over their root mean square among the real samples (others are zero), zeros where that is rounding."""
    count = jnp.maximum((x != 0).any(1).sum(), 1).astype(x.dtype)
    size = jnp.sqrt(jnp.sum(x * x, axis=0, keepdims=True) / count)
    some = size > 1e-5 * size.max()
    return jnp.where(some, x / jnp.where(some, size, 1), 0)


def _product(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y, precision="highest")
