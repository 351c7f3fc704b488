"""Any pytree in one archive, and couplings in a compact sparse form."""

import json
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np

from psa_jax.arguments import checked
from psa_jax.coupling.blocked import Blocked
from psa_jax.coupling.coupling import Coupling, Info
from psa_jax.match.nearest import listed
from psa_jax.types import PyTree

_ABOUT = "about.json"


@checked
def save(path: str | os.PathLike[str], tree: PyTree) -> None:
    """Writes any pytree of arrays into one `.npz` archive, each leaf under its key path.

    The archive is written beside its place and moved there when complete, so an interruption leaves what was
    there before. Typed PRNG keys are stored as their data and the name of their generator.

    Args:
        path: the file; exactly this name is used.
        tree: leaves are arrays, numbers or typed keys.

    Raises:
        ValueError: a leaf that is no array of numbers.
    """
    write_archive(path, *pack(tree))


def pack(tree: PyTree) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The leaves of a tree by key path, as NumPy can store them, and what to know about each."""
    stored, about = {}, {}
    for name, leaf in _named(tree):
        if _is_key(leaf):
            about[name] = {"dtype": "key", "impl": str(jax.random.key_impl(leaf))}
            stored[name] = np.asarray(jax.random.key_data(leaf))
            continue
        array = np.asarray(leaf)
        about[name] = {"dtype": array.dtype.name}
        if not (
            np.issubdtype(array.dtype, np.number) or array.dtype == bool or jnp.issubdtype(array.dtype, jnp.number)
        ):
            raise ValueError(f"tree: expected arrays of numbers, got {array.dtype} at {name}")
        # bfloat16 and its like are no dtypes of the npy format: their bits are
        stored[name] = array.view(f"u{array.dtype.itemsize}") if array.dtype.kind == "V" else array
    return stored, about


@checked
def load(path: str | os.PathLike[str], like: PyTree) -> PyTree:
    """Reads what `save` wrote, bitwise.

    Args:
        path: the file.
        like: a tree of the same structure, shapes and dtypes; `jax.eval_shape` gives one without computing.

    Returns:
        The tree. A leaf is a NumPy array or a Python number where that of `like` is one, else a JAX array.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not such an archive; leaves missing or too many; another shape or dtype. All are listed.

    Example:
        >>> import tempfile
        >>> tree = {"w": jnp.arange(3.0), "key": jax.random.key(7)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(Path(folder) / "tree.npz", tree)
        ...     back = load(Path(folder) / "tree.npz", tree)
        >>> back["w"].tolist(), bool(back["key"] == tree["key"])
        ([0.0, 1.0, 2.0], True)
    """
    stored, about = read_archive(path)
    leaves, problems = [], []
    wanted = _named(like)
    for name, leaf in wanted:
        if name not in stored:
            problems.append(f"missing {name}")
            continue
        array, kind = stored[name], about[name]["dtype"]
        if kind == "key":
            array = jax.random.wrap_key_data(jnp.asarray(array), impl=about[name]["impl"])
        elif array.dtype.name != kind:
            array = array.view(jnp.dtype(kind))
        same = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
        if (array.shape, array.dtype) != (same.shape, same.dtype):
            problems.append(f"{name}: expected {same.dtype} {same.shape}, got {array.dtype} {array.shape}")
        if isinstance(leaf, bool | int | float | complex):
            array = array.item() if array.ndim == 0 else array
        elif not isinstance(leaf, np.ndarray | np.generic):
            array = jnp.asarray(array)
        leaves.append(array)
    problems += [f"unexpected {name}" for name in stored if name not in {name for name, _ in wanted}]
    if problems:
        raise ValueError(f"{path}: {'; '.join(problems)}")
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


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
    write_archive(path, stored, {"kind": "psa_jax coupling", "version": 1})


@checked
def load_coupling(path: str | os.PathLike[str]) -> Coupling:
    """Reads what `save_coupling` wrote: the truncated law, renormalised, over all samples.

    Rows keep their joint mass; a row without partner has none. `info.details["kept"]` `[n]` is the share of
    each row's mass that the file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else.
    """
    stored, about = read_archive(path)
    if about.get("kind") != "psa_jax coupling":
        raise ValueError(f"{path}: expected a file made by save_coupling, got another archive")
    probability, kept, mass = stored["probabilities"], stored["kept"], stored["row_marginal"]
    share = mass[:, None] * probability / np.where(kept > 0, kept, 1)[:, None]
    log_mass = np.where(share > 0, np.log(np.where(share > 0, share, 1)), -np.inf)
    return Coupling(
        left=(jnp.asarray(stored["columns"], jnp.int32), jnp.asarray(log_mass, jnp.float32)),
        right=jnp.arange(int(stored["shape"][1]), dtype=jnp.int32),
        kernel=listed,
        info=Info.closed_form(kept=jnp.asarray(kept)),
    )


def _named(tree: PyTree) -> list[tuple[str, Any]]:
    return [(jax.tree_util.keystr(path) or ".", leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def write_archive(path: str | os.PathLike[str], arrays: dict[str, np.ndarray], about: dict[str, Any]) -> None:
    """Writes arrays, and what to know about them as JSON, into one archive, at once or not at all."""

    def fill(file: IO[bytes]) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(_ABOUT, json.dumps(about))
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)

    write_atomically(path, fill)


def read_archive(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of an archive and what it says about them."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            about = json.loads(archive.read(_ABOUT))
            names = [name for name in archive.namelist() if name != _ABOUT]
            arrays = {}
            for name in names:
                with archive.open(name) as member:
                    name = name.removesuffix(".npy")
                    arrays[name] = np.lib.format.read_array(member, allow_pickle=False)
    except (zipfile.BadZipFile, KeyError, EOFError, zlib.error, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: expected an archive made by psa_jax, got something else ({error})") from error
    return arrays, about


@checked
def write_atomically(path: str | os.PathLike[str], fill: Callable[[IO[bytes]], None]) -> None:
    """Lets `fill` write a file beside `path` and moves it there when complete; else nothing is left."""
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(unfinished, "wb") as file:
            fill(file)
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
