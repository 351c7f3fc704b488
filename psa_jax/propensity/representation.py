"""Scores of one modality: of its classifiers' logits, calibrated, in the space that is common to all modalities."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psa_jax.data.source import reading
from psa_jax.propensity.batches import log_prior_given, row_of
from psa_jax.propensity.calibration import Calibration, calibration
from psa_jax.propensity.components import components
from psa_jax.propensity.learner import Learner
from psa_jax.propensity.loop import Fitted
from psa_jax.propensity.panel import Panel
from psa_jax.propensity.scorer import Scorer, averaged
from psa_jax.propensity.scores import TEMPERED, Tempered, from_logits, log_prior
from psa_jax.types import Array, Float, KeyArray, pytree


@pytree
class Representation:
    """Scores of one modality and where they come from; the fields are those of `Alignment`."""

    scores: Float[Array, "n d"]
    member_scores: Float[Array, "members n d"]
    fitted: Fitted
    calibration: Calibration
    scorer: Scorer


@dataclasses.dataclass(frozen=True)
class Learnt:
    """The classifiers of one modality, and their logits `[members, n, K]`, of which scores are made.

    Attributes:
        name: of the modality, for messages.
        logits: of the samples to score; with many treatments, of those to look at.
        held_out: of the samples that judge, whose labels are `labels`; None where they are the same.
        labels: see `held_out`.
        t: the treatments that were learnt.
        given: batches, those of `labels`, and those of the samples to score; or None.
        learner: all settings.
        fitted: the classifiers.
        scorer: what scores new samples, without temperature and frequencies.
        rows: the numbers `[h]` of the samples that are looked at, of those to score; None for all.
        panel: what scores all of them; None where all are looked at.
        batch: of all of them, or None.
    """

    name: str
    logits: Float[Array, "members n K"]
    held_out: Float[Array, "members h K"] | None
    labels: Any
    t: Any
    given: tuple[Any, Any, Any] | None
    learner: Learner
    fitted: Fitted
    scorer: Scorer
    rows: np.ndarray | None
    panel: Panel | None
    batch: Any

    @property
    def kinds(self) -> int:
        """How many augments the members take in turn."""
        augment = self.learner.augment
        return min(len(augment), self.learner.members) if isinstance(augment, tuple) else 1

    def represent(self, weights: Float[Array, " members"] | None = None) -> Representation:
        """Scores, calibrated anew, of all members or of those that count; a `ValueError` if some are not finite."""
        scores, member_scores, calibrated, prior, finite = _scores(
            self.logits, self.held_out, self.labels, self.t, self.scorer.treatments, self.scorer.transform, self.given,
            weights, self.learner.divide_prior,
        )  # fmt: skip
        self._check(finite, self.rows)
        changes = {"temperature": calibrated.temperature, "log_prior": prior, "weights": weights}
        scorer = dataclasses.replace(self.scorer, **changes)
        return Representation(scores, member_scores, self.fitted, calibrated, scorer)

    def represent_all(self, looked: Representation, scorer: Scorer) -> Representation:
        """Scores of all samples, by what was settled by those that were looked at."""
        assert self.panel is not None
        with reading((f"modality {self.name}: x", self.panel.x)) as wait:
            scores, member_scores, finite = wait(self.panel.scores(scorer, self.batch))
        self._check(finite, None)
        return dataclasses.replace(looked, scores=scores, member_scores=member_scores, scorer=scorer)

    def _check(self, finite: Any, rows: np.ndarray | None) -> None:
        bad = np.flatnonzero(~np.asarray(finite))
        if bad.size:
            number, first = len(finite), bad[0] if rows is None else rows[bad[0]]
            raise ValueError(
                f"modality {self.name}: expected finite scores, got NaN or infinity in {bad.size} of {number} rows, "
                f"the first at row {first}"
            )


def finished(
    key: KeyArray, learnt: Sequence[Learnt], sides: Sequence[Representation], labels: Sequence[Any]
) -> list[Representation]:
    """The scores of all samples, in one space for all modalities: one temperature, and of many treatments few columns.

    Args:
        key: see `components`.
        learnt: the modalities.
        sides: what `represent` gave, of each.
        labels: the treatments of the samples to score, of each.
    """
    sides = settled(sides)
    looked = [one.rows for one in learnt]
    if any(rows is None for rows in looked):
        return sides
    labels = [np.asarray(t)[rows] for t, rows in zip(labels, looked, strict=True)]
    number, looked = learnt[0].learner.components, [side.scores for side in sides]
    few = looked[0].shape[1] <= number  # by a transform of its own
    kept = [None] * len(sides) if few else components(key, looked, labels, number)
    scorers = [dataclasses.replace(side.scorer, components=one) for side, one in zip(sides, kept, strict=True)]
    return [one.represent_all(side, scorer) for one, side, scorer in zip(learnt, sides, scorers, strict=True)]


def settled(sides: Sequence[Representation]) -> list[Representation]:
    """The same with one temperature for all modalities whose transform is `tempered()` without one."""
    open_ones = [side.scores for side in sides if side.scorer.is_open]
    if not open_ones:
        return list(sides)
    transform = TEMPERED.settled(*open_ones)
    return [_tempered(side, transform) if side.scorer.is_open else side for side in sides]


@jax.jit
def _tempered(side: Representation, transform: Tempered) -> Representation:
    return dataclasses.replace(
        side,
        scores=transform(side.scores),
        member_scores=transform(side.member_scores),
        scorer=dataclasses.replace(side.scorer, transform=transform),
    )


@functools.partial(jax.jit, static_argnames="divide_prior")
def _scores(
    members: Array,
    held_out: Array | None,
    labels: Array,
    t: Array,
    columns: Array,
    transform: Callable[[Any], Any],
    given: tuple[Array, Array, Array | None] | None,
    weights: Array | None,
    divide_prior: bool,
) -> tuple[Array, Array, Calibration, Array | None, Array]:
    """Scores of the mean logits and of each member's, calibrated on those held out (on themselves if None).

    Treatments are as frequent as in `t`; `given` are the batches, those of `labels`, and those of the members' samples.
    """
    mean = averaged(members, weights)
    judged = mean if held_out is None else averaged(held_out, weights)
    found = calibration(judged, labels)
    prior = own = log_prior(t, members.shape[-1]) if divide_prior else None
    if divide_prior and given is not None:
        batches, told, scored = given
        of = judged / found.temperature
        prior = log_prior_given(of, labels, told, batches, log_prior(t, members.shape[-1]))
        own = prior[row_of(scored, batches, members.shape[1])]

    def convert(logits: Array) -> Array:
        return from_logits(
            logits, temperature=found.temperature, log_prior=own, transform=transform, treatments=columns
        )

    scores = convert(mean)
    return scores, jax.vmap(convert)(members), found, prior, jnp.isfinite(scores).all(-1)
