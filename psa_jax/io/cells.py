"""Cells from AnnData and MuData."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

from psa_jax.arguments import checked
from psa_jax.data.components import principal_components
from psa_jax.data.labels import differing, is_missing, keys_of, names_of, ordered
from psa_jax.data.samples import Modality, Truth, Unpaired, describe, validate
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
            features that are not finite (see `validate`).
    """
    names, values = np.asarray(adata.obs_names), _treatments(adata.obs, treatment, "obs")
    kinds = list(dict.fromkeys(adata.var["feature_types"].astype(str))) if "feature_types" in adata.var else []
    if modalities is None:
        if len(kinds) != 2:
            found = f"got {kinds}" if kinds else f"got only columns {_listed(adata.var.columns)}"
            raise ValueError(
                f"modalities: expected two names, or exactly two values in var['feature_types'], {found}; "
                f"obsm has {_listed(adata.obsm)}"
            )
        modalities = kinds[0], kinds[1]
    if layer is not None and layer not in adata.layers:
        raise ValueError(f"layer: expected one of {_listed(adata.layers)}, got {layer!r}")
    sides = []
    for name in _two(modalities):
        if name in kinds:
            chosen = np.flatnonzero(adata.var["feature_types"].astype(str) == name)
            x = adata.X if layer is None else adata.layers[layer]
            x = None if x is None else x[:, chosen]
        elif name in adata.obsm:
            x = adata.obsm[name]
        else:
            raise ValueError(
                f"modalities: expected values of var['feature_types'] {kinds} or names in obsm "
                f"{_listed(adata.obsm)}, got {name!r}"
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
) -> Loaded:
    """Takes two modalities of a MuData, of the same cells, of others, or of some of both.

    Cells whose name is in both modalities are known pairs.

    Args:
        mdata: a `mudata.MuData`.
        treatment: a column of each modality's `obs`, or else of `mdata.obs`.
        modalities: two names in `mdata.mod`; may be left out if there are just two.
        layer: instead of `X`.
        num_components: see `from_anndata`.
        drop_unlabelled: see `from_anndata`.

    Returns:
        As `from_anndata`; the modalities need not have the same cells or treatments.

    Raises:
        ValueError: as `from_anndata`, and for cell names that occur twice in a modality.
    """
    if modalities is None and len(mdata.mod) != 2:
        raise ValueError(f"modalities: expected two of {_listed(mdata.mod)}")
    sides = []
    for name in _two(tuple(mdata.mod) if modalities is None else modalities):
        if name not in mdata.mod:
            raise ValueError(f"modalities: expected names in {_listed(mdata.mod)}, got {name!r}")
        adata = mdata.mod[name]
        if layer is not None and layer not in adata.layers:
            raise ValueError(f"layer: expected one of {_listed(adata.layers)} of {name!r}, got {layer!r}")
        if not adata.obs_names.is_unique:
            raise ValueError(f"modality {name!r}: expected unique cell names, got some twice")
        column = adata.obs if treatment in adata.obs or treatment not in mdata.obs else mdata.obs.loc[adata.obs_names]
        values = _treatments(column, treatment, f"obs of modality {name!r}", mdata.obs.columns)
        sides.append((name, adata.X if layer is None else adata.layers[layer], np.asarray(adata.obs_names), values))
    return _load(sides, _find(sides[1][2], sides[0][2]), treatment, num_components, drop_unlabelled)


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
    for name, x, *_ in sides:
        if x is None:
            raise ValueError(f"modality {name!r}: expected a matrix X, the file has none (`layer` names another)")
    sides = [(name, x.to_numpy() if hasattr(x, "iloc") else x, cells, t) for name, x, cells, t in sides]
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
    sums = (np.asarray(x.sum(axis=1), np.float32).reshape(-1, 1) for x in features)
    total_a, total_b = (Modality(jnp.asarray(total), jnp.asarray(t)) for total, t in zip(sums, codes, strict=True))
    present = [{label for label in labels if label is not None} for *_, labels in sides]
    if all(present) and not present[0] & present[1]:
        raise ValueError(
            f"{treatment}: expected at least one treatment that both modalities have, got {differing(*present)}"
        )
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


def _treatments(obs: Any, treatment: str, where: str, more: Any = ()) -> np.ndarray:
    """The label of each cell, to be compared as `labels.encode` does; None where there is none."""
    if treatment not in obs:
        also = f" nor in the common obs {_listed(more)}" if len(more) else ""
        raise ValueError(f"treatment: no column {treatment!r} in {where} {_listed(obs.columns)}{also}")
    keys = keys_of(f"treatment {treatment!r}", obs[treatment])
    found = np.empty(len(keys), object)
    found[:] = [None if is_missing(key) else key for key in keys]
    return found


def _two(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(names) != 2 or names[0] == names[1]:
        raise ValueError(f"modalities: expected two different names, got {_listed(names)}")
    return tuple(names)


def _find(names: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where each wanted name is, -1 for nowhere."""
    place = {name: i for i, name in enumerate(names)}
    return np.array([place.get(name, -1) for name in wanted], int)


def _listed(names: Any) -> str:
    return "[" + ", ".join(map(str, names)) + "]"
