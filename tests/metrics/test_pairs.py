import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import ragged, uniform

import psa_jax as psa
from psa_jax.match import class_mean, known_pairs


def brute_foscttm(y_hat, y, t, tie):
    n = len(y)
    out = np.full(n, np.nan)
    for i in range(n):
        others = [j for j in range(n) if j != i and t[j] == t[i]]
        if not others:
            continue
        total = 0.0
        for a, b in ((y_hat, y), (y, y_hat)):
            own = ((a[i] - b[i]) ** 2).sum()
            for j in others:
                distance = ((a[i] - b[j]) ** 2).sum()
                total += (distance < own) + tie * (distance == own)
        out[i] = total / 2 / len(others)
    return out


@pytest.mark.parametrize("convention", ["ours", "paper"])
@pytest.mark.parametrize("same", [False, True])
def test_foscttm_against_loops(convention, same):
    rng = np.random.default_rng(0)
    y_hat, y = rng.integers(0, 3, (2, 25, 2)).astype(np.float32)
    t = rng.integers(0, 4, 25)
    t[0] = 9
    got = psa.foscttm(jnp.asarray(y_hat), jnp.asarray(y), t=jnp.asarray(t) if same else None, convention=convention)
    expected = brute_foscttm(y_hat, y, t if same else np.zeros(25), 0.5 if convention == "ours" else 0.0)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert np.isnan(got[0]) == same


@pytest.mark.parametrize("treatments", [1, 3, 7, 40])
def test_some_rows_of_foscttm_among_stretches_of_candidates(treatments):
    rng = np.random.default_rng(1)
    y_hat, y = (jnp.asarray(rng.integers(0, 3, (60, 2)), jnp.float32) for _ in range(2))
    y_hat = y_hat.at[5].set(jnp.nan)
    t = jnp.asarray(rng.integers(-2, treatments - 2, 60))
    rows = jnp.asarray([59, 0, 5, 17, 0])
    traced = jax.jit(lambda t: psa.foscttm(y_hat, y, t=t))(t)  # of unknown sizes: all others are looked at
    np.testing.assert_array_equal(psa.foscttm(y_hat, y, t=t), traced)
    np.testing.assert_array_equal(psa.foscttm(y_hat, y, t=t, rows=rows), traced[rows])


def test_foscttm_of_rows_that_do_not_exist():
    with pytest.raises(ValueError, match=r"rows: expected rows in \[0, 3\), got -1 to 1"):
        psa.foscttm(jnp.zeros((3, 1)), jnp.zeros((3, 1)), rows=jnp.array([1, -1]))


@pytest.mark.parametrize("g", range(3))
def test_foscttm_of_the_paper(x64, golden, g):
    n = min(len(golden[f"s1_{g}"]), len(golden[f"s2_{g}"]))
    first, second = (jnp.asarray(golden[f"{s}_{g}"][:n]) for s in ("s1", "s2"))
    got = psa.foscttm(first, second, convention="paper").mean()
    np.testing.assert_allclose(got, golden[f"foscttm_{g}"], rtol=1e-12)


def test_foscttm_of_a_constant_is_chance_and_of_the_truth_is_zero():
    y = jnp.asarray(np.random.default_rng(0).normal(size=(200, 3)), jnp.float32)
    constant = jnp.broadcast_to(y.mean(0), y.shape)
    np.testing.assert_allclose(psa.foscttm(constant, y).mean(), 0.5, atol=1e-3)
    assert float(psa.foscttm(constant, y, convention="paper").mean()) < 0.3
    assert float(psa.foscttm(y, y).max()) == 0


def test_foscttm_excludes_rows_without_a_value():
    y = jnp.arange(5.0)[:, None]
    with_hole = y.at[2].set(jnp.nan)
    got = np.asarray(psa.foscttm(with_hole, y))
    assert np.isnan(got[2])
    np.testing.assert_array_equal(np.delete(got, 2), psa.foscttm(jnp.delete(y, 2, axis=0), jnp.delete(y, 2, axis=0)))


@pytest.mark.parametrize("g", [0, 2])
def test_latent_mse_of_the_paper(x64, golden, g):
    u, v, z = (jnp.asarray(golden[f"{name}_{g}"]) for name in ("s1", "s2", "z"))
    n = u.shape[0]
    C = psa.sinkhorn(u, v, uniform(n, u.dtype), uniform(n, u.dtype), eps=0.05, tol=0.0, max_iters=1000, absorb=False)
    got = psa.latent_mse(C, psa.Truth(jnp.arange(n), z, z)).mean()
    np.testing.assert_allclose(got, golden[f"latent_mse_{g}"], rtol=1e-3)


def test_trace_against_the_dense_law():
    u, v, _, t_a, t_b, groups = ragged()
    C = psa.blockwise(psa.snn)(u, v, groups)
    mass = np.asarray(C.dense())
    p = mass / np.where(mass.sum(1, keepdims=True) > 0, mass.sum(1, keepdims=True), 1)
    pair = np.random.default_rng(0).integers(-1, len(v), len(u))
    expected = np.where(pair >= 0, p[np.arange(len(u)), pair], np.nan)
    np.testing.assert_allclose(psa.trace(C, psa.Truth(jnp.asarray(pair))), expected, atol=1e-6)


