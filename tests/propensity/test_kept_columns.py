import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from psa_jax.data.look import FEW, look
from psa_jax.propensity.components import components

KEY = jax.random.key(0)


@given(st.integers(0, 2**31 - 1), st.integers(1, 60), st.integers(1, 300), st.integers(1, 500))
def test_as_many_of_the_same_treatments_are_looked_at_as_fit(seed, treatments, n, most):
    rng = np.random.default_rng(seed)
    labels = [rng.integers(0, treatments, size) for size in (n, 2 * n)]
    rows = look(jax.random.key(seed), labels, most)
    each = max(FEW, most // np.unique(np.concatenate(labels)).size)
    allowed = set()
    for t, own in zip(labels, rows, strict=True):
        assert (np.diff(own) > 0).all()
        assert own.size <= max(most, FEW)
        seen, count = np.unique(t[own], return_counts=True)
        np.testing.assert_array_equal(count, np.minimum(np.bincount(t)[seen], each))  # of a treatment all that fit
        allowed |= set(seen.tolist())
    for t, own in zip(labels, rows, strict=True):
        assert set(t[own].tolist()) == allowed & set(t.tolist())


def test_of_treatments_that_no_other_has_some_are_looked_at_too():
    rows = look(KEY, [np.zeros(100, int), np.ones(50, int)], 16)
    assert [own.size for own in rows] == [16, 16]
    rows = look(KEY, [np.arange(100) % 10, np.arange(100) % 2 + 8], 32)
    assert [
        np.unique(t[own]).tolist() for t, own in zip((np.arange(100) % 10, np.arange(100) % 2 + 8), rows, strict=True)
    ] == [[8, 9]] * 2


def low_rank(seed, n, d, rank, noise):
    rng = np.random.default_rng(seed)
    t = rng.integers(0, 7, n)
    state = rng.normal(size=(n, rank)) * np.linspace(2, 1, rank)
    directions = np.random.default_rng(9).normal(size=(rank, d))
    return 20 * rng.normal(size=(7, d))[t] + state @ directions + noise * rng.normal(size=(n, d)), t


def test_components_are_those_of_deviations_within_treatments():
    (x, t), (y, s) = low_rank(0, 300, 40, 3, 0.05), low_rank(1, 200, 40, 3, 0.05)
    found = components(KEY, [x, 5 * y], [t, s], 3)
    own = []
    for side, labels in ((x, t), (5 * y, s)):
        own.append(np.stack([row - side[labels == k].mean(0) for row, k in zip(side, labels, strict=True)]))
    both = np.concatenate([part / np.sqrt(np.mean(part**2)) for part in own])
    best = np.linalg.svd(both)[2][:3]
    np.testing.assert_allclose(found[0].basis @ found[0].basis.T, best.T @ best, atol=1e-4)
    np.testing.assert_array_equal(found[0].basis, found[1].basis)
    for part, one in zip(own, found, strict=True):
        np.testing.assert_allclose(one.basis.T @ one.basis, np.eye(3), atol=1e-5)
        np.testing.assert_allclose(one.kept, np.sum((part @ best.T) ** 2) / np.sum(part**2), rtol=1e-4)
        assert 0.98 < one.kept < 1


def test_columns_are_no_components_of_their_own():
    x, t = low_rank(0, 300, 40, 6, 0.0)
    (found,) = components(KEY, [x], [t], 6)
    deviations = np.concatenate([x[t == k] - x[t == k].mean(0) for k in range(7)]) @ np.asarray(found.basis)
    correlation = np.corrcoef(deviations.T) - np.eye(6)
    assert np.abs(correlation).max() > 0.1
    (other,) = components(jax.random.key(1), [x], [t], 6)
    assert np.abs(other.basis - found.basis).max() > 0.1
    np.testing.assert_allclose(other.basis @ other.basis.T, found.basis @ found.basis.T, atol=1e-4)


@pytest.mark.parametrize(
    ("x", "t", "kept"),
    [
        (np.random.default_rng(0).normal(size=(20, 9)), np.arange(20), (0.3, 1)),  # one sample of each treatment
        (np.ones((20, 9)), np.arange(20) % 4, (1, 1)),  # a classifier that says nothing
        (np.random.default_rng(0).normal(size=(3, 9)), np.arange(3) % 2, (0, 1)),  # fewer samples than columns
    ],
)
def test_components_of_little(x, t, kept):
    (found,) = components(KEY, [x], [t], 4)
    assert found.basis.shape == (9, 4)
    np.testing.assert_allclose(found.basis.T @ found.basis, np.eye(4), atol=1e-5)
    assert kept[0] - 1e-5 <= float(found.kept) <= kept[1] + 1e-5
    assert found(jnp.ones((2, 9))).shape == (2, 4)
