"""Arguments as people give them: read by their annotations, taken as arrays or refused by name.

A public function is decorated with `checked`. What its annotations say is then asked of every argument before the
function runs: `Float[Array, "n d"]` takes numbers of rank two in whatever holds them (a list, a NumPy array, a table of
numbers), `Int[Array, " n"]` takes integers, `KeyArray` a typed key, a class its instances. What depends on values or
on several arguments is the function's own affair.
"""

import functools
import inspect
import os
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import AbstractArray, Float, Shaped

F = TypeVar("F", bound=Callable[..., Any])
Check = Callable[[str, Any], Any]

# Keywords of version 0.4 and where they are now, for the error of those who still give them.
TRAINING = "training=psa_jax.Training({name}=...)"
LEARNER = "a=psa_jax.Learner({name}=...) and b=psa_jax.Learner({name}=...)"
LEARNER_TRAINING = "a=psa_jax.Learner(training=psa_jax.Training({name}=...)) and the same for b"
SIDE = "{side}=psa_jax.Learner({short}=...)"
SCREEN = "law=psa_jax.datasets.ScreenLaw({name}=...)"


def checked(function: F) -> F:
    """Decorates a public function: arguments that its annotations rule out raise a `ValueError` that names them.

    Arrays given as lists, NumPy arrays or tables of numbers reach the function as JAX arrays. Keywords that moved raise
    a `TypeError` that says where they are now. Nothing else changes; it costs some microseconds a call.

    Example:
        >>> from jaxtyping import Array, Float
        >>> @checked
        ... def total(x: Float[Array, "n d"]):
        ...     return x.sum()
        >>> float(total([[1.0, 2.0]]))
        3.0
        >>> total("x")
        Traceback (most recent call last):
        ValueError: x: expected numbers [n, d], got the text 'x'
    """
    signature = inspect.signature(function)
    checks = {}
    for name, parameter in signature.parameters.items():
        check = _check(parameter.annotation)
        if check is not None:
            several = parameter.kind is parameter.VAR_POSITIONAL
            checks[name] = functools.partial(_several, [check], True) if several else check

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{function.__name__}() {error}{_moved(function.__name__, signature, kwargs)}") from None
        for name, check in checks.items():
            if name in bound.arguments:
                bound.arguments[name] = check(name, bound.arguments[name])
        return function(*bound.args, **bound.kwargs)

    return wrapper  # pyright: ignore[reportReturnType]


def _moved(function: str, signature: inspect.Signature, kwargs: dict[str, Any]) -> str:
    """Where the first unknown keyword is now, if it moved."""
    for name in kwargs:
        if name in signature.parameters:
            continue
        takes = signature.parameters
        learns = "learners" in takes or ("a" in takes and "Learner" in str(takes["a"].annotation))
        short, _, side = name.rpartition("_")
        if name in ("optimizer", "epochs", "batch_size", "patience") and (learns or "training" in takes):
            place = TRAINING if "training" in takes else LEARNER_TRAINING
        elif name in ("members", "folds", "transform", "divide_prior") and learns:
            place = LEARNER
        elif short in ("model", "augment") and side in ("a", "b") and learns:
            place = SIDE
        elif name in ("models", "augments") and learns:
            place, short = "learners=[psa_jax.Learner({short}=...), ...]", name[:-1]
        elif name == "on_epoch" and learns:
            place = "progress=True, or progress=a function of psa_jax.progress.Step"
        elif "law" in takes and hasattr(takes["law"].annotation, name):
            place = SCREEN
        else:
            continue
        if "learners" in takes and place in (LEARNER, LEARNER_TRAINING):
            place = place.replace("a=", "learners=", 1).partition(" and ")[0]
        return f": since version 0.5 write {place.format(name=name, short=short, side=side)}"
    return ""


def _check(annotation: Any) -> Check | None:
    """The check that an annotation asks for; None if it asks for nothing."""
    if annotation in (inspect.Parameter.empty, Any) or isinstance(annotation, TypeVar):
        return None
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        checks = [_check(part) for part in parts if part is not type(None)]
        if None in checks:
            return None
        return functools.partial(_any_of, [check for check in checks if check], type(None) in parts)
    if annotation is jax.Array:
        annotation = Shaped[jax.Array, "..."]
    if inspect.isclass(annotation) and issubclass(annotation, AbstractArray):
        return functools.partial(_key if "prng_key" in str(annotation.dtypes) else _array, annotation)
    if origin is typing.Literal:
        return functools.partial(_one_of, parts)
    if origin is Callable or origin is typing.get_origin(Callable[..., Any]):
        return _callable
    if getattr(annotation, "_is_protocol", False):
        return functools.partial(_protocol, [name for name in vars(annotation) if not name.startswith("_")], annotation)
    if origin in (Sequence, Iterable, list, tuple):
        elements = [part for part in parts if part is not Ellipsis]
        same = len(elements) == 1
        return functools.partial(_several, [_check(part) for part in elements], same)
    if annotation in (int, float, bool):
        return functools.partial(_number, annotation)
    kind = origin if origin is os.PathLike else annotation
    return functools.partial(_instance, kind) if inspect.isclass(kind) else None


