"""Counts: what they look like, and how they are made comparable between cells."""

import dataclasses
from typing import Any

import numpy as np
from scipy import sparse

from psa_jax.data.rows import rows_of


@dataclasses.dataclass(frozen=True, eq=False)
class Survey:
    """What numbers a matrix `[n, d]` holds.

    Attributes:
        finite: no NaN, no infinity.
        whole: nothing but whole numbers from 0 up.
        something: not all of them are 0.
        totals: `[n]` the sum of each row, in double precision.
    """

    finite: bool
    whole: bool
    something: bool
    totals: np.ndarray

    @property
    def counts(self) -> bool:
        """Whether they look like counts."""
        return self.whole and self.something

    @property
    def usual_total(self) -> float:
        """The median total of the cells that have any count: what counts are brought to."""
        return float(np.median(self.totals[self.totals > 0]))


def survey(x: Any) -> Survey:
    """Reads a matrix once, sparse or not."""
    finite, whole, something, totals = True, True, False, []
    for part in rows_of(x):
        data = part.data if sparse.issparse(part) else part
        if data.dtype.kind == "f":
            finite = finite and bool(np.isfinite(data).all())
            whole = whole and finite and bool((data == np.rint(data)).all())
        whole = whole and data.dtype.kind != "b" and not (data.size and data.min() < 0)
        something = something or bool(data.any())
        totals.append(np.asarray(part.sum(axis=1, dtype=np.float64)).ravel())
    return Survey(finite, whole, something, np.concatenate(totals))


def log_normalised(x: Any, total: float) -> Any:
    """`log(1 + total count / sum of counts)` of each cell, float32; a sparse matrix shares its indices with `x`.

    Cells without any count stay zero.

    Example:
        >>> log_normalised(np.array([[1, 3], [0, 0]]), 2.0).round(3).tolist()
        [[0.4050000011920929, 0.9160000085830688], [0.0, 0.0]]
    """
    found = np.asarray(x.sum(axis=1, dtype=np.float64)).ravel()
    factor = (np.where(found > 0, total, 0) / np.where(found > 0, found, 1)).astype(np.float32)
    if sparse.issparse(x):
        data = np.repeat(factor, np.diff(x.indptr))
        np.log1p(np.multiply(x.data, data, out=data, dtype=np.float32, casting="same_kind"), out=data)
        return sparse.csr_array((data, x.indices, x.indptr), shape=x.shape, copy=False)
    return np.log1p(x.astype(np.float32) * factor[:, None])
