import dataclasses
import functools
import json
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import learner

import psa_jax as psa
from psa_jax.match import known_pairs

MODEL = psa.mlp((16,), 4)


def screen(n, seed=0, sizes=None):
    """Four treatments shift a shared two-dimensional latent; two linear views of it, with noise, in other orders."""
    rng = np.random.default_rng(seed)
    t = np.arange(n) % 4 if sizes is None else np.repeat(np.arange(4), sizes)
    n = t.size
    z = rng.normal(size=(n, 2)) + np.array([[0, 0], [2, 0], [0, 2], [2, 2]])[t]
    order = rng.permutation(n)
    mix = np.random.default_rng(9).normal(size=(2, 2, 5))
    x_a, x_b = (z @ mix[side] + 0.05 * rng.normal(size=(n, 5)) for side in (0, 1))
    data = psa.Unpaired(
        psa.Modality(jnp.asarray(x_a, jnp.float32), jnp.asarray(t, jnp.int32)),
        psa.Modality(jnp.asarray(x_b[order], jnp.float32), jnp.asarray(t[order], jnp.int32)),
        4,
    )
    z = jnp.asarray(z, jnp.float32)
    return data, psa.Truth(jnp.asarray(np.argsort(order), jnp.int32), z, z[order])


ADAM = optax.adam(1e-2)
LEARNER = psa.Learner(MODEL, psa.smoothing, psa.Training(ADAM, epochs=60, batch_size=64), members=1)


def align(key, data, *, query=None, valid=None, matcher=psa.sinkhorn, **changes):
    """With one learner for both modalities, changed as told."""
    one = learner(LEARNER, **changes)
    return psa.align(key, data, query=query, valid=valid, a=one, b=one, matcher=matcher)


@pytest.fixture(scope="module")
def aligned():
    data, truth = screen(400)
    return data, truth, align(jax.random.key(0), data)


def test_align_beats_the_class_mean(aligned):
    data, truth, alignment = aligned
    report = psa.evaluate(jax.random.key(1), alignment, truth, data)["metrics"]
    assert report["latent_mse"]["micro"] < 0.4 * report["latent_mse"]["class_mean"]
    assert report["latent_mse"]["class_mean"] < report["latent_mse"]["chance"]
    assert report["trace"]["micro"] > 2 * report["trace"]["chance"]
    np.testing.assert_allclose(report["trace"]["chance"], 1 / 100, rtol=1e-4)
    assert report["foscttm"]["micro"] < 0.35
    np.testing.assert_allclose(report["foscttm"]["class_mean"], 0.5, atol=0.01)


def test_one_member_has_the_scores_themselves(aligned):
    _, _, alignment = aligned
    np.testing.assert_array_equal(alignment.member_scores_a, alignment.scores_a[None])
    np.testing.assert_array_equal(alignment.member_scores_b, alignment.scores_b[None])


def test_the_report_is_strict_json_and_counts_everything(aligned):
    data, truth, alignment = aligned
    truth = dataclasses.replace(truth, pair=truth.pair.at[:7].set(-1))
    report = psa.evaluate(jax.random.key(1), alignment, truth, data)
    json.dumps(report, allow_nan=False)
    for metric in ("trace", "foscttm", "foscttm_sampled"):
        assert (report["metrics"][metric]["counted"], report["metrics"][metric]["excluded"]) == (393, 7)
    assert report["rows_without_partner"] == 0
    assert report["treatments"]["converged"] == [True] * 4


def test_more_known_pairs_than_queries_are_sampled(aligned):
    data, truth, alignment = aligned
    whole = psa.evaluate(jax.random.key(1), alignment, truth, data)
    some = psa.evaluate(jax.random.key(1), alignment, truth, data, queries=150)
    assert (whole["queries"], some["queries"]) == (400, 150)
    assert some["metrics"]["trace"] == whole["metrics"]["trace"]
    for name in ("foscttm", "foscttm_all", "foscttm_sampled", "foscttm_features"):
        found, all_of_them = some["metrics"][name], whole["metrics"][name]
        assert (found["counted"], found["excluded"]) == (150, 250)
        assert 0 < abs(found["micro"] - all_of_them["micro"]) < 4 * 0.29 / np.sqrt(150)
    with pytest.raises(ValueError, match="queries: expected at least 1, got 0"):
        psa.evaluate(jax.random.key(1), alignment, truth, data, queries=0)


