import functools

import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest
from problems import MATCHED, ragged, slow, uniform
from scipy.spatial.distance import cdist
from scipy.stats import ortho_group

import psa_jax as psa
from psa_jax.match.distances import geodesics, plain_distances


def clouds(n=12, m=9, dtype=jnp.float32, seed=0):
    """Two lopsided clouds of 3 and 5 features with the same hidden shape, so that few local optima compete."""
    rng = np.random.default_rng(seed)
    hidden = rng.gamma(1.0, size=(max(n, m), 2)) * [3.0, 1.0]
    x, y = hidden[:n] @ rng.normal(size=(2, 3)), hidden[:m] @ rng.normal(size=(2, 5))
    return jnp.asarray(x, dtype), jnp.asarray(y, dtype)


def skewed(n, dtype=jnp.float64):
    weights = np.arange(1, n + 1)
    return jnp.asarray(weights / weights.sum(), dtype)


def own_distances(x):
    d = cdist(x, x)
    return d / d.max()


def padded(x, w, extra):
    fill = jnp.full((extra, *x.shape[1:]), 7.0, x.dtype)
    return jnp.concatenate([x, fill]), jnp.concatenate([w, jnp.zeros(extra, w.dtype)])


def correlation_hops(x, real):
    """SCOT's distances on the golden data: the 12 nearest by correlation, the sample itself among them."""
    return geodesics(x - x.mean(1, keepdims=True), real, k=11, cost=psa.cosine)


def plan_sides(plan):
    return plan.sum(1), plan.sum(0)


@pytest.mark.parametrize("eps", [0.02, 0.1])
def test_plans_are_those_of_pot(x64, eps):
    x, y = clouds(dtype=jnp.float64)
    a, b = skewed(12), skewed(9)
    C = psa.gromov_wasserstein(x, y, a, b, eps=eps, tol=1e-9, max_iters=2000)
    plan, log = ot.gromov.entropic_gromov_wasserstein(
        own_distances(x),
        own_distances(y),
        np.asarray(a),
        np.asarray(b),
        "square_loss",
        epsilon=eps,
        tol=1e-10,
        log=True,
    )
    assert bool(C.info.converged)
    np.testing.assert_allclose(C.dense(), plan, atol=1e-7)
    np.testing.assert_allclose(C.info.details["gw_cost"], log["gw_dist"], rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.3, 0.8])
def test_fused_plans_are_those_of_pot(x64, alpha):
    x, y = clouds(dtype=jnp.float64)
    u, v = x[:, :2] / 5, y[:, :2] / 5
    a, b = skewed(12), skewed(9)
    C = psa.fused_gromov_wasserstein((u, x), (v, y), a, b, alpha=alpha, eps=0.05, tol=1e-9, max_iters=2000)
    args = cdist(u, v), own_distances(x), own_distances(y), np.asarray(a), np.asarray(b), "square_loss"
    plan = ot.gromov.entropic_fused_gromov_wasserstein(*args, epsilon=0.05, alpha=alpha, tol=1e-10)
    assert bool(C.info.converged)
    np.testing.assert_allclose(C.dense(), plan, atol=1e-7)
    np.testing.assert_allclose(C.info.details["linear_cost"], (plan * args[0]).sum(), rtol=1e-6)


def test_fused_without_the_distances_is_transport(x64):
    x, y = clouds(dtype=jnp.float64)
    u, v = x[:, :2], y[:, :2]
    w = uniform(12, jnp.float64), uniform(9, jnp.float64)
    settings = {"eps": 0.1, "tol": 1e-8}
    linear = psa.fused_gromov_wasserstein((u, x), (v, y), *w, alpha=0.0, **settings)
    np.testing.assert_allclose(linear.dense(), psa.sinkhorn(u, v, *w, **settings).dense(), atol=1e-7)


@pytest.mark.slow
def test_scot_is_reproduced(x64, golden):
    # The settings are not recorded with the data. They were inferred: with these the golden plan is a fixed point of
    # entropic Gromov-Wasserstein to 4e-9, with eps 0.01 to ten digits. It is 60 times a plan of uniform weights.
    x, y = jnp.asarray(golden["scot_x"]), jnp.asarray(golden["scot_y"])
    plan = golden["scot_coupling"] / 60
    w = uniform(60, jnp.float64)
    C = psa.gromov_wasserstein(x, y, w, w, distances=correlation_hops, eps=0.01, tol=1e-8, max_iters=1000)
    assert bool(C.info.converged)
    np.testing.assert_allclose(60 * C.dense(), 60 * plan, atol=1e-6)
    quick = psa.gromov_wasserstein(x, y, w, w, distances=correlation_hops, eps=0.01)
    assert bool(quick.info.converged)
    dx, dy = (np.asarray(correlation_hops(z, w > 0)) for z in (x, y))
    golden_cost = ot.gromov.gwloss(*ot.gromov.init_matrix(dx, dy, *plan_sides(plan)), plan)
    assert float(quick.info.details["gw_cost"]) < 1.02 * float(golden_cost)


