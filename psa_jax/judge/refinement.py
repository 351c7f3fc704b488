"""Scores learnt again from what the other modality says of them, where labels show that the two share anything."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from psa_jax.arguments import checked
from psa_jax.data.groups import Groups
from psa_jax.data.source import Source, fold_samples, map_parts, map_samples, reading
from psa_jax.judge.agreement import treatments_of, within
from psa_jax.judge.evidence import Evidence, evidence
from psa_jax.judge.thin import thin, together
from psa_jax.match import relative, sinkhorn
from psa_jax.match.blockwise import blockwise
from psa_jax.types import Array, Float, Int, KeyArray, float_dtype, pytree

SHARE, RIDGE, FOLDS = 0.5, 1.0, 5
CONSTANT = 1e-6  # of a column's magnitude: rounding of single precision
MOST_EVIDENCE, MOST_FEATURES, CHUNK = 400, 512, 1024
MOST_SCORES = 2**27  # numbers of a modality, of which several copies are held
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
class Refined:
    """What `refine` found.

    Attributes:
        u: `[n, d]` the scores to match by: refined ones, or those given.
        v: `[m, d]` the same of modality b.
        a: what refines new samples of a; None where the given scores are kept.
        b: the same of b.
        evidence: of the given scores; refined ones have seen each other and can give none.
    """

    u: Float[Array, "n d"]
    v: Float[Array, "m d"]
    a: Refinement | None
    b: Refinement | None
    evidence: Evidence


@checked
def refine(
    key: KeyArray,
    u: Float[Array, "n d"],
    v: Float[Array, "m d"],
    x: Float[Array, "n ..."] | Source,
    y: Float[Array, "m ..."] | Source,
    groups: Groups,
    *,
    mesh: Mesh | None = None,
) -> Refined:
    r"""Learns scores again from the other modality's, if labels say that the two share anything. On the host.

    A classifier has one label of each sample to learn from. A coupling has more to say: what the other modality's
    classifier thinks of the likely partners. Both are estimates of one function of a common state, with errors of their
    own. So the projected scores of the other modality are regressed on one's own features, within treatments (ridge of
    standardised columns, of five folds each predicted by the others), and the prediction, at the scores' scale, is
    averaged with the scores: half of each, or less of it where it correlates with them by less than 0.5. The result is
    a function of the sample alone, for new ones too.

    Scores are kept as they are where `evidence` finds nothing common, and with more than 512 features (images, genes;
    principal components are few enough), which a linear regression within treatments does not suit, or more than 2^27
    scores (thousands of treatments), of which several copies would be held.

    Args:
        key: decides folds and samples.
        u: scores `[n, d]`.
        v: scores `[m, d]`.
        x: features `[n, ...]`, or a `psa.source`, which is read four times.
        y: features `[m, ...]`, as `x`.
        groups: the plan.
        mesh: the devices that match, as for `blockwise`.

    Raises:
        ValueError: features of another number of samples or of none; NaN or infinity.

    Example:
        >>> from psa_jax.data.groups import group
        >>> x = jax.random.normal(jax.random.key(0), (600, 2))
        >>> t = jnp.arange(600) % 3
        >>> scores = x @ jax.random.normal(jax.random.key(1), (2, 6))
        >>> noise = jax.random.normal(jax.random.key(2), (2, 600, 6))
        >>> found = refine(jax.random.key(3), scores + noise[0], scores + noise[1], x, x, group(t, t, 3))
        >>> found.a is not None, bool(jnp.mean((found.u - scores) ** 2) < jnp.mean(noise[0] ** 2))
        (True, True)

    References:
        What it brings is measured in `benchmarks/QUALITY.md`.
    """
    for name, features, scores, number in (("x", x, u, groups.shape[0]), ("y", y, v, groups.shape[1])):
        if features.shape[0] != number or not features.size:
            raise ValueError(f"{name}: expected features of {number} samples, as the plan has, got {features.shape}")
        for told, values in ((name, features), ({"x": "u", "y": "v"}[name], scores)):
            if not isinstance(values, Source) and not bool(jnp.isfinite(values).all()):
                raise ValueError(f"{told}: expected finite numbers, got NaN or infinity")
    dtype = float_dtype(u, v)
    u, v = jnp.asarray(u, dtype), jnp.asarray(v, dtype)
    key_thin, key_evidence, key_folds = jax.random.split(key, 3)
    some = thin(key_thin, groups, MOST_EVIDENCE)
    few = (u, v, groups) if some is None else (some.of_a(u), some.of_b(v), some.groups)
    found = evidence(key_evidence, few[0], few[1], together(few[2]))
    wide = max(math.prod(side.shape[1:]) for side in (x, y)) > MOST_FEATURES or max(u.size, v.size) > MOST_SCORES
    if wide or not bool(found.common):
        return Refined(u, v, None, None, found)
    with reading(("x", x), ("y", y)) as wait:
        found_a, found_b = wait(once(key_folds, u, v, flat(x, dtype), flat(y, dtype), together(groups), mesh))
    return Refined(found_a[0], found_b[0], found_a[1], found_b[1], found)


@functools.partial(jax.jit, static_argnames="mesh")
def once(
    key: KeyArray, u: Array, v: Array, x: Array | Source, y: Array | Source, groups: Groups, mesh: Mesh | None = None
) -> tuple[tuple[Array, Refinement], tuple[Array, Refinement]]:
    """Both modalities' scores refined by each other's, and what refines new samples; features are flat."""
    t_a, t_b = treatments_of(groups)
    key_a, key_b = jax.random.split(key)
    coupling = blockwise(_MATCHER, mesh=mesh)(u, v, groups)
    return (
        _side(_folds(key_a, u), u, coupling.apply(v), x, t_a, groups),
        _side(_folds(key_b, v), v, coupling.T.apply(u), y, t_b, groups),
    )


def _side(
    fold: Int[Array, " n"], u: Array, projected: Array, x: Array | Source, t: Array, groups: Groups
) -> tuple[Array, Refinement]:
    if isinstance(x, Source):
        return _side_read(fold, u, projected, x, t, groups)
    magnitude = jnp.max(jnp.abs(x), axis=0, keepdims=True, initial=0)
    magnitude = jnp.where(magnitude > 0, magnitude, 1)
    x = x / magnitude
    own = within(u, t, groups)
    predicted, slopes = _regressed(fold, within(x, t, groups), within(projected, t, groups))
    scale, by = _how(u, predicted, own, _mean(x, t, groups), t, groups)
    each = jax.lax.map(lambda slope: by(slope)(u, x), slopes)
    final = by(slopes.mean(0))
    final = Refinement(final.share, final.slope / magnitude.T, final.shift)
    return jnp.take_along_axis(each, fold[None, :, None], axis=0)[0], final


def _side_read(
    fold: Int[Array, " n"], u: Array, projected: Array, x: Source, t: Array, groups: Groups
) -> tuple[Array, Refinement]:
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
    return refined, Refinement(final.share, final.slope / magnitude.T, final.shift)


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
    each = jax.lax.map(lambda slope: _product(x, slope), slopes)
    return jnp.take_along_axis(each, fold[None, :, None], axis=0)[0], slopes * unit.T[None]


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
