"""Lifting a matcher of one treatment over all treatments."""

import dataclasses
import functools
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from psa_jax.arguments import checked
from psa_jax.coupling.blocked import Block, Blocked
from psa_jax.coupling.coupling import Coupling, masked, without
from psa_jax.coupling.info import Info
from psa_jax.data.deal import deal
from psa_jax.data.groups import Bucket, Groups
from psa_jax.devices import check_mesh, each_device, replicated, spread, spread_over
from psa_jax.types import Array, PyTree, float_dtype, take

PAIRS_AT_ONCE = 2**27  # which keep an accelerator busy; each solve waits for the slowest beside it
LAMBDAS = 8


@checked
def blockwise(
    matcher: Callable[..., Any], *, chunk: int | None = None, mesh: Mesh | None = None
) -> Callable[[PyTree, PyTree, Groups], Any]:
    """Lifts a matcher of one treatment over all treatments.

    Args:
        matcher: `(u [n, ...], v [m, ...], a [n], b [m]) -> Coupling` for ONE treatment; `a` and `b` are uniform over
            its samples and sum to one each, padding has weight zero. Settings are bound with `functools.partial`
            (static: another value compiles anew; arrays stay traced) or `jax.tree_util.Partial` (all of them stay
            traced). A module-level function compiles once, a fresh lambda each time. A matcher that returns a tuple of
            couplings gives a tuple of blocked ones.
        chunk: static; how many treatments are solved side by side. By default one after the other on the CPU, where
            lanes would wait for the slowest, and as many of a bucket as hold 2^27 pairs on
            accelerators. It never changes a result.
        mesh: static; the devices to use, all of its axes: of each bucket of treatments as many as the devices divide
            are dealt to them, the few that are left, such as a giant alone in its bucket, are solved by all of them
            together, with the rows spread and one all-reduce of `m` numbers a sweep, beside two scalars. `u` and `v`
            may lie anywhere. The result's methods use the same devices, its blocks are those of
            `data.deal.deal(groups, devices)`; it is the same up to rounding on any mesh.

    Returns:
        `(u [n, d], v [m, d'], groups) -> Blocked`, compiled, and itself open to `jit`, `vmap` and `grad` in `u`, `v`
        and in whatever the matcher has bound as traced: of the first order, also where the matcher alone has
        derivatives of any (JAX forgets their rules within `lax.map`; second ones end in an error). `u` and `v` may be
        pytrees of arrays with the same rows, if the matcher takes such.

    Raises:
        ValueError: scores whose number of rows is not that of the groups, at trace time; a mesh with axes that are not
            of type Auto.

    Example:
        >>> from psa_jax.data.groups import group
        >>> def inner(left, right, args):
        ...     return left @ right.T
        >>> def dot_product(u, v, a, b):
        ...     return Coupling(left=u, right=v, kernel=inner)
        >>> groups = group(jnp.array([0, 0, 1]), jnp.array([1, 0, 1]), 2)
        >>> u = v = jnp.zeros((3, 1))
        >>> blockwise(dot_product)(u, v, groups).apply(jnp.array([1.0, 2.0, 5.0])).tolist()
        [2.0, 2.0, 3.0]
    """
    check_mesh(mesh)
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk: expected at least 1, got {chunk}")
    traced = split_settings(matcher)

    def match(u: PyTree, v: PyTree, groups: Groups) -> Any:
        for name, scores, rows in (("u", u, groups.shape[0]), ("v", v, groups.shape[1])):
            for leaf in jax.tree.leaves(scores):
                if leaf.ndim < 1 or leaf.shape[0] != rows:
                    raise ValueError(f"{name}: expected {rows} rows, as in groups, got shape {leaf.shape}")
        u, v = (jax.tree.map(jnp.asarray, scores) for scores in (u, v))
        return _program(traced)(traced, u, v, groups, chunk, mesh)

    return match


def _program(matcher: jax.tree_util.Partial) -> Callable[..., Any]:
    """What compiles `_matched`: for all functions of modules the same, whose programs stay.

    A lambda in a loop is another function each time, and programs are kept by function: those of functions within
    functions are forgotten after a few others.
    """
    function = matcher.func.function if isinstance(matcher.func, _Bound) else matcher.func
    if isinstance(function, types.FunctionType) and "<" in function.__qualname__:
        return _forgotten(jax.tree.structure(matcher))
    return _match


@functools.lru_cache(maxsize=LAMBDAS)
def _forgotten(structure: Any) -> Callable[..., Any]:
    return jax.jit(functools.partial(_matched), static_argnames=("chunk", "mesh"))