@pytest.mark.parametrize("settings", [{}, {"distances": geodesics}, *slow({"rank": 3, "eps": 0.0})])
def test_padding_changes_nothing(x64, settings):
    x, y = clouds(14, 11, jnp.float64)
    a, b = uniform(14, jnp.float64), uniform(11, jnp.float64)
    plain = psa.gromov_wasserstein(x, y, a, b, tol=1e-8, max_iters=1000, **settings)
    (xp, ap), (yp, bp) = padded(x, a, 5), padded(y, b, 3)
    more = psa.gromov_wasserstein(xp, yp, ap, bp, tol=1e-8, max_iters=1000, **settings)
    np.testing.assert_allclose(more.dense()[:14, :11], plain.dense(), atol=1e-7)
    assert float(more.dense()[14:].sum() + more.dense()[:, 11:].sum()) == 0
    for name, value in plain.info.details.items():
        np.testing.assert_allclose(more.info.details[name], value, atol=1e-7)


def test_fused_padding_in_single_precision():
    x, y = clouds(14, 11)
    a, b = uniform(14), uniform(11)
    (xp, ap), (yp, bp) = padded(x, a, 5), padded(y, b, 3)
    match = functools.partial(psa.fused_gromov_wasserstein, tol=1e-4, eps=0.05)
    plain, more = (
        match((x[:, :2], x[:, 2:]), (y[:, :2], y[:, 2:3]), a, b) for x, y, a, b in ((x, y, a, b), (xp, yp, ap, bp))
    )
    assert bool(plain.info.converged)
    np.testing.assert_allclose(more.dense()[:14, :11], plain.dense(), atol=1e-4)


@pytest.mark.slow
def test_rotation_changes_nothing_and_the_shape_is_found(x64):
    x, _ = clouds(20, 20, jnp.float64)
    turn = jnp.asarray(ortho_group.rvs(3, random_state=0))
    w = uniform(20, jnp.float64)
    C = psa.gromov_wasserstein(x, x, w, w, eps=1e-3, tol=1e-8, max_iters=1000)
    turned = psa.gromov_wasserstein(x @ turn.T + 3.0, x, w, w, eps=1e-3, tol=1e-8, max_iters=1000)
    np.testing.assert_allclose(turned.dense(), C.dense(), atol=1e-7)
    assert float(jnp.trace(turned.dense())) > 0.5


@pytest.mark.parametrize("rank", [None, 6])
def test_the_report_is_that_of_the_plan(rank):
    x, y = clouds(15, 10)
    a, b = uniform(15), uniform(10)
    C = psa.gromov_wasserstein(x, y, a, b, rank=rank)
    plan = np.asarray(C.dense(), np.float64)
    error = max(abs(plan.sum(1) - a).sum(), abs(plan.sum(0) - b).sum())
    np.testing.assert_allclose(C.info.marginal_error, error, atol=1e-5)
    dx, dy = own_distances(x), own_distances(y)
    costs = (
        ot.gromov.gwloss(*ot.gromov.init_matrix(dx, dy, *plan_sides(p)), p) for p in (plan, np.full((15, 10), 1 / 150))
    )
    cost, independent = costs
    np.testing.assert_allclose(C.info.details["gw_cost"], cost, rtol=1e-3)
    assert cost < 0.7 * independent
    assert bool(C.info.converged)
    assert float(C.info.marginal_error) < 1e-3
    if rank is not None:
        assert np.linalg.matrix_rank(plan, tol=1e-6) <= rank
    np.testing.assert_allclose(C.T.dense(), C.dense().T)


def test_too_few_iterations_are_reported():
    x, y = clouds(15, 10)
    assert not bool(psa.gromov_wasserstein(x, y, uniform(15), uniform(10), max_iters=1).info.converged)


def test_geodesics_are_shortest_paths_along_the_graph():
    line = jnp.asarray([[0.0], [1.0], [2.2], [3.6], [99.0]])
    real = jnp.arange(5) < 4
    hops = geodesics(line, real, k=1)
    np.testing.assert_allclose(hops[0, :4], np.array([0, 1, 2, 3]) / 3, rtol=1e-6)
    lengths = geodesics(line, real, k=1, hops=False)
    np.testing.assert_allclose(lengths[0, :4], np.array([0, 1, 2.2, 3.6]) / 3.6, rtol=1e-5)
    np.testing.assert_allclose(plain_distances(line, real)[:4, :4], own_distances(line[:4]), atol=1e-5)
    np.testing.assert_array_equal(geodesics(line[:1], real[:1]), [[0.0]])


