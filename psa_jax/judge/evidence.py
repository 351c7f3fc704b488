"""Whether two modalities' scores hang together alike within treatments: from their covariances, without a match."""

import functools
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

MOST_COLUMNS, MOST_ORDERED, ORDERS, REPEATS = 32, 128, 199, 8
ROUNDING, LOST = 1e-5, 1e-5  # of deviations; of variances that a difference is taken of
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
    `[d, d]` of the standardised halves, the held-out half freed of its mean over columns, because scores that sum
    to zero would tell it in noise. Two questions are asked of `s = <A, B>`:

    - In each treatment, is it more than chance among samples? Its standard deviation when the samples of the halves of
      b, or those of a, are paired at random, the larger of the two, is the unit of `z`. It is exact: `s` is then a sum
      over a random permutation, whose variance is known.
    - In all of them, does it depend on which column is which? Whatever covariances two unrelated modalities have, they
      agree by accident in some treatments; but then they agree as much when the columns of b are renamed. Their orders
      (all 120 of five columns, else 199 at random) in all treatments, or in 128 drawn at random, give `p_value`,
      without which no `z` counts.

    Args:
        key: decides halves and orders.
        u: scores `[n, d]`; of more than 32 columns 32 are drawn.
        v: scores `[m, d]`.
        groups: the plan.
    """
    d = u.shape[1]
    key_columns, key_halves, key_orders = jax.random.split(key, 3)
    key_some = jax.random.fold_in(key, 3)
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
    parts = [_covariances(u, v, bucket.rows, bucket.cols) for bucket in groups.buckets]
    (a, n), (b, m) = (tuple(jnp.concatenate(x) for x in zip(*side, strict=True)) for side in zip(*parts, strict=True))
    s, deviation = (np.asarray(x, float) for x in _agreement(a, n, b, m, used))
    size = np.minimum(np.asarray(n), np.asarray(m))
    enough = size >= FEWEST
    z = np.where(enough & (deviation > 0), s / np.where(deviation > 0, deviation, 1), -np.inf)
    missing[treatments] = z
    asked = np.flatnonzero(enough)
    if asked.size > MOST_ORDERED:
        asked = np.sort(np.asarray(jax.random.choice(key_some, jnp.asarray(asked), (MOST_ORDERED,), replace=False)))
    p_value = 1.0
    if asked.size:
        total = np.asarray(_renamed(a[asked], b[asked], jnp.asarray(size[asked], u.dtype), used, orders), float)
        p_value = (total >= total[0] - 1e-5 * abs(total[0])).sum() / len(orders)
    if p_value > LEVEL:
        missing = np.minimum(missing, statistics.NormalDist().inv_cdf(1 - min(p_value, 1 - 1e-9)))
    return Evidence(jnp.asarray(missing, u.dtype), jnp.asarray(p_value, u.dtype))


@jax.jit
def _covariances(
    u: Array, v: Array, rows: Int[Array, "B N"], cols: Int[Array, "B M"]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Of each treatment, in each modality: the covariance `[B, d, d]` of its samples, and how many these are."""

    def one(x: Array, ids: Int[Array, " N"]) -> tuple[Array, Array]:
        own, count = _centred(x, ids)
        return _product(own.T, own) / jnp.maximum(count, 1), count

    return (
        jax.lax.map(functools.partial(one, u), rows),
        jax.lax.map(functools.partial(one, v), cols),
    )


@jax.jit
def _agreement(a: Array, n: Array, b: Array, m: Array, used: Bool[Array, "h d"]) -> tuple[Array, Array]:
    """Of each treatment: how well the cross-covariances of halves agree, and its deviation under random pairings."""

    def one(args: Any) -> tuple[Array, Array]:
        a, n, b, m = args

        def half(used: Array) -> tuple[Array, Array, Array]:
            (mine_a, held_a), (mine_b, held_b) = _halves(a, used), _halves(b, used)
            cross_a, cross_b = (_cross(x, *maps) for x, maps in ((a, (mine_a, held_a)), (b, (mine_b, held_b))))
            by_b = _product(mine_b[:, None] * cross_a, held_b.T)
            by_a = _product(mine_a[:, None] * cross_b, held_a.T)
            return jnp.sum(cross_a * cross_b), by_b, by_a

        s, by_b, by_a = (x.mean(0) for x in jax.vmap(half)(used))
        return s, jnp.sqrt(jnp.maximum(_variance(by_b, b, m), _variance(by_a, a, n)))

    return jax.lax.map(one, (a, n, b, m))


@jax.jit
def _renamed(
    a: Array, b: Array, size: Array, used: Bool[Array, "h d"], orders: Int[np.ndarray, "P d"]
) -> Float[Array, " P"]:
    """The sum of all treatments' agreement, as much as they are large, for every order of the columns of b."""

    def one(args: Any) -> Array:
        a, b, size = args

        def half(used: Array) -> Array:
            cross = _cross(a, *_halves(a, used))

            def renamed(order: Array) -> Array:
                other = b[order][:, order]
                return jnp.sum(cross * _cross(other, *_halves(other, used)))

            return jax.vmap(renamed)(jnp.asarray(orders))

        return size * jax.lax.map(half, used).mean(0)

    return jax.lax.map(one, (a, b, size)).sum(0)


def _variance(w: Float[Array, "d d"], covariance: Float[Array, "d d"], count: Array) -> Array:
    """Of the mean over samples x of `x_i w x_j` with a random other sample j in place of i itself.

    Over permutations `p` the sum of `r[i, p(i)]`, rows and columns of `r` summing to zero, has the variance
    `sum(r ** 2) / (count - 1)`.
    """
    squares = jnp.sum(_product(_product(covariance, w), covariance) * w)
    return jnp.maximum(squares, 0) / jnp.maximum(count - 1, 1)


def _centred(x: Array, ids: Int[Array, " N"]) -> tuple[Float[Array, "N d"], Array]:
    """The samples of one treatment less their mean, zeros for padding, and how many they are."""
    real = (ids < x.shape[0])[:, None]
    count = real.sum().astype(x.dtype)
    own = jnp.where(real, x.at[ids].get(mode="fill", fill_value=0), 0)
    return jnp.where(real, own - own.sum(0, keepdims=True) / jnp.maximum(count, 1), 0), count


def _halves(covariance: Float[Array, "d d"], used: Bool[Array, " d"]) -> tuple[Array, Array]:
    """What makes standardised halves of columns: factors `[d]` of the used ones, and a matrix that makes of the others
    (zeros elsewhere) what they are beyond their mean over columns."""
    size = jnp.diagonal(covariance)
    mine = jnp.where(used, _inverse(size, ROUNDING**2 * size.max()), 0)
    others = (~used).astype(covariance.dtype)
    share = others / jnp.maximum(others.sum(), 1)
    held = jnp.diag(others) - share[:, None] * others[None]
    beyond = jnp.sum(held * _product(covariance, held), axis=0)
    least = LOST * (size + _product(share[None], _product(covariance, share[:, None]))[0])
    return mine, held * (others * _inverse(beyond, least))[None]


def _inverse(variance: Float[Array, " d"], least: Array) -> Float[Array, " d"]:
    """One over the deviation, zero where the variance is rounding."""
    some = variance > least
    return jnp.where(some, 1 / jnp.sqrt(jnp.where(some, variance, 1)), 0)


def _cross(covariance: Array, mine: Array, held: Array) -> Float[Array, "d d"]:
    """The covariance between the used columns and the others, both standardised."""
    return mine[:, None] * _product(covariance, held)


def _product(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y, precision="highest")
