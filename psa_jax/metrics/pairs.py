"""How good an alignment is: one number per sample, and averages over treatments as a separate step."""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from psa_jax.arguments import checked
from psa_jax.coupling.blocked import Blocked
from psa_jax.coupling.coupling import Coupling
from psa_jax.data.samples import Truth
from psa_jax.devices import map_rows
from psa_jax.types import Array, Float, Int, float_dtype, known, pytree

CHUNK_ELEMENTS = 2**22


@checked
def trace(coupling: Coupling | Blocked, truth: Truth) -> Float[Array, " n"]:
    """`P(true match | i)` for each row.

    Args:
        coupling: of `n` rows.
        truth: its `pair` `[n]` names the true columns.

    Returns:
        `[n]` in [0, 1]; NaN where the true match is unknown (-1), 0 where the row has no mass at its true match.

    Example:
        >>> from psa_jax.match import independent
        >>> C = independent(jnp.full(2, 0.5), jnp.full(4, 0.25))
        >>> trace(C, Truth(jnp.array([3, -1]))).tolist()
        [0.25, nan]

    References:
        Xi et al., NeurIPS 2024 (arXiv 2404.01595), section 5.
    """
    return jnp.where(truth.pair >= 0, jnp.exp(coupling.log_prob(truth.pair)), jnp.nan)


@checked
def latent_mse(coupling: Coupling | Blocked, truth: Truth) -> Float[Array, " n"]:
    """`mean_d (E[z_jd | i] - z_id)²` for each row, the squared error of projected latents.

    Args:
        coupling: of `n` rows and `m` columns.
        truth: with latents `z_a [n, d]` and `z_b [m, d]`.

    Returns:
        `[n]`; NaN for rows without any partner. Differentiable in the coupling.

    Raises:
        ValueError: a truth without latents.

    References:
        Xi et al., NeurIPS 2024 (arXiv 2404.01595), section 5.
    """
    if truth.z_a is None or truth.z_b is None:
        raise ValueError("truth: expected latents z_a and z_b, got a truth without them")
    n, m = coupling.shape
    shapes = tuple(truth.z_a.shape), tuple(truth.z_b.shape)
    if shapes != ((n, *shapes[1][1:]), (m, *shapes[1][1:])) or len(shapes[1]) != 2:
        raise ValueError(f"truth: expected latents [{n}, d] and [{m}, d], got {shapes[0]} and {shapes[1]}")
    projected = project(coupling, jnp.asarray(truth.z_b))
    return jnp.mean((projected - jnp.asarray(truth.z_a).astype(projected.dtype)) ** 2, axis=1)


def project(coupling: Coupling | Blocked, y: Float[Array, "m d"]) -> Float[Array, "n d"]:
    """`coupling.apply(y)`, with NaN instead of zeros for rows without any partner."""
    projected = coupling.apply(jnp.concatenate([y, jnp.ones_like(y[:, :1])], axis=1))
    return jnp.where(projected[:, -1:] > 0.5, projected[:, :-1], jnp.nan)


@checked
def label_transfer(
    coupling: Coupling | Blocked,
    labels_a: Int[Array, " n"],
    labels_b: Int[Array, " m"],
    *,
    num_labels: int | None = None,
) -> Float[Array, " n"]:
    """`P(label_j = label_i | i)` for each row: how well labels that are finer than the treatment carry over.

    Args:
        coupling: of `n` rows and `m` columns.
        labels_a: `[n]` integers, negative for unknown.
        labels_b: `[m]` integers, negative for unknown; a partner of unknown label is no partner of the same label.
        num_labels: static; by default one more than the largest label, which must then be known (not traced). Labels
            from `num_labels` on are unknown.

    Returns:
        `[n]`; NaN where the row's label is unknown or the row has no partner.

    Raises:
        ValueError: labels of another length than the coupling's sides.

    Example:
        >>> from psa_jax.match import independent
        >>> C = independent(jnp.full(2, 0.5), jnp.full(4, 0.25))
        >>> label_transfer(C, jnp.array([0, 1]), jnp.array([0, 0, 0, 1])).tolist()
        [0.75, 0.25]
    """
    for name, labels, rows in (("labels_a", labels_a, coupling.shape[0]), ("labels_b", labels_b, coupling.shape[1])):
        if labels.shape != (rows,):
            raise ValueError(f"{name}: expected shape ({rows},), got {labels.shape}")
    if num_labels is None:
        num_labels = max(1, int(max(np.asarray(labels_a).max(), np.asarray(labels_b).max())) + 1)
    if num_labels < 1:
        raise ValueError(f"num_labels: expected at least 1, got {num_labels}")
    projected = project(coupling, jax.nn.one_hot(labels_b, num_labels))
    known = (labels_a >= 0) & (labels_a < num_labels)
    same = jnp.take_along_axis(projected, jnp.where(known, labels_a, 0)[:, None], axis=1)[:, 0]
    return jnp.where(known, same, jnp.nan)


