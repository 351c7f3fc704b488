"""Rows spread over the devices of a mesh, and row-wise work done in chunks of them.

A mesh is in force inside `spread_over(mesh)`. There, rows are cut into as many lanes as there are devices, one lane a
device, so that what is done row by row needs no other device, and sums over rows are one all-reduce. Without a mesh, or
inside `jax.shard_map`, there is one lane.
"""

import concurrent.futures
import contextlib
import functools
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, get_abstract_mesh, use_abstract_mesh

from psa_jax.types import Array, PyTree, size, take

COPIES = 2**30  # bytes that runs side by side hold of what they share
LOOKED_AT = ("jax_disable_jit", "jax_debug_nans", "jax_debug_infs")  # settings under which JAX looks at every value


def spread_over(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """Puts a mesh in force for what is traced inside; None changes nothing."""
    return contextlib.nullcontext() if mesh is None else use_abstract_mesh(mesh.abstract_mesh)


def check_mesh(mesh: Any) -> None:
    """Raises a `ValueError` unless it is None or a mesh whose axes JAX may use as it likes, `AxisType.Auto`."""
    if mesh is None:
        return
    if not isinstance(mesh, Mesh):
        raise ValueError(f"mesh: expected a jax.sharding.Mesh, got {type(mesh).__name__}")
    kinds = {name: kind for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind != AxisType.Auto}
    if kinds:
        told = ", ".join(f"{name} ({kind.name})" for name, kind in kinds.items())
        raise ValueError(
            f"mesh: expected axes of type Auto, got {told}: "
            "jax.make_mesh(shape, names, axis_types=(jax.sharding.AxisType.Auto,) * len(names))"
        )


def all_devices() -> Mesh:
    """One axis of all devices, those of other processes too."""
    return jax.make_mesh((jax.device_count(),), ("devices",), axis_types=(AxisType.Auto,))


def replicated(tree: PyTree, mesh: Mesh) -> PyTree:
    """The same arrays on every device of the mesh."""
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, PartitionSpec())), tree)


def each_device(fn: Callable[..., PyTree], mesh: Mesh, shared: PyTree, parts: PyTree) -> PyTree:
    """`fn(shared, part)` on every device with its part of the leading axis, which their number divides."""
    own = PartitionSpec(mesh.axis_names)
    run = jax.shard_map(fn, mesh=mesh, in_specs=(PartitionSpec(), own), out_specs=own, check_vma=False)
    return run(shared, parts)


def each_run(
    fn: Callable[[PyTree, PyTree], PyTree],
    shared: PyTree,
    runs: PyTree,
    *,
    mesh: Mesh | None,
    together: bool,
    cut: bool = True,
) -> PyTree:
    """`fn(shared, run)` of every run `[runs, ...]`, together or one after the other, on the devices of a mesh at once.

    Where the devices do not divide the runs, the first ones are done again and thrown away. Fewer runs than devices are
    done by all devices, over which `fn` may `spread` rows, unless `cut` is False (what is read by callbacks cannot be).
    """

    def some(shared: PyTree, own: PyTree) -> PyTree:
        one = functools.partial(fn, shared)
        return jax.vmap(one)(own) if together else jax.lax.map(one, own)

    if mesh is None:
        return some(shared, runs)
    number = size(runs)
    if cut and number < mesh.size:
        with spread_over(mesh):
            return some(replicated(shared, mesh), replicated(runs, mesh))
    filled = jnp.arange(number + -number % mesh.size) % number
    out = each_device(some, mesh, replicated(shared, mesh), take(replicated(runs, mesh), filled))
    return jax.tree.map(lambda leaf: leaf[:number], out)


