"""Synthetic interventional images: two views of two balls, drawn by an antialiased renderer in JAX."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from psa_jax.arguments import checked
from psa_jax.data.samples import Modality, Truth, Unpaired
from psa_jax.types import Array, Float, Int, KeyArray, take

NUM_TREATMENTS = 12
LEVELS = (0.25, 0.5, 0.75)
NAMES = tuple(f"{latent} = {level}" for latent in ("x1", "y1", "x2", "y2") for level in LEVELS)
MIN_IMAGE_SIZE = 8
NUM_DISCS = 25
DISC_RADIUS = 0.3
BALL_RADIUS = 0.02
SQUARE_SIDE = 0.04
CHUNK = 64
_STRIPS = 512

_Colour = tuple[float, float, float]


class _View(NamedTuple):
    """How a view is drawn (static): two ends of a colour map, the colours and the coverage of the objects."""

    low: _Colour
    high: _Colour
    one: _Colour
    two: _Colour
    cover: Callable[[Array, int], Array]


@checked
def balls(key: KeyArray, num_samples: int = 4000, image_size: int = 128) -> tuple[Unpaired, Truth]:
    """Draws two views of interventions on the positions of two balls.

    Every sample has a latent `z = (x1, y1, x2, y2)` and one of 12 interventions (`balls_latents`), as many of
    each as possible, in random order. Modality a is `render_balls(z)`, modality b `render_squares(z)` in
    another random order. The views share nothing but `z`: each has its own random background.

    Args:
        key: a typed PRNG key.
        num_samples: how many samples, at least 1; need not be a multiple of 12.
        image_size: height and width in pixels, at least 8. Static. It changes the resolution only: one key
            draws the same scenes at every size.

    Returns:
        The images, `[num_samples, image_size, image_size, 3]` float32 in [0, 1], under treatment codes
        `3 * coordinate + level`, and the truth: pairs and latents, with `z_b[pair] == z_a`.

    Raises:
        ValueError: `num_samples` below 1 or `image_size` below 8.

    Example:
        >>> data, truth = balls(jax.random.key(0), num_samples=24, image_size=16)
        >>> data.a.x.shape, data.num_treatments, jnp.bincount(data.b.t).tolist()
        ((24, 16, 16, 3), 12, [2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2])
        >>> bool((truth.z_b[truth.pair] == truth.z_a).all())
        True

    References:
        Xi, Osea, Xu, Hartford (2024), Propensity score alignment of unpaired multimodal data, arXiv
        2404.01595.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples: expected at least 1, got {num_samples}")
    _check_image_size(image_size)
    key_t, key_z, key_order, key_a, key_b = jax.random.split(key, 5)
    t = jax.random.permutation(key_t, jnp.arange(num_samples, dtype=jnp.int32) % NUM_TREATMENTS)
    z = balls_latents(key_z, t)
    order = jax.random.permutation(key_order, num_samples)
    a = Modality(render_balls(key_a, z, image_size), t)
    b = Modality(render_squares(key_b, z[order], image_size), t[order])
    return Unpaired(a, b, NUM_TREATMENTS, NAMES), Truth(jnp.argsort(order).astype(jnp.int32), z, z[order])


