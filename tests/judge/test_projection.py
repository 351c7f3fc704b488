"""Projections that are believed as far as labels confirm them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_evidence import GROUPS, KEY, NUM, T_A, T_B, views

import psa_jax as psa
from psa_jax.judge.projection import _weights, fit_projection

PAIR = np.empty(T_A.size, int)
for code in range(NUM):
    PAIR[np.flatnonzero(code == T_A)] = np.flatnonzero(code == T_B)


def errors(law, u, y):
    """The error of the projection of `y = what row i of a truly has`, over that of the treatment's mean."""
    uniform = psa.blockwise(psa.class_mean)(u, u, GROUPS)
    true = y[PAIR]
    return float(jnp.sum((law.apply(y) - true) ** 2) / jnp.sum((uniform.apply(y) - true) ** 2))


def noisy(seed, noise):
    """Two views of the same states, of which one has more noise than the match suspects."""
    rng = np.random.default_rng(seed)
    state = rng.normal(size=(T_A.size, 3))
    mix = rng.normal(size=(3, 9))
    u = state @ mix + noise * rng.normal(size=(T_A.size, 9))
    v = np.empty_like(u)
    v[PAIR] = state @ mix + noise * rng.normal(size=u.shape)
    y = np.empty_like(state)
    y[PAIR] = state
    return [jnp.asarray(x, jnp.float32) for x in (u - u.mean(1, keepdims=True), v - v.mean(1, keepdims=True), y)]


@pytest.mark.parametrize("noise", [0.5, 3.0])
def test_what_is_believed_is_better_than_the_mean_and_than_the_law_of_pairs(noise):
    u, v, y = noisy(0, noise)
    found = fit_projection(KEY, u, v, GROUPS)
    error = errors(found.law, u, y)
    assert error < 0.97
    assert error < errors(psa.blockwise(psa.sinkhorn)(u, v, GROUPS), u, y) + 0.02
    best = min(errors(psa.shrink(found.coupling, weight), u, y) for weight in np.linspace(0, 1, 11))
    assert error < best + 0.15  # halves of the columns know less than all of them: what is believed is cautious


def test_nothing_common_leaves_the_mean():
    u, v = views(common=False)
    found = fit_projection(KEY, u, v, GROUPS)
    assert not found.believed.any()
    uniform = psa.blockwise(psa.class_mean)(u, v, GROUPS)
    np.testing.assert_allclose(found.law.apply(v), uniform.apply(v), atol=1e-4)


def test_the_other_direction_has_its_own_weights():
    found = fit_projection(KEY, *views(blind=(1,)), GROUPS)
    other = found.T
    assert other.coupling.shape == found.coupling.shape[::-1]
    np.testing.assert_array_equal(other.weight_a, found.weight_b)
    np.testing.assert_array_equal(other.T.weight_a, found.weight_a)


@pytest.mark.parametrize("matcher", [psa.snn, functools.partial(psa.sinkhorn, cost=psa.squared_euclidean)])
def test_other_matchers_and_settings_are_taken_as_they_are(matcher):
    u, v, y = noisy(1, 0.5)
    found = fit_projection(KEY, u, v, GROUPS, matcher=matcher)
    assert found.believed.all()
    assert errors(found.law, u, y) < 0.9
    assert (float(found.eps) == 0) == (matcher is psa.snn)


def test_slopes_are_pooled_as_far_as_they_are_noise():
    rng = np.random.default_rng(0)
    squares = np.full(40, 100.0)
    alike = np.stack([100 * (0.5 + 0.1 * rng.normal(size=40)), squares, squares, np.full(40, 100.0)], 1)
    _, weight = _weights(alike)  # a deviation of 0.1 is what their variance says
    assert np.ptp(weight) < 0.25
    assert abs(weight.mean() - 0.5) < 0.05
    apart = np.stack([100 * np.linspace(0, 1, 40), squares, squares, np.full(40, 1.0)], 1)
    slope, weight = _weights(apart)
    np.testing.assert_allclose(weight, slope, atol=0.05)
    assert not _weights(np.zeros((3, 4)))[1].any()


def test_an_alignment_projects_both_ways_and_for_new_samples():
    u, v, _ = noisy(2, 0.5)
    learner = psa.Learner(psa.linear(NUM + 1), training=psa.Training(epochs=5), members=2)
    data = psa.Unpaired(psa.Modality(u, T_A), psa.Modality(v, T_B), NUM + 1)
    found = psa.align(KEY, data, a=learner, b=learner)
    y = jnp.stack([v, 2 * v], 2)
    assert found.project(y).shape == (T_A.size, 9, 2)
    np.testing.assert_allclose(found.project(y)[..., 1], 2 * found.project(v), rtol=1e-4, atol=1e-4)
    assert found.T.project(u[:, 0]).shape == (T_B.size,)
    np.testing.assert_allclose(found.T.T.project(v), found.project(v))
    new = found.project(v, x=jnp.concatenate([u[:3], u[:1]]), t=np.array([0, 0, 0, NUM]))
    assert np.isfinite(new[:3]).all()
    assert np.isnan(new[3]).all()  # b has no sample of that treatment
    assert np.isfinite(jax.grad(lambda y: found.project(y).sum())(v)).all()
    for given, message in (
        (lambda: found.project(v[:-1]), f"y: expected {T_B.size} values"),
        (lambda: found.project(v, x=u), "x, t: expected features and treatments"),
        (lambda: dataclasses.replace(found, projection=None).project(v), "projection: expected one"),
    ):
        with pytest.raises(ValueError, match=message):
            given()
    assert "project believes" in found.summary() or "the treatment's mean, everywhere" in found.summary()
