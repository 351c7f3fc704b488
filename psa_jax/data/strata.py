"""Samples that are matched only with those that share a further label too: a plate, say, or a donor."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Strata:
    """What each code of stratified data stands for: a treatment within a stratum.

    Classifiers predict the treatment; everything after the scores goes by the codes. Combinations that no sample has
    have no code. `Unpaired.from_labels(..., within_a=, within_b=)` makes it. Hashable.

    Attributes:
        treatment: `[T]` the treatment of each code.
        stratum: `[T]` its stratum.
        treatments: the names of the treatments.
        names: those of the strata.

    Raises:
        ValueError: numbers of another length, or beyond the names; two codes of one combination.

    Example:
        >>> strata = Strata((0, 1, 1), (0, 0, 1), ("DMSO", "drug"), ("plate 1", "plate 2"))
        >>> strata.labels
        ('DMSO, plate 1', 'drug, plate 1', 'drug, plate 2')
        >>> strata.codes([1, 0, 1], [1, 1, -1]).tolist()
        [2, -1, -1]
    """

    treatment: tuple[int, ...]
    stratum: tuple[int, ...]
    treatments: tuple[str, ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        for name, found, names in (
            ("treatment", self.treatment, self.treatments),
            ("stratum", self.stratum, self.names),
        ):
            if not all(isinstance(code, int) and 0 <= code < len(names) for code in found):
                raise ValueError(f"{name}: expected integers in [0, {len(names)}), as there are names, got {found}")
        if len(self.treatment) != len(self.stratum):
            raise ValueError(
                f"treatment, stratum: expected as many of each, got {len(self.treatment)} and {len(self.stratum)}"
            )
        if len(set(zip(self.treatment, self.stratum, strict=True))) < len(self.treatment):
            raise ValueError("treatment, stratum: expected different combinations, got one of them twice")

    @property
    def labels(self) -> tuple[str, ...]:
        """The name of each code."""
        return tuple(
            f"{self.treatments[t]}, {self.names[s]}" for t, s in zip(self.treatment, self.stratum, strict=True)
        )

    def split(self, codes: Any) -> tuple[np.ndarray, np.ndarray]:
        """The treatments and the strata `[k]` of codes; -1 of -1."""
        of, place = (np.append(np.asarray(side, int), -1)[np.asarray(codes)] for side in (self.treatment, self.stratum))
        return of, place

    def codes(self, treatment: Any, stratum: Any) -> np.ndarray:
        """The codes `[k]` of treatments and strata; -1 where one of them is, or no code stands for both."""
        table = np.full((len(self.treatments) + 1, len(self.names) + 1), -1)
        table[list(self.treatment), list(self.stratum)] = np.arange(len(self.treatment))
        return table[np.asarray(treatment), np.asarray(stratum)]

    def possible(self, treatment: np.ndarray, stratum: np.ndarray, there: np.ndarray) -> np.ndarray:
        """Which of the codes that are `there` `[T]` samples may have, of whom -1 is not known: `[k, T]`.

        Those of their treatment and stratum; where there are none, of their treatment, else of their stratum, else all.
        """
        right = (treatment[:, None] < 0) | (treatment[:, None] == np.asarray(self.treatment)[None])
        near = (stratum[:, None] < 0) | (stratum[:, None] == np.asarray(self.stratum)[None])
        found = np.broadcast_to(there[None], right.shape)
        for fits in (near, right, right & near):
            narrowed = fits & there[None]
            found = np.where(narrowed.any(axis=1, keepdims=True), narrowed, found)
        return found


def stratified(
    treatments: tuple[str, ...], names: tuple[str, ...], *sides: tuple[np.ndarray, np.ndarray]
) -> tuple[list[np.ndarray], Strata]:
    """Codes of each side, given as its treatments `[n]` and strata `[n]`, and what they stand for; in their order."""
    width = len(names)
    flat = [np.asarray(t, np.int64) * width + np.asarray(s, np.int64) for t, s in sides]
    found = np.unique(np.concatenate(flat))
    strata = Strata(tuple((found // width).tolist()), tuple((found % width).tolist()), treatments, names)
    return [np.searchsorted(found, side).astype(np.int32) for side in flat], strata
