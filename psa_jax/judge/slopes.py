"""The other modality's scores regressed on one's own features: what scores are refined by."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from psa_jax.data.groups import Groups
from psa_jax.data.source import Source, fold_samples, map_parts, map_samples
from psa_jax.judge.agreement import treatments_of, within
from psa_jax.match import relative, sinkhorn
from psa_jax.match.blockwise import blockwise
from psa_jax.types import Array, Float, Int, KeyArray, pytree

SHARE, RIDGE, FOLDS = 0.5, 1.0, 5
CONSTANT = 1e-6  # of a column's magnitude: rounding of single precision
CHUNK = 1024
_MATCHER = functools.partial(sinkhorn, eps=relative(0.2), tol=1e-2, max_iters=300, newton=0)


@pytree
class Refinement:
    """How scores of one modality become refined ones: `share u + x slope + shift`, of a sample alone.

    Attributes:
        share: what is left of the classifiers' scores.
        slope: `[p, d]` of flat features.
        shift: `[d]`.
    """

    share: Float[Array, ""]
    slope: Float[Array, "p d"]
    shift: Float[Array, " d"]

    def __call__(self, u: Float[Array, "k d"], x: Float[Array, "k ..."] | Source) -> Float[Array, "k d"]:
        """Refines the scores `[k, d]` of samples with features `[k, ...]`."""
        by_features = map_samples(lambda part: _product(flat(part, u.dtype), self.slope), x, max(1, x.shape[0]))
        return self.share * u + by_features + self.shift[None]


@pytree
class Once:
    """Refined scores, what refined each fold `[folds]`, and what refines new samples."""

    scores: Float[Array, "n d"]
    each: Refinement
    final: Refinement


@functools.partial(jax.jit, static_argnames="mesh")
def once(
    folds: tuple[Array, Array], u: Array, v: Array, x: Any, y: Any, groups: Groups, mesh: Mesh | None = None
) -> tuple[Once, Once]:
    """Both modalities' scores refined by each other's; features are flat."""
    t_a, t_b = treatments_of(groups)
    coupling = blockwise(_MATCHER, mesh=mesh)(u, v, groups)
    return (
        _side(folds[0], u, coupling.apply(v), x, t_a, groups),
        _side(folds[1], v, coupling.T.apply(u), y, t_b, groups),
    )


def folds_of(key: KeyArray, u: Array, v: Array) -> tuple[Int[Array, " n"], Int[Array, " m"]]:
    """A random fold of each sample of both modalities."""
    key_a, key_b = jax.random.split(key)
    return _folds(key_a, u), _folds(key_b, v)


@jax.jit
def applied(each: Refinement, fold: Int[Array, " n"], u: Array, x: Any) -> Float[Array, "n d"]:
    """Scores of samples, each refined as its fold is."""

    def part(ids: Array, rows: Array) -> Array:
        by_features = _product(flat(rows, u.dtype)[None], each.slope) + each.shift[:, None]
        own = jnp.take_along_axis(by_features, fold[ids][None, :, None], axis=0)[0]
        return each.share[fold[ids]][:, None] * u[ids] + own

    return map_parts(part, x, CHUNK)


def _side(fold: Int[Array, " n"], u: Array, projected: Array, x: Array | Source, t: Array, groups: Groups) -> Once:
    if isinstance(x, Source):
        return _side_read(fold, u, projected, x, t, groups)
    magnitude = jnp.max(jnp.abs(x), axis=0, keepdims=True, initial=0)
    magnitude = jnp.where(magnitude > 0, magnitude, 1)
    x = x / magnitude
    own = within(u, t, groups)
    predicted, slopes = _regressed(fold, within(x, t, groups), within(projected, t, groups))
    scale, by = _how(u, predicted, own, _mean(x, t, groups), t, groups)
    refined = _by_fold(lambda slope: by(slope)(u, x), slopes, fold, jnp.zeros_like(u))
    return _told(refined, by, slopes, magnitude)


def _told(refined: Array, by: Callable[[Array], Refinement], slopes: Array, magnitude: Array) -> Once:
    """What refines features that are not divided by their magnitude."""

    def one(slope: Array) -> Refinement:
        found = by(slope)
        return Refinement(found.share, found.slope / magnitude.T, found.shift)

    return Once(refined, jax.lax.map(one, slopes), one(slopes.mean(0)))


def _by_fold(fn: Callable[[Array], Array], slopes: Array, fold: Int[Array, " n"], start: Array) -> Array:
    """Each sample's row of what `fn` makes of its fold's slope; one fold's rows are held at a time."""

    def one(out: Array, args: tuple[Array, Array]) -> tuple[Array, None]:
        number, slope = args
        return jnp.where((fold == number)[:, None], fn(slope), out), None

    return jax.lax.scan(one, start, (jnp.arange(FOLDS), slopes))[0]


