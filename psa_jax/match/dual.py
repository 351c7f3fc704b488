"""The dual of one treatment's transport problem: what optimality asks, its Hessian, and what follows from it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from psa_jax.match.entropic import Settings
from psa_jax.match.geometry import Absorbed, Transport
from psa_jax.types import Array, pytree

SHORTEST = 1 / 32
# Relative residual of the conjugate gradients as a power of the machine epsilon: 7e-5 in float32, 4e-10 in float64.
CG_POWER = 0.6
CG_STEPS = 1000
CURVATURE = 10.0  # the least that is known of a direction's, in rounding errors of its square


@pytree
class Report:
    """How a solve went: the residual of the optimality conditions, both marginal errors (L1), and what was run.

    All scalars; JAX rebuilds it from shapes on its way through `custom_vjp`, hence no array types.
    """

    residual: Any
    row_error: Any
    col_error: Any
    mass: Any
    num_iters: Any
    rounds: Any
    newton_steps: Any


def verify(
    settings: Settings, problem: Transport, f: Array, g: Array, num_iters: Array, rounds: Array, newton_steps: Array
) -> Report:
    """The residual and the errors of both marginals at these potentials, from the costs themselves."""
    a, b, eps = problem.a, problem.b, problem.epsilon
    rows, cols = marginals(problem.absorb(f, g, eps), a, b)
    residual = jnp.maximum(
        jnp.abs(rows - a * target(f, eps, settings.tau_a)).sum(),
        jnp.abs(cols - b * target(g, eps, settings.tau_b)).sum(),
    )
    errors = jnp.abs(rows - a).sum(), jnp.abs(cols - b).sum()
    return Report(residual, *errors, rows.sum(), num_iters, rounds, newton_steps)


def marginals(kernel: Absorbed, a: Array, b: Array) -> tuple[Array, Array]:
    """The plan's row and column marginals."""
    rows, back = kernel.sweep(b, lambda r, a: (a, a * r), a)
    return rows, b * back


def target(potential: Array, eps: Array, tau: Any) -> Array:
    """What the marginal should be, over the weight: 1, or `exp(-potential / rho)` if it is only drawn there."""
    if isinstance(tau, float) and tau == 1:
        return jnp.ones_like(potential)
    return jnp.exp(-potential * ((1 - tau) / tau) / eps)


def conditions(settings: Settings, problem: Transport, f: Array, g: Array) -> tuple[Array, Array]:
    """What optimality asks to be zero: both marginals less what they should be. Differentiable, in tiles too."""
    eps = problem.epsilon
    rows, cols = (problem.marginal_from_potentials(f, g, axis=axis) for axis in (1, 0))
    return rows - problem.a * target(f, eps, settings.tau_a), cols - problem.b * target(g, eps, settings.tau_b)


def implicit_change(
    settings: Settings, problem: Transport, f: Array, g: Array, change: Transport
) -> tuple[Array, Array]:
    """How optimal potentials follow a change of the problem (implicit function theorem); linear in the change."""
    moved = jax.jvp(lambda problem: conditions(settings, problem, f, g), (problem,), (change,))[1]
    eps = problem.epsilon
    x, y = solve_hessian(problem.absorb(f, g, eps), problem, (settings.tau_a, settings.tau_b), f, g, *moved)
    return -eps * x, -eps * y


def solve_hessian(
    kernel: Absorbed, problem: Transport, taus: tuple[float, float], f: Array, g: Array, left: Array, right: Array
) -> tuple[Array, Array]:
    """Solves `[[D_a, P], [P^T, D_b]] (x, y) = (left, right)`, eps times the Hessian of the dual.

    The Schur complement of `D_a`, scaled to unit diagonal, by conjugate gradients: one sweep each. Balanced problems
    have the shift of a constant as null space, to which the gradients of every plan are orthogonal.
    """
    a, b, eps = problem.a, problem.b, problem.epsilon
    rows, cols = marginals(kernel, a, b)
    diagonals = []
    for weights, marginal, potential, tau in ((a, rows, f, taus[0]), (b, cols, g, taus[1])):
        pull = 0 if tau == 1 else (1 - tau) / tau * weights * target(potential, eps, tau)
        diagonals.append(jnp.where(weights > 0, marginal + pull, 0))
    inverse_a = jnp.where(diagonals[0] > 0, 1 / jnp.where(diagonals[0] > 0, diagonals[0], 1), 0)
    half_b = jnp.where(diagonals[1] > 0, jax.lax.rsqrt(jnp.where(diagonals[1] > 0, diagonals[1], 1)), 0)

    def through(x: Array, shift: Array) -> tuple[Array, Array]:
        """`z = D_a^-1 (shift - P x)` and `P^T z`."""

        def fn(r: Array, own: tuple[Array, Array, Array]) -> tuple[Array, Array]:
            weight, inverse, moved = own
            z = inverse * (moved - weight * r)
            return weight * z, z

        z, back = kernel.sweep(b * x, fn, (a, inverse_a, shift))
        return z, b * back

    def schur(x: Array) -> Array:
        return x + half_b * through(half_b * x, jnp.zeros_like(a))[1]

    aim = half_b * (right - through(jnp.zeros_like(b), left)[1])
    if taus == (1.0, 1.0):
        null = jnp.where(half_b > 0, 1 / jnp.where(half_b > 0, half_b, 1), 0)
        length = jnp.linalg.norm(null)
        null = null / jnp.where(length > 0, length, 1)  # a problem of padding alone has none
        aim = aim - null * _inner(null, aim)
    y = half_b * jax.lax.custom_linear_solve(schur, aim, conjugate_gradients, symmetric=True)
    return through(y, left)[0], y


