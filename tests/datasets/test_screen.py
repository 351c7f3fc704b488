import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import slow
from scipy import stats

from psa_jax.data.samples import check_truth, validate
from psa_jax.datasets import ScreenLaw, perturbation_screen
from psa_jax.datasets.perturbation_screen import LIBRARY_SPREAD, _draw_screen, _plan, _sizes

SMALL = {"num_treatments": 6, "num_genes": 30, "num_features": 12, "num_latents": 3}
LAW = [field.name for field in dataclasses.fields(ScreenLaw)]
STILL = {"response": 1.0, "heterogeneity": 0.0, "private": 0.0, "batch_effect": 0.0}


def draw(key=0, *, num_samples=3000, **settings):
    law = ScreenLaw(**{name: settings.pop(name) for name in LAW if name in settings})
    return perturbation_screen(jax.random.key(key), num_samples=num_samples, law=law, **(SMALL | settings))


def law(screen=0, batches=3):
    shape = (SMALL[name] for name in ("num_treatments", "num_genes", "num_features", "num_latents"))
    return jax.tree.map(lambda x: np.asarray(x, np.float64), _draw_screen(jax.random.key(screen), *shape, batches))


def sizes(t, k=SMALL["num_treatments"]):
    return np.bincount(np.asarray(t), minlength=k)


def p_values(x, t):
    """Of a one-way analysis of variance of every feature."""
    return stats.f_oneway(*(np.asarray(x)[np.asarray(t) == k] for k in np.unique(t))).pvalue


def explained(x, z):
    """The share of the variance of `x` that least squares from `z` explains."""
    z = np.column_stack([np.ones(len(z)), z])
    rest = x - z @ np.linalg.lstsq(z, x, rcond=None)[0]
    return 1 - rest.var(0).sum() / np.var(x, 0).sum()


@pytest.fixture(scope="module")
def ragged():
    return draw(unpaired=0.3, missing_a=1, missing_b=2)


def test_the_views_are_float32_of_the_sizes_asked(ragged):
    for data, truth in (draw(), ragged):
        validate(data)
        check_truth(truth, data.a.t.size, data.b.t.size)
        assert data.a.x.shape == (data.a.t.size, 30)
        assert data.b.x.shape == (data.b.t.size, 12)
        assert truth.z_a.shape == (data.a.t.size, 3)
        assert truth.z_b.shape == (data.b.t.size, 3)
        assert {leaf.dtype for leaf in (data.a.x, data.b.x, truth.z_a, truth.z_b)} == {jnp.dtype("float32")}
        assert {leaf.dtype for leaf in (data.a.t, data.b.t, truth.pair)} == {jnp.dtype("int32")}
    data, truth = draw()
    assert data.a.t.size == data.b.t.size == 3000
    assert sorted(truth.pair.tolist()) == list(range(3000))


def test_pairs_are_the_same_cell_in_unrelated_orders(ragged):
    data, truth = ragged
    pair = np.asarray(truth.pair)
    rows = np.flatnonzero(pair >= 0)
    assert np.unique(pair[rows]).size == rows.size
    np.testing.assert_array_equal(np.asarray(data.b.t)[pair[rows]], np.asarray(data.a.t)[rows])
    np.testing.assert_array_equal(np.asarray(truth.z_b)[pair[rows]], np.asarray(truth.z_a)[rows])
    alone = np.setdiff1d(np.arange(data.b.t.size), pair[rows])
    cells = np.concatenate([np.asarray(truth.z_a), np.asarray(truth.z_b)[alone]])
    assert np.unique(cells, axis=0).shape == cells.shape, "no two cells share a latent, unless they are a pair"
    t = np.asarray(data.a.t)
    for order in (pair[rows], t, np.asarray(data.b.t)):
        assert abs(stats.spearmanr(np.arange(order.size), order).statistic) < 0.1


def test_missing_treatments_and_unpaired_cells_are_as_many_as_asked(ragged):
    full, _ = draw()
    data, truth = ragged
    all_cells, n_a, n_b = sizes(full.a.t), sizes(data.a.t), sizes(data.b.t)
    n_both = sizes(np.asarray(data.a.t)[np.asarray(truth.pair) >= 0])
    assert (n_a == 0).sum() == 1
    assert (n_b == 0).sum() == 2
    assert np.all(n_a + n_b > 0), "no treatment is missing on both sides"
    assert n_a[0] * n_b[0] > 0, "the control is never missing"
    there = (n_a > 0) & (n_b > 0)
    assert np.all(n_both[~there] == 0)
    np.testing.assert_allclose(n_both[there], 0.7 * all_cells[there], atol=1)
    np.testing.assert_array_equal((n_a + n_b - n_both)[there], all_cells[there])
    assert np.any(n_a[there] != n_b[there])


