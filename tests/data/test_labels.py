import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psa_jax as psa
from benchmarks import labels as fuzz
from psa_jax.data.labels import differing, encode, listed

pd = pytest.importorskip("pandas")

LEVELS = pd.CategoricalDtype(["low", "mid", "high"])


@pytest.mark.parametrize(
    ("labels_a", "labels_b", "names"),
    [
        ([2, 10], [10.0, 2.0], ("2", "10")),
        ([2, 10], np.array([10, 2], np.uint8), ("2", "10")),
        (np.array([0.5, 0.1], np.float32), [0.1, 0.5], ("0.1", "0.5")),
        (np.array([0.1, 1e3], np.float16), np.array([1e3, 0.1], np.float64), ("0.1", "1000")),
        (jnp.arange(2), pd.Series([1, 0]), ("0", "1")),
        ([b"ctrl", b"drug"], ["drug", "ctrl"], ("ctrl", "drug")),
        (np.array([b"a", b"b"]), np.array(["b", "a"]), ("a", "b")),
        ([True, False], [0, 1], ("False", "True")),
        (np.array([False, True]), [True, False], ("False", "True")),
        (pd.array([1, 2], dtype="Int64"), [2, 1.0], ("1", "2")),
        (pd.Series(["a", "b"], dtype="string"), ["b", "a"], ("a", "b")),
        ([2**60, 2**60 + 1], [2**60 + 1, 2**60], (str(2**60), str(2**60 + 1))),
    ],
)
def test_labels_are_the_same_whatever_holds_them(labels_a, labels_b, names):
    t_a, t_b, found = encode(labels_a, labels_b)
    assert found == names
    assert sorted(t_a.tolist()) == [0, 1]
    assert t_a.tolist() == t_b.tolist()[::-1]
    assert t_a.dtype == t_b.dtype == np.int32


@pytest.mark.parametrize(
    ("labels_a", "labels_b", "names"),
    [
        (["drug 10", "drug 2"], ["drug 2", "ctrl"], ("ctrl", "drug 2", "drug 10")),
        (["x", 10, 2.5], [10, "9"], ("2.5", "10", "9", "x")),
        ([1, "1"], ["1", 1], ("1 (int)", "1 (str)")),
        (pd.Categorical(["high", "low"], dtype=LEVELS), pd.Series(["low"], dtype=LEVELS), ("low", "high")),
        (pd.Categorical(["high", "low"], dtype=LEVELS), pd.Categorical(["low"]), ("high", "low")),
        (pd.Categorical(["high", "low"], dtype=LEVELS), ["low"], ("high", "low")),
        (pd.Series([10, 2], dtype="category"), [2], ("2", "10")),
    ],
)
def test_numbers_then_texts_unless_categories_say_otherwise(labels_a, labels_b, names):
    t_a, t_b, found = encode(labels_a, labels_b)
    assert found == names
    for labels, t in ((labels_a, t_a), (labels_b, t_b)):
        shown = [str(label) for label in np.asarray(labels, dtype=object)]
        assert [found[code].partition(" (")[0] for code in t] == shown


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", "nan", "", " NA ", None, "a"], r"got 4 of 6 that are missing \(' NA ', '', 'nan', none\): leave"),
        ([1.0, float("nan")], r"got 1 of 2 that are missing \(none\)"),
        (pd.array([1, None, None], dtype="Int64"), r"got 2 of 3 that are missing \(none\)"),
        (pd.Categorical(["a", None]), r"got 1 of 2 that are missing \(none\)"),
        (pd.Series(["a", pd.NA, "a"], dtype="string"), r"got 1 of 3 that are missing \(none\)"),
        (pd.to_datetime(pd.Series(["2024-01-01", None])), r"got 1 of 2 that are missing \(none\)"),
        (np.ma.array([1, 2], mask=[False, True]), r"got 1 of 2 that are missing \(none\)"),
        ("abc", r"expected labels \[n\], one for each sample, got 'abc'"),
        (None, r"expected labels \[n\]"),
        ([], "expected at least one sample, got none"),
        ([["a"], ["b"]], r"expected labels \[n\], one for each sample, got shape \(2, 1\)"),
        (pd.DataFrame({"t": ["a"]}), r"got a table of columns \['t'\]"),
    ],
)
def test_labels_that_are_missing_or_none(labels, message):
    with pytest.raises(ValueError, match=f"labels_a: .*{message}"):
        encode(labels, ["a", 1])
    with pytest.raises(ValueError, match=f"labels_b: .*{message}"):
        encode(["a", 1], labels)


