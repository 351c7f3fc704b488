"""The output folder: complete or not there at all."""

import contextlib
import csv
import errno
import importlib.metadata
import json
import math
import os
import platform
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np

import psa_jax

MADE_BY = "psa-jax"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "ott-jax", "numpy", "scipy")


class OutputFolder:
    """A folder beside `path` that takes its place when the `with` block ends well, and is removed when it does not.

    Raises:
        FileExistsError: `path` exists and `force` is False, or it is nothing that psa-jax made.
        FileNotFoundError: there is no parent folder.
    """

    def __init__(self, path: Path, force: bool) -> None:
        self._path, self._force = path.absolute(), force
        self._check()
        self._new = self._path.with_name(f".{self._path.name}.{os.getpid()}.partial")
        self._old = self._path.with_name(f".{self._path.name}.{os.getpid()}.replaced")

    def __enter__(self) -> Path:
        with self._naming():
            self._new.mkdir()
        return self._new

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._naming():
            if error is not None:
                _remove(self._new)
                raise error
            self._take_place()

    def _take_place(self) -> None:
        try:
            self._check()
            if self._path.exists():
                self._path.rename(self._old)
            self._new.rename(self._path)
        except BaseException:
            if self._old.exists() and not self._path.exists():
                self._old.rename(self._path)
            _remove(self._new)
            raise
        _remove(self._old)

    @contextlib.contextmanager
    def _naming(self) -> Iterator[None]:
        """What the system says about writing, such as that the disk is full, as an error of --output."""
        try:
            yield
        except OSError as error:
            names = [Path(os.fsdecode(name)) for name in (error.filename, error.filename2) if name is not None]
            places = self._new, self._old, self._path
            ours = all(any(name.is_relative_to(place) for place in places) for name in names)
            if error.errno in (None, errno.EPIPE) or not ours:
                raise
            raise OSError(f"--output: {self._path} could not be written: {error.strerror}") from error

    def _check(self) -> None:
        path = self._path
        if not path.parent.is_dir():
            raise FileNotFoundError(f"--output: there is no folder {path.parent}")
        if path.is_symlink() or path.exists():
            if not self._force:
                raise FileExistsError(f"--output: {path} exists (--force replaces it, or choose another folder)")
            if not _ours(path):
                raise FileExistsError(f"--output: {path} is not a folder that psa-jax made, so it is not replaced")


class OutputFile:
    """A file beside `path` that takes its place when the `with` block ends well, and is removed when it does not.

    Raises:
        FileExistsError: `path` exists and `force` is False, or it is no file.
        FileNotFoundError: there is no parent folder.
    """

    def __init__(self, path: Path, force: bool) -> None:
        self._path, self._force = path.absolute(), force
        self._check()
        self._new = self._path.with_name(f".{self._path.name}.{os.getpid()}.partial{self._path.suffix}")

    def __enter__(self) -> Path:
        return self._new

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                raise error
            self._check()
            self._new.replace(self._path)
        except OSError as failure:
            named = Path(os.fsdecode(failure.filename)) if failure.filename is not None else self._new
            if named not in (self._new, self._path) or isinstance(failure, FileExistsError | FileNotFoundError):
                raise
            raise OSError(f"--output: {self._path} could not be written: {failure.strerror or failure}") from failure
        finally:
            self._new.unlink(missing_ok=True)

    def _check(self) -> None:
        if not self._path.parent.is_dir():
            raise FileNotFoundError(f"--output: there is no folder {self._path.parent}")
        if self._path.exists() and not (self._force and self._path.is_file()):
            raise FileExistsError(
                f"--output: {self._path} exists "
                + ("(--force replaces it)" if self._path.is_file() else "and is no file, so it is not replaced")
            )


def write_report(folder: Path, report: dict[str, Any]) -> dict[str, Any]:
    """Writes `report.json`, and returns it: what is given and what it ran on, strict JSON (None if not finite)."""
    versions = {"python": platform.python_version(), "psa_jax": psa_jax.__version__}
    for package in PACKAGES:
        versions[package] = importlib.metadata.version(package)
    head = {
        "made_by": MADE_BY,
        "arguments": sys.argv[1:],
        "versions": versions,
        "machine": {
            "system": platform.platform(),
            "cpus": os.cpu_count(),
            "devices": [str(device) for device in jax.devices()],
            "device_kind": jax.devices()[0].device_kind,
        },
    }
    whole = plain({**head, **report})
    text = json.dumps(whole, indent=1, allow_nan=False)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    return whole


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a `.csv` file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def plain(value: Any) -> Any:
    """The value as JSON has it: arrays as lists, numbers that are not finite as None."""
    if isinstance(value, dict):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return plain(np.asarray(value).tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _ours(path: Path) -> bool:
    if path.is_symlink() or not path.is_dir():
        return False
    try:
        return json.loads((path / "report.json").read_text(encoding="utf-8")).get("made_by") == MADE_BY
    except (OSError, ValueError, AttributeError):
        return not any(path.iterdir())


def _remove(path: Path) -> None:
    for _ in range(5):  # a thread that was interrupted may still be writing
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return
