"""Distances within one modality, for matching by them: plain ones, and along a graph of neighbours."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from psa_jax.arguments import checked
from psa_jax.match.cost import euclidean, pairwise
from psa_jax.match.neighbours import check_k
from psa_jax.types import Array, Bool, Cost, Float

Distances = Callable[[Any, Any], Any]  # of samples [n, ...] and which are real [n], to [n, n]


@checked
def plain_distances(x: Float[Array, "n p"], real: Bool[Array, " n"]) -> Float[Array, "n n"]:
    """Euclidean distances within one modality, divided by the largest between real samples.

    Example:
        >>> plain_distances(jnp.array([[0.0], [1.0], [4.0]]), jnp.ones(3, bool))[0].round(2).tolist()
        [0.0, 0.25, 1.0]
    """
    _check_real(x, real)
    return _normalised(pairwise(euclidean, x, x), real)


@checked
def geodesics(
    x: Float[Array, "n p"], real: Bool[Array, " n"], *, k: int = 10, hops: bool = True, cost: Cost = euclidean
) -> Float[Array, "n n"]:
    """Shortest paths along the graph of the `k` nearest neighbours, divided by the longest: the distances of SCOT.

    Two samples are joined if either is among the `k` nearest of the other, itself not counted. Found on the host.

    Args:
        x: samples `[n, p]`.
        real: `[n]`, False for padding, which is on no path.
        k: neighbours of each sample; all others if there are fewer. Static.
        hops: whether the length of a path is the number of its edges (as in SCOT), or the sum of their costs. Static.
        cost: module-level function of one pair. Static. SCOT's is the correlation distance: `cosine` of samples from
            each of which its mean over the features was taken. SCOT counts the sample itself: its k is one more.

    Returns:
        `[n, n]`, `inf` between parts of the graph that no path joins: the matchers take these pairs to be as far apart
        as the farthest that are joined, and report them. Not differentiable.

    Raises:
        ValueError: `k` below 1 or not static, `real` of another length than `x`.

    Example:
        >>> geodesics(jnp.arange(5.0)[:, None] ** 1.1, jnp.ones(5, bool), k=1)[0].tolist()
        [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    check_k(k)
    _check_real(x, real)
    costs = jax.lax.stop_gradient(pairwise(cost, x, x))
    # Single precision always: JAX runs callbacks in threads of its own, where `jax.enable_x64` may not hold.
    out = jax.ShapeDtypeStruct(costs.shape, jnp.float32)
    lengths = jax.pure_callback(functools.partial(_paths, k=k, hops=hops), out, costs, real, vmap_method="sequential")
    return _normalised(lengths.astype(costs.dtype), real)


def _check_real(x: Array, real: Array) -> None:
    if not x.shape[0]:
        raise ValueError("x: expected at least one sample, got none")
    if real.shape != x.shape[:1]:
        raise ValueError(f"real: expected shape ({x.shape[0]},), one for each sample of x, got {real.shape}")


def _normalised(d: Array, real: Array) -> Array:
    """Divided by the largest finite distance between real samples; the diagonal is zero."""
    d = jnp.where(jnp.eye(d.shape[0], dtype=bool) & ~jnp.isnan(d), 0, d)
    top = jnp.where(real[:, None] & real[None] & (d != jnp.inf), d, 0).max()
    return d / jnp.where(top == 0, 1, top)


def _paths(costs: Any, real: Any, *, k: int, hops: bool) -> np.ndarray:
    """Shortest paths on the host; ties go to the lower id, costs that are not finite are no edges."""
    ids, costs = np.flatnonzero(real), np.asarray(costs)
    near = costs[np.ix_(ids, ids)].astype(np.float64)
    np.fill_diagonal(near, np.inf)
    columns = np.argsort(near, axis=1, kind="stable")[:, : min(k, max(len(ids) - 1, 0))]
    rows = np.repeat(np.arange(len(ids)), columns.shape[1])
    lengths = near[rows, columns.ravel()]
    edge = np.isfinite(lengths)
    lengths = np.ones(edge.sum()) if hops else np.maximum(lengths[edge], 0)
    graph = csr_array((lengths, (rows[edge], columns.ravel()[edge])), shape=near.shape)
    out = np.zeros(costs.shape, np.float32)
    if len(ids):
        out[np.ix_(ids, ids)] = dijkstra(graph, directed=False)
    return out
