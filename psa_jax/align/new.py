"""New samples: what to expect of the other modality, whether or not their treatment is known."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psa_jax.arguments import checked
from psa_jax.coupling.blocked import Blocked
from psa_jax.coupling.kernel import Masked
from psa_jax.coupling.shrink import Shrunk
from psa_jax.data.source import Source
from psa_jax.data.strata import Strata
from psa_jax.match.entropic import Gibbs
from psa_jax.match.extend import extend
from psa_jax.metrics.pairs import project
from psa_jax.types import Array, Bool, Float, KeyArray, pytree, take

COLUMNS, ROWS = 256, 512  # values and mixed samples at a time


@pytree
class Prediction:
    """What to expect of the other modality's values.

    Attributes:
        values: `[n, ...]` the mean.
        std: `[n, ...]` how far the values of its possible partners spread.
        mixed: `[n]` samples whose treatment is unknown, or has no partner: all treatments count, as probable as the
            classifier holds them to be. Of stratified data, also those whose stratum is.
        new_batch: `[n]` samples of a batch that classifiers have not seen, or of none; None where data had no batches.
    """

    values: Float[Array, "n ..."]
    std: Float[Array, "n ..."]
    mixed: Bool[Array, " n"]
    new_batch: Bool[Array, " n"] | None = None

    def __repr__(self) -> str:
        """One line."""
        count = int(np.asarray(self.mixed).sum())
        return f"Prediction of {list(self.values.shape)} values, {count} samples by a mixture of treatments"


def dense(x: Any) -> Any:
    """What is sparse as an array, all else as it is."""
    return x.toarray() if hasattr(x, "toarray") else x


def checked_batch(batch: Any, k: int) -> Array | None:
    """Codes `[k]` of batches, or None; a `ValueError` if they are none."""
    if batch is None:
        return None
    batch = batch if isinstance(batch, jax.Array) else _integers(batch)
    if batch.shape != (k,) or batch.dtype.kind not in "iu":
        raise ValueError(f"batch: expected {k} integers, one for each sample, got {batch.dtype} {batch.shape}")
    where = jnp.where if isinstance(batch, jax.Array) else np.where
    return jnp.asarray(where(batch >> 31 == 0, batch, -1), jnp.int32)  # beyond 31 bits there is no batch


def _integers(codes: Any) -> np.ndarray:
    """Codes as an array of signed integers, an empty list too; of what is none, the array as it is."""
    codes = np.asarray(codes)
    whole = codes.dtype.kind in "iu" or (codes.dtype == float and codes.shape == (0,))
    return codes.astype(np.int64) if whole else codes


def matched_codes(t: Any, k: int, sizes: np.ndarray, strata: Strata | None = None) -> np.ndarray:
    """Treatment codes `[k]` of new samples, -1 where it is not known or was not matched (`sizes` `[T]` is 0).

    With `strata` also of treatments and strata `[k, 2]`.
    """
    t = np.full(k, -1) if t is None else _integers(t)
    if strata is not None and t.shape == (k, 2) and t.dtype.kind in "iu":
        for name, found, names in (("treatments", t[:, 0], strata.treatments), ("strata", t[:, 1], strata.names)):
            if k and not -1 <= found.min() <= found.max() < len(names):
                raise ValueError(
                    f"t: expected {name} in [0, {len(names)}), -1 where not known, got {found.min()} to {found.max()}"
                )
        t = strata.codes(t[:, 0], t[:, 1])
    if t.shape != (k,) or t.dtype.kind not in "iu" or (t.size and not -1 <= t.min() <= t.max() < sizes.size):
        raise ValueError(
            f"t: expected {k} codes in [0, {sizes.size}), -1 where not known, got {t.dtype} {t.shape}"
            + (f" from {t.min()} to {t.max()}" if t.dtype.kind in "iu" and t.size else "")
        )
    return np.where((t >= 0) & (sizes[t] > 0), t, -1)


def weighed(
    chance: np.ndarray,
    treatments: np.ndarray,
    t: Any,
    sizes: np.ndarray,
    others: np.ndarray,
    strata: Strata | None,
) -> tuple[np.ndarray, np.ndarray]:
    """How probable each code that was matched is for new samples, `[k, T]`, and which codes those are `[T]`.

    Args:
        chance: `[k, d]` propensities.
        treatments: `[d]` what they are propensities of.
        t: as `matched_codes` takes it.
        sizes: samples of each code in the modality of the new ones.
        others: those in the other one.
        strata: shares a treatment's propensity among its strata by their sizes, as far as `t` leaves them open.
    """
    there = (sizes > 0) & (others > 0)
    if strata is None:
        return chance[:, there[treatments]], treatments[there[treatments]]
    of = np.asarray(strata.treatment)
    there &= np.isin(of, treatments)
    codes = np.flatnonzero(there)
    total = np.bincount(of[codes], sizes[codes], minlength=len(strata.treatments))
    column = np.full(total.size, -1)
    column[treatments] = np.arange(treatments.size)
    weights = chance[:, column[of[codes]]] * (sizes[codes] / total[of[codes]]).astype(chance.dtype)
    if t is None:
        return weights, codes
    known = np.asarray(t)
    if known.ndim == 1:
        known = np.stack(strata.split(known), axis=1)
    weights = np.where(strata.possible(known[:, 0], known[:, 1], there)[:, codes], weights, 0)
    total = weights.sum(axis=1, keepdims=True)
    return weights / np.where(total > 0, total, 1), codes


def project_source(law: Blocked, y: Source) -> Array:
    """`project`, of values that are read: those of one treatment at a time are held, and the result. On the host."""
    n, m = law.shape
    out = np.full((n, *y.shape[1:]), np.nan, jnp.promote_types(y.dtype, jnp.float32))
    for block in law.blocks:
        rows, cols = np.asarray(block.rows), np.asarray(block.cols)
        wanted = np.where(cols < m, cols, cols[:, :1])
        following = np.concatenate([wanted[1:], np.full_like(wanted[:1], -1)])
        for place, ids in enumerate(wanted):
            values = y.read(ids, following[place]).reshape(ids.size, math.prod(y.shape[1:])).astype(out.dtype)
            values = jnp.where((cols[place] < m)[:, None], values, 0)
            own = rows[place] < n
            found = np.asarray(project(take(block.coupling, place), values))[own]
            out[rows[place][own]] = found.reshape(found.shape[0], *y.shape[1:])
    return jnp.asarray(out)


def expected(law: Blocked, y: Any, rows: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation `[n, p]` of values `[m, p]` (an array or sparse) under the law of each of the `rows`.

    NaN for rows without a partner, and for all others.
    """
    mean, std = (np.full((n, y.shape[1]), np.nan, np.float32) for _ in range(2))
    for part in _columns(y.shape[1]):
        mean[rows, part], std[rows, part] = _moments(law, y, part)
    return mean, std


