"""The training loop: one scan over epochs and batches that keeps the best parameters."""

import dataclasses
import inspect
import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from psa_jax.propensity.model import Model
from psa_jax.propensity.training import ADAMW, Training
from psa_jax.types import Array, Float, Int, KeyArray, PyTree, known, pytree, static, take

_TELLING = threading.RLock()


@pytree
class History:
    """What happened in training.

    Attributes:
        train_loss: `[epochs]` mean loss of each epoch, inf for epochs that early stopping skipped.
        valid_loss: `[epochs]` loss on the validation data, inf where there was none or the epoch was skipped.
        best_epoch: the epoch whose parameters are returned; without validation data the last one, and -1 (the
            initial parameters) if the validation loss was never finite.
        epochs_run: how many epochs ran.
    """

    train_loss: Float[Array, "... epochs"]
    valid_loss: Float[Array, "... epochs"]
    best_epoch: Int[Array, "..."]
    epochs_run: Int[Array, "..."]


@pytree
class Fitted:
    """Parameters and how they came about; ensembles and folds have a leading axis on every leaf.

    Attributes:
        params: what `model.apply` takes.
        history: the losses.
        unmatched: samples left out because the coupling has no partner for them (`fit_predictor`); 0 elsewhere.
        model: static; what the parameters are of, where `fit` or its like made them.
    """

    params: PyTree
    history: History
    unmatched: Int[Array, "..."] = dataclasses.field(default_factory=lambda: jnp.zeros((), jnp.int32))
    model: Model | None = static(default=None)

    def __repr__(self) -> str:
        """Three lines: how many parameters, how long the training, how well it went."""
        leaves = [leaf for leaf in jax.tree.leaves(self.params) if hasattr(leaf, "size")]
        epochs, best = self.history.epochs_run, self.history.best_epoch
        lead = tuple(getattr(best, "shape", ()))
        runs = f" of {' x '.join(map(str, lead))} runs" if lead else ""
        lines = [f"Fitted{runs}: {sum(leaf.size for leaf in leaves)} parameters in {len(leaves)} arrays"]
        if known(epochs, best, self.history.train_loss, self.history.valid_loss):
            lines.append(f"  epochs run {_span(epochs)}, best epoch {_span(best)}")
            losses = [(name, getattr(self.history, f"{name}_loss")) for name in ("train", "valid")]
            told = [f"{name} {_span(_least(loss))}" for name, loss in losses if np.isfinite(np.asarray(loss)).any()]
            lines.append(f"  least loss: {', '.join(told)}")
        return "\n".join(lines)