def _side_read(fold: Int[Array, " n"], u: Array, projected: Array, x: Source, t: Array, groups: Groups) -> Once:
    """`_side`, of features that are read: what is held of all of them are sums, and their products with slopes."""
    p, number, matched = math.prod(x.shape[1:]), groups.num_treatments + 1, (t < groups.num_treatments)[:, None]
    own, other = within(u, t, groups), within(projected, t, groups)

    def largest(top: Array, _: Array, part: Array, real: Array) -> Array:
        return jnp.maximum(top, jnp.where(real[:, None], jnp.abs(flat(part, u.dtype)), 0).max(0))

    magnitude = fold_samples(largest, jnp.zeros(p, u.dtype), x, CHUNK)
    magnitude = jnp.where(magnitude > 0, magnitude, 1)[None]

    def add(total: Array, ids: Array, part: Array, real: Array) -> Array:
        return total.at[t[ids]].add(jnp.where(real[:, None], flat(part, u.dtype) / magnitude, 0))

    total = fold_samples(add, jnp.zeros((number, p), u.dtype), x, CHUNK)
    count = jnp.zeros(number, u.dtype).at[t].add(1)[:, None]
    mean = total / jnp.maximum(count, 1)

    def multiply(sums: tuple[Array, Array], ids: Array, part: Array, real: Array) -> tuple[Array, Array]:
        apart = jnp.where(real[:, None] & matched[ids], flat(part, u.dtype) / magnitude - mean[t[ids]], 0)
        of = fold[ids][None] == jnp.arange(FOLDS)[:, None]
        each = jnp.where(of[:, :, None], apart[None], 0)
        return sums[0] + _product(each.mT, each), sums[1] + _product(each.mT, other[ids][None])

    empty = jnp.zeros((FOLDS, p, p), u.dtype), jnp.zeros((FOLDS, p, u.shape[1]), u.dtype)
    squares, products = fold_samples(multiply, empty, x, CHUNK)
    unit = _unit(jnp.sqrt(jnp.diagonal(squares.sum(0)) / x.shape[0])[None])
    rest = (1 - jnp.eye(FOLDS, dtype=u.dtype))[:, :, None, None]
    squares, products = (jnp.sum(rest * sums[None], axis=1) for sums in (squares * (unit.T * unit)[None], products))
    slopes = _solved(squares, products * unit.T[None], x.shape[0]) * unit.T[None]

    def predict(ids: Array, part: Array) -> Array:
        each = _product((flat(part, u.dtype) / magnitude)[None], slopes)
        return jnp.take_along_axis(each, fold[ids][None, :, None], axis=0)[0]

    by_features = map_parts(predict, x, min(CHUNK, x.few))
    predicted = jnp.where(matched, by_features - _product(mean[None], slopes)[fold, t], 0)
    mean_x = total[:-1].sum(0, keepdims=True) / jnp.maximum(count[:-1].sum(), 1)
    scale, by = _how(u, predicted, own, mean_x, t, groups)
    shift = jax.vmap(lambda slope: by(slope).shift)(slopes)
    final = by(slopes.mean(0))
    refined = final.share * u + scale * by_features + shift[fold]
    return _told(refined, by, slopes, magnitude)


def _how(
    u: Array, predicted: Array, own: Array, mean_x: Array, t: Array, groups: Groups
) -> tuple[Array, Callable[[Array], Refinement]]:
    """The scale of what is predicted of deviations `own`, and how scores are refined by a slope `[p, d]`."""
    size, norm = jnp.sum(predicted**2), jnp.sum(own**2)
    some = (size > 0) & (norm > 0)
    size, norm = jnp.where(some, size, 1), jnp.where(some, norm, 1)
    weight = jnp.where(some, jnp.clip(jnp.sum(own * predicted) / jnp.sqrt(size * norm), 0, SHARE), 0)
    scale, share, mean_u = weight * jnp.sqrt(norm / size), 1 - weight, _mean(u, t, groups)

    def by(slope: Array) -> Refinement:
        return Refinement(share, scale * slope, ((1 - share) * mean_u - scale * _product(mean_x, slope))[0])

    return scale, by


def _mean(x: Array, t: Array, groups: Groups) -> Float[Array, "1 p"]:
    """Of the samples that are matched."""
    real = (t < groups.num_treatments)[:, None]
    return jnp.sum(jnp.where(real, x, 0), axis=0, keepdims=True) / jnp.maximum(real.sum(), 1).astype(x.dtype)


def _regressed(fold: Int[Array, " n"], x: Array, y: Array) -> tuple[Float[Array, "n d"], Float[Array, "folds p d"]]:
    """Ridge regression: every fold predicted by the others, and the slopes that predicted each. `x` is of order one."""
    unit = _unit(jnp.sqrt(jnp.mean(x * x, axis=0, keepdims=True)))
    x = x * unit

    def without(number: Array) -> Array:
        rest = jnp.where((fold != number)[:, None], x, 0)
        return _solved(_product(rest.T, rest), _product(rest.T, y), x.shape[0])

    slopes = jax.lax.map(without, jnp.arange(FOLDS))
    predicted = _by_fold(lambda slope: _product(x, slope), slopes, fold, jnp.zeros_like(y))
    return predicted, slopes * unit.T[None]


def _unit(size: Float[Array, "1 p"]) -> Float[Array, "1 p"]:
    """One over the deviations of columns, zero where they are rounding."""
    varies = size > CONSTANT
    return jnp.where(varies, 1 / jnp.where(varies, size, 1), 0)


def _solved(squares: Array, products: Array, n: int) -> Array:
    """Slopes `[..., p, d]` of a ridge regression."""
    penalty = RIDGE * n * jnp.eye(squares.shape[-1], dtype=squares.dtype)
    return jnp.linalg.solve(squares + jnp.broadcast_to(penalty, squares.shape), products)


def _folds(key: KeyArray, u: Array) -> Int[Array, " n"]:
    return jax.random.permutation(key, u.shape[0]) % FOLDS


def flat(x: Any, dtype: jnp.dtype) -> Any:
    """Features of any shape as rows of numbers `[n, p]`; those of a source are flat once they are read."""
    if isinstance(x, Source):
        return x.astype(dtype)
    return jnp.asarray(x, dtype).reshape(x.shape[0], -1)


def _product(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y, precision="highest")