def predicted(
    law: Blocked, u: Array, weights: np.ndarray, treatments: np.ndarray, t: np.ndarray, y: Any
) -> tuple[np.ndarray, np.ndarray]:
    """As `expected`, of new samples with scores `u` `[k, d]`, whose treatment `t` is -1 where it is not known.

    `weights` `[k, T]` are the propensities of `treatments` `[T]`, by which the unknown are mixed.
    """
    known = np.flatnonzero(t >= 0)
    mean, std = (np.full((t.size, y.shape[1]), np.nan, np.float32) for _ in range(2))
    if known.size or not t.size:
        mean, std = expected(extend(law, u[known], t[known]), y, known, t.size)
    for rows, each in _mixed(law, u, treatments, t):
        for part in _columns(y.shape[1]):
            means, spreads = _moments(each, y, part)
            shape = (treatments.size, -1, means.shape[1])
            means, spreads = (found.reshape(shape)[:, : rows.size] for found in (means, spreads))
            mean[rows, part], std[rows, part] = _mixture(means, spreads, weights[rows].T)
    return mean, std


def _mixed(law: Blocked, u: Array, treatments: np.ndarray, t: np.ndarray) -> Iterator[tuple[np.ndarray, Blocked]]:
    """Samples without a treatment, some at a time, and the law of them within each treatment, one after the other.

    Laws have rows for as many samples each time, so that they are compiled once; those beyond the samples are none.
    """
    unknown = np.flatnonzero(t < 0)
    for first in range(0, unknown.size if treatments.size else 0, ROWS):
        rows = unknown[first : first + ROWS]
        filled = np.resize(rows, min(ROWS, unknown.size))
        yield rows, extend(law, jnp.tile(u[filled], (treatments.size, 1)), np.repeat(treatments, filled.size))


def extends(law: Blocked) -> bool:
    """Whether new rows can be matched by this law: entropic transport has potentials that say how."""
    kernel: Any = law.blocks[0].coupling.kernel
    while isinstance(kernel, Shrunk | Masked):
        kernel = kernel.kernel
    return isinstance(kernel, Gibbs)


