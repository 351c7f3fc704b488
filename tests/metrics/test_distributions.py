import functools
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import SIZES_A, SIZES_B, labels
from scipy.optimize import linear_sum_assignment
from scipy.special import digamma, gammaln
from scipy.stats import wasserstein_distance

import psa_jax as psa
from psa_jax.metrics import divergence, wasserstein

KEY = jax.random.key(3)
DISTANCES = {
    "wasserstein1": psa.wasserstein1,
    "sliced": functools.partial(psa.sliced_wasserstein1, KEY, num_projections=8),
    "kl": functools.partial(psa.kl_divergence, k=2),
    "gaussian": functools.partial(psa.gaussian_kl_divergence, ridge=0.1),
}


def clouds(n=30, m=20, d=3, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)).astype(dtype), (0.7 * rng.normal(size=(m, d)) + 0.4).astype(dtype)


def weights(n, m, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(size=n).astype(dtype), rng.uniform(size=m).astype(dtype)
    a[::4], b[1] = 0, 0
    return a, b


def on_device(*arrays):
    return tuple(jnp.asarray(array) for array in arrays)


def scipy_w1(x, y, a=None, b=None):
    return [wasserstein_distance(x[:, j], y[:, j], a, b) for j in range(x.shape[1])]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ties", [False, True])
def test_wasserstein1_of_scipy(weighted, ties):
    x, y = clouds()
    if ties:
        x, y = np.round(x), np.round(y)
    a, b = weights(30, 20) if weighted else (None, None)
    kwargs = {"a": jnp.asarray(a), "b": jnp.asarray(b)} if weighted else {}
    np.testing.assert_allclose(psa.wasserstein1(*on_device(x, y), **kwargs), scipy_w1(x, y, a, b), rtol=1e-5)


def test_wasserstein1_in_double_precision_and_in_chunks(x64, monkeypatch):
    x, y = clouds(dtype=np.float64)
    a, b = weights(30, 20, dtype=np.float64)
    monkeypatch.setattr(wasserstein, "CHUNK_ELEMENTS", 100)
    got = psa.wasserstein1(*on_device(x, y), a=jnp.asarray(a), b=jnp.asarray(b))
    assert got.dtype == jnp.float64
    np.testing.assert_allclose(got, scipy_w1(x, y, a, b), rtol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(-50, 50), st.floats(0.1, 10))
def test_laws_of_wasserstein1(seed, shift, scale):
    x, y = clouds(seed=seed)
    z = clouds(seed=seed + 1)[1]
    there, back = psa.wasserstein1(*on_device(x, y)), psa.wasserstein1(*on_device(y, x))
    np.testing.assert_allclose(there, back, rtol=1e-4)
    x2, y2 = (np.float32(scale) * s + np.float32(shift) for s in (x, y))
    np.testing.assert_allclose(psa.wasserstein1(*on_device(x2, y2)), scale * np.asarray(there), rtol=1e-3, atol=1e-4)
    moved = psa.wasserstein1(*on_device(x, x + np.float32(shift)))
    np.testing.assert_allclose(moved, abs(shift), rtol=1e-4, atol=1e-5)
    around = psa.wasserstein1(*on_device(x, z)) + psa.wasserstein1(*on_device(z, y))
    assert (np.asarray(there) <= np.asarray(around) + 1e-5).all()


def test_gradients_of_wasserstein1(x64):
    x, y = clouds(6, 5, 2, dtype=np.float64)
    a, b = np.arange(1.0, 7), np.arange(2.0, 7)

    def total(x, y, a, b):
        return psa.wasserstein1(x, y, a=a, b=b).sum()

    jax.test_util.check_grads(total, on_device(x, y, a, b), order=1, modes=["rev"], eps=1e-7)


@functools.cache
def value_and_slope(name):
    """One program for each distance, of samples and weights of one size."""

    def total(x, y, a, b):
        value = DISTANCES[name](x, y, a=a, b=b)
        return value.sum(), value

    return jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))


def padded(x, y, fill):
    return [jnp.pad(s, ((0, k), (0, 0)), constant_values=fill) for s, k in ((x, 5), (y, 9))]


REAL = jnp.pad(jnp.ones(30), (0, 5)), jnp.pad(jnp.ones(20), (0, 9))


