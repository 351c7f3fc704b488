import functools

import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest
from problems import MATCHED, pair_of_clouds, ragged, uniform

import psa_jax as psa
from psa_jax.match.kernels import factored

N, M = 60, 45


def clusters(n=N, m=M, dim=3, seed=0, dtype=jnp.float32):
    """Two clouds of the same six clusters, in unequal proportions."""
    rng = np.random.default_rng(seed)
    centres = 4 * rng.normal(size=(6, dim))
    u, v = (centres[rng.integers(0, 6, k)] + 0.5 * rng.normal(size=(k, dim)) for k in (n, m))
    return jnp.asarray(u, dtype), jnp.asarray(v + 0.3, dtype)


def costs_of(u, v, metric="sqeuclidean"):
    return ot.dist(np.asarray(u, np.float64), np.asarray(v, np.float64), metric)


def pad(x, n):
    return jnp.concatenate([x, jnp.full((n, *x.shape[1:]), 7.0 if x.ndim > 1 else 0.0, x.dtype)])


@pytest.mark.parametrize(
    ("rank", "cost", "metric"),
    [(1, psa.squared_euclidean, "sqeuclidean"), (5, psa.squared_euclidean, "sqeuclidean"), (5, psa.cosine, "cosine")],
)
def test_plan_is_the_product_of_its_factors(x64, rank, cost, metric):
    u, v = clusters(dtype=jnp.float64)
    rng = np.random.default_rng(1)
    a, b = (jnp.asarray(rng.dirichlet(np.ones(k))) for k in (N, M))
    C = psa.low_rank_sinkhorn(u, v, a, b, rank=rank, cost=cost)
    (log_q, _), (log_r, _) = C.left, C.right
    plan = C.dense()
    np.testing.assert_allclose(plan, (jnp.exp(log_q) / jnp.exp(C.args)[None]) @ jnp.exp(log_r).T, atol=1e-12)
    assert np.linalg.matrix_rank(plan, tol=1e-9) <= rank
    np.testing.assert_allclose(plan.sum(1), a, atol=1e-9)
    np.testing.assert_allclose(plan.sum(0), b, atol=1e-9)
    np.testing.assert_allclose(C.info.details["transport_cost"], (plan * costs_of(u, v, metric)).sum(), rtol=1e-9)
    assert int(C.info.details["rank"]) == rank
    assert bool(C.info.converged)


@pytest.mark.parametrize("data", [clusters, lambda: pair_of_clouds(N, M)])
def test_cost_is_near_that_of_full_rank_and_not_of_independence(data):
    u, v = data()
    a, b, costs = uniform(N), uniform(M), costs_of(*data())
    low = float(psa.low_rank_sinkhorn(u, v, a, b, rank=16).info.details["transport_cost"])
    full = (psa.sinkhorn(u, v, a, b, eps=0.1, cost=psa.squared_euclidean, tol=1e-3).dense() * costs).sum()
    exact = ot.emd2(np.full(N, 1 / N), np.full(M, 1 / M), costs)
    independent = costs.mean()
    assert exact * (1 - 1e-3) <= low <= exact + 0.15 * (independent - exact)
    assert abs(low - full) < 0.15 * (independent - full)


def test_not_worse_than_pot(x64):
    u, v = clusters(dtype=jnp.float64)
    q, r, g = ot.lowrank.lowrank_sinkhorn(
        np.asarray(u), np.asarray(v), rank=5, init="kmeans", seed_init=0, numItermax=300, warn=False
    )
    theirs = ((q / g) @ r.T * costs_of(u, v)).sum()
    ours = psa.low_rank_sinkhorn(u, v, uniform(N, u.dtype), uniform(M, u.dtype), rank=5)
    assert float(ours.info.details["transport_cost"]) < 1.02 * theirs


