"""Which classifiers count, where labels say clearly that some of the smoothings suit the other modality better."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psa_jax.data.groups import Groups
from psa_jax.judge.agreement import halves, held_out_correlation
from psa_jax.judge.thin import thin, together
from psa_jax.match import relative, sinkhorn
from psa_jax.propensity.scores import TEMPERED, Tempered
from psa_jax.types import Array, Float, KeyArray

MOST, REPEATS, FEWEST_COLUMNS = 200, 4, 5
CLEARLY, LEAST = 3.0, 0.1  # standard errors, and how much more agreement: the mix of all is never far from the best
_MATCHER = functools.partial(sinkhorn, eps=relative(0.1), tol=1e-2, max_iters=300, newton=0)
Weights = Float[Array, " members"] | None


def members_that_count(
    key: KeyArray,
    members_a: Float[Array, "members n d"],
    members_b: Float[Array, "members m d"],
    kinds: tuple[int, int],
    groups: Groups,
    *,
    settle: bool,
) -> tuple[Weights, Weights]:
    """Weights of the members of both modalities, None where all count alike. On the host.

    Members take several smoothings in turn, and what one modality is smoothed by need not suit the other: a view in
    which the state is magnified asks for more than one in which it is small. So the scores of all members, and of those
    of each smoothing alone, of one modality are matched with the same of the other, half of the columns at a time, and
    judged by how well the held-out columns agree (`held_out_agreement`). All count, unless a pair of choices agrees by
    at least 0.1 and three standard errors more.

    Args:
        key: decides samples and halves.
        members_a: scores of all members of one modality.
        members_b: the same of the other one.
        kinds: how many smoothings the members of each take in turn.
        groups: the plan.
        settle: whether the scores are those of `tempered()` before its temperature is settled.
    """
    sides = members_a, members_b
    if max(kinds) == 1 or members_a.shape[2] < FEWEST_COLUMNS:
        return None, None
    each = [_choices(side.shape[0], number) for side, number in zip(sides, kinds, strict=True)]
    u, v = (_means(side, weights) for side, weights in zip(sides, each, strict=True))
    thinned = thin(key, groups, MOST)
    few = (u, v, groups) if thinned is None else (thinned.of_a(u), thinned.of_b(v), thinned.groups)
    ways = np.array(list(itertools.product(range(len(each[0])), range(len(each[1])))), np.int32)
    used = halves(jax.random.fold_in(key, 1), u.shape[2], REPEATS)
    found = np.asarray(_compared(few[0], few[1], together(few[2]), ways, used, settle))
    best = int(found.mean(1).argmax())
    gain = found[best] - found[0]
    if gain.mean() < max(LEAST, CLEARLY * gain.std(ddof=1) / np.sqrt(gain.size)):
        return None, None
    weights = [jnp.asarray(side[place]) for side, place in zip(each, ways[best], strict=True)]
    return tuple(None if bool((one == 1).all()) else one for one in weights)  # pyright: ignore[reportReturnType]


def _choices(members: int, kinds: int) -> np.ndarray:
    """Weights `[choices, members]`: all, then those of each kind alone."""
    alone = np.arange(members)[None] % kinds == np.arange(kinds)[:, None]
    return np.concatenate([np.ones((1, members)), alone[: kinds if kinds > 1 else 0]]).astype(np.float32)


def _means(members: Array, weights: np.ndarray) -> Array:
    share = jnp.asarray(weights / weights.sum(1, keepdims=True), members.dtype)
    return jnp.einsum("cm,mnd->cnd", share, members, precision="highest")


@functools.partial(jax.jit, static_argnames="settle")
def _compared(u: Array, v: Array, groups: Groups, ways: Any, used: Array, settle: bool) -> Array:
    """Agreement `[ways, halves]`."""

    def way(pair: Array) -> Array:
        first, second = u[pair[0]], v[pair[1]]
        if settle:
            transform: Tempered = TEMPERED.settled(first, second)
            first, second = transform(first), transform(second)
        return held_out_correlation(_MATCHER, first, second, groups, used)

    return jax.lax.map(way, jnp.asarray(ways))
