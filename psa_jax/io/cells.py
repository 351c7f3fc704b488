"""Cells from AnnData and MuData."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

from psa_jax.arguments import checked
from psa_jax.data.components import principal_components
from psa_jax.data.labels import differing, names_of, ordered
from psa_jax.data.samples import Modality, Truth, Unpaired, describe, validate
from psa_jax.io.containers import (
    check_anndata,
    check_measured,
    check_pairs,
    column,
    labels_in,
    labels_of,
    listed,
    matrix,
    note_numbers,
)
from psa_jax.types import KeyArray, known, pytree, static


@pytree
class Loaded:
    """Two modalities read from a file, with the names that arrays cannot hold.

    Attributes:
        data: what `align` takes.
        truth: cells present in both modalities, by name, are known pairs; -1 for the others. They stand in
            the order of the file: `shuffle` before anything that might depend on the order.
        treatments: the name of each treatment code, sorted.
        modalities: the names of modalities a and b.
        cells_a: the name of each row of modality a.
        cells_b: the name of each row of modality b.
        unlabelled: cells of a and of b that were left out because they have no treatment (asked for by
            `drop_unlabelled`).
        num_features: features of a and of b in the file, before reduction.
    """

    data: Unpaired
    truth: Truth
    treatments: tuple[str, ...] = static()
    modalities: tuple[str, str] = static()
    cells_a: tuple[str, ...] = static()
    cells_b: tuple[str, ...] = static()
    unlabelled: tuple[int, int] = static()
    num_features: tuple[int, int] = static()

    def __repr__(self) -> str:
        """A few lines: the modalities by name, and what the data say of themselves."""
        sides = zip("ab", self.modalities, (self.data.a, self.data.b), self.num_features, self.unlabelled, strict=True)
        lines = [
            f"  {side} is {name!r}: {describe(modality)} (of {features} in the file"
            + (f", {gone} cells without a treatment left out)" if gone else ")")
            for side, name, modality, features, gone in sides
        ]
        pairs = f", {int((np.asarray(self.truth.pair) >= 0).sum())} known pairs" if known(self.truth.pair) else ""
        treatments = repr(self.data).split("\n")[-1]
        return "\n".join([f"Loaded: {len(self.treatments)} treatments{pairs}", *lines, treatments])


@checked
def from_anndata(
    adata: Any,
    *,
    treatment: str,
    modalities: tuple[str, str] | None = None,
    layer: str | None = None,
    num_components: int | None = 50,
    drop_unlabelled: bool = False,
) -> Loaded:
    """Takes two modalities out of one AnnData, whose cells are then known pairs.

    Args:
        adata: an `anndata.AnnData`.
        treatment: column of `obs`.
        modalities: two values of `var["feature_types"]`, or names of arrays in `obsm`. By default the two
            values that `var["feature_types"]` has, in the order of the file.
        layer: instead of `X`; for values of `feature_types`.
        num_components: a modality with more features is reduced to so many principal components of its cells
            (unsupervised; fewer if there are not more cells). Sparse arrays stay sparse. None keeps all.
        drop_unlabelled: leave cells without a treatment out, counted in `Loaded.unlabelled`; else they raise.

    Returns:
        Dense float32 features, codes, names and pairs.

    Raises:
        ValueError: no such column, modality or layer (those there are get listed), cells without a treatment,
            features that are no numbers or not finite (see `validate`), cell names or columns that occur twice,
            an outer join of different cells.
    """
    check_anndata("adata", adata)
    names, values = np.asarray(adata.obs_names), labels_of(adata.obs, treatment, "obs")
    types = np.array([], str)
    if "feature_types" in adata.var:
        types = np.asarray(column(adata.var, "feature_types", "modalities", "var").astype(str))
    kinds = list(dict.fromkeys(types.tolist()))
    if modalities is None:
        if len(kinds) != 2:
            found = f"got {kinds}" if kinds else f"got only columns {listed(adata.var.columns)}"
            raise ValueError(
                f"modalities: expected two names, or exactly two values in var['feature_types'], {found}; "
                f"obsm has {listed(adata.obsm)}"
            )
        modalities = kinds[0], kinds[1]
    if layer is not None and layer not in adata.layers:
        raise ValueError(f"layer: expected one of {listed(adata.layers)}, got {layer!r}")
    sides = []
    for name in _two(modalities):
        if name in kinds:
            x = _features(adata, layer, name)[:, np.flatnonzero(types == name)]
        elif name in adata.obsm:
            x = matrix(f"obsm[{name!r}]", adata.obsm[name], adata.n_obs)
        else:
            raise ValueError(
                f"modalities: expected values of var['feature_types'] {kinds} or names in obsm "
                f"{listed(adata.obsm)}, got {name!r}"
            )
        sides.append((name, x, names, values))
    return _load(sides, np.arange(len(names)), treatment, num_components, drop_unlabelled)


@checked
def from_mudata(
    mdata: Any,
    *,
    treatment: str,
    modalities: tuple[str, str] | None = None,
    layer: str | None = None,
    num_components: int | None = 50,
    drop_unlabelled: bool = False,
    pairs: bool | None = None,
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
        pairs: False where cells of the same name are different cells: no pair is known. By default they are one
            cell, with a warning if all their names are plain numbers; True leaves the warning out.

    Returns:
        As `from_anndata`; the modalities need not have the same cells or treatments.

    Raises:
        ValueError: as `from_anndata`; cells of the same name and different treatments; a common `obs` that lacks
            cells of a modality.
    """
    if not hasattr(mdata, "mod"):
        hint = " (psa_jax.io.from_anndata takes it)" if hasattr(mdata, "obsm") else ""
        raise ValueError(f"mdata: expected a mudata.MuData, got {type(mdata).__name__}{hint}")
    if modalities is None and len(mdata.mod) != 2:
        raise ValueError(f"modalities: expected two of {listed(mdata.mod)}")
    sides = []
    for name in _two(tuple(mdata.mod) if modalities is None else modalities):
        if name not in mdata.mod:
            raise ValueError(f"modalities: expected names in {listed(mdata.mod)}, got {name!r}")
        adata = mdata.mod[name]
        check_anndata(f"modality {name!r}", adata)
        if layer is not None and layer not in adata.layers:
            raise ValueError(f"layer: expected one of {listed(adata.layers)} of {name!r}, got {layer!r}")
        values = labels_in(mdata, name, treatment)
        sides.append((name, _features(adata, layer, name), np.asarray(adata.obs_names), values))
    pair = _find(sides[1][2], sides[0][2]) if pairs is not False else np.full(len(sides[0][2]), -1)
    if pairs and not (pair >= 0).any():
        raise ValueError("pairs: expected cells whose names are in both modalities, got none (leave pairs out)")
    if pairs is None:
        note_numbers(sides[0][2][pair >= 0])
    return _load(sides, pair, treatment, num_components, drop_unlabelled)


