"""Predicting one modality from the other, trained through a coupling of samples that were never paired."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Key

from psa_jax.augment import as_tree
from psa_jax.blocked import Blocked
from psa_jax.coupling import Coupling
from psa_jax.loop import Fitted, minimise
from psa_jax.model import CHUNK, Model, logits
from psa_jax.train import ADAMW, BATCH_SIZE, EPOCHS, Options, num_outputs
from psa_jax.types import Array, Augment, Bool, Float, KeyArray, PyTree, float_dtype

Loss = Literal["unbiased", "sampled", "barycentric"]
Law = Blocked | Coupling
Samples = tuple[Array, Array, Law]


def fit_predictor(
    key: KeyArray,
    model: Model,
    x_a: Float[Array, "n ..."],
    x_b: Float[Array, "m ..."],
    coupling: Law,
    *,
    loss: Loss = "unbiased",
    optimizer: optax.GradientTransformation | None = None,
    epochs: int = EPOCHS,
    batch_size: int = BATCH_SIZE,
    valid: Samples | None = None,
    augment: Augment | None = None,
    patience: int | None = None,
    on_epoch: Callable[[Any, Any, Any], None] | None = None,
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
        model: see `Model`; its outputs are the predictions, `[n, d]` for targets `[m, ...]` of d numbers each. Static.
        x_a: inputs `[n, ...]`.
        x_b: targets `[m, ...]`; predicted as vectors.
        coupling: of `n` rows and `m` columns.
        loss: static.
        optimizer, epochs, batch_size, augment, patience, on_epoch: as in `fit`; augment changes inputs only.
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
        >>> from psa_jax.nets import linear
        >>> x = jnp.linspace(-1, 1, 64)[:, None]
        >>> fitted = fit_predictor(jax.random.key(0), linear(1), x, 2 * x, known_pairs(jnp.arange(64), 64), epochs=2)
        >>> predict(linear(1), fitted.params, x).shape, int(fitted.unmatched)
        ((64, 1), 0)

    References:
        Xi et al., NeurIPS 2024 (arXiv 2404.01595), section 4; two-sample loss: Hartford et al., Deep IV, ICML 2017.
    """
    options = Options(optimizer or ADAMW, epochs, batch_size, patience, on_epoch)
    _check(model, x_a, x_b, coupling, valid, loss, options)
    return _fit(key, x_a, x_b, coupling, valid, as_tree(augment), model=model, loss=loss, options=options)


def fit_predictor_ensemble(
    keys: Key[Array, " members"],
    model: Model,
    x_a: Float[Array, "n ..."],
    x_b: Float[Array, "m ..."],
    coupling: Law,
    *,
    loss: Loss = "unbiased",
    optimizer: optax.GradientTransformation | None = None,
    epochs: int = EPOCHS,
    batch_size: int = BATCH_SIZE,
    valid: Samples | None = None,
    augment: Augment | None = None,
    patience: int | None = None,
    on_epoch: Callable[[Any, Any, Any], None] | None = None,
) -> Fitted:
    """Trains one predictor for each key, in one program: `vmap` on accelerators, `lax.map` on the CPU.

    Args:
        keys: `[members]`.
        model, x_a, x_b, coupling, loss, optimizer, epochs, batch_size, valid, augment, patience, on_epoch: as in
            `fit_predictor`.

    Returns:
        `Fitted` with a leading axis `[members]` on every leaf; its `params` go to `predict` with `members=True`.

    Raises:
        ValueError: as `fit_predictor`, and for keys that are not `[members]`.
    """
    if jnp.ndim(keys) != 1 or not keys.size:
        raise ValueError(f"keys: expected [members] typed keys, at least one, got shape {jnp.shape(keys)}")
    options = Options(optimizer or ADAMW, epochs, batch_size, patience, on_epoch)
    _check(model, x_a, x_b, coupling, valid, loss, options)
    augment, vectorize = as_tree(augment), jax.default_backend() != "cpu"
    return _ensemble(
        keys, x_a, x_b, coupling, valid, augment, model=model, loss=loss, options=options, vectorize=vectorize
    )


@functools.partial(jax.jit, static_argnames=("model", "members", "chunk"))
def predict(
    model: Model, params: PyTree, x: Float[Array, "n ..."], *, members: bool = False, chunk: int = CHUNK
) -> Float[Array, "n d"]:
    """What a model outputs in evaluation mode, at most `chunk` (static) samples at a time.

    Args:
        model: static.
        params: `Fitted.params`.
        x: inputs `[n, ...]`.
        members: static; whether `params` has a leading axis of ensemble members, whose predictions are averaged.
        chunk: static; changes no result.

    Returns:
        `[n, d]`; differentiable in `params` and `x`.
    """
    if members:
        return jax.lax.map(lambda member: logits(model, member, x, chunk), params).mean(0)
    return logits(model, params, x, chunk)