@pytest.mark.parametrize("name", DISTANCES)
def test_padding_changes_nothing_and_has_no_gradient(name):
    x, y = on_device(*clouds())
    plain, (expected, _) = DISTANCES[name](x, y), value_and_slope(name)(*padded(x, y, 0.0), *REAL)
    assert bool((expected[0][:30] != 0).any())
    for fill in (0.0, 1e6, jnp.nan, jnp.inf):
        slopes, value = value_and_slope(name)(*padded(x, y, fill), *REAL)
        np.testing.assert_allclose(value, plain, rtol=2e-5)
        chex.assert_trees_all_close(slopes, expected, rtol=1e-3, atol=1e-5)
        chex.assert_tree_all_finite(slopes)
        assert not slopes[0][30:].any()
        assert not slopes[1][20:].any()


@pytest.mark.parametrize("name", DISTANCES)
def test_traced_values_that_make_no_sense_give_nan(name):
    x, y = padded(*on_device(*clouds()), 0.0)
    a, b = REAL

    def value(x, a):
        return value_and_slope(name)(x, y, a, b)[1]

    assert np.isfinite(value(x, a)).all()
    for bad in (a.at[0].set(-1), 0 * a, a.at[3].set(jnp.nan), a.at[3].set(jnp.inf)):
        assert np.isnan(value(x, bad)).all()
    for number in (jnp.nan, jnp.inf):
        broken = np.isnan(value(x.at[0, 1].set(number), a))
        assert broken.tolist() == ([False, True, False] if name == "wasserstein1" else True)


@pytest.mark.parametrize("name", DISTANCES)
def test_vmap_is_a_loop(name):
    x, y = (jnp.stack([jnp.asarray(clouds(seed=s)[side]) for s in range(3)]) for side in (0, 1))
    together = jax.jit(jax.vmap(DISTANCES[name]))(x, y)
    one_by_one = jnp.stack([DISTANCES[name](x[i], y[i]) for i in range(3)])
    np.testing.assert_allclose(together, one_by_one, rtol=1e-4)


def reference_sliced(x, y, num_projections, a=None, b=None):
    directions = np.asarray(jax.random.normal(KEY, (num_projections, x.shape[1])), np.float64)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return np.mean(scipy_w1(x @ directions.T, y @ directions.T, a, b))


def test_sliced_wasserstein1_is_the_mean_over_directions(monkeypatch):
    x, y = clouds()
    a, b = weights(30, 20)
    got = psa.sliced_wasserstein1(KEY, *on_device(x, y), num_projections=64, a=jnp.asarray(a), b=jnp.asarray(b))
    np.testing.assert_allclose(got, reference_sliced(x, y, 64, a, b), rtol=1e-5)
    assert got.shape == ()
    monkeypatch.setattr(wasserstein, "CHUNK_ELEMENTS", 170)
    chunked = psa.sliced_wasserstein1(KEY, *on_device(x, y), num_projections=63, a=jnp.asarray(a), b=jnp.asarray(b))
    np.testing.assert_allclose(chunked, reference_sliced(x, y, 63, a, b), rtol=1e-5)


def test_sliced_wasserstein1_of_a_shift_far_from_the_origin():
    x = jnp.asarray(clouds(d=8)[0]) + 1000
    shift = jnp.full((1, 8), 0.5)
    got = float(psa.sliced_wasserstein1(KEY, x, x + shift, num_projections=4000))
    share = np.exp(gammaln(4) - gammaln(4.5)) / np.sqrt(np.pi)
    np.testing.assert_allclose(got, share * np.linalg.norm(shift), rtol=0.03)
    one = x[:, :1]
    np.testing.assert_allclose(
        psa.sliced_wasserstein1(KEY, one, one * 2, num_projections=2), psa.wasserstein1(one, one * 2)[0], rtol=1e-5
    )


def test_sliced_wasserstein1_is_below_wasserstein1():
    for seed in range(3):
        x, y = clouds(25, 25, seed=seed)
        cost = np.linalg.norm(x[:, None] - y[None], axis=-1)
        assert float(DISTANCES["sliced"](*on_device(x, y))) <= cost[linear_sum_assignment(cost)].mean() + 1e-6


def reference_kl(x, y, k):
    """By loops; neighbours at distance zero are passed over, with the correction for their number."""
    (n, d), m = x.shape, len(y)
    total = 0.0
    for i in range(n):
        rho = np.sort(np.linalg.norm(np.delete(x, i, 0) - x[i], axis=1))
        nu = np.sort(np.linalg.norm(y - x[i], axis=1))
        l, q = max(k, (rho == 0).sum() + 1), max(k, (nu == 0).sum() + 1)
        total += d * np.log(nu[q - 1] / rho[l - 1]) + digamma(l) - digamma(q)
    return total / n + np.log(m / (n - 1))


