"""Several processes that work together: joining them, and what they must agree on before they do."""

import hashlib
import os
import sys
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from psa_jax.data.source import Source
from psa_jax.data.whole import known_by
from psa_jax.types import PyTree

ADDRESS, NUMBER, RANK = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
PATIENCE = 30  # seconds
LAUNCHERS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")  # how many processes Slurm and Open MPI say there are


def join() -> None:
    """Joins the other processes where a launcher started several: Slurm, Open MPI, or three variables that say which.

    These are JAX_COORDINATOR_ADDRESS (`host:port` of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID. A process that
    does not answer for half a minute ends the others with an error. Before anything else of JAX; without a launcher
    nothing is done.

    Raises:
        ValueError: an address without the two numbers.
    """
    if jax.distributed.is_initialized():
        return
    if ADDRESS in os.environ:
        try:
            number, rank = int(os.environ[NUMBER]), int(os.environ[RANK])
        except (KeyError, ValueError) as error:
            raise ValueError(f"{ADDRESS}: expected numbers in {NUMBER} and {RANK} beside it, got {error}") from error
        jax.distributed.initialize(num_processes=number, process_id=rank, heartbeat_timeout_seconds=PATIENCE)
    elif any(os.environ.get(name, "1") not in ("", "1") for name in LAUNCHERS):
        jax.distributed.initialize(heartbeat_timeout_seconds=PATIENCE)


def check_same(**told: PyTree) -> None:
    """Raises a `ValueError` that names what is not the same in all processes; at once where there is only one.

    Args:
        told: trees of arrays and keys by name; `None` is a tree, too. All processes must call this with the same names.
    """
    if jax.process_count() == 1:
        return
    sums = multihost_utils.process_allgather(
        np.stack([np.frombuffer(checksum(tree), np.uint32) for tree in told.values()])
    )
    for place, name in enumerate(told):
        others = np.flatnonzero((sums[:, place] != sums[0, place]).any(-1))
        if others.size:
            raise ValueError(f"processes: expected the same {name} in each, got another in {others} than in process 0")


def leave(code: int) -> None:
    """Ends a process that failed so that the others hear of it, and do not wait for it; nothing if there are none."""
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def gathered(tree: PyTree) -> PyTree:
    """The same arrays, those that are spread over the devices of several processes whole in the memory of each."""

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return leaf
        return jax.numpy.asarray(multihost_utils.process_allgather(leaf, tiled=True))

    return jax.tree.map(one, tree)


def checksum(tree: PyTree) -> bytes:
    """Of the structure and all numbers; of a source those that were read as a whole, or a few rows."""
    sources = [x for x in jax.tree.leaves(tree, is_leaf=_is_source) if _is_source(x)]
    tree = jax.tree.map(lambda x: (x.shape, str(x.dtype)) if _is_source(x) else x, tree, is_leaf=_is_source)
    plain = [leaf for leaf in jax.tree.leaves(tree) if not isinstance(leaf, str)]
    found = hashlib.sha256(str(jax.tree.structure(tree)).encode())
    for leaf in [*plain, *jax.tree.leaves([known_by(source) for source in sources])]:
        if hasattr(leaf, "dtype") and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        values = np.ascontiguousarray(leaf)
        found.update(f"{values.dtype}{values.shape}".encode())
        found.update(values.view(np.uint8).data if values.size else b"")
    return found.digest()


def _is_source(x: Any) -> bool:
    return isinstance(x, Source)
