"""Codes of treatments within strata: what they stand for, what is refused, what keeps them."""

import dataclasses

import jax
import numpy as np
import pytest

import psa_jax as psa

DRUG_A, PLATE_A = ["drug", "DMSO", "drug", "DMSO", "drug"], [1, 1, 2, 2, 2]
DRUG_B, PLATE_B = ["DMSO", "drug", "drug", "DMSO"], [2.0, 1.0, 2.0, 1.0]


def data_of(within=True, n=1):
    x = np.random.default_rng(0).normal(size=(9 * n, 3)).astype(np.float32)
    settings = {"within_a": n * PLATE_A, "within_b": n * PLATE_B} if within else {}
    return psa.Unpaired.from_labels(x[: 5 * n], n * DRUG_A, x[: 4 * n], n * DRUG_B, **settings)


def test_each_combination_that_occurs_has_a_code_and_a_name():
    data = data_of()
    assert data.names == ("DMSO, 1", "DMSO, 2", "drug, 1", "drug, 2")
    assert [data.names[k] for k in data.a.t.tolist()] == [f"{d}, {p}" for d, p in zip(DRUG_A, PLATE_A, strict=True)]
    assert [data.names[k] for k in data.b.t.tolist()] == [f"{d}, {p:g}" for d, p in zip(DRUG_B, PLATE_B, strict=True)]
    assert "4 treatments within 2 strata, 4 of them in both" in repr(data)
    plain = data_of(within=False)
    assert data.taught.names == plain.names == ("DMSO", "drug")
    assert data.taught.strata is None
    np.testing.assert_array_equal(data.taught.a.t, plain.a.t)
    np.testing.assert_array_equal(data.taught.b.t, plain.b.t)
    assert plain.taught is plain


def test_combinations_without_samples_have_no_code():
    x = np.ones((3, 2), np.float32)
    data = psa.Unpaired.from_labels(x, [0, 1, 1], x, [0, 1, 0], within_a=["p", "p", "q"], within_b=["p", "p", "r"])
    assert data.names == ("0, p", "0, r", "1, p", "1, q")
    strata = data.strata
    assert strata.codes([0, 0, 1, 1, -1, 0], [0, 1, 0, 1, 0, -1]).tolist() == [0, -1, 2, 3, -1, -1]
    there = np.array([True, False, True, False])
    found = strata.possible(np.array([0, 0, 1, -1, -1, 1]), np.array([0, 2, 1, 1, 0, -1]), there)
    assert found.astype(int).tolist() == [
        [1, 0, 0, 0],
        [1, 0, 0, 0],  # its plate was not matched: its treatment
        [0, 0, 1, 0],
        [1, 0, 1, 0],  # nothing is known that was matched: all
        [1, 0, 1, 0],
        [0, 0, 1, 0],
    ]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"within_b": None}, "within_a, within_b: expected labels of both modalities"),
        ({"within_a": [1, 1]}, "within_a: expected 5 labels, one for each sample, got 2"),
        ({"within_b": [1, None, 1, 1]}, "within_b: expected a label for every sample, got 1 of 4"),
        ({"within_b": [7, 7, 7, 7]}, "within_a, within_b: expected at least one label that both have"),
        ({"within_a": [1, 2, 1, 2, 1], "within_b": [1, 2, 2, 1]}, "at least one treatment within a stratum"),
    ],
)
def test_what_is_no_further_label_is_refused_by_name(changed, message):
    x = np.ones((9, 3), np.float32)
    settings = {"within_a": PLATE_A, "within_b": PLATE_B} | changed
    with pytest.raises(ValueError, match=message):
        psa.Unpaired.from_labels(x[:5], DRUG_A, x[:4], DRUG_B, **settings)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (((0, 2), (0, 0), ("x", "y"), ("p",)), r"treatment: expected integers in \[0, 2\)"),
        (((0, 1), (0, 1), ("x", "y"), ("p",)), r"stratum: expected integers in \[0, 1\)"),
        (((0, 1), (0,), ("x", "y"), ("p",)), "expected as many of each, got 2 and 1"),
        (((1, 1), (0, 0), ("x", "y"), ("p",)), "one of them twice"),
    ],
)
def test_strata_that_are_none_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        psa.Strata(*wrong)


def test_data_check_their_strata():
    data = data_of()
    with pytest.raises(ValueError, match="strata: expected 4 combinations, one for each code, got 2"):
        psa.validate(dataclasses.replace(data, strata=psa.Strata((0, 1), (0, 0), ("x", "y"), ("p",))))
    with pytest.raises(ValueError, match=r"strata: expected psa_jax.Strata, got tuple"):
        psa.validate(dataclasses.replace(data, strata=(0, 1)))


def test_parts_and_permutations_keep_strata():
    data = data_of(n=12)
    for part in psa.split(jax.random.key(0), data, (0.5, 0.5)):
        assert part.strata == data.strata
        assert np.bincount(part.a.t, minlength=4).min() >= 6
    mixed = psa.permute_treatments(jax.random.key(1), data)
    place = np.asarray(data.strata.stratum)
    for side, before in ((mixed.a, data.a), (mixed.b, data.b)):
        assert not np.array_equal(side.t, before.t)
        np.testing.assert_array_equal(place[np.asarray(side.t)], place[np.asarray(before.t)])
        np.testing.assert_array_equal(np.bincount(side.t), np.bincount(before.t))
