import functools

import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest
from problems import MATCHED, pair_of_clouds, ragged, uniform
from scipy.optimize import linear_sum_assignment

import psa_jax as psa
from psa_jax.match.cocluster import bounds

N, M = 200, 150
MATCH = functools.partial(psa.hierarchical, leaf=32, rounds=2)


def clusters(n=N, m=N, dim=3, seed=0, dtype=jnp.float32):
    """Two clouds of the same six clusters, in unequal proportions."""
    rng = np.random.default_rng(seed)
    centres = 4 * rng.normal(size=(6, dim))
    u, v = (centres[rng.integers(0, 6, k)] + 0.5 * rng.normal(size=(k, dim)) for k in (n, m))
    return jnp.asarray(u, dtype), jnp.asarray(v + 0.3, dtype)


def costs_of(u, v, metric="sqeuclidean"):
    return ot.dist(np.asarray(u, np.float64), np.asarray(v, np.float64), metric)


def pad(x, n):
    return jnp.concatenate([x, jnp.full((n, *x.shape[1:]), jnp.nan if x.ndim > 1 else 0.0, x.dtype)])


@pytest.mark.parametrize("data", [clusters, functools.partial(pair_of_clouds, N, N)])
@pytest.mark.parametrize(
    ("cost", "metric", "within"),
    [
        (psa.squared_euclidean, "sqeuclidean", 1.15),
        pytest.param(psa.euclidean, "euclidean", 1.12, marks=pytest.mark.slow),
        pytest.param(psa.cosine, "cosine", 1.15, marks=pytest.mark.slow),
    ],
)
def test_cost_is_near_that_of_the_best_bijection_and_far_below_low_rank(data, cost, metric, within):
    u, v = data()
    w, costs = uniform(N), costs_of(*data(), metric)
    plan = np.asarray(MATCH(u, v, w, w, cost=cost).dense(), np.float64)
    exact = costs[linear_sum_assignment(costs)].mean()
    assert exact * (1 - 1e-2) <= (plan * costs).sum() <= within * exact
    np.testing.assert_allclose(np.abs(plan.sum(0) - 1 / N).sum(), 0, atol=1e-3)
    np.testing.assert_allclose(np.abs(plan.sum(1) - 1 / N).sum(), 0, atol=1e-3)
    if cost is psa.squared_euclidean:
        low = float(psa.low_rank_sinkhorn(u, v, w, w, rank=16).info.details["transport_cost"])
        assert (plan * costs).sum() - exact < 0.3 * (low - exact)


@pytest.mark.parametrize(("n", "m"), [(N, M), (M, N)])
def test_sides_of_different_size(n, m):
    u, v = clusters(n, m)
    C = MATCH(u, v, uniform(n), uniform(m))
    plan, costs = np.asarray(C.dense(), np.float64), costs_of(u, v)
    exact = ot.emd2(np.full(n, 1 / n), np.full(m, 1 / m), costs)
    assert bool(C.info.converged)
    assert int(C.info.details["leaves"]) == 8
    assert (plan * costs).sum() < 1.2 * exact
    row_error, col_error = np.abs(plan.sum(1) - 1 / n).sum(), np.abs(plan.sum(0) - 1 / m).sum()
    assert row_error < 1e-3
    assert col_error <= float(C.info.marginal_error) + 1e-6 < 8 / N + 1e-3


def test_rounds_lower_the_cost_and_keep_the_marginals():
    u, v = pair_of_clouds(N, N, dim=8)
    w, costs, found = uniform(N), costs_of(u, v), []
    for rounds in (0, 4):
        plan = np.asarray(MATCH(u, v, w, w, rounds=rounds).dense(), np.float64)
        np.testing.assert_allclose(np.abs(plan.sum(0) - 1 / N).sum(), 0, atol=1e-3)
        found.append((plan * costs).sum())
    exact = costs[linear_sum_assignment(costs)].mean()
    assert found[1] - exact < 0.7 * (found[0] - exact)


def test_leaves_hold_their_share():
    for small, large in ((5, 7), (100, 100), (117, 1000), (1000, 117)):
        own, other = (np.asarray(x) for x in bounds(jnp.int32(small), jnp.int32(large), 3))
        assert (own[0], own[-1], other[0], other[-1]) == (0, small, 0, large)
        fewer = own if small <= large else other
        assert np.ptp(np.diff(fewer)) <= 1
        shares = np.abs(np.diff(own) / small - np.diff(other) / large)
        assert shares.max() <= 1 / max(small, large) + 1e-6