def test_levels_of_the_uniform_and_of_the_true_coupling():
    u, v, _, t_a, t_b, groups = ragged()
    uniform_law = psa.blockwise(class_mean)(u, v, groups)
    pair = np.array([np.flatnonzero(t_b == t)[0] if (t_b == t).any() else -1 for t in t_a])
    truth = psa.Truth(jnp.asarray(pair), v[pair], v)
    chance = np.where(pair >= 0, 1 / np.maximum(np.bincount(t_b, minlength=8)[t_a], 1), np.nan)
    np.testing.assert_allclose(psa.trace(uniform_law, truth), chance, rtol=1e-5)
    oracle = known_pairs(truth.pair, len(v))
    np.testing.assert_array_equal(psa.trace(oracle, truth), np.where(pair >= 0, 1, np.nan))
    error = np.asarray(psa.latent_mse(oracle, truth))
    np.testing.assert_allclose(error[pair >= 0], 0, atol=1e-10)
    np.testing.assert_array_equal(np.isnan(error), pair < 0)


def test_label_transfer_against_the_dense_law():
    u, v, _, t_a, t_b, groups = ragged()
    C = psa.blockwise(psa.snn)(u, v, groups)
    rng = np.random.default_rng(0)
    fine_a, fine_b = rng.integers(-1, 3, len(u)), rng.integers(-1, 3, len(v))
    mass = np.asarray(C.dense())
    p = mass / np.where(mass.sum(1, keepdims=True) > 0, mass.sum(1, keepdims=True), np.nan)
    expected = np.where(fine_a >= 0, (p * (fine_a[:, None] == fine_b)).sum(1), np.nan)
    got = psa.label_transfer(C, jnp.asarray(fine_a), jnp.asarray(fine_b))
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_by_treatment_counts_what_it_leaves_out():
    rng = np.random.default_rng(0)
    values, t = rng.normal(size=50).astype(np.float32), rng.integers(0, 4, 50)
    values[::7] = np.nan
    values[t == 2] = np.nan
    result = psa.by_treatment(jnp.asarray(values), jnp.asarray(t), 5)
    for code in range(5):
        mine = values[t == code]
        assert int(result.count[code]) == np.isfinite(mine).sum()
        assert int(result.excluded[code]) == np.isnan(mine).sum()
    with np.errstate(all="ignore"):
        means = [values[t == c][np.isfinite(values[t == c])].mean() for c in (0, 1, 3)]
    np.testing.assert_allclose(np.asarray(result.mean)[[0, 1, 3]], means, rtol=1e-5)
    assert np.isnan(np.asarray(result.mean)[[2, 4]]).all()
    np.testing.assert_allclose(result.micro, np.nanmean(values), rtol=1e-5)
    np.testing.assert_allclose(result.macro, np.mean(means), rtol=1e-5)


@pytest.mark.slow
def test_metrics_compose_with_jit_and_grad():
    u, v, y, t_a, t_b, groups = ragged()
    truth = psa.Truth(jnp.zeros(len(u), jnp.int32), jnp.zeros((len(u), 2)), y)

    @jax.jit
    @jax.grad
    def slope(u):
        return jnp.nansum(psa.latent_mse(psa.blockwise(psa.sinkhorn)(u, v, groups), truth))

    assert bool(jnp.isfinite(slope(u)).all())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: psa.foscttm(jnp.ones((3, 1)), jnp.ones((2, 1))), "y_hat, y: expected one shape"),
        (lambda: psa.foscttm(jnp.ones(3), jnp.ones(3)), r"y_hat: expected numbers \[n, d\]"),
        (lambda: psa.foscttm(jnp.ones((3, 1)), jnp.ones((3, 1)), t=jnp.ones(2, int)), "t: expected shape"),
        (lambda: psa.foscttm(jnp.ones((3, 1)), jnp.ones((3, 1)), convention="other"), "convention: expected"),
        (lambda: psa.by_treatment(jnp.ones(3), jnp.ones(2, int), 2), "values, t: expected one shape"),
        (lambda: psa.latent_mse(psa.independent(jnp.ones(1), jnp.ones(1)), psa.Truth(jnp.zeros(1, int))), "truth: exp"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_labels_that_do_not_fit_are_refused_or_unknown():
    C = psa.independent(uniform(2), uniform(4))
    labels_b = jnp.array([0, 1, 2, 3])
    np.testing.assert_allclose(psa.label_transfer(C, jnp.array([1, 2]), labels_b, num_labels=2), [0.25, np.nan])
    with pytest.raises(ValueError, match=r"labels_b: expected shape \(4,\)"):
        psa.label_transfer(C, jnp.array([0, 1]), labels_b[:3])
    with pytest.raises(ValueError, match=r"t: expected codes in \[0, 2\), got 0 to 2"):
        psa.by_treatment(jnp.ones(3), jnp.arange(3), 2)
    with pytest.raises(ValueError, match=r"truth: expected latents \[2, d\] and \[4, d\]"):
        psa.latent_mse(C, psa.Truth(jnp.zeros(2, int), jnp.ones((1, 2)), jnp.ones((4, 2))))


def test_labels_that_are_all_unknown_give_no_number():
    C = psa.independent(uniform(2), uniform(3))
    assert np.isnan(psa.label_transfer(C, jnp.array([-1, -1]), jnp.array([-1, -1, -1]))).all()