def conjugate_gradients(operator: Callable[[Array], Array], aim: Array) -> Array:
    """Solves `operator(x) = aim` as far as rounding lets it be known.

    The operator has unit diagonal and eigenvalues in [0, 2]. Where a plan is nearly a permutation some of them are zero
    up to rounding, and what the aim has in their directions is rounding as well: their quotient would be anything, also
    infinite. A direction whose curvature is not above its own rounding ends the iterations and moves nothing.
    """
    machine = float(jnp.finfo(aim.dtype).eps)
    scale = jnp.abs(aim).max()
    scale = jnp.where(scale > 0, scale, 1)  # squares of tiny aims would underflow
    aim = aim / scale
    enough = machine ** (2 * CG_POWER) * _inner(aim, aim)

    def step(state: Any) -> Any:
        x, rest, direction, squares, k, _ = state
        image = operator(direction)
        curvature = _inner(direction, image)
        known = curvature > CURVATURE * machine * _inner(direction, direction)
        length = jnp.where(known, squares / jnp.where(known, curvature, 1), 0)
        rest = rest - length * image
        after = _inner(rest, rest)
        ratio = after / jnp.where(squares > 0, squares, 1)
        return x + length * direction, rest, rest + ratio * direction, after, k + 1, known

    def go_on(state: Any) -> Array:
        *_, squares, k, known = state
        return (squares > enough) & (k < CG_STEPS) & known

    squares = _inner(aim, aim)
    start = jnp.zeros_like(aim), aim, aim, squares, 0, squares > 0
    return scale * jax.lax.while_loop(go_on, step, start)[0]


def newton(
    settings: Settings, problem: Transport, f: Array, g: Array, report: Report, tol: Array
) -> tuple[Array, Array, Report]:
    """Newton's method on the dual, each step halved until the residual falls."""
    taus, eps = (settings.tau_a, settings.tau_b), problem.epsilon

    def one(state: Any) -> Any:
        f, g, report, _ = state
        kernel = problem.absorb(f, g, eps)
        rows, cols = marginals(kernel, problem.a, problem.b)
        gaps = problem.a * target(f, eps, taus[0]) - rows, problem.b * target(g, eps, taus[1]) - cols
        x, y = solve_hessian(kernel, problem, taus, f, g, *gaps)

        def attempt(length: Array) -> tuple[Array, Array, Report]:
            f1, g1 = f + length * eps * x, g + length * eps * y
            return f1, g1, verify(settings, problem, f1, g1, report.num_iters, report.rounds, report.newton_steps + 1)

        def shorter(trial: Any) -> Any:
            length = trial[0] / 2
            return length, attempt(length)

        def too_long(trial: Any) -> Array:
            length, (_, _, found) = trial
            return ~(found.residual < report.residual) & (length > SHORTEST)

        whole = jnp.ones_like(eps)
        _, (f1, g1, found) = jax.lax.while_loop(too_long, shorter, (whole, attempt(whole)))
        better = found.residual < report.residual
        kept = jax.tree.map(lambda new, old: jnp.where(better, new, old), (f1, g1, found), (f, g, report))
        return *kept, better

    def go_on(state: Any) -> Array:
        _, _, report, better = state
        return better & ~(report.residual <= tol) & (report.newton_steps < settings.newton)

    return jax.lax.while_loop(go_on, one, (f, g, report, jnp.full_like(eps, True, bool)))[:3]


def _inner(x: Array, y: Array) -> Array:
    return jnp.vdot(x, y, precision="highest")