def test_nothing_is_measured_of_unknown_pairs(aligned, monkeypatch):
    data, truth, alignment = aligned
    unknown = psa.Truth(jnp.full(400, -1))
    module = sys.modules["psa_jax.align.evaluate"]
    monkeypatch.setattr(module, "foscttm", None)
    monkeypatch.setattr(module, "project", None)
    report = psa.evaluate(jax.random.key(1), alignment, unknown, data)
    assert report["queries"] == 0
    assert {(m["micro"], m["counted"]) for m in report["metrics"].values()} == {(None, 0)}
    monkeypatch.undo()
    latents = psa.evaluate(jax.random.key(1), alignment, dataclasses.replace(truth, pair=unknown.pair), data)
    whole = psa.evaluate(jax.random.key(1), alignment, truth, data)
    found, expected = (report["metrics"]["latent_mse"] for report in (latents, whole))
    np.testing.assert_allclose(found["micro"], expected["micro"], rtol=1e-5)
    assert found["counted"] == expected["counted"] == 400


def test_pairs_across_treatments_are_none(aligned):
    data, truth, alignment = aligned
    with pytest.raises(ValueError, match="expected pairs of one treatment each"):
        psa.evaluate(jax.random.key(1), alignment, psa.Truth(truth.pair[::-1]), data)


def test_the_truth_scores_perfectly(aligned):
    data, truth, alignment = aligned
    oracle = dataclasses.replace(alignment, coupling=known_pairs(truth.pair, 400))
    report = psa.evaluate(jax.random.key(1), oracle, truth, data)["metrics"]
    assert report["trace"]["micro"] == 1
    assert report["foscttm_features"]["micro"] == 0
    assert report["latent_mse"]["micro"] < 1e-10


def test_random_latent_mse_is_that_of_random_draws(aligned):
    data, truth, alignment = aligned
    report = psa.evaluate(jax.random.key(1), alignment, truth, data)["metrics"]["latent_mse"]
    z_a, z_b, t = np.asarray(truth.z_a), np.asarray(truth.z_b), np.asarray(data.a.t)
    error = ((z_a[:, None] - z_b[None]) ** 2).mean(-1)
    same = t[:, None] == np.asarray(data.b.t)[None]
    expected = np.mean([error[i, same[i]].mean() for i in range(400)])
    np.testing.assert_allclose(report["chance"], expected, rtol=1e-4)


def test_same_key_same_bits():
    data, _ = screen(80)
    first, again, other = (align(jax.random.key(k), data, epochs=3) for k in (0, 0, 1))
    for ours, theirs in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not np.array_equal(first.scores_a, other.scores_a)


@pytest.mark.slow
def test_a_query_is_aligned_instead(aligned):
    data, _, _ = aligned
    query, truth = screen(120, seed=5)
    result = align(jax.random.key(0), data, query=query)
    assert result.coupling.shape == (120, 120)
    report = psa.evaluate(jax.random.key(1), result, truth, query)["metrics"]
    assert report["latent_mse"]["micro"] < 0.5 * report["latent_mse"]["class_mean"]
    valid, _ = screen(80, seed=6)
    several = align(jax.random.key(0), data, query=query, valid=valid, members=2, transform=psa.centre)
    assert several.member_scores_b.shape == (2, 120, 4)
    np.testing.assert_allclose(several.member_scores_b.mean(0), several.scores_b, atol=1e-5)
    assert float(jnp.abs(several.member_scores_b[0] - several.member_scores_b[1]).max()) > 1e-3


