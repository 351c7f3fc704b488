"""Neither the unit of the scores nor the type they are stored in decides a match, and success is what it says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import pair_of_clouds, ragged, slow, uniform

import psa_jax as psa

N, M = 40, 30
MATCHERS = {
    "stored": functools.partial(psa.sinkhorn, tol=1e-4),
    "tiled": functools.partial(psa.sinkhorn, tol=1e-4, memory=1024),
    "snn": functools.partial(psa.snn, k=3),
    "nearest": functools.partial(psa.nearest, k=2),
    "assignment": psa.assignment,
    "gromov-wasserstein": psa.gromov_wasserstein,
}
SLOW = ["tiled", "gromov-wasserstein"]  # to compile


def matched(name, u, v):
    a, b = uniform(u.shape[0]), uniform(v.shape[0])
    return MATCHERS[name](u, v, a, b)


@pytest.mark.parametrize("name", MATCHERS)
def test_the_unit_of_the_scores_decides_nothing(name):
    u, v = pair_of_clouds(N, M)
    plan = matched(name, u, v).dense()
    for exponent in (-100, -60, -40, 50, 80, 100):
        unit = jnp.float32(2.0**exponent)
        coupling = matched(name, unit * u, unit * v)
        assert bool(coupling.info.converged), exponent
        np.testing.assert_allclose(coupling.dense(), plan, atol=1e-3 / N, err_msg=str(exponent))


@pytest.mark.parametrize("name", ["stored", "tiled"])
def test_gradients_follow_the_unit(name):
    u, v = pair_of_clouds(N, M)

    @jax.jit
    def gradient(u, v, y):
        return jax.grad(lambda u: jnp.sum(matched(name, u, v).apply(y) ** 2))(u)

    expected = gradient(u, v, v)
    for exponent in (-80, -40, 60):
        unit = jnp.float32(2.0**exponent)
        np.testing.assert_allclose(
            unit * gradient(unit * u, unit * v, v), expected, atol=2e-2 * float(jnp.abs(expected).max())
        )


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("name", [name for name in MATCHERS if name not in SLOW] + slow(*SLOW))
def test_the_type_in_which_scores_are_stored_decides_nothing(name, dtype):
    u, v = (jnp.asarray(100 * x, dtype) for x in pair_of_clouds(N, M))
    half, single = matched(name, u, v), matched(name, u.astype(jnp.float32), v.astype(jnp.float32))
    assert bool(half.info.converged) == bool(single.info.converged)
    np.testing.assert_allclose(half.dense(), single.dense(), atol=1e-6)
    weights = jnp.full(N, 1 / N, dtype), jnp.full(M, 1 / M, dtype)
    assert np.isfinite(MATCHERS[name](u, v, *weights).dense()).all()


@pytest.mark.parametrize("name", MATCHERS)
@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_one_row_without_a_partner_among_many_is_no_success(name, bad):
    u, v = pair_of_clouds(N, M)
    coupling = matched(name, u.at[7].set(bad), v)
    assert not bool(coupling.info.converged)


@pytest.mark.parametrize("memory", [2**31, 2**16])
def test_a_lost_row_is_counted(memory):
    u, v = pair_of_clouds(3000, 50)
    u = u.at[7].set(jnp.inf)
    info = psa.sinkhorn(u, v, uniform(3000), uniform(50), tol=1e-2, memory=memory).info
    assert int(info.details["lost"]) == 1
    assert not bool(info.converged)


@pytest.mark.parametrize("settings", [{}, {"memory": 1024}, {"newton": 5}])
def test_the_errors_reported_are_those_of_the_plan(settings):
    u, v = pair_of_clouds(N, N)
    a = np.full(N, 1 / N)
    for eps in (0.3, 0.03, 0.003):
        for tol in (1e-2, 1e-5):
            coupling = psa.sinkhorn(u, v, uniform(N), uniform(N), eps=psa.relative(eps), tol=tol, **settings)
            plan = np.asarray(coupling.dense(), np.float64)
            error = max(np.abs(plan.sum(axis) - a).sum() for axis in (0, 1))
            np.testing.assert_allclose(float(coupling.info.marginal_error), error, atol=1e-6)
            assert not bool(coupling.info.converged) or error <= tol + 1e-6


def one():
    u, v = pair_of_clouds(N, M)
    return psa.nearest(u, v, uniform(N), uniform(M), k=2)


def blocked(matcher):
    u, v, _, _, _, groups = ragged()
    return psa.blockwise(matcher)(u, v, groups)


KINDS = {
    "one": one,
    "turned": lambda: one().T,
    "blocked": lambda: blocked(functools.partial(psa.nearest, k=2)),
    "transport": lambda: blocked(psa.sinkhorn),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_unknown_of_a_column_reaches_those_who_have_mass_there(kind, bad):
    coupling = KINDS[kind]()
    y = np.random.default_rng(0).normal(size=(coupling.shape[1], 3)).astype(np.float32)
    dense = np.asarray(coupling.dense())
    column, unknown = int(dense.sum(0).argmax()), y.copy()
    unknown[column, 1] = bad
    found, plain = np.asarray(coupling.apply(unknown)), np.asarray(coupling.apply(y))
    reached = np.zeros(plain.shape, bool)
    reached[:, 1] = dense[:, column] > 0
    assert 0 < reached.sum() < len(y)
    assert np.isnan(found[reached]).all()
    np.testing.assert_allclose(found[~reached], plain[~reached], rtol=1e-5, atol=1e-6)


def test_smoothing_features_of_any_size_stays_finite():
    x = np.random.default_rng(0).normal(size=(500, 4))
    noise = psa.gaussian_noise(0.5)
    for scaled in (jnp.asarray(1e3 * x, jnp.float16), jnp.asarray(1e25 * x, jnp.float32), jnp.asarray(1e-25 * x)):
        out = np.asarray(noise(jax.random.key(0), scaled), np.float64)
        spread = (out - np.asarray(scaled, np.float64)).std(0) / np.asarray(scaled, np.float64).std(0)
        np.testing.assert_allclose(spread, 0.5, rtol=0.1)


@pytest.fixture
def debug_nans():
    """The flag that stops at the first NaN that compiled code returns."""
    with jax.debug_nans(True):
        yield


@pytest.mark.usefixtures("debug_nans")
@pytest.mark.parametrize("name", [name for name in MATCHERS if name not in SLOW] + slow(*SLOW))
def test_debug_nans_is_usable(name):
    """Treatments that one side lacks, criteria that do not apply: said without NaN."""
    u, v, y, _, _, groups = ragged()

    def value(u):
        return jnp.sum(psa.blockwise(MATCHERS[name])(u, v, groups).apply(y))

    assert np.isfinite(jax.grad(value)(u)).all()


@pytest.mark.slow
@pytest.mark.usefixtures("debug_nans")
def test_debug_nans_is_usable_with_align():
    x = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    t = jnp.arange(40) % 3
    learner = psa.Learner(training=psa.Training(epochs=2))
    data = psa.Unpaired(psa.Modality(jnp.asarray(x), t), psa.Modality(jnp.asarray(x[:, :2]), t), 3)
    alignment = psa.align(jax.random.key(0), data, a=learner, b=learner)
    assert np.isfinite(alignment.coupling.apply(x)).all()
    assert psa.evaluate(jax.random.key(1), alignment, psa.Truth(jnp.arange(40)), data)["queries"] == 40
    assert psa.diagnose(jax.random.key(1), alignment, repeats=1, permutations=2).z.shape == (3,)
    members = alignment.member_scores_a[:1], alignment.member_scores_b[:1]
    sweep = psa.select_eps(jax.random.key(1), *members, alignment.groups, [0.1], repeats=1)
    assert np.isnan(sweep.stability).all()


@pytest.mark.parametrize("exponent", [-18, 20])
def test_low_rank_plans_do_not_know_the_unit_of_the_scores(exponent):
    x = np.random.default_rng(0).normal(size=(40, 3))
    w = jnp.full(40, 1 / 40)
    plan, other = (psa.low_rank_sinkhorn(*2 * [jnp.float32(x * unit)], w, w) for unit in (1, 10.0**exponent))
    assert bool(other.info.converged) == bool(plan.info.converged)
    assert float(jnp.trace(other.dense())) == pytest.approx(float(jnp.trace(plan.dense())), rel=0.02)


def test_a_score_that_is_no_number_has_no_partner_and_costs_nobody_else_theirs():
    rng = np.random.default_rng(0)
    u, v = (rng.normal(size=(12, 2)).astype(np.float32) for _ in "uv")
    groups = psa.group(np.zeros(12, int), np.zeros(12, int), 1)
    coupling = {}
    for bad in (np.nan, np.inf):
        broken = u.copy()
        broken[3, 0] = bad
        coupling[bad] = psa.blockwise(psa.sinkhorn)(broken, v, groups)
        assert not coupling[bad].info.converged.any()
        assert int(coupling[bad].info.details["lost"][0]) == 1
    np.testing.assert_array_equal(*(np.asarray(coupling[bad].apply(v)) for bad in coupling))