@pytest.mark.parametrize(("d", "k"), [(3, 1), (3, 5), (70, 2)])
def test_kl_divergence_against_loops(d, k):
    x, y = clouds(d=d)
    np.testing.assert_allclose(psa.kl_divergence(*on_device(x, y), k=k), reference_kl(x, y, k), rtol=1e-4)


@pytest.mark.parametrize("d", [2, 70])
def test_kl_divergence_of_repeated_samples_is_finite(d):
    x, y = clouds(d=d)
    x[:4], x[7], y[:3], y[5:8] = x[0], x[8], x[0], y[5]
    got = float(psa.kl_divergence(*on_device(x, y), k=2))
    np.testing.assert_allclose(got, reference_kl(x, y, 2), rtol=1e-4)
    if d == 2:
        slope = jax.grad(psa.kl_divergence)(*on_device(x, y), k=2)
        assert bool(jnp.isfinite(slope).all())


def test_kl_divergence_without_distinct_samples_is_nan():
    x, y = on_device(*clouds())
    assert np.isnan(psa.kl_divergence(jnp.ones((30, 3)), y))
    assert np.isfinite(psa.kl_divergence(x, jnp.ones((20, 3))))
    assert np.isnan(psa.kl_divergence(jnp.concatenate([x, jnp.ones((1, 3))]), jnp.ones((20, 3))))


def test_kl_divergence_in_chunks(x64, monkeypatch):
    x, y = clouds(dtype=np.float64)
    monkeypatch.setattr(divergence, "CHUNK_ELEMENTS", 150)
    got, slope = jax.value_and_grad(psa.kl_divergence)(*on_device(x, y))
    np.testing.assert_allclose(got, reference_kl(x, y, 5), rtol=1e-10)
    step = 1e-6 * np.random.default_rng(0).normal(size=x.shape)
    change = reference_kl(x + step, y, 5) - reference_kl(x - step, y, 5)
    np.testing.assert_allclose((np.asarray(slope) * step).sum() * 2, change, rtol=1e-4)


def true_kl(mean_x, cov_x, mean_y, cov_y):
    inverse = np.linalg.inv(cov_y)
    shift = mean_x - mean_y
    volumes = np.linalg.slogdet(cov_y)[1] - np.linalg.slogdet(cov_x)[1]
    return (np.trace(inverse @ cov_x) + shift @ inverse @ shift - len(cov_x) + volumes) / 2


def test_both_divergences_of_gaussians_with_known_divergence():
    rng = np.random.default_rng(0)
    root = np.array([[1.0, 0.0], [0.5, 0.8]])
    x, noise = rng.normal(size=(2, 3000, 2)).astype(np.float32)
    shape = np.eye(2), root @ root.T
    found = []
    for shift in (0.0, 0.5, 1.0, 1.5):
        y = (noise @ root.T + shift).astype(np.float32)
        truth = true_kl(np.zeros(2), shape[0], np.full(2, shift), shape[1])
        by_neighbours, fitted = (f(*on_device(x, y)) for f in (psa.kl_divergence, psa.gaussian_kl_divergence))
        np.testing.assert_allclose(fitted, truth, rtol=0.06, atol=0.02)
        np.testing.assert_allclose(by_neighbours, truth, rtol=0.12, atol=0.05)
        found.append((float(by_neighbours), float(fitted)))
    assert (np.diff(found, axis=0) > 0.1).all()


def reference_gaussian(x, y, ridge, a=None, b=None):
    (mean_x, cov_x), (mean_y, cov_y) = (
        (np.average(s, axis=0, weights=w), np.cov(s.T, aweights=w)) for s, w in ((x, a), (y, b))
    )
    added = ridge * np.trace(cov_y) / len(cov_y) * np.eye(len(cov_y))
    return true_kl(mean_x, cov_x + added, mean_y, cov_y + added)


@pytest.mark.parametrize("weighted", [False, True])
def test_gaussian_kl_divergence_against_numpy(weighted):
    x, y = clouds()
    a, b = weights(30, 20) if weighted else (None, None)
    kwargs = {"a": jnp.asarray(a), "b": jnp.asarray(b)} if weighted else {}
    for ridge in (0.0, 0.3):
        got = psa.gaussian_kl_divergence(*on_device(x, y), ridge=ridge, **kwargs)
        np.testing.assert_allclose(got, reference_gaussian(x, y, ridge, a, b), rtol=1e-3)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31))