def test_the_control_is_larger_and_the_others_are_unequal():
    found = sizes(draw(control_factor=3.0, size_spread=0.5)[0].a.t)
    np.testing.assert_allclose(found[0], 3 * found[1:].mean(), rtol=0.01)
    expected = 0.5 * (law().log_sizes - law().log_sizes.mean())
    np.testing.assert_allclose(np.log(found[1:]) - np.log(found[1:]).mean(), expected, atol=0.02)
    even = sizes(draw(control_factor=1.0, size_spread=0.0)[0].a.t)
    assert even.tolist() == 6 * [500]


@pytest.mark.parametrize("factor", [1e-6, 1.0, 4.0, 1e6])
@pytest.mark.parametrize("spread", [0.0, 0.5, 1e6])
def test_every_treatment_has_a_cell_and_none_is_lost(factor, spread):
    for n in (8, 9, 20, 1000):
        found = _sizes(np.random.default_rng(n).normal(size=7), n, factor, spread)
        assert found.sum() == n
        assert found.min() >= 1


@pytest.mark.slow
def test_keys_draw_cells_and_screens_draw_the_rest():
    first, again, other, elsewhere = (draw(key, screen=screen) for key, screen in ((3, 3), (3, 3), (4, 3), (3, 4)))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    for left, right in zip(jax.tree.leaves(first), jax.tree.leaves(other), strict=True):
        assert not np.array_equal(left, right)
    np.testing.assert_array_equal(sizes(first[0].a.t), sizes(other[0].a.t))
    assert not np.array_equal(sizes(first[0].a.t), sizes(elsewhere[0].a.t))

    def centres(drawn):
        return np.stack([np.asarray(drawn[0].a.x)[np.asarray(drawn[0].a.t) == k].mean(0) for k in range(6)])

    same, different = (np.corrcoef(centres(first).ravel(), centres(x).ravel())[0, 1] for x in (other, elsewhere))
    assert same > 0.98
    assert different < 0.5


def test_the_key_and_the_screen_of_one_number_are_unrelated():
    state = np.asarray(jax.random.normal(jax.random.key(0), (6, 3)))
    assert not np.isclose(law(0).effects[1:, None], state[None, :]).all(-1).any()


@pytest.mark.parametrize("dispersion", [0.0, *slow(0.5)])
def test_counts_have_the_mean_and_variance_of_their_law(dispersion):
    settings = STILL | {"counts": True, "depth": 300.0, "dispersion": dispersion, "effect": 1.0}
    many = [draw(key, **settings) for key in range(5)]
    x, t = (np.concatenate([np.asarray(getattr(data.a, name)) for data, _ in many]) for name in ("x", "t"))
    np.testing.assert_array_equal(x, np.round(x))
    screen, x = law(), x.astype(np.float64)
    z = screen.effects[t]
    np.testing.assert_allclose(many[0][1].z_a, z[:3000], rtol=1e-5)
    rate = np.exp(z @ screen.a.shared + screen.a.offset)
    rate = 300 * rate / rate.sum(1, keepdims=True)
    for k in range(6):
        mean, own = rate[t == k][0], x[t == k]
        variance = mean + ((1 + dispersion) * np.exp(LIBRARY_SPREAD**2) - 1) * mean**2
        assert np.all(np.abs(own.mean(0) - mean) < 5 * np.sqrt(variance / len(own)))
        ratio = (own.var(0) / variance)[mean > 1]
        np.testing.assert_allclose(ratio, 1, atol=0.4)
        np.testing.assert_allclose(ratio.mean(), 1, atol=0.06)


def test_expression_is_the_log_of_normalised_counts():
    (data, _), (raw, _) = draw(depth=500.0), draw(depth=500.0, counts=True)
    count = np.asarray(raw.a.x, np.float64)
    np.testing.assert_allclose(data.a.x, np.log1p(500 * count / count.sum(1, keepdims=True)), rtol=1e-5)
    np.testing.assert_array_equal(data.b.x, raw.b.x)
    empty, _ = draw(depth=0.5)
    assert bool((empty.a.x.sum(1) == 0).any()), "cells without a count"
    validate(empty)