def partners(
    law: Blocked, u: Array, weights: np.ndarray, treatments: np.ndarray, t: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and columns `[n, k]` of the most probable partners of new samples; arguments as `predicted`.

    Of a sample without a treatment they are the best of all treatments, each by its propensity.
    """
    k = min(k, law.shape[1])
    best, column = np.zeros((u.shape[0], k), np.float32), np.full((u.shape[0], k), -1)
    known = np.flatnonzero(t >= 0)
    if known.size or not t.size:
        best[known], column[known] = map(np.asarray, extend(law, u[known], t[known]).top_k(k))
    for rows, each in _mixed(law, u, treatments, t):
        p, j = (np.asarray(x).reshape(treatments.size, -1, k)[:, : rows.size] for x in each.top_k(k))
        chance = np.where(j[:, :, 0] >= 0, np.nan_to_num(weights[rows].T), 0)  # of treatments that have a partner
        total = chance.sum(axis=0)
        p = np.moveaxis(p * (chance / np.where(total > 0, total, 1))[:, :, None], 0, 1).reshape(rows.size, -1)
        j = np.where(p > 0, np.moveaxis(j, 0, 1).reshape(rows.size, -1), -1)
        order = np.argsort(-p, axis=1, kind="stable")[:, :k]
        best[rows], column[rows] = np.take_along_axis(p, order, axis=1), np.take_along_axis(j, order, axis=1)
    return best, column


@checked
def drawn(
    key: KeyArray, law: Blocked, u: Array, weights: np.ndarray, treatments: np.ndarray, t: np.ndarray
) -> np.ndarray:
    """A column for each new sample, drawn by the law of pairs, -1 for none; arguments as `predicted`.

    Where the treatment is not known it is drawn first, by the propensities, from those in which there is a partner.
    """
    key_t, key_j = jax.random.split(key)
    column, unknown = np.full(t.size, -1), t < 0
    chance = np.where(unknown[:, None], np.nan_to_num(weights), 0)
    # By log chance plus Gumbel noise: the first treatment is drawn by its chance, the next by that among others.
    noise = np.asarray(jax.random.gumbel(key_t, chance.shape))
    rank = np.where(chance > 0, np.log(np.where(chance > 0, chance, 1)) + noise, -np.inf)
    guess, row = t, np.arange(t.size)
    for place in range(max(1, treatments.size)):
        if treatments.size:
            first, left = rank.argmax(axis=1), unknown & (column < 0)
            guess = np.where(left & (rank[row, first] > -np.inf), treatments[first], guess)
            rank[row[left], first[left]] = -np.inf
        asked = guess >= 0
        if t.size and not asked.any():
            break
        scores = jnp.where(asked[:, None], u, jnp.nan)  # the others have no partner, and keep their place
        found = extend(law, scores, np.where(asked, guess, 0)).sample(jax.random.fold_in(key_j, place))
        column = np.where(asked, np.asarray(found), column)
        guess = np.full(t.size, -1)
    return column


def _mixture(mean: np.ndarray, std: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation `[k, p]` of a mixture of `[T, k, p]`; parts that are not known have no say."""
    there = np.isfinite(mean)
    weight = np.where(there, weights[:, :, None], 0)
    total = weight.sum(axis=0)
    weight = weight / np.where(total > 0, total, np.nan)
    mean, std = (np.where(there, x, 0) for x in (mean, std))
    middle = (weight * mean).sum(axis=0)
    apart = mean - middle
    unit = np.maximum(np.abs(apart).max(axis=0, initial=0), std.max(axis=0, initial=0))  # squares may leave float32
    unit = np.where(unit > 0, unit, 1)
    return middle, unit * np.sqrt((weight * ((std / unit) ** 2 + (apart / unit) ** 2)).sum(axis=0))


def _columns(p: int) -> list[slice]:
    return [slice(first, min(p, first + COLUMNS)) for first in range(0, p, COLUMNS)]


def _moments(law: Blocked, y: Any, part: slice) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of some columns, as many at a time as others, so that they are compiled once.

    Squares are of what differs from the treatment's mean, in units of the largest: they neither cancel nor overflow.
    """
    some = np.asarray(dense(y[:, part]), np.float32)
    width = min(COLUMNS, y.shape[1])
    (n, m), last = law.shape, law.info.converged.shape[0]
    of_row, of_column = _treatments(law.blocks, "rows", n, last), _treatments(law.blocks, "cols", m, last)
    order = np.argsort(of_column, kind="stable")
    there, first = np.unique(of_column[order], return_index=True)
    centre = np.zeros((last + 1, some.shape[1]), np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        sums = np.add.reduceat(some[order], first, axis=0, dtype=np.float64)
        means = sums / np.bincount(of_column, minlength=last + 1)[there][:, None]
        centre[there] = np.where(np.isfinite(means), means, 0)
        apart = some - centre[of_column]
    unit = np.max(np.abs(apart), axis=0, initial=0, where=np.isfinite(apart))
    unit = np.where(unit > 0, unit, 1)
    padded = np.zeros((m, 2 * width), np.float32)
    padded[:, : some.shape[1]] = apart / unit
    padded[:, width : width + some.shape[1]] = (apart / unit) ** 2
    found = np.asarray(project(law, jnp.asarray(padded)))
    mean, squares = found[:, : some.shape[1]], found[:, width : width + some.shape[1]]
    return mean * unit + centre[of_row], unit * np.sqrt(np.maximum(squares - mean**2, 0))


def _treatments(blocks: Any, side: str, size: int, last: int) -> np.ndarray:
    """The treatment of each sample `[size]` on one side, `last` of those that were not matched."""
    out = np.full(size + 1, last)
    for block in blocks:
        ids = np.asarray(getattr(block, side))
        out[ids] = np.asarray(block.treatment)[:, None]
    return out[:size]
