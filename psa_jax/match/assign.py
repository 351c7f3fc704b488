"""Matching within one treatment one to one, and not at all."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psa_jax.arguments import checked
from psa_jax.coupling.coupling import Coupling, masked
from psa_jax.coupling.info import Info
from psa_jax.match.cost import check, euclidean, fill_padding, pairwise
from psa_jax.types import Array, Cost, Float, Int, float_dtype


def assigned(left: tuple[Array, Array], right: Array, args: Any) -> Array:
    """The kernel of an assignment: the row's log mass at its own column."""
    column, log_mass = left
    return jnp.where(column[:, None] == right[None], log_mass[:, None], -jnp.inf)


@checked
def assignment(
    u: Float[Array, "n d"],
    v: Float[Array, "m d"],
    a: Float[Array, " n"],
    b: Float[Array, " m"],
    *,
    cost: Cost = euclidean,
) -> Coupling:
    """Matches one treatment one to one at least total cost, exactly, by scipy's assignment solver on the host.

    Args:
        u: scores `[n, d]`.
        v: scores `[m, d]`.
        a: weights `[n]`: the mass of each row; zero for padding.
        b: weights `[m]`; only zero or not matters.
        cost: module-level function of one pair, `([d], [d]) -> []`. Static.

    Returns:
        A coupling. With sides of different size the surplus rows (or columns) have no partner and no mass;
        `info.details["unassigned"]` counts such rows. `info.converged` is False where a cost is not finite.
        Not differentiable in the scores. Holds one treatment's costs.

    Raises:
        ValueError: ranks and lengths that do not fit.

    Example:
        >>> u = jnp.array([[0.0], [1.0], [5.0]])
        >>> C = assignment(u, u[:2], jnp.full(3, 1 / 3), jnp.full(2, 0.5))
        >>> C.sample(jax.random.key(0)).tolist()
        [0, 1, -1]
    """
    check(u, v, a, b)
    dtype = float_dtype(u, v, a, b)
    u, v, a, b = (x.astype(dtype) for x in (u, v, a, b))
    costs = pairwise(cost, fill_padding(u, a), fill_padding(v, b))
    column = jax.pure_callback(
        _assign,
        jax.ShapeDtypeStruct(a.shape, jnp.int32),
        jax.lax.stop_gradient(costs),
        a > 0,
        b > 0,
        vmap_method="sequential",
    )
    finite = jnp.where((a > 0)[:, None] & (b > 0)[None], jnp.isfinite(costs), True).all()
    info = Info.closed_form(finite, unassigned=((a > 0) & (column < 0)).sum())
    left = column, jnp.log(jnp.where(a > 0, a, 1))
    return masked(Coupling(left=left, right=jnp.arange(v.shape[0], dtype=jnp.int32), kernel=assigned, info=info), a, b)


def product(left: Array, right: Array, args: Any) -> Array:
    """The kernel of independence: the sum of the log weights."""
    return left[:, None] + right[None]


@checked
def independent(a: Float[Array, " n"], b: Float[Array, " m"]) -> Coupling:
    """The coupling that knows nothing within a treatment, `P = a b^T`; its projection is the treatment's mean.

    Args:
        a: weights `[n]`, zero for padding.
        b: weights `[m]`, zero for padding.

    Example:
        >>> independent(jnp.full(2, 0.5), jnp.full(2, 0.5)).apply(jnp.array([1.0, 3.0])).tolist()
        [2.0, 2.0]
    """
    left, right = (jnp.log(jnp.where(w > 0, w, 1)) for w in (a, b))
    return masked(Coupling(left=left, right=right, kernel=product), a, b)


@checked
def class_mean(u: Any, v: Any, a: Float[Array, " n"], b: Float[Array, " m"]) -> Coupling:
    """`independent` as a matcher that disregards the scores: the baseline that any alignment has to beat."""
    return independent(a, b)


@checked
def known_pairs(pair: Int[Array, " n"], num_cols: int) -> Coupling:
    """The coupling of someone who knows the truth, over all samples: row i with column `pair[i]`, -1 for none.

    Example:
        >>> known_pairs(jnp.array([1, -1]), 2).apply(jnp.array([5.0, 7.0])).tolist()
        [7.0, 0.0]
    """
    left = pair.astype(jnp.int32), jnp.full(pair.shape, -jnp.log(pair.shape[0]), jnp.float32)
    return Coupling(left=left, right=jnp.arange(num_cols, dtype=jnp.int32), kernel=assigned)


def _assign(costs: Any, real_a: Any, real_b: Any) -> np.ndarray:
    from scipy.optimize import linear_sum_assignment

    rows, cols = np.flatnonzero(real_a), np.flatnonzero(real_b)
    costs = np.asarray(costs, np.float64)[np.ix_(rows, cols)]
    column = np.full(len(np.asarray(real_a)), -1, np.int32)
    if np.isfinite(costs).all():
        chosen_rows, chosen_cols = linear_sum_assignment(costs)
        column[rows[chosen_rows]] = cols[chosen_cols]
    return column
