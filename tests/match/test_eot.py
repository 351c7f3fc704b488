import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import ot
import ott.geometry.costs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import MATCHED, pair_of_clouds, ragged, uniform

import psa_jax as psa


def rows(plan):
    return plan / plan.sum(1, keepdims=True)


@pytest.mark.parametrize("g", range(3))
def test_golden_converged(x64, golden, g):
    u, v = jnp.asarray(golden[f"s1_{g}"]), jnp.asarray(golden[f"s2_{g}"])
    C = psa.sinkhorn(u, v, uniform(len(u), u.dtype), uniform(len(v), u.dtype), eps=2.0, tol=1e-12, max_iters=20000)
    assert bool(C.info.converged)
    np.testing.assert_allclose(rows(C.dense()), golden[f"eot_soft_{g}"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("g", range(3))
def test_golden_stopped_after_a_thousand_iterations(x64, golden, g):
    u, v = jnp.asarray(golden[f"s1_{g}"]), jnp.asarray(golden[f"s2_{g}"])
    C = psa.sinkhorn(
        u, v, uniform(len(u), u.dtype), uniform(len(v), u.dtype), eps=0.05, tol=0.0, max_iters=1000, absorb=False
    )
    assert not bool(C.info.converged)
    assert int(C.info.num_iters) == 1000
    np.testing.assert_allclose(rows(C.dense()), golden[f"eot_{g}"], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("n", "m", "eps"), [(9, 14, 0.3), (17, 5, 0.1), (1, 6, 0.2), (12, 1, 0.5)])
@pytest.mark.parametrize(
    ("cost", "metric"),
    [(psa.euclidean, "euclidean"), (psa.squared_euclidean, "sqeuclidean"), (psa.cosine, "cosine")],
)
def test_pot_on_unequal_sides(x64, n, m, eps, cost, metric):
    u, v = pair_of_clouds(n, m, dtype=jnp.float64)
    rng = np.random.default_rng(1)
    a, b = rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(m))
    C = psa.sinkhorn(u, v, jnp.asarray(a), jnp.asarray(b), eps=eps, cost=cost, tol=1e-12, max_iters=20000)
    expected = ot.bregman.sinkhorn_log(
        a, b, ot.dist(np.asarray(u), np.asarray(v), metric), eps, numItermax=20000, stopThr=1e-13
    )
    np.testing.assert_allclose(C.dense(), expected, atol=1e-9)


@pytest.mark.parametrize("tau", [0.9, 0.5])
def test_pot_unbalanced(x64, tau):
    u, v = pair_of_clouds(8, 11, dtype=jnp.float64)
    a, b, eps = uniform(8, u.dtype), uniform(11, u.dtype), 0.3
    C = psa.sinkhorn(u, v, a, b, eps=eps, tau_a=tau, tau_b=tau, tol=1e-12, max_iters=20000)
    expected = ot.unbalanced.sinkhorn_unbalanced(
        np.asarray(a),
        np.asarray(b),
        ot.dist(np.asarray(u), np.asarray(v), "euclidean"),
        eps,
        eps * tau / (1 - tau),
        numItermax=20000,
        stopThr=1e-14,
    )
    assert bool(C.info.converged)
    np.testing.assert_allclose(C.dense(), expected, atol=1e-8)
    np.testing.assert_allclose(C.row_marginal(), expected.sum(1), atol=1e-8)
    np.testing.assert_allclose(float(C.info.details["mass"]), expected.sum(), atol=1e-8)


def test_costs_of_others(x64):
    u, v = pair_of_clouds(7, 6, dtype=jnp.float64)
    a, b = uniform(7, u.dtype), uniform(6, u.dtype)
    ours = psa.sinkhorn(u, v, a, b, eps=0.2, tol=1e-10, cost=psa.squared_euclidean).dense()
    theirs = psa.sinkhorn(u, v, a, b, eps=0.2, tol=1e-10, cost=ott.geometry.costs.SqEuclidean()).dense()
    np.testing.assert_allclose(ours, theirs, atol=1e-9)


def manhattan(x, y):
    return jnp.abs(x - y).sum()


def test_a_cost_of_ones_own(x64):
    u, v = pair_of_clouds(7, 6, dtype=jnp.float64)
    plan = psa.sinkhorn(
        u, v, uniform(7, u.dtype), uniform(6, u.dtype), eps=0.2, tol=1e-12, cost=manhattan, max_iters=9999
    )
    costs = ot.dist(np.asarray(u), np.asarray(v), "cityblock")
    expected = ot.bregman.sinkhorn_log(np.full(7, 1 / 7), np.full(6, 1 / 6), costs, 0.2, numItermax=9999, stopThr=1e-13)
    np.testing.assert_allclose(plan.dense(), expected, atol=1e-9)


def pad(x, n):
    return jnp.concatenate([x, jnp.zeros((n, *x.shape[1:]), x.dtype)])


def test_padding_changes_neither_plan_nor_scale(x64):
    u, v = pair_of_clouds(6, 9, dtype=jnp.float64)
    a, b = uniform(6, u.dtype), uniform(9, u.dtype)
    match = functools.partial(psa.sinkhorn, eps=psa.relative(0.1), tol=1e-11, max_iters=20000)
    plain, padded = match(u, v, a, b), match(pad(u, 5), pad(v, 3), pad(a, 5), pad(b, 3))
    np.testing.assert_allclose(plain.info.details["eps"], padded.info.details["eps"], rtol=1e-12)
    np.testing.assert_allclose(padded.dense()[:6, :9], plain.dense(), atol=1e-10)
    assert float(jnp.abs(padded.dense()[6:]).max()) == 0
    assert float(jnp.abs(padded.dense()[:, 9:]).max()) == 0


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), factor=st.floats(1e-3, 1e3))
def test_relative_eps_is_scale_free(seed, factor):
    u, v = pair_of_clouds(6, 7, seed=seed)
    a, b = uniform(6), uniform(7)
    match = functools.partial(psa.sinkhorn, tol=1e-4)
    np.testing.assert_allclose(match(u, v, a, b).dense(), match(factor * u, factor * v, a, b).dense(), atol=2e-4)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_permutations_permute(seed):
    u, v = pair_of_clouds(6, 7, seed=seed)
    p, q = np.random.default_rng(seed).permutation(6), np.random.default_rng(seed + 1).permutation(7)
    match = functools.partial(psa.sinkhorn, eps=0.5, tol=1e-4)
    plan = match(u, v, uniform(6), uniform(7)).dense()
    shuffled = match(u[p], v[q], uniform(6), uniform(7)).dense()
    np.testing.assert_allclose(shuffled, plan[p][:, q], atol=2e-4)


