"""Predicting one modality from the other, trained through a coupling of samples that were never paired."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Key

from psa_jax.arguments import checked
from psa_jax.devices import cores, each_run, side_by_side
from psa_jax.predict.losses import Law, Loss, Samples, draw_loss, exact_loss, targets
from psa_jax.progress import Progress, watching
from psa_jax.propensity.augment import as_tree
from psa_jax.propensity.checks import num_outputs
from psa_jax.propensity.loop import Fitted, minimise
from psa_jax.propensity.model import CHUNK, Model, logits
from psa_jax.propensity.nets import default_model
from psa_jax.propensity.training import Training, check_training
from psa_jax.types import Array, Augment, Float, KeyArray, PyTree, float_dtype


@checked
def fit_predictor(
    key: KeyArray,
    model: Model | None,
    x_a: Float[Array, "n ..."],
    x_b: Float[Array, "m ..."],
    coupling: Law,
    *,
    loss: Loss = "barycentric",
    training: Training = Training(),
    valid: Samples | None = None,
    augment: Augment | None = None,
    on_epoch: Callable[..., None] | None = None,
    progress: Progress = False,
) -> Fitted:
    r"""Trains a model that predicts modality b from modality a, through a coupling of their samples.

    Three losses, each a mean over features and over samples that have a partner. With `y_i` a sample of b, and `P` the
    coupling:

    - "unbiased": the projected loss `(y_i - E[f(x_j) | i])²` over samples i of b, estimated without bias, in value and
      gradient, from two independent draws `j, j' ~ P(. | i)`: `(y_i - f(x_j)) (y_i - f(x_j'))`. What is fitted is
      consistent where the partners of i have the mean latent of i. It is an inverse problem: the softer the coupling,
      the less it constrains f, and the more it needs validation data; on the data sets of `benchmarks/RESULTS.md` the
      other two predict better through every coupling but the true pairs.
    - "sampled": `E[(y_i - f(x_j))² | i]` from one draw; its minimiser `f(x) = E[y | x]` averages over what the
      coupling leaves open, as the next one does. As an estimate of the projected loss it is biased by the variance of
      `f(x_j)`.
    - "barycentric": `(f(x_i) - E[y_j | i])²` over samples i of a: plain regression on projected targets. No draws.

    Draws are made anew in every epoch, one pass over the samples. Targets are compared as they are: give them a common
    scale of about one. To predict a from b, exchange the data and give `coupling.T`.

    Args:
        key: decides initial parameters, order, draws, augmentation and dropout.
        model: see `Model`; its outputs are the predictions, `[n, d]` for targets `[m, ...]` of d numbers each. None is
            the default that `align` has for such inputs; the result keeps it. Static.
        x_a: inputs `[n, ...]`.
        x_b: targets `[m, ...]`; predicted as vectors.
        coupling: of `n` rows and `m` columns; for the default loss `alignment.projection.law`, whose averages are
            believed only as far as labels confirm them.
        loss: static; by default the one that predicts best through every learnt coupling of `benchmarks/RESULTS.md`.
        training, augment, on_epoch: as in `fit`; augment changes inputs only.
        progress: as in `align`, in place of `on_epoch`.
        valid: `(x_a, x_b, coupling)` of other samples: the parameters of the epoch with the lowest error on them are
            returned. The error is computed exactly, without draws and without augmentation: the barycentric loss, or
            for the other two the sampled loss, the expected squared error of a prediction under the coupling. (The
            projected loss could not judge: it does not see an f that overshoots as long as its averages fit.) Samples
            that were held back have one: `blockwise(sinkhorn)(alignment.score_a(x), alignment.score_b(y), groups)`.

    Returns:
        Parameters, history and `unmatched`, the number of samples that the loss left out because they have no partner
        (of b for the first two losses, of a for the last). Under "unbiased" the training loss may be negative.

    Raises:
        ValueError: a coupling or model that does not fit the data, an unknown loss, no sample with a partner, features
            that are not finite (where they are not traced).

    Example:
        >>> from psa_jax.match import known_pairs
        >>> from psa_jax.propensity.nets import linear
        >>> x = jnp.linspace(-1, 1, 64)[:, None]
        >>> pairs, quick = known_pairs(jnp.arange(64), 64), Training(epochs=2)
        >>> fitted = fit_predictor(jax.random.key(0), linear(1), x, 2 * x, pairs, training=quick)
        >>> predict(linear(1), fitted, x).shape, int(fitted.unmatched)
        ((64, 1), 0)

    References:
        Xi et al., NeurIPS 2024 (arXiv 2404.01595), section 4; two-sample loss: Hartford et al., Deep IV, ICML 2017.
    """
    model = _check(model, x_a, x_b, coupling, valid, loss, training)
    training = training.resolved((x_a if loss == "barycentric" else x_b).shape[0], judged=valid is not None)
    with watching(progress) as watch:
        assert training.epochs is not None
        watch.begin("predictor", training.epochs, epochs=training.epochs)
        on_epoch = on_epoch or watch.on_epoch
        settings = {"model": model, "loss": loss, "training": training, "on_epoch": on_epoch}
        return _fit(key, x_a, x_b, coupling, valid, as_tree(augment), {}, **settings)


@checked
def fit_predictor_ensemble(
    keys: Key[Array, " members"],
    model: Model | None,
    x_a: Float[Array, "n ..."],
    x_b: Float[Array, "m ..."],
    coupling: Law,
    *,
    loss: Loss = "barycentric",
    training: Training = Training(),
    valid: Samples | None = None,
    augment: Augment | None = None,
    on_epoch: Callable[..., None] | None = None,
    progress: Progress = False,
) -> Fitted:
    """Trains one predictor for each key: by `vmap` on accelerators, as many at once as there are cores on a CPU.

    Args:
        keys: `[members]`.
        model, x_a, x_b, coupling, loss, training, valid, augment, on_epoch, progress: as in `fit_predictor`.

    Returns:
        `Fitted` with a leading axis `[members]` on every leaf; its `params` go to `predict` with `members=True`.

    Raises:
        ValueError: as `fit_predictor`, and for keys that are not `[members]`.
    """
    if jnp.ndim(keys) != 1 or not keys.size:
        raise ValueError(f"keys: expected [members] typed keys, at least one, got shape {jnp.shape(keys)}")
    model = _check(model, x_a, x_b, coupling, valid, loss, training)
    training = training.resolved((x_a if loss == "barycentric" else x_b).shape[0], judged=valid is not None)
    with watching(progress) as watch:
        assert training.epochs is not None
        total = keys.shape[0] * training.epochs
        watch.begin("predictor", total, epochs=training.epochs, together=cores())
        settings = {"model": model, "loss": loss, "training": training, "on_epoch": on_epoch or watch.on_epoch}
        shared, runs = (x_a, x_b, coupling, valid, as_tree(augment)), (keys, jnp.arange(keys.shape[0]))
        return side_by_side(_ensemble, shared, runs, **settings)


@checked
def predict(
    model: Model | None, params: PyTree, x: Float[Array, "n ..."], *, members: bool = False, chunk: int = CHUNK
) -> Float[Array, "n d"]:
    """What a model outputs in evaluation mode, at most `chunk` (static) samples at a time.

    Args:
        model: static; None for the one that `params`, a `Fitted`, was made with.
        params: what `fit_predictor` returned, or the `params` of it.
        x: inputs `[n, ...]`.
        members: static; whether `params` has a leading axis of ensemble members, whose predictions are averaged.
        chunk: static; changes no result.

    Returns:
        `[n, d]`; differentiable in `params` and `x`.

    Raises:
        ValueError: no model.
    """
    if isinstance(params, Fitted):
        model, params = model or params.model, params.params
    if not isinstance(model, Model):
        raise ValueError(f"model: expected psa_jax.Model, or None with a Fitted that keeps one, got {model!r}")
    return _predict(model, params, x, members, chunk)


@functools.partial(jax.jit, static_argnames=("model", "members", "chunk"))
def _predict(model: Model, params: PyTree, x: Array, members: bool, chunk: int) -> Array:
    if members:
        return jax.lax.map(lambda member: logits(model, member, x, chunk), params).mean(0)
    return logits(model, params, x, chunk)


def _train(
    key: KeyArray,
    x_a: Array,
    x_b: Array,
    coupling: Law,
    valid: Samples | None,
    augment: Augment | None,
    names: dict[str, Array],
    model: Model,
    loss: Loss,
    training: Training,
    on_epoch: Callable[..., None] | None,
) -> Fitted:
    key_init, key_loop = jax.random.split(key)
    target = targets(loss, x_b, coupling)
    num_samples = target.y.shape[0]

    def outputs(params: PyTree, ids: Array, key: KeyArray) -> tuple[Array, PyTree]:
        key_augment, key_apply = jax.random.split(key)
        batch = x_a[ids] if augment is None else augment(key_augment, x_a[ids])
        out, params = model.apply(params, batch, train=True, key=key_apply)
        dtype = float_dtype(out, target.y)
        return out.astype(dtype), params

    def draw(key: KeyArray) -> tuple[Array, ...]:
        ids = jnp.arange(num_samples)
        if loss == "barycentric":
            return (ids, ids)
        keys = jax.random.split(key, 2 if loss == "unbiased" else 1)
        drawn = (coupling.T.sample(k) for k in keys)
        # The loss masks samples without a partner; what stands in for it is any input, not always the same one.
        return (ids, *(jnp.where(j >= 0, j, ids % x_a.shape[0]) for j in drawn))

    def batch_loss(params: PyTree, rows: tuple[Array, ...], key: KeyArray) -> tuple[Array, PyTree]:
        ids, *partners = rows
        out, params = outputs(params, jnp.concatenate(partners), key)  # one batch: one set of batch statistics
        return draw_loss(jnp.split(out, len(partners)), target.y[ids].astype(out.dtype), target.matched[ids]), params

    return dataclasses.replace(
        minimise(
            key_loop,
            (params := model.init(key_init, x_a)),
            model.trainable(params),
            num_samples,
            batch_loss,
            draw=draw,
            valid_loss=None if valid is None else functools.partial(exact_loss, model=model, loss=loss, valid=valid),
            training=training,
            model=model,
            on_epoch=on_epoch,
            names=names,
        ),
        unmatched=(~target.matched).sum(dtype=jnp.int32),
    )


_fit = jax.jit(_train, static_argnames=("model", "loss", "training", "on_epoch"))


@functools.partial(jax.jit, static_argnames=("model", "loss", "training", "on_epoch"))
def _ensemble(
    shared: Any,
    runs: Any,
    *,
    model: Model,
    loss: Loss,
    training: Training,
    on_epoch: Callable[..., None] | None,
) -> Fitted:
    def one(shared: Any, run: tuple[KeyArray, Array]) -> Fitted:
        x_a, x_b, coupling, valid, augment = shared
        key, member = run
        return _train(key, x_a, x_b, coupling, valid, augment, {"member": member}, model, loss, training, on_epoch)

    return each_run(one, shared, runs, mesh=None, together=jax.default_backend() != "cpu")


def _check(
    model: Model | None, x_a: Array, x_b: Array, coupling: Law, valid: Samples | None, loss: Loss, training: Training
) -> Model:
    """Raises what is wrong by name; returns the model, the default one for None."""
    if loss not in ("unbiased", "sampled", "barycentric"):
        raise ValueError(f"loss: expected 'unbiased', 'sampled' or 'barycentric', got {loss!r}")
    check_training(training, judged=valid is not None)
    _check_samples("", (x_a, x_b, coupling), loss)
    if valid is not None:
        if len(valid) != 3:
            raise ValueError(f"valid: expected (x_a, x_b, coupling), got {len(valid)} entries")
        _check_samples("valid: ", valid, loss)
        for name, ours, theirs in (("x_a", x_a, valid[0]), ("x_b", x_b, valid[1])):
            if ours.shape[1:] != theirs.shape[1:]:
                raise ValueError(f"valid: {name}: expected features {ours.shape[1:]}, got {theirs.shape[1:]}")
    wanted = int(np.prod(x_b.shape[1:]))
    model = model or default_model("model", x_a, wanted, width=256)
    if (outputs := num_outputs(model, x_a.shape[1:], x_a.dtype)) != wanted:
        raise ValueError(f"model: expected {wanted} outputs, one for each number of a target, got {outputs}")
    return model


def _check_samples(where: str, samples: Samples, loss: Loss) -> None:
    x_a, x_b, coupling = samples
    for name, x, rows in (("x_a", x_a, coupling.shape[0]), ("x_b", x_b, coupling.shape[1])):
        if x.ndim < 2 or not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"{where}{name}: expected float features [{rows}, ...], got {x.dtype} {x.shape}")
        if x.shape[0] != rows:
            raise ValueError(f"{where}{name}: expected {rows} samples, as in the coupling, got {x.shape[0]}")
        if not isinstance(x, Tracer) and not np.isfinite(np.asarray(x)).all():
            raise ValueError(f"{where}{name}: expected finite features, got NaN or infinity")
    if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(coupling)):
        law = coupling if loss == "barycentric" else coupling.T
        if not bool((law.apply(jnp.ones(law.shape[1])) > 0.5).any()):
            raise ValueError(f"{where}coupling: expected at least one sample with a partner, got none")