def test_gaussian_kl_divergence_is_invariant_under_affine_maps(seed):
    x, y = clouds(seed=seed)
    rng = np.random.default_rng(seed)
    matrix = np.linalg.qr(rng.normal(size=(3, 3)))[0] * rng.uniform(0.3, 3, 3)
    plain = float(psa.gaussian_kl_divergence(*on_device(x, y)))
    shift = np.float32(10 * rng.normal())
    mapped = on_device(*(np.asarray(s @ matrix, np.float32) + shift for s in (x, y)))
    np.testing.assert_allclose(psa.gaussian_kl_divergence(*mapped), plain, rtol=2e-3)
    smoothed = [float(psa.gaussian_kl_divergence(*on_device(x, y), ridge=r)) for r in (0.1, 1.0)]
    assert 0 <= smoothed[1] <= smoothed[0] <= plain


def test_singular_covariances_need_a_ridge():
    x, y = clouds(n=5, m=6, d=8)
    with pytest.raises(ValueError, match=r"x: expected at least 9 samples for 8 features .*ridge"):
        psa.gaussian_kl_divergence(*on_device(x, y))
    assert np.isfinite(psa.gaussian_kl_divergence(*on_device(x, y), ridge=1e-2))
    assert np.isnan(psa.gaussian_kl_divergence(*on_device(x, y), a=jnp.ones(5), b=jnp.ones(6)))
    x, y = clouds()
    for column in (np.float32(1e4), x[:, 0] + 2 * x[:, 1]):
        x[:, 2] = column
        assert np.isnan(psa.gaussian_kl_divergence(*on_device(x, y)))
        assert np.isfinite(psa.gaussian_kl_divergence(*on_device(x, y), ridge=1e-3))


def test_gaussian_kl_divergence_far_from_the_origin():
    x, y = clouds(n=300, m=300)
    there = on_device(x + np.float32(1000), y + np.float32(1000))
    np.testing.assert_allclose(
        psa.gaussian_kl_divergence(*there), psa.gaussian_kl_divergence(*on_device(x, y)), rtol=1e-3
    )


