"""Encoders: linear, multilayer perceptron, convolutions."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from psa_jax.arguments import checked
from psa_jax.data.source import Source, fold_samples
from psa_jax.propensity.model import CHUNK, Model, from_linen
from psa_jax.types import Array

Norm = Callable[[bool], nn.Module]
MIN_IMAGE = 8


@checked
def linear(num_treatments: int, *, standardize: bool = True) -> Model:
    """Multinomial logistic regression on `[n, d]` inputs; see `mlp` for `standardize`."""
    return mlp((), num_treatments, standardize=standardize)


@checked
def batch_norm(train: bool) -> nn.Module:
    """Batch normalisation, for the argument `norm`: batch statistics in training, running ones after."""
    return nn.BatchNorm(use_running_average=not train, momentum=0.9)


@checked
def layer_norm(train: bool) -> nn.Module:
    """Layer normalisation over the last axis, for the argument `norm`."""
    return nn.LayerNorm()


@checked
def mlp(
    widths: Sequence[int],
    num_treatments: int,
    *,
    norm: Norm | None = layer_norm,
    dropout: float = 0.0,
    standardize: bool = True,
) -> Model:
    """A multilayer perceptron on `[n, d]` inputs.

    Dense, norm, leaky ReLU and dropout for each width, then the logits. It computes in float32. All arguments
    are static, and equal arguments make equal models.

    Args:
        widths: the widths of the hidden layers; none makes it linear.
        num_treatments: the number of logits K.
        norm: `train -> linen module` (`batch_norm`, `layer_norm`, or a module-level function of your own such
            as `def norm(train): return nn.GroupNorm(8)`), or None.
        dropout: the share of hidden units dropped in training.
        standardize: subtract mean and divide by standard deviation of each feature, both computed from the
            `x` given to `init` (constant features: scale 1) and kept in the collection "constants", which is
            not trained.

    Returns:
        A model that raises `ValueError` at trace time if its input is not `[n, d]`.

    Example:
        >>> import jax
        >>> model = mlp((8,), 3)
        >>> model == mlp([8], 3)
        True
        >>> x = 1e4 + jax.random.normal(jax.random.key(0), (6, 2))
        >>> model.apply(model.init(jax.random.key(1), x), x, train=False, key=None)[0].shape
        (6, 3)
    """
    return from_linen(Mlp(_widths(widths), _positive("num_treatments", num_treatments), norm, dropout, standardize))


@checked
def conv(
    widths: Sequence[int],
    num_treatments: int,
    *,
    hidden: int = 128,
    norm: Norm | None = batch_norm,
    dropout: float = 0.0,
    standardize: bool = True,
) -> Model:
    """A convolutional network on images `[n, H, W, C]`, H and W at least 8.

    For each width a 3 x 3 convolution of stride 2 (same padding, so sizes are halved and rounded up), norm,
    leaky ReLU; then a dense hidden layer with dropout and the logits. Convolutions are slices and one matmul:
    XLA's own are some twenty times slower inside a CPU loop. The other arguments are those of `mlp`; features
    are standardised per channel.

    Args:
        widths: the channels of the convolutions.
        num_treatments: the number of logits K.
        hidden: the width of the dense layer.
        norm: `train -> linen module` or None.
        dropout: the share of dense hidden units dropped in training.
        standardize: use mean and scale of each channel, from the `x` given to `init`.

    Returns:
        A model that raises `ValueError` at trace time if its input is not `[n, H, W, C]` of sufficient size.

    Example:
        >>> import jax
        >>> model = conv((4, 8), 3)
        >>> x = jnp.ones((2, 9, 12, 3))
        >>> model.apply(model.init(jax.random.key(0), x), x, train=False, key=None)[0].shape
        (2, 3)
    """
    num_treatments, hidden = _positive("num_treatments", num_treatments), _positive("hidden", hidden)
    return from_linen(Conv(_widths(widths), num_treatments, hidden, norm, dropout, standardize))


def default_model(name: str, x: Array | Source, num_outputs: int, *, width: int = 128) -> Model:
    """A perceptron for vectors, convolutions for images, with `num_outputs` outputs; errors say `name`."""
    if x.ndim == 2:
        return mlp((width, width), num_outputs)
    if x.ndim == 4:
        return conv((32, 64, 128), num_outputs)
    raise ValueError(
        f"{name}: expected one for features of shape [n, {', '.join(map(str, x.shape[1:]))}]; there is a default for "
        "vectors [n, d] and images [n, height, width, channels] only"
    )


class Standardize(nn.Module):
    """Subtracts mean and divides by scale of each entry of the last axis, both of the `x` given to `init`."""

    @nn.compact
    def __call__(self, x: Array | Source) -> Array:
        """Standardises `[n, ..., d]`; of a source, which only `init` is given, the first sample."""
        found: Any = _moments(x) if self.is_initializing() else None
        mean = self.variable("constants", "mean", lambda: found[0])
        scale = self.variable("constants", "scale", lambda: found[1])
        x = x[:1] if isinstance(x, Source) else x
        if mean.value.size != x.shape[-1]:
            raise ValueError(f"x: expected {mean.value.size} features, as in training, got shape {tuple(x.shape)}")
        shape = (1,) * (x.ndim - 1) + (-1,)
        return (x - mean.value.reshape(shape)) / scale.value.reshape(shape)


class Mlp(nn.Module):
    """See `mlp`."""

    takes_source: ClassVar[bool] = True
    widths: tuple[int, ...]
    num_treatments: int
    norm: Norm | None = layer_norm
    dropout: float = 0.0
    standardize: bool = True

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Logits `[n, K]` of `[n, d]`."""
        if x.ndim != 2:
            raise ValueError(f"x: expected rank 2, [n, d], got shape {x.shape}")
        x = x.astype(jnp.float32)
        x = Standardize()(x) if self.standardize else x
        x = x[:1] if self.is_initializing() else x
        for width in self.widths:
            x = nn.Dense(width)(x)
            x = x if self.norm is None else self.norm(train)(x)
            x = nn.Dropout(self.dropout)(nn.leaky_relu(x), deterministic=not train)
        return nn.Dense(self.num_treatments)(x)


