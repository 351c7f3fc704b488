"""Scores refined by the other modality's: better where something is common, untouched where nothing is."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from test_evidence import GROUPS, KEY, NUM, T_A, T_B

import psa_jax as psa
from psa_jax.judge.projection import fit_projection
from psa_jax.judge.slopes import applied, folds_of, once

ROWS = {code: (np.flatnonzero(code == T_A), np.flatnonzero(code == T_B)) for code in range(NUM)}
PAIR = np.empty(T_A.size, int)
for mine, theirs in ROWS.values():
    PAIR[mine] = theirs


def problem(seed=0, common=True, noise=1.0, units=1.0):
    """Features that show a state of three dimensions, and scores that are noisy estimates of one function of it."""
    rng = np.random.default_rng(seed)
    state, other = rng.normal(size=(2, T_A.size, 3))
    paired = np.empty_like(state)
    paired[PAIR] = state
    other = paired if common else other
    maps = rng.normal(size=(2, 3, 9))
    sides = []
    for z, mix in ((state, maps[0]), (other, maps[0 if common else 1])):
        x = np.tanh(z @ rng.normal(size=(3, 7))) + 0.1 * rng.normal(size=(T_A.size, 7))
        u = z @ mix + noise * rng.normal(size=(T_A.size, 9))
        sides += [(x + 5) * units, u - u.mean(1, keepdims=True)]
    x, u, y, v = (jnp.asarray(side, jnp.float32) for side in sides)
    truth = state @ maps[0]
    return u, v, x, y, truth - truth.mean(1, keepdims=True)


def within(x):
    return x - np.stack([x[code == T_A].mean(0) for code in range(NUM)])[T_A]


@pytest.mark.parametrize("units", [1.0, np.array([1e9, 1, 1e-9, 1e20, 1, 1, 1]), 1e-15])
def test_refined_scores_are_nearer_to_the_truth(units):
    u, v, x, y, truth = problem(units=units)
    found = psa.refine(KEY, u, v, x, y, GROUPS)
    error = [np.mean((within(np.asarray(side)) - within(truth)) ** 2) for side in (u, found.u)]
    assert error[1] < 0.6 * error[0]
    pairs = psa.Truth(jnp.asarray(PAIR))
    lift = [
        float(psa.trace(psa.blockwise(psa.sinkhorn)(*sides, GROUPS), pairs).mean())
        for sides in ((u, v), (found.u, found.v))
    ]
    assert lift[1] > 1.3 * lift[0]


def test_new_samples_are_refined_alike():
    u, v, x, y, _ = problem()
    found = psa.refine(KEY, u, v, x, y, GROUPS)
    again = found.a(u, x)  # by all folds' mean instead of the fold that did not see the sample
    assert np.corrcoef(np.ravel(again), np.ravel(found.u))[0, 1] > 0.99
    np.testing.assert_allclose(found.b(v[:3], y[:3]), found.b(v, y)[:3], rtol=1e-4, atol=1e-4)


def test_nothing_common_changes_nothing():
    u, v, x, y, _ = problem(common=False)
    found = psa.refine(KEY, u, v, x, y, GROUPS)
    assert found.a is None
    assert found.b is None
    np.testing.assert_array_equal(found.u, u)
    assert not bool(found.evidence.common)


def test_features_that_say_nothing_have_no_weight():
    u, v, x, _, _ = problem()
    flat = jnp.ones_like(x)
    found = psa.refine(KEY, u, v, flat, flat, GROUPS)
    assert float(found.a.share) == 1
    np.testing.assert_allclose(found.u, u, atol=1e-6)
    noise = jax.random.normal(KEY, (*x.shape[:1], 40))
    assert float(psa.refine(KEY, u, v, noise, noise, GROUPS).a.share) > 0.85


def test_a_constant_column_changes_nothing_however_large():
    u, v, x, y, _ = problem()
    found = psa.refine(KEY, u, v, x, y, GROUPS)
    for constant in (7.0, 1e38):
        more = jnp.concatenate([x, jnp.full_like(x[:, :1], constant)], axis=1)
        extra = psa.refine(KEY, u, v, more, y, GROUPS)
        np.testing.assert_allclose(extra.u, found.u, atol=1e-4)
        assert bool(jnp.isfinite(extra.a(u, more)).all())


def test_images_are_left_as_they_are():
    u, v, _, _, _ = problem()
    wide = jnp.zeros((T_A.size, 24, 24))
    assert psa.refine(KEY, u, v, wide, wide, GROUPS).a is None


def test_rows_without_a_treatment_change_nobody_elses():
    u, v, x, y, _ = problem()
    more = psa.group(np.append(T_A, NUM), T_B, NUM + 1)
    found = psa.refine(KEY, u, v, x, y, GROUPS)
    extra = psa.refine(KEY, jnp.pad(u, ((0, 1), (0, 0))), v, jnp.pad(x, ((0, 1), (0, 0))), y, more)
    near = np.abs(np.asarray(extra.u[:-1] - found.u))
    assert near.mean() < 0.2 * float(jnp.abs(found.u - u).mean())  # folds are others, little else is


def test_projections_of_refined_scores_are_weighed_by_what_was_given():
    u, v, x, y, truth = problem(noise=2.0)
    refined = psa.refine(KEY, u, v, x, y, GROUPS)
    found = fit_projection(KEY, u, v, GROUPS, refined=refined, features=(x, y))
    before = fit_projection(KEY, u, v, GROUPS)
    values = jnp.empty((T_A.size, 9)).at[PAIR].set(jnp.asarray(truth, jnp.float32))
    error = [float(jnp.mean((side.law.apply(values) - truth) ** 2)) for side in (before, found)]
    assert error[1] < error[0]
    with pytest.raises(ValueError, match="features"):
        fit_projection(KEY, u, v, GROUPS, refined=refined)


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_what_is_not_finite_is_refused_by_name(place):
    sides = list(problem()[:4])
    sides[place] = sides[place].at[3, 1].set(jnp.nan)
    with pytest.raises(ValueError, match=f"^{'uvxy'[place]}: expected finite"):
        psa.refine(KEY, *sides, GROUPS)


def test_other_samples_are_refused():
    u, v, x, y, _ = problem()
    with pytest.raises(ValueError, match="y: expected features of 480 samples, as the plan has, got \\(3, 7\\)"):
        psa.refine(KEY, u, v, x, y[:3], GROUPS)


def test_features_that_are_read_refine_as_those_in_memory(monkeypatch):
    monkeypatch.setattr("psa_jax.judge.slopes.CHUNK", 100)
    u, v, x, y, _ = problem()
    images = jnp.stack([y, jnp.ones_like(y)], axis=2)
    found = psa.refine(KEY, u, v, x, images, GROUPS)
    again = psa.refine(KEY, u, v, psa.source(np.asarray(x)), psa.source(np.asarray(images)), GROUPS)
    for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    source = psa.source(np.asarray(images[:150]))
    np.testing.assert_allclose(again.b(v[:150], source), found.b(v[:150], images[:150]), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [4])
def test_features_that_are_read_are_projected_by_as_those_in_memory(devices):
    axes = {"axis_types": (AxisType.Auto,), "devices": jax.devices()[:devices]}
    mesh = None if devices is None else jax.make_mesh((devices,), ("x",), **axes)
    u, v, x, y, _ = problem()
    found = []
    for features in ((x, y), tuple(psa.source(np.asarray(side)) for side in (x, y))):
        refined = psa.refine(KEY, u, v, *features, GROUPS, mesh=mesh)
        assert refined.a is not None
        options = {"refined": refined, "features": features, "most": 30, "mesh": mesh}
        found.append(fit_projection(KEY, u, v, GROUPS, **options))
    assert float(found[0].weight_a.max()) > 0
    np.testing.assert_allclose(found[1].weight_a, found[0].weight_a, atol=1e-3)
    np.testing.assert_allclose(found[1].slope_b, found[0].slope_b, atol=1e-3)


@pytest.mark.parametrize("read", [False, True], ids=["arrays", "sources"])
def test_what_is_learnt_of_some_samples_refines_all(monkeypatch, read):
    module = importlib.import_module("psa_jax.judge.refinement")
    u, v, x, y, _ = problem()
    if read:
        x, y = (psa.source(np.asarray(side)) for side in (x, y))
    whole = psa.refine(KEY, u, v, x, y, GROUPS)
    monkeypatch.setattr(module, "MOST", 40)
    found = psa.refine(KEY, u, v, x, y, GROUPS)
    assert found.u.shape == u.shape
    np.testing.assert_allclose(found.a.slope, whole.a.slope, atol=0.2 * float(jnp.abs(whole.a.slope).max()))
    assert float(jnp.mean((found.u - whole.u) ** 2)) < 0.2 * float(jnp.mean((u - whole.u) ** 2))


def test_folds_refine_what_they_were_not_learnt_of():
    u, v, x, y, _ = problem()
    folds = folds_of(KEY, u, v)
    for side, fold, scores, features in zip(once(folds, u, v, x, y, GROUPS), folds, (u, v), (x, y), strict=True):
        np.testing.assert_allclose(applied(side.each, fold, scores, features), side.scores, atol=1e-4)
        assert float(jnp.abs(side.each.slope[0] - side.each.slope[1]).max()) > 0
        np.testing.assert_allclose(side.each.slope.mean(0), side.final.slope, atol=1e-5)
