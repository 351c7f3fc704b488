"""Entropic optimal transport within one treatment, solved by ott-jax."""

import contextlib
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from ott.geometry.geometry import Geometry
from ott.problems.linear.linear_problem import LinearProblem
from ott.solvers.linear.implicit_differentiation import ImplicitDiff
from ott.solvers.linear.sinkhorn import Sinkhorn

from psa_jax.coupling import Coupling, Info, masked
from psa_jax.match.cost import check, euclidean, pairwise
from psa_jax.types import Array, Cost, Float, float_dtype, pytree

ROUNDING_ERRORS = 1e5
MAX_NUMBER = float(np.finfo(np.float64).max)


@pytree
class Relative:
    """An eps that is `scale` times the standard deviation of the costs between real samples."""

    scale: Any


DEFAULT_EPS = Relative(0.1)


def relative(scale: Any) -> Relative:
    """Makes eps relative: `scale` times the spread (standard deviation) of the costs under the product of the weights.

    Padding has no weight and does not count. The spread is taken to be at least 1e5 rounding errors of the mean cost,
    so that plans of nearly equal costs can be represented. Scale-free: scores multiplied by a constant give the same
    plan. Around 0.1 to 0.2 suits projections, 0.05 and less suits sampled pairs. Traced and differentiable.

    Example:
        >>> float(relative(0.1).scale)
        0.1

    Raises:
        ValueError: a scale that is known and not positive.
    """
    _check_range("scale", scale, "a positive number", low=0.0)
    return Relative(scale)


@dataclasses.dataclass(frozen=True)
class Gibbs:
    """The kernel of entropic transport: `(f_i + g_j - cost(u_i, v_j)) / eps`."""

    cost: Cost

    def __call__(self, left: tuple[Array, Array], right: tuple[Array, Array], eps: Array) -> Array:
        """Log masses `[k, m]` from `(u [k, d], f [k])`, `(v [m, d], g [m])` and eps."""
        (u, f), (v, g) = left, right
        return (f[:, None] + g[None] - pairwise(self.cost, u, v)) / eps


def sinkhorn(
    u: Float[Array, "n d"],
    v: Float[Array, "m d"],
    a: Float[Array, " n"],
    b: Float[Array, " m"],
    *,
    eps: Any = DEFAULT_EPS,
    tau_a: float = 1.0,
    tau_b: float = 1.0,
    cost: Cost = euclidean,
    tol: float = 1e-3,
    max_iters: int = 2000,
) -> Coupling:
    r"""Matches one treatment by entropic optimal transport.

    `min_P <P, C> + eps KL(P | a b^T)` over plans with marginals `a` and `b`; with `tau < 1` a marginal is only
    drawn toward its weights, by `rho KL` with `rho = eps tau / (1 - tau)`. The coupling keeps the potentials, not the
    plan. The solver is ott-jax's Sinkhorn loop in the log domain (Cuturi 2013); gradients are implicit.

    Args:
        u: scores `[n, d]`.
        v: scores `[m, d]`.
        a: weights `[n]`, non-negative; zero for padding, which changes neither the plan nor any gradient.
        b: weights `[m]`, with the same sum as `a`.
        eps: a number is absolute, in units of the cost; `relative(scale)` is in units of the spread of the costs and
            is the default. Traced.
        tau_a: in (0, 1]; 1 keeps the row marginal. Static.
        tau_b: in (0, 1]; 1 keeps the column marginal. Static.
        cost: module-level function of ONE pair, `([d], [d]) -> []`; an ott-jax `CostFn` will do. Static.
        tol: L1 error of the marginals (each sums to one over a treatment) to stop at; the residual of the optimality
            conditions if unbalanced. float32 cannot go below about 1e-5 when cost / eps is about 200. Traced.
        max_iters: static.

    Returns:
        A coupling whose mass is the plan. `info.details`: `eps` as used, `residual`, what was compared with `tol`,
        and `mass`, the total of the plan. `info.converged` is False, never an exception, if `tol` was not reached.
        Differentiable (reverse mode) in `u`, `v`, `a`, `b` and `eps`.

    Raises:
        ValueError: ranks and lengths that do not fit; eps, tau, tol or max_iters out of range if they are known when
            tracing. A traced eps that is not positive gives `converged = False`.

    Example:
        >>> u = jnp.array([[0.0], [1.0]])
        >>> C = sinkhorn(u, u[::-1], jnp.full(2, 0.5), jnp.full(2, 0.5), eps=0.05)
        >>> C.apply(jnp.array([10.0, 20.0])).round(2).tolist()
        [20.0, 10.0]

    References:
        Xi et al., NeurIPS 2024 (arXiv 2404.01595), section 4; Cuturi, NeurIPS 2013.
    """
    check(u, v, a, b)
    _check_range("eps", eps.scale if isinstance(eps, Relative) else eps, "a positive number", low=0.0)
    _check_range("tol", tol, "a number of at least 0", low=-1e-30)
    for name, tau in (("tau_a", tau_a), ("tau_b", tau_b)):
        if isinstance(tau, Tracer):
            raise ValueError(f"{name}: expected a number known at trace time (it is static), got a traced value")
        _check_range(name, tau, "a number in (0, 1]", low=0.0, high=1.0)
    if isinstance(max_iters, Tracer) or max_iters < 1:
        raise ValueError(f"max_iters: expected at least 1, known at trace time (it is static), got {max_iters}")
    return _sinkhorn(u, v, a, b, eps, tol, float(tau_a), float(tau_b), cost, max_iters)


