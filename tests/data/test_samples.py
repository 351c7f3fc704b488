import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import psa_jax as psa
from psa_jax.data.groups import MAX_BUCKETS, _capacity


def data_of(sizes_a, sizes_b, seed=0):
    rng = np.random.default_rng(seed)
    sides = []
    for sizes, dim in ((sizes_a, 2), (sizes_b, 3)):
        t = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
        sides.append(psa.Modality(jnp.asarray(rng.normal(size=(t.size, dim)), jnp.float32), jnp.asarray(t, jnp.int32)))
    return psa.Unpaired(*sides, len(sizes_a))


sizes = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(pairs=sizes, seed=st.integers(0, 1000))
def test_groups_hold_every_sample_that_can_be_matched_once(pairs, seed):
    pairs = [*pairs, (3, 2)]
    rng = np.random.default_rng(seed)
    t_a, t_b = (rng.permutation(np.repeat(np.arange(len(pairs)), [p[s] for p in pairs])) for s in (0, 1))
    groups = psa.group(t_a, t_b, len(pairs))
    assert groups.shape == (t_a.size, t_b.size)
    assert len(groups.buckets) <= MAX_BUCKETS
    for side, t, ids_of in ((0, t_a, "rows"), (1, t_b, "cols")):
        seen = []
        for bucket in groups.buckets:
            for ids, treatment in zip(np.asarray(getattr(bucket, ids_of)), np.asarray(bucket.treatment), strict=True):
                real = ids[ids < t.size]
                assert (ids[: real.size] == real).all()
                assert (t[real] == treatment).all()
                seen.extend(real.tolist())
        other = (t_b, t_a)[side]
        assert sorted(seen) == np.flatnonzero(np.isin(t, other)).tolist()


def test_waste_is_bounded_and_programs_are_few():
    rng = np.random.default_rng(0)
    for spread in (0.1, 0.5, 1.0):
        sizes = np.exp(rng.normal(4, spread, 200)).astype(int) + 1
        t = np.repeat(np.arange(200), sizes)
        groups = psa.group(t, t, 200, max_buckets=12)
        assert len(groups.buckets) <= 12
        assert groups.waste <= 1.5


def test_capacities_hold_their_size_and_waste_little():
    for n in range(1, 3000):
        assert n <= _capacity(n) <= max(n + 1, 1.1 * n)


@pytest.mark.parametrize(
    "sizes",
    [
        np.random.default_rng(0).integers(20, 201, 2000),
        np.round(np.exp(np.random.default_rng(1).normal(5, 1, 500))).astype(int) + 1,
        (1000 / np.arange(1, 1001) ** 0.8).astype(int) + 1,
        2 ** np.arange(12),
        np.full(12, 200),
    ],
    ids=["screen", "lognormal", "zipf", "powers", "equal"],
)
def test_padding_and_programs_are_bounded(sizes):
    t = np.repeat(np.arange(sizes.size), sizes)
    groups = psa.group(t, t, sizes.size)
    assert groups.waste <= 1.4
    assert len(groups.buckets) <= 12


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 400), st.integers(1, 400)), min_size=1, max_size=60))
def test_any_sizes_make_few_programs_and_the_first_choice_is_not_worse_than_one(sizes):
    sizes_a, sizes_b = np.array(sizes).T
    t_a, t_b = (np.repeat(np.arange(s.size), s) for s in (sizes_a, sizes_b))
    groups = psa.group(t_a, t_b, sizes_a.size)
    assert len(groups.buckets) <= 12
    single = psa.group(t_a, t_b, sizes_a.size, max_buckets=1)
    assert groups.waste <= single.waste + 1e-9
    assert sorted(int(t) for b in groups.buckets for t in b.treatment) == list(range(sizes_a.size))
    for bucket in groups.buckets:
        assert sizes_a[bucket.treatment].max() <= bucket.rows.shape[1]
        assert sizes_b[bucket.treatment].max() <= bucket.cols.shape[1]


def test_similar_sizes_meet_the_same_shapes():
    first, second = (psa.group(*2 * [np.repeat(np.arange(4), sizes)], 4) for sizes in ([97] * 4, [99, 98, 99, 97]))
    assert [b.rows.shape for b in first.buckets] == [b.rows.shape for b in second.buckets]


def test_split_is_stratified_and_complete():
    data = data_of([40, 20, 1], [10, 30, 2])
    train, valid, test = psa.split(jax.random.key(0), data, (0.6, 0.2, 0.2))
    for side in ("a", "b"):
        parts = [getattr(part, side) for part in (train, valid, test)]
        whole = getattr(data, side)
        rows = np.concatenate([np.asarray(part.x) for part in parts])
        order = np.lexsort(np.asarray(whole.x).T)
        np.testing.assert_array_equal(rows[np.lexsort(rows.T)], np.asarray(whole.x)[order])
    assert np.bincount(train.a.t, minlength=3)[:2].tolist() == [24, 12]
    assert np.bincount(test.b.t, minlength=3)[:2].tolist() == [2, 6]


