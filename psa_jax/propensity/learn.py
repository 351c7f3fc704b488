"""One modality on its own: its classifiers, calibration and scores, and what scores new samples of it."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from psa_jax.data.look import look
from psa_jax.data.samples import Modality
from psa_jax.progress import Watch
from psa_jax.propensity.augment import as_tree
from psa_jax.propensity.batches import augment_beside, batches_of, beside
from psa_jax.propensity.checks import num_outputs
from psa_jax.propensity.learner import Learner
from psa_jax.propensity.model import Model
from psa_jax.propensity.nets import default_model
from psa_jax.propensity.representation import Learnt
from psa_jax.propensity.scorer import Scorer
from psa_jax.propensity.scores import RelativeTo
from psa_jax.propensity.task import Task, Trained
from psa_jax.types import Array, KeyArray

MOST_LOGITS, FEWEST = 2**23, 2048  # that are looked at, of all members; samples


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
    rows: np.ndarray | None = None,
    stage: Callable[[Task], Trained] = Task.train,
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
        rows: the samples to look at, of those to score (`rows_to_look_at`): then no logits of all are held.
        stage: what trains, or has what was trained before.
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
    judge, place = modality if valid is None else valid, rows  # who says how far logits can be trusted; which of them
    if valid is not None and rows is not None:
        place = look(key, [valid.t], max(FEWEST, rows.size))[0]
    task = Task(
        name, jax.random.split(key, learner.members), model, modality, target, valid, folds, training, augment, rows,
        place, watch, mesh,
    )  # fmt: skip
    trained = stage(task)
    if (np.asarray(trained.fitted.history.best_epoch) < 0).any():
        raise ValueError(
            f"modality {name}: expected training to converge, but the validation loss was never finite "
            "(is the augmentation or the learning rate too large?)"
        )
    columns, transform = jnp.asarray(shared), as_tree(learner.transform)
    given = None if batches is None else (batches, _some(judge.batch, place), _some(scored.batch, rows))
    zero = jnp.zeros((), trained.logits.dtype)
    scorer = Scorer(zero, None, columns, transform, features, modality.x.dtype.name, model, batches)
    return Learnt(
        name, trained.logits, trained.held_out, _some(judge.t, place), modality.t, given, learner, trained.fitted,
        scorer, rows, None if rows is None else task.panel(trained.fitted, trained.fold), scored.batch,
    )  # fmt: skip


def rows_to_look_at(
    key: KeyArray, labels: Sequence[Any], learners: Sequence[Learner], num_treatments: int, columns: int
) -> list[np.ndarray | None]:
    """The samples of each modality whose logits settle how scores are made; None where those of all are held.

    Args:
        key: decides which.
        labels: the treatments of the samples to score, of each modality.
        learners: of each modality.
        num_treatments: that classifiers tell apart.
        columns: how many of them scores are of.

    Raises:
        ValueError: learners that would make scores of different numbers of columns.
    """
    components = {learner.components for learner in learners}
    if len(components) > 1:
        raise ValueError(f"components: expected one number for all modalities, got {sorted(components)}")
    if columns <= components.pop():
        return [None] * len(labels)
    members = max(learner.members for learner in learners)
    return list(look(key, labels, max(FEWEST, MOST_LOGITS // (members * num_treatments))))


def _some(values: Any, rows: np.ndarray | None) -> Any:
    return values if values is None or rows is None else values[rows]


def _widened(side: Modality, batches: Array | None) -> Modality:
    """The samples as classifiers see them, with their batch beside the features."""
    return dataclasses.replace(side, x=beside(side.x, side.batch, batches))