@checked
def foscttm(
    y_hat: Float[Array, "n d"],
    y: Float[Array, "n d"],
    *,
    t: Int[Array, " n"] | None = None,
    convention: Literal["ours", "paper"] = "ours",
    rows: Int[Array, " q"] | None = None,
) -> Float[Array, " q"]:
    """Fraction of samples closer than the true match (FOSCTTM), both directions averaged; 0 is perfect, 0.5 is chance.

    For row i: among candidates j, the fraction of `y_j` closer to `y_hat_i` than `y_i` is, and the fraction of
    `y_hat_j` closer to `y_i` than `y_hat_i` is. Ties count one half, so a constant prediction scores 0.5.

    Args:
        y_hat: predictions `[n, d]`, say `C.apply(y_b)`.
        y: the truth for each row `[n, d]`, say `y_b[truth.pair]`.
        t: `[n]` treatments; candidates are then the same treatment's samples, else all samples.
        convention: static; "paper" counts ties as zero, as the authors' code does (a constant prediction then scores
            below chance).
        rows: `[q]` the rows to measure, in [0, n); all are candidates. By default every row. The work is q times the
            number of candidates: the size of the largest treatment if `t` is known, n otherwise.

    Returns:
        `[q]` in [0, 1], `[n]` by default; NaN for a row without any other candidate, or with a NaN in `y_hat` or `y`.

    Raises:
        ValueError: shapes that differ, rows that are known and out of range, or another convention.

    Example:
        >>> y = jnp.array([[0.0], [1.0], [2.0]])
        >>> foscttm(jnp.ones((3, 1)), y).tolist()
        [0.625, 0.25, 0.625]
        >>> foscttm(y, y).tolist()
        [0.0, 0.0, 0.0]
    """
    if y_hat.ndim != 2 or y_hat.shape != y.shape:
        raise ValueError(f"y_hat, y: expected one shape [n, d], got {y_hat.shape} and {y.shape}")
    if convention not in ("ours", "paper"):
        raise ValueError(f"convention: expected 'ours' or 'paper', got {convention!r}")
    n = y.shape[0]
    t = jnp.zeros(n, jnp.int32) if t is None else t
    if t.shape != (n,):
        raise ValueError(f"t: expected shape ({n},), got {t.shape}")
    rows = jnp.arange(n) if rows is None else jnp.asarray(rows)
    if known(rows) and rows.size and not 0 <= int(rows.min()) <= int(rows.max()) < n:
        raise ValueError(f"rows: expected rows in [0, {n}), got {int(rows.min())} to {int(rows.max())}")
    largest = int(np.unique(np.asarray(t), return_counts=True)[1].max(initial=1)) if known(t) else n
    # Where treatments are many, candidates are a stretch of the sorted samples; few widths make few programs.
    width = min(n, 1 << (largest - 1).bit_length()) if 2 * largest < n else n
    dtype = float_dtype(y_hat, y)
    return _foscttm(y_hat.astype(dtype), y.astype(dtype), t, rows, 0.5 if convention == "ours" else 0.0, width)


