"""A coupling over all samples: one block for each treatment."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from psa_jax.arguments import checked
from psa_jax.coupling.coupling import CHUNK_ELEMENTS, Coupling, with_gaps
from psa_jax.coupling.info import Info
from psa_jax.coupling.kernel import kernel_name
from psa_jax.coupling.table import table
from psa_jax.devices import each_device, map_rows, spread_over
from psa_jax.types import Array, Float, Int, KeyArray, PyTree, float_dtype, known, pytree, static


@pytree
class Block:
    """Couplings of the treatments of one bucket, stacked along a leading axis.

    Attributes:
        coupling: a `Coupling` whose leaves are `[blocks, ...]`.
        rows: `[blocks, N]` global rows, `Blocked.shape[0]` for padding.
        cols: `[blocks, M]` global columns, `Blocked.shape[1]` for padding.
        weight: `[blocks]` the share of each treatment in the joint law.
        treatment: `[blocks]` the treatment of each block.
    """

    coupling: Coupling
    rows: Int[Array, "... N"]
    cols: Int[Array, "... M"]
    weight: Float[Array, "..."]
    treatment: Int[Array, "..."]


@pytree
class Blocked:
    """A coupling over all samples, made of one block for each treatment; made by `blockwise`.

    The same methods as `Coupling`, with global rows and columns. A row whose treatment the other modality lacks has
    no partner: zeros from `apply` and `dense`, -1 from `sample`; `unmatched_rows` counts them.

    Attributes:
        blocks: couplings of treatments of similar size, padded together.
        info: per treatment, `[num_treatments]`.
        unmatched_rows: number of rows without a partner.
        unmatched_cols: number of columns without a partner.
        shape: static `(n, m)`.
        mesh: static; the devices that its methods use, None for one.
    """

    blocks: tuple[Block, ...]
    info: Info
    unmatched_rows: Int[Array, ""]
    unmatched_cols: Int[Array, ""]
    shape: tuple[int, int] = static()
    mesh: Mesh | None = static(default=None)

    def __repr__(self) -> str:
        """Three lines: the size, what was matched, what has no partner."""
        lines = [
            f"Blocked coupling of {' x '.join(map(str, self.shape))} by {kernel_name(self.blocks[0].coupling.kernel)}"
        ]
        if known(self.info.converged, *(block.treatment for block in self.blocks)):
            matched = np.concatenate([np.ravel(block.treatment) for block in self.blocks])
            good = int(np.asarray(self.info.converged)[..., matched].sum())
            report = self.info.summary()
            lines.append(f"  {good} of {matched.size} matched treatments converged{', ' if report else ''}{report}")
        if known(self.unmatched_rows, self.unmatched_cols):
            lines.append(f"  without a partner: {self.unmatched_rows} rows, {self.unmatched_cols} columns")
        return "\n".join(lines)

    @property
    def T(self) -> "Blocked":
        """The same joint law with rows and columns exchanged; nothing is computed."""
        blocks = tuple(Block(b.coupling.T, b.cols, b.rows, b.weight, b.treatment) for b in self.blocks)
        n, m = self.shape
        return Blocked(blocks, self.info, self.unmatched_cols, self.unmatched_rows, (m, n), self.mesh)

    @checked
    @functools.partial(jax.jit, static_argnames="chunk")
    def apply(self, y: Float[Array, "m ..."], *, chunk: int | None = None) -> Float[Array, "n ..."]:
        """The barycentric projection `E[y_j | i]` `[n, ...]`; zeros for rows without a partner."""
        if y.ndim < 1 or y.shape[0] != self.shape[1]:
            raise ValueError(f"y: expected {self.shape[1]} values, one for each column, got shape {y.shape}")
        dtype = float_dtype(y, self.blocks[0].weight)

        def project(y: Array, gaps: bool) -> Array:
            padded = _append(y, 0)

            def one(padded: Array, block: Block, chunk: int | None) -> Array:
                return block.coupling.project(padded[block.cols], gaps, chunk)

            return self._scatter(one, padded, jnp.zeros((self.shape[0], *y.shape[1:]), dtype), chunk)

        return with_gaps(project, y)

    @functools.partial(jax.jit, static_argnames="chunk")
    def sample(self, key: KeyArray, *, chunk: int | None = None) -> Int[Array, " n"]:
        """Draws a column for each row from `P(. | i)`; `[n]`, -1 for rows without a partner."""

        def draw(key: KeyArray, block: Block, chunk: int | None) -> Array:
            column = block.coupling.sample(key, ids=block.rows, chunk=chunk)
            return jnp.where(column >= 0, block.cols[column], -1)

        return self._scatter(draw, key, jnp.full(self.shape[0], -1, jnp.int32), chunk)

    @functools.partial(jax.jit, static_argnames="chunk")
    def log_prob(self, j: Int[Array, " n"], *, chunk: int | None = None) -> Float[Array, " n"]:
        """`log P(j_i | i)` for one column per row; `-inf` if it is negative, of another treatment or without mass."""
        if j.shape != (self.shape[0],):
            raise ValueError(f"j: expected shape ({self.shape[0]},), one column per row, got {j.shape}")
        wanted = _append(jnp.where((j >= 0) & (j < self.shape[1]), j, -1), -1)

        def evaluate(wanted: Array, block: Block, chunk: int | None) -> Array:
            place = jnp.full(self.shape[1] + 1, -1).at[block.cols].set(jnp.arange(block.cols.shape[0]))
            place = place.at[-1].set(-1)
            return block.coupling.log_prob(place[wanted[block.rows]], chunk=chunk)

        dtype = self._dtype()
        return self._scatter(evaluate, wanted, jnp.full(self.shape[0], -jnp.inf, dtype), chunk)

    @functools.partial(jax.jit, static_argnames=("k", "chunk"))
    def top_k(self, k: int, *, chunk: int | None = None) -> tuple[Float[Array, "n k"], Int[Array, "n k"]]:
        """Probabilities and columns `[n, k]` of the `k` (static) most probable columns, 0 and -1 past the last."""
        if not 1 <= k <= self.shape[1]:
            raise ValueError(f"k: expected 1 to {self.shape[1]}, the number of columns, got {k}")

        def best(_: tuple[()], block: Block, chunk: int | None) -> tuple[Array, Array]:
            p, column = block.coupling.top_k(min(k, block.cols.shape[0]), chunk=chunk)
            column = jnp.where(column >= 0, block.cols[column], -1)
            fill = ((0, 0), (0, k - p.shape[1]))
            return jnp.pad(p, fill), jnp.pad(column, fill, constant_values=-1)

        n = self.shape[0]
        empty = jnp.zeros((n, k), self._dtype()), jnp.full((n, k), -1, jnp.int32)
        return self._scatter(best, (), empty, chunk)

    def to_sparse(self, k: int) -> Any:
        """The `k` most probable columns of each row as a `scipy.sparse.csr_array` `[n, m]` of `P(j | i)`. Host only.

        Rows sum to less than one by what is left out; those without a partner are empty.
        """
        return table(self, k)

    @jax.jit
    def dense(self) -> Float[Array, "n m"]:
        """The joint mass `[n, m]`: each treatment's block sums to one, times its share of the matched rows."""
        out = jnp.zeros(self.shape, self._dtype())
        for block in self.blocks:
            mass = jax.vmap(lambda coupling: coupling.dense())(block.coupling)
            mass *= _share(block.weight, mass.sum((1, 2)))[:, None, None]
            out = out.at[block.rows[:, :, None], block.cols[:, None, :]].set(mass.astype(out.dtype), mode="drop")
        return out

    @functools.partial(jax.jit, static_argnames="chunk")
    def row_marginal(self, *, chunk: int | None = None) -> Float[Array, " n"]:
        """The joint mass of each row `[n]`, zero for rows without a partner."""

        def marginal(_: tuple[()], block: Block, chunk: int | None) -> Array:
            mass = block.coupling.row_marginal(chunk=chunk)
            return mass * _share(block.weight, mass.sum())

        return self._scatter(marginal, (), jnp.zeros(self.shape[0], self._dtype()), chunk)

    def col_marginal(self, *, chunk: int | None = None) -> Float[Array, " m"]:
        """The joint mass of each column `[m]`, zero for columns without a partner."""
        return self.T.row_marginal(chunk=chunk)

    def _dtype(self) -> Any:
        return self.blocks[0].weight.dtype

    def _scatter(self, fn: Callable, shared: PyTree, empty: PyTree, chunk: int | None) -> PyTree:
        """Runs `fn(shared, block, chunk)` on every treatment and puts its rows where they belong; `empty` elsewhere."""
        out = empty
        for block in self.blocks:
            width, cols = block.rows.shape[1], block.cols.shape[1]
            held = max(1, CHUNK_ELEMENTS // cols) if chunk is None else chunk
            values = self._each(functools.partial(fn, chunk=min(held, width)), shared, block, max(1, held // width))
            out = jax.tree.map(lambda o, v, ids=block.rows: o.at[ids].set(v.astype(o.dtype), mode="drop"), out, values)
        return out

    def _each(self, fn: Callable[[PyTree, Block], PyTree], shared: PyTree, block: Block, most: int) -> PyTree:
        """`fn` of every treatment of a bucket, at most so many at a time, on the devices that have them."""

        def some(shared: PyTree, block: Block) -> PyTree:
            return map_rows(jax.vmap(functools.partial(fn, shared)), block, most)

        if self.mesh is not None and block.treatment.shape[0] % self.mesh.size == 0:
            return each_device(some, self.mesh, shared, block)
        with spread_over(self.mesh):
            return some(shared, block)


def _share(weight: Array, total: Array) -> Array:
    """`weight / total`, zero where there is no mass at all."""
    return jnp.where(total > 0, weight.astype(total.dtype) / jnp.where(total > 0, total, 1), 0)


def _append(y: Array, fill: int) -> Array:
    """`y` with one more row of `fill`, which padding ids point to."""
    return jnp.concatenate([y, jnp.full((1, *y.shape[1:]), fill, y.dtype)])
