"""What every baseline asks of its data and settings."""

from typing import Any

import numpy as np

from psa_jax.data.samples import Unpaired, check_like, on_host
from psa_jax.data.source import Source


def prepared(data: Unpaired, query: Unpaired | None) -> tuple[Unpaired, Unpaired]:
    """What to learn from and what to embed (`data` too, without a query), both checked. Host only."""
    given, data = data, on_host(data).taught
    if (both := shared(data)).size < 2:
        raise ValueError(
            f"data: expected at least two treatments that both modalities have, got only {both.tolist()}: labels are "
            "all that a baseline has to go by"
        )
    _check_in_memory("data", data)
    if query is None:
        return data, data
    check_like("query", query, given)
    _check_in_memory("query", query)
    return data, on_host(query).taught


def _check_in_memory(name: str, data: Unpaired) -> None:
    for side in (data.a, data.b):
        if isinstance(side.x, Source):
            raise ValueError(f"{name}: expected features in memory, got a {side.x}: only psa_jax.align reads sources")


def shared(data: Unpaired) -> np.ndarray:
    """The codes of the treatments that both modalities have, ascending. Host only."""
    return np.intersect1d(np.asarray(data.a.t), np.asarray(data.b.t))


def check_number(name: str, value: Any, *, low: int, open_low: bool = False) -> None:
    """Raises a `ValueError` unless `value` is a finite number of at least `low`, or above it."""
    number = np.asarray(value)
    fits = number.ndim == 0 and np.isfinite(number) and (number > low if open_low else number >= low)
    if not fits:
        raise ValueError(
            f"{name}: expected a finite number {'above' if open_low else 'of at least'} {low}, got {value}"
        )
