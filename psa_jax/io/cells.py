"""Cells from AnnData and MuData."""

import dataclasses
import functools
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psa_jax.align.alignment import AlignmentWarning
from psa_jax.arguments import checked
from psa_jax.data.samples import Truth
from psa_jax.io.columns import Columns, Further, read_further
from psa_jax.io.containers import check_anndata, labels_in, labels_of, layers_of, listed, note_numbers
from psa_jax.io.loaded import Loaded, Reading, Side, loaded
from psa_jax.io.origin import Origin, feature_types
from psa_jax.types import KeyArray

EACH = " (where the files' columns differ, name one for each)"


@checked
def from_anndata(
    adata: Any,
    other: Any = None,
    *,
    treatment: str | Sequence[str],
    modalities: tuple[str, str] | None = None,
    layer: str | None = None,
    obsm: str | Sequence[str | None] | None = None,
    num_components: int | None = 50,
    drop_unlabelled: bool = False,
    as_is: bool = False,
    treatments: Sequence[str] | None = None,
    min_cells: int = 1,
    pairs: bool | None = None,
    columns: Columns = Columns(),
) -> Loaded:
    """Takes two modalities out of two AnnData of different cells, or out of one, whose cells are then known pairs.

    Features are `X` (or a layer, or an array of `obsm`). Counts among them, which are whole numbers from 0 up, are
    brought to the median total of their cells and `log(1 + count)` is taken, as scanpy does. Other numbers stay as they
    are, whatever layers there are beside them, and so do embeddings (`X_pca`, ...). What was done is kept:
    `Loaded.prepare` does it to new cells. A matrix that stays in its file (`anndata.read_h5ad(path, backed="r")`) is
    read some rows at a time, a dozen times over, and never held as a whole.

    Args:
        adata: an `anndata.AnnData`.
        other: the AnnData of modality b; then `adata` is that of modality a, and all of their features are used.
        treatment: column of `obs`; two names if the two files call it differently.
        modalities: what the two are called ("a" and "b" by default). Of one file: two values of
            `var["feature_types"]`, or names of arrays in `obsm`; by default the two values that
            `var["feature_types"]` has, in the order of the file.
        layer: instead of `X`; for values of `feature_types`.
        obsm: of two files: the array to take instead of `X`, of both or (None for `X`) of each.
        num_components: a modality with more features is reduced to so many principal components of its cells
            (unsupervised; fewer if there are not more cells). Sparse arrays stay sparse. None keeps all.
        drop_unlabelled: leave cells without a treatment out, counted in `Loaded.unlabelled`; else they raise.
        as_is: take counts as they are.
        treatments: use only these, by their names; the others are counted in `Loaded.left_out`.
        min_cells: leave treatments out that have fewer cells in a modality that has them, counted there too.
        pairs: of two files: False where cells of the same name are different cells. By default they are one cell,
            with a warning that says so; True leaves the warning out.
        columns: what else to read of `obs`: `Columns(within="plate", batch="donor")`.

    Returns:
        Dense float32 features, codes, names, pairs and preparations.

    Raises:
        ValueError: no such column, modality or layer (those there are get listed), cells without a treatment,
            features that are no numbers or not finite (see `validate`), cell names or columns that occur twice,
            an outer join of different cells, no such treatments, settings of two files for one.
    """
    how = _reading(num_components, drop_unlabelled, as_is, treatments, min_cells)
    if other is not None:
        return _two_files(adata, other, treatment, modalities, layer, obsm, pairs, how, columns)
    check_anndata("adata", adata)
    for name, value in (("obsm", obsm), ("pairs", pairs)):
        if value is not None:
            hint = " (`modalities` takes names in obsm)" if name == "obsm" else ""
            raise ValueError(f"{name}: expected it with two files only, got {value!r} for one{hint}")
    if not isinstance(treatment, str):
        raise ValueError(f"treatment: expected one column of obs for one file, got {listed(treatment)}")
    names, values = np.asarray(adata.obs_names), labels_of(adata.obs, treatment, "obs")
    further = read_further(
        columns.of(0, one_file=True), lambda name, argument: labels_of(adata.obs, name, "obs", argument=argument)
    )
    kinds = list(dict.fromkeys(feature_types(adata).tolist()))
    if modalities is None:
        if len(kinds) != 2:
            found = f"got {kinds}" if kinds else f"got only columns {listed(adata.var.columns)}"
            raise ValueError(
                f"modalities: expected two names, or exactly two values in var['feature_types'], {found}; "
                f"obsm has {listed(adata.obsm)}"
            )
        modalities = kinds[0], kinds[1]
    if layer is not None and layer not in adata.layers:
        raise ValueError(f"layer: expected one of {listed(layers_of(adata))}, got {layer!r}")
    sides = []
    for name in _two(modalities):
        if name not in kinds and name not in adata.obsm:
            raise ValueError(
                f"modalities: expected values of var['feature_types'] {kinds} or names in obsm "
                f"{listed(adata.obsm)}, got {name!r}"
            )
        origin = Origin(layer, None, name) if name in kinds else Origin(obsm=name)
        x, features = origin.read(adata, name)
        sides.append(Side(name, treatment, origin, features, x, names, values, further))
    return loaded((sides[0], sides[1]), np.arange(len(names)), how)


