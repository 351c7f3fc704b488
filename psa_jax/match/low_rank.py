"""Optimal transport by plans of low rank within one treatment, for millions of samples, solved by ott-jax."""

from psa_jax.arguments import checked
from psa_jax.coupling.coupling import Coupling
from psa_jax.match.cost import check, cosine, squared_euclidean
from psa_jax.match.entropic import check_range
from psa_jax.types import Array, Cost, Float


@checked
def low_rank_sinkhorn(
    u: Float[Array, "n d"],
    v: Float[Array, "m d"],
    a: Float[Array, " n"],
    b: Float[Array, " m"],
    *,
    rank: int = 32,
    gamma: float = 2.0,
    tol: float = 1e-3,
    max_iters: int = 500,
    cost: Cost = squared_euclidean,
) -> Coupling:
    r"""Matches one treatment by optimal transport of low rank, in time and memory `O((n + m) (rank + d))`.

    `min <P, C>` over plans `P = Q diag(1/g) R^T` with `Q 1 = a`, `R 1 = b` and `Q^T 1 = R^T 1 = g`, `[n, rank]`,
    `[m, rank]` and `[rank]`: mirror descent, each step projected on the constraints by Dykstra's iterations (ott-jax).
    Samples meet in `rank` groups, so that the plan is as sharp as these are small. The problem is not convex: the
    result is a local minimum, reached from landmarks common to both sides (farthest points, then k-means), each side
    centred on its own mean, as the plan does not depend on it. There is nothing random.

    Methods of the coupling still evaluate all pairs, chunk by chunk: `rank` multiplications a pair.

    Args:
        u: scores `[n, d]`.
        v: scores `[m, d]`.
        a: weights `[n]`, non-negative; zero for padding, which does not change the plan.
        b: weights `[m]`, with the same sum as `a`.
        rank: static. More than there are distinct samples is allowed and only costs time.
        gamma: the step of the mirror descent, in units of the mean absolute gradient: the answer does not change with
            the scale of the scores. Traced.
        tol: the L1 error of the marginals that counts as converged; the returned factors are rounded to them, as far
            as the precision goes. The descent stops when a step changes the factors by less than `10 tol`, measured
            by the square root of the symmetric KL divergence; float32 cannot resolve less than about 1e-4. Traced.
        max_iters: steps of the descent, static.
        cost: `squared_euclidean` or `cosine`, the costs that are products of `d` features; static.

    Returns:
        A coupling whose mass is the plan. `info.details`: `transport_cost`, `<P, C>`, and `rank`.
        `info.marginal_error` is measured on the returned factors; `info.converged` is False, never an exception,
        if it is above `tol` or the descent was still moving. Converged means nearly stationary, not optimal: extreme
        outliers dominate the mean gradient, and the other samples then stop early.
        Not differentiable: gradients in `u`, `v`, `a` and `b` are zero.

    Raises:
        ValueError: another cost; ranks and lengths that do not fit; rank, gamma, tol or max_iters out of range if they
            are known when tracing.

    Example:
        >>> import jax.numpy as jnp
        >>> u = jnp.array([[0.0], [0.1], [5.0], [5.1]])
        >>> C = low_rank_sinkhorn(u, u[::-1], jnp.full(4, 0.25), jnp.full(4, 0.25), rank=2)
        >>> (4 * C.dense()).round(1).tolist()
        [[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]]

    References:
        Scetbon, Cuturi and Peyre, Low-Rank Sinkhorn Factorization, ICML 2021 (arXiv 2103.04737), algorithms 2 and 3.
    """
    check(u, v, a, b)
    if cost not in (squared_euclidean, cosine):
        name = getattr(cost, "__name__", repr(cost))
        raise ValueError(f"cost: expected squared_euclidean or cosine, which have an exact low rank, got {name}")
    for name, value in (("rank", rank), ("max_iters", max_iters)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: expected an integer of at least 1, known at trace time (static), got {value!r}")
    check_range("gamma", gamma, "a positive number", low=0.0)
    check_range("tol", tol, "a positive number", low=0.0)
    from psa_jax.match.descent import descend  # ott-jax takes longer to import than all else together

    return descend(u, v, a, b, gamma, tol, rank, max_iters, cost)
