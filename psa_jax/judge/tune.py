"""How much to smooth, chosen by labels: the learners of both modalities."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psa_jax.arguments import checked
from psa_jax.coupling.coupling import Coupling
from psa_jax.data.groups import group
from psa_jax.data.samples import Modality, Unpaired, on_host, validate
from psa_jax.judge.agreement import held_out_agreement, within
from psa_jax.judge.shapes import best_matcher, try_shapes
from psa_jax.judge.thin import thin, together
from psa_jax.match import relative, sinkhorn
from psa_jax.progress import Progress, Watch, watching
from psa_jax.propensity.augment import SMOOTHINGS
from psa_jax.propensity.learn import learn, rows_to_look_at
from psa_jax.propensity.learner import Learner, check_learner
from psa_jax.propensity.representation import finished
from psa_jax.types import Array, KeyArray

MOST_SAMPLES, MOST, FOLDS, MEMBERS = 6000, 200, 3, 2
EPS, ERRORS, RANK_SHARE = 0.2, 2.0, 0.5
SINGLE = {"none": None, **{f"noise {one.noise:g}, shifts {one.shift:g}": one for one in SMOOTHINGS}}


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What `tune` recommends, and why.

    Attributes:
        a: the learner of modality a.
        b: that of modality b.
        chosen: the name of the smoothing; "as given" where no other was better beyond noise.
        table: a dictionary for each smoothing tried: `agreement` of held-out scores, its `gain` over the given
            learners' on the same halves, the standard `error` of the gain, the effective `rank` of the scores within
            treatments, and whether it is `allowed`.
        matcher: for `align`: `sinkhorn`, or `fused_gromov_wasserstein` where distances within modalities help.
        shapes: a dictionary for each weight `alpha` of these distances tried, 0 first: `agreement`, `gain`, `error`;
            none where scores have nothing in common, or `geometry` was not asked for.
    """

    a: Learner
    b: Learner
    chosen: str
    table: tuple[dict[str, Any], ...]
    matcher: Callable[..., Coupling] = sinkhorn
    shapes: tuple[dict[str, Any], ...] = ()

    def __repr__(self) -> str:
        """The table, the choice, and the reason."""
        lines = [f"Tuned: {self.chosen}"]
        for row in self.table:
            told = f"agreement {row['agreement']:.3f}, gain {row['gain']:+.3f} (error {row['error']:.3f})"
            lines.append(f"  {row['smoothing']}: {told}, rank {row['rank']:.1f}{'' if row['allowed'] else ', too low'}")
        if self.chosen == "as given":
            lines.append(f"  none gains more than {ERRORS:g} standard errors: nothing is changed")
        for row in self.shapes[1:]:
            told = f"agreement {row['agreement']:.3f}, gain {row['gain']:+.3f} (error {row['error']:.3f})"
            lines.append(f"  distances within, alpha {row['alpha']:g}: {told}")
        if self.shapes:
            lines.append(f"  matcher: {'sinkhorn' if self.matcher is sinkhorn else 'fused_gromov_wasserstein'}")
        return "\n".join(lines)