def _any_of(checks: list[Check], optional: bool, name: str, value: Any) -> Any:
    """What the first check that is content makes of it, or the error of the first."""
    if optional and value is None:
        return None
    first = None
    for check in checks:
        try:
            return check(name, value)
        except ValueError as error:
            first = first or error
    assert first is not None
    raise first from None


def numbers(name: str, value: Any) -> jax.Array:
    """An array of numbers, samples on axis 0, of whatever holds them; a `ValueError` that says `name` if it is none."""
    return _array(Float[jax.Array, "n ..."], name, value)


def _array(annotation: Any, name: str, value: Any) -> Any:
    dims = annotation.dim_str.split()
    kinds = [str(kind) for kind in annotation.dtypes] if isinstance(annotation.dtypes, list | tuple) else ["any"]
    integers, booleans = all("int" in kind for kind in kinds), all("bool" in kind for kind in kinds)
    word = "integers" if integers else "booleans" if booleans else "numbers"
    shape = f"[{', '.join(dims)}]".replace("*", "...") if dims else "one number"
    expected = (
        f"{name}: expected {word} {shape}" if dims else f"{name}: expected {'one integer' if integers else shape}"
    )
    if value is None or isinstance(value, str | bytes):
        raise ValueError(f"{expected}, got {_told(value)}")
    if hasattr(value, "toarray"):
        raise ValueError(f"{expected} in a dense array, got a sparse one: give {name}.toarray()")
    array = value
    if hasattr(value, "to_numpy"):
        array = _of_table(expected, value)
    if not (hasattr(array, "dtype") and hasattr(array, "shape")):
        if isinstance(array, list | tuple) and any(np.ndim(entry) > 1 for entry in array if hasattr(entry, "dtype")):
            raise ValueError(f"{expected}, got {_told(value)} arrays")
        try:
            array = np.asarray(array)
        except ValueError as error:
            raise ValueError(f"{expected}, got {_told(value)} ({error})") from None
    if isinstance(array, np.ma.MaskedArray):
        if missing := int(np.ma.getmaskarray(array).sum()):
            raise ValueError(f"{expected}, got a masked array with {missing} missing: give {name}.filled(...)")
        array = array.data
    kind = array.dtype
    if isinstance(kind, np.dtype) and not kind.isnative:  # as files of other machines have it
        array = np.asarray(array).astype(kind.newbyteorder("="))
        kind = array.dtype
    if isinstance(kind, np.dtype) and kind.kind == "f" and kind.itemsize > 8:  # wider than any of JAX
        array = np.asarray(array).astype(np.float64)
        kind = array.dtype
    if not (jnp.issubdtype(kind, jnp.number) or kind.name == "bool") or jnp.dtype(kind).kind in "mM":
        raise ValueError(f"{expected}, got {_told(value)} of {kind}")
    if all("float" in name for name in kinds) and jnp.issubdtype(kind, jnp.complexfloating):
        raise ValueError(f"{expected}, got complex ones: give their real parts")
    if isinstance(array, jax.ShapeDtypeStruct):
        raise ValueError(f"{expected}, got a shape without values: jax.eval_shape(function, ...) takes it")
    if (integers and not jnp.issubdtype(kind, jnp.integer)) or (booleans and kind.name != "bool"):
        raise ValueError(f"{expected}, got {kind} {list(array.shape)}")
    fixed = [d for d in dims if not (d.startswith(("*", "...")) or d == "...")]
    rank = len(array.shape)
    if rank < len(fixed) or (len(fixed) == len(dims) and rank != len(fixed)):
        raise ValueError(f"{expected}, got shape {tuple(array.shape)}")
    if isinstance(array, jax.Array):
        return array
    if not hasattr(array, "__array__"):
        raise ValueError(f"{expected} in memory, got a {type(value).__name__} of shape {tuple(array.shape)}")
    with jax.ensure_compile_time_eval():  # what is known stays known while something else is traced
        taken = jnp.asarray(array)
    if integers and taken.dtype != kind and not np.array_equal(np.asarray(taken), array):
        raise ValueError(f"{expected} that fit into {taken.dtype}, got {array.min()} to {array.max()}")
    return taken


