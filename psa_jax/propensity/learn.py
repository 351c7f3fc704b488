"""One modality on its own: its classifiers, calibration and scores, and what scores new samples of it."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from psa_jax.data.samples import Modality
from psa_jax.data.source import Source, reading
from psa_jax.progress import Watch
from psa_jax.propensity.augment import as_tree
from psa_jax.propensity.batches import augment_beside, batches_of, beside, log_prior_given, row_of
from psa_jax.propensity.calibration import Calibration, calibration
from psa_jax.propensity.checks import num_outputs
from psa_jax.propensity.crossfit import crossfit_members
from psa_jax.propensity.fit import fit_ensemble
from psa_jax.propensity.learner import Learner
from psa_jax.propensity.loop import Fitted
from psa_jax.propensity.model import Model, logits
from psa_jax.propensity.nets import default_model
from psa_jax.propensity.scorer import Scorer, averaged
from psa_jax.propensity.scores import TEMPERED, RelativeTo, Tempered, from_logits, log_prior
from psa_jax.types import Array, Float, KeyArray, PyTree, pytree


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
        logits: of the samples to score.
        held_out: of the samples that judge, whose labels are `labels`; None where they are the same.
        labels: see `held_out`.
        t: the treatments that were learnt.
        given: batches, those of `labels`, and those of the samples to score; or None.
        learner: all settings.
        fitted: the classifiers.
        scorer: what scores new samples, without temperature and frequencies.
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
        bad = np.flatnonzero(~np.asarray(finite))
        if bad.size:
            raise ValueError(
                f"modality {self.name}: expected finite scores, got NaN or infinity in {bad.size} of "
                f"{scores.shape[0]} rows, the first at row {bad[0]}"
            )
        changes = {"temperature": calibrated.temperature, "log_prior": prior, "weights": weights}
        scorer = dataclasses.replace(self.scorer, **changes)
        return Representation(scores, member_scores, self.fitted, calibrated, scorer)


def classifier(name: str, modality: Modality, num_treatments: int, learner: Learner) -> Model:
    """The learner's model, or the default one for such features; a `ValueError` if it does not fit them."""
    x = beside(modality.x, modality.batch, batches_of(name, modality))
    model = learner.model or default_model(f"modality {name}: model", x, num_treatments)
    if (outputs := num_outputs(model, x.shape[1:], x.dtype)) != num_treatments:
        raise ValueError(
            f"modality {name}: model: expected {num_treatments} logits, one for each treatment, got {outputs}"
        )
    return model


def learn(
    key: KeyArray,
    name: str,
    modality: Modality,
    num_treatments: int,
    shared: np.ndarray,
    learner: Learner,
    watch: Watch,
    *,
    target: Modality | None = None,
    valid: Modality | None = None,
    mesh: Mesh | None = None,
) -> Learnt:
    """Fits classifiers of the treatment to one modality and asks them of samples of it. Host only; see `align`.

    Args:
        key: a typed key.
        name: of the modality, for messages.
        modality: what to learn from.
        num_treatments: the number of treatment codes.
        shared: the treatments that make the scores' columns.
        learner: all settings.
        watch: who is told of the progress.
        target: the samples to score; None scores those of `modality`, by cross-fitting.
        valid: held-out samples, with a target only.
        mesh: the devices that train.

    Raises:
        ValueError: a model of another number of outputs, no default model for such features, training that diverged.
    """
    model = classifier(name, modality, num_treatments, learner)
    if isinstance(learner.transform, RelativeTo) and learner.transform.code not in shared:
        raise ValueError(
            f"modality {name}: transform: expected relative_to one of the treatments that both modalities have, "
            f"{shared.tolist()}, got {learner.transform.code}"
        )
    batches, augment, features = batches_of(name, modality), learner.augment, modality.x.shape[1:]
    if batches is not None:
        augment = augment_beside(augment, features[0])
    scored = modality if target is None else target
    modality = _widened(modality, batches)
    target, valid = (None if side is None else _widened(side, batches) for side in (target, valid))
    folds = learner.folds if target is None else 0
    trained = modality.x.shape[0] if not folds else modality.x.shape[0] * (folds - 2) // folds
    training = learner.training.annealed(max(trained, 1), judged=True)
    assert training.epochs is not None
    runs = learner.members * (learner.folds if target is None or valid is None else 1)
    watch.begin("classifiers", runs * training.epochs, modality=name, epochs=training.epochs)
    keys = jax.random.split(key, learner.members)
    read = [(f"modality {name}: x", side.x) for side in (modality, target, valid) if side is not None]
    with reading(*read) as wait:
        if target is None or valid is None:
            found = crossfit_members(
                keys, model, modality.x, modality.t, learner.folds, training, augment, None, watch.on_epoch, mesh
            )
            target_logits, _, fitted = wait(found)
            held_out, labels = None, modality.t
        else:
            fitted = fit_ensemble(
                keys,
                model,
                modality.x,
                modality.t,
                valid=(valid.x, valid.t),
                training=training,
                augment=augment,
                on_epoch=watch.on_epoch,
                mesh=mesh,
            )
            target_logits, held_out = wait([_member_logits(model, fitted.params, x) for x in (target.x, valid.x)])
            labels = valid.t
    if (np.asarray(fitted.history.best_epoch) < 0).any():
        raise ValueError(
            f"modality {name}: expected training to converge, but the validation loss was never finite "
            "(is the augmentation or the learning rate too large?)"
        )
    columns, transform = jnp.asarray(shared), as_tree(learner.transform)
    given = None if batches is None else (batches, (modality if valid is None else valid).batch, scored.batch)
    zero = jnp.zeros((), target_logits.dtype)
    scorer = Scorer(zero, None, columns, transform, features, modality.x.dtype.name, model, batches)
    return Learnt(name, target_logits, held_out, labels, modality.t, given, learner, fitted, scorer)


def _widened(side: Modality, batches: Array | None) -> Modality:
    """The samples as classifiers see them, with their batch beside the features."""
    return dataclasses.replace(side, x=beside(side.x, side.batch, batches))


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


@functools.partial(jax.jit, static_argnames="model")
def _member_logits(model: Model, params: PyTree, x: Array | Source) -> Float[Array, "members n K"]:
    """The logits of an ensemble, whose params have a leading axis `[members]`."""
    return jax.lax.map(lambda member: logits(model, member, x), params)
