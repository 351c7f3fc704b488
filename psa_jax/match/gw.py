"""Gromov-Wasserstein matching within one treatment, solved by ott-jax: distances within each modality, not across."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from ott.geometry.geometry import Geometry
from ott.problems.linear.linear_problem import LinearProblem
from ott.problems.quadratic.quadratic_problem import QuadraticProblem
from ott.solvers.linear.sinkhorn import Sinkhorn
from ott.solvers.quadratic.gromov_wasserstein_lr import LRGromovWasserstein

from psa_jax.coupling import Coupling, Info, masked
from psa_jax.match.cost import all_finite, euclidean, fill_padding, pairwise
from psa_jax.match.distances import plain_distances
from psa_jax.match.eot import Relative, check_range
from psa_jax.match.low_rank import factored
from psa_jax.types import Array, Cost, Float, pytree, solver_dtype

Distances = Callable[[Any, Any], Any]
DEFAULT_EPS = Relative(0.05)
LINEAR_ITERS = 2000


def stored(left: Array, right: Array, args: Any) -> Array:
    """The kernel of a stored plan: a row's log masses at the columns."""
    return left[:, right]


def gromov_wasserstein(
    x: Float[Array, "n p"],
    y: Float[Array, "m q"],
    a: Float[Array, " n"],
    b: Float[Array, " m"],
    *,
    distances: Distances = plain_distances,
    eps: Any = DEFAULT_EPS,
    tol: float = 1e-3,
    max_iters: int = 200,
    rank: int | None = None,
) -> Coupling:
    r"""Matches one treatment so that distances within one modality agree with distances within the other.

    `min_P sum_ijkl (D_ik - D'_jl)² P_ij P_kl + eps KL(P | a b^T)` over plans with marginals `a` and `b`, where `D` and
    `D'` are the distances within each side; the two modalities need no common features. The problem is not convex: the
    result is a local optimum, found from the product of the weights; mirror images cannot be told apart. Where several
    optima are as near (distances by hops have many equal values), rounding decides between them: in float32 another
    order of the samples, or padding, may then give another one; enable x64 for plans that do not depend on it. With
    `rank` the plan is `q diag(1/g) r^T` and `eps` weighs the entropies of `q`, `r` and `g` instead (0 is allowed); it
    starts from the order of the samples' mean distances. Distances are stored, `n² + m²`; a plan of no `rank`, `n m`.

    Args:
        x: samples or scores `[n, p]`.
        y: the same of the other modality `[m, q]`.
        a: weights `[n]`, summing to one; zero for padding, which does not change the plan.
        b: weights `[m]`, the same.
        distances: module-level function `(x [n, p], real [n]) -> [n, n]`, `inf` for out of reach: `plain_distances`,
            `geodesics` (settings bound by `functools.partial`, once: a fresh one compiles anew) or one's own. Static.
        eps: a number is absolute, in units of squared distance (POT's convention; ott-jax's is half of it);
            `relative(scale)`, the default, is in units of the spread of `(D_ik - D'_jl)²` under the weights. Traced.
        tol: L1 error of the marginals, and L1 change of the plan by the last linearisation. With `rank`, of the factors
            in ott-jax's measure. Traced.
        max_iters: linearisations at most, or ten times as many steps with `rank`. Static.
        rank: of the plan; None for a plan of full rank. Static.

    Returns:
        A coupling whose mass is the plan. `info.num_iters` counts linearisations (or steps); `info.details`: `eps` as
        used, `gw_cost`, the quadratic term of the returned plan, `linear_cost` (of the fused problem), `unreachable_a`
        and `unreachable_b`, the share of pairs out of reach. `info.converged` is False, never an exception, where the
        iterations or the marginals did not get to `tol` or the input is not finite. Not differentiable: gradients are
        zero.

    Raises:
        ValueError: ranks and lengths that do not fit; eps, tol, max_iters or rank out of range.

    Example:
        >>> x = jnp.array([[0.0], [1.0], [3.0]])
        >>> y = jnp.array([[5.0, 5.0], [2.0, 5.0], [4.0, 5.0]])
        >>> C = gromov_wasserstein(x, y, jnp.full(3, 1 / 3), jnp.full(3, 1 / 3), eps=0.005)
        >>> C.top_k(1)[1][:, 0].tolist()
        [0, 2, 1]

    References:
        Memoli, Found. Comput. Math. 2011; Peyre, Cuturi, Solomon, ICML 2016 (objective and algorithm); Demetci et al.,
        J. Comput. Biol. 2022 (SCOT); Scetbon, Peyre, Cuturi, ICML 2022 (low rank).
    """
    _check_sides("x", x, "a", a)
    _check_sides("y", y, "b", b)
    _check_settings(distances, eps, tol, max_iters, rank)
    return _match((x, y), None, a, b, eps, 1.0, tol, distances, None, max_iters, rank)


