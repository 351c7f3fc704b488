"""The mirror descent of low-rank transport, on ott-jax's loop."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from ott.geometry.low_rank import LRCGeometry
from ott.problems.linear.linear_problem import LinearProblem
from ott.solvers.linear.sinkhorn_lr import LRSinkhorn

from psa_jax.coupling.coupling import Coupling, masked
from psa_jax.coupling.info import Info
from psa_jax.match.cost import cosine, direction, power_of_two
from psa_jax.match.entropic import ott_rules
from psa_jax.match.kernels import factored
from psa_jax.types import Array, Cost, alike, solver_dtype

CHANGE_PER_TOL = 10.0
PROJECTION_PER_TOL = 3.0
LLOYD_STEPS = 10
SPREAD = 0.1
DEEPEST = -40.0
SMALLEST_INNER_MASS = 1e-8
PROJECTION_STEPS = 1000
FIT_STEPS = 100


@functools.partial(jax.jit, static_argnames=("rank", "max_iters", "cost"))
def descend(
    u: Array, v: Array, a: Array, b: Array, gamma: Any, tol: Any, rank: int, max_iters: int, cost: Cost
) -> Coupling:
    """The coupling of `low_rank_sinkhorn`, whose arguments are checked there."""
    dtype = solver_dtype(u, v)
    u, v, a, b, gamma, tol = alike(*(jax.lax.stop_gradient(jnp.asarray(x, dtype)) for x in (u, v, a, b, gamma, tol)))
    u, v = (x.reshape(x.shape[0], -1) for x in (u, v))
    with ott_rules():
        if cost is cosine:
            u, v = (jnp.where((w > 0)[:, None], direction(x), 0) for x, w in ((u, a), (v, b)))
        else:
            anchor = _mean(u, a)
            u, v = (jnp.where((w > 0)[:, None], x - anchor, 0) for x, w in ((u, a), (v, b)))
            unit = power_of_two(u, v)  # squares of very small or large scores leave the range of the type
            u, v = u / unit, v / unit
        x, y = (jnp.where((w > 0)[:, None], x - _mean(x, w), 0) for x, w in ((u, a), (v, b)))
        solver = _Descent(rank, gamma, threshold=tol, max_iterations=max_iters, lse_mode=False, inner_iterations=1)
        out = solver(LinearProblem(LRCGeometry(-x, y), a, b), _initial(x, y, a, b, rank))
        g = out.g / out.g.sum() * a.sum()
        q, r = (_fit(p, w, g, 0.1 * tol) for p, w in ((out.q, a), (out.r, b)))
        rows, cols = q @ (r.sum(0) / g), r @ (q.sum(0) / g)
        error = jnp.maximum(jnp.abs(rows - a).sum(), jnp.abs(cols - b).sum())
        product = jnp.sum((q.T @ u) * (r.T @ v) / g[:, None])
        squares = rows @ (u * u).sum(1) + cols @ (v * v).sum(1)
        transport = rows.sum() - product if cost is cosine else (squares - 2 * product) * unit * unit
        details = {"transport_cost": transport, "rank": jnp.asarray(rank, jnp.int32)}
        info = Info(out.converged & (error <= tol), jnp.asarray(out.n_iters, jnp.int32), error, details)
        log_q, log_r, log_g = (jnp.log(jnp.maximum(p, float(jnp.finfo(dtype).tiny))) for p in (q, r, g))
    return masked(Coupling(left=log_q, right=log_r, kernel=factored, args=log_g, info=info), a, b)


def _mean(x: Array, weights: Array) -> Array:
    return weights @ jnp.where((weights > 0)[:, None], x, 0) / _positive(weights.sum())


def _initial(x: Array, y: Array, a: Array, b: Array, rank: int) -> tuple[Array, Array, Array]:
    """Factors that assign the samples of both sides softly to common landmarks; the first projection makes them fit."""
    points, real = jnp.concatenate([x, y]), jnp.concatenate([a, b]) > 0

    def farthest(k: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        landmarks, near = state
        new = points[jnp.argmax(jnp.where(real, near, -1))]
        return landmarks.at[k].set(new), jnp.minimum(near, ((points - new) ** 2).sum(1))

    def lloyd(_: Array, landmarks: Array) -> Array:
        mass, total = jnp.zeros_like(x, shape=rank), jnp.zeros_like(landmarks)
        for side, weights in ((x, a), (y, b)):
            own = jnp.argmin(_squares(side, landmarks), axis=1)
            mass = mass.at[own].add(weights)
            total = total.at[own].add(weights[:, None] * side)
        return jnp.where(mass[:, None] > 0, total / _positive(mass)[:, None], landmarks)

    empty = jnp.zeros_like(x, shape=(rank, x.shape[1]))
    landmarks = jax.lax.fori_loop(0, rank, farthest, (empty, (points**2).sum(1)))[0]
    landmarks = jax.lax.fori_loop(0, LLOYD_STEPS, lloyd, landmarks)
    distances = _squares(x, landmarks), _squares(y, landmarks)
    width = _positive(0.5 * (a @ distances[0].min(1) + b @ distances[1].min(1)))
    q, r = (w[:, None] * jax.nn.softmax(-d / width, axis=1) for d, w in zip(distances, (a, b), strict=True))
    g = 0.5 * (q.sum(0) + r.sum(0))
    q, r = ((1 - SPREAD) * p + SPREAD * w[:, None] * g for p, w in ((q, a), (r, b)))
    return q, r, g


def _fit(p: Array, weights: Array, g: Array, tol: Array) -> Array:
    """A factor with marginals `weights` and `g`: scaled to nearly so, the remaining mass spread independently."""
    p = jnp.maximum(p, jnp.exp(DEEPEST) * p.max(1, keepdims=True))

    def scale(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        step, p, _ = state
        p = p * (g / _positive(p.sum(0)))
        rows = p.sum(1)
        return step + 1, p * (weights / _positive(rows))[:, None], jnp.abs(rows - weights).sum()

    start = jnp.asarray(0), p, jnp.full_like(p, jnp.inf, shape=())
    p = jax.lax.while_loop(lambda s: (s[0] < FIT_STEPS) & (s[2] > tol), scale, start)[1]
    p = p * jnp.minimum(1, g / _positive(p.sum(0)))
    rows, cols = jnp.maximum(weights - p.sum(1), 0), jnp.maximum(g - p.sum(0), 0)
    return p + rows[:, None] * cols / _positive(rows.sum())


def _positive(x: Array) -> Array:
    return jnp.where(x > 0, x, 1)


def _squares(x: Array, landmarks: Array) -> Array:
    squares = (x * x).sum(1)[:, None] + (landmarks * landmarks).sum(1) - 2 * x @ landmarks.T
    return jnp.where(squares < 0, 0, squares)


@jax.tree_util.register_pytree_node_class
class _Descent(LRSinkhorn):
    """ott-jax's descent with steps in units of the mean gradient (so padding has no say) that cannot underflow."""

    def _get_costs(self, ot_prob: Any, state: Any) -> tuple[Array, Array, Array, Array]:
        """The factors after a step, before the projection, as logs; constants of a row do not matter to it."""
        q, r, g = state.q, state.r, state.g
        grad_q = ot_prob.geom.apply_cost(r, axis=1) / g
        grad_r = ot_prob.geom.apply_cost(q) / g
        grad_g = -jnp.sum(q * grad_q, axis=0) / g
        size = jnp.maximum(ot_prob.a @ jnp.abs(grad_q) @ g, ot_prob.b @ jnp.abs(grad_r) @ g)
        gamma = self.gamma / _positive(size)
        steps = []
        for old, grad in ((q, grad_q), (r, grad_r), (g, grad_g)):
            step = jnp.log(jnp.maximum(old, float(jnp.finfo(old.dtype).tiny))) - gamma * grad
            steps.append(jnp.maximum(step - step.max(axis=-1, keepdims=True), DEEPEST))
        log_q, log_r, log_g = steps
        return log_q, log_r, log_g, gamma

    def dykstra_update_kernel(self, *args: Any, **settings: Any) -> tuple[Array, Array, Array]:
        """The projection: only so far that the descent goes on; the factors are fitted at the end."""
        settings = {"min_entry_value": SMALLEST_INNER_MASS, "max_iter": PROJECTION_STEPS, **settings}
        return super().dykstra_update_kernel(*args, tolerance=PROJECTION_PER_TOL * self.threshold, **settings)

    def _converged(self, state: Any, iteration: Any) -> Array:
        last = state.errors[iteration - 1]
        return (iteration > 0) & (last <= (CHANGE_PER_TOL * self.threshold) ** 2)
