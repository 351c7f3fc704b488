"""Smoothing chosen by labels: taken where it gains beyond noise, else what was given is kept."""

import jax
import numpy as np
import pytest

import psa_jax as psa

QUICK = psa.Learner(psa.linear(4), training=psa.Training(epochs=3))


def data(seed=0, n=120):
    rng = np.random.default_rng(seed)
    t = np.arange(n) % 4
    state = rng.normal(size=(4, 3))[t] + rng.normal(size=(n, 3))
    return psa.Unpaired(*(psa.Modality((state @ rng.normal(size=(3, 6))).astype("float32"), t) for _ in "ab"), 4)


def test_all_amounts_are_tried_and_the_choice_is_the_largest_gain_beyond_noise():
    found = psa.tune(jax.random.key(0), data(), a=QUICK, b=QUICK, repeats=4)
    assert found.table[0]["smoothing"] == "as given"
    assert len(found.table) == 5
    better = [row for row in found.table if row["allowed"] and row["gain"] > 2 * row["error"]]
    expected = max(better, key=lambda row: row["gain"])["smoothing"] if better else "as given"
    assert found.chosen == expected
    assert found.chosen in repr(found)
    assert found.a.model == QUICK.model
    if not better:
        assert (found.a, found.b) == (QUICK, QUICK)
    again = psa.tune(jax.random.key(0), data(), a=QUICK, b=QUICK, repeats=4)
    assert again.table == found.table


@pytest.mark.slow
def test_noise_is_taken_where_features_are_noise_and_the_network_memorises():
    """Sixty useless features and few samples: without smoothing a network learns them by heart."""
    rng = np.random.default_rng(1)
    t = np.arange(400) % 6
    centre, mixes = 0.7 * rng.normal(size=(6, 4)), [rng.normal(size=(4, 8)) for _ in "ab"]
    sides = []
    for mix in mixes:
        x = (centre[t] + rng.normal(size=(400, 4))) @ mix
        sides.append(psa.Modality(np.concatenate([x, rng.normal(size=(400, 60))], 1).astype("float32"), t))
    rough = psa.Learner(augment=None)
    found = psa.tune(jax.random.key(0), psa.Unpaired(*sides, 6), a=rough, b=rough)
    assert found.chosen != "none"
    assert found.table[1]["smoothing"] == "none"
    assert abs(found.table[1]["gain"]) < 3 * found.table[1]["error"] + 0.05  # which is what was given, trained again


def test_it_needs_treatments_to_hold_out_and_halves_to_compare():
    two = psa.Unpaired(*2 * [psa.Modality(np.zeros((8, 2), np.float32), np.arange(8) % 2)], 2)
    with pytest.raises(ValueError, match="data: expected at least three treatments"):
        psa.tune(jax.random.key(0), two)
    with pytest.raises(ValueError, match="repeats: expected at least 2"):
        psa.tune(jax.random.key(0), data(), repeats=1)
