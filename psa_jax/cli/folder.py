"""The folder that `psa-jax align` makes: what is kept in it to go on with, and how it is opened again."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from psa_jax import io
from psa_jax.align.alignment import Alignment
from psa_jax.cli.jobs import make_matcher
from psa_jax.cli.output import MADE_BY
from psa_jax.cli.reading import open_file, quietly

PREPARATIONS = "preparations.npz"
REFERENCES = {"b": "reference_b.h5ad", "a": "reference_a.h5ad"}


@dataclasses.dataclass(frozen=True)
class Kept:
    """One direction of a folder: from cells of one modality to features of the other.

    Attributes:
        path: the folder.
        side: "a" or "b", the modality of the cells.
        report: its `report.json`.
        alignment: whose modality a is that of the cells.
        preparation: of the cells' features.
    """

    path: Path
    side: str
    report: dict[str, Any]
    alignment: Alignment
    preparation: io.Preparation

    def column(self, name: str) -> str | None:
        """The column of obs that the cells' treatments, strata (`within`) or batches had in training, or None."""
        return self.report["settings"].get(name if self.side == "a" else f"{name}_b")

    def cells(self) -> np.ndarray:
        """The names of the other modality's cells, as they were aligned."""
        return self._names("b" if self.side == "a" else "a")

    def own_cells(self) -> np.ndarray:
        """The names of the cells that were aligned."""
        return self._names(self.side)

    def _names(self, side: str) -> np.ndarray:
        with (self.path / f"cells_{side}.csv").open(newline="", encoding="utf-8") as file:
            return np.asarray([row["cell"] for row in csv.DictReader(file)], object)

    def reference(self) -> Any:
        """The other modality's cells, with the features that are imputed."""
        path = self.path / REFERENCES["b" if self.side == "a" else "a"]
        if not path.is_file():
            raise ValueError(
                f"{self.path}: expected {path.name}, which psa-jax align --impute-b writes, got no such file"
            )
        with quietly():
            return open_file(path)


def controls(alignment: Alignment, name: str) -> np.ndarray:
    """The code of the control `name` for each code: in its own stratum where there are some, -1 where that has none."""
    if alignment.strata is None:
        return np.full(alignment.groups.num_treatments, (alignment.names or ()).index(name))
    control = alignment.strata.treatments.index(name)
    return alignment.strata.codes(np.full(alignment.groups.num_treatments, control), alignment.strata.stratum)


def keep(folder: Path, alignment: Alignment, loaded: io.Loaded) -> None:
    """Writes what new cells are served by, but for the features that are imputed."""
    alignment.save(folder)
    io.save_preparations(folder / PREPARATIONS, loaded.preparations)


def open_folder(path: Path, side: str = "a") -> Kept:
    """Opens a folder that `psa-jax align` made."""
    if not path.is_dir():
        raise ValueError(
            f"{path}: expected a folder that psa-jax align made, got {'a file' if path.exists() else 'none'}"
        )
    try:
        report = json.loads((path / "report.json").read_text(encoding="utf-8"))
        fits = report.get("made_by") == MADE_BY and report.get("command") == "align"
    except (OSError, ValueError, AttributeError):
        fits = False
    if not fits or not (path / PREPARATIONS).is_file():
        raise ValueError(
            f"{path}: expected a folder that psa-jax align of this version made, got another (align again)"
        )
    used = report["settings"]
    matcher = make_matcher(used["matcher"], used["eps"], used["relative_eps"], used["k"])
    alignment = io.load_alignment(path / "alignment.npz", matcher=matcher)
    first, second = io.load_preparations(path / PREPARATIONS)
    return Kept(path, side, report, *((alignment, first) if side == "a" else (alignment.T, second)))