def minimise(
    key: KeyArray,
    params: PyTree,
    trainable: PyTree,
    num_samples: int,
    loss: Callable[[PyTree, Any, KeyArray], tuple[Array, PyTree]],
    *,
    draw: Callable[[KeyArray], PyTree] | None = None,
    ahead: bool = False,
    valid_loss: Callable[[PyTree], Array] | None,
    training: Training,
    model: Model | None = None,
    on_epoch: Callable[..., None] | None = None,
    names: dict[str, Array] | None = None,
) -> Fitted:
    """The training loop under `fit`, for any loss; to be called inside a jitted function.

    Args:
        key: decides order and what `loss` draws.
        params: initial parameters.
        trainable: tree of Python bools of the structure of `params`.
        num_samples: how many samples there are.
        loss: `(params, ids [batch], key) -> (loss, params)`, the returned params carrying running statistics.
        draw: `key -> tree [num_samples, ...]`, drawn anew every epoch; `loss` gets its rows in place of ids.
        ahead: whether `loss` gets, in place of ids, these and those of the epoch's next step, -1 after the last.
        valid_loss: `params -> loss`, or None to return the last parameters.
        training: resolved; its optimizer sees only what is trainable (other leaves are None).
        model: what the parameters are of, for the result to keep.
        on_epoch: as in `fit`.
        names: numbers by the name of the parameter under which `on_epoch` gets them, if it has such.
    """
    optimizer, epochs, patience = training.optimizer or ADAMW, training.epochs, training.patience
    assert epochs is not None
    told: dict[str, Any] = {} if on_epoch is None else _accepted(on_epoch, names or {})
    batch_size = min(training.batch_size, num_samples)
    steps = num_samples // batch_size
    with jax.numpy_dtype_promotion("standard"):  # optax relies on it
        state = optimizer.init(_part(params, trainable, True))

    def step(carry: Any, inputs: Any) -> Any:
        (params, state), (rows, key) = carry, inputs
        fixed = _part(params, trainable, False)
        moving = _part(params, trainable, True)
        grad = jax.value_and_grad(lambda moving: loss(_join(moving, fixed), rows, key), has_aux=True)
        (value, after), grads = grad(moving)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(grads, state, moving)
            moving = optax.apply_updates(moving, updates)
        return (_join(moving, _part(after, trainable, False)), state), value

    def run(carry: Any, epoch: Array) -> Any:
        params, state, best = carry
        key_order, key_steps, key_draw = jax.random.split(jax.random.fold_in(key, epoch), 3)
        ids = jax.random.permutation(key_order, num_samples)[: steps * batch_size].reshape(steps, batch_size)
        rows = ids if draw is None else take(draw(key_draw), ids)
        rows = (ids, jnp.concatenate([ids[1:], jnp.full_like(ids[:1], -1)])) if ahead else rows
        inputs = (rows, jax.random.split(key_steps, steps))
        (params, state), losses = jax.lax.scan(step, (params, state), inputs)
        train = losses.mean().astype(jnp.float32)
        valid = jnp.full((), jnp.inf, jnp.float32)
        if valid_loss is not None:
            valid = valid_loss(params).astype(jnp.float32)
            best = _where(valid < best[1], (params, valid, epoch), best)
        if on_epoch is not None:
            jax.debug.callback(_one_at_a_time(on_epoch), epoch, train, valid, **told)
        return (params, state, best), (train, valid, True)

    def skip(carry: Any, epoch: Array) -> Any:
        never = jnp.full((), jnp.inf, jnp.float32)  # not NaN: jax_debug_nans stays usable
        return carry, (never, never, False)

    def epoch(carry: Any, index: Array) -> Any:
        if patience is None or valid_loss is None:
            return run(carry, index)
        return jax.lax.cond(index - carry[2][2] > patience, skip, run, carry, index)

    none = (params, jnp.full((), jnp.inf, jnp.float32), jnp.full((), -1, jnp.int32))
    best = None if valid_loss is None else none
    indices = jnp.arange(epochs, dtype=jnp.int32)
    (params, _, best), (train, valid, ran) = jax.lax.scan(epoch, (params, state, best), indices)
    epochs_run = ran.sum(dtype=jnp.int32)
    best_epoch = epochs_run - 1
    if best is not None:
        params, _, best_epoch = best
    return Fitted(params, History(train, valid, best_epoch, epochs_run), model=model)


def _one_at_a_time(function: Callable[..., None]) -> Callable[..., None]:
    """The same, called once at a time: trainings side by side call from threads of their own."""

    def call(*args: Any, **named: Any) -> None:
        with _TELLING:
            function(*args, **named)

    return call


def _least(loss: Array) -> np.ndarray:
    values = np.asarray(loss, float)
    return np.where(np.isfinite(values), values, np.inf).min(-1)


def _span(values: Any) -> str:
    """One number, or the range of several."""
    values = np.asarray(values)
    low, high = (f"{value:.4g}" for value in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"


def _accepted(function: Callable[..., Any], names: dict[str, Array]) -> dict[str, Array]:
    """Those of the names that the function has parameters for."""
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # a builtin that does not tell
        return {}
    everything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return {name: value for name, value in names.items() if everything or name in parameters}


def _part(params: PyTree, trainable: PyTree, wanted: bool) -> PyTree:
    return jax.tree.map(lambda leaf, flag: leaf if bool(flag) == wanted else None, params, trainable)


def _join(one: PyTree, other: PyTree) -> PyTree:
    return jax.tree.map(lambda p, q: q if p is None else p, one, other, is_leaf=lambda leaf: leaf is None)


def _where(condition: Array, one: PyTree, other: PyTree) -> PyTree:
    return jax.tree.map(lambda p, q: jax.lax.select(jnp.broadcast_to(condition, jnp.shape(p)), p, q), one, other)
