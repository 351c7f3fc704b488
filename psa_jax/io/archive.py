"""Any pytree in one archive."""

import contextlib
import json
import math
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np

from psa_jax.arguments import checked
from psa_jax.io.files import write_atomically
from psa_jax.types import PyTree

_ABOUT = "about.json"
_FORMAT = 1  # of every archive; files of version 0.4 and some of 0.5 do not say it
MOST = 100  # times its own size is what a file may hold, if that is more than
SMALL = 2**27  # bytes


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
        if not _is_number(array.dtype):
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
    return fitted_in(path, read_leaves(path)[0], like)


def read_leaves(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The leaves of a saved tree by key path, with the dtypes they had, and what the file says besides."""
    stored, about = read_archive(path)
    named = {name for name, entry in about.items() if isinstance(entry, dict) and "dtype" in entry}
    with reading(path):
        if differing := sorted(named ^ set(stored)):
            raise ValueError(f"what it says of its arrays and these are not the same: {', '.join(differing[:5])}")
        return {name: _leaf(name, array, about[name]) for name, array in stored.items()}, about


def fitted_in(path: str | os.PathLike[str], leaves: dict[str, Any], like: PyTree) -> PyTree:
    """The tree `like` with the leaves that were read from `path`; a `ValueError` lists all that do not fit."""
    fitting, problems = [], []
    wanted = _named(like)
    for name, leaf in wanted:
        if name not in leaves:
            problems.append(f"missing {name}")
            continue
        array, same = leaves[name], leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
        if (array.shape, array.dtype) != (same.shape, same.dtype):
            problems.append(f"{name}: expected {same.dtype} {same.shape}, got {array.dtype} {array.shape}")
        if isinstance(leaf, bool | int | float | complex):
            array = array.item() if array.ndim == 0 else array
        elif not isinstance(leaf, np.ndarray | np.generic):
            array = jnp.asarray(array)
        fitting.append(array)
    problems += [f"unexpected {name}" for name in leaves if name not in {name for name, _ in wanted}]
    if problems:
        raise ValueError(f"{path}: {'; '.join(problems)}")
    return jax.tree.unflatten(jax.tree.structure(like), fitting)


def _named(tree: PyTree) -> list[tuple[str, Any]]:
    return [(jax.tree_util.keystr(path) or ".", leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _is_number(dtype: np.dtype) -> bool:
    return dtype.kind == "b" or bool(jnp.issubdtype(dtype, jnp.number))


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _leaf(name: str, array: np.ndarray, entry: dict[str, Any]) -> Any:
    """An array as it was before `pack`."""
    if not isinstance(kind := entry["dtype"], str):
        raise ValueError(f"{name}: expected the name of a dtype, got {kind!r}")
    if kind == "key":
        return jax.random.wrap_key_data(jnp.asarray(array), impl=entry["impl"])
    dtype = jnp.dtype(kind)
    if not _is_number(dtype):
        raise ValueError(f"{name}: expected numbers, got {dtype}")
    if array.dtype.name != (as_stored := f"uint{8 * dtype.itemsize}" if dtype.kind == "V" else dtype.name):
        raise ValueError(f"{name}: expected {as_stored}, got {array.dtype}")
    return array.view(dtype) if dtype.kind == "V" else array


def write_archive(
    path: str | os.PathLike[str], arrays: dict[str, np.ndarray], about: dict[str, Any], *, deflated: bool = True
) -> None:
    """Writes arrays, and what to know about them as JSON, into one archive, at once or not at all.

    Args:
        path: the file.
        arrays: by name.
        about: what to know about them.
        deflated: whether to make the file smaller, which takes longer.
    """

    def fill(file: IO[bytes]) -> None:
        # zeros and the like are stored as they are, so that no reader has to take a small file for a giant one
        for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED) if deflated else (zipfile.ZIP_STORED,):
            file.seek(0)
            file.truncate()
            with zipfile.ZipFile(file, "w", method) as archive:
                archive.writestr(_ABOUT, json.dumps({**about, "format": _FORMAT}))
                for name, array in arrays.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
            if _excess(archive, file.tell()) is None:
                return

    write_atomically(path, fill)


def read_archive(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of an archive and what it says about them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: anything but an undamaged archive of numbers, or one that a newer version made.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with open(path, "rb") as file, reading(path), zipfile.ZipFile(file) as archive:
        _check_members(archive, os.fstat(file.fileno()).st_size)
        about = json.loads(archive.read(_ABOUT))
        if not isinstance(about, dict):
            raise ValueError(f"{_ABOUT}: expected an object, got {type(about).__name__}")
        check_version(path, about.get("format", _FORMAT), _FORMAT)
        names = [name for name in archive.namelist() if name != _ABOUT]
        return {name.removesuffix(".npy"): _array(archive, name) for name in names}, about


@contextlib.contextmanager
def reading(path: str | os.PathLike[str], expected: str = "an archive made by psa_jax") -> Iterator[None]:
    """While a file is taken apart: whatever its content leads to is one `ValueError` that names the file."""
    try:
        yield
    except Exception as error:  # zipfile, NumPy and JSON have dozens of ways to fail on bytes from elsewhere
        if isinstance(error, ValueError) and str(error).startswith(f"{path}: "):
            raise
        told = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{path}: expected {expected}, got something else ({told})") from error


def check_version(path: str | os.PathLike[str], version: Any, newest: int) -> None:
    """Raises a `ValueError` for a file of the future."""
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ValueError(f"{path}: expected the number of a version, got {version!r}")
    if version > newest:
        raise ValueError(
            f"{path}: expected a file of version {newest} or before, got {version}: a newer psa_jax made it"
        )


def allowed(size: int) -> int:
    """The bytes that what a file of `size` bytes declares may take: a small file does not fill the memory."""
    return max(SMALL, MOST * size)


def _check_members(archive: zipfile.ZipFile, size: int) -> None:
    """Raises a `ValueError` if what a file of `size` bytes says of its members cannot be, before any is read."""
    members = archive.infolist()
    if len({member.filename for member in members}) < len(members):
        raise ValueError("some names of arrays occur twice")
    for member in members:
        if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{member.filename}: expected a member stored or deflated, got another kind")
    if (packed := sum(member.compress_size for member in members)) > size:
        raise ValueError(f"expected members of {size} bytes at most, the size of the file, got {packed}")
    if (excess := _excess(archive, size)) is not None:
        raise ValueError(excess)


def _excess(archive: zipfile.ZipFile, size: int) -> str | None:
    """In words, what an archive of `size` bytes declares beyond what one may; None is nothing."""
    if (unpacked := sum(member.file_size for member in archive.infolist())) > allowed(size):
        return f"expected {allowed(size)} bytes at most in a file of {size}, got {unpacked}"
    # names are in the archive too, not compressed: what it says of them is not much longer than itself
    if (told := archive.getinfo(_ABOUT).file_size) > 2**20 + 4 * size:
        return f"{_ABOUT}: expected {2**20 + 4 * size} bytes at most in a file of {size}, got {told}"
    return None


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array of numbers that fills its member to the last byte."""
    with archive.open(name) as member:
        if (version := np.lib.format.read_magic(member)) not in ((1, 0), (2, 0)):
            raise ValueError(f"{name}: expected an array in version 1 or 2 of its format, got {version}")
        headers = np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0
        shape, _, dtype = headers[version[0] - 1](member)
        if dtype.kind not in "biufc":
            raise ValueError(f"{name}: expected numbers, got {dtype}")
        held = archive.getinfo(name).file_size - member.tell()
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != held:
            raise ValueError(f"{name}: expected the {held} bytes that it has, got the shape {shape} of {dtype}")
        member.seek(0)
        return np.lib.format.read_array(member, allow_pickle=False)