def _of_table(expected: str, value: Any) -> Any:
    """The numbers of a table; of one with nullable columns, whose missing ones are refused, too."""
    array = value.to_numpy()
    if not (isinstance(array, np.ndarray) and array.dtype.kind == "O" and hasattr(value, "isna")):
        return array
    if missing := int(np.asarray(value.isna()).sum()):
        raise ValueError(f"{expected}, got {_told(value)} with {missing} missing")
    try:
        return value.to_numpy(dtype=float) if all(map(_numeric, np.asarray(array).ravel())) else array
    except (TypeError, ValueError):
        return array


def _numeric(entry: Any) -> bool:
    return isinstance(entry, int | float | np.number) and not isinstance(entry, bool)


def _key(annotation: Any, name: str, value: Any) -> Any:
    dims = annotation.dim_str.split()
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        raise ValueError(f"{name}: expected a typed key, got the number {value}: give jax.random.key({value})")
    kind: Any = getattr(value, "dtype", None)
    if not isinstance(value, jax.Array) or not jnp.issubdtype(kind, jax.dtypes.prng_key):
        raw = isinstance(value, jax.Array | np.ndarray) and str(kind) == "uint32"
        hint = f": give jax.random.wrap_key_data({name})" if raw else " (jax.random.key(0) makes one)"
        raise ValueError(f"{name}: expected a typed key, got {_told(value)}{hint}")
    if len(shape := np.shape(value)) != len(dims):
        hint = "" if dims else " (one of them, or jax.random.split for several)"
        expected = f"keys [{', '.join(dims)}]" if dims else "one key"
        raise ValueError(f"{name}: expected {expected}, got shape {shape}{hint}")
    return value


def _number(kind: type, name: str, value: Any) -> Any:
    if isinstance(value, Tracer):
        if kind is float:
            return value
        raise ValueError(f"{name}: expected a number known at trace time (it is static), got a traced value")
    if kind is bool:
        if not isinstance(value, bool | np.bool_):
            raise ValueError(f"{name}: expected True or False, got {_told(value)}")
        return bool(value)
    wanted = "an integer" if kind is int else "a number"
    fits = isinstance(value, int | np.integer) or (kind is float and isinstance(value, float | np.floating))
    if kind is float and hasattr(value, "dtype") and not np.shape(value):
        kind_of = value.dtype if isinstance(value, jax.Array) else np.asarray(value).dtype  # keys have no NumPy array
        fits = jnp.issubdtype(kind_of, jnp.number)
    if not fits or isinstance(value, bool):
        raise ValueError(f"{name}: expected {wanted}, got {_told(value)}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"{name}: expected {wanted} of at most 64 bits, got {value}")
    return float(value) if kind is float and isinstance(value, int) and abs(value) >= 2**31 else value


def _callable(name: str, value: Any) -> Any:
    if not callable(value):
        hint = f": give psa_jax.{value} itself" if isinstance(value, str) and value.isidentifier() else ""
        raise ValueError(f"{name}: expected a function, got {_told(value)}{hint}")
    return value


def _one_of(choices: tuple, name: str, value: Any) -> Any:
    if not isinstance(value, str | int) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {_told(value)}")
    return value


def _protocol(members: list[str], annotation: Any, name: str, value: Any) -> Any:
    if not members and "__call__" in vars(annotation):
        return _callable(name, value)
    if missing := [member for member in members if not hasattr(value, member)]:
        raise ValueError(f"{name}: expected an object with {members}, got {_told(value)} without {missing[0]}")
    return value


def _several(checks: list[Check | None], same: bool, name: str, value: Any) -> Any:
    if isinstance(value, str | bytes | dict | set) or hasattr(value, "iloc") or not hasattr(value, "__iter__"):
        raise ValueError(f"{name}: expected several, in a list or tuple, got {_told(value)}")
    if hasattr(value, "shape") and len(value.shape) != 1:
        raise ValueError(f"{name}: expected several in a row, got shape {tuple(value.shape)}")
    if not isinstance(value, list | tuple | np.ndarray | jax.Array):
        value = list(value)  # an index, a range, a generator
    if not same and checks and len(value) != len(checks):
        raise ValueError(f"{name}: expected {len(checks)} entries, got {len(value)}")
    for place, entry in enumerate(value):
        check = checks[0 if same else place] if checks else None
        if check is not None:
            check(f"{name}[{place}]", entry)
    return value


def _instance(kind: type, name: str, value: Any) -> Any:
    if not isinstance(value, kind):
        wanted = f"psa_jax.{kind.__name__}" if kind.__module__.startswith("psa_jax") else kind.__name__
        raise ValueError(f"{name}: expected {wanted}, got {_told(value)}")
    return value


def _told(value: Any) -> str:
    """What came, in a few words."""
    if value is None:
        return "None"
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    if isinstance(value, bool | int | float):
        return repr(value)
    if hasattr(value, "iloc"):
        return f"a {type(value).__name__} of shape {tuple(value.shape)}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype} {tuple(value.shape)}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
