"""Aliases, protocols and pytree helpers shared by every module (level 0: imports nothing of the package)."""

import dataclasses
from typing import Any, Protocol, TypeVar, dataclass_transform, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

KeyArray = Key[Array, ""]

_T = TypeVar("_T")


def static(**options: Any) -> Any:
    """A dataclass field that is part of the type: changing it recompiles."""
    return dataclasses.field(metadata={"static": True}, **options)


@dataclass_transform(frozen_default=True, eq_default=False, field_specifiers=(dataclasses.field, static))
def pytree(cls: type[_T]) -> type[_T]:
    """Makes a class a frozen dataclass that JAX sees as a pytree; fields made by `static` are not traced."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True, eq=False)(cls))


@runtime_checkable
class Cost(Protocol):
    """The cost of matching ONE sample with one sample: `([d], [d]) -> []`, a module-level function."""

    def __call__(self, x: Any, y: Any, /) -> Any:
        """The cost."""
        ...


@runtime_checkable
class Augment(Protocol):
    """A random change of a batch that keeps its labels: `(key, [batch, ...]) -> [batch, ...]`."""

    def __call__(self, key: KeyArray, x: Array, /) -> Array:
        """The changed batch."""
        ...


def size(tree: PyTree) -> int:
    """The length of the leading axis that all leaves share."""
    return jax.tree.leaves(tree)[0].shape[0]


def take(tree: PyTree, index: Any) -> PyTree:
    """Indexes the leading axis of every leaf."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def float_dtype(*arrays: Array) -> Any:
    """The floating type to compute in: float32, or wider if an array is; under any promotion setting."""
    floats = [array.dtype for array in arrays if jnp.issubdtype(array.dtype, jnp.floating)]
    with jax.numpy_dtype_promotion("standard"):
        return jax.dtypes.canonicalize_dtype(jnp.result_type(jnp.float32, *floats))


def solver_dtype(*arrays: Array) -> Any:
    """The floating type to solve in: float64 if x64 is enabled, whatever the arrays have, else `float_dtype`."""
    return jnp.dtype(jnp.float64) if jax.config.read("jax_enable_x64") else float_dtype(*arrays)


def map_rows(fn: Any, rows: PyTree, chunk: int) -> PyTree:
    """Applies `fn` to the leading axis of `rows`, at most `chunk` rows at a time.

    The result is that of `fn(rows)` for every row-wise `fn`; only one chunk's intermediates are alive at a time,
    in the backward pass too (they are recomputed). `chunk` is static.

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
    if n <= chunk:
        return fn(rows)
    steps = -(-n // chunk)
    chunk = -(-n // steps)
    ids = jnp.minimum(jnp.arange(steps * chunk), n - 1).reshape(steps, chunk)
    out = jax.lax.map(jax.checkpoint(lambda i: fn(take(rows, i))), ids)
    return jax.tree.map(lambda leaf: leaf.reshape(steps * chunk, *leaf.shape[2:])[:n], out)


__all__ = [
    "Array",
    "Augment",
    "Bool",
    "Cost",
    "Float",
    "Int",
    "KeyArray",
    "PyTree",
    "float_dtype",
    "map_rows",
    "pytree",
    "size",
    "solver_dtype",
    "static",
    "take",
]