def _matched(
    matcher: Callable[..., Any], u: PyTree, v: PyTree, groups: Groups, chunk: int | None, mesh: Mesh | None
) -> Any:
    n, m = groups.shape
    u, v = jax.tree.map(lambda scores: jnp.concatenate([scores, jnp.zeros_like(scores[:1])]), (u, v))
    dtype = float_dtype(*jax.tree.leaves((u, v)))
    if mesh is not None:
        groups = deal(groups, mesh.size)
        matcher, u, v = replicated((matcher, u, v), mesh)

    def one(shared: tuple[Callable[..., Any], PyTree, PyTree], ids: tuple[Array, Array]) -> Any:
        matcher, u, v = shared
        rows, cols = ids
        real_a, real_b = rows < n, cols < m
        some = real_a.any() & real_b.any()
        # A treatment that one side lacks (there is none in a plan made by `group`) becomes one zero matched with one
        # zero, which any matcher can do, and is then taken out: no matcher needs to know of empty problems.
        a, b = (_uniform(jnp.where(some, real, jnp.arange(real.shape[0]) == 0), dtype) for real in (real_a, real_b))
        own, others = (
            jax.tree.map(lambda leaf: jnp.where(some, leaf, jnp.zeros_like(leaf)), take(scores, ids))
            for scores, ids in ((u, rows), (v, cols))
        )
        own, a = spread((own, a))
        found = matcher(own, others, a, b)

        def real(coupling: Coupling) -> Coupling:
            return without(masked(coupling, a, b), ~some)

        return tuple(real(c) for c in found) if isinstance(found, tuple) else real(found)

    matched, reached = (
        jnp.where(other > 0, sizes, 0).sum()
        for sizes, other in ((groups.sizes_a, groups.sizes_b), (groups.sizes_b, groups.sizes_a))
    )

    def solve(bucket: Bucket) -> Any:
        def some(shared: Any, ids: tuple[Array, Array]) -> Any:
            return jax.lax.map(functools.partial(one, shared), ids, batch_size=_lanes(bucket, chunk))

        shared, ids = (matcher, u, v), (bucket.rows, bucket.cols)
        if mesh is not None and bucket.treatment.shape[0] % mesh.size == 0:
            return each_device(some, mesh, shared, ids)
        with spread_over(mesh):
            return some(shared, ids)

    solved = [solve(bucket) for bucket in groups.buckets]

    def joined(couplings: list[Coupling]) -> Blocked:
        blocks = tuple(
            Block(
                coupling,
                bucket.rows,
                bucket.cols,
                groups.sizes_a[bucket.treatment].astype(dtype) / jnp.maximum(matched, 1).astype(dtype),
                bucket.treatment,
            )
            for bucket, coupling in zip(groups.buckets, couplings, strict=True)
        )
        info = _by_treatment(groups, blocks)
        if mesh is not None:  # what is small is read on every host
            info = replicated(info, mesh)
            blocks = tuple(dataclasses.replace(b, treatment=replicated(b.treatment, mesh)) for b in blocks)
        return Blocked(blocks, info, n - matched, m - reached, groups.shape, mesh)

    if isinstance(solved[0], tuple):
        return tuple(joined(list(couplings)) for couplings in zip(*solved, strict=True))
    return joined(solved)


_match = jax.jit(_matched, static_argnames=("chunk", "mesh"))


def _lanes(bucket: Bucket, chunk: int | None) -> int | None:
    pairs = bucket.rows.shape[1] * bucket.cols.shape[1]
    together = 1 if jax.default_backend() == "cpu" else max(1, PAIRS_AT_ONCE // pairs)
    lanes = chunk or min(together, bucket.treatment.shape[0])
    return None if lanes == 1 else lanes


def _uniform(real: Array, dtype: Any) -> Array:
    return real.astype(dtype) / jnp.maximum(real.sum(), 1).astype(dtype)


def _by_treatment(groups: Groups, blocks: tuple[Block, ...]) -> Info:
    """The blocks' reports as arrays over treatments; not converged, 0 and inf for treatments that were not matched."""
    matched = (groups.sizes_a > 0) & (groups.sizes_b > 0)

    def gather(read: Callable[[Info], Array]) -> Array:
        first = read(blocks[0].coupling.info)
        fill = jnp.inf if jnp.issubdtype(first.dtype, jnp.inexact) else 0  # not NaN: jax_debug_nans stays usable
        out = jnp.full((groups.num_treatments, *first.shape[1:]), fill, first.dtype)
        for bucket, block in zip(groups.buckets, blocks, strict=True):
            out = out.at[bucket.treatment].set(read(block.coupling.info))
        return jnp.where(matched.reshape(-1, *(1,) * (out.ndim - 1)), out, jnp.full_like(out, fill))

    names = blocks[0].coupling.info.details
    return Info(
        gather(lambda info: info.converged),
        gather(lambda info: info.num_iters),
        gather(lambda info: info.marginal_error),
        {name: gather(lambda info, name=name: info.details[name]) for name in names},
    )


@dataclasses.dataclass(frozen=True)
class _Bound:
    """A function with static settings, equal to another with the same function and settings."""

    function: Callable
    args: tuple
    settings: tuple[tuple[str, Any], ...]
    told: str  # True is not 1, nor is 1.0, and -0.0 is not 0.0

    def __call__(self, *args: Any, **traced: Any) -> Any:
        return self.function(*self.args, *args, **dict(self.settings), **traced)


def split_settings(matcher: Callable[..., Coupling]) -> jax.tree_util.Partial:
    """The matcher as a pytree: what must stay static in its type, arrays and other pytrees as leaves."""
    if isinstance(matcher, jax.tree_util.Partial):
        return matcher
    if not isinstance(matcher, functools.partial):
        return jax.tree_util.Partial(matcher)
    settings = {name: value for name, value in matcher.keywords.items() if _is_static(value)}
    traced = {name: value for name, value in matcher.keywords.items() if name not in settings}
    static = tuple(sorted(settings.items()))
    bound = _Bound(matcher.func, matcher.args, static, repr((matcher.args, static)))
    return jax.tree_util.Partial(bound, **traced)


def _is_static(value: Any) -> bool:
    return callable(value) or isinstance(value, bool | int | float | str | tuple | None)
