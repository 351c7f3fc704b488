"""Whether programs do the same, as far as their texts and constants tell."""

import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from psa_jax.align.processes import check_same, checksum
from psa_jax.data.source import Rows
from psa_jax.propensity.task import Task, Trained


def digest(programs: list[Any]) -> bytes:
    """A checksum of the texts of traced programs, their constants, and the version of JAX."""
    text = "\n".join(re.sub(r"0x[0-9a-f]+", "", str(program)) for program in programs)
    found = hashlib.sha256(f"{jax.__version__}\n{text}".encode())
    found.update(checksum([getattr(part, "consts", ()) for program in programs for part in _parts(program)]))
    return found.digest()


def calls_back(programs: list[Any]) -> bool:
    """Whether values come from a function of Python, but for the rows of sources, which are told from their numbers."""

    def does(eqn: Any) -> bool:
        if eqn.primitive.name not in ("pure_callback", "io_callback"):
            return False
        return not isinstance(getattr(eqn.params["callback"], "callback_func", None), Rows)

    return any(does(eqn) for program in programs for part in _parts(program) for eqn in part.eqns)


def check_alike(name: str, programs: Callable[[], list[Any]], *numbers: int) -> None:
    """Raises a `ValueError` unless all processes are about to run the same: else they would wait for each other."""
    if jax.process_count() > 1:
        check_same(**{name: (np.frombuffer(digest(programs()), np.uint8), numbers)})


def agreed(stage: Callable[[Task], Trained], task: Task) -> Trained:
    """A stage of training, if all processes are about to train alike."""
    check_alike(f"learner of modality {task.name}", task.programs, task.keys.shape[0], task.folds)
    return stage(task)


def _parts(program: Any) -> Iterator[Any]:
    """A program and those within it, whose constants its text does not show."""
    yield program
    for eqn in program.eqns:
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_program):
            if _is_program(value):
                yield from _parts(value)


def _is_program(value: Any) -> bool:
    return hasattr(value, "eqns")
