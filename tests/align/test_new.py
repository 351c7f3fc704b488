"""The life of an alignment: new samples with and without a treatment, tables of partners, a folder."""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import sparse

import psa_jax as psa

pd = pytest.importorskip("pandas")
QUICK = psa.Learner(psa.linear(4), members=1, folds=3, training=psa.Training(epochs=2))


@pytest.fixture(scope="module")
def data():
    """Treatment 3 is in a only."""
    rng = np.random.default_rng(0)
    t_a, t_b = np.arange(64) % 4, np.arange(45) % 3
    x_a = rng.standard_normal((64, 5)).astype(np.float32) + 3 * np.eye(4, 5, dtype=np.float32)[t_a]
    x_b = rng.standard_normal((45, 4)).astype(np.float32) - 3 * np.eye(3, 4, dtype=np.float32)[t_b]
    return psa.Unpaired(psa.Modality(jnp.asarray(x_a), t_a), psa.Modality(jnp.asarray(x_b), t_b), 4)


@pytest.fixture(scope="module")
def alignment(data):
    with pytest.warns(psa.AlignmentWarning, match="only one modality"):
        found = psa.align(jax.random.key(0), data, a=QUICK, b=QUICK)
    projection = dataclasses.replace(found.projection, weight_a=jnp.full(4, 0.7))  # such data give no evidence
    return dataclasses.replace(found, projection=projection)


def new(n=7, seed=1):
    rng = np.random.default_rng(seed)
    t = np.arange(n) % 3
    return rng.standard_normal((n, 5)).astype(np.float32) + 3 * np.eye(4, 5, dtype=np.float32)[t], t


def rows_of(law):
    """A law whose rows sum to one."""
    law = np.asarray(law)
    return law / law.sum(1, keepdims=True)


def test_known_treatments_are_projected(data, alignment):
    x, t = new()
    found = alignment.predict(x, t, y=data.b.x)
    np.testing.assert_allclose(found.values, alignment.project(data.b.x, x=x, t=t), rtol=1e-4, atol=1e-5)
    assert not np.asarray(found.mixed).any()
    law = psa.extend(alignment.projection.law, alignment.score_a(jnp.asarray(x)), t)
    y = np.asarray(data.b.x, float)
    p = np.asarray(law.dense(), float)
    p /= p.sum(1, keepdims=True)
    np.testing.assert_allclose(found.std, np.sqrt(np.maximum(p @ y**2 - (p @ y) ** 2, 0)), atol=1e-3)
    assert "0 samples by a mixture" in repr(found)


@pytest.mark.parametrize("rows", [512, 3])
def test_unknown_treatments_are_mixed_by_their_propensities(data, alignment, rows, monkeypatch):
    module = sys.modules["psa_jax.align.new"]
    monkeypatch.setattr(module, "ROWS", rows)
    monkeypatch.setattr(module, "COLUMNS", 3)
    x, t = new()
    t = np.where(np.arange(7) == 2, 3, np.where(np.arange(7) == 4, -1, t))
    found = alignment.predict(x, t, y=data.b.x)
    np.testing.assert_array_equal(found.mixed, (np.arange(7) == 2) | (np.arange(7) == 4))
    scorer, fitted = alignment.scorer_a, alignment.fitted_a
    weights = np.asarray(scorer.propensities(fitted.params, jnp.asarray(x), 2))
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
    each = np.stack([alignment.project(data.b.x, x=x, t=np.full(7, k)) for k in range(3)])
    mixture = np.einsum("kt,tkp->kp", weights, each)
    np.testing.assert_allclose(np.asarray(found.values)[[2, 4]], mixture[[2, 4]], rtol=1e-3, atol=1e-4)
    every = alignment.predict(x, y=data.b.x)
    assert np.asarray(every.mixed).all()
    np.testing.assert_allclose(every.values, mixture, rtol=1e-3, atol=1e-4)
    spread = np.einsum("kt,tkp->kp", weights, (each - mixture) ** 2)
    assert (np.asarray(every.std) ** 2 >= spread - 1e-3).all()


def test_drawn_partners_follow_the_law(alignment):
    x, t = new(3)
    many = 4000
    u = alignment.score_a(jnp.asarray(x))
    expected = rows_of(psa.extend(alignment.coupling, u, t).dense())
    known = alignment.sample(jax.random.key(0), np.repeat(x, many, axis=0), np.repeat(t, many))
    scorer, fitted = alignment.scorer_a, alignment.fitted_a
    chance = np.asarray(scorer.propensities(fitted.params, jnp.asarray(x), 2))
    each = [rows_of(psa.extend(alignment.coupling, u, np.full(3, k)).dense()) for k in range(3)]
    mixture = rows_of(sum(chance[:, k, None] * each[k] for k in range(3)))
    unknown = alignment.sample(jax.random.key(1), np.repeat(x, many, axis=0))
    for column, law in ((known, expected), (unknown, mixture)):
        counts = np.stack([np.bincount(row, minlength=45) for row in column.reshape(3, many)])
        assert (np.abs(counts / many - law) < 5 * np.sqrt(law / many) + 1e-3).all()


