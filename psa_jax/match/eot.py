"""Entropic optimal transport within one treatment, solved by ott-jax."""

import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from psa_jax.arguments import checked
from psa_jax.coupling.coupling import Coupling, masked
from psa_jax.coupling.info import Info
from psa_jax.devices import map_rows
from psa_jax.match.cost import check, euclidean, fill_padding, pairwise
from psa_jax.match.entropic import DEFAULT_EPS, Gibbs, Relative, Settings, check_range
from psa_jax.types import Array, Cost, Float, alike, solver_dtype

ROUNDING_ERRORS = 1e5
MEMORY = 2**31
STORED_COPIES = 3
MAX_ROUNDING = 0.1
SERVED = 0.01  # the least share of its weight that a sample with a partner has
TILE_BYTES = {"cpu": 2**20}


@checked
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
    memory: int = MEMORY,
    newton: int = 0,
    absorb: bool = True,
) -> Coupling:
    r"""Matches one treatment by entropic optimal transport.

    `min_P <P, C> + eps KL(P | a b^T)` over plans with marginals `a` and `b`; with `tau < 1` a marginal is only
    drawn toward its weights, by `rho KL` with `rho = eps tau / (1 - tau)`. The coupling keeps the potentials, not the
    plan. The solver is ott-jax's Sinkhorn loop (Cuturi 2013) on a kernel that has absorbed reference potentials, so an
    iteration is a matrix-vector product there and back, over-relaxed (Thibault et al. 2021); the first potentials
    come from a few steps at each of a falling sequence of eps (Schmitzer 2019). Gradients are implicit.

    Where three times the costs are within `memory`, costs and kernel are stored. Where only once, the kernel is, and
    costs are made in tiles to make it. Beyond, kernels are made in tiles whenever they are needed, and memory is
    O(n + m) for the solve and its gradient. With x64 enabled problems are solved in float64, whatever the type of the
    scores.

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
            conditions if unbalanced. float32 cannot go below about 1e-5 when cost / eps is about 200: the solver stops
            when it makes no more progress. Traced.
        max_iters: the most iterations after the anneal; static.
        memory: bytes that decide what of one treatment is stored, see above; stored costs take up to twice as many in
            all. Static.
        newton: the most steps of Newton's method on the dual after the loop, for tight tolerances; static.
        absorb: static; False is ott-jax's log-domain loop on its own geometry: slower, the reference in the tests.

    Returns:
        A coupling whose mass is the plan. An infinite cost forbids its pair. `info.details`: `eps` as used, `residual`,
        what was compared with `tol`, `row_error` and `col_error`, the L1 errors of the marginals of the coupling as
        delivered, `mass`, the total of the plan, `lost`, how many samples should keep their weight and have none of it,
        `rounding`, the error of the log masses from rounding costs over eps, `anneal_steps` (before `num_iters`
        counts), `rounds` (absorptions), `newton_steps`, and which path ran: `absorbed`, `tiled` (the costs).
        `info.converged` is False, never an exception, if `tol` was not reached, if a sample is lost, or if eps is so
        small that `rounding` exceeds 0.1 (enable x64 then). Differentiable in `u`, `v`, `a`, `b` and `eps`, in forward
        and reverse mode and to any order (`jax.hessian`); in tiles, memory is O(n + m) for the first order only. Of
        sharp plans rounding hides a part of the gradient: `gradient_residual` measures it.

    Raises:
        ValueError: ranks and lengths that do not fit; eps, tau, tol or max_iters out of range if they are known when
            tracing. A traced eps that is not positive gives `converged = False`.

    Example:
        >>> u = jnp.array([[0.0], [1.0]])
        >>> C = sinkhorn(u, u[::-1], jnp.full(2, 0.5), jnp.full(2, 0.5), eps=0.05)
        >>> C.apply(jnp.array([10.0, 20.0])).round(2).tolist()
        [20.0, 10.0]

    References:
        Xi et al., NeurIPS 2024 (arXiv 2404.01595), section 4; Cuturi, NeurIPS 2013; Schmitzer, SIAM J. Sci. Comput.
        2019 (arXiv 1610.06519); Thibault et al., Algorithms 2021 (arXiv 1711.01851).
    """
    check(u, v, a, b)
    check_range("eps", eps.scale if isinstance(eps, Relative) else eps, "a positive number", low=0.0)
    check_range("tol", tol, "a number of at least 0", low=-1e-30)
    for name, tau in (("tau_a", tau_a), ("tau_b", tau_b)):
        if isinstance(tau, Tracer):
            raise ValueError(f"{name}: expected a number known at trace time (it is static), got a traced value")
        check_range(name, tau, "a number in (0, 1]", low=0.0, high=1.0)
    if not callable(cost):
        raise ValueError(f"cost: expected a function of one pair, ([d], [d]) -> [], got {cost!r}")
    for name, value, least in (("max_iters", max_iters, 1), ("memory", memory, 1), ("newton", newton, 0)):
        if isinstance(value, Tracer) or not isinstance(value, int | np.integer) or value < least:
            raise ValueError(
                f"{name}: expected at least {least}, an integer known at trace time (it is static), got {value!r}"
            )
    if not absorb and newton:
        raise ValueError("newton: expected 0 with absorb=False, which is ott-jax as it is")
    settings = Settings(float(tau_a), float(tau_b), int(max_iters), bool(absorb), int(newton))
    return _sinkhorn(u, v, a, b, eps, tol, settings, cost, int(memory) if absorb else sys.maxsize)


