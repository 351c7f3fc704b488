"""Whole passes over a source on the host: what is not finite, and by what it is known again."""

import dataclasses
import hashlib
import math
from typing import Any

import numpy as np

from psa_jax.data.rows import bounds
from psa_jax.data.source import Source
from psa_jax.types import PyTree

FEW = 64  # rows by which a source is known that was never read as a whole


def not_finite(x: Source) -> np.ndarray:
    """The numbers of samples with NaN or infinity, found in one pass, by which they are known again. Host only."""
    if x.reader.finite:
        return np.zeros(0, int)
    n, width = x.shape[0], math.prod(x.rows[1:])
    bad, parts, seen = [], list(bounds(n, width)), hashlib.sha256()
    plain = dataclasses.replace(x, columns=None)
    for (first, last), (_, end) in zip(parts, [*parts[1:], (n, n)], strict=True):
        part = plain.reader.read(*(np.asarray(plain._own(np.arange(*pair))) for pair in ((first, last), (last, end))))
        finite = np.isfinite(part.astype(np.float32 if part.dtype.itemsize < 4 else part.dtype, copy=False))
        bad.append(first + np.flatnonzero(~finite.reshape(len(part), -1).all(1)))
        seen.update(np.ascontiguousarray(part).view(np.uint8).data)
    found = np.concatenate(bad)
    x.reader.seen[_of(x.ids)] = seen.digest()
    x.reader.finite = x.ids is None and not found.size
    return found


def known_by(x: Source) -> PyTree:
    """Arrays that tell a source from others: digests of all that was read in whole passes, or else a few rows."""
    if x.reader.seen:
        seen = b"".join(key + value for key, value in sorted(x.reader.seen.items()))
        return np.frombuffer(seen, np.uint8), x.ids, x.columns
    return x[np.linspace(0, len(x) - 1, FEW).astype(np.int32)]


def _of(ids: Any) -> bytes:
    return hashlib.sha256(b"" if ids is None else np.ascontiguousarray(ids).view(np.uint8).data).digest()