@checked
def from_mudata(
    mdata: Any,
    *,
    treatment: str,
    modalities: tuple[str, str] | None = None,
    layer: str | None = None,
    num_components: int | None = 50,
    drop_unlabelled: bool = False,
    as_is: bool = False,
    treatments: Sequence[str] | None = None,
    min_cells: int = 1,
    pairs: bool | None = None,
    columns: Columns = Columns(),
) -> Loaded:
    """Takes two modalities of a MuData, of the same cells, of others, or of some of both.

    Cells whose name is in both modalities are known pairs, unless `pairs` says otherwise.

    Args:
        mdata: a `mudata.MuData`.
        treatment: a column of each modality's `obs`, or else of `mdata.obs`.
        modalities: two names in `mdata.mod`; may be left out if there are just two.
        layer: instead of `X`.
        num_components: see `from_anndata`.
        drop_unlabelled: see `from_anndata`.
        as_is: see `from_anndata`.
        treatments: see `from_anndata`.
        min_cells: see `from_anndata`.
        pairs: False where cells of the same name are different cells: no pair is known. By default they are one
            cell, with a warning if all their names are plain numbers; True leaves the warning out.
        columns: see `from_anndata`.

    Returns:
        As `from_anndata`; the modalities need not have the same cells or treatments.

    Raises:
        ValueError: as `from_anndata`; cells of the same name and different treatments; a common `obs` that lacks
            cells of a modality.
    """
    how = _reading(num_components, drop_unlabelled, as_is, treatments, min_cells)
    if not hasattr(mdata, "mod"):
        hint = " (psa_jax.io.from_anndata takes it)" if hasattr(mdata, "obsm") else ""
        raise ValueError(f"mdata: expected a mudata.MuData, got {type(mdata).__name__}{hint}")
    if modalities is None and len(mdata.mod) != 2:
        raise ValueError(f"modalities: expected two of {listed(mdata.mod)}")
    sides = []
    for place, name in enumerate(_two(tuple(mdata.mod) if modalities is None else modalities)):
        if name not in mdata.mod:
            raise ValueError(f"modalities: expected names in {listed(mdata.mod)}, got {name!r}")
        check_anndata(f"modality {name!r}", mdata.mod[name])
        labels = labels_in(mdata, name, treatment)
        read = functools.partial(labels_in, mdata, name)
        further = read_further(columns.of(place), lambda column, argument, read=read: read(column, argument=argument))
        sides.append(_side(mdata.mod[name], name, treatment, Origin(layer), labels, further))
    pair = _pairs(sides, pairs)
    if pairs is None:
        note_numbers(sides[0].cells[pair >= 0])
    return loaded((sides[0], sides[1]), pair, how)


