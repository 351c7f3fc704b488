"""How to project: a coupling smooth enough for averages, and how much of it to believe, by labels only."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from psa_jax.coupling.blocked import Blocked
from psa_jax.coupling.coupling import Coupling
from psa_jax.coupling.shrink import shrink
from psa_jax.data.groups import Groups
from psa_jax.judge.agreement import halves, hold, keep, treatments_of, within
from psa_jax.judge.evidence import Evidence, evidence
from psa_jax.judge.refinement import Refined
from psa_jax.judge.slopes import flat, folds_of, once
from psa_jax.judge.thin import affordable, thin, together
from psa_jax.match import Relative, relative, sinkhorn
from psa_jax.match.blockwise import blockwise, split_settings
from psa_jax.types import Array, Bool, Float, Int, KeyArray, float_dtype, pytree, static

EPS, REPEATS, MOST, ENOUGH = (0.05, 0.1, 0.2, 0.4), 3, 200, 0.95
MOST_EVIDENCE = 400  # which costs no match
MOST_PAIRS = 2**21  # of all treatments
LOOSE = {"tol": 1e-2, "max_iters": 300, "newton": 0}


@pytree
class Projection:
    """What `Alignment.project` believes.

    Attributes:
        coupling: the law of the columns for each row at the strength of smoothing that suits averages.
        eps: that strength, in units of the spread of the costs; 0 for a matcher whose own is used.
        weight_a: `[T]` how much of a projection's deviation from its treatment's mean is believed, in [0, 1], for rows.
        weight_b: `[T]` the same for columns.
        slope_a: `[T]` what held-out scores of the treatment said of it, before it was pooled; 0 where unknown.
        slope_b: `[T]` the same for columns.
        evidence: see `Evidence`.
        most: static; so many samples of each treatment were looked at, at most; None for all.
    """

    coupling: Blocked
    eps: Float[Array, ""]
    weight_a: Float[Array, " T"]
    weight_b: Float[Array, " T"]
    slope_a: Float[Array, " T"]
    slope_b: Float[Array, " T"]
    evidence: Evidence
    most: int | None = static(default=None)

    @property
    def law(self) -> Blocked:
        """The coupling, shrunk toward the treatment's mean for rows."""
        with jax.ensure_compile_time_eval():  # weights that are known stay known within `jit`
            return shrink(self.coupling, self.weight_a)

    @property
    def T(self) -> "Projection":
        """The other direction."""
        return Projection(
            self.coupling.T,
            self.eps,
            self.weight_b,
            self.weight_a,
            self.slope_b,
            self.slope_a,
            self.evidence,
            self.most,
        )

    @property
    def believed(self) -> Bool[Array, " T"]:
        """Treatments of which more than the mean is believed, in either direction."""
        return jnp.maximum(self.weight_a, self.weight_b) > 0


