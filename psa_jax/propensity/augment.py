"""Random changes of a batch that smooth the propensity score."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from psa_jax.arguments import checked
from psa_jax.types import Array, Augment, Float, KeyArray, float_dtype


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GaussianNoise:
    """See `gaussian_noise`."""

    scale: Any

    def __call__(self, key: KeyArray, x: Array, /) -> Array:
        """Adds noise to `[n, ...]`."""
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"x: expected float features, got {x.dtype}: give x.astype('float32')")
        spread = _spread(x)
        noise = jax.random.normal(key, x.shape, x.dtype)
        return x + jnp.asarray(self.scale, x.dtype) * jnp.broadcast_to(spread, x.shape) * noise


def _spread(x: Array) -> Array:
    """Standard deviations of features `[1, ...]`, whose squares and sums stay in the range of the type."""
    wide = x.astype(float_dtype(x))
    top = jnp.abs(wide).max(axis=0, keepdims=True, initial=0)
    top = jnp.where(top > 0, top, 1)
    return (top * jnp.std(wide / top, axis=0, keepdims=True)).astype(x.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Translation:
    """See `translation`."""

    std: Any

    def __call__(self, key: KeyArray, x: Array, /) -> Array:
        """Shifts each image of `[n, H, W, C]`."""
        _check_images(x)
        shift = jax.random.normal(key, (x.shape[0], 2), x.dtype) * jnp.asarray(x.shape[1:3], x.dtype)[None]
        return translate(x, jnp.asarray(self.std, x.dtype) * shift)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Compose:
    """See `compose`."""

    augments: tuple[Any, ...]

    def __call__(self, key: KeyArray, x: Array, /) -> Array:
        """Applies one after the other."""
        for index, augment in enumerate(self.augments):
            x = augment(jax.random.fold_in(key, index), x)
        return x


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Smoothing:
    """`translation(shift)` for images `[n, H, W, C]`, else `gaussian_noise(noise)`: see `SMOOTHINGS`."""

    noise: Any
    shift: Any

    def __call__(self, key: KeyArray, x: Array, /) -> Array:
        """Changes a batch `[n, ...]`."""
        return Translation(self.shift)(key, x) if x.ndim == 4 else GaussianNoise(self.noise)(key, x)


# What members take in turn by default. None of them is the best on every data set of `benchmarks/QUALITY.md`: the least
# FOSCTTM of the mean over them is within 0.011 of the best one's there.
SMOOTHINGS = (Smoothing(0.3, 0.05), Smoothing(0.7, 0.08), Smoothing(1.2, 0.12))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Choice:
    """One of several augments of different kinds, by its place among them."""

    augments: tuple[Any, ...]
    place: Any

    def __call__(self, key: KeyArray, x: Array, /) -> Array:
        """Changes a batch `[n, ...]`."""

        def branch(augment: Any) -> Callable[[KeyArray, Array], Array]:  # hashed by identity: settings may be traced
            return lambda key, x: x if augment is None else augment(key, x)

        branches = [branch(augment) for augment in self.augments]
        return jax.lax.switch(self.place, branches, key, x)


def in_turn(augment: Any, members: int) -> Any:
    """What each of several members has of one augment, or of a tuple of them in turn: a tree `[members]`, or None."""
    several = augment if isinstance(augment, tuple) else (augment,)
    trees = tuple(jax.tree.map(jnp.asarray, as_tree(one)) for one in several)
    place = jnp.arange(members, dtype=jnp.int32) % len(trees)
    kinds = {(jax.tree.structure(one), *((x.shape, x.dtype) for x in jax.tree.leaves(one))) for one in trees}
    if len(kinds) == 1:
        return jax.tree.map(lambda *each: jnp.stack(each)[place], *trees)
    return Choice(jax.tree.map(lambda x: jnp.broadcast_to(x, (members, *x.shape)), trees), place)


@checked
def gaussian_noise(scale: float) -> Augment:
    """Adds normal noise of `scale` standard deviations of each feature, the deviation taken over the batch.

    Training on noisy inputs estimates the propensity smoothed over a neighbourhood, `E[t | x + noise]`. How
    much one smooths is the lever that matters most in propensity score alignment: on the synthetic balls PS+OT
    has a latent MSE of 0.031 without smoothing and of 0.0066 with `translation(0.08)`, where the class mean has
    0.035 (`python -m benchmarks.smoothing`). Choose the amount without true pairs, by
    `held_out_agreement`; not by the likelihood, which is best where the match is worst.

    The result is hashable and a pytree: in `fit` the amount is traced, so trying several compiles once.

    Args:
        scale: noise over signal, at least 0.

    Raises:
        ValueError: a negative number.

    Example:
        >>> x = jnp.array([[0.0, 5.0], [1.0, 5.0]])
        >>> gaussian_noise(0.5)(jax.random.key(0), x)[:, 1].tolist()  # a constant feature has no deviation
        [5.0, 5.0]
        >>> gaussian_noise(0.5) == gaussian_noise(0.5)
        True
    """
    return GaussianNoise(_amount("scale", scale))


@checked
def translation(std: float) -> Augment:
    """Shifts each image `[n, H, W, C]` by `N(0, std²)` of the canvas in both axes.

    Shifts are subpixel (linear interpolation) and edges are repeated. See `gaussian_noise` for why to smooth
    and how to choose the amount; for images of objects whose place matters, this is the smoothing to start
    with.

    Args:
        std: the standard deviation of the shift as a share of height and width, at least 0.

    Raises:
        ValueError: a negative number; at trace time, inputs that are not images.

    Example:
        >>> x = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
        >>> bool((translation(0.0)(jax.random.key(1), x) == x).all())
        True
    """
    return Translation(_amount("std", std))


@checked
def compose(*augments: Augment) -> Augment:
    """Applies several changes one after the other, each with a key of its own.

    Example:
        >>> both = compose(translation(0.05), gaussian_noise(0.1))
        >>> both(jax.random.key(0), jnp.ones((2, 8, 8, 1))).shape
        (2, 8, 8, 1)
    """
    return Compose(tuple(as_tree(augment) for augment in augments))


@checked
def smoothing(key: KeyArray, x: Float[Array, "n ..."], /) -> Array:
    """`translation(0.08)` for images `[n, H, W, C]`, else `gaussian_noise(0.3)`.

    One amount for all members. The default of `Learner` has several for its members in turn (noise of 0.3, 0.7 and 1.2
    standard deviations, shifts of 0.05, 0.08 and 0.12 of the canvas), because no amount is the best everywhere.

    Example:
        >>> smoothing(jax.random.key(0), jnp.ones((3, 2))).shape
        (3, 2)
    """
    return translation(0.08)(key, x) if x.ndim == 4 else gaussian_noise(0.3)(key, x)


def as_tree(augment: Any) -> Any:
    """Makes a plain function a pytree without leaves, so that it may be an argument of a jitted function.

    None stays None and pytrees (those of this module, `jax.tree_util.Partial`) stay what they are.
    """
    leaf = jax.tree_util.treedef_is_leaf(jax.tree.structure(augment)) and augment is not None
    return jax.tree_util.Partial(augment) if leaf else augment


def translate(x: Float[Array, "n H W C"], shift: Float[Array, "n 2"]) -> Array:
    """Shifts images by a number of pixels: linear interpolation, edges repeated.

    Differentiable in both arguments. Bilinear interpolation is separable, so it is one matmul for each axis
    with matrices `max(0, 1 - |source - j|)`. That is fast inside a loop on every device, where a gather or a
    convolution is not.

    Args:
        x: images `[n, H, W, C]`.
        shift: `[n, 2]` pixels downwards and to the right.

    Example:
        >>> translate(jnp.arange(4.0).reshape(1, 1, 4, 1), jnp.array([[0.0, 0.5]])).ravel().tolist()
        [0.0, 0.5, 1.5, 2.5]
    """
    _check_images(x)
    rows, cols = (_shift_matrix(shift[:, axis], x.shape[axis + 1]) for axis in (0, 1))
    n, height, width, channels = x.shape
    x = jnp.matmul(rows, x.reshape(n, height, width * channels), precision="highest")
    x = x.reshape(n, height, width, channels).swapaxes(1, 2).reshape(n, width, height * channels)
    x = jnp.matmul(cols, x, precision="highest")
    return x.reshape(n, width, height, channels).swapaxes(1, 2)


def _shift_matrix(shift: Array, length: int) -> Array:
    """`[n]` pixels -> `[n, length, length]` interpolation matrices, whose rows sum to one."""
    place = jnp.arange(length, dtype=shift.dtype)
    source = jnp.clip(place[None, :] - shift[:, None], 0, length - 1)
    return jnp.maximum(1 - jnp.abs(source[:, :, None] - place[None, None, :]), 0)


def _check_images(x: Array) -> None:
    if x.ndim != 4:
        raise ValueError(f"x: expected images [n, H, W, C], got shape {x.shape}")


def _amount(name: str, value: Any) -> Any:
    if isinstance(value, (int, float)):
        if not value >= 0:
            raise ValueError(f"{name}: expected a number of at least 0, got {value}")
        return float(value)
    return value


__all__ = ["as_tree", "compose", "gaussian_noise", "smoothing", "translate", "translation"]
