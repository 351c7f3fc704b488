"""Gromov-Wasserstein matching within one treatment, solved by ott-jax: distances within each modality, not across."""

from typing import Any

import numpy as np
from jax.core import Tracer

from psa_jax.arguments import checked, numbers
from psa_jax.coupling.coupling import Coupling
from psa_jax.match.cost import euclidean
from psa_jax.match.distances import Distances, plain_distances
from psa_jax.match.entropic import Relative, check_range
from psa_jax.types import Array, Cost, Float, Number

DEFAULT_EPS = Relative(0.05)


@checked
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
        >>> import jax.numpy as jnp
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
    from psa_jax.match.quadratic import solve  # ott-jax takes longer to import than all else together

    return solve((x, y), None, a, b, eps, 1.0, tol, distances, None, max_iters, rank)


@checked
def fused_gromov_wasserstein(
    u: Any,
    v: Any,
    a: Float[Array, " n"],
    b: Float[Array, " m"],
    *,
    alpha: Number = 0.5,
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
        >>> import jax.numpy as jnp
        >>> scores, x = jnp.array([[0.0], [1.0], [1.1]]), jnp.array([[0.0], [9.0], [4.0]])
        >>> w = jnp.full(3, 1 / 3)
        >>> C = fused_gromov_wasserstein((scores, x), (scores, x[::-1]), w, w, alpha=0.0, eps=0.01)
        >>> C.top_k(1)[1][:, 0].tolist()
        [0, 1, 2]

    References:
        Vayer et al., Algorithms 2020 (fused Gromov-Wasserstein); Peyre, Cuturi, Solomon, ICML 2016.
    """
    (p, x), (q, y) = _parts("u", u), _parts("v", v)
    for name, side, weight_name, weights in (("u", (p, x), "a", a), ("v", (q, y), "b", b)):
        for part, what in zip(side, (f"{name}'s scores", f"{name}'s features"), strict=True):
            _check_sides(what, part, weight_name, weights)
    if p.shape[1:] != q.shape[1:]:
        raise ValueError(f"u, v: expected scores with the same features, got shapes {p.shape} and {q.shape}")
    _check_settings(distances, eps, tol, max_iters, None)
    check_range("alpha", alpha, "a number in [0, 1]", low=-1e-300, high=1.0)
    from psa_jax.match.quadratic import solve  # ott-jax takes longer to import than all else together

    return solve((x, y), (p, q), a, b, eps, alpha, tol, distances, cost, max_iters, None)


def _parts(name: str, side: Any) -> tuple[Array, Array]:
    """Scores and features of one side."""
    if not isinstance(side, tuple | list):
        side = numbers(name, side)
        return side, side
    if len(side) != 2:
        raise ValueError(f"{name}: expected (scores, features), got {len(side)} arrays")
    return numbers(f"{name}'s scores", side[0]), numbers(f"{name}'s features", side[1])


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