def draw_loss(
    outputs: Sequence[Float[Array, "k d"]], y: Float[Array, "k d"], matched: Bool[Array, " k"]
) -> Float[Array, ""]:
    """The loss of one draw: the mean of `(y - f(x_j)) (y - f(x_j'))` over features and samples that have a partner.

    Args:
        outputs: predictions for the drawn partners: two of independent draws ("unbiased"), or one, then squared.
        y: targets.
        matched: which samples have a partner; what the others hold is without influence.

    Returns:
        The loss; 0 if no sample has a partner.
    """
    return _mean((y - outputs[0]) * (y - outputs[-1]), matched)


@dataclasses.dataclass(frozen=True)
class _Targets:
    """The samples a loss runs over: what is compared with predictions, and which of them have a partner."""

    y: Array
    matched: Array


def _targets(loss: Loss, x_b: Array, coupling: Law) -> _Targets:
    y = x_b.reshape(x_b.shape[0], -1)
    if loss == "barycentric":
        both = coupling.apply(jnp.concatenate([y, jnp.ones_like(y[:, :1])], axis=1))
        return _Targets(both[:, :-1], both[:, -1] > 0.5)
    return _Targets(y, coupling.T.apply(jnp.ones(coupling.shape[0], y.dtype)) > 0.5)


def _mean(squares: Float[Array, "k d"], matched: Array) -> Float[Array, ""]:
    total = matched.sum().astype(squares.dtype)
    return jnp.where(matched, squares.mean(1), 0).sum() / jnp.maximum(total, 1)


def _train(
    key: KeyArray,
    x_a: Array,
    x_b: Array,
    coupling: Law,
    valid: Samples | None,
    augment: Augment | None,
    model: Model,
    loss: Loss,
    options: Options,
) -> Fitted:
    key_init, key_loop = jax.random.split(key)
    target = _targets(loss, x_b, coupling)
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
            valid_loss=None if valid is None else functools.partial(_exact, model=model, loss=loss, valid=valid),
            optimizer=options.optimizer,
            epochs=options.epochs,
            batch_size=options.batch_size,
            patience=options.patience,
            on_epoch=options.on_epoch,
        ),
        unmatched=(~target.matched).sum(dtype=jnp.int32),
    )


def _exact(params: PyTree, *, model: Model, loss: Loss, valid: Samples) -> Float[Array, ""]:
    """The squared error to judge by: of projections of a, or of predictions in expectation over partners."""
    x_a, x_b, coupling = valid
    target = _targets(loss, x_b, coupling)
    out = logits(model, params, x_a)
    out, y = out.astype(dtype := float_dtype(out, target.y)), target.y.astype(dtype)
    if loss == "barycentric":
        return _mean((out - y) ** 2, target.matched)
    out, y = out - (shift := out.mean(0, keepdims=True)), y - shift  # squares of large means would cancel
    moments = coupling.T.apply(jnp.concatenate([out, out**2], axis=1))
    first, second = jnp.split(moments.astype(dtype), 2, axis=1)
    return _mean((y - first) ** 2 + jnp.maximum(second - first**2, 0), target.matched)


_fit = jax.jit(_train, static_argnames=("model", "loss", "options"))


@functools.partial(jax.jit, static_argnames=("model", "loss", "options", "vectorize"))
def _ensemble(
    keys: Any,
    x_a: Any,
    x_b: Any,
    coupling: Any,
    valid: Any,
    augment: Any,
    *,
    model: Model,
    loss: Loss,
    options: Options,
    vectorize: bool,
) -> Fitted:
    def one(key: KeyArray) -> Fitted:
        return _train(key, x_a, x_b, coupling, valid, augment, model, loss, options)

    return jax.vmap(one)(keys) if vectorize else jax.lax.map(one, keys)


def _check(
    model: Model, x_a: Array, x_b: Array, coupling: Law, valid: Samples | None, loss: Loss, options: Options
) -> None:
    if loss not in ("unbiased", "sampled", "barycentric"):
        raise ValueError(f"loss: expected 'unbiased', 'sampled' or 'barycentric', got {loss!r}")
    for name in ("epochs", "batch_size", "patience"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    if options.patience is not None and valid is None:
        raise ValueError("patience: expected validation data to judge by (valid=(x_a, x_b, coupling)), got none")
    _check_samples("", (x_a, x_b, coupling), loss)
    if valid is not None:
        if len(valid) != 3:
            raise ValueError(f"valid: expected (x_a, x_b, coupling), got {len(valid)} entries")
        _check_samples("valid: ", valid, loss)
        for name, ours, theirs in (("x_a", x_a, valid[0]), ("x_b", x_b, valid[1])):
            if ours.shape[1:] != theirs.shape[1:]:
                raise ValueError(f"valid: {name}: expected features {ours.shape[1:]}, got {theirs.shape[1:]}")
    wanted = int(np.prod(x_b.shape[1:]))
    if (outputs := num_outputs(model, x_a.shape[1:], x_a.dtype)) != wanted:
        raise ValueError(f"model: expected {wanted} outputs, one for each number of a target, got {outputs}")


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
