"""Functions written anew that are the same, so that their programs are compiled once and kept once."""

import types
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

VALUES = (bool, int, float, complex, str, bytes, type(None), type(...), np.generic, np.dtype)
NAMES = (types.ModuleType, types.BuiltinFunctionType, types.FunctionType, type)
LIBRARIES = ("builtins", "functools", "jax", "jaxlib", "math", "numpy", "operator", "ott", "psa_jax")


def same(function: Any) -> Any:
    """The function, equal to every other of the same code that sees the same values; other settings as they are.

    A lambda in a loop is a new function each time. Programs are kept by function, so that each would be compiled, and
    kept, anew. Compared are the code and all that it sees from outside (what it closes over, globals, defaults), which
    must be of a kind that cannot change: numbers, texts, tuples of them, JAX arrays (by identity), what NumPy, JAX and
    this package define, and functions that see nothing but these. Where something else is seen, as where a function is
    no lambda or local function, it is left as it is.

    Example:
        >>> first, again, other = (same(lambda x, power=power: x**power) for power in (2, 2, 3))
        >>> first == again, first == other, first(3)
        (True, False, 9)
    """
    if not isinstance(function, types.FunctionType) or "<" not in function.__qualname__:
        return function
    try:
        return _Same(function, (function.__code__, id(function.__globals__), *map(_key, _seen(function))))
    except (TypeError, RecursionError):
        return function


class _Same:
    """A function that is equal by what it does."""

    def __init__(self, function: Callable[..., Any], key: tuple[Any, ...]):
        self._function, self._key = function, key
        self.__name__, self.__doc__, self.__wrapped__ = function.__name__, function.__doc__, function
        self.__module__, self.__qualname__ = function.__module__, function.__qualname__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, _Same) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


def _seen(function: types.FunctionType) -> Iterator[Any]:
    """What a function sees from outside, in the order of its code."""
    for cell in function.__closure__ or ():
        yield cell.cell_contents if cell != types.CellType() else ...
    yield from function.__defaults__ or ()
    yield from sorted((function.__kwdefaults__ or {}).items())
    for name in _names(function.__code__):
        if name in function.__globals__:
            yield function.__globals__[name]


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for part in code.co_consts:
        if isinstance(part, types.CodeType):
            yield from _names(part)


def _key(value: Any) -> Any:
    """What tells the value from others; a `TypeError` if it may change."""
    if isinstance(value, VALUES):
        return type(value), repr(value)  # -0.0 is not 0.0, and NaN is itself
    if isinstance(value, tuple):
        return type(value), tuple(map(_key, value))
    if isinstance(value, jax.Array) and not isinstance(value, Tracer):
        return "array", id(value)  # which the function keeps alive
    if isinstance(value, NAMES) and _home(value).partition(".")[0] in LIBRARIES:
        return "name", id(value)
    if isinstance(value, types.FunctionType):
        return value.__code__, id(value.__globals__), *map(_key, _seen(value))
    raise TypeError(f"{type(value).__name__} may change")


def _home(value: Any) -> str:
    return value.__name__ if isinstance(value, types.ModuleType) else str(value.__module__)
