"""Solving one treatment's transport problem: ott-jax's Sinkhorn loop on absorbed kernels, and its implicit gradient."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from ott.geometry.geometry import Geometry
from ott.problems.linear.linear_problem import LinearProblem
from ott.solvers.linear.acceleration import Momentum
from ott.solvers.linear.sinkhorn import Sinkhorn

from psa_jax.match.dual import Report, implicit_change, newton, target, verify
from psa_jax.match.entropic import Settings, ott_rules
from psa_jax.match.geometry import Transport
from psa_jax.types import Array

COARSEST = 1 / 8
LEVEL_STEPS = 8
MAX_LEVELS = 20.0
OVER_RELAXATION = 1.6
CHECK_EVERY = 5
ROUND = 400
MAX_DRIFT = 40.0
PROGRESS = 0.99
SAFETY = 0.9


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def potentials(settings: Settings, problem: Transport, spread: Array, tol: Array) -> tuple[Array, Array, Report]:
    """The potentials of one treatment, relative to the product of the weights; derivatives are implicit.

    With `settings.absorb` the loop is that of ott-jax on kernels that have absorbed reference potentials. These come
    from a short anneal of eps; they are absorbed anew after every round that did not reach the tolerance, from one
    sweep in the log domain, and the over-relaxation is halved when a round makes no progress. Without it the loop
    is ott-jax's as it is, in the log domain on the stored costs.
    """
    if not settings.absorb:
        f, g, num_iters = _plain(settings, problem, tol)
        zero = jnp.zeros((), jnp.int32)
        return f, g, verify(settings, problem, f, g, num_iters, zero, zero)
    f, g, report = _rounds(settings, problem, spread, tol)
    return newton(settings, problem, f, g, report, tol) if settings.newton else (f, g, report)


@potentials.defjvp
def _differential(settings: Settings, primals: Any, tangents: Any) -> Any:
    problem, spread, tol = primals
    f, g, report = potentials(settings, problem, spread, tol)
    # Nothing but the problem and its solution is kept for a backward pass: the rest is made again there.
    change = jax.checkpoint(implicit_change, static_argnums=0)(settings, problem, f, g, tangents[0])
    still = jax.tree.map(jax.custom_derivatives.zero_from_primal, report)
    return (f, g, report), (*change, still)


@jax.tree_util.register_pytree_node_class
class _Iterated(Geometry):
    """A problem at absorbed potentials, as ott-jax's loop carries it."""

    def __init__(self, kernel: Any, f0: Any, g0: Any, a: Any, b: Any, epsilon: Any, weight: Any, left: Any) -> None:
        super().__init__(epsilon=epsilon)
        self.parts = kernel, f0, g0, a, b, epsilon, weight, left

    @property
    def epsilon(self) -> Any:
        """The strength of the regularisation."""
        return self.parts[5]

    @property
    def shape(self) -> tuple[int, int]:
        """`(n, m)`."""
        return self.parts[3].shape[0], self.parts[4].shape[0]

    @property
    def dtype(self) -> Any:
        """That of the weights."""
        return self.parts[3].dtype

    def step(self, f: Array, g: Array, taus: tuple[Any, Any], momentum: Momentum) -> tuple[Array, Array, Array]:
        """One over-relaxed update of both potentials in one sweep, and the residual on the way."""
        kernel, f0, g0, a, b, eps, weight, _ = self.parts

        def update(r: Array, own: Any, tau: Any) -> tuple[Array, Array, Array]:
            old, reference, mass = own
            error = mass * jnp.abs(_scaling(old - reference, eps) * r - target(old, eps, tau))
            new = jnp.where(mass > 0, tau * (reference - eps * jnp.log(_positive(r))), 0)
            return jnp.where(mass > 0, momentum(weight, old, new), 0), error, reference

        def row(r: Array, own: Any) -> tuple[Array, Any]:
            new, error, reference = update(r, own, taus[0])
            return own[2] * _scaling(new - reference, eps), (new, error)

        (f, row_error), back = kernel.sweep(b * _scaling(g - g0, eps), row, (f, f0, a))
        g, col_error, _ = update(back, (g, g0, b), taus[1])
        return f, g, jnp.maximum(row_error.sum(), col_error.sum())

    def marginal_from_potentials(self, f: Array, g: Array, axis: int = 0) -> Array:
        """The plan's column (0) or row (1) marginal."""
        kernel, f0, g0, a, b, eps, *_ = self.parts
        x, y = a * _scaling(f - f0, eps), b * _scaling(g - g0, eps)
        rows, back = kernel.sweep(y, lambda r, x: (x, x * r), x)
        return y * back if axis == 0 else rows

    def tree_flatten(self) -> Any:
        """All parts."""
        return self.parts, None

    @classmethod
    def tree_unflatten(cls, aux: None, children: tuple) -> "_Iterated":
        """The geometry of such parts."""
        return cls(*children)


