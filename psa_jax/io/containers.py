"""What AnnData and MuData hold, checked before it is used: matrices, labels, and whose cell is whose."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse

from psa_jax.align.alignment import AlignmentWarning
from psa_jax.data.labels import is_missing, keys_of
from psa_jax.data.rows import Rows, read_rows, rows_of
from psa_jax.io.stored import by_rows

SHOWN = 5
PARTS = "obs", "var", "obsm", "layers", "obs_names"


def check_anndata(name: str, adata: Any) -> None:
    """Raises a `ValueError` that says `name` unless it is an AnnData whose cells have names of their own."""
    if hasattr(adata, "mod") or not all(hasattr(adata, part) for part in PARTS):
        hint = " (psa_jax.io.from_mudata takes it)" if hasattr(adata, "mod") else ""
        raise ValueError(f"{name}: expected an anndata.AnnData, got {type(adata).__name__}{hint}")
    if not adata.obs_names.is_unique:
        twice = adata.obs_names[adata.obs_names.duplicated()].unique()
        raise ValueError(
            f"{name}: expected unique cell names, got {len(twice)} more than once ({some(twice)}): "
            "obs_names_make_unique() names them apart if they are different cells"
        )


def places(name: str, there: Any, wanted: Sequence[str]) -> np.ndarray:
    """Where each of the wanted cells stands."""
    place = {str(cell): i for i, cell in enumerate(there)}
    gone = [cell for cell in wanted if cell not in place]
    if gone:
        raise ValueError(
            f"{name}: expected the {len(wanted)} cells that were loaded, got none for {len(gone)} ({some(gone)})"
        )
    return np.array([place[cell] for cell in wanted], int)


def _check_sparse(where: str, x: Any) -> None:
    """Raises a `ValueError` for indices that point nowhere: converted, such a matrix would lose entries in silence."""
    if not hasattr(x, "check_format"):
        return
    try:
        x.check_format(full_check=True)
    except (ValueError, IndexError) as error:
        raise ValueError(f"{where}: expected a sparse matrix {list(x.shape)} that is whole, got {error}") from None


def matrix(where: str, x: Any, num_cells: int) -> Rows:
    """Features `[num_cells, d]` of numbers as this machine has them, some rows at a time.

    What stands in a file that is open is read from there, and nowhere held as a whole; sparse columns, in which no rows
    can be found, are written into a temporary file by rows.

    Raises:
        ValueError: no numbers, or not of these cells; it says `where`.
    """
    stored = hasattr(x, "to_memory")  # sparse, of a file that is open
    if stored and x.format != "csr":
        x, stored = by_rows(x), False
    if hasattr(x, "iloc"):
        others = [name for name, kind in x.dtypes.items() if getattr(kind, "kind", "O") not in "biuf"]
        if others:
            raise ValueError(f"{where}: expected columns of numbers, got others in {listed(others)}")
        x = x.to_numpy(np.float64, na_value=np.nan)
    if isinstance(x, np.ma.MaskedArray) and x.dtype.kind in "biuf":
        x = np.where(np.ma.getmaskarray(x), np.nan, x.data)
    stored = stored or (hasattr(x, "chunks") and hasattr(x, "dtype"))  # arrays of h5py, zarr and dask
    if not stored:
        if sparse.issparse(x):
            _check_sparse(where, x)
        x = sparse.csr_array(x) if sparse.issparse(x) else np.asarray(x)
    if x.dtype.kind not in "biuf":
        raise ValueError(f"{where}: expected numbers [{num_cells} cells, features], got {x.dtype}")
    if len(x.shape) != 2 or x.shape[0] != num_cells or not x.shape[1]:
        raise ValueError(f"{where}: expected numbers [{num_cells} cells, features], got shape {x.shape}")
    if not stored:
        return rows_of(_as_usual(x))
    group = getattr(x, "group", None)  # of sparse rows
    width = x.shape[1] if group is None else group["data"].shape[0] // max(1, num_cells)
    return read_rows(x, width, lambda part: _as_usual(_array(part)))


def _array(part: Any) -> Any:
    return sparse.csr_array(part) if sparse.issparse(part) else np.asarray(part)


def _as_usual(x: Any) -> Any:
    """Numbers with their bytes in this machine's order, every entry stored once."""
    x = x.astype(x.dtype.newbyteorder("="), copy=False)
    if sparse.issparse(x) and not x.has_canonical_format:  # some entries may be there in parts, which have no logarithm
        x = x.copy()
        x.sum_duplicates()
    return x


def column(table: Any, name: str, argument: str, where: str, also: str = "") -> Any:
    """The one column of a table; a `ValueError` that says `argument` if there is none or more than one."""
    count = list(table.columns).count(name)
    if not count:
        raise ValueError(f"{argument}: no column {name!r} in {where} {listed(table.columns)}{also}")
    if count > 1:
        raise ValueError(f"{argument}: expected one column {name!r} in {where}, got {count} of this name: rename them")
    return table[name]