def fit_projection(
    key: KeyArray,
    u: Float[Array, "n d"],
    v: Float[Array, "m d"],
    groups: Groups,
    *,
    matcher: Callable[..., Coupling] = sinkhorn,
    eps: Sequence[float] = EPS,
    repeats: int = REPEATS,
    most: int = MOST,
    refined: Refined | None = None,
    features: tuple[Array, Array] | None = None,
    mesh: Mesh | None = None,
) -> Projection:
    r"""Chooses the smoothing of a coupling that is to be averaged over, and how much of it to believe. On the host.

    A coupling's projections spread more than they should, and predict worse than the treatment's mean does unless they
    are shrunk. Half of the scores' columns is matched; the other half of each modality is projected onto the other
    one, and the slope `w = <own, projected> / <projected, projected>` of held-out scores, in units of their deviation
    within treatments, is what of the projection's deviation is true. Each treatment's slope is noisy: it is averaged
    with the slope over all of them, each as precise as it is (empirical Bayes, with the method of moments for how much
    treatments differ). Where `evidence` finds nothing common nothing is believed. Half of the columns have more noise
    than all of them and ask for more smoothing, so of `eps` the smallest counts that explains at least 95 % of what the
    best does of the held-out scores, after shrinkage.

    Args:
        key: decides halves, samples and the orders of the evidence.
        u: scores `[n, d]`.
        v: scores `[m, d]`.
        groups: the plan.
        matcher: of one treatment. The strength is chosen for `sinkhorn`, with whatever is bound; others are taken as
            they are.
        eps: to choose from, in units of the spread of the costs.
        repeats: random halves, each used both ways.
        most: samples of each treatment and modality to look at; fewer of each of hundreds of treatments.
        refined: what `refine` made of these scores, to match by instead. Held-out scores stay those that were given,
            and every half is refined by itself: refined columns have seen all of the other modality's.
        features: of both modalities, as `refine` was given them.
        mesh: the devices that match in the end, as for `blockwise`.

    Raises:
        ValueError: refined scores without features.
    """
    if refined is not None and refined.a is not None and features is None:
        raise ValueError("features: expected those that the scores were refined by, got None")
    dtype = float_dtype(u, v)
    u, v = jnp.asarray(u, dtype), jnp.asarray(v, dtype)
    key_thin, key_halves, key_evidence, key_folds = jax.random.split(key, 4)
    if refined is None:
        some = thin(jax.random.fold_in(key_thin, 1), groups, max(most, MOST_EVIDENCE))
        few = (u, v, groups) if some is None else (some.of_a(u), some.of_b(v), some.groups)
        found = evidence(key_evidence, few[0], few[1], together(few[2]))
    else:
        found = refined.evidence
    grid, strong = (jnp.asarray(eps, dtype), True) if _is_sinkhorn(matcher) else (jnp.zeros(1, dtype), False)
    zero = jnp.zeros(groups.num_treatments, dtype)
    place, slopes, weights = len(grid) - 1, (zero, zero), (zero, zero)
    most = affordable(groups, most, MOST_PAIRS)
    thinned = thin(key_thin, groups, most)
    if bool(found.common):
        few = (u, v, groups) if thinned is None else (thinned.of_a(u), thinned.of_b(v), thinned.groups)
        by = None
        if refined is not None and refined.a is not None and features is not None:
            x, y = (flat(side, dtype) for side in features)
            by = (key_folds, x, y) if thinned is None else (key_folds, thinned.of_a(x), thinned.of_b(y))
        loose = split_settings(functools.partial(matcher, **LOOSE)) if strong else split_settings(matcher)
        chosen = halves(key_halves, u.shape[1], repeats)
        sides = _moments(loose, few[0], few[1], together(few[2]), grid, chosen, by, strong)
        moments = [np.asarray(x, float) for x in sides]
        explained = np.mean([_explained(side.sum(1)) for side in moments], axis=0)
        order = np.argsort(grid)
        place = int(order[explained[order] >= ENOUGH * explained.max()][0])
        slopes, weights = zip(*(_weights(side[place]) for side in moments), strict=True)
    final = functools.partial(matcher, eps=relative(grid[place])) if strong else matcher
    (weight_a, weight_b), (slope_a, slope_b) = ([jnp.asarray(x, dtype) for x in sides] for sides in (weights, slopes))
    coupling = blockwise(final, mesh=mesh)(*((u, v) if refined is None else (refined.u, refined.v)), groups)
    return Projection(
        coupling, grid[place], weight_a, weight_b, slope_a, slope_b, found, most if thinned is not None else None
    )


def _is_sinkhorn(matcher: Any) -> bool:
    while isinstance(matcher, functools.partial):
        matcher = matcher.func
    return inspect.unwrap(matcher) is inspect.unwrap(sinkhorn)


