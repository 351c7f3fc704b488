"""One treatment's transport problem as a geometry for ott-jax: stored or tiled costs, and densities to sweep over.

Everything is relative to the product of the weights: a plan is `P_ij = a_i b_j E_ij` with the density
`E_ij = exp((f_i + g_j - C_ij) / eps)`. Padding has weight zero and density zero.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ott.geometry.geometry import Geometry

from psa_jax.devices import in_each, in_lanes, map_rows, out_of_lanes
from psa_jax.match.cost import pairwise
from psa_jax.match.entropic import log_density
from psa_jax.types import Array, Cost, Float, PyTree, pytree, size


@pytree
class Absorbed:
    """The density at reference potentials, `E_ij = exp((f0_i + g0_j - C_ij) / eps)`: matrix-vector products only.

    Attributes:
        matrix: `[n, m]`, or None: tiles are read, or made, one after the other.
        tile: makes a tile from what `blocks` has of it; None for a matrix.
        blocks: leaves `[lanes, blocks, block, ...]`; None for a matrix.
    """

    matrix: Any
    tile: Any
    blocks: PyTree

    def sweep(
        self, x: Float[Array, " m"], fn: Callable[[Array, PyTree], tuple[Array, PyTree]], rows: PyTree
    ) -> tuple[PyTree, Float[Array, " m"]]:
        """There and back in one pass: `y, out = fn(E x, rows)` row by row, then `(out, E^T y)`.

        Args:
            x: `[m]`.
            fn: `(r [k], rows [k, ...]) -> (y [k], out [k, ...])`, elementwise.
            rows: pytree with leaves `[n, ...]`.
        """
        if self.matrix is not None:
            y, out = fn(_matvec(self.matrix, x), rows)
            return out, _vecmat(y, self.matrix)

        def one(back: Array, block: PyTree) -> tuple[Array, PyTree]:
            own, rest = block
            matrix = self.tile(own)
            y, out = fn(_matvec(matrix, x), rest)
            return back + _vecmat(y, matrix), out

        block = jax.tree.leaves(self.blocks)[0].shape[2]
        blocks = self.blocks, in_lanes(rows, block)
        back, out = in_each(lambda own: jax.lax.scan(one, jnp.zeros_like(x), own), blocks)
        return out_of_lanes(out, size(rows)), back.sum(0)


@jax.tree_util.register_pytree_node_class
class Transport(Geometry):
    """The geometry of one treatment, for ott-jax: costs are stored, or made in tiles from the scores when needed.

    Args:
        u: scores `[n, d]`; not needed if costs are stored.
        v: scores `[m, d]`.
        costs: `[n, m]`, or None for tiles. An infinite cost forbids its pair.
        a: weights `[n]`, zero for padding.
        b: weights `[m]`.
        epsilon: the strength of the regularisation.
        cost: of one pair, for tiles.
        block: rows of a tile.
        kept: whether densities are stored if costs are not; else tiles of them are made in every sweep, too.
    """

    def __init__(
        self,
        u: Any,
        v: Any,
        costs: Any,
        a: Any,
        b: Any,
        epsilon: Any,
        cost: Cost,
        block: int,
        kept: bool = False,
    ) -> None:
        super().__init__(cost_matrix=costs, epsilon=epsilon)
        self.u, self.v, self.a, self.b = u, v, a, b
        self.cost, self.block, self.kept = cost, block, kept

    @property
    def shape(self) -> tuple[int, int]:
        """`(n, m)`."""
        return self.a.shape[0], self.b.shape[0]

    @property
    def dtype(self) -> Any:
        """That of the weights."""
        return self.a.dtype

    @property
    def epsilon(self) -> Any:
        """The strength of the regularisation."""
        return self._epsilon_init

    def marginal_from_potentials(self, f: Array, g: Array, axis: int = 0) -> Array:
        """The plan's column (0) or row (1) marginal; differentiable, tile by tile if costs are not stored."""
        eps = self.epsilon
        rows, columns = (self.u, f, self.a > 0), (self.v, g, self.b > 0)
        if self._cost_matrix is not None:
            density = _exp(log_density(self._cost_matrix, rows[1:], columns[1:], eps))
            return self.a * _matvec(density, self.b) if axis == 1 else self.b * _vecmat(self.a, density)

        def row_sums(chunk: PyTree) -> Array:
            return _matvec(_exp(self._tile(chunk, columns, eps)), self.b)

        def column_sums(chunk: PyTree) -> Array:
            return _vecmat(self.a, _exp(self._tile(rows, chunk, eps)))

        if axis == 1:
            return self.a * map_rows(row_sums, rows, self.block)
        return self.b * map_rows(column_sums, columns, self.block)

    def absorb(self, f: Array, g: Array, eps: Array) -> Absorbed:
        """The density at the given potentials, stored if the costs are or if it is to be kept."""
        rows, columns = (self.u, f, self.a > 0), (self.v, g, self.b > 0)
        if self._cost_matrix is not None:
            matrix = jnp.exp(log_density(self._cost_matrix, rows[1:], columns[1:], eps))
            return Absorbed(matrix, None, None)
        tile, blocks = jax.tree_util.Partial(_density, self, columns, eps), in_lanes(rows, self.block)
        if not self.kept:
            return Absorbed(None, tile, blocks)
        made = in_each(lambda own: _tiles(tile, own), blocks)
        return Absorbed(None, jax.tree_util.Partial(_same), made)

    def log_sweep(self, f: Array, g: Array, eps: Array) -> tuple[Array, Array]:
        """Both potentials updated in the log domain, which is safe whatever they were."""
        columns, log_b = (self.v, g, self.b > 0), _log(self.b)

        def update(carry: tuple[Array, Array], rows: PyTree, costs: Array | None) -> tuple[tuple[Array, Array], Array]:
            u, real, log_a = rows
            zeros = jnp.zeros_like(log_a)
            if costs is None:
                z = self._tile((u, zeros, real), columns, eps)
            else:
                z = log_density(costs, (zeros, real), columns[1:], eps)
            f = -eps * _finite(jax.nn.logsumexp(z + log_b[None], axis=1))
            z = z + (f / eps + log_a)[:, None]
            top, total = carry
            higher = jnp.maximum(top, z.max(0))
            safe = _finite(higher)
            return (higher, total * jnp.exp(top - safe) + jnp.exp(z - safe[None]).sum(0)), f

        start = jnp.full_like(g, -jnp.inf), jnp.zeros_like(g)
        rows = self.u, self.a > 0, _log(self.a)
        if self._cost_matrix is not None:
            (top, total), f = update(start, rows, self._cost_matrix)
        else:
            blocks = in_lanes(rows, self.block)
            (tops, totals), f = in_each(lambda own: jax.lax.scan(lambda c, r: update(c, r, None), start, own), blocks)
            f, top = out_of_lanes(f, self.a.shape[0]), tops.max(0)
            total = (totals * jnp.exp(tops - _finite(top)[None])).sum(0)
        change = _finite(top) + jnp.log(jnp.where(total > 0, total, 1))
        return jnp.where(self.a > 0, f, 0), jnp.where(self.b > 0, g - eps * change, 0)

    def _tile(self, rows: PyTree, columns: PyTree, eps: Array) -> Array:
        (u, *rest), (v, *others) = rows, columns
        return log_density(pairwise(self.cost, u, v), rest, others, eps)

    def tree_flatten(self) -> Any:
        """Arrays, and what is static."""
        arrays = self.u, self.v, self._cost_matrix, self.a, self.b, self._epsilon_init
        return arrays, (self.cost, self.block, self.kept)

    @classmethod
    def tree_unflatten(cls, aux: tuple, children: tuple) -> "Transport":
        """The geometry of such arrays."""
        return cls(*children, *aux)


