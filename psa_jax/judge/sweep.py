"""A sweep over the smoothing of a matcher, judged without true pairs, and the coupling that it recommends."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from psa_jax.arguments import checked
from psa_jax.coupling.blocked import Blocked
from psa_jax.coupling.coupling import Coupling
from psa_jax.coupling.shrink import shrink
from psa_jax.data.groups import Groups
from psa_jax.judge.agreement import halves as random_halves
from psa_jax.judge.agreement import hold, keep, treatment_of_rows, within
from psa_jax.judge.eps_sweep import EpsSweep
from psa_jax.judge.thin import MOST, thin
from psa_jax.match import Relative, sinkhorn
from psa_jax.match.blockwise import blockwise, split_settings
from psa_jax.progress import Progress, tell_part, watching
from psa_jax.types import Array, Float, KeyArray, float_dtype

EPS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)


@checked
def select_eps(
    key: KeyArray,
    u: Float[Array, "*members n d"],
    v: Float[Array, "*members m d"],
    groups: Groups,
    eps: Float[Array, " E"] | Sequence[float],
    *,
    y: Float[Array, "m ..."] | None = None,
    matcher: Callable[..., Coupling] = sinkhorn,
    relative: bool = True,
    repeats: int = 4,
    draws: int = 4,
    most: int = MOST,
    progress: Progress = False,
) -> EpsSweep:
    """Sweeps the smoothing of a matcher in one compiled program, and measures every coupling without true pairs.

    With members the couplings judged are those of their mean scores (`align` averages logits too); the members' own
    serve `stability` only. All eps meet the same random halves and draws, so that rows differ by eps alone.

    What to go by, from four data sets with known pairs, eight eps from 0.01 to 1.6 and one seed each (`python -m
    benchmarks.selection`; figures for digits, SNARE-seq, bone marrow, balls in this order):

    - `prediction`, by which `best` is chosen, followed the share of modality b's variation that the projection
      explains on three of them (Spearman 0.98, 0.24, 1.00, 0.86). Its choice was the best of the grid on bone marrow
      and balls and explained 0.010 on digits (best 0.011). On SNARE-seq it explained -0.05 (best 0.00: no eps beat the
      treatment's mean there, which its positive `prediction` did not tell). FOSCTTM of its choice was within 0.012 of
      the best.
    - `agreement` is the same but blind to scale (0.83, 0.93, 0.98, 0.64). `calibrated` (0.74, 0.07, 0.95, 0.95) is for
      couplings that are shrunk afterwards. `reconstruction` followed FOSCTTM (0.93, 0.98, 0.95, 0.62) but not the
      share explained, and nothing is held out.
    - `stability`, `cycle` and `entropy` follow eps, not the truth: their largest values lay at an end of the grid or
      next to it on all four. They tell how smooth a coupling is; do not choose by them.
    - None tracked P(true match) beyond its rise as eps falls: for sampled pairs take a smaller eps than `best`.

    Args:
        key: decides the halves, the draws and the samples.
        u: scores `[n, d]`, or of several classifiers `[members, n, d]`; d at least 2.
        v: scores `[m, d]` or `[members, m, d]`.
        groups: the plan.
        eps: `[E]` positive numbers. Traced; how many is static.
        y: `[m, ...]`, what is going to be projected, for `stability`; by default the scores `v`.
        matcher: of one treatment, with a keyword `eps` that may be traced; settings bound as for `blockwise`.
        relative: static; eps is in units of the spread of the costs, which suits halves of scores as well as whole
            ones. Otherwise in units of the cost; halves, whose costs are smaller, are then smoothed more.
        repeats: static; random halves, each used both ways.
        draws: static; partners drawn for each row, behind `cycle` and `entropy`.
        most: static; of treatments with more samples, so many of each modality are drawn and looked at, for all
            criteria the same. Fewer make them noisier, and couplings of fewer samples a little less sure of themselves
            than that of all will be; `EpsSweep.most` tells.
        progress: as in `align`.

    Returns:
        The table, a pytree; `rows()` has it on the host and `psa.plot.eps_sweep` draws it. Memory is that of a few
        copies of the scores; each eps costs `1 + members + 2 repeats` matchings. Not meant to be differentiated.

    Raises:
        ValueError: shapes that do not fit each other or the groups, fewer than two columns, eps that is not `[E]` or
            is known and not positive, `y` that is not finite, repeats or draws below 1, most below 2.

    Example:
        >>> from psa_jax.data.groups import group
        >>> t = jnp.arange(60) % 3
        >>> u = jax.random.normal(jax.random.key(0), (60, 1)) * jnp.array([[1.0, -1.0, 2.0, 0.5]])
        >>> sweep = select_eps(jax.random.key(1), u, u, group(t, t, 3), [0.05, 0.5])
        >>> round(float(sweep.best), 2), bool(sweep.entropy[0] < sweep.entropy[1])
        (0.05, True)
    """
    u, v, eps = jnp.asarray(u), jnp.asarray(v), _check(u, v, groups, eps, repeats, draws)
    if most < 2:
        raise ValueError(f"most: expected at least 2, got {most}")
    u, v = (scores[None] if scores.ndim == 2 else scores for scores in (u, v))
    if y is not None:
        if jnp.ndim(y) < 2 or jnp.shape(y)[0] != groups.shape[1]:
            raise ValueError(f"y: expected [{groups.shape[1]}, ...], one for each column, got shape {jnp.shape(y)}")
        if not isinstance(y, Tracer) and not np.isfinite(np.asarray(y)).all():
            raise ValueError("y: expected finite numbers, got NaN or infinity")
        y = jnp.asarray(y).reshape(groups.shape[1], -1)
    with watching(progress) as watch, jax.debug_nans(False):  # what cannot be known is NaN
        watch.begin("sweep", eps.shape[0])
        told = watch.on_epoch is not None
        return _sweep(_with_eps(matcher, eps), key, u, v, groups, eps, y, relative, repeats, draws, most, told)


@checked
def calibrated_coupling(
    key: KeyArray,
    u: Float[Array, "*members n d"],
    v: Float[Array, "*members m d"],
    groups: Groups,
    *,
    eps: Float[Array, " E"] | Sequence[float] = EPS,
    y: Float[Array, "m ..."] | None = None,
    matcher: Callable[..., Coupling] = sinkhorn,
    repeats: int = 4,
    most: int = MOST,
    progress: Progress = False,
) -> tuple[Blocked, EpsSweep]:
    r"""The coupling of the mean scores at the eps that calibrates best, shrunk toward the treatment's mean.

    Couplings are overconfident: their projections spread more than they should, so that they predict worse than the
    treatment's mean does. From a sweep (`select_eps`) the eps with the largest `calibrated` is taken, with its
    `shrinkage`. Labels and unpaired data only.

    What that cannot know: whether the modalities share, within a treatment, more than the correlations among scores
    that each of them has by itself. No statistic of unpaired samples tells; where they do not, some noise is believed.
    `benchmarks/RESULTS.md` has what came of it on data with known pairs.

    Args:
        key, u, v, groups, y, matcher, repeats, most, progress: as in `select_eps`. Give members
            (`Alignment.member_scores_a`), at least two, and as `y` the features that will be projected: without
            members, noise of training is believed.
        eps: `[E]` to choose from, in units of the spread of the costs.

    Returns:
        The coupling and the sweep behind it. If no eps converged, the one with the largest `calibrated` anyway; the
        coupling's `info` tells.

    Raises:
        ValueError: as `select_eps`.

    Example:
        >>> from psa_jax.data.groups import group
        >>> t = jnp.arange(60) % 3
        >>> u = jax.random.normal(jax.random.key(0), (60, 1)) * jnp.array([[1.0, -1.0, 2.0, 0.5]])
        >>> C, sweep = calibrated_coupling(jax.random.key(1), u, u, group(t, t, 3), eps=(0.05, 0.5))
        >>> C.shape, bool(sweep.shrinkage[0] > 0.9)
        ((60, 60), True)
    """
    settings = {"matcher": matcher, "repeats": repeats, "draws": 1, "most": most, "progress": progress}
    sweep = select_eps(key, u, v, groups, eps, y=y, **settings)
    chosen, weight = sweep.choice
    match = blockwise(_bind(_with_eps(matcher, eps), chosen))
    u, v = (scores.mean(0) if scores.ndim == 3 else scores for scores in (jnp.asarray(u), jnp.asarray(v)))
    return shrink(match(u, v, groups), weight), sweep


def _with_eps(matcher: Callable[..., Coupling], eps: Any) -> jax.tree_util.Partial:
    """The matcher with a traced eps, which overrides one bound before."""
    if isinstance(matcher, jax.tree_util.Partial):
        return matcher
    return split_settings(functools.partial(matcher, eps=jnp.asarray(eps)))


def _bind(matcher: jax.tree_util.Partial, eps: Any) -> jax.tree_util.Partial:
    return jax.tree_util.Partial(matcher.func, *matcher.args, **{**matcher.keywords, "eps": eps})


def _check(u: Array, v: Array, groups: Groups, eps: Any, repeats: int, draws: int) -> Array:
    for name, scores, rows in (("u", u, groups.shape[0]), ("v", v, groups.shape[1])):
        if scores.ndim not in (2, 3) or scores.shape[-2] != rows:
            raise ValueError(f"{name}: expected scores [{rows}, d] or [members, {rows}, d], got shape {scores.shape}")
    if u.shape[:-2] != v.shape[:-2] or u.shape[-1] != v.shape[-1]:
        raise ValueError(f"u, v: expected the same members and columns, got shapes {u.shape} and {v.shape}")
    if u.shape[-1] < 2:
        raise ValueError(f"u: expected at least two columns to hold one out, got {u.shape[-1]}")
    if u.ndim == 3 and not u.shape[0]:
        raise ValueError("u: expected at least one member, got none")
    for name, value in (("repeats", repeats), ("draws", draws)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    shape = np.shape(eps)
    if len(shape) != 1 or not shape[0]:
        raise ValueError(f"eps: expected numbers [E], at least one, got shape {shape}")
    if not isinstance(eps, Tracer):
        known = np.asarray(eps, float)
        if not (np.isfinite(known).all() and (known > 0).all()):
            raise ValueError(f"eps: expected positive numbers, got {known.tolist()}")
    return jnp.asarray(eps, float_dtype(u, v))


@functools.partial(jax.jit, static_argnames=("relative", "repeats", "draws", "most", "told"))
def _sweep(
    matcher: Any,
    key: KeyArray,
    u: Array,
    v: Array,
    groups: Groups,
    eps: Array,
    y: Array | None,
    relative: bool,
    repeats: int,
    draws: int,
    most: int,
    told: bool,
) -> EpsSweep:
    key_halves, key_walk = jax.random.split(key)
    members, _, d = u.shape
    ensemble = members if members > 1 else 0
    u, v = (jnp.concatenate([scores.mean(0, keepdims=True), scores[:ensemble]]) for scores in (u, v))
    halves = random_halves(key_halves, d, repeats)
    # One problem after the other, so that the matcher is compiled once: the mean scores, each member, each half.
    which = jnp.concatenate([jnp.arange(1 + ensemble), jnp.zeros(halves.shape[0], jnp.int32)])
    used = jnp.concatenate([jnp.ones((1 + ensemble, d), bool), halves])
    held = used.at[1 + ensemble :].set(~halves)
    shown = v[0] if y is None else y
    thinned = thin(jax.random.fold_in(key, 2), groups, most)
    if thinned is not None:
        u, v, shown, groups = thinned.of_a(u), thinned.of_b(v), thinned.of_b(shown), thinned.groups
    t = treatment_of_rows(groups)
    matched = (groups.sizes_a > 0) & (groups.sizes_b > 0)

    def at(number: Array) -> dict[str, Array]:
        match = blockwise(_bind(matcher, Relative(number) if relative else number))

        def solve(total: Array, problem: Any) -> Any:
            index, member, used, held = problem
            coupling = match(keep(u[member], used), keep(v[member], used), groups)
            own = within(hold(u[0], held), t, groups)
            projected = within(coupling.apply(hold(v[0], held)), t, groups)
            total = jax.lax.cond(
                member > 0, lambda: total + _unit(within(coupling.apply(shown), t, groups)), lambda: total
            )
            walk = jax.lax.cond(
                index == 0,
                lambda: _walk(key_walk, coupling, t, groups, draws),
                lambda: (jnp.zeros((), u.dtype), jnp.zeros((), u.dtype)),
            )
            moments = jnp.stack([jnp.sum(own * projected), jnp.sum(projected**2), jnp.sum(own**2)])
            return total, (moments, coupling.info.converged, *walk)

        problems = (jnp.arange(which.size), which, used, held)
        start = jnp.zeros((u.shape[1], shown.shape[1]), float_dtype(shown, u))
        total, (moments, converged, cycle, entropy) = jax.lax.scan(solve, start, problems)
        pairs = ensemble * (ensemble - 1)
        stability = (jnp.sum(total**2) - ensemble) / pairs if pairs else jnp.full((), jnp.nan)
        stability = stability.astype(u.dtype)
        if told:
            jax.debug.callback(tell_part)
        kept = moments[1 + ensemble :]
        common, ours, theirs = kept.sum(0)
        slope = jnp.clip(_ratio(common, ours, 0), 0, 1)
        shrinkage = slope * jnp.clip(stability, 0, 1) if pairs else slope
        return {
            "prediction": jnp.nanmean(_explained(kept)),  # a half that does not vary says nothing
            "agreement": _ratio(kept[:, 0], jnp.sqrt(kept[:, 1] * kept[:, 2]), 0).mean(),
            "reconstruction": _explained(moments[:1])[0],
            "stability": stability,
            "shrinkage": shrinkage,
            "calibrated": _ratio(2 * shrinkage * common - shrinkage**2 * ours, theirs, jnp.nan),
            "cycle": cycle[0],
            "entropy": entropy[0],
            "converged": jnp.mean(converged.all(0), dtype=u.dtype, where=matched),
        }

    table = jax.lax.map(at, eps)
    usable = (table["converged"] == 1) & jnp.isfinite(table["prediction"])
    best = eps[jnp.argmax(jnp.where(usable, table["prediction"], -jnp.inf))]
    return EpsSweep(
        eps=eps, best=jnp.where(usable.any(), best, jnp.nan), relative=relative, most=thinned and most, **table
    )


def _walk(key: KeyArray, coupling: Blocked, t: Array, groups: Groups, draws: int) -> tuple[Array, Array]:
    """Mean probability of a return and relative number of partners, both from draws of the coupling."""
    row, column = (jnp.append(marginal, 0) for marginal in (coupling.row_marginal(), coupling.col_marginal()))
    candidates = jnp.append(groups.sizes_b, 1)[t].astype(row.dtype)

    def once(key: KeyArray) -> tuple[Array, Array]:
        j = coupling.sample(key)
        log_p = coupling.log_prob(j)
        found = (j >= 0) & (log_p > -jnp.inf)
        log_p = jnp.where(found, log_p, 0)
        there = jnp.where(found, column[j], 1)
        back = jnp.exp(log_p) * row[:-1] / jnp.where(there > 0, there, 1)  # P(i | j) = P(j | i) P(i) / P(j)
        surprise = -log_p - jnp.log(candidates)
        count = jnp.maximum(found.sum(), 1).astype(row.dtype)
        back, surprise = (jnp.where(found, value, 0).sum() / count for value in (jnp.minimum(back, 1), surprise))
        return back, surprise

    cycle, surprise = jax.lax.map(once, jax.random.split(key, draws))
    return cycle.mean(), jnp.exp(surprise.mean())


def _unit(x: Array) -> Array:
    """The array over its Euclidean norm, or zeros."""
    return _ratio(x, jnp.sqrt(jnp.sum(x**2)), 0)


def _ratio(x: Array, y: Array, otherwise: Any) -> Array:
    return jnp.where(y > 0, x / jnp.where(y > 0, y, 1), otherwise)


def _explained(moments: Float[Array, "k 3"]) -> Float[Array, " k"]:
    """`R²` of deviations from the treatments' means; NaN where nothing varies."""
    common, ours, theirs = moments.T
    return _ratio(2 * common - ours, theirs, jnp.nan)
