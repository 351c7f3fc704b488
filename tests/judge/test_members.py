"""Which members count: those of the smoothing that the other modality's scores agree with, where that is clear."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psa_jax as psa
from psa_jax.judge.members import members_that_count
from tests.problems import learner

N, T, D = 360, 6, 8


def side(seed, noise, columns=D):
    """Members' scores `[members, n, columns]` of one state, each with noise of its own."""
    rng = np.random.default_rng(seed)
    t = np.arange(N) % T
    state = np.random.default_rng(1).normal(size=(N, 2)) @ np.random.default_rng(2).normal(size=(2, columns))
    scores = np.stack([3 * state + level * rng.normal(size=state.shape) for level in noise])
    scores -= scores.mean(2, keepdims=True)
    return jnp.asarray(scores, jnp.float32), psa.group(t, t, T)


def weights(first, second, kinds, columns=D):
    (a, groups), (b, _) = side(3, first, columns), side(4, second, columns)
    return members_that_count(jax.random.key(0), a, b, kinds, groups, settle=True)


def test_noisy_members_are_left_out_of_the_modality_that_has_them():
    a, b = weights([1, 30, 1, 30], [1, 1], (2, 2))
    assert a.tolist() == [1, 0, 1, 0]
    assert b is None or b.sum() == 1
    a, b = weights([1, 1], [20, 1, 20, 20, 1, 20], (1, 3))
    assert a is None
    assert b.tolist() == [0, 1, 0, 0, 1, 0]


@pytest.mark.parametrize(
    ("first", "second", "kinds", "columns"),
    [
        ([1, 1, 1, 1], [1, 1, 1, 1], (2, 2), D),  # alike
        ([1, 2, 1, 2], [2, 1, 2, 1], (2, 2), D),  # not clearly
        ([1e3, 1e3], [1e3, 1e3], (2, 2), D),  # nothing
        ([1, 30], [1, 30], (1, 1), D),  # of one smoothing
        ([1, 30], [1, 1], (2, 2), 4),  # too few columns to tell
    ],
)
def test_all_count_unless_it_is_clear(first, second, kinds, columns):
    assert weights(first, second, kinds, columns) == (None, None)


def test_new_samples_are_scored_by_the_members_that_count(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    t = np.repeat(np.arange(T), 12)
    x, y = (np.asarray(rng.normal(size=(t.size, 5)) + t[:, None], np.float32) for _ in range(2))
    data = psa.Unpaired.from_labels(x, t, y, t)
    chosen = jnp.array([1.0, 0, 1, 0])
    pipeline = importlib.import_module("psa_jax.align.pipeline")
    monkeypatch.setattr(pipeline, "members_that_count", lambda *_, settle: (chosen, None))
    one = learner(members=4, epochs=2)
    out = psa.align(jax.random.key(0), data, query=data, valid=data, a=one, b=learner(epochs=2))
    np.testing.assert_array_equal(out.scorer_a.weights, chosen)
    assert out.scorer_b.weights is None
    assert "2 of 4 members count, by labels" in out.summary()
    kept = jax.tree.map(lambda leaf: leaf[np.array([0, 2])], out.fitted_a.params)
    alone = dataclasses.replace(out.scorer_a, weights=None)
    found = out.score_a(x)
    refined = alone.score(kept, x, 1)
    refined = refined if out.refined_a is None else out.refined_a(refined, x)
    np.testing.assert_allclose(found, refined, rtol=1e-4, atol=1e-4)
    psa.io.save_alignment(tmp_path / "kept.npz", out)
    again = psa.io.load_alignment(tmp_path / "kept.npz")
    np.testing.assert_array_equal(again.score_a(x), found)