@checked
def shuffle(key: KeyArray, loaded: Loaded) -> Loaded:
    """The same with modality b in a random order, so that a file's order tells nothing about its pairs."""
    order = np.asarray(jax.random.permutation(key, len(loaded.cells_b)))
    place = np.append(np.argsort(order), -1)
    data = dataclasses.replace(loaded.data, b=loaded.data.b.take(order))
    truth = Truth(jnp.asarray(place[np.asarray(loaded.truth.pair)], jnp.int32))
    cells_b = tuple(loaded.cells_b[i] for i in order)
    return dataclasses.replace(loaded, data=data, truth=truth, cells_b=cells_b)


def _two_files(
    one: Any,
    other: Any,
    treatment: str | Sequence[str],
    modalities: tuple[str, str] | None,
    layer: str | None,
    obsm: str | Sequence[str | None] | None,
    pairs: bool | None,
    how: Reading,
    columns: Columns,
) -> Loaded:
    """Each file is a modality."""
    treatments = (treatment, treatment) if isinstance(treatment, str) else tuple(treatment)
    arrays = (obsm, obsm) if obsm is None or isinstance(obsm, str) else tuple(obsm)
    for argument, found in (("treatment", treatments), ("obsm", arrays)):
        if len(found) != 2:
            raise ValueError(f"{argument}: expected one name, or one for each of two files, got {listed(found)}")
    if layer is not None and None not in arrays:
        raise ValueError(f"layer, obsm: expected one of them, got layer {layer!r} and obsm {listed(arrays)}")
    sides = []
    for place, (argument, adata, name, column, array) in enumerate(
        zip(("adata", "other"), (one, other), _two(modalities or ("a", "b")), treatments, arrays, strict=True)
    ):
        check_anndata(argument, adata)
        origin = Origin(obsm=array) if array is not None else Origin(layer)
        read = functools.partial(labels_of, adata.obs, where=f"obs of {name!r}", also=EACH)
        further = read_further(columns.of(place), lambda column, argument, read=read: read(column, argument=argument))
        sides.append(_side(adata, name, column, origin, read(column), further))
    pair = _pairs(sides, pairs)
    if pairs is None and (count := int((pair >= 0).sum())):
        warnings.warn(
            f"{count} cells have the same name in {sides[0].name!r} and in {sides[1].name!r} and are taken for pairs "
            "(used only to measure the result): give pairs=False if they are different cells, pairs=True if not",
            AlignmentWarning,
            stacklevel=4,
        )
    return loaded((sides[0], sides[1]), pair, how)


def _side(adata: Any, name: str, treatment: str, origin: Origin, labels: np.ndarray, further: Further) -> Side:
    x, features = origin.read(adata, name)
    return Side(name, treatment, origin, features, x, np.asarray(adata.obs_names), labels, further)


def _pairs(sides: list[Side], pairs: bool | None) -> np.ndarray:
    """Which cell of the second side has the name of each of the first, -1 for none."""
    place = {} if pairs is False else {name: i for i, name in enumerate(sides[1].cells)}
    found = np.array([place.get(name, -1) for name in sides[0].cells], int)
    if pairs and not (found >= 0).any():
        raise ValueError("pairs: expected cells whose names are in both modalities, got none (leave pairs out)")
    return found


def _reading(
    num_components: int | None,
    drop_unlabelled: bool,
    as_is: bool,
    treatments: Sequence[str] | None,
    min_cells: int,
) -> Reading:
    wanted = None if treatments is None else tuple(map(str, treatments))
    return Reading(num_components, drop_unlabelled, as_is, wanted, min_cells)


def _two(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(names) != 2 or names[0] == names[1]:
        raise ValueError(f"modalities: expected two different names, got {listed(names)}")
    return tuple(names)
