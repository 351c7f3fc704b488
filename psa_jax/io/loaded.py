"""From what two modalities have in files to unpaired data: cells that are used, codes, features as they are aligned."""

import collections
import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from psa_jax.data.counts import survey
from psa_jax.data.labels import differing, names_of, ordered
from psa_jax.data.rows import Rows
from psa_jax.data.samples import Modality, Truth, Unpaired, describe, validate
from psa_jax.data.strata import stratified
from psa_jax.io.columns import Further
from psa_jax.io.containers import check_measured, check_pairs, listed
from psa_jax.io.origin import Origin
from psa_jax.io.prepare import Preparation, learn_preparation
from psa_jax.types import known, pytree, static


@pytree
class Loaded:
    """Two modalities read from files, with what arrays cannot hold: names, and what was done to the features.

    Attributes:
        data: what `align` takes.
        truth: cells present in both modalities, by name, are known pairs; -1 for the others. They stand in
            the order of the file: `shuffle` before anything that might depend on the order.
        treatments: the name of each treatment code, sorted; of each treatment in each stratum where `Columns.within`
            was asked for.
        modalities: the names of modalities a and b.
        cells_a: the name of each row of modality a.
        cells_b: the name of each row of modality b.
        unlabelled: cells of a and of b that were left out because they have no treatment, or nothing in another column
            that was asked for (`drop_unlabelled`).
        left_out: treatments that were left out (asked for by `treatments` or `min_cells`), each with its number of
            cells in a and in b.
        preparations: of a and of b, what was done to features; `prepare` does it to new cells.
    """

    data: Unpaired
    truth: Truth
    treatments: tuple[str, ...] = static()
    modalities: tuple[str, str] = static()
    cells_a: tuple[str, ...] = static()
    cells_b: tuple[str, ...] = static()
    unlabelled: tuple[int, int] = static()
    left_out: tuple[tuple[str, int, int], ...] = static()
    preparations: tuple[Preparation, Preparation] = static()

    @property
    def T(self) -> "Loaded":
        """The same with the modalities exchanged, as `alignment.T` has them."""
        pair = np.asarray(self.truth.pair)
        back = np.full(len(self.cells_b), -1, np.int32)
        back[pair[pair >= 0]] = np.flatnonzero(pair >= 0)
        return Loaded(
            dataclasses.replace(self.data, a=self.data.b, b=self.data.a),
            Truth(jnp.asarray(back)),
            self.treatments,
            (self.modalities[1], self.modalities[0]),
            self.cells_b,
            self.cells_a,
            (self.unlabelled[1], self.unlabelled[0]),
            tuple((name, n_b, n_a) for name, n_a, n_b in self.left_out),
            (self.preparations[1], self.preparations[0]),
        )

    @property
    def features_a(self) -> tuple[str, ...]:
        """Names of the features of a in its file, before reduction."""
        return self.preparations[0].features

    @property
    def features_b(self) -> tuple[str, ...]:
        """Names of the features of b in its file, before reduction."""
        return self.preparations[1].features

    @property
    def num_features(self) -> tuple[int, int]:
        """Features of a and of b in the file, before reduction."""
        return len(self.features_a), len(self.features_b)

    def prepare(self, adata: Any, side: str = "a", *, fill_missing: bool = False) -> np.ndarray:
        """New cells as those that were loaded: features in the same order, normalised and reduced alike.

        Args:
            adata: an `anndata.AnnData` of modality a.
            side: "b" for modality b.
            fill_missing: see `Preparation.prepare`.

        Returns:
            `[n, k]` float32, such as `align` was given.
        """
        if side not in ("a", "b"):
            raise ValueError(f"side: expected 'a' or 'b', got {side!r}")
        return self.preparations["ab".index(side)].prepare(adata, fill_missing=fill_missing)

    def __repr__(self) -> str:
        """A few lines: the modalities by name, and what the data say of themselves."""
        lines = []
        for side, modality, done, gone in zip(
            "ab", (self.data.a, self.data.b), self.preparations, self.unlabelled, strict=True
        ):
            lines.append(f"  {side} is {done.modality!r}: {describe(modality)} (of {done.summary()})")
            lines += [f"    {gone} cells without a treatment left out"] if gone else []
        if self.left_out:
            cells = [sum(counts) for counts in list(zip(*self.left_out, strict=True))[1:]]
            lines.append(f"  {len(self.left_out)} treatments left out, of {cells[0]} cells of a and {cells[1]} of b")
        pairs = f", {int((np.asarray(self.truth.pair) >= 0).sum())} known pairs" if known(self.truth.pair) else ""
        treatments = repr(self.data).split("\n")[-1]
        return "\n".join([f"Loaded: {len(self.treatments)} treatments{pairs}", *lines, treatments])