def test_padding_changes_nothing(x64):
    u, v = clusters(dtype=jnp.float64)
    a, b = uniform(N, u.dtype), uniform(M, u.dtype)
    match = functools.partial(psa.low_rank_sinkhorn, rank=5)
    plain, padded = match(u, v, a, b), match(pad(u, 9), pad(v, 4), pad(a, 9), pad(b, 4))
    np.testing.assert_allclose(padded.dense()[:N, :M], plain.dense(), atol=1e-9)
    assert float(padded.dense()[N:].max()) == 0
    assert float(padded.dense()[:, M:].max()) == 0
    np.testing.assert_allclose(padded.info.details["transport_cost"], plain.info.details["transport_cost"], rtol=1e-9)


def test_padding_may_be_nan():
    u, v = clusters()
    C = psa.low_rank_sinkhorn(
        pad(u, 1).at[-1].set(jnp.nan), pad(v, 1).at[-1].set(jnp.nan), pad(uniform(N), 1), pad(uniform(M), 1), rank=5
    )
    assert bool(C.info.converged)
    assert bool(jnp.isfinite(C.apply(pad(v, 1))).all())


def test_laws_of_a_coupling():
    u, v = clusters()
    C = psa.low_rank_sinkhorn(u, v, uniform(N), uniform(M), rank=5)
    np.testing.assert_allclose(C.apply(v, chunk=7), C.apply(v), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(C.T.T.dense(), C.dense())
    np.testing.assert_allclose(C.T.dense(), C.dense().T, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(C.dense().sum(1), C.row_marginal(), atol=1e-6)


def test_permutations_permute(x64):
    u, v = clusters(dtype=jnp.float64)
    p, q = np.random.default_rng(0).permutation(N), np.random.default_rng(1).permutation(M)
    match = functools.partial(psa.low_rank_sinkhorn, a=uniform(N, u.dtype), b=uniform(M, u.dtype), rank=5)
    np.testing.assert_allclose(match(u[p], v[q]).dense(), match(u, v).dense()[p][:, q], atol=1e-9)


@pytest.mark.parametrize(("factor", "shift"), [(1e-3, 0.0), (1e3, 0.0), (1.0, 50.0)])
def test_scale_and_shift_of_a_side_do_not_matter(x64, factor, shift):
    u, v = clusters(dtype=jnp.float64)
    match = functools.partial(psa.low_rank_sinkhorn, a=uniform(N, u.dtype), b=uniform(M, u.dtype), rank=5)
    np.testing.assert_allclose(match(factor * u, factor * v + shift).dense(), match(u, v).dense(), atol=1e-8)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 4), (3, 2)])
def test_rank_above_the_number_of_samples(n, m):
    u, v = pair_of_clouds(n, m)
    C = psa.low_rank_sinkhorn(u, v, uniform(n), uniform(m), rank=16)
    exact = ot.emd2(np.full(n, 1 / n), np.full(m, 1 / m), costs_of(u, v))
    assert bool(C.info.converged)
    np.testing.assert_allclose(C.dense().sum(1), uniform(n), atol=1e-5)
    np.testing.assert_allclose(C.info.details["transport_cost"], exact, rtol=0.02)


def test_equal_samples():
    C = psa.low_rank_sinkhorn(jnp.ones((4, 2)), jnp.ones((3, 2)), uniform(4), uniform(3), rank=5)
    assert bool(C.info.converged)
    np.testing.assert_allclose(C.dense(), 1 / 12, atol=1e-6)


def test_outliers_do_not_break_it():
    u, v = clusters()
    C = psa.low_rank_sinkhorn(u.at[0].set(1e3), v.at[0].set(-1e3), uniform(N), uniform(M), rank=5)
    assert bool(jnp.isfinite(C.dense()).all())
    assert float(C.info.marginal_error) < 1e-4


