"""One lazy joint law over the rows and columns of a treatment, whatever matched them."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from psa_jax.arguments import checked
from psa_jax.coupling.info import Info
from psa_jax.coupling.kernel import Masked, across, kernel_name, sums
from psa_jax.coupling.table import table
from psa_jax.devices import map_rows
from psa_jax.types import (
    Array,
    Bool,
    Float,
    Int,
    KeyArray,
    PyTree,
    float_dtype,
    pytree,
    size,
    static,
    take,
)

CHUNK_ELEMENTS = 2**22


@pytree
class Coupling:
    r"""A joint law over the rows and columns of one treatment, `P(i, j) ∝ exp kernel(left_i, right_j)`.

    Nothing of size `n x m` is stored; every method evaluates the kernel on a chunk of rows and all columns.

    Attributes:
        left: pytree with leaves `[n, ...]`, what the kernel needs of each row. Traced.
        right: pytree with leaves `[m, ...]`, the same of each column. Traced.
        args: pytree of shared numbers. Traced.
        info: the matcher's report. Traced.
        kernel: static; a module-level function `(left [k], right [m], args) -> log mass [k, m]`, `-inf` for no mass.
            A fresh closure or lambda compiles anew each time.
        flipped: static; whether rows and columns have changed places (see `T`).

    All methods are differentiable in the leaves of `left`, `right`, `args` and in `y`. Rows without any mass give
    zeros, `-1` as a sample and `-inf` as log probability. `chunk` (static) is the number of rows whose log masses
    are held at once; by default such that they fill 16 MiB. It never changes a result. Methods are compiled once for
    each kernel and shape.

    Example:
        >>> def inner(left, right, args):
        ...     return args * left @ right.T
        >>> u, v = jnp.eye(2), jnp.eye(2)
        >>> C = Coupling(left=u, right=v, args=10.0, kernel=inner)
        >>> C.apply(jnp.array([1.0, 2.0])).round(2).tolist()
        [1.0, 2.0]
    """

    left: PyTree
    right: PyTree
    kernel: Callable[[Any, Any, Any], Array] = static()
    args: PyTree = ()
    info: Info = dataclasses.field(default_factory=Info.closed_form)
    flipped: bool = static(default=False)

    def __repr__(self) -> str:
        """One line: the size, the kernel, the matcher's report."""
        leaves = jax.tree.leaves((self.left, self.right))
        stacked = getattr(self.info.converged, "shape", ())
        told = f"Coupling of {' x '.join(map(str, self.shape))}" if leaves and not stacked else "Coupling"
        told = f"{' x '.join(map(str, stacked))} stacked couplings" if stacked else told
        report = self.info.summary() if isinstance(self.info, Info) else ""
        return f"{told} by {kernel_name(self.kernel)}{', ' if report else ''}{report}"

    @property
    def shape(self) -> tuple[int, int]:
        """`(n, m)`."""
        n, m = size(self.left), size(self.right)
        return (m, n) if self.flipped else (n, m)

    @property
    def T(self) -> "Coupling":
        """The same joint law with rows and columns exchanged; nothing is computed."""
        return dataclasses.replace(self, flipped=not self.flipped)

    def log_mass(self, i: Int[Array, " k"]) -> Float[Array, "k m"]:
        """Log masses of the rows `i` `[k]`, unnormalised, `[k, m]`: the one place where the kernel is called."""
        if self.flipped and (exchanged := across(self.kernel)) is not None:  # ten times as fast as a transpose
            return exchanged(take(self.right, i), self.left, self.args)
        if self.flipped:
            return self.kernel(self.left, take(self.right, i), self.args).T
        return self.kernel(take(self.left, i), self.right, self.args)

    @checked
    @functools.partial(jax.jit, static_argnames="chunk")
    def apply(self, y: Float[Array, "m ..."], *, chunk: int | None = None) -> Float[Array, "n ..."]:
        """The barycentric projection `E[y_j | i]`.

        Args:
            y: `[m, ...]`, a value for each column. One that is not finite makes NaN of the rows that have mass there,
                and of no other.
            chunk: rows at a time, static.

        Returns:
            `[n, ...]`; zeros for rows without mass.
        """
        if y.ndim < 1 or y.shape[0] != self.shape[1]:
            raise ValueError(f"y: expected {self.shape[1]} values, one for each column, got shape {y.shape}")
        return with_gaps(lambda y, gaps: self.project(y, gaps, chunk), y)

    def project(self, y: Array, gaps: bool, chunk: int | None) -> Array:
        """`apply`, told (static) whether there are values in `y` that are not finite."""
        flat = y.reshape(y.shape[0], math.prod(y.shape[1:]))
        finite = jnp.isfinite(flat)
        sides = (self.right, self.left) if self.flipped else (self.left, self.right)

        def summed(values: Array) -> Any:
            return sums(self.kernel, *sides, self.args, values)

        dtype = float_dtype(*jax.tree.leaves(self.args), flat)
        mass = summed(jnp.ones((flat.shape[0], 1), dtype))
        if mass is not None:
            values = jnp.where(finite, flat, 0).astype(dtype)
            # Sums of shares of what is near the mean neither overflow nor lose digits.
            number = flat.shape[0]
            unit = 2.0 ** number.bit_length()
            centre = jax.lax.stop_gradient((values / unit).sum(0, keepdims=True) * (unit / number))
            shares = jnp.where(finite, values / unit - centre / unit, 0)
            mean = summed(shares) / jnp.where(mass > 0, mass, 1) * unit
            met = summed((~finite).astype(dtype)) > 0 if gaps else False
            found = jnp.where(met, jnp.nan, jnp.where(mass > 0, mean + centre, 0))
            return found.reshape(self.shape[0], *y.shape[1:])

        def average(i: Array) -> Array:
            p, _ = _normalise(self.log_mass(i))
            dtype = float_dtype(p, flat)
            if not gaps:
                return jnp.matmul(p.astype(dtype), flat.astype(dtype), precision="highest")
            mean = jnp.matmul(p.astype(dtype), jnp.where(finite, flat, 0).astype(dtype), precision="highest")
            met = jnp.matmul((p > 0).astype(dtype), (~finite).astype(dtype), precision="highest") > 0.5
            return jnp.where(met, jnp.nan, mean)

        return self._rows(average, chunk).reshape(self.shape[0], *y.shape[1:])

    @functools.partial(jax.jit, static_argnames="chunk")
    def sample(
        self, key: KeyArray, *, ids: Int[Array, " n"] | None = None, chunk: int | None = None
    ) -> Int[Array, " n"]:
        """Draws a column for each row from `P(. | i)`.

        Args:
            key: a typed key; row i draws with `fold_in(key, ids[i])`, so neither chunks nor padding change a draw.
            ids: `[n]` integers that name the rows; `0, 1, ...` by default.
            chunk: rows at a time, static.

        Returns:
            `[n]` columns, -1 for rows without mass. Not differentiable.
        """
        ids = jnp.arange(self.shape[0]) if ids is None else ids

        def draw(row: tuple[Array, Array]) -> Array:
            i, name = row
            p, _ = _normalise(self.log_mass(i))
            uniform = jax.vmap(lambda n: jax.random.uniform(jax.random.fold_in(key, n), dtype=p.dtype))(name)
            total = jnp.cumsum(p, axis=1)
            hit = (total > (uniform * total[:, -1])[:, None]) & (p > 0)
            last = p.shape[1] - 1 - jnp.argmax(p[:, ::-1] > 0, axis=1)
            column = jnp.where(hit.any(1), jnp.argmax(hit, axis=1), last)
            return jnp.where((p > 0).any(1), column, -1).astype(jnp.int32)

        return self._rows(draw, chunk, ids)

    @functools.partial(jax.jit, static_argnames="chunk")
    def log_prob(self, j: Int[Array, " n"], *, chunk: int | None = None) -> Float[Array, " n"]:
        """`log P(j_i | i)` for one column `j_i` per row; `-inf` where `j_i` is negative or the row has no mass."""
        if j.shape != (self.shape[0],):
            raise ValueError(f"j: expected shape ({self.shape[0]},), one column per row, got {j.shape}")

        def evaluate(row: tuple[Array, Array]) -> Array:
            i, j = row
            z = self.log_mass(i)
            _, log_total = _normalise(z)
            picked = jnp.take_along_axis(z, jnp.maximum(j, 0)[:, None], axis=1)[:, 0]
            known = (j >= 0) & (j < self.shape[1]) & (picked != -jnp.inf)
            return jnp.where(known, jnp.where(known, picked, 0) - log_total, -jnp.inf)

        return self._rows(evaluate, chunk, j)

    @functools.partial(jax.jit, static_argnames=("k", "chunk"))
    def top_k(self, k: int, *, chunk: int | None = None) -> tuple[Float[Array, "n k"], Int[Array, "n k"]]:
        """The `k` most probable columns of each row, most probable first.

        Args:
            k: static, at most `m`.
            chunk: rows at a time, static.

        Returns:
            Probabilities `[n, k]` and columns `[n, k]`; 0 and -1 where a row has fewer columns with mass.
        """
        if not 1 <= k <= self.shape[1]:
            raise ValueError(f"k: expected 1 to {self.shape[1]}, the number of columns, got {k}")

        def best(i: Array) -> tuple[Array, Array]:
            p, columns = jax.lax.top_k(_normalise(self.log_mass(i))[0], k)
            return p, jnp.where(p > 0, columns, -1).astype(jnp.int32)

        return self._rows(best, chunk)

    def to_sparse(self, k: int) -> Any:
        """The `k` most probable columns of each row as a `scipy.sparse.csr_array` `[n, m]` of `P(j | i)`. Host only."""
        return table(self, k)

    @jax.jit
    def dense(self) -> Float[Array, "n m"]:
        """The joint mass `[n, m]`, as the kernel has it: the one method that stores so much."""
        return jnp.exp(self.log_mass(jnp.arange(self.shape[0])))

    @functools.partial(jax.jit, static_argnames="chunk")
    def row_marginal(self, *, chunk: int | None = None) -> Float[Array, " n"]:
        """The joint mass of each row `[n]`, as the kernel has it (of interest for unbalanced problems)."""
        return self._rows(lambda i: jnp.exp(self.log_mass(i)).sum(1), chunk)

    def col_marginal(self, *, chunk: int | None = None) -> Float[Array, " m"]:
        """The joint mass of each column `[m]`."""
        return self.T.row_marginal(chunk=chunk)

    def _rows(self, fn: Callable, chunk: int | None, *extra: Array) -> PyTree:
        n, m = self.shape
        ids = jnp.arange(n)
        return map_rows(
            fn, (ids, *extra) if extra else ids, max(1, CHUNK_ELEMENTS // max(m, 1)) if chunk is None else chunk
        )


def with_gaps(project: Callable[..., Array], y: Array) -> Array:
    """`project(y, gaps)`, which takes more care where values are not finite: 0 times NaN is NaN to a matrix product."""
    return jax.lax.cond(
        jnp.isfinite(y).all(), functools.partial(project, gaps=False), functools.partial(project, gaps=True), y
    )


def masked(coupling: Coupling, a: Float[Array, " n"], b: Float[Array, " m"]) -> Coupling:
    """The coupling without the rows and columns of zero weight; a matcher of one's own gets this from `blockwise`."""
    if isinstance(coupling.kernel, Masked):
        return coupling
    a, b = (b, a) if coupling.flipped else (a, b)
    return dataclasses.replace(
        coupling,
        left=(coupling.left, a > 0),
        right=(coupling.right, b > 0),
        kernel=Masked(coupling.kernel),
    )


def without(coupling: Coupling, empty: Bool[Array, ""]) -> Coupling:
    """A masked coupling, without any mass if `empty` is true."""
    (left, real_left), (right, real_right) = coupling.left, coupling.right
    return dataclasses.replace(coupling, left=(left, real_left & ~empty), right=(right, real_right & ~empty))


def log_row_mass(coupling: Coupling) -> Float[Array, " n"]:
    """The log of `row_marginal`, `-inf` for rows without mass."""

    def evaluate(i: Array) -> Array:
        z = coupling.log_mass(i)
        return jnp.where((z != -jnp.inf).any(1), _normalise(z)[1], -jnp.inf)

    return coupling._rows(evaluate, None)


def _normalise(z: Float[Array, "k m"]) -> tuple[Float[Array, "k m"], Float[Array, " k"]]:
    """Conditional probabilities of log masses and the log of each row's total; zeros and 0 where there is no mass."""
    real = z != -jnp.inf
    top = jax.lax.stop_gradient(z.max(axis=1, keepdims=True, initial=-jnp.inf))
    top = jnp.where(top != -jnp.inf, top, 0)
    mass = jnp.where(real, jnp.exp(jnp.where(real, z, 0) - top), 0)
    total = mass.sum(axis=1, keepdims=True)
    total = jnp.where(real.any(axis=1, keepdims=True), total, 1)
    return mass / total, (top + jnp.log(total))[:, 0]