def test_info_is_honest():
    u, v = pair_of_clouds(30, 40)
    a, b = uniform(30), uniform(40)
    good = psa.sinkhorn(u, v, a, b, eps=0.5, tol=1e-3)
    hasty = psa.sinkhorn(u, v, a, b, eps=0.01, tol=1e-6, max_iters=5)
    assert bool(good.info.converged)
    assert not bool(hasty.info.converged)
    assert int(hasty.info.num_iters) == 5
    plan = good.dense()
    error = max(float(jnp.abs(plan.sum(1) - a).sum()), float(jnp.abs(plan.sum(0) - b).sum()))
    np.testing.assert_allclose(float(good.info.marginal_error), error, atol=1e-5)


@pytest.mark.parametrize("eps", [0.0, -1.0])
def test_a_traced_eps_out_of_range_is_reported(eps):
    u, v = pair_of_clouds(4, 5)
    C = jax.jit(lambda eps: psa.sinkhorn(u, v, uniform(4), uniform(5), eps=eps))(eps)
    assert not bool(C.info.converged)


def test_nan_scores_are_reported():
    u, v = pair_of_clouds(4, 5)
    C = psa.sinkhorn(u.at[0, 0].set(jnp.nan), v, uniform(4), uniform(5), eps=0.5)
    assert not bool(C.info.converged)


def directional(value, inputs, seed=3, step=1e-6):
    """Finite difference and gradient of `value` along one random direction."""
    rng = np.random.default_rng(seed)
    direction = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=jnp.shape(x)), jnp.float64), inputs)
    ahead, back = (value(jax.tree.map(lambda x, d, s=s: x + s * step * d, inputs, direction)) for s in (1, -1))
    gradient = jax.grad(value)(inputs)
    chex.assert_tree_all_finite(gradient)
    along = sum(jnp.vdot(g, d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True))
    return float((ahead - back) / (2 * step)), float(along)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tau", "cost"), [(0.9, psa.euclidean), (0.9, psa.cosine), (1.0, psa.euclidean), (1.0, psa.cosine)]
)
def test_gradients_under_padding_and_blocks(x64, tau, cost):
    u, v, y, _, _, groups = ragged(jnp.float64)
    w = jnp.asarray(np.random.default_rng(5).normal(size=(u.shape[0], 2)))
    matcher = functools.partial(psa.sinkhorn, tau_a=tau, tau_b=tau, cost=cost, tol=1e-13, max_iters=20000)

    @jax.jit
    def value(inputs):
        u, v, eps = inputs
        C = psa.blockwise(functools.partial(matcher, eps=eps))(u, v, groups)
        log_p = jnp.where(C.log_prob(j) > -jnp.inf, C.log_prob(j), 0)
        return (C.apply(y) * w).sum() + 0.01 * log_p.sum()

    j = psa.blockwise(psa.nearest)(u, v, groups).sample(jax.random.key(0))
    difference, gradient = directional(value, (u, v, jnp.asarray(0.4)))
    np.testing.assert_allclose(gradient, difference, rtol=1e-5)


def test_gradient_of_relative_eps_and_of_weights(x64):
    u, v = pair_of_clouds(5, 6, dtype=jnp.float64)
    y = jnp.arange(6.0)

    @jax.jit
    def value(inputs):
        scale, a, b = inputs
        a, b = jnp.append(jax.nn.softmax(a), 0.0), jnp.append(jax.nn.softmax(b), 0.0)
        C = psa.sinkhorn(pad(u, 1), pad(v, 1), a, b, eps=psa.relative(scale), tol=1e-13, max_iters=20000)
        return jnp.sum(C.apply(jnp.append(y, 0.0)) ** 2)

    difference, gradient = directional(value, (jnp.asarray(0.2), jnp.zeros(5), jnp.zeros(6)))
    np.testing.assert_allclose(gradient, difference, rtol=1e-5)


