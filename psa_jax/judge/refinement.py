"""Scores learnt again from what the other modality says of them, where labels show that the two share anything."""

import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from psa_jax.arguments import checked
from psa_jax.data.groups import Groups
from psa_jax.data.source import Source, reading
from psa_jax.judge.evidence import Evidence, evidence
from psa_jax.judge.slopes import Refinement, applied, flat, folds_of, once
from psa_jax.judge.thin import affordable, thin, together
from psa_jax.types import Array, Float, KeyArray, float_dtype, pytree

MOST_EVIDENCE, MOST_FEATURES = 400, 512
MOST, MOST_PAIRS = 500, 2**24  # samples of each treatment and pairs in all that slopes are learnt of


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
    principal components are few enough), which a linear regression within treatments does not suit. The regression
    learns from at most 500 samples of each treatment, of hundreds of treatments from fewer, and refines all.

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
    wide = max(math.prod(side.shape[1:]) for side in (x, y)) > MOST_FEATURES
    if wide or not bool(found.common):
        return Refined(u, v, None, None, found)
    folds = folds_of(key_folds, u, v)
    most = affordable(groups, MOST, MOST_PAIRS)
    some = thin(jax.random.fold_in(key_thin, 1), groups, most)
    with reading(("x", x), ("y", y)) as wait:
        x, y = flat(x, dtype), flat(y, dtype)
        if some is None:
            found_a, found_b = wait(once(folds, u, v, x, y, together(groups), mesh))
            return Refined(found_a.scores, found_b.scores, found_a.final, found_b.final, found)
        of = some.of_a(folds[0][:, None])[:, 0], some.of_b(folds[1][:, None])[:, 0]
        few = together(some.groups)
        found_a, found_b = once(of, some.of_a(u), some.of_b(v), some.of_a(x), some.of_b(y), few, mesh)
        sides = applied(found_a.each, folds[0], u, x), applied(found_b.each, folds[1], v, y)
        first, second = wait(sides)
        return Refined(first, second, found_a.final, found_b.final, found)
