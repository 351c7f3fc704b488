import functools
import gc

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import MATCHED, SIZES_A, SIZES_B, ragged, slow, uniform

import psa_jax as psa
from psa_jax.match import class_mean

MATCHERS = {
    "sinkhorn": functools.partial(psa.sinkhorn, eps=0.3, tol=1e-9, max_iters=5000),
    "snn": functools.partial(psa.snn, k=3),
    "nearest": functools.partial(psa.nearest, k=2),
    "assignment": psa.assignment,
    "class_mean": class_mean,
}


def loop(matcher, u, v, y, t_a, t_b):
    """What a Python loop over treatments gives: projections, the joint law and conditionals."""
    n, m = len(u), len(v)
    projected, dense, conditional = np.zeros((n, y.shape[1])), np.zeros((n, m)), np.zeros((n, m))
    matched = sum(SIZES_A[t] for t in MATCHED)
    for t in MATCHED:
        i, j = np.flatnonzero(t_a == t), np.flatnonzero(t_b == t)
        C = matcher(u[i], v[j], uniform(i.size, u.dtype), uniform(j.size, u.dtype))
        projected[i] = C.apply(y[j])
        mass = np.asarray(C.dense())
        dense[np.ix_(i, j)] = mass / mass.sum() * i.size / matched
        total = mass.sum(1, keepdims=True)
        conditional[np.ix_(i, j)] = mass / np.where(total > 0, total, 1)
    return projected, dense, conditional


@pytest.mark.parametrize("name", ["sinkhorn", *slow("snn", "nearest", "assignment", "class_mean")])
def test_blocks_equal_a_loop(x64, name):
    u, v, y, t_a, t_b, groups = ragged(jnp.float64)
    projected, dense, conditional = loop(MATCHERS[name], u, v, y, t_a, t_b)
    j = np.random.default_rng(0).integers(-1, len(v), len(u))
    expected = np.where(j >= 0, conditional[np.arange(len(u)), j], 0)
    for chunk in (None, 3):
        C = psa.blockwise(MATCHERS[name], chunk=chunk)(u, v, groups)
        np.testing.assert_allclose(C.apply(y, chunk=chunk), projected, atol=1e-6)
        np.testing.assert_allclose(C.dense(), dense, atol=1e-6)
        np.testing.assert_allclose(jnp.exp(C.log_prob(jnp.asarray(j), chunk=chunk)), expected, atol=1e-6)
        best, columns = C.top_k(4, chunk=chunk)
        np.testing.assert_allclose(best, -np.sort(-conditional, axis=1)[:, :4], atol=1e-6)
        picked = np.where(np.asarray(columns) >= 0, conditional[np.arange(len(u))[:, None], columns], 0)
        np.testing.assert_allclose(picked, best, atol=1e-6)
    np.testing.assert_allclose(C.T.dense(), C.dense().T, rtol=1e-12)  # two programs: equal up to rounding
    np.testing.assert_allclose(C.row_marginal(), dense.sum(1), atol=1e-6)
    np.testing.assert_allclose(C.col_marginal(), dense.sum(0), atol=1e-6)
    np.testing.assert_allclose(float(C.row_marginal().sum()), 1, rtol=1e-6)


def test_samples_stay_within_treatments_and_ignore_chunks_and_buckets():
    u, v, _, t_a, t_b, groups = ragged()
    other = psa.group(t_a, t_b, len(SIZES_A), max_buckets=1)
    key = jax.random.key(0)
    matcher = functools.partial(psa.sinkhorn, eps=0.3, tol=1e-5)
    C, D = (psa.blockwise(matcher)(u, v, plan) for plan in (groups, other))
    drawn = np.asarray(C.sample(key))
    np.testing.assert_array_equal(drawn, C.sample(key, chunk=3))
    assert (drawn == np.asarray(D.sample(key))).mean() > 0.9
    has_partner = np.isin(t_a, MATCHED)
    np.testing.assert_array_equal(drawn >= 0, has_partner)
    np.testing.assert_array_equal(t_b[drawn[has_partner]], t_a[has_partner])


def test_what_is_unmatched_is_counted():
    u, v, y, t_a, t_b, groups = ragged()
    C = psa.blockwise(psa.snn)(u, v, groups)
    assert int(C.unmatched_rows) == sum(n for n, m in zip(SIZES_A, SIZES_B, strict=True) if not m)
    assert int(C.unmatched_cols) == sum(m for n, m in zip(SIZES_A, SIZES_B, strict=True) if not n)
    assert (int(C.T.unmatched_rows), int(C.T.unmatched_cols)) == (
        int(C.unmatched_cols),
        int(C.unmatched_rows),
    )
    alone = ~np.isin(t_a, MATCHED)
    assert (np.asarray(C.apply(y))[alone] == 0).all()
    assert (np.asarray(C.sample(jax.random.key(0)))[alone] == -1).all()
    assert (np.asarray(C.dense())[alone] == 0).all()
    assert np.flatnonzero(C.info.converged).tolist() == MATCHED


@pytest.mark.parametrize("name", MATCHERS)
def test_permuting_samples_permutes_the_coupling(name):
    u, v, _, t_a, t_b, groups = ragged()
    p, q = np.random.default_rng(1).permutation(len(u)), np.random.default_rng(2).permutation(len(v))
    plan = psa.blockwise(MATCHERS[name])(u, v, groups).dense()
    shuffled = psa.blockwise(MATCHERS[name])(u[p], v[q], psa.group(t_a[p], t_b[q], len(SIZES_A))).dense()
    np.testing.assert_allclose(shuffled, np.asarray(plan)[p][:, q], atol=1e-5)


def closeness(left, right, args):
    return -jnp.abs(left - right.T) * args


