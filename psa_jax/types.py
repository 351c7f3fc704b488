"""Aliases, protocols and pytree helpers shared by every module (level 0: imports nothing of the package)."""

import dataclasses
from typing import Any, Protocol, TypeVar, dataclass_transform, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

KeyArray = Key[Array, ""]
Number = float | Float[Array, ""]  # one number, traced or not

_T = TypeVar("_T")


def static(**options: Any) -> Any:
    """A dataclass field that is part of the type: changing it recompiles."""
    return dataclasses.field(metadata={"static": True}, **options)


@dataclass_transform(frozen_default=True, eq_default=False, field_specifiers=(dataclasses.field, static))
def pytree(cls: type[_T]) -> type[_T]:
    """Makes a class a frozen dataclass that JAX sees as a pytree; fields made by `static` are not traced.

    Its `repr` shows the shapes of its arrays, not their numbers, unless the class has one of its own.
    """
    if "__repr__" not in vars(cls):
        cls.__repr__ = _shapes
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True, eq=False)(cls))


def _shapes(self: Any) -> str:
    """The fields of a dataclass, arrays by type and shape."""
    parts = [f"{field.name}={brief(getattr(self, field.name))}" for field in dataclasses.fields(self)]
    line = f"{type(self).__name__}({', '.join(parts)})"
    return line if len(line) <= 100 else f"{type(self).__name__}(\n    " + ",\n    ".join(parts) + ",\n)"


def brief(value: Any) -> str:
    """A value in a few words: arrays by type and shape, containers and trees by their size."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        name = type(value).__name__
        text = repr(value)
        return text if len(text) <= 60 and "\n" not in text else f"{name}(...)"
    if isinstance(value, tuple | list | dict):
        text = f"{type(value).__name__} of {len(value)}"
        shown = repr(value) if all(isinstance(x, int | float | str) for x in value) else text
        return shown if len(shown) <= 60 else text
    text = getattr(value, "__name__", None) or repr(value)
    return text if len(text) <= 60 and "\n" not in text else f"{type(value).__name__}(...)"


def known(*arrays: Any) -> bool:
    """Whether the values of arrays can be looked at: none is traced, a shape, or no array at all."""
    return all(isinstance(x, np.ndarray | np.generic | jax.Array) and not isinstance(x, Tracer) for x in arrays)


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


def host_rng(key: KeyArray) -> np.random.Generator:
    """A generator on the host, seeded by a typed key: for what is decided there, without compiling anything."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())


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


def alike(*arrays: Array) -> tuple[Array, ...]:
    """The same arrays; under `shard_map` each counts as differing between devices where any of them does.

    A loop's state must start as it goes on: from values that differ between devices if they will.
    """
    apart = [jnp.zeros_like(array, shape=()) for array in arrays]
    return tuple(array + sum(zero.astype(array.dtype) for zero in apart) for array in arrays)


__all__ = [
    "Array",
    "Augment",
    "Bool",
    "Cost",
    "Float",
    "Int",
    "KeyArray",
    "Number",
    "PyTree",
    "alike",
    "brief",
    "float_dtype",
    "host_rng",
    "known",
    "pytree",
    "size",
    "solver_dtype",
    "static",
    "take",
]