def test_members_are_averaged():
    data, _ = screen(80)
    result = align(jax.random.key(0), data, epochs=2, members=2, transform=psa.centre)
    assert jax.tree.leaves(result.fitted_a.params)[0].shape[:2] == (2, 5)
    np.testing.assert_allclose(result.member_scores_a.mean(0), result.scores_a, atol=1e-5)
    one = psa.crossfit(
        jax.random.split(jax.random.split(jax.random.key(0), 3)[1], 2)[0],
        MODEL,
        data.a.x,
        data.a.t,
        training=psa.Training(ADAM, epochs=2, batch_size=64),
        augment=psa.smoothing,
    )
    first = jax.tree.map(lambda leaf: leaf[0], result.fitted_a)
    np.testing.assert_allclose(jax.tree.leaves(first)[0], jax.tree.leaves(one.fitted)[0], atol=1e-5)


def test_treatments_of_one_modality_are_named_and_their_samples_kept():
    data, _ = screen(0, sizes=[30, 25, 20, 15])
    a = data.a
    b = psa.Modality(data.b.x[data.b.t != 3], data.b.t[data.b.t != 3])
    with pytest.warns(psa.AlignmentWarning, match="only one modality has treatments 3: 15 samples of a and 0"):
        result = align(jax.random.key(0), psa.Unpaired(a, b, 4), epochs=3)
    assert result.scores_a.shape == (90, 3)
    assert int(result.coupling.unmatched_rows) == 15
    assert result.coupling.apply(b.x).shape == (90, 5)
    assert not bool(result.coupling.info.converged[3])


def test_what_does_not_converge_is_named():
    data, _ = screen(80)
    with pytest.warns(psa.AlignmentWarning, match="did not converge within treatments 0, 1, 2, 3"):
        align(
            jax.random.key(0), data, epochs=2, matcher=functools.partial(psa.sinkhorn, eps=1e-3, max_iters=3, tol=1e-7)
        )


@pytest.mark.parametrize("matcher", [psa.snn, psa.nearest, psa.assignment, functools.partial(psa.snn, k=50)])
def test_any_matcher(matcher):
    data, truth = screen(80)
    result = align(jax.random.key(0), data, epochs=2, matcher=matcher)
    report = psa.evaluate(jax.random.key(0), result, truth, data)
    assert report["metrics"]["trace"]["counted"] == 80


def test_priors_are_divided_out():
    """Two classifiers of one latent with other treatment frequencies give the same scores only without the prior."""
    first, _ = screen(0, sizes=[600, 150, 150, 100], seed=1)
    second, _ = screen(0, sizes=[100, 150, 150, 600], seed=2)
    data = psa.Unpaired(first.a, second.a, 4)
    gaps = []
    for divide in (True, False):
        out = align(
            jax.random.key(0),
            data,
            query=psa.Unpaired(first.a, first.a, 4),
            divide_prior=divide,
            epochs=30,
            augment=None,
        )
        gaps.append(float(jnp.mean(jnp.abs(out.scores_a - out.scores_b))))
    assert gaps[0] < 0.6 * gaps[1]


def test_default_models_by_kind_of_features():
    data, _ = screen(40)
    one = learner(epochs=1)
    assert psa.align(jax.random.key(0), data, a=one, b=one).scores_a.shape == (40, 4)
    sequences = psa.Unpaired(*2 * [psa.Modality(jnp.ones((40, 3, 3)), data.a.t)], 4)
    with pytest.raises(ValueError, match="modality a: model: expected one for features of shape"):
        psa.align(jax.random.key(0), sequences)


def test_constant_features_are_no_obstacle():
    data, _ = screen(80)
    still = dataclasses.replace(data, a=psa.Modality(data.a.x.at[:, 0].set(7.0), data.a.t))
    assert bool(jnp.isfinite(align(jax.random.key(0), still, epochs=2).scores_a).all())
    constant = dataclasses.replace(data, a=psa.Modality(jnp.ones_like(data.a.x), data.a.t))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", psa.AlignmentWarning)
        result = align(jax.random.key(0), constant, epochs=2)
    assert bool(jnp.isfinite(result.coupling.apply(data.b.x)).all())


