"""Criteria for choosing settings without true pairs: they need scores and treatment labels only."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from psa_jax.blocked import Blocked
from psa_jax.coupling import Coupling
from psa_jax.groups import Groups
from psa_jax.match import Relative, sinkhorn
from psa_jax.match.blockwise import _split_settings, blockwise
from psa_jax.types import Array, Bool, Float, Int, KeyArray, float_dtype, pytree, static

CRITERIA = ("prediction", "agreement", "reconstruction", "stability", "cycle", "entropy")


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
    has there, after subtracting each treatment's mean. Noise that the modalities do not share cannot be predicted that
    way, so the correlation is positive only where the scores are a common map of a common state.

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
        >>> from psa_jax.groups import group
        >>> from psa_jax.match import sinkhorn
        >>> t = jnp.arange(60) % 3
        >>> u = jax.random.normal(jax.random.key(0), (60, 1)) * jnp.array([[1.0, -1.0, 2.0, 1.0]])
        >>> float(held_out_agreement(jax.random.key(1), sinkhorn, u, u, group(t, t, 3)).mean()) > 0.9
        True
    """
    if u.shape[1] < 2:
        raise ValueError(f"u: expected at least two columns to hold one out, got {u.shape[1]}")
    return _agreement(_split_settings(matcher), key, u, v, groups, repeats)


@functools.partial(jax.jit, static_argnames="repeats")
def _agreement(matcher: Any, key: KeyArray, u: Array, v: Array, groups: Groups, repeats: int) -> Array:
    t = _treatment_of_rows(groups)
    match = blockwise(matcher)

    def once(used: Bool[Array, " d"]) -> Float[Array, ""]:
        projected = match(_keep(u, used), _keep(v, used), groups).apply(_keep(v, ~used))
        return _correlation(_within(_keep(u, ~used), t, groups), _within(projected, t, groups))

    return jax.lax.map(once, _halves(key, u.shape[1], repeats))