@jax.tree_util.register_pytree_node_class
class _Loop(Sinkhorn):
    """ott-jax's loop with one sweep an iteration; it also stops when it drifts or makes no progress."""

    def init_state(self, ot_prob: Any, init: Any) -> Any:
        """That of ott-jax, as different between devices as the problem."""
        errors = jnp.full_like(ot_prob.a, -1, shape=(int(self.outer_iterations), 1))
        return super().init_state(ot_prob, init).set(errors=errors)

    def one_iteration(self, ot_prob: Any, state: Any, iteration: Any, compute_error: Any) -> Any:
        """One update of both potentials; an infinite error stops the loop."""
        geometry = ot_prob.geom
        _, f0, g0, *_, eps, _, left = geometry.parts
        f, g, error = geometry.step(state.fu, state.gv, (ot_prob.tau_a, ot_prob.tau_b), self.momentum)
        drift = jnp.maximum(jnp.abs(f - f0).max(), jnp.abs(g - g0).max()) / eps
        stop = (drift > MAX_DRIFT) | (iteration + 1 >= left)
        error = jnp.where(compute_error & ~(stop & (error > self.threshold)), error, jnp.inf)
        errors = state.errors.at[iteration // self.inner_iterations, 0].set(error)
        go_on = iteration < left
        f, g = jnp.where(go_on, f, state.fu), jnp.where(go_on, g, state.gv)
        return state.set(potentials=(f, g), errors=errors)

    def _diverged(self, state: Any, iteration: Any) -> Any:
        now = iteration // self.inner_iterations - 1
        error, before = state.errors[now, 0], state.errors[jnp.maximum(now - 3, 0), 0]
        return (iteration > 0) & (~jnp.isfinite(error) | ((now >= 3) & (error > before)))


def anneal_levels(spread: Array, eps: Array) -> Array:
    """How many values of eps above the last the anneal visits, `LEVEL_STEPS` steps each."""
    levels = jnp.ceil(jnp.log2(jnp.maximum(COARSEST * spread / eps, 1)))
    return jnp.minimum(levels, MAX_LEVELS)


def _anneal(settings: Settings, problem: Transport, spread: Array) -> tuple[Array, Array]:
    """Potentials from a few steps at each of a falling sequence of eps, halved from an eighth of the costs' spread.

    The first sweep is in the log domain; a level starts from potentials that fit twice its eps, whose density, squared,
    is in range.
    """
    a, b, eps = problem.a, problem.b, problem.epsilon
    momentum = Momentum()

    def level(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        f, g, ratio = state
        strength = ratio * eps
        tau_a, tau_b = settings.tau_a, settings.tau_b
        taus = tau_a / (tau_a + ratio * (1 - tau_a)), tau_b / (tau_b + ratio * (1 - tau_b))
        kernel = problem.absorb(f, g, strength)

        def step(k: Array, potentials: tuple[Array, Array]) -> tuple[Array, Array]:
            weight = jnp.where(k > 0, OVER_RELAXATION, 1.0).astype(eps.dtype)
            at = _Iterated(kernel, f, g, a, b, strength, weight, jnp.asarray(1))
            return at.step(*potentials, taus, momentum)[:2]

        f, g = jax.lax.fori_loop(0, LEVEL_STEPS, step, (f, g))
        return f, g, ratio / 2

    top = 2.0 ** anneal_levels(spread, eps)
    f, g = problem.log_sweep(jnp.zeros_like(a), jnp.zeros_like(b), top * eps)
    return jax.lax.while_loop(lambda state: state[2] > 1.5, level, (f, g, top))[:2]


def _rounds(settings: Settings, problem: Transport, spread: Array, tol: Array) -> tuple[Array, Array, Report]:
    a, b, eps = problem.a, problem.b, problem.epsilon
    threshold: Any = SAFETY * tol
    loop = _Loop(
        threshold=threshold,
        max_iterations=min(ROUND, settings.max_iters),
        inner_iterations=min(CHECK_EVERY, settings.max_iters),
    )

    def go_on(state: Any) -> Array:
        _, _, report, weight = state
        stuck = weight < 1
        return ~(report.residual <= tol) & (report.num_iters < settings.max_iters) & ~stuck

    def one(state: Any) -> Any:
        f, g, report, weight = state
        f1, g1 = jax.lax.cond(report.rounds > 0, lambda f, g: problem.log_sweep(f, g, eps), lambda f, g: (f, g), f, g)
        left = settings.max_iters - report.num_iters
        geometry = _Iterated(problem.absorb(f1, g1, eps), f1, g1, a, b, eps, weight, left)
        with ott_rules():
            linear = LinearProblem(geometry, a, b, tau_a=settings.tau_a, tau_b=settings.tau_b)
            out = loop(linear, init=(f1, g1))
            assert out.errors is not None
            steps = jnp.minimum(jnp.sum(out.errors != -1) * loop.inner_iterations, left).astype(jnp.int32)
        finite = jnp.isfinite(out.f).all() & jnp.isfinite(out.g).all()
        f2, g2 = jnp.where(finite, out.f, f1), jnp.where(finite, out.g, g1)
        zero = jnp.zeros_like(report.rounds)
        found = verify(settings, problem, f2, g2, report.num_iters + steps, report.rounds + 1, zero)
        better = found.residual < report.residual
        progress = found.residual < PROGRESS * report.residual
        f, g = jnp.where(better, f2, f), jnp.where(better, g2, g)
        kept = jax.tree.map(lambda new, old: jnp.where(better, new, old), found, report)
        kept = Report(kept.residual, kept.row_error, kept.col_error, kept.mass, found.num_iters, found.rounds, zero)
        slower = jnp.where(weight > 1.05, 1 + (weight - 1) / 2, 0).astype(weight.dtype)
        return f, g, kept, jnp.where(progress, weight, slower)

    f, g = _anneal(settings, problem, spread)
    unknown, zero = jnp.full_like(eps, jnp.inf), jnp.zeros_like(eps, jnp.int32)
    start = Report(unknown, unknown, unknown, unknown, zero, zero, zero)
    weight = jnp.full_like(eps, OVER_RELAXATION)
    return jax.lax.while_loop(go_on, one, (f, g, start, weight))[:3]


def _plain(settings: Settings, problem: Transport, tol: Array) -> tuple[Array, Array, Array]:
    """ott-jax as it is; padding gets a weight too small to matter and large enough to keep every number finite."""
    a, b, eps, costs = problem.a, problem.b, problem.epsilon, problem.cost_matrix
    # ott-jax measures entropy against the counting measure; this makes it the product of the weights.
    log_a, log_b = (jnp.where(w > 0, jnp.log(_positive(w)), 0) for w in (a, b))
    costs = jnp.where((a > 0)[:, None] & (b > 0)[None], costs, 0)
    costs = jnp.where(costs < jnp.inf, costs, jnp.finfo(costs.dtype).max / 1e6)
    inner = min(10, settings.max_iters)
    threshold: Any = SAFETY * tol
    loop = Sinkhorn(threshold=threshold, max_iterations=settings.max_iters, inner_iterations=inner)
    weights = (jnp.where(w > 0, w, float(jnp.finfo(w.dtype).tiny) ** 0.75) for w in (a, b))
    with ott_rules():
        geometry = Geometry(cost_matrix=costs - eps * (log_a[:, None] + log_b[None]), epsilon=eps)
        out = loop(LinearProblem(geometry, *weights, tau_a=settings.tau_a, tau_b=settings.tau_b))
        assert out.errors is not None
        steps = jnp.minimum(jnp.sum(out.errors != -1) * inner, settings.max_iters).astype(jnp.int32)
        return out.f, out.g, steps


def _scaling(change: Array, eps: Array) -> Array:
    return jnp.exp(jnp.clip(change / eps, -80, 80))


def _positive(x: Array) -> Array:
    return jnp.where(x > 0, x, float(jnp.finfo(x.dtype).tiny))