def test_embeddings_are_a_network_of_the_latents():
    data, truth = draw(noise=0.0, private=0.0, batch_effect=0.0)
    screen = law()
    expected = np.tanh(np.asarray(truth.z_b) @ screen.b.shared + screen.b.offset) @ screen.readout
    np.testing.assert_allclose(data.b.x, expected, atol=1e-5)
    noisy, _ = draw(noise=0.7, private=0.0, batch_effect=0.0)
    np.testing.assert_allclose(np.std(noisy.b.x - data.b.x, axis=0), 0.7, rtol=0.1)


@pytest.mark.parametrize("response", [0.3, 0.5, 1.0])
def test_cells_realise_a_share_of_the_effect(response):
    data, truth = draw(response=response, heterogeneity=0.0, effect=2.0)
    effects, t, z = 2 * law().effects, np.asarray(data.a.t), np.asarray(truth.z_a)
    assert not z[t == 0].any(), "the control has no effect"
    z, full = z[t > 0], effects[t[t > 0]]
    share = (z * full).sum(1) / (full**2).sum(1)
    np.testing.assert_allclose(z, share[:, None] * full, atol=1e-5)
    assert share.min() >= 0
    assert share.max() <= 1 + 1e-6
    np.testing.assert_allclose(share.mean(), response, atol=0.02)
    if response == 0.5:
        assert stats.kstest(share, "uniform").pvalue > 1e-3


def test_heterogeneity_is_correlated_and_of_the_strength_asked():
    _, truth = draw(effect=0.0, heterogeneity=0.8)
    mixing = law().mixing
    np.testing.assert_allclose(np.linalg.norm(mixing, axis=1), 1, rtol=1e-6)
    covariance = np.cov(np.asarray(truth.z_a), rowvar=False)
    np.testing.assert_allclose(covariance, 0.64 * mixing @ mixing.T, atol=0.05)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() > 0.1


def test_without_an_effect_treatments_cannot_be_told_apart():
    for effect, apart in ((0.0, False), (2.0, True)):
        data, truth = draw(effect=effect)
        for x, t in ((truth.z_a, data.a.t), (data.a.x, data.a.t), (data.b.x, data.b.t)):
            smallest = p_values(x, t).min() * x.shape[1]
            assert smallest < 1e-20 if apart else smallest > 1e-3


def test_private_effects_move_the_private_states_only():
    (plain, z), (moved, same) = draw(effect=0.0), draw(effect=0.0, private_effect=2.0)
    jax.tree.map(np.testing.assert_array_equal, z, same)
    for side in ("a", "b"):
        x, other, t = getattr(plain, side).x, getattr(moved, side).x, getattr(moved, side).t
        assert p_values(x, t).min() * x.shape[1] > 1e-3
        assert p_values(other, t).min() < 1e-20
    np.testing.assert_array_equal(
        np.asarray(plain.b.x)[np.asarray(plain.b.t) == 0], np.asarray(moved.b.x)[np.asarray(moved.b.t) == 0]
    )


def test_private_states_are_the_modality_s_own():
    settings = {"effect": 0.0, "heterogeneity": 0.0, "batch_effect": 0.0, "private": 2.0}
    data, truth = draw(depth=1e4, dispersion=0.0, noise=0.0, **settings)
    a, b = np.asarray(data.a.x), np.asarray(data.b.x)
    assert explained(a, b[np.asarray(truth.pair)]) < 0.01
    assert explained(a, b) < 0.01, "rows of one number have nothing to do with each other"
    assert min(a.std(0).max(), b.std(0).max()) > 0.3, "there is something that could be explained"


