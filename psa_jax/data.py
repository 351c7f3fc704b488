"""Unpaired data: two modalities, and apart from them the truth."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psa_jax.types import Array, Float, Int, KeyArray, pytree, static


@pytree
class Modality:
    """Samples of one kind of measurement.

    Attributes:
        x: features `[n, ...]`, float.
        t: treatment codes `[n]`, integers in `[0, num_treatments)`.
    """

    x: Float[Array, "n ..."]
    t: Int[Array, " n"]


@pytree
class Unpaired:
    """Two modalities of one perturbed population; row i of `a` and row i of `b` have nothing to do with each other.

    Example:
        >>> x, y = jnp.ones((3, 2)), jnp.ones((4, 5))
        >>> data = Unpaired(Modality(x, jnp.array([0, 0, 1])), Modality(y, jnp.array([0, 1, 1, 1])), 2)
        >>> data.num_treatments
        2
    """

    a: Modality
    b: Modality
    num_treatments: int = static()


@pytree
class Truth:
    """What only an evaluation may know; nothing that trains takes it.

    Attributes:
        pair: `[n_a]` integers, the true column (row of modality b) of every row of modality a, -1 where unknown.
        z_a: latents `[n_a, d]` of modality a, or None.
        z_b: latents `[n_b, d]` of modality b, or None.
    """

    pair: Int[Array, " n"]
    z_a: Float[Array, "n d"] | None = None
    z_b: Float[Array, "m d"] | None = None


def split(key: KeyArray, data: Unpaired, fractions: Sequence[float], truth: Truth | None = None) -> tuple:
    """Splits both modalities into parts, stratified by treatment. Host only.

    Args:
        key: a typed PRNG key.
        data: what to split.
        fractions: the share of every treatment that goes to each part; at most one in all. What is left over of a
            sum below one is in no part. A treatment's only sample goes to the first part.
        truth: when given, true pairs stay together and every part comes with its own truth.

    Returns:
        One `Unpaired` for each fraction, or one `(Unpaired, Truth)` when `truth` is given.

    Raises:
        ValueError: fractions that are not positive or exceed one, invalid data, or a truth of another length.

    Example:
        >>> data = Unpaired(*2 * [Modality(jnp.ones((10, 2)), jnp.arange(10) % 2)], 2)
        >>> train, test = split(jax.random.key(0), data, (0.6, 0.4))
        >>> train.a.t.size, test.b.t.size
        (6, 4)
    """
    data = on_host(data)
    edges = np.cumsum(np.asarray(fractions, float))
    if not (edges.size and np.all(np.asarray(fractions) > 0) and edges[-1] <= 1 + 1e-6):
        raise ValueError(f"fractions: expected positive numbers with a sum of at most 1, got {tuple(fractions)}")
    edges = np.where(edges > 1 - 1e-6, np.inf, edges)
    key_a, key_b = jax.random.split(key)
    t_a, t_b = np.asarray(data.a.t), np.asarray(data.b.t)
    part_a = np.searchsorted(edges, _rank(key_a, t_a, data.num_treatments), side="right")
    part_b = np.searchsorted(edges, _rank(key_b, t_b, data.num_treatments), side="right")
    if truth is None:
        pair = np.full(t_a.size, -1)
    else:
        pair = np.asarray(truth.pair)
        check_truth(truth, t_a.size, t_b.size)
        known = pair >= 0
        free = np.setdiff1d(np.arange(t_b.size), pair[known])
        part_b[free] = np.searchsorted(edges, _rank(key_b, t_b[free], data.num_treatments), side="right")
        part_b[pair[known]] = part_a[known]

    def part(p: int) -> Any:
        rows, cols = np.flatnonzero(part_a == p), np.flatnonzero(part_b == p)
        piece = Unpaired(
            Modality(data.a.x[rows], data.a.t[rows]),
            Modality(data.b.x[cols], data.b.t[cols]),
            data.num_treatments,
        )
        if truth is None:
            return piece
        place = np.full(t_b.size + 1, -1)
        place[cols] = np.arange(cols.size)
        z_a = None if truth.z_a is None else truth.z_a[rows]
        z_b = None if truth.z_b is None else truth.z_b[cols]
        return piece, Truth(jnp.asarray(place[pair[rows]], jnp.int32), z_a, z_b)

    return tuple(part(p) for p in range(len(edges)))


def validate(data: Unpaired) -> None:
    """Raises a `ValueError` that names what is wrong with `data`, if anything is. Host only.

    Checked: ranks, lengths, empty modalities, label dtype and range, at least one shared treatment, and NaN or
    infinite features (with the modality, the number of rows and the first of them).
    """
    for name, modality in (("a", data.a), ("b", data.b)):
        x, t = np.asarray(modality.x), codes(f"modality {name}: t", modality.t, data.num_treatments)
        if x.ndim < 2:
            raise ValueError(f"modality {name}: x: expected rank 2 or more, [n, ...], got shape {x.shape}")
        if x.shape[0] != t.size:
            raise ValueError(
                f"modality {name}: expected as many labels as samples, got {t.size} labels and {x.shape[0]} samples"
            )
        if not np.issubdtype(x.dtype, np.floating) and not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"modality {name}: x: expected a float dtype, got {x.dtype}")
        bad = np.flatnonzero(~np.isfinite(x.reshape(x.shape[0], -1).astype(np.float64)).all(1))
        if bad.size:
            raise ValueError(
                f"modality {name}: x: expected finite features, got NaN or infinity in {bad.size} of "
                f"{x.shape[0]} rows, the first at row {bad[0]}"
            )
    if not np.intersect1d(np.asarray(data.a.t), np.asarray(data.b.t)).size:
        raise ValueError("data: expected at least one treatment that both modalities have, got none")


def on_host(data: Unpaired) -> Unpaired:
    """The same data, checked by `validate`, with labels as int32 arrays whatever they came as."""
    validate(data)
    a, b = (Modality(jnp.asarray(side.x), jnp.asarray(np.asarray(side.t), jnp.int32)) for side in (data.a, data.b))
    return Unpaired(a, b, data.num_treatments)


def check_like(name: str, other: Unpaired, data: Unpaired) -> None:
    """Raises a `ValueError` that says `name` unless `other` is valid and has what `data` has: features, codes. Host."""
    validate(other)
    if other.num_treatments != data.num_treatments:
        raise ValueError(
            f"{name}: expected num_treatments {data.num_treatments}, as in data, got {other.num_treatments}"
        )
    for side in ("a", "b"):
        ours, theirs = getattr(data, side).x.shape[1:], getattr(other, side).x.shape[1:]
        if ours != theirs:
            raise ValueError(f"{name}: modality {side}: expected features of shape {ours}, got {theirs}")


def check_truth(truth: Truth, n: int, m: int) -> None:
    """Raises a `ValueError` unless `truth` fits `n` rows and `m` columns. Host only."""
    pair = np.asarray(truth.pair)
    if not np.issubdtype(pair.dtype, np.integer):
        raise ValueError(f"truth.pair: expected integers, got {pair.dtype}")
    if pair.shape != (n,):
        raise ValueError(f"truth.pair: expected shape ({n},), got {pair.shape}")
    if pair.size and (pair.min() < -1 or pair.max() >= m):
        raise ValueError(f"truth.pair: expected columns in [-1, {m}), got {pair.min()} to {pair.max()}")
    for name, z, rows in (("z_a", truth.z_a, n), ("z_b", truth.z_b, m)):
        if z is not None and (z.ndim != 2 or z.shape[0] != rows):
            raise ValueError(f"truth.{name}: expected shape [{rows}, d], got {z.shape}")


def codes(name: str, t: Any, num_treatments: int) -> np.ndarray:
    """Treatment codes as a numpy array; a `ValueError` that says `name` if they are none. Host only."""
    t = np.asarray(t)
    if t.ndim != 1:
        raise ValueError(f"{name}: expected rank 1, [n], got shape {t.shape}")
    if not t.size:
        raise ValueError(f"{name}: expected at least one sample, got none")
    if not np.issubdtype(t.dtype, np.integer):
        raise ValueError(
            f"{name}: expected integer treatment codes, got dtype {t.dtype} "
            "(np.unique(labels, return_inverse=True) turns any labels into codes)"
        )
    if t.min() < 0 or t.max() >= num_treatments:
        bad = np.flatnonzero((t < 0) | (t >= num_treatments))
        raise ValueError(
            f"{name}: expected codes in [0, {num_treatments}), got {t[bad[0]]} at row {bad[0]} ({bad.size} such rows)"
        )
    return t.astype(np.int64)


def members_of(t: np.ndarray, num_treatments: int) -> list[np.ndarray]:
    """The ids of each treatment, in ascending order."""
    order = np.argsort(t, kind="stable")
    return np.split(order, np.cumsum(np.bincount(t, minlength=num_treatments))[:-1])


def _rank(key: KeyArray, t: np.ndarray, num_treatments: int) -> np.ndarray:
    """A random order of each treatment's samples as numbers in [0, 1), evenly spaced, with a random offset if many."""
    key_order, key_offset = jax.random.split(key)
    order = np.asarray(jax.random.uniform(key_order, t.shape))
    offset = np.asarray(jax.random.uniform(key_offset, (num_treatments,)), float)
    rank = np.empty(t.shape, float)
    for code, ids in enumerate(members_of(t, num_treatments)):
        shift = offset[code] if ids.size > 1 else 0
        rank[ids[np.argsort(order[ids], kind="stable")]] = (np.arange(ids.size) + shift) / max(ids.size, 1)
    return rank