@functools.partial(jax.jit, static_argnames=("tau_a", "tau_b", "cost", "max_iters"))
def _sinkhorn(
    u: Array,
    v: Array,
    a: Array,
    b: Array,
    eps: Any,
    tol: Any,
    tau_a: float,
    tau_b: float,
    cost: Cost,
    max_iters: int,
) -> Coupling:
    dtype = float_dtype(u, v)
    u, v, a, b = (x.astype(dtype) for x in (u, v, a, b))
    costs = jnp.where((a > 0)[:, None] & (b > 0)[None], pairwise(cost, u, v), 0)
    eps = _spread(costs, a, b) * eps.scale if isinstance(eps, Relative) else eps
    eps = jnp.asarray(eps, dtype)
    # ott-jax measures entropy against the counting measure; this makes it the product of the weights.
    log_a, log_b = (jnp.where(w > 0, jnp.log(jnp.where(w > 0, w, 1)), 0) for w in (a, b))
    shifted = costs - eps * (log_a[:, None] + log_b[None])
    f, g, residual, num_iters = _solve(shifted, a, b, eps, tau_a, tau_b, tol, max_iters)
    f, g = f + eps * log_a, g + eps * log_b
    error, mass = _marginal_error(costs, f, g, a, b, eps)
    residual = jnp.maximum(residual, error) if tau_a == tau_b == 1 else residual
    details = {"eps": eps, "residual": residual, "mass": mass}
    info = Info((residual <= tol) & (eps > 0), num_iters, error, details)
    return masked(
        Coupling(left=(u, f), right=(v, g), kernel=Gibbs(cost), args=eps, info=jax.lax.stop_gradient(info)),
        a,
        b,
    )


@jax.tree_util.register_pytree_node_class
class _Loop(Sinkhorn):
    """ott-jax's loop under the promotion rules it expects, also when the loop is traced again for its gradient."""

    def one_iteration(self, ot_prob: Any, state: Any, iteration: Any, compute_error: Any) -> Any:
        """One update of both potentials."""
        with _default_promotion():
            return super().one_iteration(ot_prob, state, iteration, compute_error)

    def output_from_state(self, ot_prob: Any, state: Any) -> Any:
        """The potentials, recentred."""
        with _default_promotion():
            return super().output_from_state(ot_prob, state)


class _Implicit(ImplicitDiff):
    """ott-jax's implicit differentiation with a linear solve that leaves samples of negligible weight alone.

    Solves the Hessian of the dual, `[[D_a, P], [P^T, D_b]] / eps`, for the gradient: the Schur complement of `D_b`,
    scaled to unit diagonal, by conjugate gradients. Balanced problems have the constant shift as a null space, to
    which every gradient of a plan is orthogonal.
    """

    def gradient(self, prob: Any, f: Array, g: Array, lse_mode: bool, gr: Any) -> Any:
        """The cotangents of the problem, under the promotion rules that ott-jax expects."""
        with _default_promotion():
            return super().gradient(prob, f, g, lse_mode, gr)

    def solve(self, gr: Any, ot_prob: Any, f: Array, g: Array, lse_mode: bool) -> Array:
        """Minus the inverse Hessian applied to `gr`."""
        eps, costs = ot_prob.epsilon, ot_prob.geom.cost_matrix
        plan = jnp.exp((f[:, None] + g[None] - costs) / eps)
        diagonals = []
        for weights, potential, tau, axis in (
            (ot_prob.a, f, ot_prob.tau_a, 1),
            (ot_prob.b, g, ot_prob.tau_b, 0),
        ):
            rho = jnp.inf if tau == 1 else eps * tau / (1 - tau)
            diagonals.append(plan.sum(axis) + (0 if tau == 1 else eps / rho * weights * jnp.exp(-potential / rho)))
        real_a, real_b = _real(ot_prob.a), _real(ot_prob.b)
        half_a, half_b = (
            jnp.where(real, jax.lax.rsqrt(jnp.where(real, diagonal, 1)), 0)
            for real, diagonal in zip((real_a, real_b), diagonals, strict=True)
        )
        scaled = half_a[:, None] * plan * half_b[None]
        right_a, right_b = half_a * gr[0], half_b * gr[1]

        def schur(x: Array) -> Array:
            return x - _matvec(scaled, _matvec(scaled.T, x))

        target = right_a - _matvec(scaled, right_b)
        if ot_prob.is_balanced:
            null = jnp.where(real_a, jnp.sqrt(jnp.where(real_a, diagonals[0], 1)), 0)
            null = null / jnp.linalg.norm(null)
            target = target - null * jnp.vdot(null, target)
        tol = 10 * float(jnp.finfo(target.dtype).eps)
        x, _ = jax.scipy.sparse.linalg.cg(schur, target, tol=tol, maxiter=1000)
        y = right_b - _matvec(scaled.T, x)
        return -eps * jnp.concatenate([half_a * x, half_b * y])


