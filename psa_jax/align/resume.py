"""Going on where a run ended: finished classifiers are kept in a folder, and taken from it if they are the same."""

import hashlib
import importlib
import os
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from psa_jax.align.processes import check_same, checksum, gathered
from psa_jax.data.source import Rows
from psa_jax.propensity.task import Task, Trained


def kept_in(folder: str | os.PathLike[str]) -> Callable[[Task], Trained]:
    """What trains classifiers, unless the folder has those of the same key, data and settings. On the host.

    Of several processes, which must all see the folder, the first one writes. What does not fit is trained anew and
    replaced; a damaged file is an error that names it.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"resume: expected a folder, got the file {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    archive: Any = importlib.import_module("psa_jax.io.archive")  # the room of files stands above this one

    def stage(task: Task) -> Trained:
        path, told = folder / f"classifiers_{task.name}.npz", identity(task)
        found = None
        if path.is_file():
            leaves, about = archive.read_leaves(path)
            if about.get("of") == told:
                found = archive.fitted_in(path, leaves, task.like(leaves))
        check_same(resume=np.asarray(found is not None))
        if found is not None:
            return found
        trained = task.train()
        whole = gathered(trained)
        if jax.process_index() == 0:
            stored, about = archive.pack(whole)
            archive.write_archive(path, stored, {**about, "of": told})
        return trained

    return stage


def identity(task: Task) -> str:
    """A checksum of all that decides what is trained: arrays, keys, the programs that train, and their constants.

    A program that calls back into Python is never the same again: what it calls cannot be known.
    """
    programs = task.programs()
    parts = [part for program in programs for part in _parts(program)]
    if any(_calls_back(eqn) for part in parts for eqn in part.eqns):
        return uuid.uuid4().hex
    text = "\n".join(re.sub(r"0x[0-9a-f]+", "", str(program)) for program in programs)
    found = hashlib.sha256(f"{jax.__version__} {task.folds}\n{text}".encode())
    found.update(checksum((task.arrays, [getattr(part, "consts", ()) for part in parts])))
    return found.hexdigest()


def _parts(program: Any) -> Iterator[Any]:
    """A program and those within it, whose constants its text does not show."""
    yield program
    for eqn in program.eqns:
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_program):
            if _is_program(value):
                yield from _parts(value)


def _is_program(value: Any) -> bool:
    return hasattr(value, "eqns")


def _calls_back(eqn: Any) -> bool:
    """Whether values come from a function of Python, but for the rows of sources, which are told from their numbers."""
    if eqn.primitive.name not in ("pure_callback", "io_callback"):
        return False
    return not isinstance(getattr(eqn.params["callback"], "callback_func", None), Rows)
