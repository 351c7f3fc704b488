"""Canonical directions of the treatments: the linear baseline."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from psa_jax.arguments import checked
from psa_jax.baselines.inputs import prepared, shared
from psa_jax.baselines.raw import raw
from psa_jax.data.samples import Unpaired
from psa_jax.types import Array, Float, float_dtype

MAX_DIM = 10
MIN_SHRINKAGE = 1e-4


@checked
def cca(
    data: Unpaired, *, query: Unpaired | None = None, dim: int | None = None, shrinkage: Any = None
) -> tuple[Float[Array, "n d"], Float[Array, "m d"]]:
    r"""Canonical correlation analysis of the class means: the directions along which treatments move both modalities.

    Features are standardised (see `raw`; images are flattened) and whitened by `S = (1 - r) W + r mean(diag W) I`,
    where `W` is the pooled covariance within treatments and `r` the shrinkage, so that there may be more features than
    samples. With `M_a`, `M_b` the whitened means of the shared treatments, less their weighted average,

        M_a^T diag(w) M_b = U diag(s) V^T,    w_t ∝ sqrt(share of t in a * share of t in b),

    and `u = x S_a^(-1/2) U`, `v = y S_b^(-1/2) V`, so that the unit of each direction is its standard deviation within
    treatments, times `sqrt(s_k / s_1)`: directions in which the modalities agree more weigh more. No randomness, no
    pairs. It costs `O(n p min(n, p))`.

    Args:
        data: what to learn from. All its samples tell of the covariance, those of shared treatments of the means.
        query: other samples to embed instead of `data`.
        dim: directions, static; by default one less than shared treatments, but at most 10 and as many as features.
        shrinkage: in (0, 1], the weight of the identity in the covariance; by default Ledoit and Wolf's estimate for
            each modality, but at least 1e-4. Traced.

    Returns:
        `u [n, dim]` and `v [m, dim]`. Scaling single features changes nothing.

    Raises:
        ValueError: invalid data, fewer than two shared treatments, a query of other features or treatments, a `dim`
            beyond the shared treatments less one or the features, or a shrinkage outside (0, 1].

    Example:
        >>> from psa_jax.data.samples import Modality
        >>> x, t = jax.random.normal(jax.random.key(0), (60, 5)), jnp.arange(60) % 3
        >>> x = x + 3 * t[:, None].astype(x.dtype)
        >>> u, v = cca(Unpaired(Modality(x, t), Modality(-x[:40, :4], t[:40]), 3))
        >>> u.shape, v.shape, bool(jnp.corrcoef(u[:40, 0], v[:, 0])[0, 1] > 0.8)
        ((60, 2), (40, 2), True)

    References:
        Hotelling, Biometrika 1936; Ledoit, Wolf, J. Multivar. Anal. 2004 (shrinkage).
    """
    data, _ = prepared(data, query)
    if shrinkage is not None and not 0 < shrinkage <= 1:
        raise ValueError(f"shrinkage: expected a number in (0, 1], got {shrinkage}")
    learnt, target = raw(data), raw(data, query=query)
    dtype = float_dtype(*learnt, *target)
    x, (u, v) = ([side.astype(dtype) for side in sides] for sides in (learnt, target))
    most = min(shared(data).size - 1, x[0].shape[1], x[1].shape[1])
    if dim is not None and not 1 <= dim <= most:
        raise ValueError(
            f"dim: expected 1 to {most}, at most the shared treatments less one and the features, got {dim}"
        )
    dim = min(most, MAX_DIM) if dim is None else dim
    (centre_a, centre_b), (by_a, by_b) = _directions(x, (data.a.t, data.b.t), shrinkage, data.num_treatments, dim)
    return _product(u - centre_a, by_a), _product(v - centre_b, by_b)


@functools.partial(jax.jit, static_argnames=("num_treatments", "dim"))
def _directions(x: Any, t: Any, shrinkage: Any, num_treatments: int, dim: int) -> tuple[Any, Any]:
    """The centre `[1, p]` and the directions `[p, dim]` of each modality."""
    sizes = [jnp.bincount(labels, length=num_treatments).astype(x[0].dtype) for labels in t]
    weights = jnp.sqrt(sizes[0] / sizes[0].sum() * (sizes[1] / sizes[1].sum()))
    weights = (weights / weights.sum())[:, None]
    (centre_a, white_a, q_a, r_a), (centre_b, white_b, q_b, r_b) = (
        _side(*side, weights, shrinkage) for side in zip(x, t, sizes, strict=True)
    )
    left, strength, right = jnp.linalg.svd(_product(r_a, r_b.T))
    emphasis = jnp.sqrt(strength[:dim] / jnp.where(strength[0] > 0, strength[0], 1))[:, None]
    by_a = white_a(emphasis * _product(q_a, left[:, :dim]).T).T
    by_b = white_b(emphasis * _product(q_b, right[:dim].T).T).T
    return (centre_a, centre_b), (by_a, by_b)


def _side(x: Array, t: Array, sizes: Array, weights: Array, shrinkage: Any) -> tuple[Any, ...]:
    """Centre, the whitening as a function of rows, and the QR factors of the whitened means' transpose."""
    means = jnp.zeros((sizes.size, x.shape[1]), x.dtype).at[t].add(x) / jnp.maximum(sizes, 1)[:, None]
    within = x - means[t]
    _, size, axes = jnp.linalg.svd(within, full_matrices=False)
    variance, level = size**2 / t.size, jnp.square(within).mean()
    level = jnp.where(level > 0, level, 1)
    r = ledoit_wolf(within) if shrinkage is None else jnp.asarray(shrinkage, x.dtype)
    beyond = 1 / jnp.sqrt(r * level)
    along = (1 / jnp.sqrt((1 - r) * variance + r * level) - beyond)[None]

    def white(rows: Array) -> Array:
        return beyond * rows + _product(_product(rows, axes.T) * along, axes)

    centre = (weights * means).sum(0, keepdims=True)
    q, rest = jnp.linalg.qr((jnp.sqrt(weights) * white(means - centre)).T)
    return centre, white, q, rest


def ledoit_wolf(within: Float[Array, "n p"]) -> Float[Array, ""]:
    """Ledoit and Wolf's estimate of the best shrinkage of the covariance of centred samples, in [1e-4, 1]."""
    n, p = within.shape
    gram = _product(within, within.T) if n < p else _product(within.T, within)
    norm = jnp.square(gram / n).sum()
    noise = (jnp.square(jnp.square(within).sum(1)).sum() / n - norm) / n
    distance = norm - jnp.square(jnp.square(within).sum() / n) / p
    return jnp.clip(noise / jnp.where(distance > 0, distance, noise + 1), MIN_SHRINKAGE, 1)


def _product(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y, precision="highest")
