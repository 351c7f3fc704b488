"""Embeddings in which samples of one treatment are close, whatever their modality."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from psa_jax.arguments import checked
from psa_jax.baselines.inputs import check_number, prepared
from psa_jax.baselines.joint import check_finite, encoders, minimise_jointly
from psa_jax.data.samples import Unpaired
from psa_jax.propensity.model import Model, logits
from psa_jax.propensity.training import Training, check_training
from psa_jax.types import Array, Float, Int, KeyArray, PyTree


@checked
def contrastive(
    key: KeyArray,
    data: Unpaired,
    *,
    query: Unpaired | None = None,
    dim: int = 32,
    temperature: Any = 0.1,
    within: bool = False,
    model_a: Model | None = None,
    model_b: Model | None = None,
    training: Training = Training(),
) -> tuple[Float[Array, "n d"], Float[Array, "m d"]]:
    """Group-contrastive embedding: an encoder for each modality, trained by `contrastive_loss` on treatments.

    The embeddings of `data` itself come from networks that saw its labels; for held-out samples give a `query`.

    Args:
        key: decides initial parameters, order and dropout.
        data: what to learn from. Samples of treatments that only one modality has are negatives.
        query: other samples to embed instead of `data`; its labels are not used.
        dim: of the embedding. Static.
        temperature: of the similarities; traced.
        within: whether samples of the anchor's own modality are candidates too. Static.
        model_a: encoder with `dim` outputs; by default as in `align`. Static.
        model_b: the same for modality b.
        training: see `Training`; epochs are passes over modality a, and there is no patience. Static.

    Returns:
        `u [n, dim]` and `v [m, dim]`, float32 of unit norm.

    Raises:
        ValueError: invalid data, fewer than two shared treatments, a query of other features or treatments, numbers out
            of range, encoders with another number of outputs, training that diverges.

    Example:
        >>> from psa_jax.data.samples import Modality
        >>> from psa_jax.propensity.nets import linear
        >>> x, t = jax.random.normal(jax.random.key(0), (20, 3)), jnp.arange(20) % 2
        >>> data = Unpaired(Modality(x, t), Modality(x[:, :2], t), 2)
        >>> settings = {"model_a": linear(4), "model_b": linear(4), "training": Training(epochs=2)}
        >>> u, v = contrastive(jax.random.key(1), data, dim=4, **settings)
        >>> u.shape, bool(jnp.allclose(jnp.linalg.norm(v, axis=1), 1))
        ((20, 4), True)

    References:
        Khosla et al., NeurIPS 2020 (supervised contrastive loss, equation 2).
    """
    data, target = prepared(data, query)
    check_number("dim", dim, low=1)
    check_number("temperature", temperature, low=0, open_low=True)
    models = encoders(data, model_a, model_b, dim)
    check_training(training, judged=False)
    scale = jnp.asarray(temperature, jnp.float32)
    params = _train(key, data, scale, models=models, within=bool(within), training=training)
    u, v = _embed(params, target.a.x, target.b.x, models=models)
    check_finite(u, v)
    return u, v


def contrastive_loss(
    z: Float[Array, "n d"], t: Int[Array, " n"], side: Int[Array, " n"], temperature: Any, *, within: bool
) -> Float[Array, ""]:
    """The supervised contrastive loss of unit-norm embeddings across modalities.

    `mean_i mean_{p in P(i)} -log (exp(z_i z_p / T) / sum_{c in C(i)} exp(z_i z_c / T))`, where the candidates `C(i)`
    are the samples of the other modality (and, with `within`, the others of its own), the positives `P(i)` those of
    them with the same treatment. Anchors without a positive do not count; without any anchor it is 0.

    Args:
        z: embeddings `[n, d]`. Differentiable.
        t: treatment codes `[n]`.
        side: `[n]`, the modality of each.
        temperature: `T`.
        within: static.

    Example:
        >>> z, t = jnp.array([[1.0], [1.0], [-1.0]]), jnp.array([0, 0, 1])
        >>> round(float(contrastive_loss(z, t, jnp.array([0, 1, 1]), 1.0, within=False)), 4)
        0.0635
    """
    other = side[:, None] != side[None]
    candidate = other | ~jnp.eye(t.size, dtype=bool) if within else other
    positive = candidate & (t[:, None] == t[None])
    similarity = jnp.matmul(z, z.T, precision="highest") / temperature
    total = jax.nn.logsumexp(jnp.where(candidate, similarity, -1e30), axis=1, keepdims=True)
    count = positive.sum(1).astype(z.dtype)
    loss = jnp.where(positive, total - similarity, 0).sum(1) / jnp.maximum(count, 1)
    return loss.sum() / jnp.maximum((count > 0).sum(), 1).astype(z.dtype)


@functools.partial(jax.jit, static_argnames=("models", "within", "training"))
def _train(
    key: KeyArray,
    data: Unpaired,
    temperature: Array,
    *,
    models: tuple[Model, Model],
    within: bool,
    training: Training,
) -> PyTree:
    (model_a, model_b), (a, b) = models, (data.a, data.b)
    key_a, key_b, key_loop = jax.random.split(key, 3)
    params = {"a": model_a.init(key_a, a.x), "b": model_b.init(key_b, b.x)}

    def loss(params: PyTree, ids_a: Array, ids_b: Array, key: KeyArray) -> tuple[Array, PyTree]:
        key_a, key_b = jax.random.split(key)
        z_a, after_a = model_a.apply(params["a"], a.x[ids_a], train=True, key=key_a)
        z_b, after_b = model_b.apply(params["b"], b.x[ids_b], train=True, key=key_b)
        z, t = unit(jnp.concatenate([z_a, z_b])), jnp.concatenate([a.t[ids_a], b.t[ids_b]])
        side = jnp.repeat(jnp.arange(2), ids_a.size)
        return contrastive_loss(z, t, side, temperature.astype(z.dtype), within=within), {"a": after_a, "b": after_b}

    return minimise_jointly(key_loop, {"a": model_a, "b": model_b}, params, (a.t.size, b.t.size), loss, training)


@functools.partial(jax.jit, static_argnames="models")
def _embed(params: PyTree, x_a: Array, x_b: Array, *, models: tuple[Model, Model]) -> tuple[Array, Array]:
    return unit(logits(models[0], params["a"], x_a)), unit(logits(models[1], params["b"], x_b))


def unit(z: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """Rows of unit norm; zero rows stay zero, with finite gradients."""
    squares = jnp.square(z).sum(1, keepdims=True)
    return z * jax.lax.rsqrt(jnp.where(squares > 0, squares, 1))
