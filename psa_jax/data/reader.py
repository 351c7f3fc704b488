"""What reads the rows of a source, one reading at a time, in a thread of its own and ahead of those that wait."""

import concurrent.futures
import dataclasses
import threading
from typing import Any

import numpy as np

MOST_AHEAD = 16  # readings that nobody has asked for yet


class BadRows(Exception):
    """What a source gave that is no rows of numbers as it was said to have."""


@dataclasses.dataclass(frozen=True)
class Failure:
    """What went wrong in reading which rows."""

    error: Exception
    first: int
    last: int

    def told(self, name: str) -> Exception:
        """What to raise: it says `name`, what was expected and what came."""
        where = f"row {self.first}" if self.first == self.last else f"rows {self.first} to {self.last}"
        if isinstance(self.error, BadRows):
            return ValueError(f"{name}: expected {self.error}, for {where} of the source")
        kind = type(self.error).__name__
        return RuntimeError(f"{name}: expected {where} of the source, which raised {kind}: {self.error}")


class Reader:
    """Reads rows of anything that has `len(rows)` or a shape, and `rows[ids]`.

    Attributes:
        shape: of all rows, `[n, ...]`.
        dtype: as they are read.
        failed: what went wrong between `start` and `stop`, or None: nothing more is read then.
        finite: whether all rows were found to be finite.
        seen: digests of the rows that were read in whole passes, by that of their numbers.
    """

    def __init__(self, rows: Any, each: bool) -> None:
        self._rows, self._each = rows, each
        self._lock, self._ahead, self._open = threading.Lock(), {}, 0
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "psa_jax source")
        self.failed: Failure | None = None
        self.finite = False
        self.seen: dict[bytes, bytes] = {}
        if not (length := self._length()):
            raise BadRows("at least one row, got none")
        first = self._found(np.zeros(1, np.int64))
        if first.shape[:1] != (1,):
            raise BadRows(f"an array [1, ...] of one row, got {list(first.shape)}")
        self.shape, self.dtype = (length, *first.shape[1:]), first.dtype

    def read(self, ids: np.ndarray, following: np.ndarray | None = None) -> np.ndarray:
        """Rows of ids of any shape `[...]`, `[..., *features]`; those `following`, -1 for none, are read meanwhile.

        The source is asked for distinct rows in ascending order. What goes wrong is raised and kept.
        """
        wanted, place = np.unique(np.ravel(ids).astype(np.int64), return_inverse=True)
        if self.failed is not None:  # other devices may go on
            raise self.failed.error
        with self._lock:
            found = self._ahead.pop(wanted.tobytes(), None) or self._thread.submit(self._fetch, wanted)
            if following is not None:
                self._begin(np.unique(following[following >= 0]).astype(np.int64))
        try:
            rows = found.result()
        except Exception as error:
            self._fail(error, int(wanted.min(initial=0)), int(wanted.max(initial=0)))
            raise
        if wanted.size != place.size or not np.array_equal(place, np.arange(place.size)):
            rows = rows[place]
        return rows.reshape(*np.shape(ids), *self.shape[1:])

    def start(self) -> None:
        """Before readings that belong together: asks the source for its length."""
        self._open += 1
        try:
            self._check_length()
        except Exception as error:
            self._fail(error, 0, self.shape[0] - 1)
            raise

    def stop(self) -> None:
        """After them: forgets what went wrong, and what was read and not asked for."""
        self._open -= 1
        if self._open:
            return
        self.failed = None
        with self._lock:
            for found in self._ahead.values():
                found.cancel()
            self._ahead.clear()

    def _fail(self, error: Exception, first: int, last: int) -> None:
        if self._open and self.failed is None:
            self.failed = Failure(error, first, last)

    def _begin(self, wanted: np.ndarray) -> None:
        if not wanted.size or wanted.tobytes() in self._ahead:
            return
        while len(self._ahead) >= MOST_AHEAD:
            self._ahead.pop(next(iter(self._ahead))).cancel()
        self._ahead[wanted.tobytes()] = self._thread.submit(self._fetch, wanted)

    def _fetch(self, wanted: np.ndarray) -> np.ndarray:
        found = self._found(wanted)
        if found.shape != (wanted.size, *self.shape[1:]):
            raise BadRows(f"an array {[wanted.size, *self.shape[1:]]}, got {list(found.shape)}")
        if found.dtype != self.dtype:
            raise BadRows(f"{self.dtype}, as the first row was, got {found.dtype}")
        self._check_length()
        return found

    def _found(self, wanted: np.ndarray) -> np.ndarray:
        if self._each:
            return np.stack([np.asarray(self._rows[int(i)]) for i in wanted])
        found = self._rows[wanted]
        return np.asarray(found.toarray() if hasattr(found, "toarray") else found)

    def _length(self) -> int:
        shape = getattr(self._rows, "shape", ())
        return shape[0] if shape else len(self._rows)

    def _check_length(self) -> None:
        if (length := self._length()) != self.shape[0]:
            raise BadRows(f"{self.shape[0]} rows, as there were at first, got {length}")
