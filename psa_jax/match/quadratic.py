"""Solving Gromov-Wasserstein problems of one treatment, around ott-jax's solvers."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from ott.geometry.geometry import Geometry
from ott.problems.linear.linear_problem import LinearProblem
from ott.problems.quadratic.quadratic_problem import QuadraticProblem
from ott.solvers.linear.sinkhorn import Sinkhorn
from ott.solvers.quadratic.gromov_wasserstein_lr import LRGromovWasserstein

from psa_jax.coupling.coupling import Coupling, masked
from psa_jax.coupling.info import Info
from psa_jax.match.cost import all_finite, fill_padding, pairwise
from psa_jax.match.distances import Distances
from psa_jax.match.entropic import Relative, ott_rules
from psa_jax.match.kernels import factored, stored
from psa_jax.types import Array, pytree, solver_dtype

LINEAR_ITERS = 2000


@pytree
class _Problem:
    """Distances within, costs across (None: there are none), all zero at padding, and the weights."""

    dx: Array
    dy: Array
    costs: Array | None
    alpha: Array
    a: Array
    b: Array


@functools.partial(jax.jit, static_argnames=("distances", "cost", "max_iters", "rank"))
def solve(
    features: tuple[Array, Array],
    scores: tuple[Array, Array] | None,
    a: Array,
    b: Array,
    eps: Any,
    alpha: Any,
    tol: Any,
    distances: Distances,
    cost: Any,
    max_iters: int,
    rank: int | None,
) -> Coupling:
    """The coupling of `gromov_wasserstein` and the fused problem, whose arguments are checked there."""
    dtype = solver_dtype(*features)
    cast = functools.partial(jax.tree.map, lambda leaf: jax.lax.stop_gradient(jnp.asarray(leaf, dtype)))
    (x, y), scores, a, b, eps, alpha, tol = cast((features, scores, a, b, eps, alpha, tol))
    (dx, far_a), (dy, far_b) = _within(distances, x, a), _within(distances, y, b)
    pairs = (a > 0)[:, None] & (b > 0)[None]
    costs = (
        None
        if scores is None
        else jnp.where(pairs, pairwise(cost, fill_padding(scores[0], a), fill_padding(scores[1], b)), 0)
    )
    problem = _Problem(dx, dy, costs, alpha, a, b)
    eps = eps.scale * _spread(problem) if isinstance(eps, Relative) else eps
    with ott_rules():
        if rank is None:
            left, num_iters, stopped = _full_rank(problem, eps, tol, max_iters)
            right, kernel = jnp.arange(b.shape[0], dtype=jnp.int32), stored
            args: Any = ()
        else:
            left, right, args, num_iters, stopped = _low_rank(problem, eps, tol, 10 * max_iters, rank)
            kernel = factored
    plan = jnp.where(pairs, jnp.exp(kernel(left, right, args)), 0)
    error = jnp.maximum(jnp.abs(plan.sum(1) - a).sum(), jnp.abs(plan.sum(0) - b).sum())
    details = {
        "eps": eps,
        "gw_cost": _gw_cost(problem, plan),
        "linear_cost": jnp.zeros_like(eps) if costs is None else (plan * costs).sum(),
        "unreachable_a": far_a,
        "unreachable_b": far_b,
    }
    finite = all_finite(x, a > 0) & all_finite(y, b > 0) & jnp.isfinite(details["gw_cost"] + details["linear_cost"])
    info = Info(stopped & finite & (error <= tol) & (eps >= 0), num_iters, error, details)
    return masked(Coupling(left=left, right=right, args=args, kernel=kernel, info=info), a, b)


def _full_rank(p: _Problem, eps: Array, tol: Array, max_iters: int) -> tuple[Array, Array, Array]:
    """The log plan, the linearisations it took, and whether the last moved the plan by less than `tol` (L1).

    The loop is ours around ott-jax's Sinkhorn: ott-jax's stops when the value of the linearisation hardly changes,
    which happens on plateaus, far from a local optimum. Costs are in units of eps, so that ott-jax's is 1.
    """

    a, b = _never_zero(p.a), _never_zero(p.b)
    squares = (p.dx**2 @ a)[:, None] + (p.dy**2 @ b)[None]
    across = 0 if p.costs is None else (1 - p.alpha) * p.costs
    threshold: Any = 0.25 * tol
    linear = Sinkhorn(threshold=threshold, max_iterations=LINEAR_ITERS, inner_iterations=10)

    def step(state: tuple[Array, ...]) -> tuple[Array, ...]:
        log_plan, f, g, _, num_iters = state
        plan = jnp.exp(log_plan)
        gradient = 2 * (squares - 2 * _product(_product(p.dx, plan), p.dy))
        geometry = Geometry(cost_matrix=(p.alpha * gradient + across) / eps, epsilon=1.0)
        out = linear(LinearProblem(geometry, a, b), init=(f, g))
        moved = out.f[:, None] + out.g[None] - geometry.cost_matrix
        return moved, out.f, out.g, jnp.abs(jnp.exp(moved) - plan).sum(), num_iters + 1

    def go_on(state: tuple[Array, ...]) -> Array:
        return (state[3] > tol) & (state[4] < max_iters)

    start = jnp.log(a)[:, None] + jnp.log(b)[None]
    zeros = jnp.zeros_like(a), jnp.zeros_like(b)
    state = start, *zeros, jnp.asarray(jnp.inf, a.dtype), jnp.asarray(0, jnp.int32)
    log_plan, _, _, change, num_iters = jax.lax.while_loop(go_on, step, state)
    return log_plan, num_iters, change <= tol


def _low_rank(p: _Problem, eps: Array, tol: Array, max_iters: int, rank: int) -> tuple[Array, Array, Array, Array, Any]:
    """The logs of the factors `q`, `r` and `g`. ott-jax's step wants distances of order one: units are divided out."""

    unit = jnp.sqrt(p.dx.max() * p.dy.max())
    unit = jnp.where(unit > 0, unit, 1)
    dx, dy = (Geometry(cost_matrix=d / unit, epsilon=1.0) for d in (p.dx, p.dy))
    a, b = _never_zero(p.a), _never_zero(p.b)
    init = _levels(p.dx, a, rank), _levels(p.dy, b, rank), jnp.full(rank, 1 / rank, a.dtype)
    options: dict[str, Any] = {
        "epsilon": eps / unit**2,
        "threshold": tol,
        "inner_iterations": 10,
        "min_iterations": min(100, max_iters),
        "max_iterations": max_iters,
        "kwargs_dys": {"tolerance": 0.25 * tol},
    }
    out: Any = LRGromovWasserstein(rank, **options)(QuadraticProblem(dx, dy, a=a, b=b), init=init)
    q, r, g = (jnp.log(jnp.maximum(factor, jnp.finfo(a.dtype).tiny)) for factor in (out.q, out.r, out.g))
    return q, r, g, out.n_iters.astype(jnp.int32), out.converged


