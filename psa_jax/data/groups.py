"""The host-side plan of which samples may be matched with which."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from psa_jax.arguments import checked
from psa_jax.data.codes import codes, members_of
from psa_jax.types import Array, Int, known, pytree, static

MAX_WASTE = 1.4
MAX_BUCKETS = 12
MAX_LEVELS = 64


@pytree
class Bucket:
    """Treatments padded to one size.

    Attributes:
        rows: `[blocks, N]` row ids of modality a; `Groups.shape[0]` is padding and always stands last.
        cols: `[blocks, M]` column ids of modality b; `Groups.shape[1]` is padding.
        treatment: `[blocks]` the treatment of each block.
    """

    rows: Int[Array, "blocks N"]
    cols: Int[Array, "blocks M"]
    treatment: Int[Array, " blocks"]


@pytree
class Groups:
    """Which samples may be matched: one block for each treatment that both modalities have.

    Attributes:
        buckets: blocks of similar size, padded together; a static number of them.
        sizes_a: `[num_treatments]` samples of modality a in each treatment.
        sizes_b: `[num_treatments]` samples of modality b in each treatment.
        shape: static `(n_a, n_b)`.
    """

    buckets: tuple[Bucket, ...]
    sizes_a: Int[Array, " T"]
    sizes_b: Int[Array, " T"]
    shape: tuple[int, int] = static()

    def __repr__(self) -> str:
        """Three lines: the size, what is matched, how it is padded."""
        lines = [f"Groups of {' x '.join(map(str, self.shape))} samples in {self.num_treatments} treatments"]
        if known(self.sizes_a, self.sizes_b):
            a, b = np.asarray(self.sizes_a), np.asarray(self.sizes_b)
            alone = int(((a > 0) != (b > 0)).sum())
            lines.append(f"  both modalities have {int(((a > 0) & (b > 0)).sum())} of them, only one has {alone}")
            shapes = [(bucket.treatment.size, bucket.rows.shape[1], bucket.cols.shape[1]) for bucket in self.buckets]
            told = ", ".join(f"{count} of {n} x {m}" for count, n, m in shapes[:6]) + (", ..." if shapes[6:] else "")
            lines.append(f"  padded to {told}; {self.waste:.2f} pairs computed for each real one")
        return "\n".join(lines)

    @property
    def num_treatments(self) -> int:
        """The number of treatment codes, matched or not."""
        return self.sizes_a.shape[0]

    @property
    def T(self) -> "Groups":
        """The same plan with the modalities exchanged."""
        buckets = tuple(Bucket(bucket.cols, bucket.rows, bucket.treatment) for bucket in self.buckets)
        return Groups(buckets, self.sizes_b, self.sizes_a, (self.shape[1], self.shape[0]))

    @property
    def waste(self) -> float:
        """Padded pairs over real pairs; 1 is no padding at all."""
        padded = sum(bucket.rows.size * bucket.cols.shape[1] for bucket in self.buckets)
        real = float(np.sum(np.asarray(self.sizes_a, float) * np.asarray(self.sizes_b, float)))
        return padded / real if real else 1.0


@checked
def group(
    t_a: Any,
    t_b: Any,
    num_treatments: int,
    *,
    max_waste: float = MAX_WASTE,
    max_buckets: int = MAX_BUCKETS,
) -> Groups:
    """Plans the blocks: every treatment that both modalities have, padded into a few buckets. Host only.

    Sizes are rounded up to sixteenths of an octave, so that data of similar sizes meets programs compiled before. The
    first bucket holds every treatment; then the one that saves most padding is added, again and again, until padded
    pairs are within `max_waste` times the real ones or there are `max_buckets`. Twelve suffice for most data; where
    the sizes of the two modalities have nothing to do with each other they may not, and `Groups.waste` tells.

    Args:
        t_a: `[n]` integer treatment codes of modality a.
        t_b: `[m]` integer treatment codes of modality b.
        num_treatments: codes are in `[0, num_treatments)`.
        max_waste: padded pairs over real pairs to stay within, if `max_buckets` allow.
        max_buckets: the most buckets, whatever they waste.

    Returns:
        The plan. Samples whose treatment the other modality lacks are in no block; `sizes_a` and `sizes_b` tell.

    Raises:
        ValueError: labels that are not integers, not of rank 1, empty, out of range, or share no treatment.

    Example:
        >>> groups = group(np.array([0, 0, 1, 2]), np.array([1, 0, 0, 0, 3]), 4)
        >>> groups.sizes_a.tolist(), groups.sizes_b.tolist()
        ([2, 1, 1, 0], [3, 1, 0, 1])
        >>> sum(bucket.treatment.size for bucket in groups.buckets)
        2
    """
    t_a, t_b = codes("t_a", t_a, num_treatments), codes("t_b", t_b, num_treatments)
    if max_waste < 1 or max_buckets < 1:
        raise ValueError(f"max_waste, max_buckets: expected at least 1, got {max_waste}, {max_buckets}")
    sizes_a, sizes_b = (np.bincount(t, minlength=num_treatments) for t in (t_a, t_b))
    shared = np.flatnonzero((sizes_a > 0) & (sizes_b > 0))
    if not shared.size:
        raise ValueError(
            f"t_a, t_b: expected at least one treatment that both modalities have, got "
            f"{_some(np.unique(t_a))} in a and {_some(np.unique(t_b))} in b"
        )
    ids_a, ids_b = members_of(t_a, num_treatments), members_of(t_b, num_treatments)

    def bucket(members: list[int], capacity: tuple[int, int]) -> Bucket:
        rows, cols = (
            np.stack([np.pad(ids[t], (0, width - ids[t].size), constant_values=pad) for t in members])
            for ids, width, pad in zip((ids_a, ids_b), capacity, (t_a.size, t_b.size), strict=True)
        )
        return Bucket(jnp.asarray(rows, jnp.int32), jnp.asarray(cols, jnp.int32), jnp.asarray(members, jnp.int32))

    plan = _plan(sizes_a, sizes_b, shared, max_waste, max_buckets)
    return Groups(
        tuple(bucket(members, capacity) for capacity, members in plan),
        jnp.asarray(sizes_a, jnp.int32),
        jnp.asarray(sizes_b, jnp.int32),
        (t_a.size, t_b.size),
    )


def _some(values: np.ndarray) -> str:
    return str(values[:5].tolist()) + (" and more" if values.size > 5 else "")


def _capacity(n: int) -> int:
    """The smallest `ceil(2^(k / 16))` that holds `n`."""
    k = np.floor(16 * np.log2(n - 1)) + 1 if n > 1 else 0
    return int(np.ceil(2 ** (k / 16)))


def _plan(
    sizes_a: np.ndarray, sizes_b: np.ndarray, treatments: np.ndarray, max_waste: float, max_buckets: int
) -> list[tuple[tuple[int, int], list[int]]]:
    """Covers treatments by few capacities `(capacity, members)`, each time with the one that saves most padding."""
    needed = np.array([(_capacity(int(sizes_a[t])), _capacity(int(sizes_b[t]))) for t in treatments], float)
    shapes, which, counts = np.unique(needed, axis=0, return_inverse=True, return_counts=True)
    candidates = np.array([(n, m) for n in _levels(shapes[:, 0]) for m in _levels(shapes[:, 1])])
    fits = (candidates[None] >= shapes[:, None]).all(-1)
    area = np.where(fits, candidates.prod(1)[None], np.inf)
    real = (sizes_a[treatments].astype(float) * sizes_b[treatments]).sum()

    def padded(chosen: list[int]) -> np.ndarray:
        return area[:, chosen].min(1)

    def best(chosen: list[int]) -> tuple[int, float]:
        """The candidate that saves most beside those chosen, and the pairs that are then evaluated."""
        totals = counts @ np.minimum(padded(chosen)[:, None], area)
        return int(totals.argmin()), float(totals.min())

    chosen = [len(candidates) - 1]
    total = float(counts @ padded(chosen))
    while total > max_waste * real and len(chosen) < max_buckets:
        added, saved = best(chosen)
        if saved >= total:
            break
        chosen, total = [*chosen, added], saved
    place = 1
    while place < len(chosen) and total > max_waste * real:
        others = chosen[:place] + chosen[place + 1 :]
        added, saved = best(others)
        if saved < total * (1 - 1e-6):
            chosen, total, place = [*others, added], saved, 1
        else:
            place += 1
    owner = area[:, chosen].argmin(1)[which]
    groups = [np.flatnonzero(owner == k) for k in range(len(chosen))]
    return [
        ((int(n), int(m)), treatments[group].tolist())
        for group in groups
        if group.size
        for n, m in [needed[group].max(0)]
    ]


def _levels(values: np.ndarray) -> np.ndarray:
    """The distinct values, or as many of them as are worth trying, the largest last."""
    distinct = np.unique(values)
    return distinct[np.unique(np.linspace(0, distinct.size - 1, MAX_LEVELS).round().astype(int))]