REFERENCES = {
    "wasserstein1": scipy_w1,
    "gaussian": functools.partial(reference_gaussian, ridge=0.1),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_per_treatment_is_the_distance_of_each(name):
    t_x, t_y = labels()
    x, y = clouds(len(t_x), len(t_y))
    with pytest.warns(UserWarning, match=r"no distance for 5 of 9 treatments \(0, 1, 2, 5, 6\): fewer than two"):
        got = psa.per_treatment(DISTANCES[name], jnp.asarray(x), t_x, jnp.asarray(y), t_y, 9)
    assert np.isnan(got[np.array([0, 1, 2, 5, 6, 8])]).all()
    for t in (3, 4, 7):
        assert min(SIZES_A[t], SIZES_B[t]) > 1
        np.testing.assert_allclose(got[t], REFERENCES[name](x[t_x == t], y[t_y == t]), rtol=1e-3)


def test_per_treatment_names_treatments_too_small_for_the_distance():
    t_x, t_y = labels()
    x, y = clouds(len(t_x), len(t_y))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        got = psa.per_treatment(psa.kl_divergence, *on_device(x, t_x, y, t_y), 8)
    assert np.flatnonzero(np.isfinite(got)).tolist() == [4]
    assert [str(w.message).split(":")[0] for w in caught] == [
        "no distance for 5 of 8 treatments (0, 1, 2, 5, 6)",
        "no distance for 2 of 8 treatments (3, 7)",
    ]
    np.testing.assert_allclose(got[4], reference_kl(x[t_x == 4], y[t_y == 4], 5), rtol=1e-4)


def test_per_treatment_compiles_a_dozen_times_at_most():
    rng = np.random.default_rng(0)
    sizes = rng.integers(2, 60, (2, 41))
    t_x, t_y = (np.repeat(np.arange(41), s) for s in sizes)
    x, y = (jnp.asarray(rng.normal(size=(t.size, 2)), jnp.float32) for t in (t_x, t_y))
    shapes = set()

    def distance(x, y, *, a, b):
        shapes.add((x.shape, y.shape))
        return np.array([(np.asarray(a) > 0).sum(), (np.asarray(b) > 0).sum()], np.float32)

    got = psa.per_treatment(distance, x, t_x, y, t_y, 41)
    np.testing.assert_array_equal(got, sizes.T)
    assert len(shapes) <= 12


X, Y = jnp.ones((4, 2)), jnp.zeros((3, 2))
T_X, T_Y = np.array([0, 0, 1, 1]), np.array([0, 0, 1])
ALL = [psa.wasserstein1, functools.partial(psa.sliced_wasserstein1, KEY), psa.kl_divergence, psa.gaussian_kl_divergence]


@pytest.mark.parametrize("distance", ALL)
@pytest.mark.parametrize(
    ("x", "y", "a", "b", "message"),
    [
        (X[0], Y, None, None, r"x: expected numbers \[n, .\], got shape \(2,\)"),
        (X, Y[:, :1], None, None, r"x, y: expected the same features, got shapes \(4, 2\) and \(3, 1\)"),
        (X, Y[:0], None, None, "y: expected shape .* at least one of each"),
        (X[:, :0], Y[:, :0], None, None, "x: expected shape .* at least one of each"),
        (X, Y, jnp.ones(3), None, r"a: expected shape \(4,\)"),
        (X, Y, None, jnp.ones((3, 1)), r"b: expected numbers \[m\], got shape \(3, 1\)"),
        (X, Y, jnp.array([1.0, -1, 1, 1]), None, "a: expected finite weights, none negative and not all zero"),
        (X, Y, None, jnp.zeros(3), "b: expected finite weights, none negative and not all zero"),
        (X, Y, jnp.array([1.0, jnp.nan, 1, 1]), None, "a: expected finite weights"),
        (X.at[2].set(jnp.nan), Y, None, None, "x: expected finite values, got NaN or infinity in 1 of 4 rows"),
        (X, Y.at[1, 0].set(jnp.inf), None, None, "y: expected finite values, .* the first at row 1"),
    ],
)
def test_bad_samples(distance, x, y, a, b, message):
    with pytest.raises(ValueError, match=message):
        distance(x, y, a=a, b=b)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: psa.sliced_wasserstein1(KEY, X, Y, num_projections=0), "num_projections: expected a positive"),
        (
            lambda: psa.sliced_wasserstein1(KEY, X, Y, num_projections=2.0),
            "num_projections: expected an integer, got 2.0",
        ),
        (lambda: psa.kl_divergence(X, Y, k=0), "k: expected at least 1"),
        (lambda: psa.kl_divergence(X, Y, k=1.5), "k: expected an integer"),
        (lambda: psa.kl_divergence(X, jnp.ones((9, 2)), k=4), "k: expected at most 3, the number of other samples"),
        (lambda: psa.kl_divergence(jnp.ones((9, 2)), Y, k=4), "k: expected at most 3, the number of samples of y"),
        (lambda: psa.kl_divergence(X[:1], Y, k=1), "k: expected at most 0"),
        (lambda: psa.gaussian_kl_divergence(X, Y, ridge=-1.0), "ridge: expected"),
        (lambda: psa.gaussian_kl_divergence(X, Y, ridge=jnp.nan), "ridge: expected"),
        (lambda: psa.gaussian_kl_divergence(X, Y, ridge=jnp.ones(2)), "ridge: expected"),
        (lambda: psa.gaussian_kl_divergence(X, Y[:1], ridge=1.0), "y: expected at least 2 samples"),
        (lambda: psa.per_treatment(psa.wasserstein1, X, T_X[:2], Y, T_Y, 2), "t_x: expected 4 codes, .* got 2"),
        (lambda: psa.per_treatment(psa.wasserstein1, X, T_X, Y, T_Y, 1), r"t_x: expected codes in \[0, 1\)"),
        (lambda: psa.per_treatment(psa.wasserstein1, X, T_X, Y, 1.0 * T_Y, 2), "t_y: expected integer"),
        (lambda: psa.per_treatment(psa.wasserstein1, X, T_X, Y[:1], T_Y[:1], 2), "t_x, t_y: expected at least one"),
        (lambda: psa.per_treatment(psa.wasserstein1, X * jnp.nan, T_X, Y, T_Y, 2), "x: expected finite values"),
    ],
)
def test_bad_settings(call, message):
    with pytest.raises(ValueError, match=message):
        call()
