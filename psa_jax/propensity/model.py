"""A classifier as two functions, with adapters for flax; any other function pair works as well."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from psa_jax.arguments import checked
from psa_jax.data.source import Source, map_samples
from psa_jax.types import Array, KeyArray, PyTree, brief

CHUNK = 1024


@runtime_checkable
class Apply(Protocol):
    """Evaluates a network: `(params, x, *, train, key) -> (logits [n, K], params)`."""

    def __call__(self, params: Any, x: Any, /, *, train: bool, key: Any) -> tuple[Any, Any]:
        """Logits and params."""
        ...


def inexact(params: PyTree) -> PyTree:
    """Marks every floating point leaf: the default of what is trained."""
    return jax.tree.map(lambda leaf: bool(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)), params)


@dataclasses.dataclass(frozen=True)
class Model:
    """A classifier (or regressor): a pair of pure functions; equal if its functions are equal.

    Static under `jit`. Make it of module-level functions or hashable callables: a model made of fresh
    closures compiles anew each time.

    Attributes:
        init: `(key, x) -> params`. Training passes ALL training samples `[n, ...]` as `x`, so that constants
            of the data (means, scales) may be computed there. Of a `psa.source` it gets 1024 samples, evenly spread,
            unless `init.takes_source` is true as for the models made here: then the source.
        apply: `(params, x, *, train, key) -> (logits [n, K], params)`. `train` is a Python bool, `key` may be
            None when `train` is False. The returned params carry running statistics; leaves that are trained
            are ignored there.
        trainable: `params -> tree of Python bools` of the same structure: what the optimiser may touch. All
            other leaves are only ever changed by what `apply(train=True)` returns. By default every floating
            point leaf is trained, so a pair with running statistics must say which leaves those are.

    Example:
        >>> def init(key, x):
        ...     return {"w": jnp.zeros((x.shape[1], 2))}
        >>> def apply(params, x, *, train, key):
        ...     return x @ params["w"], params
        >>> model = Model(init, apply)
        >>> params = model.init(jax.random.key(0), jnp.ones((3, 4)))
        >>> model.apply(params, jnp.ones((5, 4)), train=False, key=None)[0].shape
        (5, 2)
    """

    init: Callable[[Any, Any], Any]
    apply: Apply
    trainable: Callable[[Any], Any] = inexact

    def __repr__(self) -> str:
        """One line."""
        inner = getattr(self.init, "module", None) or getattr(self.init, "make", None) or self.init
        return f"Model({brief(inner)})"


def logits(model: Model, params: PyTree, x: Array | Source, chunk: int = CHUNK) -> Array:
    """Logits `[n, K]` in evaluation mode, at most `chunk` (static) samples at a time."""
    return map_samples(lambda x: model.apply(params, x, train=False, key=None)[0], x, chunk)


def member_logits(model: Model, params: PyTree, rows: Array) -> Array:
    """Logits `[members, k, K]` of a few samples `[k, ...]` by several classifiers, `params` having a leading axis."""
    return jax.lax.map(lambda one: model.apply(one, rows, train=False, key=None)[0], params)


def initial(model: Model, key: KeyArray, x: Array | Source) -> PyTree:
    """Initial parameters of a model that is to be trained on these samples."""
    if isinstance(x, Source) and not getattr(model.init, "takes_source", False):
        n = x.shape[0]
        x = x[:] if n <= CHUNK else x[jnp.linspace(0, n - 1, CHUNK).astype(jnp.int32)]
    return model.init(key, x)


@checked
def from_linen(module: nn.Module) -> Model:
    """A model of a flax linen module. Equal modules make equal models, which share one compilation.

    Args:
        module: called as `module(x, train=...)`, returns logits `[n, K]`; random numbers of the stream
            "dropout".

    Returns:
        A model whose params are the whole dict of variables. The collection "params" is trained; every other
        one ("batch_stats", "constants", ...) is carried, and is mutable while training.

    Example:
        >>> class Net(nn.Module):
        ...     @nn.compact
        ...     def __call__(self, x, *, train: bool):
        ...         return nn.Dense(3)(x)
        >>> from_linen(Net()) == from_linen(Net())
        True
    """
    return Model(_LinenInit(module), _LinenApply(module), _params_collection)


@checked
def from_nnx(make: Callable[[nnx.Rngs], nnx.Module]) -> Model:
    """A model of a flax nnx module.

    Variables of type `nnx.Param` are trained; the rest (running statistics) is carried. Dropout is seeded
    anew from `key` at every call; states of random number generators are not part of the params.

    Args:
        make: `nnx.Rngs -> nnx.Module`, a module-level function or hashable callable. The module is called as
            `module(x)`, returns logits `[n, K]`, and is put in mode by its `train()` and `eval()`.

    Returns:
        A model with params `{"params": ..., "state": ...}` of plain nested dicts.

    Example:
        >>> def make(rngs):
        ...     return nnx.Linear(4, 3, rngs=rngs)
        >>> sorted(from_nnx(make).init(jax.random.key(0), jnp.ones((2, 4)))["params"])
        ['bias', 'kernel']
    """
    return Model(_NnxInit(make), _NnxApply(make), _params_collection)


@dataclasses.dataclass(frozen=True)
class _LinenInit:
    module: nn.Module

    @property
    def takes_source(self) -> bool:
        return getattr(self.module, "takes_source", False)

    def __call__(self, key: KeyArray, x: Array) -> PyTree:
        key_params, key_dropout = jax.random.split(key)
        return self.module.init({"params": key_params, "dropout": key_dropout}, x, train=False)


@dataclasses.dataclass(frozen=True)
class _LinenApply:
    module: nn.Module

    def __call__(self, params: PyTree, x: Array, *, train: bool, key: KeyArray | None) -> tuple[Array, PyTree]:
        rngs = {} if key is None else {"dropout": key}
        if not train:
            return self.module.apply(params, x, train=False, rngs=rngs), params  # pyright: ignore[reportReturnType]
        mutable = [name for name in params if name != "params"]
        logits, state = self.module.apply(params, x, train=True, rngs=rngs, mutable=mutable)
        return logits, {**params, **state}


@dataclasses.dataclass(frozen=True)
class _NnxInit:
    make: Callable[[nnx.Rngs], nnx.Module]
    takes_source: ClassVar[bool] = True  # it looks at no sample

    def __call__(self, key: KeyArray, x: Array) -> PyTree:
        return _nnx_params(self.make(nnx.Rngs(key)))


@dataclasses.dataclass(frozen=True)
class _NnxApply:
    make: Callable[[nnx.Rngs], nnx.Module]

    def __call__(self, params: PyTree, x: Array, *, train: bool, key: KeyArray | None) -> tuple[Array, PyTree]:
        # A module built anew gives the structure and generators seeded from `key`; its initial values are
        # replaced at once, so under `jit` nothing of them is left. Evaluation draws no random number.
        module = self.make(nnx.Rngs(jax.random.key(0) if key is None else key))
        for part, old in zip(_nnx_parts(module), (params["params"], params["state"]), strict=True):
            nnx.replace_by_pure_dict(part, old)
            nnx.update(module, part)
        module.train() if train else module.eval()
        logits = module(x)  # pyright: ignore[reportCallIssue]
        return logits, _nnx_params(module) if train else params


def _nnx_parts(module: nnx.Module) -> tuple[Any, Any]:
    _, params, _, state = nnx.split(module, nnx.Param, nnx.RngState, ...)
    return params, state


def _nnx_params(module: nnx.Module) -> PyTree:
    params, state = _nnx_parts(module)
    return {"params": nnx.to_pure_dict(params), "state": nnx.to_pure_dict(state)}


def _params_collection(params: PyTree) -> PyTree:
    return {name: jax.tree.map(lambda _, name=name: name == "params", tree) for name, tree in params.items()}
