"""Columns of obs that are read beside that of the treatment."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names of further columns of `obs`, each one name, or two where the files of two modalities differ.

    Attributes:
        within: cells are matched only with those that share this label too, such as their plate; see
            `Unpaired.from_labels`.
        batch: what cells came in, such as a donor; classifiers see it, see `Modality`. `("donor", None)` where only
            the first modality has one.

    Raises:
        ValueError: anything but one or two names.

    Example:
        >>> Columns(within="plate").of(1)
        {'within': 'plate'}
    """

    within: str | Sequence[str] | None = None
    batch: str | Sequence[str | None] | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            given = getattr(self, field.name)
            several = isinstance(given, list | tuple)
            names = tuple(given) if several else (given, given)
            if len(names) != 2 or not all(name is None or isinstance(name, str) for name in names):
                raise ValueError(
                    f"{field.name}: expected one column of obs, or one for each of two files, got {given!r}"
                )
            if given is not None and None in names and field.name == "within":
                raise ValueError(f"{field.name}: expected a column in each of two files, got {given!r}")
            object.__setattr__(self, field.name, None if given is None else names)

    def of(self, side: int, *, one_file: bool = False) -> dict[str, str]:
        """The columns of modality a (0) or b (1), those that are asked for.

        Raises:
            ValueError: two names for one file.
        """
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        found = {name: pair for name, pair in found.items() if pair is not None}
        for name, pair in found.items():
            if one_file and pair[0] != pair[1]:
                raise ValueError(f"{name}: expected one column of obs for one file, got {pair[0]!r} and {pair[1]!r}")
        return {name: column for name, pair in found.items() if (column := pair[side]) is not None}


Further = dict[str, tuple[str, np.ndarray]]


def read_further(columns: dict[str, str], labels: Callable[[str, str], np.ndarray]) -> Further:
    """For each argument its column and the labels there, by what reads `labels` of a column for an argument."""
    return {argument: (name, labels(name, argument)) for argument, name in columns.items()}
