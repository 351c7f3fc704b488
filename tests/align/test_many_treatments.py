"""Scores of more treatments than columns: what is kept of them, and that no more is held."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import learner

import psa_jax as psa

K, N = 12, 360
LEARNER = psa.Learner(
    psa.mlp((8,), K), psa.smoothing, psa.Training(epochs=8, batch_size=32), members=1, folds=3, transform=psa.centre
)


def screen(seed, n=N, batches=0):
    rng = np.random.default_rng(seed)
    t = np.arange(n) % K
    effects, mixes = np.random.default_rng(5).normal(size=(K, 3)), np.random.default_rng(6).normal(size=(2, 3, 4))
    sides = []
    for mix in mixes:
        z = effects[t] + rng.normal(size=(n, 3))
        batch = jnp.asarray(rng.integers(0, batches, n), jnp.int32) if batches else None
        sides.append(psa.Modality(jnp.asarray(z @ mix, jnp.float32), jnp.asarray(t, jnp.int32), batch=batch))
    return psa.Unpaired(*sides, K)


DATA, QUERY = screen(0), screen(1)


def align(data=DATA, query=None, mesh=None, **changes):
    one = learner(LEARNER, **changes)
    return psa.align(jax.random.key(3), data, query=query, a=one, b=one, mesh=mesh)


@pytest.fixture(scope="module")
def few():
    return align(components=8)


@pytest.mark.parametrize("query", [None, QUERY], ids=["folds", "query"])
def test_nothing_is_lost_with_one_column_less(query):
    """Centred scores sum to zero: they have one direction less than columns."""
    all_columns, fewer = align(query=query), align(query=query, components=K - 1)
    assert fewer.scores_a.shape[1] == K - 1
    assert float(fewer.scorer_a.components.kept) > 1 - 1e-5
    found = [x.member_scores_b[0] @ x.member_scores_b[0].T for x in (all_columns, fewer)]
    np.testing.assert_allclose(found[1], found[0], atol=2e-3 * float(jnp.abs(found[0]).max()))
    y = (DATA if query is None else query).b.x
    match = psa.blockwise(psa.sinkhorn)  # of scores that were not refined: halves of other columns judge differently
    couplings = [match(x.member_scores_a[0], x.member_scores_b[0], x.groups) for x in (all_columns, fewer)]
    np.testing.assert_allclose(couplings[1].apply(y), couplings[0].apply(y), atol=2e-2)


@pytest.mark.parametrize("transform", [psa.tempered(), psa.relative_to(2)], ids=["tempered", "relative"])
def test_scores_are_those_of_new_samples(transform):
    found = align(query=QUERY, components=8, transform=transform, members=2)
    assert found.scores_a.shape == (N, 8)
    assert found.member_scores_a.shape == (2, N, 8)
    np.testing.assert_allclose(found.score_a(QUERY.a.x), found.scores_a, atol=1e-4)
    np.testing.assert_allclose(found.score_b(QUERY.b.x), found.scores_b, atol=1e-4)
    np.testing.assert_array_equal(found.scorer_a.components.basis, found.scorer_b.components.basis)
    assert "8 components of " in found.summary()
    assert 0 < float(found.scorer_a.components.kept) < 1


def test_samples_are_scored_by_classifiers_that_have_not_seen_them(few):
    """Those of the other folds give other scores, those of the own fold the same."""
    own = psa.propensity
    scores = []
    for fold in range(3):
        params = jax.tree.map(lambda leaf, fold=fold: leaf[0, fold], few.fitted_a.params)
        scorer = few.scorer_a
        got = own(
            LEARNER.model, params, DATA.a.x, temperature=scorer.temperature, log_prior=scorer.log_prior,
            transform=scorer.transform, treatments=scorer.treatments,
        )  # fmt: skip
        scores.append(np.asarray(scorer.components(got)))
    apart = np.abs(np.stack(scores) - np.asarray(few.member_scores_a)).max(-1)
    assert (apart.min(0) < 1e-4).all()
    assert sorted(np.bincount(apart.argmin(0)).tolist()) == [N // 3] * 3


def test_saved_and_loaded(few, tmp_path):
    psa.io.save_alignment(tmp_path / "alignment.npz", few)
    back = psa.io.load_alignment(tmp_path / "alignment.npz", model_a=LEARNER.model, model_b=LEARNER.model)
    np.testing.assert_array_equal(back.scorer_a.components.basis, few.scorer_a.components.basis)
    for one in ("project", "apply"):
        got, expected = ((x.project if one == "project" else x.coupling.apply)(DATA.b.x) for x in (back, few))
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(back.score_a(QUERY.a.x), few.score_a(QUERY.a.x))
    assert back.summary() == few.summary()


def test_sources_batches_and_members():
    data = screen(0, batches=2)
    read = dataclasses.replace(data, a=dataclasses.replace(data.a, x=psa.source(np.asarray(data.a.x))))
    one, other = (align(x, components=8, members=2) for x in (data, read))
    np.testing.assert_allclose(one.scores_a, other.scores_a, atol=1e-3)
    assert one.scorer_a.log_prior.shape == (3, K)
    np.testing.assert_allclose(one.member_scores_b.mean(0), one.scores_b, atol=1e-3)


def test_several_modalities():
    one = learner(LEARNER, components=8)
    sides = DATA.a, DATA.b, QUERY.b
    found = psa.align_many(jax.random.key(0), sides, K, learners=one)
    assert {side.scores.shape for side in found.representations} == {(N, 8)}
    assert found.between(1, 2).apply(QUERY.b.x).shape == (N, 4)


def test_two_devices():
    devices = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    one, two = align(components=8), align(components=8, mesh=devices)
    np.testing.assert_allclose(one.scores_a, two.scores_a, atol=1e-3)


def test_learners_that_keep_other_numbers():
    with pytest.raises(ValueError, match=r"components: expected one number for all modalities, got \[8, 128\]"):
        psa.align(jax.random.key(0), DATA, a=learner(LEARNER, components=8), b=LEARNER)


@pytest.mark.parametrize("components", [7, 0, True, 8.5])
def test_components_that_are_no_number(components):
    with pytest.raises(ValueError, match="components: expected"):
        psa.Learner(components=components)


def nine(scores):
    """A transform that leaves few columns by itself."""
    return scores[..., :9] - scores[..., 9:10]


def test_a_transform_to_few_columns_is_left_as_it_is():
    found = align(query=QUERY, components=10, transform=nine)
    assert found.scores_a.shape == (N, 9)
    assert found.scorer_a.components is None
    np.testing.assert_allclose(found.score_a(QUERY.a.x), found.scores_a, atol=1e-4)
