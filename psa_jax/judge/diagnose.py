"""What can be said about an alignment without true pairs, treatment by treatment, and its negative control."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psa_jax.arguments import checked
from psa_jax.coupling.blocked import Blocked
from psa_jax.coupling.coupling import CHUNK_ELEMENTS, Coupling
from psa_jax.data.groups import Groups
from psa_jax.devices import map_rows
from psa_jax.judge.agreement import halves, hold, keep, treatments_of, within
from psa_jax.judge.aligned import Aligned
from psa_jax.judge.diagnosis import FEWEST, Diagnosis
from psa_jax.judge.evidence import evidence
from psa_jax.judge.thin import MOST, thin
from psa_jax.match import sinkhorn
from psa_jax.match.blockwise import blockwise
from psa_jax.progress import Progress, Watch, watching
from psa_jax.types import Array, Bool, Float, Int, KeyArray, float_dtype


@checked
def diagnose(
    key: KeyArray,
    alignment: Aligned,
    *,
    matcher: Callable[..., Coupling] = sinkhorn,
    repeats: int = 4,
    draws: int = 4,
    permutations: int = 50,
    most: int = MOST,
    progress: Progress = False,
) -> Diagnosis:
    r"""What can be said about an alignment without true pairs, for each treatment. On the host.

    Agreement is that of `held_out_agreement`, for each treatment by itself: half of the columns of the scores is
    matched, the other half of b is projected through that coupling and correlated, within the treatment, with what a
    has there, averaged over random halves. Held-out columns are freed of their mean over columns first: centred scores
    sum to zero, so that in any data, noise too, one half tells the sum of the other. Beside it stands its null, the
    same after the held-out half of b was permuted within the treatment: the couplings and what their smoothness does
    stay, what ties the halves of b to each other is cut. What decides is `z`, which needs no match (see `Evidence`):
    where it reaches 3 there is evidence.

    What it can say: within the treatment, scores correlate with each other alike in both modalities, beyond chance.
    What it cannot: whether the individual samples share more than that. Modalities of unrelated states whose scores
    happen to be correlated alike get the same figures, and correlations that differ agree by accident in some
    treatments; no statistic of unpaired samples tells (see also `calibrated_coupling`). `permute_treatments` shows
    what the same pipeline makes of data without anything to align: agreement should be well above that.
    Without evidence a match may still be right: what the treatments do may not vary within one of them.

    Args:
        key: decides the halves, the permutations, the draws and the samples.
        alignment: what `align` returned. Used are `coupling`, `groups`, `scores_a`, `scores_b`, and the members' scores
            if they are not None.
        matcher: what `align` was given; an alignment does not keep it, and halves and members are matched anew. An
            absolute eps smooths halves more, since their costs are smaller.
        repeats: random halves, each used both ways.
        draws: partners drawn for each row, behind `partners`.
        permutations: how many make up the null, at least 2.
        most: of treatments with more samples, so many of each modality are drawn, and agreement and stability are those
            of matchings among them. The more, the larger `z` where there is something. `Diagnosis.most` tells.
        progress: as in `align`.

    Returns:
        The figures; `print` shows a table, `rows()` is for pandas and JSON, `warnings` has it in words. The cost is
        `2 repeats + members` matchings and `2 repeats * permutations` projections. Not meant to be differentiated.

    Raises:
        ValueError: a matcher that is no function, numbers too small, scores that do not fit the groups or each other.

    Example:
        >>> from psa_jax.data.groups import group
        >>> t = jnp.arange(90) % 3
        >>> mix = jax.random.normal(jax.random.key(0), (2, 8))
        >>> u = jax.random.normal(jax.random.key(1), (90, 2)) @ mix
        >>> groups = group(t, t, 3)
        >>> from psa_jax.align.alignment import Alignment
        >>> alignment = Alignment(blockwise(sinkhorn)(u, u, groups), groups, u, u, *6 * [None])
        >>> diagnosis = diagnose(jax.random.key(2), alignment)
        >>> diagnosis.evidence.tolist(), diagnosis.warnings
        ([True, True, True], ['only one training run (members=1): stability is unknown'])
    """
    _check(alignment, matcher, repeats, draws, permutations, most)
    with watching(progress) as watch, jax.debug_nans(False):  # what cannot be known is NaN
        return _diagnose(key, alignment, matcher, repeats, draws, permutations, most, watch)


def _diagnose(
    key: KeyArray,
    alignment: Aligned,
    matcher: Callable[..., Coupling],
    repeats: int,
    draws: int,
    permutations: int,
    most: int,
    watch: Watch,
) -> Diagnosis:
    key_halves, key_permute, key_draw = jax.random.split(key, 3)
    groups, coupling = alignment.groups, alignment.coupling
    dtype = float_dtype(alignment.scores_a, alignment.scores_b)
    u, v = (jnp.asarray(scores, dtype) for scores in (alignment.scores_a, alignment.scores_b))
    t_a, t_b = _treatments(groups)
    size_a, size_b = np.asarray(groups.sizes_a), np.asarray(groups.sizes_b)
    matched = (size_a > 0) & (size_b > 0)
    match, converged = blockwise(matcher), []

    entropy, left, variance = (np.asarray(x, float) for x in _look(key_draw, coupling, v, t_a, t_b, groups, draws))
    partners = np.where(matched, np.exp(entropy), np.nan)

    members = _members(alignment)
    thinned = thin(jax.random.fold_in(key, 3), groups, most)
    if thinned is not None:
        groups, u, v = thinned.groups, thinned.of_a(u), thinned.of_b(v)
        members = [(thinned.of_a(a), thinned.of_b(b)) for a, b in members]
        t_a, t_b = _treatments(groups)
    orders, moments = _orders(key_permute, np.asarray(t_b), permutations), []
    chosen = halves(key_halves, u.shape[1], repeats)
    watch.begin("evidence", len(chosen) + len(members))
    for used in chosen:
        if int((~used).sum()) < 2:
            continue  # one column is its own mean
        half = match(keep(u, used), keep(v, used), groups)
        converged.append(half.info.converged)
        moments.append(np.asarray(_moments(half, u, v, ~used, t_a, t_b, groups, orders), float))
        watch.advance()
    # [halves, 1 + permutations, treatments, 3]; the first is not permuted, the last treatment is all of them
    table = np.array(moments) if moments else np.full((1, 1 + permutations, matched.size, 3), np.nan)
    table = np.concatenate([table, table.sum(2, keepdims=True)], axis=2)
    enough = np.append(np.minimum(size_a, size_b) >= FEWEST, True)
    statistic = np.where(enough, _correlation(table).mean(0), np.nan)
    mean, sd = statistic[1:].mean(0), statistic[1:].std(0, ddof=1)
    z = _ratio(statistic[0] - mean, sd, np.nan)
    found = evidence(jax.random.fold_in(key, 4), u, v, groups)

    stability = np.full(matched.size, np.nan)
    if len(members) > 1:
        total, own = jnp.zeros(u.shape, dtype), jnp.zeros(u.shape, dtype)
        for pair in members:
            single = match(*pair, groups)
            converged.append(single.info.converged)
            unit = _unit(single, v, t_a, t_b, groups)
            total, own = total + unit, own + unit**2
            watch.advance()
        crossed = np.asarray(jnp.zeros(matched.size + 1, dtype).at[t_a].add(jnp.sum(total**2 - own, axis=1)), float)
        pairs = len(members) * (len(members) - 1)
        stability = np.where(matched & (variance > 0), crossed[:-1] / pairs, np.nan)
    known = ~np.isnan(stability)
    figures = {
        "rematched": np.where(matched, np.mean(converged, axis=0) if converged else np.nan, np.nan),
        "partners": partners,
        "partners_share": partners / np.maximum(size_b, 1),
        "spread": np.where(matched, _ratio(left, variance, np.nan), np.nan),
        "agreement": statistic[0, :-1],
        "null_mean": mean[:-1],
        "null_sd": sd[:-1],
        "z": np.where(np.isfinite(found.z), found.z, np.nan),
        "p_value": found.p_value,
        "stability": stability,
        "overall_agreement": statistic[0, -1],
        "overall_z": z[-1],
        "overall_stability": np.average(stability[known], weights=size_a[known]) if known.any() else np.nan,
    }
    return Diagnosis(
        size_a=alignment.groups.sizes_a,
        size_b=alignment.groups.sizes_b,
        converged=jnp.asarray(matched & np.asarray(coupling.info.converged)),
        **{name: jnp.asarray(value, dtype) for name, value in figures.items()},
        names=alignment.names,
        most=thinned and most,
    )


def _check(alignment: Aligned, matcher: Any, repeats: int, draws: int, permutations: int, most: int) -> None:
    if not callable(matcher):
        raise ValueError(f"matcher: expected a function (u, v, a, b) -> Coupling, got {matcher!r}")
    least_of = (("repeats", repeats, 1), ("draws", draws, 1), ("permutations", permutations, 2), ("most", most, FEWEST))
    for name, value, least in least_of:
        if not least <= value < 2**31:
            raise ValueError(f"{name}: expected at least {least}, and a number of 32 bits, got {value}")
    shape = alignment.groups.shape
    for name, scores, rows in (("scores_a", alignment.scores_a, shape[0]), ("scores_b", alignment.scores_b, shape[1])):
        if scores.ndim != 2 or scores.shape[0] != rows:
            raise ValueError(f"{name}: expected [{rows}, d], as in groups, got shape {scores.shape}")
    if alignment.scores_a.shape[1] != alignment.scores_b.shape[1]:
        raise ValueError(
            f"scores_a, scores_b: expected the same columns, got {alignment.scores_a.shape[1]} and "
            f"{alignment.scores_b.shape[1]}"
        )
    if alignment.coupling.shape != shape:
        raise ValueError(f"coupling: expected shape {shape}, as in groups, got {alignment.coupling.shape}")


def _members(alignment: Aligned) -> list[tuple[Array, Array]]:
    sides = alignment.member_scores_a, alignment.member_scores_b
    return [] if sides[0] is None or sides[1] is None else list(zip(*sides, strict=False))  # as many as both have


_treatments = jax.jit(treatments_of)


def _orders(key: KeyArray, t: np.ndarray, permutations: int) -> Int[Array, "orders m"]:
    """The identity, then random orders that keep treatments together."""
    noise = np.asarray(jax.random.uniform(key, (permutations, t.size)))
    orders = np.tile(np.arange(t.size), (1 + permutations, 1))
    for order, row in zip(orders[1:], noise, strict=True):
        order[np.argsort(t, kind="stable")] = np.lexsort((row, t))
    return jnp.asarray(orders, jnp.int32)


@jax.jit
def _moments(
    coupling: Blocked,
    u: Array,
    v: Array,
    held: Bool[Array, " d"],
    t_a: Array,
    t_b: Array,
    groups: Groups,
    orders: Int[Array, "orders m"],
) -> Float[Array, "orders T 3"]:
    """For each order of b and treatment, of held-out columns: a times projected b, and the squares of both, summed."""
    own, theirs = within(hold(u, held), t_a, groups), within(hold(v, held), t_b, groups)

    def some(orders: Int[Array, "k m"]) -> Float[Array, "k T 3"]:
        projected = coupling.apply(jnp.swapaxes(theirs[orders], 0, 1))
        n, k, d = projected.shape
        projected = within(projected.reshape(n, k * d), t_a, groups).reshape(n, k, d)
        ours = jnp.broadcast_to(own[:, None], projected.shape)
        products = jnp.stack([ours * projected, projected**2, ours**2], axis=-1).sum(2)
        sums = jnp.zeros((groups.num_treatments + 1, k, 3), products.dtype).at[t_a].add(products)
        return jnp.swapaxes(sums[:-1], 0, 1)

    return map_rows(some, orders, max(1, CHUNK_ELEMENTS // max(own.size, theirs.size, 1)))


@jax.jit
def _unit(coupling: Blocked, v: Array, t_a: Array, t_b: Array, groups: Groups) -> Array:
    """The projection's deviations from its treatment's mean, of norm one within each treatment."""
    projected = within(coupling.apply(within(v, t_b, groups)), t_a, groups)
    squares = jnp.zeros(groups.num_treatments + 1, v.dtype).at[t_a].add(jnp.sum(projected**2, axis=1))
    norm = jnp.sqrt(squares)[t_a][:, None]
    return jnp.where(norm > 0, projected / jnp.where(norm > 0, norm, 1), 0)


@functools.partial(jax.jit, static_argnames="draws")
def _look(
    key: KeyArray, coupling: Any, v: Array, t_a: Array, t_b: Array, groups: Groups, draws: int
) -> tuple[Array, Array, Array]:
    """Per treatment: mean entropy of `P(. | i)`, mean variance of `v` under it, variance of `v`."""
    v = within(v, t_b, groups)
    squares = jnp.sum(v**2, axis=1, keepdims=True)
    out = coupling.apply(jnp.concatenate([v, squares], axis=1))
    real = coupling.row_marginal() > 0
    left = jnp.maximum(out[:, -1] - jnp.sum(out[:, :-1] ** 2, axis=1), 0)

    def surprise(key: KeyArray) -> Array:
        log_p = coupling.log_prob(coupling.sample(key))
        return jnp.where(real & (log_p > -jnp.inf), -log_p, 0)

    entropy = jax.lax.map(surprise, jax.random.split(key, draws)).mean(0)

    def mean(value: Array, t: Array, real: Array) -> Array:
        total, count = (
            jnp.zeros(groups.num_treatments + 1, value.dtype).at[t].add(jnp.where(real, x, 0))[:-1]
            for x in (value, jnp.ones_like(value))
        )
        return jnp.where(count > 0, total / jnp.maximum(count, 1), jnp.nan)

    return mean(entropy, t_a, real), mean(left, t_a, real), mean(squares[:, 0], t_b, jnp.ones_like(t_b, bool))


def _correlation(moments: np.ndarray) -> np.ndarray:
    common, ours, theirs = np.moveaxis(moments, -1, 0)
    return np.where(np.isnan(common), np.nan, _ratio(common, np.sqrt(ours * theirs), 0.0))


def _ratio(x: np.ndarray, y: np.ndarray, otherwise: Any) -> np.ndarray:
    return np.where(y > 0, x / np.where(y > 0, y, 1), otherwise)