def _solve(
    costs: Array, a: Array, b: Array, eps: Array, tau_a: float, tau_b: float, tol: Any, max_iters: int
) -> tuple[Array, Array, Array, Array]:
    """ott-jax's Sinkhorn; padding gets a weight too small to matter and large enough to keep every number finite."""
    inner = min(10, max_iters)
    threshold: Any = jnp.asarray(tol, costs.dtype)
    epsilon: Any = eps
    loop = _Loop(
        threshold=threshold,
        max_iterations=max_iters,
        inner_iterations=inner,
        implicit_diff=_Implicit(precondition_fun=_identity, symmetric=True),
    )
    weights = (jnp.where(w > 0, w, _negligible(w.dtype)) for w in (a, b))
    with _default_promotion():
        problem = LinearProblem(Geometry(cost_matrix=costs, epsilon=epsilon), *weights, tau_a=tau_a, tau_b=tau_b)
        out = loop(problem)
        assert out.errors is not None
        steps = jnp.sum(out.errors != -1)
        residual = out.errors[jnp.maximum(steps - 1, 0)]
        return out.f, out.g, residual, jnp.minimum(steps * inner, max_iters).astype(jnp.int32)


def _marginal_error(
    costs: Array, f: Array, g: Array, a: Array, b: Array, eps: Array
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The larger L1 distance of the plan's marginals from the weights, and the plan's total mass."""
    log_plan = (f[:, None] + g[None] - costs) / eps
    plan = jnp.where((a > 0)[:, None] & (b > 0)[None], jnp.exp(log_plan), 0)
    errors = jnp.abs(plan.sum(1) - a).sum(), jnp.abs(plan.sum(0) - b).sum()
    return jnp.maximum(*errors), plan.sum()


def _spread(costs: Array, a: Array, b: Array) -> Float[Array, ""]:
    """The standard deviation of the costs under the product of the weights, or what rounding of the costs allows."""
    weights = a[:, None] * b[None]
    weights = weights / weights.sum()
    mean = jnp.sum(weights * costs)
    variance = jnp.sum(weights * (costs - mean[None, None]) ** 2)
    deviation = jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1)), 0)
    floor = ROUNDING_ERRORS * jnp.finfo(costs.dtype).eps * jnp.sum(weights * jnp.abs(costs))
    spread = jnp.maximum(deviation, floor)
    return jnp.where(spread == 0, 1, spread)


def _negligible(dtype: Any) -> float:
    return float(jnp.finfo(dtype).tiny) ** 0.75


def _real(weights: Array) -> Array:
    return weights > 2 * _negligible(weights.dtype)


def _matvec(matrix: Array, x: Array) -> Array:
    return jnp.matmul(matrix, x, precision="highest")


def _identity(x: Array) -> Array:
    return x


@contextlib.contextmanager
def _default_promotion() -> Any:
    """ott-jax relies on JAX's default promotion rules; callers may run under stricter ones."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def _check_range(name: str, value: Any, expected: str, *, low: float, high: float = MAX_NUMBER) -> None:
    if isinstance(value, Tracer):
        return
    if not isinstance(value, int | float | np.generic | np.ndarray | jax.Array) or jnp.ndim(value):
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
    if not low < float(value) <= high:
        raise ValueError(f"{name}: expected {expected}, got {value}")