def bad(data, **changes):
    return dataclasses.replace(data, **changes)


def test_bad_input():
    data, truth = screen(40)
    key = jax.random.key(0)
    only = psa.Modality(data.b.x, jnp.zeros_like(data.b.t))
    cases = [
        (lambda: align(key, bad(data, b=psa.Modality(data.b.x.at[3].set(jnp.nan), data.b.t))), "the first at row 3"),
        (lambda: align(key, bad(data, b=only)), "at least two treatments that both modalities have, got only .0."),
        (lambda: align(key, data, valid=data), "valid: expected a query too"),
        (lambda: align(key, data, members=0), "members: expected at least 1"),
        (lambda: align(key, data, query=bad(data, num_treatments=5)), "query: expected num_treatments 4"),
        (
            lambda: align(key, data, query=bad(data, a=psa.Modality(data.a.x[:, :2], data.a.t))),
            "query: modality a: expected features of shape",
        ),
        (lambda: align(key, data, folds=2), "folds: expected at least 3"),
        (lambda: align(key, data, batch_size=0), "batch_size: expected at least 1"),
        (
            lambda: psa.align(key, data, a=LEARNER, b=psa.Learner(psa.linear(3))),
            "modality b: model: expected 4 logits, one for each treatment, got 3",
        ),
        (lambda: align(key, screen(4)[0], query=data), "data: expected enough samples to hold a fifth"),
        (lambda: align(key, data, epochs=0), "epochs: expected at least 1"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    result = align(key, data, epochs=1)
    with pytest.raises(ValueError, match="data: expected 40 and 40 samples, as were aligned, got 80 and 80"):
        psa.evaluate(key, result, truth, screen(80)[0])
    with pytest.raises(ValueError, match=r"truth\.pair: expected shape"):
        psa.evaluate(key, result, psa.Truth(jnp.zeros(3, jnp.int32)), data)


def diverge(key, x):
    return x * jnp.inf


def test_training_that_diverges_is_an_error():
    data, _ = screen(40)
    with pytest.raises(ValueError, match="modality a: expected training to converge"):
        psa.align(jax.random.key(0), data, a=learner(LEARNER, epochs=2, augment=diverge), b=learner(LEARNER, epochs=2))


@pytest.mark.parametrize("seed", range(3))
def test_holding_out_never_takes_a_treatment_away(seed):
    data, _ = screen(0, sizes=[40, 40, 40, 1])
    result = align(jax.random.key(seed), data, query=data, epochs=2)
    assert result.scores_a.shape == (121, 4)


def test_plain_numpy_of_any_width_will_do():
    data, truth = screen(80)
    wide = psa.Unpaired(
        *(psa.Modality(np.asarray(side.x, np.float64), np.asarray(side.t, np.int64)) for side in (data.a, data.b)), 4
    )
    truth = psa.Truth(
        *(np.asarray(part, kind) for part, kind in zip(vars(truth).values(), (int, float, float), strict=True))
    )
    result = align(jax.random.key(0), wide, epochs=2)
    assert psa.evaluate(jax.random.key(1), result, truth, wide)["metrics"]["latent_mse"]["counted"] == 80


def test_projections_and_their_gradients_are_open_to_jit(aligned):
    data, _, alignment = aligned
    y, new, t = jnp.asarray(data.b.x), jnp.asarray(data.a.x[:6]) + 0.1, np.asarray(data.a.t[:6])
    for x, treatments in ((None, None), (new, t)):
        expected = alignment.project(y, x=x, t=treatments)
        found = jax.jit(lambda y, x=x, treatments=treatments: alignment.project(y, x=x, t=treatments))(y)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    moved = jax.jit(jax.grad(lambda x: alignment.project(y, x=x, t=t).sum()))(new)
    assert bool(jnp.isfinite(moved).all())
    given = jax.jit(lambda alignment, y: alignment.project(y))(alignment, y)
    np.testing.assert_allclose(given, alignment.project(y), rtol=1e-4, atol=1e-5)