def test_split_keeps_true_pairs_together():
    n = 60
    order = np.random.default_rng(0).permutation(n)
    t = np.arange(n) % 3
    x = jnp.arange(n, dtype=jnp.float32)[:, None]
    data = psa.Unpaired(psa.Modality(x, jnp.asarray(t)), psa.Modality(x[order], jnp.asarray(t[order])), 3)
    pair = np.argsort(order)
    pair[5] = -1
    truth = psa.Truth(jnp.asarray(pair), x, x[order])
    parts = psa.split(jax.random.key(1), data, (0.5, 0.3), truth=truth)
    assert len(parts) == 2
    for part, its in parts:
        known = np.asarray(its.pair) >= 0
        assert known.sum() >= known.size - 1
        np.testing.assert_array_equal(part.a.x[known], part.b.x[its.pair][known])
        np.testing.assert_array_equal(its.z_a, part.a.x)
        np.testing.assert_array_equal(its.z_b, part.b.x)


def test_split_is_decided_by_the_key():
    data = data_of([40, 20], [10, 30])
    first, again, other = (psa.split(jax.random.key(k), data, (0.5, 0.5))[0] for k in (0, 0, 1))
    np.testing.assert_array_equal(first.a.x, again.a.x)
    assert not np.array_equal(first.a.x, other.a.x)


X, T = np.ones((4, 2), np.float32), np.array([0, 1, 0, 1])


def change(x=X, t=T):
    return psa.Unpaired(psa.Modality(X, T), psa.Modality(x, t), 2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            change(x=np.where(np.arange(8).reshape(4, 2) > 4, np.nan, X)),
            "modality b: x: .* in 2 of 4 rows, the first at row 2",
        ),
        (change(x=X * np.inf), "modality b: x: .* NaN or infinity in 4 of 4 rows"),
        (change(x=X[:3]), "modality b: expected as many labels as samples, got 4 labels and 3 samples"),
        (change(x=np.ones(4)), "modality b: x: expected rank 2"),
        (change(x=np.ones((4, 2), int)), "modality b: x: expected a float dtype"),
        (change(t=T[:, None]), "modality b: t: expected rank 1"),
        (change(t=T.astype(float)), "modality b: t: expected integer treatment codes"),
        (change(t=np.array(["a", "b", "a", "b"])), "modality b: t: expected integer treatment codes"),
        (change(t=T + 1), r"modality b: t: expected codes in \[0, 2\), got 2 at row 1"),
        (change(t=T - 1), r"modality b: t: expected codes in \[0, 2\), got -1 at row 0"),
        (change(x=X[:0], t=T[:0]), "modality b: t: expected at least one sample"),
        (
            psa.Unpaired(psa.Modality(X, T * 0), psa.Modality(X, T * 0 + 1), 2),
            "at least one treatment that both",
        ),
    ],
)
def test_invalid_data(data, message):
    with pytest.raises(ValueError, match=message):
        psa.validate(data)


@pytest.mark.parametrize(
    ("t_a", "t_b", "message"),
    [
        ([0, 0], [1, 1], "at least one treatment that both modalities have, got .0. in a and .1. in b"),
        ([0.5], [0], "t_a: expected integer"),
        ([0], [[0]], "t_b: expected rank 1"),
        ([], [0], "t_a: expected at least one sample"),
        ([0], [7], r"t_b: expected codes in \[0, 3\)"),
    ],
)
def test_labels_that_cannot_be_grouped(t_a, t_b, message):
    with pytest.raises(ValueError, match=message):
        psa.group(np.array(t_a), np.array(t_b), 3)


@pytest.mark.parametrize("fractions", [(0.5, 0.6), (0.5, 0.0), (-0.1,), (float("nan"), 0.5), ()])
def test_bad_fractions(fractions):
    with pytest.raises(ValueError, match="fractions: expected"):
        psa.split(jax.random.key(0), data_of([4], [4]), fractions)


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        (psa.Truth(jnp.zeros(3, jnp.int32)), r"truth.pair: expected shape \(4,\)"),
        (psa.Truth(jnp.zeros(4)), "truth.pair: expected integers"),
        (psa.Truth(jnp.full(4, 9)), r"truth.pair: expected columns in \[-1, 4\)"),
        (psa.Truth(jnp.arange(4), jnp.ones((3, 1)), jnp.ones((4, 1))), "truth.z_a: expected shape"),
    ],
)
def test_bad_truth(truth, message):
    with pytest.raises(ValueError, match=message):
        psa.split(jax.random.key(0), change(), (0.5, 0.5), truth=truth)


@pytest.mark.parametrize("wrong", [1, 6, 39])
def test_pairs_of_two_treatments_are_none(wrong):
    t = jnp.arange(40) % 3
    data = psa.Unpaired(psa.Modality(jnp.ones((40, 2)), t), psa.Modality(jnp.ones((40, 2)), t), 3)
    pair = np.where(np.arange(40) < wrong, (np.arange(40) + 1) % 40, np.arange(40))
    with pytest.raises(ValueError, match=rf"truth.pair: .* two treatments in {wrong} of 40 \(rows 0 with 1"):
        psa.split(jax.random.key(0), data, (0.5, 0.5), truth=psa.Truth(jnp.asarray(pair)))
    unknown = jnp.asarray(np.where(np.arange(40) < wrong, -1, np.arange(40)))
    assert len(psa.split(jax.random.key(0), data, (0.5, 0.5), truth=psa.Truth(unknown))) == 2


def test_labels_of_any_integer_kind_and_lists():
    kinds = [np.uint8, np.uint64, np.int64, list]
    for kind in kinds:
        t = T.tolist() if kind is list else T.astype(kind)
        first, second = psa.split(jax.random.key(0), change(t=t), (0.5, 0.5))
        assert first.b.t.size + second.b.t.size == 4