def side_by_side(program: Callable[..., PyTree], shared: PyTree, runs: PyTree, **static: Any) -> PyTree:
    """`program(shared, runs, **static)`, which does each of the runs `[runs, ...]` by itself: on a CPU some at once.

    XLA cuts every product of a program over the cores, at a loss where products are small: on two cores two programs at
    once train twice as many classifiers. So each core has a thread that does one run after the other, each started in
    it, as programs that one thread starts wait for each other.

    Args:
        program: jitted; traced arguments come first, and each leaf of the result has a leading axis `[runs]`.
        shared: what all runs use; so much of it may be copied by each that few run at once if it is large.
        runs: leaves `[runs, ...]`.
        **static: what else the program takes.
    """
    number, leaves = size(runs), jax.tree.leaves((shared, runs))
    plain = any(getattr(jax.config, name) for name in LOOKED_AT)
    plain = plain or jax.default_backend() != "cpu" or any(isinstance(leaf, Tracer) for leaf in leaves)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(shared) if hasattr(leaf, "nbytes"))
    threads = 1 if plain else min(number, cores(), COPIES // max(held, 1))
    if threads < 2:
        return program(shared, runs, **static)
    each = [take(runs, np.array([i])) for i in range(number)]
    compiled = program.lower(shared, each[0], **static).compile()  # here, as settings of JAX are of one thread
    pool = concurrent.futures.ThreadPoolExecutor(threads)
    try:
        found = list(pool.map(lambda run: jax.block_until_ready(compiled(shared, run)), each))
    finally:
        pool.shutdown(cancel_futures=True)
    return jax.tree.map(_joined, *found)


def _joined(*leaves: Array) -> Array:
    """Leading axes of one each joined: on the host, as every number of them would be another program.

    Keys are not, nor what belongs to devices that the caller chose.
    """
    if leaves[0].committed or jnp.issubdtype(leaves[0].dtype, jax.dtypes.prng_key):
        return jnp.concatenate(leaves)
    return jnp.asarray(np.concatenate(leaves))


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def lanes(n: int) -> int:
    """Into how many lanes `n` rows are cut: the devices of the mesh in force if they divide them, else 1."""
    number = math.prod(_axes().values())
    return number if n % number == 0 else 1


def spread(tree: PyTree) -> PyTree:
    """The same arrays, their leading axis cut over the devices where these divide it."""

    def one(leaf: Array) -> Array:
        if lanes(leaf.shape[0]) == 1:
            return leaf
        return jax.lax.with_sharding_constraint(leaf, PartitionSpec(tuple(_axes())))

    return jax.tree.map(one, tree)


def in_lanes(tree: PyTree, block: int) -> PyTree:
    """Rows `[n, ...]` as `[lanes, blocks, block, ...]`, each lane filled up with zeros."""

    def cut(leaf: Array) -> Array:
        number = lanes(leaf.shape[0])
        leaf = leaf.reshape(number, -1, *leaf.shape[1:])
        fill = -leaf.shape[1] % block
        leaf = jnp.concatenate([leaf, jnp.zeros((number, fill, *leaf.shape[2:]), leaf.dtype)], axis=1)
        return leaf.reshape(number, -1, block, *leaf.shape[2:])

    return spread(jax.tree.map(cut, tree))


def in_each(fn: Callable[[PyTree], PyTree], tree: PyTree) -> PyTree:
    """`fn` in every lane `[lanes, ...]` at once; one lane is not batched, which costs time on the CPU."""
    if size(tree) > 1:
        return jax.vmap(fn)(tree)
    return jax.tree.map(lambda leaf: leaf[None], fn(jax.tree.map(lambda leaf: leaf[0], tree)))


def out_of_lanes(tree: PyTree, n: int) -> PyTree:
    """The first `n` rows `[n, ...]` of what `in_lanes` made."""

    def join(leaf: Array) -> Array:
        number = leaf.shape[0]
        return leaf.reshape(number, -1, *leaf.shape[3:])[:, : n // number].reshape(n, *leaf.shape[3:])

    return jax.tree.map(join, tree)


def map_rows(fn: Any, rows: PyTree, chunk: int) -> PyTree:
    """Applies `fn` to the leading axis of `rows`, at most `chunk` rows at a time.

    The result is that of `fn(rows)` for every row-wise `fn`; only one chunk's intermediates are alive at a time, on
    each device of a mesh in force, in the backward pass too (they are recomputed). `chunk` is static.

    Args:
        fn: maps a tree with leading axis `[k, ...]` to a tree with leading axis `[k, ...]`, row by row.
        rows: tree whose leaves are `[n, ...]`.
        chunk: the most rows at a time, at least 1.

    Example:
        >>> map_rows(lambda x: x + 1, jnp.arange(5), chunk=2).tolist()
        [1, 2, 3, 4, 5]
    """
    if chunk < 1:
        raise ValueError(f"chunk: expected at least 1, got {chunk}")
    n = size(rows)
    number = lanes(n)
    each = n // number
    if each <= chunk:
        return fn(rows)
    steps = -(-each // chunk)
    chunk = -(-each // steps)
    ids = jnp.minimum(jnp.arange(steps * chunk), each - 1).reshape(steps, chunk)

    def lane(rows: PyTree) -> PyTree:
        return jax.lax.map(jax.checkpoint(lambda i: fn(take(rows, i))), ids)

    cut = spread(jax.tree.map(lambda leaf: leaf.reshape(number, each, *leaf.shape[1:]), rows))
    return out_of_lanes(in_each(lane, cut), n)


def _axes() -> dict[str, int]:
    """The axes of the mesh in force that are not `shard_map`'s, with their sizes."""
    mesh = get_abstract_mesh()
    found = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
    return {name: size for name, size, kind in found if kind == AxisType.Auto}