@checked
def shuffle(key: KeyArray, loaded: Loaded) -> Loaded:
    """The same with modality b in a random order, so that a file's order tells nothing about its pairs."""
    order = np.asarray(jax.random.permutation(key, len(loaded.cells_b)))
    place = np.append(np.argsort(order), -1)
    b = Modality(loaded.data.b.x[order], loaded.data.b.t[order])
    data = Unpaired(loaded.data.a, b, loaded.data.num_treatments, loaded.data.names)
    truth = Truth(jnp.asarray(place[np.asarray(loaded.truth.pair)], jnp.int32))
    cells_b = tuple(loaded.cells_b[i] for i in order)
    return dataclasses.replace(loaded, data=data, truth=truth, cells_b=cells_b)


def _load(
    sides: list[tuple[str, Any, np.ndarray, np.ndarray]],
    pair: np.ndarray,
    treatment: str,
    num_components: int | None,
    drop_unlabelled: bool,
) -> Loaded:
    """Sides are (name, features, cell names, labels or None); `pair` is before cells are dropped."""
    if num_components is not None and num_components < 1:
        raise ValueError(f"num_components: expected at least 1, got {num_components}")
    keep = [np.array([label is not None for label in labels]) for *_, labels in sides]
    for (name, *_), kept in zip(sides, keep, strict=True):
        if not kept.all() and not drop_unlabelled:
            raise ValueError(
                f"modality {name!r}: expected a {treatment!r} for every cell, got none for {(~kept).sum()} "
                f"of {kept.size}, texts such as 'nan' among them (drop_unlabelled leaves them out)"
            )
    treatments = ordered([label for *_, labels in sides for label in labels if label is not None])
    names = names_of(treatments)
    code = {label: i for i, label in enumerate(treatments)}
    features = [x[np.flatnonzero(kept)] for (_, x, *_), kept in zip(sides, keep, strict=True)]
    codes = [np.array([code[label] for label in labels if label is not None], np.int32) for *_, labels in sides]
    sums = (np.asarray(x.sum(axis=1, dtype=np.float64), np.float32).reshape(-1, 1) for x in features)
    total_a, total_b = (Modality(jnp.asarray(total), jnp.asarray(t)) for total, t in zip(sums, codes, strict=True))
    present = [{label for label in labels if label is not None} for *_, labels in sides]
    if all(present) and not present[0] & present[1]:
        raise ValueError(
            f"{treatment}: expected at least one treatment that both modalities have, got {differing(*present)}"
        )
    called, matrices, cells, labels = (list(part) for part in zip(*sides, strict=True))
    check_pairs(called, cells[0], labels, pair, treatment)
    check_measured(called, matrices, pair, treatment)
    validate(Unpaired(total_a, total_b, len(treatments), names))
    a, b = (
        Modality(jnp.asarray(_dense(name, x, num_components), jnp.float32), jnp.asarray(t))
        for (name, *_), x, t in zip(sides, features, codes, strict=True)
    )
    place = np.append(np.where(keep[1], np.cumsum(keep[1]) - 1, -1), -1)
    return Loaded(
        data=Unpaired(a, b, len(treatments), names),
        truth=Truth(jnp.asarray(place[pair[keep[0]]], jnp.int32)),
        treatments=names,
        modalities=(sides[0][0], sides[1][0]),
        cells_a=tuple(map(str, sides[0][2][keep[0]])),
        cells_b=tuple(map(str, sides[1][2][keep[1]])),
        unlabelled=(int((~keep[0]).sum()), int((~keep[1]).sum())),
        num_features=(features[0].shape[1], features[1].shape[1]),
    )