@functools.partial(jax.jit, static_argnames=("settings", "cost", "memory"))
def _sinkhorn(
    u: Array, v: Array, a: Array, b: Array, eps: Any, tol: Any, settings: Settings, cost: Cost, memory: int
) -> Coupling:
    from psa_jax.match.dual import marginals
    from psa_jax.match.geometry import Transport  # ott-jax takes longer to import than all else together
    from psa_jax.match.solve import LEVEL_STEPS, anneal_levels, potentials

    dtype = solver_dtype(u, v)
    strength = eps.scale if isinstance(eps, Relative) else eps
    u, v, a, b, strength, tol = alike(*(jnp.asarray(x, dtype) for x in (u, v, a, b, strength, tol)))
    u, v = (jnp.where(jnp.isnan(x), jnp.inf, x) for x in (fill_padding(u, a), fill_padding(v, b)))  # no partner
    n, m = u.shape[0], v.shape[0]
    held = n * m * a.dtype.itemsize
    tiled, kept_kernel = STORED_COPIES * held > memory, held <= memory
    block = tile_rows(m, a.dtype, memory) if tiled else n
    costs = None if tiled else pairwise(cost, u, v)
    scale, largest = _spread(u, v, costs, a, b, cost, block)
    eps = scale * strength if isinstance(eps, Relative) else strength
    scores = (u, v) if tiled else (None, None)
    problem = Transport(*scores, costs, a, b, eps, cost, block, kept_kernel)
    solved: Any = potentials(settings, problem, jax.lax.stop_gradient(scale), tol)
    f, g, report = solved
    largest = jnp.maximum(largest, jnp.maximum(jnp.abs(f).max(), jnp.abs(g).max()))
    log_a, log_b = (jnp.where(w > 0, jnp.log(jnp.where(w > 0, w, 1)), 0) for w in (a, b))
    left, right = (u, f + eps * log_a), (v, g + eps * log_b)
    # Measured on what is delivered: the law's own sums round in another way than those of the solver.
    ones = [(w > 0).astype(dtype) for w in (a, b)]
    law, potential_a, potential_b = jax.lax.stop_gradient(
        (Transport(*scores, costs, ones[0], ones[1], eps, cost, block, kept_kernel), left[1], right[1])
    )
    rows, cols = marginals(law.absorb(potential_a, potential_b, law.epsilon), *ones)
    row_error, col_error = jnp.abs(rows - a).sum(), jnp.abs(cols - b).sum()
    kept = [(row_error, rows, a)] * (settings.tau_a == 1) + [(col_error, cols, b)] * (settings.tau_b == 1)
    residual = functools.reduce(jnp.maximum, [gap for gap, _, _ in kept], report.residual)
    lost = sum(((w > 0) & ~(mass > SERVED * w)).sum() for _, mass, w in kept)
    details = {
        "eps": eps,
        "residual": residual,
        "mass": rows.sum(),
        "row_error": row_error,
        "col_error": col_error,
        "lost": jnp.asarray(lost, jnp.int32),
        "rounding": float(jnp.finfo(dtype).eps) * largest / eps,
        "anneal_steps": (LEVEL_STEPS * int(settings.absorb) * anneal_levels(scale, eps)).astype(jnp.int32),
        "rounds": report.rounds,
        "newton_steps": report.newton_steps,
        "absorbed": jnp.asarray(settings.absorb),
        "tiled": jnp.asarray(tiled),
    }
    error = jnp.maximum(row_error, col_error)
    converged = (residual <= tol) & (eps > 0) & (details["rounding"] < MAX_ROUNDING) & (details["lost"] == 0)
    info = Info(converged, report.num_iters, error, details)
    return masked(
        Coupling(left=left, right=right, kernel=Gibbs(cost), args=eps, info=jax.lax.stop_gradient(info)), a, b
    )


def tile_rows(m: int, dtype: Any, memory: int) -> int:
    """Rows of a tile of `m` columns: as many as stay in a CPU's cache, or keep an accelerator busy."""
    room = min(memory // STORED_COPIES, TILE_BYTES.get(jax.default_backend(), 2**27))
    return max(1, room // (m * jnp.dtype(dtype).itemsize))


def _spread(
    u: Array, v: Array, costs: Array | None, a: Array, b: Array, cost: Cost, block: int
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The standard deviation of the costs under the product of the weights, or what rounding of the costs allows.

    Forbidden pairs do not count. Also the largest cost.
    """

    def total(of: Any) -> Array:
        """Sums over pairs with their weights, tile by tile."""

        def rows(chunk: Any) -> Array:
            own, weight = chunk
            found = pairwise(cost, own, v) if costs is None else own
            weights = jnp.where(found < jnp.inf, weight[:, None] * b[None], 0)
            return of(jnp.where(weights > 0, found, 0), weights)

        return map_rows(rows, (u if costs is None else costs, a), block)

    found = total(lambda c, w: jnp.stack([(w * c).sum(1), w.sum(1), jnp.abs(c).max(1)], 1))
    sums, largest = found[:, :2].sum(0), jax.lax.stop_gradient(found[:, 2].max())
    weight = jnp.where(sums[1] > 0, sums[1], 1)
    mean = sums[0] / weight
    unit = jnp.where((largest > 0) & (largest < jnp.inf), largest, 1)  # squares of costs may leave the type's range
    variance = total(lambda c, w: (w * ((c - mean) / unit) ** 2).sum(1)).sum() / weight
    deviation = unit * jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1)), 0)
    floor = ROUNDING_ERRORS * jnp.finfo(a.dtype).eps * jnp.abs(mean)
    spread = jnp.maximum(deviation, floor.astype(a.dtype))
    return jnp.where(spread == 0, 1, spread), largest
