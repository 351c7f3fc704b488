"""Large files: an AnnData whose matrices stay where they are, to be read some rows at a time."""

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from psa_jax.data.rows import bounds

LARGE = 2**32  # bytes that matrices take in memory: those of larger files stay there
KEPT = "X", "layers"


def is_large(path: str | os.PathLike[str]) -> bool:
    """Whether the matrices of an `.h5ad`, `.zarr` or `.h5mu` file would take more memory than `LARGE`."""
    group = _open(Path(path))
    with group if hasattr(group, "close") else contextlib.nullcontext():
        sides = [side for _, side in _members(group["mod"])] if Path(path).suffix == ".h5mu" else [group]
        return sum(_size(side[name]) for side in sides for name in KEPT if name in side) > LARGE


def open_stored(path: str | os.PathLike[str]) -> Any:
    """The AnnData in an `.h5ad` or `.zarr` file, without `raw`: `X` and layers are read when they are used."""
    import anndata
    from anndata.io import read_elem

    group = _open(Path(path))
    parts: dict[str, Any] = {name: read_elem(group[name]) for name in group if name not in (*KEPT, "raw")}
    layers = {name: _stored(part) for name, part in _members(group["layers"])} if "layers" in group else {}
    return anndata.AnnData(_stored(group["X"]) if "X" in group else None, layers=layers, **parts)


def by_rows(columns: Any) -> Any:
    """Sparse rows in a temporary file, of sparse columns in a file; neither is in memory as a whole."""
    n, d = columns.shape
    blocks = list(bounds(d, columns.group["data"].shape[0] // max(1, d)))
    sizes = np.zeros(n, np.int64)
    for first, last in blocks:
        sizes += np.bincount(columns[:, first:last].indices, minlength=n)
    start = np.concatenate([[0], np.cumsum(sizes)])
    data, indices = _scratch(start[-1], columns.dtype), _scratch(start[-1], np.int64 if d > 2**31 - 1 else np.int32)
    free = start[:-1].copy()
    for first, last in blocks:
        part = sparse.csr_array(columns[:, first:last])
        sizes = np.diff(part.indptr)
        place = np.repeat(free - part.indptr[:-1], sizes) + np.arange(part.nnz)
        data[place], indices[place] = part.data, part.indices + first
        free += sizes
    return sparse.csr_array((data, indices, start), shape=(n, d), copy=False)


def _open(path: Path) -> Any:
    if path.suffix == ".zarr":
        import zarr

        return zarr.open_group(path, mode="r")
    import h5py

    return h5py.File(path, "r")


def _stored(part: Any) -> Any:
    from anndata.io import sparse_dataset

    return part if hasattr(part, "shape") else sparse_dataset(part)


def _size(part: Any) -> int:
    return part.nbytes if hasattr(part, "shape") else sum(_size(each) for _, each in _members(part))


def _members(group: Any) -> list[tuple[str, Any]]:
    return [(name, group[name]) for name in group]


def _scratch(size: int, kind: Any) -> np.ndarray:
    """An array in a file that is gone when nobody uses it any more."""
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, dtype=kind, mode="w+", shape=(max(1, int(size)),))[: int(size)]
