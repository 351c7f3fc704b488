"""A simulated perturbation screen: expression counts and image embeddings of cells that share a latent state."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from psa_jax.arguments import checked
from psa_jax.data.samples import Modality, Truth, Unpaired
from psa_jax.datasets.screen_law import ScreenLaw, check
from psa_jax.types import Array, KeyArray

HIDDEN = 64
LIBRARY_SPREAD = 0.3
MIN_DISPERSION = 1e-9  # of a float32 factor that is 1 up to rounding
_SCREEN = 240401595  # keeps the key of a screen apart from what a caller derives from `jax.random.key(screen)`


class _Side(NamedTuple):
    """What a modality makes of cells: a linear drive `z shared + w private + offset`, and what shifts it."""

    shared: Array
    private: Array
    offset: Array
    effects: Array
    batches: Array


class _Screen(NamedTuple):
    """What all cells of a screen have in common."""

    effects: Array
    mixing: Array
    a: _Side
    b: _Side
    readout: Array
    log_sizes: Array
    share_a: Array
    missing_order: Array


class _Strengths(NamedTuple):
    """The traced part of a law, float32 scalars."""

    effect: Array
    response: Array
    heterogeneity: Array
    private: Array
    private_effect: Array
    batch_effect: Array
    noise: Array
    dispersion: Array
    depth: Array


@checked
def perturbation_screen(
    key: KeyArray,
    *,
    screen: int = 0,
    num_samples: int = 2000,
    num_treatments: int = 20,
    num_genes: int = 200,
    num_features: int = 64,
    num_latents: int = 4,
    law: ScreenLaw = ScreenLaw(),
    unpaired: float = 0.0,
    missing_a: int = 0,
    missing_b: int = 0,
    counts: bool = False,
) -> tuple[Unpaired, Truth]:
    """Draws cells of a perturbation screen, measured by expression (modality a) and by image embedding (b).

    Cell i has a treatment t, a latent state z that both modalities show, and for each modality a private state
    w that the other cannot know, and a batch, uniform over `batches` and independent of everything else. With
    standard normal `e`, uniform `U` in (0, 1), and weights of the screen in capitals,

        z = effect R B[t] + heterogeneity L e,    R = U^(1 / response - 1),
        w = e + private_effect C[t],
        drive = W' z + private V' w + offset.

    Treatment 0 is the control: `B[0] = C[0] = 0`. R is the share of the effect that a cell realises; its mean
    is `response`; all strengths are those of `law`. The rows of L have unit length; it is the identity plus as much
    noise. Other weights are standard normal, those of the drive and of the batches the modality's own, W and V divided
    by `sqrt(num_latents)`. Modality a has genes g with negative binomial counts,

        rate[g] = l softmax(drive + batch_effect S[batch])[g],    l = depth exp(s e - s^2 / 2), s = 0.3,
        count[g] ~ Poisson(rate[g] G[g]),    G ~ Gamma with mean 1 and variance dispersion,

    hence `var count = rate + dispersion rate^2`; modality b has features

        x = O' tanh(drive) + batch_effect S[batch] + noise e,    O of 64 hidden units, divided by 8.

    The views share nothing but z and t. That treatments act on both modalities through z alone, as the paper
    assumes, holds if `private_effect` is 0.

    Shapes are decided on the host, and do not depend on `key`. Static: whatever decides a shape. The strengths are
    traced, so a sweep over them compiles once.

    Args:
        key: a typed PRNG key, threefry (JAX draws Poisson counts with no other); draws the cells.
        screen: which screen, in [0, 2^31). It alone draws the weights above, the sizes of the treatments and which
            of them are missing. Different keys draw different cells of one screen, for training and testing.
        num_samples: how many cells, measured or not, at least `num_treatments`. Every treatment gets at least one.
        num_treatments: the number of treatments with the control, at least 2.
        num_genes: features of modality a, at least 2.
        num_features: features of modality b.
        num_latents: length of z and of each w.
        law: strengths of what acts on cells, batches, sizes of treatments; see `ScreenLaw`.
        unpaired: share of cells, in [0, 1), that only one modality measures, in every treatment as nearly as whole
            cells allow; one cell is always measured by both. The screen draws, for each treatment, which part of
            them modality a measures.
        missing_a: how many treatments modality a lacks; never the control.
        missing_b: the same for modality b, other treatments.
        counts: return the counts of modality a as they are, instead of `log(1 + depth count / sum of counts)`.

    Returns:
        `a.x` `[n_a, num_genes]` and `b.x` `[n_b, num_features]`, float32, rows in unrelated random orders, and
        the truth: latents `z` of all rows, and pairs, -1 for cells without a row in modality b. The two have
        `num_samples` rows each unless cells are unpaired or treatments missing.

    Raises:
        ValueError: a setting out of its range, or fewer than two treatments that both modalities have.

    Example:
        >>> data, truth = perturbation_screen(jax.random.key(0), num_samples=100, missing_b=2, unpaired=0.2)
        >>> data.a.x.shape, data.b.x.shape, data.num_treatments
        ((90, 200), (81, 64), 20)
        >>> known = truth.pair >= 0
        >>> bool((truth.z_b[truth.pair] == truth.z_a)[known].all()), int(known.sum())
        (True, 71)

    References:
        Xi, Osea, Xu, Hartford (2024), Propensity score alignment of unpaired multimodal data, arXiv 2404.01595.
        The law of the counts is that of Lopez et al. (2018), Deep generative modeling for single-cell
        transcriptomics, Nature Methods 15, without zero inflation.
    """
    for name, value, least in (
        ("num_treatments", num_treatments, 2),
        ("num_samples", num_samples, num_treatments),
        ("num_genes", num_genes, 2),
        ("num_features", num_features, 1),
        ("num_latents", num_latents, 1),
        ("missing_a", missing_a, 0),
        ("missing_b", missing_b, 0),
    ):
        check(name, value, isinstance(value, int | np.integer) and value >= least, f"an integer, at least {least}")
    check("screen", screen, isinstance(screen, int | np.integer) and 0 <= screen < 2**31, "an integer in [0, 2^31)")
    missing, most = missing_a + missing_b, num_treatments - 2
    check("missing_a + missing_b", missing, missing <= most, f"at most {most}, so that two treatments are shared")
    check("unpaired", unpaired, 0 <= unpaired < 1, "a number in [0, 1)")
    s = _Strengths(*(jnp.float32(getattr(law, name)) for name in _Strengths._fields))

    drawn = _draw_screen(jax.random.key(screen), num_treatments, num_genes, num_features, num_latents, law.batches)
    t, in_a, in_b = _plan(drawn, num_samples, law.control_factor, law.size_spread, unpaired, missing_a, missing_b)
    key_z, key_order_a, key_order_b, key_a, key_b = jax.random.split(key, 5)
    rows_a, rows_b = (
        np.asarray(jax.random.permutation(k, jnp.asarray(np.flatnonzero(there), jnp.int32)))
        for k, there in ((key_order_a, in_a), (key_order_b, in_b))
    )
    place = np.full(num_samples, -1, np.int32)
    place[rows_b] = np.arange(rows_b.size)
    z = _latents(key_z, drawn, s, jnp.asarray(t))
    t_a, t_b = jnp.asarray(t[rows_a]), jnp.asarray(t[rows_b])
    z_a, z_b = z[rows_a], z[rows_b]
    count = _counts(key_a, drawn.a, s, z_a, t_a)
    a = Modality(count if counts else _normalised(count, s), t_a)
    b = Modality(_embedding(key_b, drawn.b, drawn.readout, s, z_b, t_b), t_b)
    names = "control", *(f"perturbation {code}" for code in range(1, num_treatments))
    return Unpaired(a, b, num_treatments, names), Truth(jnp.asarray(place[rows_a]), z_a, z_b)


@partial(jax.jit, static_argnums=(1, 2, 3, 4, 5))
def _draw_screen(key: KeyArray, num_treatments: int, genes: int, features: int, k: int, batches: int) -> _Screen:
    key_weights, key_share, key_missing = jax.random.split(jax.random.fold_in(key, _SCREEN), 3)
    drives, shifts = ((2 * k + 1, genes), (2 * k + 1, HIDDEN)), ((batches, genes), (batches, features))
    shapes = (3, num_treatments, k), (k, k), *drives, *shifts, (HIDDEN, features), (num_treatments - 1,)
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    flat = jax.random.normal(key_weights, (int(ends[-1]),), jnp.float32)  # at once: every draw takes long to compile
    parts = (part.reshape(shape) for part, shape in zip(jnp.split(flat, ends[:-1]), shapes, strict=True))
    effects, noise, drive_a, drive_b, shift_a, shift_b, readout, log_sizes = parts

    def side(effects: Array, drive: Array, shift: Array) -> _Side:
        shared, private, offset = jnp.split(drive, (k, 2 * k))
        return _Side(shared / math.sqrt(k), private / math.sqrt(k), offset[0], effects, shift)

    effects = effects.at[:, 0].set(0.0)
    mixing = jnp.eye(k, dtype=jnp.float32) + noise / math.sqrt(k)
    return _Screen(
        effects=effects[0],
        mixing=mixing / jnp.linalg.norm(mixing, axis=1, keepdims=True),
        a=side(effects[1], drive_a, shift_a),
        b=side(effects[2], drive_b, shift_b),
        readout=readout / math.sqrt(HIDDEN),
        log_sizes=log_sizes,
        share_a=jax.random.uniform(key_share, (num_treatments,), jnp.float32),
        missing_order=jax.random.permutation(key_missing, jnp.arange(1, num_treatments, dtype=jnp.int32)),
    )


def _plan(
    law: _Screen, num_samples: int, factor: float, spread: float, unpaired: float, missing_a: int, missing_b: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The treatment of each cell, sorted, and whether each modality measures it."""
    sizes = _sizes(np.asarray(law.log_sizes, np.float64), num_samples, factor, spread)
    once = np.minimum(np.diff(np.rint(unpaired * np.cumsum(sizes)), prepend=0).astype(np.int64), sizes - 1)
    only_a = np.rint(np.asarray(law.share_a, np.float64) * once).astype(np.int64)
    t = np.repeat(np.arange(sizes.size, dtype=np.int32), sizes)
    number = np.arange(num_samples) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    missing = np.asarray(law.missing_order)
    lost_a, lost_b = missing[:missing_a], missing[missing_a : missing_a + missing_b]
    in_a = ((number < only_a[t]) | (number >= once[t])) & ~np.isin(t, lost_a)
    in_b = (number >= only_a[t]) & ~np.isin(t, lost_b)
    return t, in_a, in_b