class Conv(nn.Module):
    """See `conv`."""

    takes_source: ClassVar[bool] = True
    widths: tuple[int, ...]
    num_treatments: int
    hidden: int = 128
    norm: Norm | None = batch_norm
    dropout: float = 0.0
    standardize: bool = True

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Logits `[n, K]` of `[n, H, W, C]`."""
        if x.ndim != 4 or min(x.shape[1:3]) < MIN_IMAGE:
            raise ValueError(f"x: expected images [n, H, W, C] with H and W at least {MIN_IMAGE}, got shape {x.shape}")
        x = x.astype(jnp.float32)
        x = Standardize()(x) if self.standardize else x
        x = x[:1] if self.is_initializing() else x
        for width in self.widths:
            x = nn.Dense(width)(patches(x))
            x = nn.leaky_relu(x if self.norm is None else self.norm(train)(x))
        x = x.reshape(x.shape[0], -1)
        return Mlp((self.hidden,), self.num_treatments, self.norm, self.dropout, False)(x, train=train)


def patches(x: Array) -> Array:
    """The 3 x 3 neighbourhoods that a convolution of stride 2 with same padding sees.

    Args:
        x: images `[n, H, W, C]`.

    Returns:
        `[n, ceil(H / 2), ceil(W / 2), 9 C]`: times a kernel `[3, 3, C, F]` reshaped to `[9 C, F]` it is the
        convolution.
    """
    _, height, width, _ = x.shape
    rows, cols = -(-height // 2), -(-width // 2)
    x = jnp.pad(x, ((0, 0), (height % 2, 1), (width % 2, 1), (0, 0)))
    slices = [x[:, i : i + 2 * rows - 1 : 2, j : j + 2 * cols - 1 : 2] for i in range(3) for j in range(3)]
    return jnp.concatenate(slices, -1)


def _moments(x: Array | Source) -> tuple[Array, Array]:
    """Mean and scale over all but the last axis; exact for constant features, safe for huge and tiny ones."""
    if isinstance(x, Source):
        return _streamed_moments(x)
    axes = tuple(range(x.ndim - 1))
    origin = x[(slice(0, 1),) * (x.ndim - 1)]
    unit = jnp.abs(x - origin).max(axes, keepdims=True)
    unit = jnp.where(unit > 0, unit, 1)
    away = (x - origin) / unit
    mean = away.mean(axes[1:], keepdims=True).mean(0, keepdims=True)
    variance = jnp.square(away - mean).mean(axes[1:], keepdims=True).mean(0, keepdims=True)
    scale = unit * jnp.sqrt(variance)
    return (origin + unit * mean).reshape(-1), jnp.where(scale > 0, scale, 1).reshape(-1)


def _streamed_moments(x: Source) -> tuple[Array, Array]:
    """The same in one pass: parts are put together by their means and squared deviations, in units of the largest."""
    inner, shape = tuple(range(1, x.ndim - 1)), (1,) * (x.ndim - 1) + (-1,)
    origin = x[:1][(slice(0, 1),) * (x.ndim - 1)]
    zero = jnp.zeros_like(origin.reshape(-1))

    def add(state: tuple[Array, ...], _: Array, part: Array, real: Array) -> tuple[Array, ...]:
        count, unit, mean, squares = state
        real = real.reshape(-1, *(1,) * (x.ndim - 1))
        top = jnp.maximum(unit, jnp.where(real, jnp.abs(part - origin), 0).max((0, *inner)))
        safe = jnp.where(top > 0, top, 1)
        number = real.sum().astype(zero.dtype)
        away = jnp.where(real, (part - origin) / safe.reshape(shape), 0)
        own = away.mean(inner).sum(0) / number
        spread = jnp.where(real, jnp.square(away - own.reshape(shape)), 0).mean(inner).sum(0)
        mean, squares = mean * (unit / safe), squares * jnp.square(unit / safe)
        total, apart = count + number, own - mean
        squares += spread + jnp.square(apart) * (count / total) * number
        return total, top, mean + apart * (number / total), squares

    count, unit, mean, squares = fold_samples(add, (jnp.zeros((), zero.dtype), zero, zero, zero), x, CHUNK)
    scale = unit * jnp.sqrt(squares / count)
    return origin.reshape(-1) + unit * mean, jnp.where(scale > 0, scale, 1)


def _widths(widths: Sequence[int]) -> tuple[int, ...]:
    return tuple(_positive("widths", width) for width in widths)


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")
    return int(value)