def test_labels_that_nearly_meet_are_named():
    with pytest.raises(ValueError, match="at least one label that both have") as error:
        encode(["DMSO", "A ", 1, "x"], ["dmso", "a", "1", "y"])
    for hint in ("'DMSO' and 'dmso'", "'A ' and 'a'", "1 and '1'"):
        assert hint in str(error.value).partition("these differ by case, blanks or type alone: ")[2]
    assert "'x' and" not in str(error.value).partition("these differ")[2]
    assert differing(["a"], ["b"]) == "'a' in a and 'b' in b"
    assert differing(range(9), ["b"]) == "0, 1, 2, 3, 4, ... in a and 'b' in b"


def test_many_treatments_are_told_by_the_first():
    assert listed([0, 2], ("a", "b", "c")) == "a, c"
    assert listed(np.arange(12), None) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"
    assert listed([], ("a",)) == ""


T = np.arange(40) % 3
X = (np.random.default_rng(0).normal(size=(40, 2)) + T[:, None]).astype(np.float32)
LABELS = np.array(["DMSO", "drug 10", "drug 2"])[T]


def test_data_of_labels():
    data = psa.Unpaired.from_labels(pd.DataFrame(X), LABELS, X[:30], pd.Series(LABELS[:30]))
    assert data.names == ("DMSO", "drug 2", "drug 10")
    assert data.num_treatments == 3
    assert [data.names[code] for code in data.a.t] == LABELS.tolist()
    np.testing.assert_array_equal(data.b.x, X[:30])
    assert "DMSO (14, 10), drug 2 (13, 10), drug 10 (13, 10)" in repr(data)
    for part in psa.split(jax.random.key(0), data, (0.5, 0.5)):
        assert part.names == data.names
    assert psa.permute_treatments(jax.random.key(0), data).names == data.names
    with pytest.raises(ValueError, match="labels_b: expected 40 labels, one for each sample, got 30"):
        psa.Unpaired.from_labels(X, LABELS, X, LABELS[:30])
    with pytest.raises(ValueError, match="x_a: expected numbers"):
        psa.Unpaired.from_labels(LABELS[:, None], LABELS, X, LABELS)
    with pytest.raises(ValueError, match="names: expected 3, one for each treatment, got 2"):
        psa.validate(psa.Unpaired(data.a, data.b, 3, ("a", "b")))
    other = psa.Unpaired(data.a, data.b, 3, ("a", "b", "c"))
    with pytest.raises(ValueError, match="query: expected the names of treatments of data"):
        psa.align(jax.random.key(0), data, query=other)


def test_treatments_are_named_in_warnings_and_reports():
    few = T != 2
    data = psa.Unpaired.from_labels(X, LABELS, X[few], LABELS[few])
    learner = psa.Learner(psa.linear(3), training=psa.Training(epochs=1), folds=3, members=1)
    with pytest.warns(psa.AlignmentWarning, match="only one modality has treatments drug 2: 13 samples of a and 0"):
        found = psa.align(jax.random.key(0), data, a=learner, b=learner)
    assert found.names == data.names
    assert "only in a, not matched: drug 2" in found.summary()
    alone = psa.Unpaired.from_labels(X, LABELS, X[T == 1], LABELS[T == 1])
    with pytest.raises(ValueError, match=r"got only \[drug 10\]"):
        psa.align(jax.random.key(0), alone, a=learner, b=learner)
    with pytest.raises(ValueError, match=r"got only \[drug 10\]"):
        psa.align_many(jax.random.key(0), [alone.a, alone.b], 3, learners=learner, names=alone.names)
    report = psa.diagnose(jax.random.key(0), found, repeats=1, draws=1, permutations=2)
    assert [row["treatment"] for row in report.rows()] == list(data.names)
    assert "treatments drug 2: only one modality has them, they were not matched" in report.warnings
    assert "drug 10" in str(report)


@pytest.mark.parametrize("count", [400, pytest.param(20000, marks=pytest.mark.slow)])
def test_random_labels_are_the_same_whatever_holds_them(count):
    found = fuzz.labels(count, seed=1)
    assert not found["escaped"]
    assert found["unchanged"] > 0.6 * count
    assert found["clean"] > 0.15 * count


def test_dates_and_accents_are_compared_by_what_they_say():
    days = np.array(["2020-01-01", "2020-01-02"], "M8[D]")
    assert encode(days, days[::-1].astype("M8[ns]"))[1].tolist() == [1, 0]
    assert encode(["caf\u00e9", "tea"], ["cafe\u0301", "tea"])[2] == ("caf\u00e9", "tea")
    with pytest.raises(ValueError, match=r"alone: '1' and '1\.0'"):
        encode(["1", "x"], ["1.0", "y"])
