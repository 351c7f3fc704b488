"""Treatment codes: what they must be, how many samples have each, and which."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from psa_jax.types import Array, known

MOST_CODES = 10**6


def check_codes(name: str, t: Any, num_treatments: int) -> None:
    """Raises a `ValueError` if labels are known and one is not in `[0, num_treatments)`; traced ones are ignored."""
    if num_treatments > np.iinfo(np.int32).max // 2:
        raise ValueError(f"num_treatments: expected about as many as there are treatments, got {num_treatments}")
    if known(t) and t.size and not 0 <= int(t.min()) <= int(t.max()) < num_treatments:
        raise ValueError(f"{name}: expected codes in [0, {num_treatments}), got {t.min()} to {t.max()}")


def count_codes(t: Array, num_treatments: int) -> Array:
    """How many samples have each code `[num_treatments]`; others count for nothing."""
    place = jnp.where((t >= 0) & (t < num_treatments), t, num_treatments).astype(jnp.int32)
    return jnp.zeros(num_treatments).at[place].add(1, mode="drop")


def codes(name: str, t: Any, num_treatments: int) -> np.ndarray:
    """Treatment codes as a numpy array; a `ValueError` that says `name` if they are none. Host only."""
    try:
        t = np.asarray(t)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected codes [n], got a {type(t).__name__} ({error})") from None
    if t.ndim != 1:
        raise ValueError(f"{name}: expected rank 1, [n], got shape {t.shape}")
    if not t.size:
        raise ValueError(f"{name}: expected at least one sample, got none")
    if not np.issubdtype(t.dtype, np.integer):
        raise ValueError(
            f"{name}: expected integer treatment codes, got dtype {t.dtype} "
            "(Unpaired.from_labels takes labels of any kind)"
        )
    if num_treatments > max(MOST_CODES, 10 * t.size):
        raise ValueError(
            f"num_treatments: expected about as many as there are treatments, got {num_treatments} for {t.size} "
            "samples (Unpaired.from_labels codes labels of any kind)"
        )
    if t.min() < 0 or t.max() >= num_treatments:
        bad = np.flatnonzero((t < 0) | (t >= num_treatments))
        raise ValueError(
            f"{name}: expected codes in [0, {num_treatments}), got {t[bad[0]]} at row {bad[0]} ({bad.size} such rows)"
        )
    return t.astype(np.int64)


def check_batch(name: str, batch: Any, n: int, names: tuple[str, ...] | None) -> None:
    """Raises a `ValueError` that says `name` unless it is None or `[n]` integers from 0 up that have names. Host."""
    if batch is None:
        return
    found = np.asarray(batch)
    if found.shape != (n,) or found.dtype.kind not in "iu":
        raise ValueError(f"{name}: expected integers [{n}], one for each sample, got {found.dtype} {found.shape}")
    if n and (found.min() < 0 or found.max() >= (MOST_CODES if names is None else len(names))):
        most = "below a million" if names is None else f"in [0, {len(names)}), as there are names"
        raise ValueError(f"{name}: expected codes from 0 up {most}, got {found.min()} to {found.max()}")


def members_of(t: np.ndarray, num_treatments: int) -> list[np.ndarray]:
    """The ids of each treatment, in ascending order."""
    order = np.argsort(t, kind="stable")
    return np.split(order, np.cumsum(np.bincount(t, minlength=num_treatments))[:-1])
