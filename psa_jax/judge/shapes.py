"""Whether distances within each modality help to match: a fused geometry, tried by labels only."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psa_jax.coupling.coupling import Coupling
from psa_jax.data.groups import Groups
from psa_jax.judge.agreement import correlation, halves, hold, keep, treatments_of, within
from psa_jax.judge.evidence import evidence
from psa_jax.judge.slopes import flat
from psa_jax.judge.thin import thin, together
from psa_jax.match import fused_gromov_wasserstein, relative, sinkhorn
from psa_jax.match.blockwise import blockwise
from psa_jax.match.features import with_features
from psa_jax.types import Array, Bool, Float, KeyArray

ALPHAS, EPS, MOST, CLEARLY = (0.5,), 0.1, 150, 3.0
_LOOSE = functools.partial(fused_gromov_wasserstein, eps=relative(EPS), tol=1e-2, max_iters=30)


def try_shapes(
    key: KeyArray, u: Array, v: Array, x: Array, y: Array, groups: Groups, *, repeats: int
) -> tuple[dict[str, Any], ...]:
    """What `alpha` adds to the agreement with held-out scores; a row for each, the first for transport alone.

    Distances between samples of one modality know nothing of labels. If they are alike in both, a match that keeps them
    also predicts the scores that were held out at least as well; where they are not, they pull partners apart and the
    agreement falls, or hardly changes where they are noise. Empty where `evidence` finds nothing common: scores that
    share nothing can only gain.

    Args:
        key: decides samples and halves.
        u: scores `[n, d]`.
        v: scores `[m, d]`.
        x: features `[n, ...]`.
        y: features `[m, ...]`.
        groups: the plan.
        repeats: random halves, each used both ways.

    Returns:
        Dictionaries: `alpha`, `agreement` (mean of both directions), `gain`, `error` of the gain.
    """
    key_thin, key_evidence, key_halves = jax.random.split(key, 3)
    sides = u, v, flat(x, u.dtype), flat(y, u.dtype)
    kept = thin(key_thin, groups, MOST)
    if kept is not None:
        sides = kept.of_a(sides[0]), kept.of_b(sides[1]), kept.of_a(sides[2]), kept.of_b(sides[3])
        groups = kept.groups
    groups = together(groups)
    if not bool(evidence(key_evidence, sides[0], sides[1], groups).common):
        return ()
    used = halves(key_halves, u.shape[1], repeats)
    rows, first = [], None
    for alpha in (0.0, *ALPHAS):
        values = np.asarray(_agreement(jnp.asarray(alpha, u.dtype), *sides, groups, used), float)
        first = values if first is None else first
        gain = (values - first).reshape(repeats, -1).mean(1)
        error = float(gain.std(ddof=1) / np.sqrt(repeats))
        rows.append({"alpha": alpha, "agreement": float(values.mean()), "gain": float(gain.mean()), "error": error})
    return tuple(rows)


def best_matcher(shapes: tuple[dict[str, Any], ...]) -> Callable[..., Coupling]:
    """Of what was tried: distances within with the weight that gains most, where one gains beyond noise."""
    better = [row for row in shapes[1:] if row["gain"] > CLEARLY * row["error"]]
    if not better:
        return sinkhorn
    alpha = max(better, key=lambda row: row["gain"])["alpha"]
    return functools.partial(fused_gromov_wasserstein, alpha=alpha)


@jax.jit
def _agreement(
    alpha: Array, u: Array, v: Array, x: Array, y: Array, groups: Groups, used: Bool[Array, "h d"]
) -> Float[Array, " h"]:
    t_a, t_b = treatments_of(groups)
    match = blockwise(jax.tree_util.Partial(_LOOSE, alpha=alpha))

    def half(used: Array) -> Float[Array, ""]:
        first, second = with_features(keep(u, used), keep(v, used), x, y, groups)
        coupling = match(first, second, groups)
        values = []
        for law, own, other, t in ((coupling, u, v, t_a), (coupling.T, v, u, t_b)):
            mine, told = within(hold(own, ~used), t, groups), within(law.apply(hold(other, ~used)), t, groups)
            values.append(correlation(mine, told))
        return (values[0] + values[1]) / 2

    return jax.lax.map(half, used)