def labels_of(obs: Any, name: str, where: str, also: str = "", *, argument: str = "treatment") -> np.ndarray:
    """The label of each cell, to be compared as `labels.encode` does; None where there is none."""
    keys = keys_of(f"{argument} {name!r}", column(obs, name, argument, where, also))
    found = np.empty(len(keys), object)
    found[:] = [None if is_missing(key) else key for key in keys]
    return found


def labels_in(mdata: Any, modality: str, name: str, *, argument: str = "treatment") -> np.ndarray:
    """The label of each cell of a modality, of its own table or else of the common one."""
    adata, common = mdata.mod[modality], mdata.obs
    where = f"obs of modality {modality!r}"
    if name in adata.obs or name not in common:
        also = f" nor in the common obs {listed(common.columns)}" if len(common.columns) else ""
        return labels_of(adata.obs, name, where, also, argument=argument)
    gone = adata.obs_names[~adata.obs_names.isin(common.index)]
    if len(gone) or not common.index.is_unique:
        got = f"none for {len(gone)} of {adata.n_obs} ({some(gone)})" if len(gone) else "some names twice"
        raise ValueError(
            f"mdata.obs: expected a row for each cell of modality {modality!r}, got {got}: it is out of date; "
            f"put {name!r} into the obs of each modality, or call mdata.update() before it is set"
        )
    return labels_of(common.loc[adata.obs_names], name, "the common obs", argument=argument)


def check_measured(names: list[str], features: list[Rows], pair: np.ndarray, treatment: str) -> None:
    """Raises a `ValueError` where most pairs have nothing in one modality: an outer join of different cells."""
    if not (pair >= 0).any():
        return
    first, second = _empty(features[0])[pair >= 0], _empty(features[1])[pair[pair >= 0]]
    only = (~first & second).sum(), (first & ~second).sum()
    if min(only) and 2 * sum(only) > len(first):
        a, b = names
        raise ValueError(
            f"modalities {a!r}, {b!r}: expected cells measured in both, got {only[0]} with nothing in {b!r} and "
            f"{only[1]} with nothing in {a!r}, as an outer join of different cells has them. Write "
            f"psa_jax.io.from_anndata(one, other, treatment={treatment!r}) or psa_jax.io.from_mudata(mudata.MuData("
            f"{{{a!r}: one, {b!r}: other}}), treatment={treatment!r}) instead, with the AnnData of each before they "
            "were joined"
        )


def check_pairs(
    names: list[str], cells: np.ndarray, labels: list[np.ndarray], pair: np.ndarray, treatment: str
) -> None:
    """Raises a `ValueError` where the halves of a pair have different labels: cells that only share their name."""
    other = [labels[1][j] if j >= 0 else None for j in pair]
    differ = np.array([None not in (x, y) and x != y for x, y in zip(labels[0], other, strict=True)], bool)
    if differ.any():
        a, b = names
        shown = ", ".join(f"{cells[i]} has {labels[0][i]!r} and {other[i]!r}" for i in np.flatnonzero(differ)[:SHOWN])
        raise ValueError(
            f"modalities {a!r}, {b!r}: expected one {treatment!r} for each cell that is in both by name, got two for "
            f"{differ.sum()} of {(pair >= 0).sum()} ({shown}). If these are different cells of the same name, give "
            f"pairs=False, or names of their own, for the AnnData of {b!r}: x.obs_names = {b + '_'!r} + x.obs_names"
        )


def note_numbers(cells: np.ndarray) -> None:
    """Warns of pairs that are such only because their names are the same plain numbers."""
    if len(cells) and all(str(cell).isdecimal() for cell in cells):
        warnings.warn(
            f"{len(cells)} cells are taken for pairs because of names that are plain numbers ({some(cells)}), as rows "
            "have them where cells have no names: give pairs=False if they are different cells, pairs=True if not",
            AlignmentWarning,
            stacklevel=4,
        )


def layers_of(adata: Any) -> list[str]:
    """The names of the layers; later versions of anndata count `X` among them, as None."""
    return [name for name in adata.layers if name is not None]


def some(names: Any) -> str:
    """The first few of many."""
    return ", ".join(map(str, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")


def listed(names: Any) -> str:
    """All of them, for an error."""
    return "[" + ", ".join(map(str, names)) + "]"


def _empty(x: Rows) -> np.ndarray:
    """Which cells have nothing but zeros and NaN."""
    found = []
    for part in x:
        if sparse.issparse(part):
            cells = np.repeat(np.arange(part.shape[0]), np.diff(part.indptr))
            something = np.bincount(cells[(part.data != 0) & ~np.isnan(part.data)], minlength=part.shape[0])
            found.append(something == 0)
        else:
            found.append(((part == 0) | np.isnan(part)).all(axis=1))
    return np.concatenate(found)