def fused_gromov_wasserstein(
    u: Any,
    v: Any,
    a: Float[Array, " n"],
    b: Float[Array, " m"],
    *,
    alpha: Any = 0.5,
    cost: Cost = euclidean,
    distances: Distances = plain_distances,
    eps: Any = DEFAULT_EPS,
    tol: float = 1e-3,
    max_iters: int = 200,
) -> Coupling:
    r"""Matches one treatment by its scores across the modalities and by the distances within each of them.

    `min_P (1 - alpha) <P, C> + alpha sum_ijkl (D_ik - D'_jl)² P_ij P_kl + eps KL(P | a b^T)` over plans with marginals
    `a` and `b`: POT's convention of `alpha`; 0 is entropic transport of the scores, 1 is `gromov_wasserstein`. `C` is
    in units of the cost and is not rescaled, `D` as `distances` gives it (the largest is 1): `alpha` weighs the two.

    Args:
        u: `(scores [n, d], features [n, p])`, or one array that serves as both. `blockwise` takes pairs as well.
        v: the same of the other modality, `[m, d]` and `[m, q]`.
        a: weights `[n]`, summing to one; zero for padding, which does not change the plan.
        b: weights `[m]`, the same.
        alpha: in [0, 1], the weight of the distances within. Traced.
        cost: of one pair of scores, module-level, `([d], [d]) -> []`, finite. Static.
        distances: as for `gromov_wasserstein`, of the features. Static.
        eps: absolute, in units of the objective; or `relative(scale)`, the default, in units of the spread of the costs
            and that of `(D_ik - D'_jl)²`, weighed by `alpha`. Traced.
        tol: as for `gromov_wasserstein`. Traced.
        max_iters: as for `gromov_wasserstein`. Static.

    Returns:
        As `gromov_wasserstein`; `gw_cost` and `linear_cost` are without their factors `alpha` and `1 - alpha`. Not
        differentiable.

    Raises:
        ValueError: ranks and lengths that do not fit; alpha, eps, tol or max_iters out of range.

    Example:
        >>> scores, x = jnp.array([[0.0], [1.0], [1.1]]), jnp.array([[0.0], [9.0], [4.0]])
        >>> w = jnp.full(3, 1 / 3)
        >>> C = fused_gromov_wasserstein((scores, x), (scores, x[::-1]), w, w, alpha=0.0, eps=0.01)
        >>> C.top_k(1)[1][:, 0].tolist()
        [0, 1, 2]

    References:
        Vayer et al., Algorithms 2020 (fused Gromov-Wasserstein); Peyre, Cuturi, Solomon, ICML 2016.
    """
    (u, x), (v, y) = _parts("u", u), _parts("v", v)
    for name, side, weight_name, weights in (("u", (u, x), "a", a), ("v", (v, y), "b", b)):
        for part, what in zip(side, (f"{name}'s scores", f"{name}'s features"), strict=True):
            _check_sides(what, part, weight_name, weights)
    if u.shape[1:] != v.shape[1:]:
        raise ValueError(f"u, v: expected scores with the same features, got shapes {u.shape} and {v.shape}")
    _check_settings(distances, eps, tol, max_iters, None)
    check_range("alpha", alpha, "a number in [0, 1]", low=-1e-300, high=1.0)
    return _match((x, y), (u, v), a, b, eps, alpha, tol, distances, cost, max_iters, None)


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
def _match(
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
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
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
    squares = rows @ _product(p.dx**2, rows) + cols @ _product(p.dy**2, cols)
    return squares - 2 * (_product(_product(p.dx, plan), p.dy) * plan).sum()


def _product(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y, precision="highest")


def _spread(p: _Problem) -> Array:
    """The standard deviations of costs and of `(D_ik - D'_jl)²` under the product of the weights, weighed by alpha."""
    x1, x2, x3, x4 = (p.a @ p.dx**k @ p.a for k in range(1, 5))
    y1, y2, y3, y4 = (p.b @ p.dy**k @ p.b for k in range(1, 5))
    mean = x2 - 2 * x1 * y1 + y2
    quadratic = _deviation(x4 - 4 * x3 * y1 + 6 * x2 * y2 - 4 * x1 * y3 + y4 - mean**2)
    linear = 0.0
    if p.costs is not None:
        linear = _deviation(p.a @ (p.costs - p.a @ p.costs @ p.b) ** 2 @ p.b)
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


def _parts(name: str, side: Any) -> tuple[Any, Any]:
    """Scores and features of one side."""
    if not isinstance(side, tuple | list):
        return side, side
    if len(side) != 2:
        raise ValueError(f"{name}: expected (scores, features), got {len(side)} arrays")
    return side[0], side[1]


def _check_sides(name: str, x: Any, weight_name: str, weights: Any) -> None:
    if x.ndim < 2 or not x.shape[0]:
        raise ValueError(f"{name}: expected [samples, ...] with at least one sample, got shape {x.shape}")
    if weights.shape != x.shape[:1]:
        raise ValueError(
            f"{weight_name}: expected shape {x.shape[:1]}, one weight for each row of {name}, got {weights.shape}"
        )


def _check_settings(distances: Any, eps: Any, tol: Any, max_iters: Any, rank: Any) -> None:
    if not callable(distances):
        raise ValueError(f"distances: expected a function of samples and their mask, got {distances!r}")
    least = 0.0 if rank is None else -1e-300
    check_range("eps", eps.scale if isinstance(eps, Relative) else eps, "a positive number", low=least)
    check_range("tol", tol, "a number of at least 0", low=-1e-300)
    for name, value in (("max_iters", max_iters), ("rank", 1 if rank is None else rank)):
        if isinstance(value, Tracer) or not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(
                f"{name}: expected an integer of at least 1, known at trace time (it is static), got {value}"
            )
