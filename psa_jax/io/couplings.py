"""Couplings in a compact sparse form."""

import os

import jax.numpy as jnp
import numpy as np

from psa_jax.arguments import checked
from psa_jax.coupling.blocked import Blocked
from psa_jax.coupling.coupling import Coupling
from psa_jax.coupling.info import Info
from psa_jax.io.archive import allowed, check_version, read_archive, reading, write_archive
from psa_jax.match.nearest import listed

_KIND = "psa_jax coupling"
_VERSION = 1
ROUNDING = 1e-3  # of float32 probabilities summed over a row


@checked
def save_coupling(path: str | os.PathLike[str], coupling: Coupling | Blocked, k: int = 32) -> None:
    """Writes the `k` most probable columns of each row, and states how much of each row's mass they are.

    Args:
        path: the `.npz` file, written at once or not at all.
        coupling: `[n, m]`.
        k: columns kept for each row, at most `m` of them.

    The arrays of the file: `columns` `[n, k]` int32 (-1 past the last), `probabilities` `[n, k]` float32 (of
    the untruncated law), `kept` `[n]` their sum, `kept_mean` its mean over the rows that have a partner,
    `row_marginal` `[n]`, `shape`.

    Raises:
        ValueError: a coupling that is no law, such as one with NaN in it.
    """
    if k < 1:
        raise ValueError(f"k: expected at least 1, got {k}")
    probability, column = map(np.asarray, coupling.top_k(min(k, coupling.shape[1])))
    kept = probability.sum(axis=1, dtype=np.float64)
    matched = column[:, 0] >= 0
    stored = {
        "columns": column.astype(np.int32),
        "probabilities": probability.astype(np.float32),
        "kept": kept.astype(np.float32),
        "kept_mean": np.float32(kept[matched].mean() if matched.any() else 0),
        "row_marginal": np.asarray(coupling.row_marginal(), np.float32),
        "shape": np.asarray(coupling.shape, np.int64),
    }
    try:
        _check(stored)
    except ValueError as error:
        raise ValueError(f"coupling: {error}") from None
    write_archive(path, stored, {"kind": _KIND, "version": _VERSION})


@checked
def load_coupling(path: str | os.PathLike[str]) -> Coupling:
    """Reads what `save_coupling` wrote: the truncated law, renormalised, over all samples.

    Rows keep their joint mass; a row without partner has none. `info.details["kept"]` `[n]` is the share of
    each row's mass that the file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else, or arrays that are no law: columns out of range, probabilities
            that are none, masses that are negative or not finite. A newer version made it.
    """
    stored, about = read_archive(path)
    if about.get("kind") != _KIND:
        raise ValueError(f"{path}: expected a file made by save_coupling, got another archive")
    check_version(path, about.get("version"), _VERSION)
    with reading(path, "a coupling made by save_coupling"):
        _check(stored)
        held, m = sum(array.nbytes for array in stored.values()), int(stored["shape"][1])
        if 4 * m > allowed(held):
            raise ValueError(f"shape: expected {allowed(held) // 4} columns at most in so small a file, got {m}")
    probability, kept, mass = stored["probabilities"], stored["kept"], stored["row_marginal"]
    share = mass[:, None] * probability / np.where(kept > 0, kept, 1)[:, None]
    log_mass = np.where(share > 0, np.log(np.where(share > 0, share, 1)), -np.inf)
    return Coupling(
        left=(jnp.asarray(stored["columns"], jnp.int32), jnp.asarray(log_mass, jnp.float32)),
        right=jnp.arange(int(stored["shape"][1]), dtype=jnp.int32),
        kernel=listed,
        info=Info.closed_form(kept=jnp.asarray(kept)),
    )


def _check(stored: dict[str, np.ndarray]) -> None:
    """Raises a `ValueError` that says which array is not what a law has."""
    n, k = stored["columns"].shape
    ranks = {
        "columns": ((n, k), "i"),
        "probabilities": ((n, k), "f"),
        "kept": ((n,), "f"),
        "kept_mean": ((), "f"),
        "row_marginal": ((n,), "f"),
        "shape": ((2,), "i"),
    }
    if unknown := sorted(set(stored) - set(ranks)):
        raise ValueError(f"unexpected {', '.join(unknown)}")
    for name, (shape, kind) in ranks.items():
        if (array := stored[name]).shape != shape or array.dtype.kind != kind:
            word = "integers" if kind == "i" else "floats"
            raise ValueError(f"{name}: expected {word} {shape}, got {array.dtype} {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")
    rows, m = stored["shape"].tolist()
    if rows != n or m < k:
        raise ValueError(f"shape: expected {n} rows and {k} columns or more, got {(rows, m)}")
    column, probability = stored["columns"], stored["probabilities"].astype(np.float64)
    given = column >= 0
    in_order = np.sort(column, axis=1)
    if column.size and (column.min() < -1 or column.max() >= m):
        raise ValueError(f"columns: expected them in [-1, {m}), got {column.min()} to {column.max()}")
    if ((in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] >= 0)).any():
        raise ValueError("columns: expected each once in a row, got some twice")
    if ((probability < 0) | (probability > 1 + ROUNDING) | ~given & (probability > 0)).any():
        raise ValueError("probabilities: expected them in [0, 1], and 0 where there is no column, got others")
    total = probability.sum(axis=1)
    if (total > 1 + ROUNDING).any() or (np.abs(total - stored["kept"]) > ROUNDING).any():
        raise ValueError("kept: expected the sums of the rows' probabilities, at most 1, got others")
    if (stored["row_marginal"] < 0).any():
        raise ValueError("row_marginal: expected no negative mass, got some")