def test_a_row_meets_its_leaf_alone_and_methods_agree():
    u, v = clusters()
    C = MATCH(u, v, uniform(N), uniform(N))
    plan = C.dense()
    assert int((plan > 0).sum(1).max()) <= 25
    np.testing.assert_allclose(C.apply(v, chunk=7), (plan / plan.sum(1, keepdims=True)) @ v, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(C.T.dense(), plan.T, rtol=1e-3, atol=1e-9)
    p, j = C.top_k(2)
    np.testing.assert_allclose(C.log_prob(j[:, 0]), jnp.log(p[:, 0]), atol=1e-4)
    drawn = C.sample(jax.random.key(0))
    assert bool((plan[jnp.arange(N), drawn] > 0).all())
    assert "hierarchical transport (squared_euclidean)" in repr(C)


def test_padding_changes_nothing(x64):
    u, v = clusters(N, M, dtype=jnp.float64)
    a, b = uniform(N, u.dtype), uniform(M, u.dtype)
    plain, padded = MATCH(u, v, a, b), MATCH(pad(u, 40), pad(v, 20), pad(a, 40), pad(b, 20))
    assert int(plain.info.details["leaves"]) == int(padded.info.details["leaves"])
    np.testing.assert_allclose(padded.dense()[:N, :M], plain.dense(), atol=1e-9)
    assert float(padded.dense()[N:].max()) == float(padded.dense()[:, M:].max()) == 0
    assert bool(padded.info.converged)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 140), (9, 140), (140, 21), (60, 50)])
def test_few_real_samples_among_padding(n, m):
    u, v = clusters(n, m)
    C = MATCH(pad(u, N - n), pad(v, M - m), pad(uniform(n), N - n), pad(uniform(m), M - m))
    plan = np.asarray(C.dense(), np.float64)
    costs = costs_of(u, v)
    exact = ot.emd2(np.full(n, 1 / n), np.full(m, 1 / m), costs)
    assert bool(C.info.converged)
    assert plan[n:].sum() == plan[:, m:].sum() == 0
    np.testing.assert_allclose(plan.sum(1)[:n], 1 / n, rtol=1e-2)
    assert np.abs(plan.sum(0)[:m] - 1 / m).sum() <= float(C.info.marginal_error) + 1e-5 < 0.3
    assert (plan[:n, :m] * costs).sum() < 1.5 * exact + 1e-6


def test_permutations_permute_and_scales_do_not_matter(x64):
    u, v = clusters(dtype=jnp.float64)
    w = uniform(N, u.dtype)
    p, q = np.random.default_rng(0).permutation(N), np.random.default_rng(1).permutation(N)
    match = functools.partial(MATCH, a=w, b=w, tol=1e-7)
    plan = match(u, v).dense()
    np.testing.assert_allclose(match(u[p], v[q]).dense(), plan[p][:, q], atol=1e-8)
    np.testing.assert_allclose(match(1e3 * u, 1e3 * v).dense(), plan, atol=1e-8)


def test_treatments():
    u, v, y, _, _, groups = ragged()
    blocked = psa.blockwise(functools.partial(psa.hierarchical, leaf=16))(u, v, groups)
    assert np.flatnonzero(blocked.info.converged).tolist() == MATCHED
    assert bool(jnp.isfinite(blocked.apply(y)).all())
    assert bool(jnp.isfinite(blocked.T.apply(u)).all())


def test_info_is_honest():
    u, v = clusters()
    w, uneven = uniform(N), uniform(N).at[:50].mul(3.0) / 1.5
    assert bool(MATCH(u, v, w, w).info.converged)
    for bad in (
        MATCH(u, v, uneven, w),
        MATCH(u.at[0, 0].set(jnp.nan), v, w, w),
        MATCH(u, v, w, w, max_iters=1, tol=1e-5),
    ):
        assert not bool(bad.info.converged)
    C = MATCH(u, v, uneven, w)
    assert float(jnp.abs(C.col_marginal() - w).sum()) <= float(C.info.marginal_error) + 1e-5
    np.testing.assert_allclose(C.row_marginal(), uneven, atol=1e-4)


@pytest.mark.slow
def test_gradients_are_those_of_the_leaves(x64):
    u, v = clusters(60, 60, dtype=jnp.float64)
    w = uniform(60, u.dtype)

    def loss(scale):
        return (psa.hierarchical(scale * u, v, w, w, leaf=32, eps=0.5, tol=1e-9).apply(v) ** 2).sum()

    found = jax.grad(loss)(1.0)
    np.testing.assert_allclose(found, (loss(1 + 1e-5) - loss(1 - 1e-5)) / 2e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"leaf": 8}, "leaf: expected an integer of at least 16"),
        ({"leaf": 32.0}, "leaf: expected an integer, got 32.0"),
        ({"rounds": -1}, "rounds: expected an integer of at least 0"),
        ({"max_iters": 0}, "max_iters: expected an integer of at least 1"),
        ({"eps": 0.0}, "eps: expected a positive number"),
        ({"tol": float("nan")}, "tol: expected a positive number"),
        ({"cost": lambda x, y: x @ y}, "cost: expected squared_euclidean, euclidean or cosine"),
    ],
)
def test_bad_settings(settings, message):
    u, v = pair_of_clouds(4, 5)
    with pytest.raises(ValueError, match=message):
        psa.hierarchical(u, v, uniform(4), uniform(5), **settings)


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
        psa.hierarchical(jnp.ones(u), jnp.ones(v), uniform(n), uniform(m))