@checked
def tune(
    key: KeyArray,
    data: Unpaired,
    *,
    a: Learner | None = None,
    b: Learner | None = None,
    repeats: int = 8,
    geometry: bool = True,
    progress: Progress = False,
) -> Tuned:
    """Chooses the smoothing of both modalities' classifiers by labels only. On the host.

    Each amount (none; noise of 0.3, 0.7 and 1.2 standard deviations or, for images, shifts of 0.05, 0.08 and 0.12 of
    the canvas) trains two classifiers of each modality by cross-fitting with three folds, on at most 6000 samples of
    each. Amounts are ranked by `held_out_agreement` of the scores, on the same halves of the columns. One is taken if
    it gains more than two standard errors over the learners as they were given, else these are kept.

    The criterion has a blind spot: scores of low rank predict each other whatever they mean. So an amount whose scores
    vary, within treatments, in less than half as many directions as those of the learners given is not taken.

    Args:
        key: a typed key.
        data: as `align` takes it, of at least two treatments that both modalities have.
        a: what to start from, by default `Learner()`; all but `augment`, members and folds is kept while it is tried.
        b: the same for modality b.
        repeats: random halves, each used both ways; at least 2.
        geometry: whether to try, with the scores of what was chosen, if matching by distances within each modality too
            (`fused_gromov_wasserstein` of `alpha` 0.5) helps: it must gain more than three standard errors.
        progress: as in `align`.

    Returns:
        The learners and the matcher to give to `align`, and a table; `print` shows why.

    Raises:
        ValueError: as `align`; fewer than three treatments that both modalities have; repeats below 2.

    Example:
        >>> from psa_jax.propensity import Training, linear
        >>> x = jax.random.normal(jax.random.key(0), (60, 4))
        >>> t = np.arange(60) % 3
        >>> data = Unpaired(Modality(x + t[:, None], t), Modality(x - t[:, None], t), 3)
        >>> quick = Learner(linear(3), training=Training(epochs=2))
        >>> found = tune(jax.random.key(1), data, a=quick, b=quick, repeats=2)
        >>> len(found.table), found.a.model == found.b.model
        (5, True)
    """
    learners = check_learner("a", a), check_learner("b", b)
    validate(data)
    if repeats < 2:
        raise ValueError(f"repeats: expected at least 2, got {repeats}")
    key_some, key_thin, key_agree, key_learn = jax.random.split(key, 4)
    data = _some(key_some, on_host(data))
    taught = data.taught
    shared = np.intersect1d(np.asarray(taught.a.t), np.asarray(taught.b.t))
    if shared.size < 3:
        raise ValueError(f"data: expected at least three treatments that both modalities have, got {shared.size}")
    groups = group(data.a.t, data.b.t, data.num_treatments)
    kept = thin(key_thin, groups, MOST)
    merged = together(groups if kept is None else kept.groups)
    rows, given, learnt = [], None, {}
    with watching(progress) as watch:
        for name, change in {"as given": None, **{name: (one,) for name, one in SINGLE.items()}}.items():
            u, v = _scores(key_learn, taught, shared, learners, change, watch)
            learnt[name] = u, v
            few = (u, v, merged) if kept is None else (kept.of_a(u), kept.of_b(v), merged)
            values = np.asarray(held_out_agreement(key_agree, _MATCHER, *few, repeats=repeats), float)
            rank = min(_rank(x, t, groups) for x, t in ((u, data.a.t), (v, data.b.t)))
            given = (values, rank) if given is None else given
            gain = (values - given[0]).reshape(repeats, -1).mean(1)
            rows.append(
                {
                    "smoothing": name,
                    "agreement": float(values.mean()),
                    "gain": float(gain.mean()),
                    "error": float(gain.std(ddof=1) / np.sqrt(repeats)),
                    "rank": rank,
                    "allowed": bool(rank >= RANK_SHARE * given[1]),
                }
            )
    better = [row for row in rows if row["allowed"] and row["gain"] > ERRORS * row["error"]]
    chosen, (first, second) = "as given", learners
    if better:
        chosen = max(better, key=lambda row: row["gain"])["smoothing"]
        first, second = (dataclasses.replace(learner, augment=SINGLE[chosen]) for learner in learners)
    shapes = ()
    if geometry:
        (u, v), x, y = learnt[chosen], data.a.x[:], data.b.x[:]
        shapes = try_shapes(jax.random.fold_in(key, 5), u, v, x, y, groups, repeats=repeats)
    return Tuned(first, second, chosen, tuple(rows), best_matcher(shapes), shapes)


_MATCHER = functools.partial(sinkhorn, eps=relative(EPS), tol=1e-2)


def _some(key: KeyArray, data: Unpaired) -> Unpaired:
    """At most `MOST_SAMPLES` random samples of each modality."""

    def of(key: KeyArray, side: Modality) -> Modality:
        n = side.t.shape[0]
        if n <= MOST_SAMPLES:
            return side
        ids = np.sort(np.asarray(jax.random.choice(key, n, (MOST_SAMPLES,), replace=False)))
        return side.take(ids)

    key_a, key_b = jax.random.split(key)
    return dataclasses.replace(data, a=of(key_a, data.a), b=of(key_b, data.b))


def _scores(
    key: KeyArray, data: Unpaired, shared: np.ndarray, learners: Any, change: Any, watch: Watch
) -> tuple[Array, Array]:
    """Scores of both modalities, of the learners as they are or with another smoothing, with few members and folds."""
    tried = []
    for learner in learners:
        several = len(learner.augment) if isinstance(learner.augment, tuple) else MEMBERS
        few = dataclasses.replace(learner, members=several, folds=FOLDS)
        tried.append(few if change is None else dataclasses.replace(few, augment=change[0], members=MEMBERS))
    labels, number = (data.a.t, data.b.t), (data.num_treatments, int(shared.size))
    rows = rows_to_look_at(jax.random.fold_in(key, 2), labels, tried, *number)
    learnt = [
        learn(k, name, getattr(data, name), data.num_treatments, shared, how, watch, rows=few)
        for name, how, k, few in zip("ab", tried, jax.random.split(key), rows, strict=True)
    ]
    first, second = finished(jax.random.fold_in(key, 3), learnt, [one.represent() for one in learnt], labels)
    return first.scores, second.scores


def _rank(x: Array, t: Any, groups: Any) -> float:
    """In how many directions scores vary within treatments: `(tr C)^2 / tr C^2` of their covariance."""
    own = np.asarray(within(x, jnp.asarray(t), groups), float)
    covariance = own.T @ own
    squares = float((covariance**2).sum())
    return float(np.trace(covariance)) ** 2 / squares if squares else 0.0
