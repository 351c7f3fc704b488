"""The life of an alignment: new samples with and without a treatment, tables of partners, a folder."""

import dataclasses
import functools
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import sparse

import psa_jax as psa
from psa_jax.align import new as new_samples
from psa_jax.align.new import matched_codes

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


def far_from_one(rows=1):
    """A coupling of two treatments of which the first, whose eps is small, does not reach what is asked for."""
    rng = np.random.default_rng(0)
    t = np.repeat([0, 1], 20)
    scale = np.where(t == 0, 1e-2, 1e2)[:, None]
    u, v = ((rng.normal(size=(40, 2)) * scale).astype(np.float32) for _ in range(2))
    law = psa.blockwise(psa.sinkhorn)(jnp.asarray(u), jnp.asarray(v), psa.group(t, t, 2))
    asked = jnp.full((rows, 2), 1e4, jnp.float32), np.full((rows, 2), 0.5, np.float32), np.arange(2), np.full(rows, -1)
    return law, asked, v


def test_treatments_that_do_not_reach_a_sample_have_no_say():
    law, asked, v = far_from_one(400)
    assert (psa.extend(law, asked[0][:2], np.arange(2)).row_marginal() > 0).tolist() == [False, True]
    column = new_samples.drawn(jax.random.key(0), law, *asked)
    assert ((column >= 20) & (column < 40)).all()
    law, asked, v = far_from_one()
    probability, column = new_samples.partners(law, *asked, 40)
    np.testing.assert_allclose(probability.sum(), 1, rtol=1e-4)
    assert ((column >= 20) == (probability > 0)).all()
    mean, _ = new_samples.predicted(law, *asked, v)
    np.testing.assert_allclose(mean[0], probability[0] @ v[column[0]], rtol=1e-3)


def test_deviations_neither_cancel_nor_overflow(data, alignment):
    x, t = new()
    rng = np.random.default_rng(3)
    near = rng.normal(size=(45, 2)).astype(np.float32)
    away = np.asarray(data.b.t)[:, None] * np.float32(1e4)
    close, far = (np.asarray(alignment.predict(x, t, y=y).std) for y in (near, near + away))
    np.testing.assert_allclose(far, close, rtol=0.02)
    large = alignment.predict(x, t, y=near * np.float32(1e30))
    np.testing.assert_allclose(np.asarray(large.std) / 1e30, close, rtol=1e-3)
    mixed = alignment.predict(x, y=near * np.float32(1e30))
    expected = alignment.predict(x, y=near)
    np.testing.assert_allclose(np.asarray(mixed.std) / 1e30, expected.std, rtol=1e-3)


def test_a_query_of_treatments_that_no_classifier_shares(data):
    rng = np.random.default_rng(0)
    t = 3 + np.arange(30) % 2
    train = psa.Unpaired(data.a, data.b, 5)
    query = psa.Unpaired(*(psa.Modality(rng.normal(size=(30, d)).astype(np.float32), t) for d in (5, 4)), 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", psa.AlignmentWarning)
        five = dataclasses.replace(QUICK, model=psa.linear(5))
        found = psa.align(jax.random.key(0), train, query=query, a=five, b=five)
    x, key = np.asarray(query.a.x[:6]), jax.random.key(1)
    column = found.sample(key, x, t[:6])
    np.testing.assert_array_equal(np.asarray(query.b.t)[column], t[:6])
    for unknown in (None, np.zeros(6, int)):
        assert (found.sample(key, x, unknown) == -1).all()
        assert (found.partners(x, unknown)[1] == -1).all()
        prediction = found.predict(x, unknown, y=query.b.x)
        assert np.isnan(np.asarray(prediction.values)).all()
        assert np.asarray(prediction.mixed).all()


@pytest.mark.parametrize("kind", [np.uint8, np.uint64, np.int16, list])
def test_codes_of_any_integers(alignment, kind):
    x, _ = new()
    t = np.array([0, 1, 2, 3, 0, 1, 3])  # b does not have 3
    given = t.tolist() if kind is list else t.astype(kind)
    key = jax.random.key(4)
    np.testing.assert_array_equal(alignment.sample(key, x, given), alignment.sample(key, x, t))
    np.testing.assert_array_equal(matched_codes(np.array([0, 5], np.uint8), 2, np.r_[[1] * 5, [0] * 251]), [0, -1])


def test_no_samples_and_no_values(data, alignment):
    x, t = new()
    for none in (t[:0], []):
        assert alignment.sample(jax.random.key(0), x[:0], none).shape == (0,)
        assert alignment.predict(x[:0], none, y=data.b.x).values.shape == (0, 4)
        assert alignment.project(data.b.x, x=x[:0], t=none).shape == (0, 4)
        assert alignment.partners(x[:0], none, k=3)[0].shape == (0, 3)
    nothing = jnp.zeros((45, 0))
    assert alignment.project(nothing).shape == (64, 0)
    assert alignment.project(nothing, x=x, t=t).shape == (7, 0)
    assert alignment.coupling.apply(nothing).shape == (64, 0)
    assert alignment.predict(x, t, y=nothing).values.shape == (7, 0)
    other = dataclasses.replace(
        alignment, coupling=psa.blockwise(psa.snn)(alignment.scores_a, alignment.scores_b, alignment.groups)
    )
    with pytest.raises(ValueError, match="coupling: expected one of `sinkhorn`"):
        other.sample(jax.random.key(0), x[:0])


def test_partners_of_what_is_not_a_number(alignment):
    x, _ = new()
    x[2] = np.nan
    with np.errstate(invalid="ignore"):
        probability, column = alignment.partners(x, k=3)
    assert np.isfinite(probability).all()
    assert (probability[2] == 0).all()
    assert (column[2] == -1).all()


def test_batches_of_large_codes_are_none():
    found = new_samples.checked_batch(np.array([0, 2**32, 2**40 + 1, -(2**33)]), 4)
    assert found.tolist() == [0, -1, -1, -1]
    assert new_samples.checked_batch([], 0).shape == (0,)
    for kind in (jnp.int8, jnp.uint8, jnp.int16, jnp.uint32):
        assert new_samples.checked_batch(jnp.array([0, 5, 127], kind), 3).tolist() == [0, 5, 127]
    assert new_samples.checked_batch(jnp.array([1, 2**31 + 1], jnp.uint32), 2).tolist() == [1, -1]
    assert new_samples.checked_batch(jnp.array([-7, 3], jnp.int8), 2).tolist() == [-1, 3]


def test_sparse_arrays_and_tables_are_taken(data, alignment):
    x, t = new()
    y = np.where(np.asarray(data.b.x) > 0, data.b.x, 0)
    expected = alignment.predict(x, t, y=y)
    kinds = (sparse.csr_array, sparse.csc_matrix, sparse.coo_matrix, sparse.dia_matrix, sparse.bsr_array, pd.DataFrame)
    for kind in kinds:
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
