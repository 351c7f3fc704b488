"""Fitting a classifier of the treatment, or an ensemble of them, as one compiled program."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Key

from psa_jax.arguments import checked
from psa_jax.data.codes import check_codes, count_codes
from psa_jax.data.source import Source, has_source, map_parts, reading
from psa_jax.devices import check_mesh, each_run, side_by_side, spread
from psa_jax.propensity.augment import as_tree, in_turn
from psa_jax.propensity.checks import check
from psa_jax.propensity.loop import Fitted, minimise
from psa_jax.propensity.model import CHUNK, Model, initial
from psa_jax.propensity.training import Training
from psa_jax.types import Array, Augment, Float, Int, KeyArray, PyTree


@checked
def fit(
    key: KeyArray,
    model: Model,
    x: Float[Array, "n ..."] | Source,
    t: Int[Array, " n"],
    *,
    training: Training = Training(),
    valid: tuple[Array | Source, Array] | None = None,
    augment: Augment | None = None,
    class_weights: Float[Array, " K"] | None = None,
    on_epoch: Callable[..., None] | None = None,
) -> Fitted:
    """Trains a classifier of the treatment; its logits are `log P(t | x)` up to an offset, the score.

    One compiled scan over epochs and batches (a fresh permutation every epoch, the remainder is left out).
    Static: model, training, on_epoch and all shapes; traced: key, data, class weights and the settings of augments
    that are pytrees. Give optimizers and callbacks that live at module level (or are made once): a new
    `optax.adam(...)` is a new function and compiles again.

    Args:
        key: decides initial parameters, order, augmentation and dropout.
        model: see `Model`; `model.init` gets all of `x`.
        x: features `[n, ...]`, float, or a `psa.source`.
        t: treatment codes `[n]`, integers in `[0, K)` for a model of K logits.
        training: optimizer, epochs, batch size and patience; see `Training`.
        valid: `(x, t)` of other samples. The parameters of the epoch with the lowest loss on them are
            returned.
        augment: `(key, batch) -> batch`, see `smoothing`. Validation inputs are augmented as well
            (once, with a fixed key), because it is the smoothed propensity that is estimated.
        class_weights: `[K]` factors of the loss of each class; a batch's loss is divided by its sum of
            weights.
        on_epoch: `(epoch, train_loss, valid_loss) -> None`, called on the host after every epoch. If it has parameters
            `member` or `fold`, `fit_ensemble` and `crossfit` tell it which of theirs it is.

    Returns:
        The parameters and the history.

    Raises:
        ValueError: empty data, wrong ranks, dtypes or lengths, labels out of range, fewer than two
            treatments, NaN or infinite features, numbers below 1, class weights of another shape, patience
            without validation data. Values are not looked at when they are traced.

    Example:
        >>> from psa_jax.propensity.nets import linear
        >>> x = jnp.arange(8.0)[:, None]
        >>> fitted = fit(jax.random.key(0), linear(2), x, jnp.arange(8) // 4, training=Training(epochs=3, batch_size=4))
        >>> fitted.history.train_loss.shape, int(fitted.history.epochs_run)
        ((3,), 3)

    References:
        Xi et al., Propensity Score Alignment of Unpaired Multimodal Data, NeurIPS 2024, arXiv 2404.01595,
        section 3.
    """
    with reading(*_features(x, valid)) as wait:
        x, t, valid = check(model, x, t, valid, class_weights, training)
        training = training.annealed(t.size, judged=valid is not None)
        settings: Any = {"model": model, "training": training, "on_epoch": on_epoch}
        return wait(_fit(key, x, t, valid, as_tree(augment), class_weights, {}, **settings))


@checked
def fit_ensemble(
    keys: Key[Array, " members"],
    model: Model,
    x: Float[Array, "n ..."] | Source,
    t: Int[Array, " n"],
    *,
    training: Training = Training(),
    valid: tuple[Array | Source, Array] | None = None,
    augment: Augment | tuple[Augment | None, ...] | None = None,
    class_weights: Float[Array, " K"] | None = None,
    on_epoch: Callable[..., None] | None = None,
    mesh: Mesh | None = None,
) -> Fitted:
    """Trains one classifier for each key: by `vmap` on accelerators, as many at once as there are cores on a CPU.

    Args:
        keys: `[members]`. Member i is what `fit(keys[i], ...)` gives, up to rounding.
        model, x, t, training, valid, class_weights: as in `fit`. Under `vmap` a member that has stopped early still
            computes, though its result does not change.
        augment: as in `fit`, or a tuple of several (None is none), which the members take in turn.
        on_epoch: called for every member, in no particular order of members.
        mesh: static; devices to spread the members over, each trained by one. Fewer members than devices are trained by
            all of them, which share every batch that they divide (not of a source).

    Returns:
        `Fitted` with a leading axis `[members]` on every leaf.

    Raises:
        ValueError: as `fit`, and for keys that are not `[members]`.

    Example:
        >>> from psa_jax.propensity.nets import linear
        >>> x = jnp.arange(8.0)[:, None]
        >>> keys = jax.random.split(jax.random.key(0), 2)
        >>> fitted = fit_ensemble(keys, linear(2), x, jnp.arange(8) // 4, training=Training(epochs=2))
        >>> fitted.history.train_loss.shape
        (2, 2)
    """
    check_mesh(mesh)
    if jnp.ndim(keys) != 1 or not keys.size:
        raise ValueError(f"keys: expected [members] typed keys, at least one, got shape {jnp.shape(keys)}")
    with reading(*_features(x, valid)) as wait:
        x, t, valid = check(model, x, t, valid, class_weights, training)
        training = training.annealed(t.size, judged=valid is not None)
        shared = x, t, valid, class_weights
        runs = keys, jnp.arange(keys.shape[0]), in_turn(augment, keys.shape[0])
        vectorize = jax.default_backend() != "cpu"
        static: Any = {
            "model": model, "training": training, "on_epoch": on_epoch, "vectorize": vectorize, "mesh": mesh,
        }  # fmt: skip
        if mesh is not None or has_source(shared):
            return wait(_ensemble(shared, runs, **static))
        return side_by_side(_ensemble, shared, runs, **static)


@checked
def class_weights(t: Int[Array, " n"], num_treatments: int) -> Float[Array, " K"]:
    """Inverse class frequencies, zero for absent classes, with mean one over the samples.

    Training with them estimates the propensity under equal treatment frequencies, so that no prior is left to
    divide out of the scores.

    Args:
        t: `[n]` integer codes; traced ones that are no code are ignored.
        num_treatments: K, static.

    Raises:
        ValueError: codes outside [0, K), if they are known.

    Example:
        >>> class_weights(jnp.array([0, 0, 0, 2]), 3).tolist()
        [0.6666666865348816, 0.0, 2.0]
    """
    check_codes("t", t, num_treatments)
    counts = count_codes(t, num_treatments)
    present = (counts > 0).astype(counts.dtype)
    return present * counts.sum() / (jnp.maximum(counts, 1) * jnp.maximum(present.sum(), 1))


def train_one(
    key: KeyArray,
    x: Float[Array, "n ..."] | Source,
    t: Int[Array, " n"],
    valid: tuple[Array | Source, Array] | None,
    augment: Any,
    weights: Array | None,
    names: dict[str, Array],
    model: Model,
    training: Training,
    on_epoch: Callable[..., None] | None,
) -> Fitted:
    """One classifier, inside a jitted function; the arguments are those of `fit`, checked, and names for `on_epoch`."""
    key_init, key_valid, key_loop = jax.random.split(key, 3)
    params = initial(model, key_init, x)

    def losses(out: Array, t: Array) -> tuple[Array, Array]:
        loss = optax.softmax_cross_entropy_with_integer_labels(out, t)
        weight = jnp.ones_like(loss) if weights is None else jnp.asarray(weights).astype(loss.dtype)[t]
        return loss * weight, weight

    def mean(loss: Array, weight: Array) -> Array:
        total = weight.sum()
        return jnp.where(total > 0, loss.sum() / jnp.where(total > 0, total, 1), 0)

    def loss(params: PyTree, rows: Any, key: KeyArray) -> tuple[Array, PyTree]:
        key_augment, key_apply = jax.random.split(key)
        ids, batch = (rows[0], x.read(*rows)) if isinstance(x, Source) else (rows, x[rows])
        batch = spread(batch)  # over devices that have no classifier of their own
        batch = batch if augment is None else augment(key_augment, batch)
        out, params = model.apply(params, batch, train=True, key=key_apply)
        return mean(*losses(out, t[ids])), params

    def smooth(ids: Array, rows: Array) -> Array:
        return rows if augment is None else augment(jax.random.fold_in(key_valid, ids[0]), rows)

    x_valid, t_valid = (x, t) if valid is None else valid
    if valid is not None and augment is not None and not isinstance(x_valid, Source):
        x_valid = map_parts(smooth, x_valid, CHUNK)

    def valid_loss(params: PyTree) -> Array:
        def part(ids: Array, rows: Array) -> tuple[Array, Array]:
            rows = smooth(ids, rows) if isinstance(x_valid, Source) else rows
            return losses(model.apply(params, rows, train=False, key=None)[0], t_valid[ids])

        return mean(*map_parts(part, x_valid, CHUNK))  # no logits of all samples are held

    return minimise(
        key_loop,
        params,
        model.trainable(params),
        t.size,
        loss,
        ahead=isinstance(x, Source),
        valid_loss=None if valid is None else valid_loss,
        training=training.falling(t.size),
        model=model,
        on_epoch=on_epoch,
        names=names,
    )


_fit = jax.jit(train_one, static_argnames=("model", "training", "on_epoch"))


@functools.partial(jax.jit, static_argnames=("model", "training", "on_epoch", "vectorize", "mesh"))
def _ensemble(
    shared: Any,
    runs: Any,
    *,
    model: Model,
    training: Training,
    on_epoch: Callable[..., None] | None,
    vectorize: bool,
    mesh: Mesh | None,
) -> Fitted:
    def one(shared: Any, args: tuple[KeyArray, Array, Any]) -> Fitted:
        x, t, valid, weights = shared
        key, member, augment = args
        return train_one(key, x, t, valid, augment, weights, {"member": member}, model, training, on_epoch)

    return each_run(one, shared, runs, mesh=mesh, together=vectorize, cut=not has_source(shared))


def _features(x: Any, valid: Any) -> tuple[tuple[str, Any], ...]:
    return ("x", x), ("valid: x", None if valid is None else valid[0])
