"""How much of a gradient through a transport plan rounding leaves open."""

from typing import Any

import jax
import jax.numpy as jnp

from psa_jax.arguments import checked
from psa_jax.coupling.blocked import Blocked
from psa_jax.coupling.coupling import Coupling
from psa_jax.coupling.kernel import Masked
from psa_jax.match.entropic import Gibbs
from psa_jax.types import Array, Float, KeyArray

TILE = 1024
ROUNDING = 4.0  # what is asked is zero below so many rounding errors of its terms


@checked
def gradient_residual(key: KeyArray, coupling: Coupling | Blocked) -> Float[Array, "..."]:
    """The gradient's own check: which share of a linear system behind it could not be solved.

    Derivatives of `sinkhorn` solve a linear system with the Hessian of its dual. Where a plan is nearly a permutation
    some directions of it are known to rounding only; the solve leaves them out instead of returning their noise. This
    draws a projection `C.apply(y)` and a gradient that reaches it, both standard normal, solves for them as a backward
    pass does, and compares what the solution gives with what was asked.

    Args:
        key: decides the projection and its gradient.
        coupling: of `sinkhorn`, balanced, or of `blockwise` of it.

    Returns:
        `[]`, or `[num_treatments]` of a blocked coupling (0 where nothing was matched): the norm of what is left over
        that of what was asked, both in the units of the system's diagonal. Below 1e-3 in single precision the gradient
        is that of the plan; near 1 what is asked of it is hidden by rounding. 0 where nothing is asked, as of one
        sample or of a permutation, whose gradient is zero; inf for a plan that is not finite.

    Raises:
        ValueError: a coupling that is not of `sinkhorn`, or is shrunk (ask of what was shrunk).

    Example:
        >>> from psa_jax.match import sinkhorn
        >>> u, a = jax.random.normal(jax.random.key(0), (20, 2)), jnp.full(20, 0.05)
        >>> float(gradient_residual(jax.random.key(1), sinkhorn(u, u + 0.1, a, a))) < 1e-3
        True
    """
    if isinstance(coupling, Coupling):
        return _residual(key, _plain(coupling))
    out = jnp.zeros(coupling.info.converged.shape[0], coupling.blocks[0].weight.dtype)
    for i, block in enumerate(coupling.blocks):
        keys = jax.random.split(jax.random.fold_in(key, i), block.treatment.shape[0])
        found = jax.lax.map(lambda both: _residual(*both), (keys, _plain(block.coupling)))
        out = out.at[block.treatment].set(found)
    return out


def _plain(coupling: Coupling) -> Coupling:
    kernel = coupling.kernel
    if not (isinstance(kernel, Masked) and isinstance(kernel.kernel, Gibbs)):
        of = f" of {kernel.kernel}" if isinstance(kernel, Masked) else ""
        raise ValueError(f"coupling: expected one of `sinkhorn`, as it is, got {type(kernel).__name__}{of}")
    return coupling


@jax.jit
def _residual(key: KeyArray, coupling: Coupling) -> Array:
    from psa_jax.match.dual import marginals, solve_hessian
    from psa_jax.match.geometry import Transport

    kernel: Any = coupling.kernel
    ((u, f), a), ((v, g), b) = coupling.left, coupling.right
    eps = coupling.args
    a, b = (jnp.asarray(real, eps.dtype) for real in (a, b))
    problem = Transport(u, v, None, a, b, eps, kernel.kernel.cost, min(TILE, u.shape[0]))
    absorbed = problem.absorb(f, g, eps)
    rows, cols = marginals(absorbed, a, b)
    key_y, key_w = jax.random.split(key)
    y, w = (jax.random.normal(k, real.shape, eps.dtype) for k, real in ((key_y, b), (key_w, a)))

    def across(x: Array) -> Array:
        """`P x`."""
        return absorbed.sweep(b * x, lambda r, weight: (weight, weight * r), a)[0]

    def back(x: Array) -> Array:
        """`P^T x`."""
        return b * absorbed.sweep(jnp.zeros_like(b), lambda r, own: (own, own), a * x)[1]

    share = jnp.where(rows > 0, w / jnp.where(rows > 0, rows, 1), 0)
    projected = across(y) / jnp.where(rows > 0, rows, 1)
    aim = back(share) * y - back(share * projected)  # of the loss `w . C.apply(y)` in the columns' potentials
    solution = solve_hessian(absorbed, problem, (1.0, 1.0), f, g, jnp.zeros_like(a), aim)
    left = back(solution[0]) + cols * solution[1] - aim
    scale = jnp.where(cols > 0, jax.lax.rsqrt(jnp.where(cols > 0, cols, 1)), 0)
    asked, missed = jnp.linalg.norm(scale * aim), jnp.linalg.norm(scale * left)
    size = jnp.linalg.norm(scale * (jnp.abs(back(share) * y) + jnp.abs(back(share * projected))))
    nothing = asked <= ROUNDING * float(jnp.finfo(eps.dtype).eps) * size
    return jnp.where(nothing, 0, jnp.where(asked > 0, missed / jnp.where(asked > 0, asked, 1), jnp.inf))
