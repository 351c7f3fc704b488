"""Cross-modal autoencoders: one latent space, in which a discriminator cannot tell the modalities apart."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from psa_jax.arguments import checked
from psa_jax.baselines.inputs import check_number, prepared
from psa_jax.baselines.joint import check_finite, encoders, minimise_jointly
from psa_jax.data.samples import Modality, Unpaired
from psa_jax.propensity.model import Model, logits
from psa_jax.propensity.nets import Standardize, linear, mlp
from psa_jax.propensity.training import Training, check_training
from psa_jax.types import Array, Float, KeyArray, PyTree, pytree

HIDDEN = 256
DISCRIMINATOR = 64
MAX_LOG_VARIANCE = 10.0


@pytree
class Weights:
    """How much each term of the loss counts."""

    beta: Array
    classification: Array
    adversarial: Array


@checked
def vae(
    key: KeyArray,
    data: Unpaired,
    *,
    query: Unpaired | None = None,
    dim: int = 10,
    beta: Any = 0.1,
    classification: Any = 1.0,
    adversarial: Any = 1.0,
    model_a: Model | None = None,
    model_b: Model | None = None,
    training: Training = Training(),
) -> tuple[Float[Array, "n d"], Float[Array, "m d"]]:
    """Latent means of two variational autoencoders that share their latent space.

    Encoders and decoders of both modalities `m`, a classifier of the treatment and a discriminator minimise::

        E[ |x - decoder_m(z)|² / 2p + beta KL(q_m(z | x) || N(0, I)) / p - classification * log P(t | z) ],

    half of the samples being of either modality, with features `x` standardised and `p` of them, `z` drawn from
    `q_m(z | x)`. The discriminator, a perceptron, minimises the cross-entropy of the modality given `z`, while the
    encoders maximise `adversarial` times it (a reversed gradient). So that the modalities need not have treatments in
    equal shares, the discriminator sees each sample with weight `min(share of t in a, share of t in b) / share of t in
    its own`, which is 0 for treatments that only one modality has. It needs its time: while training is short the two
    chase each other, and the modalities may be further apart than without it.

    The embeddings of `data` itself come from networks that saw its labels; for held-out samples give a `query`.

    Args:
        key: decides initial parameters, order, latents and dropout.
        data: what to learn from.
        query: other samples to embed instead of `data`; its labels are not used.
        dim: of the latent space. Static.
        beta: weight of the KL term, at least 0: the variance of the decoders' Gaussian likelihood. Traced.
        classification: weight of the treatment's cross-entropy, at least 0. Traced.
        adversarial: weight of the discriminator's in the encoders' loss, at least 0. Traced.
        model_a: encoder with `2 dim` outputs, means and then log variances; by default as in `align`. Decoders are
            perceptrons to flattened features. Static.
        model_b: the same for modality b.
        training: see `Training`; epochs are passes over modality a, and there is no patience. Static.

    Returns:
        Means `u [n, dim]` and `v [m, dim]` of the latents (no samples), float32.

    Raises:
        ValueError: invalid data, fewer than two shared treatments, a query of other features or treatments, numbers out
            of range, encoders with another number of outputs, training that diverges.

    Example:
        >>> from psa_jax.data.samples import Modality
        >>> x, t = jax.random.normal(jax.random.key(0), (20, 3)), jnp.arange(20) % 2
        >>> data = Unpaired(Modality(x, t), Modality(x[:, :2], t), 2)
        >>> settings = {"model_a": linear(4), "model_b": linear(4), "training": Training(epochs=2)}
        >>> u, v = vae(jax.random.key(1), data, dim=2, **settings)
        >>> u.shape, v.shape
        ((20, 2), (20, 2))

    References:
        Yang et al., Multi-domain translation between single-cell imaging and sequencing data using autoencoders, Nature
        Communications 2021; Ganin et al., JMLR 2016 (reversed gradient).
    """
    data, target = prepared(data, query)
    check_number("dim", dim, low=1)
    weights = {"beta": beta, "classification": classification, "adversarial": adversarial}
    for name, value in weights.items():
        check_number(name, value, low=0)
    models = encoders(data, model_a, model_b, 2 * dim)
    check_training(training, judged=False)
    terms = Weights(*(jnp.asarray(value, jnp.float32) for value in weights.values()))
    params = _train(key, data, terms, models=models, dim=dim, training=training)
    u, v = _means(params, target.a.x, target.b.x, models=models, dim=dim)
    check_finite(u, v)
    return u, v


@functools.partial(jax.jit, static_argnames=("models", "dim", "training"))
def _train(
    key: KeyArray, data: Unpaired, weights: Weights, *, models: tuple[Model, Model], dim: int, training: Training
) -> PyTree:
    targets = {"a": _targets(data.a.x), "b": _targets(data.b.x)}
    balance_a, balance_b = _balance(data)
    nets = {
        "encoder_a": models[0],
        "encoder_b": models[1],
        **{f"decoder_{name}": _on_latents((HIDDEN,), x.shape[1]) for name, x in targets.items()},
        "classifier": linear(data.num_treatments, standardize=False),
        "discriminator": _on_latents((DISCRIMINATOR, DISCRIMINATOR), 2),
    }
    key_loop, *keys = jax.random.split(key, 1 + len(nets))
    inputs = {"encoder_a": data.a.x, "encoder_b": data.b.x}
    latent = jnp.zeros((1, dim), jnp.float32)
    params = {name: net.init(k, inputs.get(name, latent)) for (name, net), k in zip(nets.items(), keys, strict=True)}

    def loss(params: PyTree, ids_a: Array, ids_b: Array, key: KeyArray) -> tuple[Array, PyTree]:
        params, keys = dict(params), iter(jax.random.split(key, 8))

        def run(name: str, x: Array) -> Array:
            out, params[name] = nets[name].apply(params[name], x, train=True, key=next(keys))
            return out

        def autoencode(name: str, x: Array, target: Array) -> tuple[Array, Array]:
            mean, log_variance = gaussian(run(f"encoder_{name}", x), dim)
            z = mean + jnp.exp(log_variance / 2) * jax.random.normal(next(keys), mean.shape, mean.dtype)
            errors = jnp.square(run(f"decoder_{name}", z) - target).mean() / 2
            kl = (jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance).sum(1).mean() / (2 * target.shape[1])
            return z, errors + weights.beta * kl

        z_a, loss_a = autoencode("a", data.a.x[ids_a], targets["a"][ids_a])
        z_b, loss_b = autoencode("b", data.b.x[ids_b], targets["b"][ids_b])
        z, (t_a, t_b) = jnp.concatenate([z_a, z_b]), (data.a.t[ids_a], data.b.t[ids_b])
        named = _cross_entropy(run("classifier", z), jnp.concatenate([t_a, t_b]))
        told = _cross_entropy(
            run("discriminator", reversed_gradient(z, weights.adversarial)), jnp.repeat(jnp.arange(2), t_a.size)
        )
        told *= jnp.concatenate([balance_a[t_a], balance_b[t_b]])
        return (loss_a + loss_b) / 2 + weights.classification * named.mean() + told.mean(), params

    return minimise_jointly(key_loop, nets, params, (data.a.t.size, data.b.t.size), loss, training)


@functools.partial(jax.jit, static_argnames=("models", "dim"))
def _means(params: PyTree, x_a: Array, x_b: Array, *, models: tuple[Model, Model], dim: int) -> tuple[Array, Array]:
    u = gaussian(logits(models[0], params["encoder_a"], x_a), dim)[0]
    return u, gaussian(logits(models[1], params["encoder_b"], x_b), dim)[0]


def gaussian(outputs: Float[Array, "n d2"], dim: int) -> tuple[Array, Array]:
    """Means and bounded log variances `[n, dim]` of an encoder's outputs."""
    log_variance = MAX_LOG_VARIANCE * jnp.tanh(outputs[:, dim:] / MAX_LOG_VARIANCE)
    return outputs[:, :dim], log_variance


def reversed_gradient(z: Array, weight: Any) -> Array:
    """`z` itself, with `-weight` times its gradient."""
    fixed = jax.lax.stop_gradient(z)
    return fixed + weight * (fixed - z)


def _targets(x: Array) -> Array:
    """What decoders have to reproduce: features standardised as `nets.Standardize` does, flattened, float32."""
    x = x.astype(jnp.float32)
    out: Any = Standardize().apply(Standardize().init({}, x), x)
    return out.reshape(x.shape[0], -1)


def _on_latents(widths: tuple[int, ...], outputs: int) -> Model:
    return mlp(widths, outputs, standardize=False)


def _balance(data: Unpaired) -> tuple[Array, Array]:
    """Weights `[num_treatments]` under which both modalities have treatments in equal shares."""

    def shares(side: Modality) -> Array:
        return jnp.bincount(side.t, length=data.num_treatments).astype(jnp.float32) / side.t.size

    a, b = shares(data.a), shares(data.b)
    least = jnp.minimum(a, b)
    return tuple(least / jnp.where(share > 0, share, 1) for share in (a, b))  # pyright: ignore[reportReturnType]


def _cross_entropy(out: Array, labels: Array) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(out, labels)