@functools.partial(jax.jit, static_argnames="width")
def _foscttm(y_hat: Array, y: Array, t: Array, rows: Array, tie: Any, width: int) -> Array:
    n, d = y.shape
    order = jnp.argsort(t)
    place = jnp.zeros(n, order.dtype).at[order].set(jnp.arange(n))[rows]
    t, y_hat, y = t[order], y_hat[order], y[order]
    usable = jnp.isfinite(y_hat).all(1) & jnp.isfinite(y).all(1)
    y_hat, y = (jnp.where(usable[:, None], values, 0) for values in (y_hat, y))
    first = jnp.minimum(jnp.searchsorted(t, t[place]), n - width) if width < n else jnp.zeros_like(place)

    def stretches(points: Array, first: Array) -> Array:
        """The candidates of each row, or those of all rows at once."""
        if width == n:
            return points[None]
        return jax.vmap(lambda i: jax.lax.dynamic_slice_in_dim(points, i, width))(first)

    def fraction(queries: Array, points: Array, place: Array, first: Array) -> Array:
        distance = jnp.sum((queries[place][:, None] - stretches(points, first)) ** 2, axis=-1)
        itself = (place - first)[:, None]
        own = jnp.take_along_axis(distance, itself, axis=1)
        candidate = (t[place][:, None] == stretches(t, first)) & stretches(usable, first)
        candidate &= itself != jnp.arange(width)[None]
        closer = jnp.where(distance < own, 1.0, jnp.where(distance == own, tie, 0.0))
        total = candidate.sum(1).astype(distance.dtype)
        share = jnp.where(candidate, closer, 0).astype(distance.dtype).sum(1) / jnp.maximum(total, 1)
        return jnp.where((total > 0) & usable[place], share, jnp.nan)

    return map_rows(
        lambda ids: (fraction(y_hat, y, *ids) + fraction(y, y_hat, *ids)) / 2,
        (place, first),
        max(1, CHUNK_ELEMENTS // max(width * d, 1)),
    )


@pytree
class ByTreatment:
    """Averages of one number per sample.

    Attributes:
        mean: `[num_treatments]`, NaN for treatments of which nothing was counted.
        count: `[num_treatments]` samples counted.
        excluded: `[num_treatments]` samples left out because their number is NaN.
        micro: the mean over counted samples.
        macro: the mean over treatments with anything counted; tiny treatments weigh as much as large ones.
    """

    mean: Float[Array, " T"]
    count: Int[Array, " T"]
    excluded: Int[Array, " T"]
    micro: Float[Array, ""]
    macro: Float[Array, ""]


@checked
def by_treatment(values: Float[Array, " n"], t: Int[Array, " n"], num_treatments: int) -> ByTreatment:
    """Averages per-sample numbers over treatments, over samples (micro) and over treatments (macro).

    Args:
        values: `[n]`, NaN for samples without a number; they are counted as excluded.
        t: `[n]` treatment codes in `[0, num_treatments)`.
        num_treatments: static.

    Raises:
        ValueError: shapes that differ, or codes out of range if they are known (not traced).

    Example:
        >>> result = by_treatment(jnp.array([1.0, 3.0, 5.0, jnp.nan]), jnp.array([0, 0, 1, 1]), 3)
        >>> result.mean.tolist(), result.excluded.tolist()
        ([2.0, 5.0, nan], [0, 1, 0])
        >>> float(result.micro), float(result.macro)
        (3.0, 3.5)
    """
    if values.ndim != 1 or values.shape != t.shape:
        raise ValueError(f"values, t: expected one shape [n], got {values.shape} and {t.shape}")
    if not isinstance(t, Tracer) and t.size:
        low, high = np.asarray(t).min(), np.asarray(t).max()
        if not 0 <= low <= high < num_treatments:
            raise ValueError(f"t: expected codes in [0, {num_treatments}), got {low} to {high}")
    counted = ~jnp.isnan(values)
    total = jnp.zeros(num_treatments, values.dtype).at[t].add(jnp.where(counted, values, 0))
    count = jnp.zeros(num_treatments, jnp.int32).at[t].add(counted.astype(jnp.int32))
    size = jnp.zeros(num_treatments, jnp.int32).at[t].add(1)
    mean = _ratio(total, count)
    micro = _ratio(total.sum(), count.sum())
    macro = _ratio(jnp.where(count > 0, mean, 0).sum(), (count > 0).sum())
    return ByTreatment(mean, count, size - count, micro, macro)


def _ratio(total: Array, count: Array) -> Array:
    return jnp.where(count > 0, total / jnp.maximum(count, 1).astype(total.dtype), jnp.nan)