def _sizes(log_sizes: np.ndarray, num_samples: int, factor: float, spread: float) -> np.ndarray:
    """Cells of each treatment, at least one: shares raised to one cell, then rounded by largest remainders."""
    weights = np.exp(spread * (log_sizes - log_sizes.max()))
    weights = np.concatenate([[factor * weights.mean()], weights])
    excess = np.maximum(num_samples * weights / weights.sum() - 1, 0)
    spare = num_samples - excess.size
    shares = excess * (spare / excess.sum()) if spare else np.zeros_like(excess)
    sizes = np.floor(shares).astype(np.int64)
    order = np.argsort(sizes - shares, kind="stable")
    sizes[order[: spare - sizes.sum()]] += 1
    return sizes + 1


@jax.jit
def _latents(key: KeyArray, law: _Screen, s: _Strengths, t: Array) -> Array:
    key_response, key_state = jax.random.split(key)
    uniform = jax.random.uniform(key_response, (t.shape[0], 1), jnp.float32)
    state = jax.random.normal(key_state, (t.shape[0], law.mixing.shape[0]), jnp.float32)
    return s.effect * uniform ** (1 / s.response - 1) * law.effects[t] + s.heterogeneity * state @ law.mixing.T


def _drive(key: KeyArray, side: _Side, s: _Strengths, z: Array, t: Array) -> tuple[Array, Array]:
    """What a modality measures before its own nonlinearity, and the shift of each cell's batch."""
    key_state, key_batch = jax.random.split(key)
    w = jax.random.normal(key_state, z.shape, jnp.float32) + s.private_effect * side.effects[t]
    batch = jax.random.randint(key_batch, t.shape, 0, side.batches.shape[0], jnp.int32)
    drive = z @ side.shared + s.private * w @ side.private + side.offset[None]
    return drive, s.batch_effect * side.batches[batch]