@dataclasses.dataclass(frozen=True)
class Reading:
    """How files are read; see `from_anndata`."""

    num_components: int | None = 50
    drop_unlabelled: bool = False
    as_is: bool = False
    treatments: tuple[str, ...] | None = None
    min_cells: int = 1

    def __post_init__(self) -> None:
        if self.num_components is not None and self.num_components < 1:
            raise ValueError(f"num_components: expected at least 1, got {self.num_components}")
        if self.min_cells < 1:
            raise ValueError(f"min_cells: expected at least 1, got {self.min_cells}")
        if self.treatments is not None and len(set(self.treatments)) < 2:
            raise ValueError(f"treatments: expected two or more, got {listed(self.treatments)}")


@dataclasses.dataclass(frozen=True, eq=False)
class Side:
    """What a file has of one modality.

    Attributes:
        name: of the modality.
        treatment: the name of the column of labels.
        origin: where its features stand.
        features: their names.
        x: `[cells, features]` as they stand in the file, some rows at a time.
        cells: `[cells]` names.
        labels: `[cells]`, None where there is none.
        further: by argument the name of another column and its labels.
    """

    name: str
    treatment: str
    origin: Origin
    features: tuple[str, ...]
    x: Rows
    cells: np.ndarray
    labels: np.ndarray
    further: Further = dataclasses.field(default_factory=dict)


def loaded(sides: tuple[Side, Side], pair: np.ndarray, how: Reading) -> Loaded:
    """Unpaired data of two sides; `pair` `[cells of a]` are cells of b, -1 for none, before any cell is left out."""
    labelled = [_labelled(side, how) for side in sides]
    left_out = _left_out([side.labels for side in sides], how)
    if left_out and len(left_out) == len({label for side in sides for label in side.labels if label is not None}):
        largest = max(max(sizes) for sizes in left_out.values())
        raise ValueError(
            f"min_cells: expected at most the cells of the largest treatment used, {largest}, got {how.min_cells}"
        )
    keep = [
        found & np.array([label not in left_out for label in side.labels], bool)
        for side, found in zip(sides, labelled, strict=True)
    ]
    used = [side.labels[kept] for side, kept in zip(sides, keep, strict=True)]
    present = [set(labels) for labels in used]
    told = " and ".join(dict.fromkeys(side.treatment for side in sides))
    if all(present) and not present[0] & present[1]:
        raise ValueError(
            f"{told}: expected at least one treatment that both modalities have, got {differing(*present)}"
        )
    called = [side.name for side in sides]
    check_pairs(called, sides[0].cells, [side.labels for side in sides], pair, told)
    check_measured(called, [side.x for side in sides], pair, told)
    if "within" in sides[0].further:
        places = [side.further["within"][1] for side in sides]
        check_pairs(called, sides[0].cells, places, pair, sides[0].further["within"][0])
    features = [side.x.where(kept) for side, kept in zip(sides, keep, strict=True)]
    further = [
        {argument: labels[kept] for argument, (_, labels) in side.further.items()}
        for side, kept in zip(sides, keep, strict=True)
    ]
    codes, names, strata = _codes(used, further)
    batch, batches = _batches(further)
    found = [survey(x) for x in features]
    sums = [Modality(jnp.asarray(x.totals[:, None], jnp.float32), t) for x, t in zip(found, codes, strict=True)]
    validate(Unpaired(sums[0], sums[1], len(names), names, strata))
    done = [
        learn_preparation(side.name, side.origin, side.features, x, numbers, how.num_components, as_is=how.as_is)
        for side, x, numbers in zip(sides, features, found, strict=True)
    ]
    a, b = (Modality(jnp.asarray(x, jnp.float32), t, own) for (_, x), t, own in zip(done, codes, batch, strict=True))
    place = np.append(np.where(keep[1], np.cumsum(keep[1]) - 1, -1), -1)
    return Loaded(
        data=Unpaired(a, b, len(names), names, strata, batches),
        truth=Truth(jnp.asarray(place[pair[keep[0]]], jnp.int32)),
        treatments=names,
        modalities=(called[0], called[1]),
        cells_a=tuple(map(str, sides[0].cells[keep[0]])),
        cells_b=tuple(map(str, sides[1].cells[keep[1]])),
        unlabelled=(int((~labelled[0]).sum()), int((~labelled[1]).sum())),
        left_out=tuple((str(label), *counts) for label, counts in left_out.items()),
        preparations=(done[0][0], done[1][0]),
    )