def test_info_is_honest():
    u, v = clusters()
    C = psa.low_rank_sinkhorn(u, v, uniform(N), uniform(M), rank=5)
    hasty = psa.low_rank_sinkhorn(u, v, uniform(N), uniform(M), rank=5, max_iters=2)
    lost = psa.low_rank_sinkhorn(u.at[0, 0].set(jnp.nan), v, uniform(N), uniform(M), rank=5)
    unequal = psa.low_rank_sinkhorn(u, v, uniform(N), 2 * uniform(M), rank=5)
    error = max(
        float(jnp.abs(C.dense().sum(1) - uniform(N)).sum()), float(jnp.abs(C.dense().sum(0) - uniform(M)).sum())
    )
    assert bool(C.info.converged)
    np.testing.assert_allclose(C.info.marginal_error, error, atol=1e-5)
    assert int(hasty.info.num_iters) == 2
    for bad in (hasty, lost, unequal):
        assert not bool(bad.info.converged)


@pytest.mark.slow
def test_blocks_jit_and_vmap():
    u, v, y, _, _, groups = ragged()
    match = functools.partial(psa.low_rank_sinkhorn, rank=3)
    blocked = psa.blockwise(match)(u, v, groups)
    assert np.flatnonzero(blocked.info.converged).tolist() == MATCHED
    assert bool(jnp.isfinite(blocked.apply(y)).all())
    u, v = clusters()
    us = jnp.stack([u, 2 * u + 1])
    match = functools.partial(psa.low_rank_sinkhorn, a=uniform(N), b=uniform(M), rank=5)
    batched = jax.jit(jax.vmap(lambda u: match(u, v).apply(v)))(us)
    np.testing.assert_allclose(batched[1], match(us[1], v).apply(v), atol=1e-2)


def test_kernel_without_mass_and_far_below_underflow():
    left = jnp.array([[0.0, -jnp.inf], [-jnp.inf, -jnp.inf], [-300.0, -310.0]])
    right = jnp.array([[-200.0, -210.0], [-jnp.inf, 0.0]])
    args = jnp.log(jnp.array([0.5, 0.5]))
    expected = jax.nn.logsumexp(left[:, None] + right[None] - args[None, None], axis=-1)
    np.testing.assert_allclose(factored(left, right, args), expected, rtol=1e-6)
    gradient = jax.grad(lambda x: jnp.where(factored(x, right, args) > -jnp.inf, factored(x, right, args), 0).sum())
    assert bool(jnp.isfinite(gradient(left)).all())


def test_gradients_are_zero():
    u, v = clusters(12, 9)
    gradient = jax.grad(lambda u: psa.low_rank_sinkhorn(u, v, uniform(12), uniform(9), rank=3).apply(v).sum())(u)
    assert float(jnp.abs(gradient).max()) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank: expected an integer of at least 1"),
        ({"rank": 2.0}, "rank: expected an integer, got 2.0"),
        ({"max_iters": 0}, "max_iters: expected an integer of at least 1"),
        ({"gamma": 0.0}, "gamma: expected a positive number"),
        ({"gamma": float("nan")}, "gamma: expected a positive number"),
        ({"tol": -1.0}, "tol: expected a positive number"),
        ({"cost": psa.euclidean}, "cost: expected squared_euclidean or cosine, .* got euclidean"),
    ],
)
def test_bad_settings(settings, message):
    u, v = pair_of_clouds(4, 5)
    with pytest.raises(ValueError, match=message):
        psa.low_rank_sinkhorn(u, v, uniform(4), uniform(5), **settings)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((4,), (5, 2), 4, 5), r"u: expected numbers \[n, d\]"),
        (((4, 2), (5, 2), 3, 5), r"a: expected shape \(4,\)"),
        (((4, 2), (5, 3), 4, 5), "the same features"),
    ],
)
def test_bad_shapes(shapes, message):
    u, v, n, m = shapes
    with pytest.raises(ValueError, match=message):
        psa.low_rank_sinkhorn(jnp.ones(u), jnp.ones(v), uniform(n), uniform(m))