def test_graphs_in_parts_are_matched_and_reported():
    x, y = clouds(12, 12)
    x = x.at[8:].add(1000.0)
    C = psa.gromov_wasserstein(x, y, uniform(12), uniform(12), distances=functools.partial(geodesics, k=2))
    assert bool(jnp.isfinite(C.dense()).all())
    assert float(C.info.details["unreachable_a"]) >= 2 * 8 * 4 / 144 - 1e-6


def test_input_that_is_not_finite_is_reported():
    x, y = clouds()
    C = psa.gromov_wasserstein(x.at[0, 0].set(jnp.nan), y, uniform(12), uniform(9), distances=geodesics)
    assert not bool(C.info.converged)
    C = psa.fused_gromov_wasserstein((x.at[0, 0].set(jnp.inf)[:, :2], x), (y[:, :2], y), uniform(12), uniform(9))
    assert not bool(C.info.converged)


def test_blocks_of_unequal_groups():
    matcher = functools.partial(psa.fused_gromov_wasserstein, distances=geodesics, eps=psa.relative(0.1))
    u, v, y, t_a, t_b, groups = ragged()
    C = psa.blockwise(matcher)(u, v, groups)
    assert np.asarray(C.info.converged)[MATCHED].all()
    i, j = np.flatnonzero(t_a == 4), np.flatnonzero(t_b == 4)
    alone = matcher(u[i], v[j], uniform(i.size), uniform(j.size))
    np.testing.assert_allclose(C.info.details["gw_cost"][4], alone.info.details["gw_cost"], rtol=2e-3)
    np.testing.assert_allclose(C.apply(y)[i], alone.apply(y[j]), atol=0.02)


def low_rank(u, v, a, b):
    """Low rank between 3 and 2 features, as a matcher of one's own."""
    return psa.gromov_wasserstein(u, v[:, :2], a, b, rank=2)


def test_low_rank_blocks_with_different_features():
    rng = np.random.default_rng(0)
    u, v = jnp.asarray(rng.normal(size=(12, 3)), jnp.float32), jnp.asarray(rng.normal(size=(9, 5)), jnp.float32)
    t_a, t_b = np.repeat([0, 1], 6), np.repeat([0, 1], [4, 5])
    C = psa.blockwise(low_rank)(u, v, psa.group(t_a, t_b, 2))
    assert np.asarray(C.info.converged).all()
    np.testing.assert_allclose(C.dense()[t_a == 0].sum(), 0.5, atol=2e-3)


def test_vmap_over_the_host_callback_and_no_gradients():
    x, y = clouds(6, 6)

    def spread(x):
        return psa.gromov_wasserstein(x, y, uniform(6), uniform(6), distances=geodesics).apply(y).std()

    values = jax.vmap(spread)(jnp.stack([x, 2 * x]))
    np.testing.assert_allclose(values[1], values[0], rtol=1e-3)
    assert not jax.grad(spread)(x).any()


def test_a_sweep_over_eps_is_one_program():
    x, y = clouds()
    sweep = jax.vmap(lambda eps: psa.gromov_wasserstein(x, y, uniform(12), uniform(9), eps=eps).info.details["gw_cost"])
    costs = np.asarray(sweep(jnp.asarray([0.005, 0.05, 0.5])))
    assert costs[0] < costs[1] < costs[2]


X, Y, A, B = jnp.zeros((3, 2)), jnp.zeros((4, 5)), jnp.full(3, 1 / 3), jnp.full(4, 1 / 4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: psa.gromov_wasserstein(X[:, 0], Y, A, B), r"x: expected numbers \[n, p\]"),
        (lambda: psa.gromov_wasserstein(X, Y, A, A), "b: expected shape"),
        (lambda: psa.gromov_wasserstein(X, Y, A, B, eps=0.0), "eps: expected"),
        (lambda: psa.gromov_wasserstein(X, Y, A, B, tol=-1.0), "tol: expected"),
        (lambda: psa.gromov_wasserstein(X, Y, A, B, max_iters=0), "max_iters: expected"),
        (lambda: psa.gromov_wasserstein(X, Y, A, B, rank=0), "rank: expected"),
        (lambda: psa.gromov_wasserstein(X, Y, A, B, distances="geodesics"), "distances: expected"),
        (lambda: psa.gromov_wasserstein(X, Y, A, B, distances=lambda x, real: x), "distances: expected"),
        (lambda: geodesics(X, A > 0, k=0), "k: expected"),
        (lambda: psa.fused_gromov_wasserstein((X, X), (Y, Y), A, B), "u, v: expected scores"),
        (lambda: psa.fused_gromov_wasserstein(X, X, A, A, alpha=1.1), "alpha: expected"),
        (lambda: psa.fused_gromov_wasserstein(X, X, A, A, alpha=-0.1), "alpha: expected"),
        (lambda: psa.fused_gromov_wasserstein((X, X, X), X, A, A), r"u: expected \(scores, features\)"),
        (lambda: psa.fused_gromov_wasserstein((X,), (X,), A, A), "u: expected"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
