"""Counts: what they look like, and how they are made comparable between cells."""

from typing import Any

import numpy as np
from scipy import sparse

from psa_jax.data.components import bounds, chunks


def are_counts(x: Any) -> bool:
    """Whether a matrix `[n, d]`, sparse or not, holds nothing but whole numbers from 0 up, and not all of them 0."""
    something = False
    for part in chunks(x):
        data = part.data if sparse.issparse(part) else part
        if data.dtype.kind == "b":
            return False
        if data.dtype.kind == "f" and not (np.isfinite(data).all() and (data == np.rint(data)).all()):
            return False
        if data.size and data.min() < 0:
            return False
        something = something or bool(data.any())
    return something


def totals(x: Any) -> np.ndarray:
    """The sum of each row `[n]`, in double precision."""
    found = [np.asarray(part.sum(axis=1, dtype=np.float64)).ravel() for part in chunks(x)]
    return np.concatenate(found)


def usual_total(x: Any) -> float:
    """The median total of the cells that have any count: what counts are brought to."""
    found = totals(x)
    return float(np.median(found[found > 0]))


def log_normalised(x: Any, total: float) -> Any:
    """`log(1 + total count / sum of counts)` of each cell, float32; a sparse matrix shares its indices with `x`.

    Cells without any count stay zero.

    Example:
        >>> log_normalised(np.array([[1, 3], [0, 0]]), 2.0).round(3).tolist()
        [[0.4050000011920929, 0.9160000085830688], [0.0, 0.0]]
    """
    found = totals(x)
    factor = (np.where(found > 0, total, 0) / np.where(found > 0, found, 1)).astype(np.float32)
    if sparse.issparse(x):
        data = np.empty(x.data.shape, np.float32)
        for first, last in bounds(x.shape[0], x.nnz // max(1, x.shape[0])):
            place = slice(x.indptr[first], x.indptr[last])
            by = np.repeat(factor[first:last], np.diff(x.indptr[first : last + 1]))
            np.log1p(np.multiply(x.data[place], by, dtype=np.float32, casting="same_kind"), out=data[place])
        return sparse.csr_array((data, x.indices, x.indptr), shape=x.shape, copy=False)
    return np.log1p(x.astype(np.float32) * factor[:, None])
