"""The fast paths of `sinkhorn` against ott-jax as it is, POT and finite differences."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import pair_of_clouds, ragged, slow, uniform
from test_eot import directional, pad

import psa_jax as psa
from psa_jax.match.cost import pairwise

TILES, KEPT = 3 * 8 * 20, 4000
exact = functools.partial(psa.sinkhorn, tol=1e-11, max_iters=20000)


@pytest.mark.parametrize(
    ("cost", "tau"), [(psa.euclidean, 1.0), (psa.euclidean, 0.95), (psa.squared_euclidean, 1.0), (psa.cosine, 1.0)]
)
def test_absorbed_and_tiled_plans_are_those_of_ott_jax(x64, cost, tau):
    u, v = pair_of_clouds(23, 17, dtype=jnp.float64)
    a, b = jnp.append(uniform(20, u.dtype), jnp.zeros(3)), uniform(17, u.dtype)
    for scale in (0.01, 0.1, 2.0):
        match = functools.partial(exact, u, v, a, b, eps=psa.relative(scale), tau_a=tau, tau_b=tau, cost=cost)
        found = oracle, stored, tiled, kept = match(absorb=False), match(), match(memory=TILES), match(memory=KEPT)
        for C in found:
            assert bool(C.info.converged)
        np.testing.assert_allclose(stored.dense(), oracle.dense(), atol=1e-9)
        np.testing.assert_allclose(tiled.dense(), stored.dense(), atol=1e-10)
        np.testing.assert_allclose(kept.dense(), stored.dense(), atol=1e-10)
        paths = [(bool(C.info.details["absorbed"]), bool(C.info.details["tiled"])) for C in found]
        assert paths == [(False, False), (True, False), (True, True), (True, True)]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([0.02, 0.1, 0.5]))
def test_tiles_change_nothing(seed, scale):
    u, v = pair_of_clouds(13, 11, seed=seed)
    match = functools.partial(psa.sinkhorn, u, v, uniform(13), uniform(11), eps=psa.relative(scale), tol=1e-4)
    np.testing.assert_allclose(match(memory=TILES).dense(), match().dense(), atol=2e-5)


def test_a_hard_problem_converges_in_float32():
    key_u, key_v = jax.random.split(jax.random.key(0))
    u, v = (5 * jax.random.normal(key, (150, 4)) for key in (key_u, key_v))
    C = psa.sinkhorn(u, v, uniform(150), uniform(150), eps=0.05)
    assert bool(C.info.converged)
    plan = np.asarray(C.dense(), np.float64)
    assert np.abs(plan.sum(1) - 1 / 150).sum() < 1.1e-3
    assert np.abs(plan.sum(0) - 1 / 150).sum() < 1.1e-3
    costs = ot.dist(np.asarray(u, np.float64), np.asarray(v, np.float64), "euclidean")
    weights = np.full(150, 1 / 150)
    expected = ot.bregman.sinkhorn_log(weights, weights, costs, 0.05, numItermax=2000, warn=False)
    np.testing.assert_allclose((plan * costs).sum(), (expected * costs).sum(), rtol=2e-3)


@pytest.mark.slow
def test_newton_goes_where_the_loop_does_not(x64):
    u, v = pair_of_clouds(60, 50, dtype=jnp.float64)
    a, b = uniform(60, u.dtype), uniform(50, u.dtype)
    match = functools.partial(psa.sinkhorn, u, v, a, b, eps=psa.relative(0.01), tol=1e-9, max_iters=100)
    assert not bool(match().info.converged)
    for memory in (2**31, TILES):
        C = match(newton=20, memory=memory)
        assert bool(C.info.converged)
        assert 1 <= int(C.info.details["newton_steps"]) <= 20
        np.testing.assert_allclose(C.row_marginal(), a, atol=1e-9)
    unbalanced = functools.partial(match, tau_a=0.9, tau_b=0.95)
    np.testing.assert_allclose(
        unbalanced(newton=20).dense(), unbalanced(absorb=False, max_iters=20000).dense(), atol=1e-8
    )


def test_newton_in_single_precision():
    u, v = pair_of_clouds(60, 50)
    C = psa.sinkhorn(u, v, uniform(60), uniform(50), eps=psa.relative(0.02), tol=2e-5, newton=10, max_iters=100)
    assert bool(C.info.converged)


def test_an_unreachable_tolerance_stops_and_says_what_was_reached():
    u, v = pair_of_clouds(60, 50)
    C = psa.sinkhorn(u, v, uniform(60), uniform(50), eps=0.05, tol=0.0, max_iters=100_000)
    assert not bool(C.info.converged)
    assert int(C.info.num_iters) < 20_000
    assert float(C.info.marginal_error) < 1e-4
    np.testing.assert_allclose(np.abs(C.row_marginal() - 1 / 60).sum(), C.info.details["row_error"], atol=1e-5)


@pytest.mark.parametrize("memory", [2**31, TILES])
def test_an_eps_too_small_for_single_precision(memory):
    u, v = pair_of_clouds(20, 20)
    match = functools.partial(psa.sinkhorn, 1e3 * u, 1e3 * v, uniform(20), uniform(20), eps=1e-4, memory=memory)
    C = match()
    assert not bool(C.info.converged)
    assert float(C.info.details["rounding"]) > 0.1
    assert np.isfinite(np.asarray(C.dense())).all()
    with jax.enable_x64(True):
        C = match(max_iters=20000)
        assert bool(C.info.converged)
        assert C.dense().dtype == jnp.float64


def only_same_sign(x, y):
    return jnp.where(x[0] * y[0] > 0, jnp.abs(x - y).sum(), jnp.inf)


def never(x, y):
    return jnp.full((), jnp.inf, x.dtype)


@pytest.mark.parametrize("settings", [{}, {"absorb": False}, *slow({"memory": TILES})])
def test_infinite_costs_forbid_their_pairs(x64, settings):
    u, v = pair_of_clouds(12, 12, dtype=jnp.float64)
    u, v = (x.at[:, 0].set(jnp.where(jnp.arange(12) < 6, 1, -1) * (1 + jnp.abs(x[:, 0]))) for x in (u, v))
    a = uniform(12, u.dtype)
    match = functools.partial(exact, eps=0.3, cost=only_same_sign, **settings)
    C = match(u, v, a, a)
    assert bool(C.info.converged)
    costs = np.array([[only_same_sign(x, y) for y in v] for x in u])
    forbidden = ~np.isfinite(costs)
    assert forbidden.sum() == 72
    assert np.asarray(C.dense())[forbidden].max() == 0
    halves = [
        ot.bregman.sinkhorn_log(np.full(6, 1 / 12), np.full(6, 1 / 12), c, 0.3, numItermax=20000, stopThr=1e-13)
        for c in (costs[:6, :6], costs[6:, 6:])
    ]
    np.testing.assert_allclose(C.dense()[:6, :6], halves[0], atol=1e-9)
    np.testing.assert_allclose(C.dense()[6:, 6:], halves[1], atol=1e-9)
    y = jnp.arange(12.0)
    difference, gradient = directional(jax.jit(lambda inputs: (match(*inputs, a, a).apply(y) ** 2).sum()), (u, v))
    np.testing.assert_allclose(gradient, difference, rtol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"memory": TILES}, {"absorb": False}])
def test_a_problem_without_any_plan_is_reported(settings):
    u, v = pair_of_clouds(5, 6)
    C = psa.sinkhorn(u, v, uniform(5), uniform(6), eps=0.3, cost=never, **settings)
    assert not bool(C.info.converged)
    assert float(jnp.abs(C.apply(jnp.ones(6))).max()) == 0
    one_sided = psa.sinkhorn(u, v, uniform(5), jnp.zeros(6), eps=0.3, **settings)
    assert not bool(one_sided.info.converged)
    assert not np.isnan(np.asarray(one_sided.apply(jnp.ones(6)))).any()


def test_zero_weights_on_one_side_only(x64):
    u, v = pair_of_clouds(8, 9, dtype=jnp.float64)
    a = uniform(8, u.dtype)
    b = jnp.where(jnp.arange(9) % 3 == 0, 0, 1 / 6)
    C = exact(u, v, a, b, eps=0.3)
    kept = np.flatnonzero(b)
    np.testing.assert_allclose(C.dense()[:, kept], exact(u, v[kept], a, b[kept], eps=0.3).dense(), atol=1e-10)
    assert float(C.dense()[:, ::3].max()) == 0


@pytest.mark.parametrize("settings", [{"newton": 5}, {"absorb": False}, *slow({"memory": TILES})])
def test_gradients_of_every_path(x64, settings):
    u, v = pair_of_clouds(9, 8, dtype=jnp.float64)
    y, w = jnp.arange(10.0), jnp.asarray(np.random.default_rng(1).normal(size=11))

    @jax.jit
    def value(inputs):
        u, v, a, b, eps = inputs
        a, b = (jnp.concatenate([jax.nn.softmax(x), jnp.zeros(2)]) for x in (a, b))
        C = psa.sinkhorn(pad(u, 2), pad(v, 2), a, b, eps=eps, tol=1e-13, max_iters=20000, **settings)
        return (C.apply(y) * w).sum() + 0.1 * C.log_prob(jnp.arange(11) % 8)[:9].sum()

    inputs = u, v, jnp.zeros(9), jnp.zeros(8), jnp.asarray(0.4)
    difference, gradient = directional(value, inputs)
    np.testing.assert_allclose(gradient, difference, rtol=1e-5)


@pytest.mark.slow
def test_gradients_under_vmap_and_of_tiles_in_blocks(x64):
    u, v, y, _, _, groups = ragged(jnp.float64)

    def value(shift, memory):
        C = psa.blockwise(functools.partial(exact, eps=0.4, memory=memory))(u + shift, v, groups)
        return (C.apply(y) ** 2).sum()

    shifts = jnp.asarray([0.0, 0.1, 0.5])
    gradient = jax.vmap(jax.grad(functools.partial(value, memory=TILES)))(shifts)
    steps = [(value(s + 1e-6, 2**31) - value(s - 1e-6, 2**31)) / 2e-6 for s in shifts]
    np.testing.assert_allclose(gradient, jnp.stack(steps), rtol=1e-5)


def test_memory_is_what_decides_on_tiles():
    u, v = pair_of_clouds(40, 30)
    match = functools.partial(psa.sinkhorn, u, v, uniform(40), uniform(30))
    assert not bool(match(memory=3 * 4 * 40 * 30).info.details["tiled"])
    assert bool(match(memory=3 * 4 * 40 * 30 - 1).info.details["tiled"])


def test_nothing_of_the_size_of_the_costs_is_made_in_tiles():
    n, m = 600, 500
    u, v = jnp.ones((n, 3)), jnp.ones((m, 3))

    def loss(u):
        return psa.sinkhorn(u, v, uniform(n), uniform(m), memory=3 * 4 * m * 10).apply(jnp.ones(m), chunk=10).sum()

    text = jax.jit(jax.grad(loss)).lower(u).compile().as_text()
    assert f"[{n},{m}]" not in text
    assert f"[{m},{n}]" not in text


def test_what_is_kept_of_a_treatment_is_one_kernel():
    n, m = 4000, 3000
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((n, 3), (m, 3), (n,), (m,))]

    def held(memory):
        found = jax.jit(functools.partial(psa.sinkhorn, memory=memory)).lower(*shapes).compile().memory_analysis()
        return found.temp_size_in_bytes / (4 * n * m)

    assert held(4 * n * m - 1) < 0.2
    assert 1 < held(4 * n * m) < 1.3


def test_one_compilation_for_data_of_one_shape():
    traced = []

    def spying(u, v, a, b):
        traced.append(u.shape)
        return psa.sinkhorn(u, v, a, b)

    groups = psa.group(np.arange(60) % 3, np.arange(60) % 3, 3)
    for seed in range(3):
        u, v = pair_of_clouds(60, 60, seed=seed)
        psa.blockwise(spying)(u, v, groups)
    assert len(traced) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"memory": 0}, "memory: expected at least 1"),
        ({"newton": -1}, "newton: expected at least 0"),
        ({"newton": 1.5}, "newton: expected an integer, got 1.5"),
        ({"max_iters": 10.0}, "max_iters: expected an integer, got 10.0"),
        ({"cost": "euclidean"}, "cost: expected a function"),
        ({"newton": 1, "absorb": False}, "newton: expected 0 with absorb=False"),
    ],
)
def test_bad_settings(settings, message):
    u, v = pair_of_clouds(4, 5)
    with pytest.raises(ValueError, match=message):
        psa.sinkhorn(u, v, uniform(4), uniform(5), **settings)


@pytest.mark.parametrize("variant", [{}, {"memory": TILES}, {"memory": 8}])
def test_gradients_at_coincident_points_are_finite(variant):
    u = jnp.concatenate([jnp.ones((4, 2)), jnp.arange(8.0).reshape(4, 2)])
    gradient = jax.grad(lambda u: psa.sinkhorn(u, u, uniform(8), uniform(8), **variant).apply(jnp.arange(8.0)).sum())(u)
    chex.assert_tree_all_finite(gradient)


def test_a_treatment_of_padding_alone_has_no_gradient():
    u, v = pair_of_clouds(5, 4)

    def loss(u, v, a, b):
        return (psa.sinkhorn(u, v, a, b).apply(v) ** 2).sum()

    for side in jax.grad(loss, argnums=(0, 1, 2, 3))(u, v, jnp.zeros(5), jnp.zeros(4)):
        np.testing.assert_array_equal(side, jnp.zeros_like(side))


@pytest.mark.parametrize("matcher", [functools.partial(psa.sinkhorn, eps=0.1), psa.nearest, psa.assignment, psa.snn])
def test_a_common_offset_of_the_scores_survives_padding(matcher):
    x = np.array([[0.1], [1.2], [2.3]], np.float32)
    x = np.concatenate([np.ones_like(x), x], axis=1) if matcher is psa.snn else x + np.float32(1e4)
    u, a = pad(jnp.asarray(x), 9), pad(uniform(3), 9)
    C = matcher(u, u, a, a)
    np.testing.assert_allclose(C.apply(jnp.arange(12.0))[:3], [0, 1, 2], atol=1e-2)


@pytest.mark.parametrize("settings", [{}, {"memory": TILES}, {"absorb": False}])
def test_distant_clusters_are_matched_within(settings):
    x = jnp.asarray([[0.1], [1.2], [2.3]])
    u = jnp.concatenate([x, x + 1e4])
    C = psa.sinkhorn(u, u, uniform(6), uniform(6), eps=0.1, **settings)
    assert bool(C.info.converged)
    np.testing.assert_allclose(jnp.diag(C.dense()) * 6, 1, atol=0.05)


@pytest.mark.parametrize("fill", [jnp.nan, jnp.inf, 1e6])
@pytest.mark.parametrize("settings", [{}, {"memory": TILES}])
def test_what_padding_holds_reaches_nothing(fill, settings):
    u, v = pair_of_clouds(9, 8)
    w = jnp.arange(9.0)

    def loss(inputs, rows):
        u, v = (jnp.concatenate([x, jnp.full((rows, 3), fill, x.dtype)]) for x in inputs)
        a, b = (pad(uniform(n), rows) for n in (9, 8))
        C = psa.sinkhorn(u, v, a, b, eps=0.3, tol=1e-5, **settings)
        return (C.apply(jnp.arange(8.0 + rows))[:9] * w).sum()

    value, gradient = jax.value_and_grad(loss)((u, v), 4)
    expected, without = jax.value_and_grad(loss)((u, v), 0)
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    chex.assert_trees_all_close(gradient, without, atol=2e-3, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("dim", [3, 40])
def test_derivatives_of_costs_by_products(x64, dim):
    u, v = pair_of_clouds(5, 4, dim=dim, dtype=jnp.float64)
    for cost in (psa.euclidean, psa.squared_euclidean, psa.cosine):
        found = functools.partial(pairwise, cost)
        plain = jax.vmap(jax.vmap(cost, (None, 0)), (0, None))
        np.testing.assert_allclose(found(u, v), plain(u, v), rtol=1e-9)
        for jacobian in (jax.jacfwd, jax.jacrev):
            for ours, theirs in zip(jacobian(found, (0, 1))(u, v), jacobian(plain, (0, 1))(u, v), strict=True):
                np.testing.assert_allclose(ours, theirs, atol=1e-9)
