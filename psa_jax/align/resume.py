"""Going on where a run ended: what is finished is kept in a folder, and taken from it if it is the same."""

import dataclasses
import functools
import hashlib
import importlib
import logging
import os
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psa_jax.align.processes import check_same, checksum, gathered
from psa_jax.align.programs import calls_back, digest
from psa_jax.coupling.blocked import Blocked
from psa_jax.data.groups import Bucket, Groups
from psa_jax.propensity.task import Task, Trained
from psa_jax.types import PyTree

LOG = logging.getLogger(__name__)


def kept_in(folder: str | os.PathLike[str]) -> Callable[[Task], Trained]:
    """What trains classifiers, unless the folder has those of the same key, data and settings. On the host.

    Of several processes, which must all see the folder, the first one writes. What does not fit is trained anew and
    replaced; a damaged file is an error that names it.
    """
    if not os.fspath(folder):
        raise ValueError("resume: expected a folder, got no name")
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # found out before what is to be kept is made
    except (OSError, ValueError) as error:
        told = getattr(error, "strerror", None) or error
        raise ValueError(f"resume: expected a folder to write into, got {folder}: {told}") from error

    def stage(task: Task) -> Trained:
        return _kept(folder / f"classifiers_{task.name}.npz", identity(task), task.like, task.train)

    return stage


def matched_in(
    folder: str | os.PathLike[str], match: Callable[[Any, Any, Groups], Blocked]
) -> Callable[[Any, Any, Groups], Blocked]:
    """What matches, but for buckets of treatments that the folder has of the same scores and matcher. On the host.

    Args:
        folder: as of `kept_in`, which has made it.
        match: what `blockwise` gives; it is called for one bucket after the other.
    """

    def stage(u: Any, v: Any, groups: Groups) -> Blocked:
        scores = np.frombuffer(checksum((u, v)), np.uint8)

        def part(place: int, bucket: Bucket) -> Blocked:
            own = dataclasses.replace(groups, buckets=(bucket,))
            solve = functools.partial(match, u, v, own)
            told = _told([jax.make_jaxpr(match)(u, v, own)], (scores, own))
            return _kept(Path(folder) / f"coupling_{place}.npz", told, lambda _: jax.eval_shape(solve), solve)

        return _joined([part(place, bucket) for place, bucket in enumerate(groups.buckets)])

    return stage


def _kept(path: Path, told: str, like: Callable[[dict[str, Any]], PyTree], make: Callable[[], PyTree]) -> Any:
    """What `make` gives, or what the file holds if it is the same; `like` is a tree for the leaves that it has."""
    archive: Any = importlib.import_module("psa_jax.io.archive")  # the room of files stands above this one
    found = None
    if path.exists() and not path.is_file():
        raise ValueError(f"resume: expected the place of a file, got a folder or a device: {path}")
    if path.is_file():
        try:
            leaves, about = archive.read_leaves(path)
            found = archive.fitted_in(path, leaves, like(leaves)) if about.get("of") == told else None
        except ValueError as error:
            raise ValueError(f"resume: {error}: without this file, what it held is done again") from error
    check_same(resume=np.asarray(found is not None))
    if found is not None:
        LOG.info("resume: %s was finished and is taken from %s", path.stem, path.parent)
        return found
    made = make()
    whole = gathered(made)
    if jax.process_index() == 0:
        stored, about = archive.pack(whole)
        archive.write_archive(path, stored, {**about, "of": told}, deflated=False)
    return made


def _joined(parts: list[Blocked]) -> Blocked:
    """The coupling of treatments that were matched in parts of one plan."""
    infos = [jax.tree.map(np.array, gathered(part.info)) for part in parts]
    for part, info in zip(parts, infos, strict=True):
        own = np.concatenate([np.asarray(gathered(block.treatment)) for block in part.blocks])
        for leaf, value in zip(jax.tree.leaves(infos[0]), jax.tree.leaves(info), strict=True):
            leaf[own] = value[own]
    blocks = tuple(block for part in parts for block in part.blocks)
    return dataclasses.replace(parts[0], blocks=blocks, info=jax.tree.map(jnp.asarray, infos[0]))


def identity(task: Task) -> str:
    """A checksum of all that decides what is trained."""
    return _told(task.programs(), (task.folds, task.arrays))


def _told(programs: list[Any], arrays: PyTree) -> str:
    """A checksum of arrays, keys, and the programs that use them.

    A program that calls back into Python is never the same again: what it calls cannot be known.
    """
    return uuid.uuid4().hex if calls_back(programs) else hashlib.sha256(digest(programs) + checksum(arrays)).hexdigest()