@pytree
class EpsSweep:
    """What `select_eps` returns: a table with one row for each eps, as arrays `[E]`.

    Attributes:
        eps: as given.
        prediction: share of the held-out scores' variation within treatments that the projection through a coupling
            of the other scores explains (R², at most 1; negative where the treatment's mean is a better guess).
        agreement: the mean of `held_out_agreement`, the correlation of the same quantities.
        reconstruction: as `prediction`, but of the scores that were matched; nothing is held out.
        stability: correlation, within treatments, of the projections through two members' couplings, averaged over
            pairs of members; NaN without members.
        cycle: mean probability `sum_j P(j | i) P(i | j)` of being back after one step there and one back.
        entropy: effective number of partners, `exp(mean_i H(P(. | i)) - log m_i)`, as a share of the `m_i` candidates:
            1 for a random match, `1 / m` for a permutation.
        converged: share of the matched treatments of which every matching behind the row converged.
        best: `[]` the eps with the largest `prediction` among those where all treatments converged; NaN if there is
            none.
        relative: static; whether eps is in units of the spread of the costs.
    """

    eps: Float[Array, " E"]
    prediction: Float[Array, " E"]
    agreement: Float[Array, " E"]
    reconstruction: Float[Array, " E"]
    stability: Float[Array, " E"]
    cycle: Float[Array, " E"]
    entropy: Float[Array, " E"]
    converged: Float[Array, " E"]
    best: Float[Array, ""]
    relative: bool = static()

    def rows(self) -> list[dict[str, float]]:
        """The table on the host, one dictionary for each eps: `pandas.DataFrame(sweep.rows())`."""
        columns = {name: np.asarray(getattr(self, name)).tolist() for name in ("eps", *CRITERIA, "converged")}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def select_eps(
    key: KeyArray,
    u: Float[Array, "*members n d"],
    v: Float[Array, "*members m d"],
    groups: Groups,
    eps: Any,
    *,
    matcher: Callable[..., Coupling] = sinkhorn,
    relative: bool = True,
    repeats: int = 4,
    draws: int = 4,
) -> EpsSweep:
    """Sweeps the smoothing of a matcher in one compiled program, and measures every coupling without true pairs.

    With members the couplings judged are those of their mean scores (`align` averages logits too); the members' own
    serve `stability` only. All eps meet the same random halves and draws, so that rows differ by eps alone.

    What to go by, from four data sets with known pairs, eight eps from 0.01 to 1.6 and one seed each (`python -m
    benchmarks.selection`; figures for digits, SNARE-seq, bone marrow, balls in this order):

    - `prediction`, by which `best` is chosen, followed the share of modality b's variation that the projection
      explains on three of them (Spearman 0.90, -0.33, 1.00, 0.98). Its choice was the best of the grid on bone marrow
      and balls. On digits it explained -0.02 (best 0.01), on SNARE-seq -0.11 (best 0.00: no eps beat the treatment's
      mean there, which its positive `prediction` did not tell). FOSCTTM of its choice was within 0.012 of the best.
    - `agreement` is the same but blind to scale (0.83, 0.74, 0.98, 0.79). `reconstruction` followed FOSCTTM (0.93,
      0.98, 0.95, 0.62) but not the share explained, and nothing is held out.
    - `stability`, `cycle` and `entropy` follow eps, not the truth: their largest values lay at an end of the grid or
      next to it on all four. They tell how smooth a coupling is; do not choose by them.
    - None tracked P(true match) beyond its rise as eps falls: for sampled pairs take a smaller eps than `best`.

    Args:
        key: decides the halves and the draws.
        u: scores `[n, d]`, or of several classifiers `[members, n, d]`; d at least 2.
        v: scores `[m, d]` or `[members, m, d]`.
        groups: the plan.
        eps: `[E]` positive numbers. Traced; how many is static.
        matcher: of one treatment, with a keyword `eps` that may be traced; settings bound as for `blockwise`.
        relative: static; eps is in units of the spread of the costs, which suits halves of scores as well as whole
            ones. Otherwise in units of the cost; halves, whose costs are smaller, are then smoothed more.
        repeats: static; random halves, each used both ways.
        draws: static; partners drawn for each row, behind `cycle` and `entropy`.

    Returns:
        The table, a pytree; `rows()` has it on the host and `psa.plot.eps_sweep` draws it. Memory is that of a few
        copies of the scores; each eps costs `1 + members + 2 repeats` matchings. Not meant to be differentiated.

    Raises:
        ValueError: shapes that do not fit each other or the groups, fewer than two columns, eps that is not `[E]` or
            is known and not positive, repeats or draws below 1.

    Example:
        >>> from psa_jax.groups import group
        >>> t = jnp.arange(60) % 3
        >>> u = jax.random.normal(jax.random.key(0), (60, 1)) * jnp.array([[1.0, -1.0, 2.0, 1.0]])
        >>> sweep = select_eps(jax.random.key(1), u, u, group(t, t, 3), [0.05, 0.5])
        >>> round(float(sweep.best), 2), bool(sweep.entropy[0] < sweep.entropy[1])
        (0.05, True)
    """
    u, v, eps = jnp.asarray(u), jnp.asarray(v), _check(u, v, groups, eps, repeats, draws)
    u, v = (scores[None] if scores.ndim == 2 else scores for scores in (u, v))
    if isinstance(matcher, jax.tree_util.Partial):
        traced = matcher
    else:
        traced = _split_settings(functools.partial(matcher, eps=eps))  # overrides an eps bound before
    return _sweep(traced, key, u, v, groups, eps, relative, repeats, draws)


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