def mine(u, v, a, b):
    return psa.Coupling(left=u[:, :1], right=v[:, :1], args=jnp.float32(2), kernel=closeness)


def test_a_matcher_of_ones_own_never_sees_padding():
    u, v, y, t_a, t_b, groups = ragged()
    C = psa.blockwise(mine)(u, v, groups)
    expected, _, _ = loop(mine, u, v, y, t_a, t_b)
    np.testing.assert_allclose(C.apply(y), expected, atol=1e-5)
    assert bool(C.info.converged[MATCHED[0]])


@pytest.mark.slow
def test_settings_static_and_traced():
    u, v, y, _, _, groups = ragged()
    traces = []

    def counting(u, v, a, b, *, eps, power=1):
        traces.append(power)
        return psa.sinkhorn(u, v, a, b, eps=eps * power)

    compiled = {len(groups.buckets)}
    for eps in (0.1, 0.2, 0.4):
        psa.blockwise(functools.partial(counting, eps=jnp.float32(eps)))(u, v, groups)
    assert len(traces) in compiled
    for eps in (0.1, 0.2):
        psa.blockwise(jax.tree_util.Partial(counting, eps=eps))(u, v, groups)
    assert len(traces) == 2 * len(groups.buckets)
    psa.blockwise(functools.partial(counting, eps=jnp.float32(0.1), power=2))(u, v, groups)
    assert len(traces) == 3 * len(groups.buckets)


@pytest.mark.slow
def test_one_program_for_a_sweep_over_seeds_and_temperatures():
    x, t = jax.random.normal(jax.random.key(0), (60, 3)), jnp.arange(60) % 3
    model, groups = psa.mlp((8,), 3), psa.group(np.arange(60) % 3, np.arange(60) % 3, 3)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(key, temperature):
        fits = [psa.fit(k, model, x, t, training=psa.Training(epochs=2)) for k in jax.random.split(key)]
        scores = [psa.propensity(model, fitted.params, x, temperature=temperature) for fitted in fits]
        return psa.blockwise(functools.partial(psa.sinkhorn, eps=0.5))(*scores, groups).apply(x)

    seeds = [run(jax.random.key(seed), temperature) for seed in range(3) for temperature in (0.5, 1.0)]
    assert not np.allclose(seeds[0], seeds[1])
    assert not np.allclose(seeds[1], seeds[3])
    many = jax.vmap(run, (0, None))(jax.random.split(jax.random.key(0), 2), 1.0)
    assert many.shape == (2, 60, 3)


@pytest.mark.parametrize(("rows", "cols", "name"), [(1, 0, "u"), (0, 1, "v")])
def test_scores_that_do_not_fit_the_groups(rows, cols, name):
    u, v, _, _, _, groups = ragged()
    with pytest.raises(ValueError, match=f"{name}: expected"):
        psa.blockwise(psa.snn)(u[rows:], v[cols:], groups)


def test_blocked_bad_input():
    u, v, _, _, _, groups = ragged()
    C = psa.blockwise(psa.snn)(u, v, groups)
    with pytest.raises(ValueError, match="y: expected"):
        C.apply(jnp.ones(len(v) + 1))
    with pytest.raises(ValueError, match="j: expected"):
        C.log_prob(jnp.zeros(3, jnp.int32))
    with pytest.raises(ValueError, match="k: expected"):
        C.top_k(0)


@pytest.mark.parametrize("name", ["sinkhorn", "snn", "nearest", "assignment"])
def test_scores_that_are_not_finite_are_reported(name):
    u, v, _, t_a, _, groups = ragged()
    broken = np.flatnonzero(t_a == 3)[0]
    matcher = functools.partial(psa.sinkhorn, eps=0.3) if name == "sinkhorn" else MATCHERS[name]
    info = psa.blockwise(matcher)(u.at[broken, 0].set(jnp.nan), v, groups).info
    assert np.flatnonzero(info.converged).tolist() == [t for t in MATCHED if t != 3]


@pytest.mark.parametrize(("first", "second"), [(1, True), (1, 1.0), (0.0, -0.0), ((1,), (1.0,))])
def test_settings_that_only_look_equal_are_told_apart(first, second):
    u, v, *_, groups = ragged()
    seen = []

    def note(u, v, a, b, *, setting):
        seen.append(setting)
        return class_mean(u, v, a, b)

    for setting in (first, second):
        psa.blockwise(functools.partial(note, setting=setting))(u, v, groups)
    assert {repr(setting) for setting in seen} == {repr(first), repr(second)}


def test_a_lambda_is_what_it_says_each_time():
    u, v, y, *_, groups = ragged()
    eps = 0.1
    late = [psa.blockwise(lambda u, v, a, b: psa.sinkhorn(u, v, a, b, eps=eps)) for _ in range(2)]
    for eps in (0.1, 0.5):
        fresh = psa.blockwise(lambda u, v, a, b: psa.sinkhorn(u, v, a, b, eps=eps))  # noqa: B023
        expected = psa.blockwise(functools.partial(psa.sinkhorn, eps=eps))(u, v, groups).apply(y)
        np.testing.assert_allclose(fresh(u, v, groups).apply(y), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(late[0](u, v, groups).apply(y), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_many_lambdas_leave_memory_maps_level():
    u, v, y, *_, groups = ragged()

    def call():
        law = psa.blockwise(lambda u, v, a, b: psa.sinkhorn(u, v, a, b, max_iters=20))(u, v, groups)
        law.apply(y), law.T.apply(u), law.sample(jax.random.key(0)), law.top_k(2), law.row_marginal()

    def maps():
        gc.collect()
        with open("/proc/self/maps") as file:
            return sum(1 for _ in file)

    for _ in range(20):
        call()
    before = maps()
    for _ in range(80):
        call()
    assert maps() < before + 500  # 126 a call before