def _levels(d: Array, weights: Array, rank: int) -> Array:
    """Shares of each sample in `rank` levels of its mean distance from the others, by quantile, `[n, rank]`."""
    mean = jnp.where(weights > weights.max() * 1e-9, d @ weights, jnp.inf)
    below = jnp.where(mean[None] < mean[:, None], weights[None], 0).sum(1)
    quantile = below + 0.5 * jnp.where(mean[None] == mean[:, None], weights[None], 0).sum(1)
    level = (jnp.arange(rank).astype(d.dtype) + 0.5) / rank
    return weights[:, None] * jax.nn.softmax(-rank * jnp.abs(quantile[:, None] - level[None]), axis=1)


def _never_zero(weights: Array) -> Array:
    """Padding gets a weight too small to matter and large enough to keep every number finite."""
    return jnp.where(weights > 0, weights, float(jnp.finfo(weights.dtype).tiny) ** 0.75)


def _gw_cost(p: _Problem, plan: Array) -> Array:
    rows, cols = plan.sum(1), plan.sum(0)
    squares = _product(_product(rows, p.dx**2), rows) + _product(_product(cols, p.dy**2), cols)
    return squares - 2 * (_product(_product(p.dx, plan), p.dy) * plan).sum()


def _product(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y, precision="highest")


def _spread(p: _Problem) -> Array:
    """The standard deviations of costs and of `(D_ik - D'_jl)²` under the product of the weights, weighed by alpha."""
    x1, x2, x3, x4 = (_product(_product(p.a, p.dx**k), p.a) for k in range(1, 5))
    y1, y2, y3, y4 = (_product(_product(p.b, p.dy**k), p.b) for k in range(1, 5))
    mean = x2 - 2 * x1 * y1 + y2
    quadratic = _deviation(x4 - 4 * x3 * y1 + 6 * x2 * y2 - 4 * x1 * y3 + y4 - mean**2)
    linear = 0.0
    if p.costs is not None:
        mean_cost = _product(_product(p.a, p.costs), p.b)
        linear = _deviation(_product(_product(p.a, (p.costs - mean_cost) ** 2), p.b))
    spread = p.alpha * quadratic + (1 - p.alpha) * linear
    return jnp.where(spread == 0, 1, spread)


def _deviation(variance: Array) -> Array:
    return jnp.sqrt(jnp.maximum(variance, 0))


def _within(distances: Distances, x: Array, weights: Array) -> tuple[Array, Array]:
    """Distances `[n, n]`, zero at padding, the largest where there is no path; and the share of pairs without one."""
    n, real = x.shape[0], weights > 0
    d = jax.lax.stop_gradient(distances(fill_padding(x, weights), real))
    if d.shape != (n, n):
        raise ValueError(f"distances: expected a function to shape {(n, n)}, one for each pair, got {d.shape}")
    pairs = real[:, None] & real[None]
    d = jnp.where(pairs, d.astype(weights.dtype), 0)
    far = d == jnp.inf
    d = jnp.where(far, jnp.where(far, 0, d).max(), d)
    return d, far.sum().astype(d.dtype) / jnp.maximum(pairs.sum(), 1).astype(d.dtype)