def test_gradient_at_coincident_points_is_finite():
    u = jnp.ones((4, 2))
    gradient = jax.grad(lambda u: psa.sinkhorn(u, u, uniform(4), uniform(4), eps=0.1).apply(jnp.arange(4.0)).sum())(u)
    assert bool(jnp.isfinite(gradient).all())


@pytest.mark.slow
def test_one_program_for_a_sweep_over_eps():
    u, v, y, _, _, groups = ragged()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def sweep(eps, scale):
        C = psa.blockwise(functools.partial(psa.sinkhorn, eps=eps))(u, v, groups)
        D = psa.blockwise(functools.partial(psa.sinkhorn, eps=psa.relative(scale)))(u, v, groups)
        return C.apply(y), D.apply(y)

    results = [sweep(eps, eps) for eps in (0.1, 0.3, 1.0)]
    assert not np.allclose(results[0][0], results[2][0])
    many = jax.vmap(lambda eps: psa.blockwise(functools.partial(psa.sinkhorn, eps=eps))(u, v, groups).apply(y))
    np.testing.assert_allclose(many(jnp.array([0.1, 0.3]))[1], results[1][0], atol=1e-4)


def test_bfloat16_scores_are_matched_in_float32():
    u, v = pair_of_clouds(6, 7)
    u, v = u.astype(jnp.bfloat16), v.astype(jnp.bfloat16)
    C = psa.sinkhorn(u, v, uniform(6), uniform(7), eps=0.5)
    assert C.dense().dtype == jnp.float32
    assert bool(C.info.converged)


def test_every_matched_treatment_converges():
    u, v, _, _, _, groups = ragged()
    info = psa.blockwise(psa.sinkhorn)(u, v, groups).info
    assert np.flatnonzero(info.converged).tolist() == MATCHED


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": 0.0}, "eps: expected a positive number, got 0.0"),
        ({"eps": -1.0}, "eps: expected a positive number"),
        ({"eps": jnp.ones(2)}, "eps: expected a positive number"),
        ({"eps": float("inf")}, "eps: expected a positive number"),
        ({"eps": None}, "eps: expected a positive number"),
        ({"eps": "0.1"}, "eps: expected a positive number"),
        ({"tol": -1.0}, "tol: expected"),
        ({"tau_a": 0.0}, "tau_a: expected a number in"),
        ({"tau_b": 1.5}, "tau_b: expected a number in"),
        ({"max_iters": 0}, "max_iters: expected at least 1"),
    ],
)
def test_bad_settings(settings, message):
    u, v = pair_of_clouds(4, 5)
    with pytest.raises(ValueError, match=message):
        psa.sinkhorn(u, v, uniform(4), uniform(5), **settings)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((4,), (5, 2), 4, 5), r"u: expected numbers \[n, d\]"),
        (((4, 2), (5,), 4, 5), r"v: expected numbers \[m, d\]"),
        (((4, 2), (5, 2), 3, 5), r"a: expected shape \(4,\)"),
        (((4, 2), (5, 2), 4, 4), r"b: expected shape \(5,\)"),
        (((4, 2), (5, 3), 4, 5), "the same features"),
        (((0, 2), (5, 2), 0, 5), "u: expected at least one sample"),
        (((4, 0), (5, 0), 4, 5), "u: expected at least one score of each sample"),
    ],
)
@pytest.mark.parametrize("matcher", [psa.sinkhorn, psa.snn, psa.nearest, psa.assignment])
def test_bad_shapes(matcher, shapes, message):
    u, v, n, m = shapes
    with pytest.raises(ValueError, match=message):
        matcher(jnp.ones(u), jnp.ones(v), jnp.ones(n), jnp.ones(m))


@pytest.mark.parametrize(
    ("u", "v"),
    [
        (np.full((5, 2), 1e4), np.full((4, 2), -1e4)),
        (np.full((1, 2), 1e5), np.full((2, 2), -1e5)),
        (np.ones((3, 2)), np.ones((4, 2))),
        (np.arange(6.0).reshape(3, 2), np.arange(8.0).reshape(4, 2) + 1e4),
    ],
)
def test_nearly_equal_costs_far_apart(u, v):
    C = psa.sinkhorn(jnp.asarray(u, jnp.float32), jnp.asarray(v, jnp.float32), uniform(len(u)), uniform(len(v)))
    assert bool(C.info.converged)
    np.testing.assert_allclose(C.dense().sum(), 1, atol=1e-3)


@pytest.mark.parametrize("scale", [0.0, -0.1, float("inf"), float("nan")])
def test_bad_relative_scale(scale):
    with pytest.raises(ValueError, match="scale: expected a positive number"):
        psa.relative(scale)
