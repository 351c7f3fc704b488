"""Scores relative to a control: log-odds against it, wherever its column stands, in every step and in a file."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psa_jax as psa

KEY = jax.random.key(0)
LOGITS = jax.random.normal(KEY, (5, 4))


def quick(transform):
    return psa.Learner(psa.linear(4), members=1, folds=3, training=psa.Training(epochs=2), transform=transform)


@pytest.fixture(scope="module")
def data():
    """Treatment 1 is in a only."""
    rng = np.random.default_rng(0)
    t_a, t_b = np.arange(60) % 4, np.array([0, 2, 3])[np.arange(45) % 3]
    x, y = (rng.normal(size=(t.size, 4)) + 2 * np.eye(4)[t] for t in (t_a, t_b))
    return psa.Unpaired(
        psa.Modality(jnp.asarray(x, jnp.float32), t_a), psa.Modality(jnp.asarray(y, jnp.float32), t_b), 4
    )


@pytest.fixture(scope="module")
def alignment(data):
    with pytest.warns(psa.AlignmentWarning, match="only one modality"):
        return psa.align(KEY, data, a=quick(psa.relative_to(2)), b=quick(psa.relative_to(2)))


@pytest.mark.parametrize("code", range(4))
def test_the_control_is_subtracted_and_left_out(code):
    expected = np.delete(np.asarray(LOGITS - LOGITS[:, code : code + 1]), code, axis=1)
    transform = psa.relative_to(code)
    np.testing.assert_array_equal(transform(LOGITS), expected)
    np.testing.assert_array_equal(jax.jit(lambda f, x: f(x))(transform, LOGITS), expected)
    assert hash(transform) == hash(psa.relative_to(code))
    assert transform == psa.relative_to(code)
    prior = jnp.log(jnp.array([0.1, 0.2, 0.3, 0.4]))
    found = psa.from_logits(LOGITS, temperature=2.0, log_prior=prior, transform=transform)
    np.testing.assert_allclose(found, transform(LOGITS / 2 - prior[None]), rtol=1e-5, atol=1e-6)


def test_the_control_is_found_among_the_treatments_that_are_kept():
    kept = jnp.array([3, 0, 2])
    found = psa.from_logits(LOGITS, transform=psa.relative_to(0), treatments=kept)
    np.testing.assert_allclose(found, LOGITS[:, jnp.array([3, 2])] - LOGITS[:, :1], rtol=1e-6)


def test_an_alignment_has_log_odds_against_the_control(data, alignment):
    with pytest.warns(psa.AlignmentWarning, match="only one modality"):
        centred = psa.align(KEY, data, a=quick(psa.centre), b=quick(psa.centre))
    for side in ("a", "b"):
        ours, theirs = (getattr(found, f"member_scores_{side}")[0] for found in (alignment, centred))
        expected = theirs[:, jnp.array([0, 2])] - theirs[:, 1:2]
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)
    assert alignment.scorer_a.columns.tolist() == [0, 3]
    assert centred.scorer_a.columns.tolist() == [0, 2, 3]
    assert alignment.predict(data.a.x[:3], y=data.b.x).values.shape == (3, 4)
    plain = dataclasses.replace(alignment, refined_a=None)
    assert plain.score_a(data.a.x).shape == (60, 2)


def test_a_file_keeps_the_control(data, alignment, tmp_path):
    psa.io.save_alignment(path := tmp_path / "kept.npz", alignment)
    model = quick(psa.centre).model
    back = psa.io.load_alignment(path, model_a=model, model_b=model)
    np.testing.assert_array_equal(back.score_a(data.a.x), alignment.score_a(data.a.x))
    assert back.scorer_a.columns.tolist() == [0, 3]


def test_a_control_that_is_none_is_refused(data):
    with pytest.raises(ValueError, match="code: expected one of a treatment, from 0 up, got -1"):
        psa.relative_to(-1)
    with pytest.raises(ValueError, match=r"relative_to one of the treatments .*\[0, 2, 3\], got 1"):
        psa.align(KEY, data, a=quick(psa.relative_to(1)), b=quick(psa.relative_to(1)))


def test_no_evidence_appears_where_there_is_none():
    """Columns that all have the control's logit must not look alike because of it."""
    rng = np.random.default_rng(0)
    t = np.arange(600) % 6
    groups = psa.group(t, t, 6)
    p_values = []
    for seed in range(6):
        u, v = (jnp.asarray(rng.normal(size=(600, 6)), jnp.float32) for _ in range(2))
        x = jnp.zeros((600, 1))
        relative = psa.relative_to(3)
        found = psa.refine(jax.random.key(seed), relative(u), relative(v), x, x, groups)
        p_values.append(float(found.evidence.p_value))
    assert np.mean(np.asarray(p_values) < 0.05) < 0.5
