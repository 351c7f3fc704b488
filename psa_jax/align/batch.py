"""Alignment as a layer: mini-batches matched inside a compiled training step."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from psa_jax.arguments import checked
from psa_jax.coupling.blocked import Blocked
from psa_jax.coupling.coupling import Coupling
from psa_jax.data.groups import Bucket, Groups
from psa_jax.match import sinkhorn
from psa_jax.match.blockwise import blockwise
from psa_jax.types import Array, Float, Int, float_dtype

IGNORED = -1


@checked
def match_batch(
    u: Float[Array, "n d"],
    v: Float[Array, "m d"],
    t_a: Int[Array, " n"],
    t_b: Int[Array, " m"],
    *,
    num_treatments: int,
    capacity: int | tuple[int, int],
    matcher: Callable[..., Coupling] = sinkhorn,
) -> Blocked:
    """Matches a mini-batch within its treatments in one traced function: `blockwise(matcher)`, the plan made inside.

    Nothing happens on the host, and shapes depend on `n`, `m`, `num_treatments` and `capacity` only: one compilation
    serves batches of any mix of labels. It may sit under `jit`, `vmap`, `grad`, `scan`, `jax.checkpoint` and
    `shard_map` (each device then matches the samples it has). The answer is a coupling over the batch, to be asked as
    any other: `apply(y_b)` is `E[y | i]`, `T` reads it the other way.

    Samples without partner get zeros from `apply` and -1 from `sample`. They are: those whose treatment the other side
    of the batch lacks, those past `capacity` in their treatment, those whose label is not in `[0, num_treatments)`
    (label padding -1), and those whose scores are not finite. A sample that is not finite touches no other sample's
    coupling or gradient; its own features still do, through the weights of whatever made the scores, unless they are
    taken out before: see `ignore_nonfinite`.

    Args:
        u: scores `[n, d]` of one side of the batch; any floating type, matched in float32 or wider.
        v: scores `[m, d]` of the other.
        t_a: `[n]` treatments.
        t_b: `[m]` treatments.
        num_treatments: static.
        capacity: static; the most samples of a treatment that are matched, of each side or `(a, b)`. Every treatment
            costs `capacity_a x capacity_b` pairs, present or not. Samples are taken in the order of the batch. The
            batch size is always enough; twice the mean number of a treatment is, for labels drawn evenly.
        matcher: of one treatment, as for `blockwise`.

    Returns:
        A coupling of shape `(n, m)`; `coupling.row_marginal() > 0` tells the rows that have a partner. `info` is by
        treatment (not converged where the batch lacks one); beside what the matcher says, `info.details` has
        `overflow_a` and `overflow_b` `[num_treatments]`, samples past the capacity, and `ignored_a` and `ignored_b`
        `[num_treatments]`, samples whose scores were not finite though their label was that treatment. Differentiable
        in `u`, `v` and in what the matcher has bound as traced, by the matcher's own (for `sinkhorn` implicit)
        derivative: gradients reach both encoders. `jax.lax.stop_gradient` on `u` or `v` keeps them from one; on `y` in
        `apply(y)` it makes the projected values targets. Of the first order only, as through `blockwise`.

    Raises:
        ValueError: shapes that do not fit each other, labels that are not integers, a capacity below 1.

    Example:
        >>> import jax
        >>> u = jnp.array([[0.0, 1.0], [1.0, 0.0], [5.0, 5.0]])
        >>> t = jnp.array([0, 0, 1])
        >>> C = jax.jit(lambda u: match_batch(u, u[::-1], t, t[::-1], num_treatments=3, capacity=2))(u)
        >>> C.apply(jnp.array([3.0, 2.0, 1.0])).round(2).tolist()
        [1.0, 2.0, 3.0]

    References:
        Xi et al., NeurIPS 2024 (arXiv 2404.01595); implicit derivative: Cuturi et al., arXiv 2201.12324.
    """
    for name, scores, labels, t in (("u", u, "t_a", t_a), ("v", v, "t_b", t_b)):
        if scores.ndim != 2 or not scores.shape[0] or not jnp.issubdtype(scores.dtype, jnp.floating):
            raise ValueError(f"{name}: expected float scores [n, d], n at least 1, got {scores.dtype} {scores.shape}")
        if t.shape != scores.shape[:1] or not jnp.issubdtype(t.dtype, jnp.integer):
            raise ValueError(f"{labels}: expected integer labels [{scores.shape[0]}], got {t.dtype} {t.shape}")
    dtype = float_dtype(u, v)
    u, found_a = ignore_nonfinite(u.astype(dtype), t_a)
    v, found_b = ignore_nonfinite(v.astype(dtype), t_b)
    groups = group_batch(found_a, found_b, num_treatments=num_treatments, capacity=capacity)
    coupling = blockwise(matcher)(u, v, groups)
    if not isinstance(coupling, Blocked):
        raise ValueError("matcher: expected one Coupling, got several (is `k` a tuple?)")
    counts = {}
    for side, t, found, sizes in (("a", t_a, found_a, groups.sizes_a), ("b", t_b, found_b, groups.sizes_b)):
        finite = _count(found, num_treatments)
        counts[f"overflow_{side}"] = finite - sizes
        counts[f"ignored_{side}"] = _count(t, num_treatments) - finite
    info = dataclasses.replace(coupling.info, details={**coupling.info.details, **counts})
    return dataclasses.replace(coupling, info=info)


@checked
def group_batch(
    t_a: Int[Array, " n"], t_b: Int[Array, " m"], *, num_treatments: int, capacity: int | tuple[int, int]
) -> Groups:
    """The plan of a batch: what `group` decides on the host, with shapes given instead of found, open to tracing.

    Args:
        t_a: `[n]` treatments; those outside `[0, num_treatments)` are in no block.
        t_b: `[m]` treatments.
        num_treatments: static; one block for each, present or not.
        capacity: static; samples of a treatment that have room, of each modality or `(a, b)`.

    Returns:
        A plan for `blockwise` of one bucket; `sizes_a` and `sizes_b` count the samples that found room.

    Raises:
        ValueError: a capacity or a number of treatments below 1.

    Example:
        >>> t = jnp.array([2, 0, 2, 2])
        >>> groups = group_batch(t, t, num_treatments=3, capacity=2)
        >>> groups.buckets[0].rows.tolist(), groups.sizes_a.tolist()
        ([[1, 4], [4, 4], [0, 2]], [1, 0, 2])
    """
    limits = tuple(capacity) if isinstance(capacity, tuple | list) else (capacity, capacity)
    if num_treatments < 1 or len(limits) != 2 or min(limits) < 1:
        raise ValueError(
            f"num_treatments, capacity: expected at least 1, capacity one number or (a, b), got {num_treatments}, "
            f"{capacity}"
        )
    if num_treatments * max(limits) >= 2**31:
        raise ValueError(
            f"num_treatments, capacity: expected a product below 2^31, got {num_treatments} times {max(limits)}"
        )
    (rows, sizes_a), (cols, sizes_b) = (
        _places(t, num_treatments, limit) for t, limit in zip((t_a, t_b), limits, strict=True)
    )
    bucket = Bucket(rows, cols, jnp.arange(num_treatments, dtype=jnp.int32))
    return Groups((bucket,), sizes_a, sizes_b, (t_a.shape[0], t_b.shape[0]))


@checked
def ignore_nonfinite(x: Float[Array, "n ..."], t: Int[Array, " n"]) -> tuple[Float[Array, "n ..."], Int[Array, " n"]]:
    """Zeros and the label -1 for samples that are not finite, so that neither values nor gradients see them.

    Put it before an encoder: a NaN in a batch otherwise makes the gradient of all weights NaN, even where the loss does
    not depend on that sample. Mask the classification loss by `t >= 0`, too; `(t < 0).sum()` counts them. Labels become
    signed (int32, unless they are wider).

    Example:
        >>> x, t = ignore_nonfinite(jnp.array([[1.0], [jnp.nan]]), jnp.array([3, 4]))
        >>> x.tolist(), t.tolist()
        ([[1.0], [0.0]], [3, -1])
    """
    if t.shape != x.shape[:1]:
        raise ValueError(f"t: expected shape ({x.shape[0]},), one label for each sample of x, got {t.shape}")
    finite = jnp.isfinite(x).all(tuple(range(1, x.ndim)))
    return jnp.where(finite.reshape(-1, *(1,) * (x.ndim - 1)), x, 0), jnp.where(finite, _signed(t), IGNORED)


def _signed(t: Array) -> Array:
    """Labels in a signed type in which any of them, and -1, fits; uint32 codes past 2^31 become negative: ignored."""
    return t if t.dtype.itemsize > 4 else t.astype(jnp.int32)


def _known(t: Array, num_treatments: int) -> Array:
    """Labels as int32, `num_treatments` for those that are none."""
    t = _signed(t)
    return jnp.where((t >= 0) & (t < num_treatments), t, num_treatments).astype(jnp.int32)


def _places(t: Array, num_treatments: int, capacity: int) -> tuple[Array, Array]:
    """Ids of the samples of each treatment `[num_treatments, capacity]`, n for padding, and how many those are."""
    n = t.shape[0]
    known = _known(t, num_treatments)
    order = jnp.argsort(known, stable=True).astype(jnp.int32)
    sizes = _count(known, num_treatments)
    start = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(sizes, dtype=jnp.int32)])
    treatment = known[order]
    place = jnp.arange(n, dtype=jnp.int32) - start[treatment]
    padded = jnp.full((num_treatments, capacity), n, jnp.int32)
    return padded.at[treatment, place].set(order, mode="drop"), jnp.minimum(sizes, capacity)


def _count(t: Array, num_treatments: int) -> Array:
    """How many samples have each treatment `[num_treatments]`."""
    known = _known(t, num_treatments)
    return jnp.zeros(num_treatments, jnp.int32).at[known].add(1, mode="drop")


__all__ = ["group_batch", "ignore_nonfinite", "match_batch"]