def _dense(name: str, x: Any, num_components: int | None) -> np.ndarray:
    """Dense features, as principal components if there are many; sparse ones are not made dense before."""
    if num_components is None or x.shape[1] <= num_components or min(x.shape) < 2:
        return np.asarray(x.toarray() if sparse.issparse(x) else x, np.float32)
    x = sparse.csr_array(x) if sparse.issparse(x) else np.asarray(x, np.float64)
    try:
        mean, components = principal_components(x, min(num_components, min(x.shape) - 1))
    except ValueError as error:
        raise ValueError(f"modality {name!r}: {error}") from error
    return x @ components - mean @ components


def _features(adata: Any, layer: str | None, modality: str) -> Any:
    """All features of an AnnData, of its matrix or a layer."""
    x = adata.X if layer is None else adata.layers[layer]
    if x is None:
        raise ValueError(f"modality {modality!r}: expected a matrix X, the file has none (`layer` names another)")
    where = "X" if layer is None else f"layers[{layer!r}]"
    return matrix(f"modality {modality!r}: {where}", x, adata.n_obs)


def _two(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(names) != 2 or names[0] == names[1]:
        raise ValueError(f"modalities: expected two different names, got {listed(names)}")
    return tuple(names)


def _find(names: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where each wanted name is, -1 for nowhere."""
    place = {name: i for i, name in enumerate(names)}
    return np.array([place.get(name, -1) for name in wanted], int)
