"""Matrices whose rows are read some at a time: what is done to them leaves no second copy, nor a first of a file."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy import sparse

CHUNK = 2**22  # numbers held in double precision at once


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """A matrix `[n, d]` that may stand in a file, read from its first row to its last as often as it is iterated over.

    Attributes:
        shape: `n` and `d`.
        parts: begins a new reading: some rows at a time, NumPy arrays or `scipy.sparse.csr_array`.

    Example:
        >>> x = rows_of(np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
        >>> double = x.where(np.array([True, False, True])).map(lambda part: 2 * part)
        >>> double.shape, whole(double).tolist()
        ((2, 2), [[2.0, 4.0], [10.0, 12.0]])
    """

    shape: tuple[int, int]
    parts: Callable[[], Iterator[Any]]

    def __iter__(self) -> Iterator[Any]:
        return self.parts()

    def map(self, change: Callable[[Any], Any], width: int | None = None) -> "Rows":
        """The same with every part changed, row by row; `width` columns come out, or as many as before."""
        shape = self.shape if width is None else (self.shape[0], width)
        return Rows(shape, lambda: map(change, self))

    def where(self, kept: np.ndarray) -> "Rows":
        """Only the rows that are marked in `kept` `[n]`."""
        if kept.all():
            return self

        def parts() -> Iterator[Any]:
            first = 0
            for part in self:
                yield part[np.flatnonzero(kept[first : first + part.shape[0]])]
                first += part.shape[0]

        return Rows((int(kept.sum()), self.shape[1]), parts)


def rows_of(x: Any) -> Rows:
    """The rows of a NumPy array or of sparse rows, which share its memory."""
    if isinstance(x, Rows):
        return x
    n, d = x.shape
    return Rows((n, d), lambda: _sparse_parts(x) if sparse.issparse(x) else (x[i:j] for i, j in bounds(n, d)))


def read_rows(x: Any, width: int, change: Callable[[Any], Any]) -> Rows:
    """The rows `[n, d]` of what reads slices from a file, `width` numbers each; `change` makes arrays of them."""
    return Rows(x.shape, lambda: (change(x[first:last]) for first, last in bounds(x.shape[0], width)))


def whole(x: Rows) -> Any:
    """All rows in one matrix, sparse if they are."""
    parts = list(x)
    if any(map(sparse.issparse, parts)):
        return sparse.csr_array(sparse.vstack(parts, format="csr"))
    return np.concatenate(parts)


def bounds(n: int, width: int) -> Iterator[tuple[int, int]]:
    """First and last of rows `[n, width]` that are few enough to hold in double precision."""
    step = max(1, CHUNK // max(1, width))
    for first in range(0, max(n, 1), step):
        yield first, min(n, first + step)


def _sparse_parts(x: Any) -> Iterator[Any]:
    for first, last in bounds(x.shape[0], x.nnz // max(1, x.shape[0])):
        start, end = x.indptr[first], x.indptr[last]
        part = x.data[start:end], x.indices[start:end], x.indptr[first : last + 1] - start
        yield sparse.csr_array(part, shape=(last - first, x.shape[1]), copy=False)