def test_batches_are_independent_of_treatment_and_of_each_other():
    data, truth = draw(**(STILL | {"batch_effect": 1.0}), effect=0.0, noise=0.0, depth=1e5, dispersion=0.0)
    screen = law()
    log_rate = screen.a.offset + screen.a.batches
    profile = np.exp(log_rate) / np.exp(log_rate).sum(1, keepdims=True)
    share = np.expm1(np.asarray(data.a.x, np.float64)) / 1e5
    batch_a = ((share[:, None] - profile) ** 2).sum(-1).argmin(1)
    np.testing.assert_allclose(share, profile[batch_a], atol=0.01)
    features = np.tanh(screen.b.offset) @ screen.readout + screen.b.batches
    batch_b = ((np.asarray(data.b.x)[:, None] - features) ** 2).sum(-1).argmin(1)
    np.testing.assert_allclose(data.b.x, features[batch_b], atol=1e-5)
    pairs = ((batch_a, data.a.t), (batch_b, data.b.t), (batch_a, batch_b[np.asarray(truth.pair)]))
    for batch, other in pairs:
        assert stats.chisquare(np.bincount(batch, minlength=3)).pvalue > 1e-3
        assert stats.contingency.crosstab(batch, np.asarray(other)).count.shape[0] == 3
        assert stats.chi2_contingency(stats.contingency.crosstab(batch, np.asarray(other)).count).pvalue > 1e-3


def test_latents_explain_both_views():
    data, truth = draw()
    for x, z in ((data.a.x, truth.z_a), (data.b.x, truth.z_b)):
        x, z = np.asarray(x), np.asarray(z)
        wrong = np.random.default_rng(0).permutation(z)
        assert 0.1 < explained(x, z) < 0.8, "a decent share, and not all"
        assert explained(x, wrong) < 0.01


@pytest.mark.slow
def test_extremes_stay_finite():
    for settings in ({"effect": 1e6}, {"private": 1e6, "private_effect": 1e6}, {"depth": 1e6, "dispersion": 10.0}):
        for counts in (False, True):
            data, _ = draw(counts=counts, **settings)
            validate(data)
            assert float(data.a.x.min()) >= 0


def test_the_smallest_screen_is_single_precision_whatever_the_mode(x64):
    data, truth = draw(num_samples=2, num_treatments=2, num_genes=2, num_features=1, num_latents=1, batches=1)
    validate(data)
    assert sorted(data.a.t.tolist()) == [0, 1]
    assert data.a.x.dtype == data.b.x.dtype == truth.z_a.dtype == truth.z_b.dtype == jnp.float32
    assert data.a.t.dtype == data.b.t.dtype == truth.pair.dtype == jnp.int32


def test_one_cell_of_each_treatment_is_measured_by_both():
    t, in_a, in_b = _plan(law(), 8, 1.0, 0.5, 0.99, 0, 0)
    assert set(t[in_a & in_b]) == set(range(6))
    assert np.all(in_a | in_b)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_samples": 5}, "num_samples: expected an integer, at least 6, got 5"),
        ({"num_samples": 100.0}, "num_samples: expected an integer"),
        ({"num_treatments": 1}, "num_treatments: expected an integer, at least 2, got 1"),
        ({"num_genes": 1}, "num_genes: expected an integer, at least 2"),
        ({"num_features": 0}, "num_features"),
        ({"num_latents": 0}, "num_latents"),
        ({"batches": 0}, "batches"),
        ({"missing_a": -1}, "missing_a: expected an integer, at least 0, got -1"),
        ({"missing_b": -1}, "missing_b: expected an integer, at least 0, got -1"),
        ({"missing_a": 3, "missing_b": 2}, "missing_a \\+ missing_b: expected at most 4, .*, got 5"),
        ({"screen": -1}, "screen: expected an integer in \\[0, 2\\^31\\), got -1"),
        ({"screen": 2**31}, "screen"),
        ({"screen": 0.5}, "screen"),
        *(
            ({name: value}, f"{name}: expected a number in .*, got {value}")
            for name in ("effect", "heterogeneity", "private", "private_effect", "batch_effect", "noise", "size_spread")
            for value in (-0.1, float("nan"), float("inf"))
        ),
        ({"response": 0.0}, "response: expected a number in \\(0, 1\\], got 0.0"),
        ({"response": 1.1}, "response"),
        ({"dispersion": -1.0}, "dispersion"),
        ({"dispersion": 11.0}, "dispersion: expected a number in \\[0, 10\\], got 11.0"),
        ({"depth": 0.0}, "depth: expected a number in \\(0, 10\\^6\\], got 0.0"),
        ({"depth": 1e7}, "depth"),
        ({"control_factor": 0.0}, "control_factor: expected a number in \\(0, 10\\^6\\], got 0.0"),
        ({"control_factor": float("nan")}, "control_factor"),
        ({"unpaired": 1.0}, "unpaired: expected a number in \\[0, 1\\), got 1.0"),
        ({"unpaired": -0.1}, "unpaired"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        draw(**({"num_samples": 100} | settings))