@functools.partial(jax.jit, static_argnames="strong")
def _moments(
    matcher: Any, u: Array, v: Array, groups: Groups, eps: Array, used: Bool[Array, "h d"], by: Any, strong: bool
) -> tuple[Array, Array]:
    """Of rows and of columns `[E, T, 4]`: own times projected, projected, own squared, and the first one's variance."""
    t_a, t_b = treatments_of(groups)
    u, v = (_standard(x, t, groups) for x, t in ((u, t_a), (v, t_b)))

    def known(used: Array) -> tuple[Array, Array]:
        sides = keep(u, used), keep(v, used)
        if by is None:
            return sides
        first, second = once(folds_of(by[0], u, v), *sides, by[1], by[2], groups)
        return keep(first.scores, used), keep(second.scores, used)

    def half(total: Any, used: Array) -> tuple[Any, None]:
        sides, own = known(used), [within(hold(x, ~used), t, groups) for x, t in ((u, t_a), (v, t_b))]

        def at(number: Array) -> Any:
            settings = {**matcher.keywords, "eps": Relative(number)} if strong else matcher.keywords
            coupling = blockwise(jax.tree_util.Partial(matcher.func, *matcher.args, **settings))(*sides, groups)
            projected = [
                within(law.apply(other), t, groups)
                for law, other, t in ((coupling, own[1], t_a), (coupling.T, own[0], t_b))
            ]
            return [
                jnp.stack([jnp.sum(x * y, 1), jnp.sum(y * y, 1), jnp.sum(x * x, 1)], 1)
                for x, y in zip(own, projected, strict=True)
            ]

        return jax.tree.map(jnp.add, total, jax.lax.map(at, eps)), None

    empty = [jnp.zeros((eps.shape[0], x.shape[0], 3), x.dtype) for x in (u, v)]
    sums = jax.lax.scan(half, empty, used)[0]  # one half's scores are held at a time
    moments = [jax.vmap(lambda x, t=t: _by_treatment(x, t, groups))(x) for x, t in zip(sums, (t_a, t_b), strict=True)]
    return moments[0], moments[1]


def _by_treatment(sums: Float[Array, "n 3"], t: Int[Array, " n"], groups: Groups) -> Float[Array, "T 4"]:
    """Sums over the samples of each treatment, and the variance of the first about its line."""
    empty = jnp.zeros((groups.num_treatments + 1, 3), sums.dtype)
    total = empty.at[t].add(sums)
    slope = total[:, 0] / jnp.where(total[:, 1] > 0, total[:, 1], 1)
    rest = (sums[:, 0] - slope[t] * sums[:, 1]) ** 2
    return jnp.concatenate([total, empty[:, :1].at[t, 0].add(rest)], axis=1)[:-1]


def _standard(x: Array, t: Array, groups: Groups) -> Array:
    """Columns over their deviation within treatments."""
    size = jnp.sqrt(jnp.mean(within(x, t, groups) ** 2, axis=0, keepdims=True))
    some = size > 1e-5 * size.max()
    return jnp.where(some, x / jnp.where(some, size, 1), 0)


def _explained(moments: np.ndarray) -> np.ndarray:
    """How much of the held-out scores' variation the best line through the projection explains, `[E]`."""
    common, theirs, ours = np.moveaxis(moments[..., :3], -1, 0)
    norm = theirs * ours
    return np.where(norm > 0, np.maximum(common, 0) ** 2 / np.where(norm > 0, norm, 1), 0)


def _weights(moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each treatment's slope, and how much to believe: between it and the slope of all, as precise as they are."""
    common, squares, _, variance = moments.T
    known = (squares > 0) & (variance > 0)
    if not known.any():
        return np.zeros_like(common), np.zeros_like(common)
    safe = np.where(known, squares, 1)
    slope, error = np.where(known, common / safe, 0), np.where(known, variance, 0) / safe**2
    least = np.median(error[known])
    error = np.maximum(error, 0.1 * least)  # few samples may lie on a line by accident
    precision = np.where(known, 1 / np.where(known, error, 1), 0)
    pooled = common[known].sum() / squares[known].sum()
    excess = (precision * (slope - pooled) ** 2).sum() - (known.sum() - 1)
    spread = max(0.0, excess / max(precision.sum() - (precision**2).sum() / precision.sum(), 1e-30))
    between = np.where(known, spread / (spread + error), 0)
    believed = np.where(known, between * slope + (1 - between) * pooled, pooled)
    return slope, np.clip(believed, 0, 1)
