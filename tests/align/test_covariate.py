"""A batch beside the features: what it confounds is freed of it, and new samples tell theirs or are marked."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psa_jax as psa
from psa_jax.propensity.batches import augment_beside, beside, log_prior_given, row_of

KEY = jax.random.key(0)
QUICK = psa.Learner(psa.linear(4), members=1, folds=3)


def confounded(n=400, treatments=4, seed=1):
    """In modality a treatment k was given the more in batch 1 the larger k is, and batches are shifted apart."""
    rng = np.random.default_rng(seed)
    effect = 1.5 * rng.normal(size=(treatments, 3))
    t = rng.integers(0, treatments, (2, n))
    z = effect[t] + rng.normal(size=(2, n, 3))
    batch = (rng.random(n) < np.linspace(0.1, 0.9, treatments)[t[0]]).astype(int)
    x, y = (np.tanh(side @ rng.normal(size=(3, 8)) / 2) + 0.3 * rng.normal(size=(n, 8)) for side in z)
    x[:, 0] += 3 * batch
    return x.astype(np.float32), t[0], batch, y.astype(np.float32), t[1], z


def within(x, t):
    return np.concatenate([x[t == k] - x[t == k].mean(0) for k in np.unique(t)])


def explained(scores, t, batch):
    """How much of the batch within treatments is linear in the scores."""
    scores, batch = within(np.asarray(scores), t), within(batch.astype(float), t)
    rest = batch - scores @ np.linalg.lstsq(scores, batch, rcond=None)[0]
    return 1 - (rest @ rest) / (batch @ batch)


@pytest.fixture(scope="module")
def made():
    x, t_a, batch, y, t_b, z = confounded()
    given = psa.Unpaired.from_labels(x, t_a, y, t_b, batch_a=np.array(["old", "new"])[batch])
    plain = dataclasses.replace(given, a=dataclasses.replace(given.a, batch=None), batches=None)
    return given, [psa.align(KEY, data, a=QUICK, b=QUICK) for data in (plain, given)], t_a, batch, z


def test_scores_of_a_confounded_modality_lose_its_batch_and_match_better(made):
    _, (plain, given), t, batch, (z_a, z_b) = made
    carried, left = (explained(found.member_scores_a[0], t, batch) for found in (plain, given))
    assert carried > 0.4
    assert left < 0.3 * carried
    np.testing.assert_array_equal(given.member_scores_b, plain.member_scores_b)
    errors = [np.mean((np.asarray(found.coupling.apply(jnp.asarray(z_b))) - z_a) ** 2) for found in (plain, given)]
    assert errors[1] < 0.95 * errors[0]


def test_new_samples_have_a_known_batch_or_are_marked(made):
    data, (plain, found), t, batch, _ = made
    assert data.batches == found.batches == ("new", "old")
    x, codes = data.a.x[:6], np.array([0, 1, 0, 1, 7, -1])
    scores = found.score_a(x, codes)
    assert scores.shape == (6, 4)
    np.testing.assert_array_equal(found.score_a(x)[4:], scores[4:])
    assert not np.allclose(found.score_a(x)[:4], scores[:4])
    answer = found.predict(x, t[:6], y=data.b.x, batch=codes)
    np.testing.assert_array_equal(answer.new_batch, [False] * 4 + [True] * 2)
    projected = found.project(data.b.x, x=x, t=jnp.asarray(t[:6]), batch=jnp.asarray(codes))
    np.testing.assert_allclose(answer.values, projected, rtol=1e-4, atol=1e-5)
    assert np.asarray(found.predict(x, y=data.b.x).new_batch).all()
    assert found.T.predict(data.b.x[:2], y=x[jnp.zeros(400, int)]).new_batch is None
    assert found.partners(x, k=2, batch=codes)[0].shape == (6, 2)
    assert plain.predict(x, y=data.b.x).new_batch is None
    with pytest.raises(ValueError, match="batch: expected none, as the samples that were aligned had none"):
        plain.score_a(x, codes)
    with pytest.raises(ValueError, match="batch: expected 6 integers, one for each sample"):
        found.predict(x, y=data.b.x, batch=[0, 1])


def test_scores_are_those_of_the_scorer(made):
    data, (_, found), _, _, _ = made
    query = dataclasses.replace(data, a=data.a.take(slice(0, 30)), b=data.b.take(slice(0, 30)))
    quick = dataclasses.replace(QUICK, training=psa.Training(epochs=2), transform=psa.centre)
    asked = psa.align(KEY, data, query=query, a=quick, b=quick)
    plain = dataclasses.replace(asked, refined_a=None)
    np.testing.assert_allclose(plain.score_a(query.a.x, query.a.batch), plain.member_scores_a[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found.scorer_a.batches, [0, 1])
    assert found.scorer_a.log_prior.shape == (3, 4)
    assert found.scorer_b.batches is None


def test_a_file_keeps_batches(made, tmp_path):
    data, (_, found), _, _, _ = made
    psa.io.save_alignment(path := tmp_path / "kept.npz", found)
    back = psa.io.load_alignment(path, model_a=QUICK.model, model_b=QUICK.model)
    assert back.batches == found.batches
    jax.tree.map(np.testing.assert_array_equal, back, found)
    np.testing.assert_array_equal(back.score_a(data.a.x, data.a.batch), found.score_a(data.a.x, data.a.batch))


def test_parts_keep_batches(made):
    data = made[0]
    for part in psa.split(KEY, data, (0.5, 0.5)):
        assert part.batches == data.batches
        assert part.a.batch.shape == part.a.t.shape
        rows = [np.flatnonzero((np.asarray(data.a.x) == x).all(1))[0] for x in np.asarray(part.a.x[:5])]
        np.testing.assert_array_equal(part.a.batch[:5], data.a.batch[np.asarray(rows)])
    assert psa.permute_treatments(KEY, data).a.batch is not None


def test_what_is_divided_out_is_what_was_learnt():
    rng = np.random.default_rng(0)
    t, batch = rng.integers(0, 3, 600), rng.choice([0, 5, 7], 600)
    effect, own = rng.normal(size=(3, 3)), rng.normal(size=(3, 3))
    logits = own[t] + effect[np.searchsorted([0, 5, 7], batch)] + 0.1 * rng.normal(size=(600, 3))
    overall = psa.log_prior(jnp.asarray(t), 3)
    arguments = jnp.asarray(t), jnp.asarray(batch), jnp.array([0, 5, 7])
    table = log_prior_given(jnp.asarray(logits, jnp.float32), *arguments, overall)
    found = np.asarray(table)[:3] - np.asarray(overall)
    np.testing.assert_allclose(found - found.mean(0), effect - effect.mean(0), atol=0.05)
    np.testing.assert_allclose(table[3], overall, rtol=1e-6)
    nothing = log_prior_given(jnp.asarray(own[t], jnp.float32), *arguments, overall)
    np.testing.assert_allclose(nothing, np.tile(overall, (4, 1)), atol=1e-5)
    assert row_of(jnp.array([5, 0, 3, -1]), jnp.array([0, 5]), 4).tolist() == [1, 0, 2, 2]


@pytest.mark.slow
def test_batches_that_change_no_feature_do_not_come_into_the_scores():
    rng = np.random.default_rng(0)
    given = rng.dirichlet(np.full(6, 0.5), 4)
    effect = rng.normal(size=(6, 8))
    sides = []
    for _ in range(2):
        batch = rng.integers(0, 4, 500)
        t = np.array([rng.choice(6, p=given[one]) for one in batch])
        sides.append(((rng.normal(size=(500, 8)) + effect[t]).astype(np.float32), t, batch))
    (x, t, batch), (y, t_b, batch_b) = sides
    learner = psa.Learner(members=2, folds=3)
    data = psa.Unpaired.from_labels(x, t, y, t_b, batch_a=batch, batch_b=batch_b)
    scores = within(np.asarray(psa.align(KEY, data, a=learner, b=learner).scores_a), t)
    by_batch = np.stack([scores[batch == one].mean(0) for one in range(4)])[batch]
    assert np.sum(by_batch**2) / np.sum(scores**2) < 0.03  # chance; 0.10 if the frequencies themselves are divided out


def test_only_features_are_changed_and_batches_stand_beside_them():
    x = beside(jnp.ones((4, 2)) * jnp.arange(4.0)[:, None], jnp.array([0, 5, 3, 5]), jnp.array([0, 5]))
    np.testing.assert_array_equal(x[:, 2:], [[1, 0], [0, 1], [0, 0], [0, 1]])
    first, second = augment_beside((psa.gaussian_noise(0.5), None), 2)
    assert second is None
    changed = first(KEY, x)
    np.testing.assert_array_equal(changed[:, 2:], x[:, 2:])
    assert (np.asarray(changed[:, :2]) != np.asarray(x[:, :2])).all()


def test_batches_of_one_treatment_each_are_refused():
    x, t = np.ones((6, 2), np.float32), np.arange(6) % 3
    data = psa.Unpaired.from_labels(x, t, x, t, batch_a=t)
    with pytest.raises(ValueError, match="modality a: batch: expected batches of several treatments, got 3 of one"):
        psa.align(KEY, data, a=QUICK, b=QUICK)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([0, 1], "batch_a: expected integers .6., one for each sample"),
        ([0, 1, 0, None, 0, 1], "batch_a: expected a label for every sample, got 1 of 6"),
    ],
)
def test_labels_that_are_no_batch_are_refused(batch, message):
    x = np.ones((6, 2), np.float32)
    with pytest.raises(ValueError, match=message):
        psa.Unpaired.from_labels(x, [0, 1] * 3, x, [0, 1] * 3, batch_a=batch)


@pytest.mark.parametrize("batch", [np.zeros(5, int), np.zeros(6), np.full(6, -1), np.full(6, 3)])
def test_codes_that_are_no_batch_are_refused(batch):
    x, t = np.ones((6, 2), np.float32), np.arange(6) % 2
    with pytest.raises(ValueError, match="modality a: batch: expected"):
        psa.validate(psa.Unpaired(psa.Modality(x, t, batch), psa.Modality(x, t), 2, batches=("p", "q", "r")))


def test_images_and_queries_with_a_batch_that_data_lack_are_refused():
    images, t = np.zeros((12, 8, 8, 1), np.float32), np.arange(12) % 2
    data = psa.Unpaired(psa.Modality(images, t, t), psa.Modality(np.ones((12, 2), np.float32), t), 2)
    with pytest.raises(ValueError, match=r"modality a: batch: expected vector features \[n, d\].*\(12, 8, 8, 1\)"):
        psa.align(KEY, data)
    plain = dataclasses.replace(data, a=psa.Modality(images, t))
    with pytest.raises(ValueError, match="query: modality a: expected no batch, as data has none"):
        psa.align(KEY, plain, query=data)


def test_a_query_with_batches_of_other_names_is_refused(made):
    data = made[0]
    with pytest.raises(ValueError, match="query: expected the names of batches of data"):
        psa.align(KEY, data, query=dataclasses.replace(data, batches=("old", "new")))


@pytest.mark.slow
def test_more_than_two_modalities_have_batches_of_their_own(made):
    data, (_, found), _, _, _ = made
    quick = dataclasses.replace(QUICK, training=psa.Training(epochs=2))
    many = psa.align_many(KEY, [data.b, data.a, data.a], 4, learners=quick)
    assert [side.scorer.batches is None for side in many.representations] == [True, False, False]
    assert many.alignment(1).T.score_a(data.a.x[:3], data.a.batch[:3]).shape == (3, 4)
