"""One modality on its own: its classifier, calibration and scores, and what scores new samples of it."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from psa_jax.alignment import Calibration, Scorer
from psa_jax.crossfit import crossfit
from psa_jax.data import Modality
from psa_jax.loop import Fitted
from psa_jax.model import Model, logits
from psa_jax.nets import conv, mlp
from psa_jax.score import calibrate, expected_calibration_error, log_prior, reliability
from psa_jax.train import fit_ensemble, num_outputs
from psa_jax.types import Array, Augment, Float, KeyArray, PyTree, pytree

STEPS = 2000


@pytree
class Representation:
    """Scores of one modality and where they come from; the fields are those of `Alignment`."""

    scores: Float[Array, "n d"]
    member_scores: Float[Array, "members n d"]
    fitted: Fitted
    calibration: Calibration
    scorer: Scorer


def represent(
    key: KeyArray,
    name: str,
    modality: Modality,
    num_treatments: int,
    shared: np.ndarray,
    *,
    target: Modality | None,
    valid: Modality | None,
    model: Model | None,
    augment: Augment | None,
    optimizer: optax.GradientTransformation | None,
    epochs: int | None,
    batch_size: int,
    patience: int | None,
    members: int,
    folds: int,
    transform: Callable[[Any], Any],
    divide_prior: bool,
    on_epoch: Callable[[Any, Any, Any], None] | None,
) -> Representation:
    """Fits classifiers of the treatment to one modality and scores samples of it. Host only; see `align`.

    Args:
        name: of the modality, for messages.
        modality: what to learn from.
        num_treatments: the number of treatment codes.
        shared: the treatments that make the scores' columns.
        target: the samples to score; None scores those of `modality`, by cross-fitting.
        valid: held-out samples, with a target only.
        key, model, augment, optimizer, epochs, batch_size, patience, members, folds, transform, divide_prior, on_epoch:
            as in `align`.

    Raises:
        ValueError: a model of another number of outputs, no default model for such features, training that diverged,
            scores that are not finite.
    """
    model = model or default_model(name, modality.x, num_treatments)
    if (outputs := num_outputs(model, modality.x.shape[1:], modality.x.dtype)) != num_treatments:
        raise ValueError(f"model_{name}: expected {num_treatments} logits, one for each treatment, got {outputs}")
    rounds = default_epochs(modality.x, batch_size) if epochs is None else epochs
    options: dict[str, Any] = {
        "optimizer": optimizer,
        "epochs": rounds,
        "batch_size": batch_size,
        "patience": max(1, rounds // 5) if patience is None else patience,
        "augment": augment,
        "on_epoch": on_epoch,
    }
    keys = jax.random.split(key, members)
    if target is None or valid is None:
        runs = [crossfit(member, model, modality.x, modality.t, folds=folds, **options) for member in keys]
        target_logits = jnp.stack([run.logits for run in runs])
        held_out, labels = target_logits.mean(0), modality.t
        fitted = _stack([run.fitted for run in runs])
    else:
        fitted = fit_ensemble(keys, model, modality.x, modality.t, valid=(valid.x, valid.t), **options)
        target_logits, held_out = (_member_logits(model, fitted.params, x) for x in (target.x, valid.x))
        held_out, labels = held_out.mean(0), valid.t
    if (np.asarray(fitted.history.best_epoch) < 0).any():
        raise ValueError(
            f"modality {name}: expected training to converge, but the validation loss was never finite "
            "(is the augmentation or the learning rate too large?)"
        )
    calibration = _calibrate(held_out, labels)
    prior = log_prior(modality.t, num_treatments) if divide_prior else None
    scorer = Scorer(
        calibration.temperature,
        prior,
        jnp.asarray(shared),
        modality.x.shape[1:],
        modality.x.dtype.name,
        model,
        transform,
    )
    scores, member_scores = scorer.convert(target_logits.mean(0)), jnp.stack([scorer.convert(o) for o in target_logits])
    bad = np.flatnonzero(~np.isfinite(np.asarray(scores)).all(-1))
    if bad.size:
        raise ValueError(
            f"modality {name}: expected finite scores, got NaN or infinity in {bad.size} of {scores.shape[0]} "
            f"rows, the first at row {bad[0]}"
        )
    return Representation(scores, member_scores, fitted, calibration, scorer)


def default_model(name: str, x: Array, num_treatments: int) -> Model:
    """A perceptron for vectors, convolutions for images, with `num_treatments` outputs; `name` is the modality's."""
    if x.ndim == 2:
        return mlp((256, 256), num_treatments)
    if x.ndim == 4:
        return conv((32, 64, 128), num_treatments)
    raise ValueError(
        f"model_{name}: expected a model for features of shape [n, {', '.join(map(str, x.shape[1:]))}]; there is a "
        "default for vectors [n, d] and images [n, height, width, channels] only"
    )


def default_epochs(x: Array, batch_size: int) -> int:
    """As many passes over `x` as make 2000 steps, but at least 20 and at most 500."""
    return min(500, max(20, -(-STEPS // max(1, x.shape[0] // batch_size))))


def _stack(trees: list[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@functools.partial(jax.jit, static_argnames="model")
def _member_logits(model: Model, params: PyTree, x: Array) -> Float[Array, "members n K"]:
    """The logits of an ensemble, whose params have a leading axis `[members]`."""
    return jax.lax.map(lambda member: logits(model, member, x), params)


def _calibrate(held_out: Array, t: Array) -> Calibration:
    temperature = calibrate(held_out, t)
    log_p = jax.nn.log_softmax(held_out / temperature)
    return Calibration(
        temperature,
        -jnp.take_along_axis(log_p, t[:, None], axis=1).mean(),
        (jnp.argmax(held_out, axis=1) == t).mean(),
        expected_calibration_error(held_out, t),
        expected_calibration_error(held_out, t, temperature=temperature),
        *reliability(held_out, t, temperature=temperature),
    )