@jax.jit
def _counts(key: KeyArray, side: _Side, s: _Strengths, z: Array, t: Array) -> Array:
    key_drive, key_library, key_gamma, key_poisson = jax.random.split(key, 4)
    drive, shift = _drive(key_drive, side, s, z, t)
    log_library = LIBRARY_SPREAD * jax.random.normal(key_library, (t.shape[0], 1), jnp.float32) - LIBRARY_SPREAD**2 / 2
    rate = s.depth * jnp.exp(log_library) * jax.nn.softmax(drive + shift, axis=1)
    shape = 1 / jnp.maximum(s.dispersion, MIN_DISPERSION)
    factor = jax.random.gamma(key_gamma, shape, rate.shape, jnp.float32) / shape
    return jax.random.poisson(key_poisson, rate * factor, dtype=jnp.int32).astype(jnp.float32)


@jax.jit
def _normalised(count: Array, s: _Strengths) -> Array:
    return jnp.log1p(s.depth * count / jnp.maximum(count.sum(axis=1, keepdims=True), 1.0))


@jax.jit
def _embedding(key: KeyArray, side: _Side, readout: Array, s: _Strengths, z: Array, t: Array) -> Array:
    key_drive, key_noise = jax.random.split(key)
    drive, shift = _drive(key_drive, side, s, z, t)
    return jnp.tanh(drive) @ readout + shift + s.noise * jax.random.normal(key_noise, shift.shape, jnp.float32)
