import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import pair_of_clouds, uniform

import psa_jax as psa
from psa_jax.coupling.coupling import masked


def stored(left, right, args):
    """A table of log masses; `right` is the column number."""
    return left[:, right] + args


def table(log_mass):
    log_mass = jnp.asarray(log_mass, jnp.float32)
    return psa.Coupling(left=log_mass, right=jnp.arange(log_mass.shape[1]), args=jnp.float32(0), kernel=stored)


def random_table(n, m, seed=0, holes=0.3):
    rng = np.random.default_rng(seed)
    log_mass = 3 * rng.normal(size=(n, m))
    log_mass[rng.random((n, m)) < holes] = -np.inf
    log_mass[n // 2] = -np.inf
    log_mass[:, m // 3] = -np.inf
    return log_mass


def conditional(log_mass):
    mass = np.exp(log_mass)
    total = mass.sum(1, keepdims=True)
    return mass / np.where(total > 0, total, 1)


@pytest.mark.parametrize("chunk", [None, 1, 3, 7, 50])
@pytest.mark.parametrize(("n", "m"), [(7, 11), (1, 4), (5, 1)])
def test_methods_against_the_stored_table(n, m, chunk):
    log_mass = random_table(n, m)
    C, p = table(log_mass), conditional(log_mass)
    y = np.random.default_rng(1).normal(size=(m, 2, 3)).astype(np.float32)
    np.testing.assert_allclose(C.apply(jnp.asarray(y), chunk=chunk), np.einsum("ij,jkl->ikl", p, y), atol=1e-5)
    np.testing.assert_allclose(C.dense(), np.exp(log_mass), rtol=1e-5)
    np.testing.assert_allclose(C.row_marginal(chunk=chunk), np.exp(log_mass).sum(1), rtol=1e-5)
    np.testing.assert_allclose(C.col_marginal(chunk=chunk), np.exp(log_mass).sum(0), rtol=1e-5)
    j = np.random.default_rng(2).integers(-1, m, n)
    expected = np.where(j >= 0, p[np.arange(n), j], 0)
    np.testing.assert_allclose(jnp.exp(C.log_prob(jnp.asarray(j), chunk=chunk)), expected, atol=1e-5)
    k = min(3, m)
    best, columns = C.top_k(k, chunk=chunk)
    np.testing.assert_allclose(best, -np.sort(-p, axis=1)[:, :k], atol=1e-5)
    found = np.asarray(columns) >= 0
    np.testing.assert_array_equal(found, np.asarray(best) > 0)
    picked = p[np.arange(n)[:, None], columns]
    np.testing.assert_allclose(picked[found], np.asarray(best)[found], atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_chunks_do_not_change_samples(chunk):
    C = table(random_table(9, 13))
    key = jax.random.key(3)
    np.testing.assert_array_equal(C.sample(key), C.sample(key, chunk=chunk))


def test_transposing_is_the_same_law_read_the_other_way():
    log_mass = random_table(6, 8)
    C = table(log_mass)
    assert C.T.shape == (8, 6)
    np.testing.assert_allclose(C.T.dense(), C.dense().T, rtol=1e-6)
    y = jnp.arange(6.0)
    np.testing.assert_allclose(C.T.apply(y), conditional(log_mass.T) @ y, atol=1e-5)
    for ours, twice in zip(jax.tree.leaves(C), jax.tree.leaves(C.T.T), strict=True):
        assert ours is twice


def test_samples_follow_the_law():
    log_mass = random_table(4, 5, seed=4)
    p = conditional(log_mass)
    draws = jax.vmap(lambda key: table(log_mass).sample(key))(jax.random.split(jax.random.key(0), 20000))
    for row in range(4):
        if p[row].sum() == 0:
            assert (np.asarray(draws[:, row]) == -1).all()
            continue
        frequency = np.bincount(np.asarray(draws[:, row]), minlength=5) / 20000
        np.testing.assert_allclose(frequency, p[row], atol=4 * np.sqrt(0.25 / 20000))
        assert (frequency[p[row] == 0] == 0).all()


def test_a_row_draws_by_its_name_not_its_place():
    C = table(np.random.default_rng(0).normal(size=(6, 30)))
    key, order = jax.random.key(1), jnp.array([3, 1, 5, 0, 2, 4])
    shuffled = dataclasses.replace(C, left=C.left[order])
    np.testing.assert_array_equal(shuffled.sample(key, ids=order), C.sample(key)[order])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), shift=st.floats(-60, 60))
def test_laws(seed, shift):
    log_mass = random_table(5, 7, seed)
    C = table(log_mass)
    ones = C.apply(jnp.ones(7))
    np.testing.assert_allclose(ones, np.isfinite(log_mass).any(1).astype(float), atol=1e-5)
    shifted = dataclasses.replace(C, args=jnp.float32(shift))
    y = jnp.arange(7.0)
    np.testing.assert_allclose(shifted.apply(y), C.apply(y), rtol=1e-3, atol=1e-4)


def test_values_of_wide_and_narrow_types(x64):
    C = table(np.zeros((2, 3)))
    wide = jnp.array([1e-9, 1.0, 2.0])
    assert C.apply(wide).dtype == jnp.float64
    np.testing.assert_allclose(C.apply(wide), (wide.sum() / 3)[None].repeat(2, 0), rtol=1e-7)
    assert C.apply(jnp.arange(3)).dtype == jnp.float32
    assert C.apply(jnp.ones(3, jnp.bfloat16)).dtype == jnp.float32


def test_gradients_are_finite_where_there_is_no_mass():
    log_mass = jnp.asarray(random_table(4, 5), jnp.float32)

    def value(log_mass):
        C = psa.Coupling(left=log_mass, right=jnp.arange(5), args=jnp.float32(0), kernel=stored)
        log_p = C.log_prob(jnp.array([0, 1, 2, -1]))
        return C.apply(jnp.arange(5.0)).sum() + jnp.where(jnp.isfinite(log_p), log_p, 0).sum()

    assert bool(jnp.isfinite(jax.grad(value)(log_mass)).all())


def test_gradient_holds_one_chunk_at_a_time():
    u, v = pair_of_clouds(2000, 2000)
    C = psa.sinkhorn(u[:8], v[:8], uniform(8), uniform(8))
    big = dataclasses.replace(
        C,
        left=((u, jnp.zeros(2000)), jnp.ones(2000, bool)),
        right=((v, jnp.zeros(2000)), jnp.ones(2000, bool)),
    )

    def value(u):
        return dataclasses.replace(big, left=((u, big.left[0][1]), big.left[1])).apply(v, chunk=20).sum()

    memory = jax.jit(jax.grad(value)).lower(u).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 2000 * 2000 * 4 / 4


def test_masking():
    C = masked(table(np.zeros((3, 4))), jnp.array([1.0, 0.0, 1.0]), jnp.array([1.0, 1.0, 0.0, 1.0]))
    expected = np.outer([1, 0, 1], [1, 1, 0, 1])
    np.testing.assert_array_equal(C.dense(), expected)
    np.testing.assert_array_equal(C.T.dense(), expected.T)
    assert masked(C, jnp.ones(3), jnp.ones(4)) is C


def test_nan_is_not_hidden():
    log_mass = np.zeros((2, 3))
    log_mass[1, 1] = np.nan
    out = np.asarray(table(log_mass).apply(jnp.ones(3)))
    assert np.isfinite(out[0])
    assert np.isnan(out[1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda C: C.apply(jnp.ones(4)), "y: expected 3 values"),
        (lambda C: C.apply(jnp.float32(1)), r"y: expected numbers \[m, ...\], got shape \(\)"),
        (lambda C: C.log_prob(jnp.zeros(3, jnp.int32)), r"j: expected shape \(2,\)"),
        (lambda C: C.top_k(0), "k: expected 1 to 3"),
        (lambda C: C.top_k(4), "k: expected 1 to 3"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(table(np.zeros((2, 3))))


def negative_gap(left, right, args):
    return -3 * jnp.abs(left - right.T)


def straight(u, v, a, b):
    return psa.Coupling(left=u, right=v, kernel=negative_gap)


def turned(u, v, a, b):
    return psa.Coupling(left=v, right=u, kernel=negative_gap).T


@pytest.mark.parametrize("t_a", [[0, 0, 0, 1, 1], [0, 0, 0, 1, 0]])
def test_a_matcher_may_return_a_transposed_coupling(t_a):
    groups = psa.group(np.array(t_a), np.array([0, 0, 1, 1, 1]), 2, max_waste=9)
    u = jnp.arange(5.0)[:, None]
    plain, flipped = (psa.blockwise(matcher)(u, u + 0.3, groups).dense() for matcher in (straight, turned))
    np.testing.assert_allclose(plain, flipped, rtol=1e-5)
