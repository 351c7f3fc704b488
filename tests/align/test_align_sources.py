"""Alignments of sources: those of the same data in memory, on any mesh, from files, and beyond memory."""

import jax
import numpy as np

import psa_jax as psa

K, N, M = 5, 90, 80
RNG = np.random.default_rng(0)
STATE = RNG.normal(size=(N + M, 4)) + RNG.normal(size=(K, 4))[np.arange(N + M) % K]
T = np.arange(N + M) % K
X, Y = (np.tanh(STATE @ RNG.normal(size=(4, d))).astype(np.float32) for d in (8, 6))
X, Y, T_A, T_B = X[:N], Y[N:], T[:N], T[N:]
QUICK = psa.Learner(psa.linear(K), members=2, folds=3, training=psa.Training(epochs=2, batch_size=32))
KEY = jax.random.key(3)


def data(wrap, x=X, y=Y, **batches):
    return psa.Unpaired(psa.Modality(wrap(x), T_A, batches.get("a")), psa.Modality(wrap(y), T_B, batches.get("b")), K)


def aligned(data, **options):
    return psa.align(KEY, data, a=QUICK, b=QUICK, **options)


def same(found, expected, atol=1e-5):
    for name in ("scores_a", "scores_b", "member_scores_a", "member_scores_b"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=atol)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=atol), found.fitted_a.params, expected.fitted_a.params
    )
    np.testing.assert_allclose(found.project(Y), expected.project(Y), atol=1e-3)


def test_an_alignment_of_sources_is_that_of_the_arrays(tmp_path):
    one, other = aligned(data(psa.source)), aligned(data(lambda x: x))
    same(one, other)
    np.testing.assert_allclose(one.score_a(psa.source(X)), other.score_a(X), atol=1e-5)
    np.testing.assert_allclose(one.project(psa.source(Y)), other.project(Y), atol=1e-3)
    np.testing.assert_allclose(one.T.project(psa.source(X)), other.T.project(X), atol=1e-3)
    np.testing.assert_allclose(
        one.project(psa.source(Y), x=psa.source(X[:7]), t=T_A[:7]), other.project(Y, x=X[:7], t=T_A[:7]), atol=1e-3
    )
    one.save(tmp_path / "it")
    again = psa.io.load_alignment(tmp_path / "it" / "alignment.npz", model_a=psa.linear(K), model_b=psa.linear(K))
    np.testing.assert_array_equal(again.scores_a, one.scores_a)
    np.testing.assert_allclose(again.score_b(psa.source(Y)), other.score_b(Y), atol=1e-5)