def test_draws_without_a_partner_and_with_the_same_key(alignment):
    x, t = new()
    key = jax.random.key(2)
    np.testing.assert_array_equal(alignment.sample(key, x), alignment.sample(key, x))
    assert (alignment.sample(key, x) != alignment.sample(jax.random.key(3), x)).any()
    column = alignment.sample(key, x, np.full(7, 1))
    assert (column % 3 == 1).all()
    assert alignment.sample(key, x[:0]).shape == (0,)
    mixed = alignment.sample(key, x, np.full(7, 3))  # a treatment that b does not have
    assert (mixed >= 0).all()
    x[2] = np.inf
    with np.errstate(invalid="ignore"):
        assert alignment.sample(key, x, t)[2] == alignment.sample(key, x)[2] == -1
    with pytest.raises(ValueError, match="key: expected a typed key"):
        alignment.sample(0, x)
    with pytest.raises(ValueError, match="t: expected 7 codes"):
        alignment.sample(key, x, t[:3])
    single = dataclasses.replace(alignment, coupling=psa.independent(jnp.full(2, 0.5), jnp.full(4, 0.25)))
    with pytest.raises(ValueError, match="coupling: expected one as `align` makes it"):
        single.sample(key, x)


def test_sparse_arrays_and_tables_are_taken(data, alignment):
    x, t = new()
    y = np.where(np.asarray(data.b.x) > 0, data.b.x, 0)
    expected = alignment.predict(x, t, y=y)
    for kind in (sparse.csr_array, sparse.csc_matrix, pd.DataFrame):
        found = alignment.predict(kind(x), t, y=kind(y))
        np.testing.assert_allclose(found.values, expected.values, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(alignment.project(kind(y)), alignment.project(y), rtol=1e-6)
        np.testing.assert_allclose(alignment.score_a(kind(x)), alignment.score_a(x), rtol=1e-6)
    images = alignment.predict(x, t, y=np.asarray(data.b.x).reshape(45, 2, 2))
    assert images.values.shape == images.std.shape == (7, 2, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"t": np.array([0, 1])}, r"t: expected 7 codes in \[0, 4\), -1 where not known, got int64 \(2,\)"),
        ({"t": np.full(7, 4)}, "t: expected 7 codes .* from 4 to 4"),
        ({"t": np.full(7, "x")}, "t: expected 7 codes"),
        ({"x": np.ones((7, 6), np.float32)}, r"x: expected features \(5,\), got \(6,\)"),
        ({"y": np.ones((44, 2), np.float32)}, r"y: expected 45 values, one for each sample of b, got shape \(44, 2\)"),
    ],
)
def test_bad_input_is_refused(data, alignment, change, message):
    x, t = new()
    given = {"x": x, "t": t, "y": data.b.x, **change}
    with pytest.raises(ValueError, match=message):
        alignment.predict(given["x"], given["t"], y=given["y"])


@pytest.mark.parametrize("k", [1, 5, 200])
def test_partners_as_a_sparse_table(alignment, k):
    law = alignment.coupling
    found = law.to_sparse(k)
    probability, column = map(np.asarray, law.top_k(min(k, law.shape[1])))
    expected = np.zeros(law.shape, np.float32)
    rows, places = np.nonzero(column >= 0)
    expected[rows, column[rows, places]] = probability[rows, places]
    np.testing.assert_array_equal(found.toarray(), expected)
    assert found.has_canonical_format
    assert (found.sum(axis=1)[np.arange(64) % 4 == 3] == 0).all()
    one = psa.independent(jnp.full(2, 0.5), jnp.full(4, 0.25))
    np.testing.assert_allclose(one.to_sparse(200).toarray(), 0.25)
    with pytest.raises(ValueError, match="k: expected 1"):
        one.to_sparse(0)


def test_a_folder_keeps_an_alignment(data, alignment, tmp_path):
    alignment.save(tmp_path / "it")
    assert [path.name for path in (tmp_path / "it").iterdir()] == ["alignment.npz"]
    quick = functools.partial(psa.io.load_alignment, model_a=QUICK.model, model_b=QUICK.model)
    back = quick(tmp_path / "it" / "alignment.npz")
    x, _ = new()
    np.testing.assert_array_equal(back.predict(x, y=data.b.x).values, alignment.predict(x, y=data.b.x).values)
    with pytest.raises(ValueError, match="model_a: expected"):
        psa.Alignment.load(tmp_path / "it")
    with pytest.raises(FileNotFoundError):
        psa.Alignment.load(tmp_path / "nothing")
