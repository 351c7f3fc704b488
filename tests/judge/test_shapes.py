"""Distances within modalities: taken where both have the same shape, refused where they have not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_evidence import GROUPS, KEY, T_A, T_B
from test_refinement import PAIR

import psa_jax as psa
from psa_jax.judge.shapes import best_matcher, try_shapes
from psa_jax.match.features import takes_features, with_features


def problem(alike, common=True, seed=0):
    """Noisy scores of a common state; features that show it turned, or another quantity of their own."""
    rng = np.random.default_rng(seed)
    state, own = rng.normal(size=(2, T_A.size, 3))
    paired, maps = np.empty_like(state), rng.normal(size=(2, 3, 9))
    paired[PAIR] = state
    turned = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    sides = []
    for z, mix in ((state, maps[0]), (paired if common else own, maps[0 if common else 1])):
        u = z @ mix + 2.0 * rng.normal(size=(T_A.size, 9))
        shown = z @ turned if alike else rng.normal(size=z.shape)
        sides.append((u - u.mean(1, keepdims=True), shown + 0.1 * rng.normal(size=z.shape)))
    (u, x), (v, y) = sides
    return [jnp.asarray(side, jnp.float32) for side in (u, v, x, y)]


@pytest.mark.slow
def test_shapes_are_taken_where_they_are_alike_and_only_there():
    rows = try_shapes(KEY, *problem(alike=True), GROUPS, repeats=4)
    assert [row["alpha"] for row in rows] == [0.0, 0.5]
    assert rows[0]["gain"] == 0
    matcher = best_matcher(rows)
    assert matcher.func is psa.fused_gromov_wasserstein
    assert matcher.keywords == {"alpha": 0.5}
    u, v, x, y = problem(alike=True)
    warped = x * jnp.array([[6.0, 1.0, 0.2]]), y * jnp.array([[0.2, 1.0, 6.0]])
    for features in (warped, problem(alike=False)[2:]):
        rows = try_shapes(KEY, u, v, *features, GROUPS, repeats=4)
        assert rows[1]["gain"] < 0.5 * rows[0]["agreement"]
        assert best_matcher(rows) is psa.sinkhorn


def test_scores_that_share_nothing_are_not_tried():
    assert try_shapes(KEY, *problem(alike=True, common=False), GROUPS, repeats=2) == ()
    assert best_matcher(()) is psa.sinkhorn


def test_scores_are_in_units_of_their_largest_distance_within_a_treatment():
    u, v, x, y = problem(alike=True)
    (first, features), (second, _) = with_features(u, v, x, y, GROUPS)
    np.testing.assert_array_equal(features, x)
    largest = max(
        np.linalg.norm(np.asarray(first)[code == T_A][:, None] - np.asarray(second)[code == T_B][None], axis=-1).max()
        for code in np.unique(T_A)
    )
    np.testing.assert_allclose(largest, 1, rtol=1e-4)


def test_align_hands_scores_and_features_to_matchers_that_take_them():
    seen = []

    def mine(u, v, a, b):
        seen.append(jax.tree.map(jnp.shape, (u, v)))
        (u, x), (v, y) = (side if isinstance(side, tuple) else (side, side) for side in (u, v))
        return psa.sinkhorn(u, v, a, b)

    mine.takes_features = True
    assert takes_features(functools.partial(psa.fused_gromov_wasserstein, alpha=0.3))
    assert takes_features(mine)
    assert not takes_features(functools.partial(psa.sinkhorn, eps=1.0))
    rng, t = np.random.default_rng(0), np.arange(60) % 3
    a, b = (psa.Modality(rng.normal(size=(60, 4)).astype("float32") + t[:, None], t) for _ in "ab")
    quick = psa.Learner(psa.linear(3), training=psa.Training(epochs=2), folds=3, members=1)
    data = psa.Unpaired(a, b, 3)
    for matcher in (mine, functools.partial(psa.fused_gromov_wasserstein, alpha=0.5)):
        found = psa.align(KEY, data, a=quick, b=quick, matcher=matcher)
        assert found.coupling.apply(jnp.ones((60, 1))).shape == (60, 1)
        assert found.project(jnp.asarray(b.x), x=a.x[:5], t=t[:5]).shape == (5, 4)
    assert any(np.ndim(one[0][0]) == 1 and one[0][1][-1] == 4 for one in seen)  # ((scores, features), ...)