def coded(sides: list[np.ndarray]) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Labels of all sides together as codes, and the name of each code."""
    order = ordered([label for labels in sides for label in labels])
    code = {label: i for i, label in enumerate(order)}
    return [np.array([code[label] for label in labels], np.int32) for labels in sides], names_of(order)


def _codes(used: list[np.ndarray], further: list[dict[str, np.ndarray]]) -> tuple[list[Any], tuple[str, ...], Any]:
    """Codes of both sides, their names, and what they stand for where cells are matched within another label."""
    codes, names = coded(used)
    strata = None
    if "within" in further[0]:
        places, called = coded([side["within"] for side in further])
        codes, strata = stratified(names, called, *zip(codes, places, strict=True))
        names = strata.labels
    return [jnp.asarray(t, jnp.int32) for t in codes], names, strata


def _batches(further: list[dict[str, np.ndarray]]) -> tuple[list[Any], tuple[str, ...] | None]:
    """Codes of the batches of both sides, None where a side has none, and their names."""
    there = [side["batch"] for side in further if "batch" in side]
    if not there:
        return [None, None], None
    found, names = coded(there)
    codes = iter(found)
    return [jnp.asarray(next(codes)) if "batch" in side else None for side in further], names


def _labelled(side: Side, how: Reading) -> np.ndarray:
    """Which cells have a label in every column asked for; a `ValueError` unless all have or may be left out."""
    kept = np.ones(len(side.cells), bool)
    for column, labels in ((side.treatment, side.labels), *side.further.values()):
        found = np.array([label is not None for label in labels], bool)
        if not found.all() and not how.drop_unlabelled:
            raise ValueError(
                f"modality {side.name!r}: expected a {column!r} for every cell, got none for {(~found).sum()} "
                f"of {found.size}, texts such as 'nan' among them (drop_unlabelled leaves them out)"
            )
        kept &= found
    return kept


def _left_out(labels: list[np.ndarray], how: Reading) -> dict[Any, tuple[int, int]]:
    """The treatments that are not wanted or too few, with their numbers of cells."""
    counts = [collections.Counter(label for label in side if label is not None) for side in labels]
    found = {label: (counts[0][label], counts[1][label]) for label in ordered([*counts[0], *counts[1]])}
    wanted = None if how.treatments is None else set(how.treatments)
    if wanted is not None and (absent := sorted(wanted - set(map(str, found)))):
        raise ValueError(f"treatments: expected some of {listed(found)}, got {listed(absent)}")
    return {
        label: sizes
        for label, sizes in found.items()
        if (wanted is not None and str(label) not in wanted) or any(0 < n < how.min_cells for n in sizes)
    }