def _density(geometry: Transport, columns: PyTree, eps: Array, rows: PyTree) -> Array:
    return jnp.exp(geometry._tile(rows, columns, eps))


@jax.custom_jvp
def _tiles(tile: jax.tree_util.Partial, blocks: PyTree) -> Array:
    """All tiles `[blocks, block, m]`, in one buffer: `lax.map` would hold two more, of zeros."""
    form = jax.eval_shape(tile, jax.tree.map(lambda leaf: leaf[0], blocks))
    _, potentials, _ = blocks
    start = jnp.broadcast_to(potentials[0, 0] * 0, (size(blocks), *form.shape))  # constants would be kept, and copied

    def one(i: Array, made: Array) -> Array:
        return jax.lax.dynamic_update_index_in_dim(made, tile(jax.tree.map(lambda leaf: leaf[i], blocks)), i, 0)

    return jax.lax.fori_loop(0, size(blocks), one, start)


@_tiles.defjvp
def _tiles_differential(primals: Any, tangents: Any) -> Any:
    return jax.jvp(lambda tile, blocks: jax.lax.map(tile, blocks), primals, tangents)


def _same(tile: Array) -> Array:
    return tile


def _exp(z: Array) -> Array:
    """The exponential with zero gradient where it is zero for good."""
    real = z != -jnp.inf
    return jnp.where(real, jnp.exp(jnp.where(real, z, 0)), 0)


def _log(weights: Array) -> Array:
    return jnp.where(weights > 0, jnp.log(jnp.where(weights > 0, weights, 1)), -jnp.inf)


def _finite(x: Array) -> Array:
    return jnp.where(x == -jnp.inf, 0, x)


def _matvec(matrix: Array, x: Array) -> Array:
    return jnp.matmul(matrix, x, precision="highest")


def _vecmat(x: Array, matrix: Array) -> Array:
    return jnp.matmul(x, matrix, precision="highest")