@functools.partial(jax.jit, static_argnames=("relative", "repeats", "draws"))
def _sweep(
    matcher: Any,
    key: KeyArray,
    u: Array,
    v: Array,
    groups: Groups,
    eps: Array,
    relative: bool,
    repeats: int,
    draws: int,
) -> EpsSweep:
    key_halves, key_walk = jax.random.split(key)
    members, _, d = u.shape
    ensemble = members if members > 1 else 0
    u, v = (jnp.concatenate([scores.mean(0, keepdims=True), scores[:ensemble]]) for scores in (u, v))
    halves = _halves(key_halves, d, repeats)
    # One problem after the other, so that the matcher is compiled once: the mean scores, each member, each half.
    which = jnp.concatenate([jnp.arange(1 + ensemble), jnp.zeros(halves.shape[0], jnp.int32)])
    used = jnp.concatenate([jnp.ones((1 + ensemble, d), bool), halves])
    held = used.at[1 + ensemble :].set(~halves)
    t = _treatment_of_rows(groups)
    matched = (groups.sizes_a > 0) & (groups.sizes_b > 0)

    def at(number: Array) -> dict[str, Array]:
        setting = Relative(number) if relative else number
        bound = jax.tree_util.Partial(matcher.func, *matcher.args, **{**matcher.keywords, "eps": setting})
        match = blockwise(bound)

        def solve(total: Array, problem: Any) -> Any:
            index, member, used, held = problem
            coupling = match(_keep(u[member], used), _keep(v[member], used), groups)
            own = _within(_keep(u[0], held), t, groups)
            projected = _within(coupling.apply(_keep(v[0], held)), t, groups)
            size = jnp.sqrt(jnp.sum(projected**2))
            total = total + jnp.where((member > 0) & (size > 0), projected / jnp.where(size > 0, size, 1), 0)
            walk = jax.lax.cond(
                index == 0,
                lambda: _walk(key_walk, coupling, t, groups, draws),
                lambda: (jnp.zeros((), u.dtype), jnp.zeros((), u.dtype)),
            )
            return total, (_correlation(own, projected), _explained(own, projected), coupling.info.converged, *walk)

        problems = (jnp.arange(which.size), which, used, held)
        total, (agreement, explained, converged, cycle, entropy) = jax.lax.scan(solve, jnp.zeros_like(u[0]), problems)
        pairs = ensemble * (ensemble - 1)
        return {
            "prediction": explained[1 + ensemble :].mean(),
            "agreement": agreement[1 + ensemble :].mean(),
            "reconstruction": explained[0],
            "stability": (jnp.sum(total**2) - ensemble) / pairs if pairs else jnp.full((), jnp.nan, u.dtype),
            "cycle": cycle[0],
            "entropy": entropy[0],
            "converged": jnp.mean(converged.all(0), dtype=u.dtype, where=matched),
        }

    table = jax.lax.map(at, eps)
    usable = (table["converged"] == 1) & jnp.isfinite(table["prediction"])
    best = eps[jnp.argmax(jnp.where(usable, table["prediction"], -jnp.inf))]
    return EpsSweep(eps=eps, best=jnp.where(usable.any(), best, jnp.nan), relative=relative, **table)


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


def _halves(key: KeyArray, d: int, repeats: int) -> Bool[Array, "values d"]:
    """Random halves of `d` columns, and after each the other half."""
    half = [
        jnp.zeros(d, bool).at[jax.random.permutation(k, d)[: d // 2]].set(True) for k in jax.random.split(key, repeats)
    ]
    return jnp.stack([used for each in half for used in (each, ~each)])


def _keep(y: Array, columns: Bool[Array, " d"]) -> Array:
    """The columns, zeros elsewhere: they then count neither in a distance nor in a correlation."""
    return jnp.where(columns[None], y, 0)


def _treatment_of_rows(groups: Groups) -> Int[Array, " n"]:
    """The treatment of each row, `num_treatments` for rows that are not matched."""
    t = jnp.full(groups.shape[0], groups.num_treatments, jnp.int32)
    for bucket in groups.buckets:
        t = t.at[bucket.rows].set(bucket.treatment[:, None], mode="drop")
    return t


def _within(y: Array, t: Array, groups: Groups) -> Array:
    """Deviations from the treatment's mean; zero for rows that are not matched."""
    number = groups.num_treatments + 1
    total = jnp.zeros((number, y.shape[1]), y.dtype).at[t].add(y)
    count = jnp.zeros(number, y.dtype).at[t].add(1)
    deviation = y - (total / jnp.maximum(count, 1)[:, None])[t]
    return jnp.where((t < groups.num_treatments)[:, None], deviation, 0)


def _correlation(x: Array, y: Array) -> Array:
    scale = jnp.sqrt(jnp.sum(x * x) * jnp.sum(y * y))
    return jnp.where(scale > 0, jnp.sum(x * y) / jnp.where(scale > 0, scale, 1), 0)


def _explained(y: Array, y_hat: Array) -> Array:
    """`R²` of deviations from the treatments' means; NaN where nothing varies."""
    scale = jnp.sum(y * y)
    return jnp.where(scale > 0, 1 - jnp.sum((y - y_hat) ** 2) / jnp.where(scale > 0, scale, 1), jnp.nan)
