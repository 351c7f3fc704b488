"""Training networks of both modalities together."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from psa_jax.data.samples import Unpaired
from psa_jax.propensity.checks import num_outputs
from psa_jax.propensity.loop import minimise
from psa_jax.propensity.model import Model
from psa_jax.propensity.nets import default_model
from psa_jax.propensity.training import Training
from psa_jax.types import Array, KeyArray, PyTree


def encoders(data: Unpaired, model_a: Model | None, model_b: Model | None, outputs: int) -> tuple[Model, Model]:
    """The models given, or default ones, if they have as many outputs as they should. Host only."""
    found = []
    for name, model in (("a", model_a), ("b", model_b)):
        x = getattr(data, name).x
        model = model or default_model(f"model_{name}", x, outputs, width=256)
        if (got := num_outputs(model, x.shape[1:], x.dtype)) != outputs:
            raise ValueError(f"model_{name}: expected {outputs} outputs, got {got}")
        found.append(model)
    return found[0], found[1]


def minimise_jointly(
    key: KeyArray,
    models: dict[str, Model],
    params: dict[str, PyTree],
    sizes: tuple[int, int],
    loss: Callable[[Any, Array, Array, KeyArray], tuple[Array, Any]],
    training: Training,
) -> PyTree:
    """The parameters that `minimise` finds for several networks and batches of both modalities.

    Args:
        key: decides the batches and what `loss` draws.
        models: networks by name; they say what of their parameters is trained.
        params: initial parameters by the same names.
        sizes: samples of modality a and of modality b.
        loss: `(params, ids_a [batch], ids_b [batch], key) -> (loss, params)`. An epoch goes through modality a in
            random order; of modality b it draws with replacement.
        training: its epochs are over modality a.
    """

    def both(params: PyTree, ids: Array, key: KeyArray) -> tuple[Array, PyTree]:
        key_b, key_loss = jax.random.split(key)
        return loss(params, ids, jax.random.randint(key_b, ids.shape, 0, sizes[1]), key_loss)

    trainable = {name: model.trainable(params[name]) for name, model in models.items()}
    return minimise(
        key,
        params,
        trainable,
        sizes[0],
        both,
        valid_loss=None,
        training=training.resolved(sizes[0], judged=False),
    ).params


def check_finite(u: Array, v: Array) -> None:
    """Raises a `ValueError` if training diverged. Host only."""
    for name, embedding in (("a", u), ("b", v)):
        if not np.isfinite(np.asarray(embedding)).all():
            raise ValueError(
                f"modality {name}: expected finite embeddings, got NaN or infinity: training diverged (is the learning "
                "rate too large?)"
            )