@checked
@jax.jit
def balls_latents(key: KeyArray, t: Int[Array, " n"]) -> Float[Array, "n 4"]:
    """Draws the positions of both balls under the intervention of each sample.

    Ball 1 is uniform on [0.1, 0.9]^2. If 1.25 (x1^2 + y1^2) >= 1, then x2 ~ U(0.1, 0.5) and y2 ~ U(0.5, 0.9),
    else x2 ~ U(0.5, 0.9) and y2 ~ U(0.1, 0.5). Treatment `t = 3 * coordinate + level` sets one coordinate of
    (x1, y1, x2, y2) to 0.25, 0.5 or 0.75: one of ball 1 before ball 2 is drawn, which then follows the
    mechanism; one of ball 2 after it was drawn, which changes nothing else.

    Args:
        key: a typed PRNG key.
        t: `[n]` treatment codes in [0, 12).

    Returns:
        `[n, 4]` latents (x1, y1, x2, y2), float32, in units of the canvas.

    Raises:
        ValueError: `t` that is not a vector of integers.

    Example:
        >>> z = balls_latents(jax.random.key(0), jnp.array([0, 4, 11]))
        >>> z[0, 0].item(), z[1, 1].item(), z[2, 3].item()
        (0.25, 0.5, 0.75)
    """
    if t.ndim != 1 or not jnp.issubdtype(t.dtype, jnp.integer):
        raise ValueError(f"t: expected a vector of integers, [n], got shape {t.shape}, dtype {t.dtype}")
    key_one, key_two = jax.random.split(key)
    shape = (t.shape[0], 2)
    coordinate = (t // len(LEVELS))[:, None]
    level = jnp.array(LEVELS, jnp.float32)[t % len(LEVELS)][:, None]

    one = jax.random.uniform(key_one, shape, jnp.float32, 0.1, 0.9)
    one = jnp.where(coordinate == jnp.array([[0, 1]], t.dtype), level, one)
    far = 1.25 * jnp.sum(one**2, axis=1, keepdims=True) >= 1
    start = jnp.where(far, jnp.array([[0.1, 0.5]], jnp.float32), jnp.array([[0.5, 0.1]], jnp.float32))
    two = start + jax.random.uniform(key_two, shape, jnp.float32, 0.0, 0.4)
    two = jnp.where(coordinate == jnp.array([[2, 3]], t.dtype), level, two)
    return jnp.concatenate([one, two], axis=1)


@checked
def render_balls(
    key: KeyArray, z: Float[Array, "n 4"], image_size: int = 128, *, chunk: int = CHUNK
) -> Float[Array, "n size size 3"]:
    """Draws view A: a red and a blue ball where the latents say, over green to yellow discs.

    The background is 25 opaque discs of radius 0.3 with uniform centres and uniform values of the colour map.
    Both balls have radius 0.02 of the canvas; ball 2 covers ball 1. The middle of pixel `[row, column]` is at
    `x = (column + 1/2) / image_size`, `y = (row + 1/2) / image_size`: y points down. Edges are antialiased: a
    ball takes of every pixel the share of the area that it covers, so small images look like large ones averaged.

    Args:
        key: a typed PRNG key; draws the background.
        z: `[n, 4]` latents (x1, y1, x2, y2) in units of the canvas.
        image_size: height and width in pixels, at least 8. Static.
        chunk: images drawn at a time, which bounds memory; the pictures do not depend on it. Static: one
            program is compiled for each (chunk, image_size), whatever the number of samples.

    Returns:
        `[n, image_size, image_size, 3]` float32 in [0, 1].

    Raises:
        ValueError: `z` of another shape, `image_size` below 8 or `chunk` below 1.

    Example:
        >>> z = jnp.array([[0.2, 0.8, 0.7, 0.3]])
        >>> image = render_balls(jax.random.key(0), z, 64)[0]
        >>> [round(channel, 2) for channel in image[51, 12].tolist()]
        [0.9, 0.1, 0.1]
    """
    return _render(_VIEW_A, key, z, image_size, chunk)


@checked
def render_squares(
    key: KeyArray, z: Float[Array, "n 4"], image_size: int = 128, *, chunk: int = CHUNK
) -> Float[Array, "n size size 3"]:
    """Draws view B: a teal and a purple square at the moved positions, over discs of an orange colour map.

    Each position q is rotated by 0.3 pi about the centre and squashed,

        p = sigmoid(2 (R (q - 0.5) + 0.2)),

    with `R = [[cos, -sin], [sin, cos]]`. The squares are centred there, have side 0.04 of the canvas and stay
    upright. All else is as in `render_balls`.

    Args:
        key: a typed PRNG key; draws the background.
        z: `[n, 4]` latents (x1, y1, x2, y2) in units of the canvas, before they are moved.
        image_size: height and width in pixels, at least 8. Static.
        chunk: images drawn at a time, as in `render_balls`. Static.

    Returns:
        `[n, image_size, image_size, 3]` float32 in [0, 1].

    Raises:
        ValueError: `z` of another shape, `image_size` below 8 or `chunk` below 1.

    Example:
        >>> render_squares(jax.random.key(0), jnp.full((5, 4), 0.5), 16).shape
        (5, 16, 16, 3)
    """
    return _render(_VIEW_B, key, z, image_size, chunk)


def _render(view: _View, key: KeyArray, z: Array, image_size: int, chunk: int) -> Array:
    if z.ndim != 2 or z.shape[1] != 4 or not z.shape[0]:
        raise ValueError(f"z: expected shape [n, 4] with at least one row, got {z.shape}")
    if chunk < 1:
        raise ValueError(f"chunk: expected at least 1, got {chunk}")
    _check_image_size(image_size)
    n = z.shape[0]
    scene = jax.random.uniform(key, (n, NUM_DISCS, 3), jnp.float32), z.astype(jnp.float32)
    canvas = jnp.zeros((n, image_size, image_size, 3), jnp.float32)
    for start in range(0, n, chunk):
        rows = jnp.minimum(jnp.arange(start, start + chunk), n - 1)
        images = _draw(view, *take(scene, rows), image_size)
        canvas = _write(canvas, images[: n - start], start)
    return canvas


def _check_image_size(image_size: int) -> None:
    if image_size < MIN_IMAGE_SIZE:
        raise ValueError(f"image_size: expected at least {MIN_IMAGE_SIZE}, got {image_size}")


@partial(jax.jit, donate_argnums=0)
def _write(canvas: Array, images: Array, start: Array) -> Array:
    """Writes into the donated canvas, so that the images are in memory once."""
    return jax.lax.dynamic_update_slice_in_dim(canvas, images, start, axis=0)


@partial(jax.jit, static_argnums=(0, 3))
def _draw(view: _View, discs: Array, z: Array, image_size: int) -> Array:
    """Mixes two ends of a colour map and two object colours: `([k, 25, 3], [k, 4]) -> [k, size, size, 3]`."""
    value = _background(discs, image_size)
    cover = view.cover(z.reshape(-1, 2, 2), image_size)
    cover_one, cover_two = cover[:, 0], cover[:, 1]
    rest = (1 - cover_one) * (1 - cover_two)
    parts = (
        (rest * (1 - value), view.low),
        (rest * value, view.high),
        (cover_one * (1 - cover_two), view.one),
        (cover_two, view.two),
    )
    mixed = sum(weight[..., None] * jnp.array(colour, jnp.float32).reshape(1, 1, 1, 3) for weight, colour in parts)
    return jnp.clip(mixed, 0.0, 1.0)


def _background(discs: Array, image_size: int) -> Array:
    """Paints discs (x, y, value) over each other: `[k, 25, 3] -> [k, size, size]` values of the colour map.

    The colour maps are linear, so mixing values at the edges is mixing colours. A disc covers
    `clip(size (R^2 - d^2) / 2R + 1/2)` of a pixel at distance d. Near the edge that is the signed distance in
    pixels, and it needs no square root and splits into a row and a column.
    """
    centres = (jnp.arange(image_size, dtype=jnp.float32)[None, None] + 0.5) / image_size
    scale = image_size / (2 * DISC_RADIUS)
    column = (DISC_RADIUS**2 - (centres - discs[:, :, 0, None]) ** 2) * scale + 0.5
    row = (centres - discs[:, :, 1, None]) ** 2 * scale
    value = jnp.zeros((discs.shape[0], image_size, image_size), jnp.float32)
    for k in range(NUM_DISCS):
        cover = jnp.clip(column[:, k, None, :] - row[:, k, :, None], 0.0, 1.0)
        value = value + cover * (discs[:, k, 2, None, None] - value)
    return value


def _cover_balls(centres: Array, image_size: int) -> Array:
    """The share of each pixel that each ball covers: `[k, 2, 2] -> [k, 2, size, size]`.

    The exact length of the ball's chord within the pixel, averaged over vertical strips of the pixel (about
    512 across the canvas at any image size, 20 across a ball).
    """
    strips = -(-_STRIPS // image_size)
    x = (jnp.arange(image_size * strips, dtype=jnp.float32) + 0.5) / (image_size * strips)
    offset = x.reshape(1, 1, image_size, strips) - centres[:, :, 0, None, None]
    chord = jnp.sqrt(jnp.maximum(BALL_RADIUS**2 - offset**2, 0.0)) * image_size
    edge = jnp.arange(image_size, dtype=jnp.float32)[None, None] - centres[:, :, 1, None] * image_size
    lengths = (_overlap(edge[..., None], chord[:, :, None, :, i]) for i in range(strips))
    return sum(lengths, start=jnp.float32(0)) / strips


def _cover_squares(centres: Array, image_size: int) -> Array:
    """The share of each pixel that each square covers, exactly, at the moved positions."""
    cos, sin = math.cos(0.3 * math.pi), math.sin(0.3 * math.pi)
    x, y = centres[..., 0] - 0.5, centres[..., 1] - 0.5
    turned = jnp.stack([cos * x - sin * y, sin * x + cos * y], axis=-1)
    moved = jax.nn.sigmoid(2 * (turned + 0.2))[..., None] * image_size
    edge = jnp.arange(image_size, dtype=jnp.float32).reshape(1, 1, 1, -1) - moved
    inside = _overlap(edge, jnp.float32(SQUARE_SIDE / 2 * image_size))
    return inside[:, :, 1, :, None] * inside[:, :, 0, None, :]


def _overlap(edge: Array, half: Array) -> Array:
    """The length of `[edge, edge + 1]` within `[-half, half]`."""
    return jnp.maximum(jnp.minimum(edge + 1, half) - jnp.maximum(edge, -half), 0.0)


_VIEW_A = _View((0.0, 0.5, 0.4), (1.0, 1.0, 0.4), (0.9, 0.1, 0.1), (0.1, 0.1, 0.9), _cover_balls)
_VIEW_B = _View((1.0, 0.92, 0.8), (0.85, 0.35, 0.0), (0.0, 0.55, 0.55), (0.45, 0.0, 0.55), _cover_squares)
