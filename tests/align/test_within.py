"""Matching within a further label: nothing crosses it, one for all is none, new samples of known and unknown ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psa_jax as psa

QUICK = psa.Learner(psa.linear(3), members=1, folds=3, training=psa.Training(epochs=2))
KEY = jax.random.key(0)


def data_of(plates_a, plates_b, shift=0.0, seed=0):
    """Three treatments; plate p is shifted by p times `shift` in a, by as much in the other direction in b."""
    rng = np.random.default_rng(seed)
    sides = []
    for plates, dim, sign in ((plates_a, 5, 1), (plates_b, 4, -1)):
        t, z = rng.integers(0, 3, plates.size), rng.normal(size=(plates.size, dim))
        x = z + 2 * np.eye(3, dim)[t] + sign * shift * plates[:, None]
        sides += [x.astype(np.float32), np.array(["DMSO", "drug", "poison"])[t]]
    return sides


@pytest.fixture(scope="module")
def plated():
    rng = np.random.default_rng(1)
    plates = rng.integers(0, 2, 90), rng.integers(0, 2, 70)
    data = psa.Unpaired.from_labels(*data_of(*plates, shift=20.0), within_a=plates[0], within_b=plates[1])
    return data, plates, psa.align(KEY, data, a=QUICK, b=QUICK)


def test_one_further_label_for_all_is_none():
    sides = data_of(np.zeros(60), np.zeros(50))
    plain = psa.align(KEY, data := psa.Unpaired.from_labels(*sides), a=QUICK, b=QUICK)
    same = psa.Unpaired.from_labels(*sides, within_a=["p"] * 60, within_b=["p"] * 50)
    found = psa.align(KEY, same, a=QUICK, b=QUICK)
    assert found.names == ("DMSO, p", "drug, p", "poison, p")
    bare = dataclasses.replace(found, strata=None, names=plain.names)
    jax.tree.map(np.testing.assert_array_equal, bare, plain)
    x = np.asarray(data.a.x)[:5]
    for t in (None, np.array([0, 1, 2, -1, 0])):
        ours, theirs = (law.predict(x, t, y=data.b.x) for law in (found, plain))
        np.testing.assert_allclose(ours.values, theirs.values, rtol=1e-6)
        np.testing.assert_array_equal(ours.mixed, theirs.mixed)


def test_no_mass_crosses_plates(plated):
    data, (p_a, p_b), found = plated
    law = np.asarray(found.coupling.dense())
    assert law[p_a[:, None] != p_b[None]].max() == 0
    drug_a, drug_b = np.asarray(data.taught.a.t), np.asarray(data.taught.b.t)
    assert law[drug_a[:, None] != drug_b[None]].max() == 0
    np.testing.assert_allclose(law.sum(), 1, rtol=1e-4)
    y = np.asarray(found.project(p_b[:, None].astype(np.float32)))[:, 0]
    np.testing.assert_allclose(y, p_a, atol=1e-4)
    assert found.scores_a.shape[1] == 3
    assert "6 groups: 3 treatments within 2 strata" in str(found)
    assert "drug, 1 (" in str(found)


def test_other_ways_of_looking_at_it_go_by_the_same_groups(plated):
    data, _, found = plated
    truth = psa.Truth(jnp.full(90, -1))
    report = psa.evaluate(KEY, found, truth, data)
    assert report["treatments"]["names"] == list(data.names)
    assert psa.diagnose(KEY, found, repeats=1, draws=1, permutations=2).names == data.names
    train, query = psa.split(KEY, data, (0.7, 0.3))
    law = np.asarray(psa.align(KEY, train, query=query, a=QUICK, b=QUICK).coupling.dense())
    place = np.asarray(data.strata.stratum)
    assert law[place[np.asarray(query.a.t)][:, None] != place[np.asarray(query.b.t)][None]].max() == 0
    other = psa.Strata(data.strata.treatment, data.strata.stratum, data.strata.treatments, ("x", "y"))
    with pytest.raises(ValueError, match="query: expected the strata of data, got others"):
        psa.align(KEY, data, query=dataclasses.replace(query, strata=other))


@pytest.mark.slow
def test_tuning_and_baselines_learn_treatments(plated):
    data, _, _ = plated
    tuned = psa.tune(KEY, data, a=QUICK, b=QUICK, repeats=2, geometry=False)
    assert len(tuned.table) == 5
    u, _ = psa.baselines.cca(data)
    np.testing.assert_array_equal(u, psa.baselines.cca(data.taught)[0])


def test_new_samples_of_known_and_unknown_plates(plated):
    data, (_, p_b), found = plated
    y = p_b[:, None].astype(np.float32)
    x = np.asarray(data.a.x)[:4]
    drug, plate = np.array([0, 1, 2, 1]), np.array([0, 1, 1, 0])
    codes = data.strata.codes(drug, plate)
    exact, pairs = (found.predict(x, t, y=y) for t in (codes, np.stack([drug, plate], axis=1)))
    np.testing.assert_array_equal(exact.values, pairs.values)
    np.testing.assert_allclose(exact.values[:, 0], plate, atol=1e-4)
    assert not np.asarray(exact.mixed).any()
    known = found.predict(x, np.stack([np.full(4, -1), plate], axis=1), y=y)
    np.testing.assert_allclose(known.values[:, 0], plate, atol=1e-4)
    assert np.asarray(known.mixed).all()
    half = found.predict(x, np.stack([drug, np.full(4, -1)], axis=1), y=y)
    sizes = np.asarray(found.groups.sizes_a).reshape(3, 2)
    # far from one of the plates there may be no projection there, and the other one counts
    share = sizes[drug, 1] / sizes[drug].sum(1)
    value = np.asarray(half.values)[:, 0]
    assert all(min(abs(v - s), abs(v), abs(v - 1)) < 1e-4 for v, s in zip(value, share, strict=True))
    probability, column = found.partners(x, np.stack([drug, np.full(4, -1)], axis=1), k=3)
    np.testing.assert_array_equal(np.asarray(data.taught.b.t)[column], np.repeat(drug[:, None], 3, axis=1))
    assert (probability <= 1).all()
    with pytest.raises(ValueError, match=r"t: expected strata in \[0, 2\), -1 where not known, got 0 to 2"):
        found.predict(x, np.stack([drug, plate + np.array([0, 1, 0, 0])], axis=1), y=y)


def test_shares_of_plates_sum_to_the_treatments(plated):
    data, _, found = plated
    x = jnp.asarray(data.a.x[:6])
    _, weights, codes = found._treatments(x, None)
    chance = found.scorer_a.propensities(found.fitted_a.params, x, 2)
    of = np.asarray(data.strata.treatment)[codes]
    for k in range(3):
        np.testing.assert_allclose(weights[:, of == k].sum(1), chance[:, k], rtol=1e-5)


def test_a_file_keeps_strata(plated, tmp_path):
    data, _, found = plated
    path = tmp_path / "kept.npz"
    psa.io.save_alignment(path, found)
    back = psa.io.load_alignment(path, model_a=QUICK.model, model_b=QUICK.model)
    assert back.strata == found.strata
    jax.tree.map(np.testing.assert_array_equal, back, found)
    x = np.asarray(data.a.x)[:3]
    np.testing.assert_array_equal(back.predict(x, y=data.b.x).values, found.predict(x, y=data.b.x).values)
