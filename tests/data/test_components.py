"""Principal components against NumPy's own, whole and through a Krylov space, and counts against scanpy's formula."""

import numpy as np
import pytest
from scipy import sparse

from psa_jax.data import components, counts, rows
from psa_jax.data.components import principal_components, scores

KINDS = {
    "dense": np.asarray,
    "csr": sparse.csr_array,
    "integers": lambda x: sparse.csr_array(np.rint(8 * x).astype(int)),
}


def low_rank(n=120, d=90, rank=6):
    """A few strong directions in noise, and zeros."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, rank)) * np.arange(rank + 1, 1, -1) @ rng.standard_normal((rank, d))
    return (np.where(rng.random((n, d)) < 0.3, 0, x + 5) + 0.1 * rng.standard_normal((n, d))).astype(np.float32)


@pytest.fixture(params=["whole", "krylov"])
def way(request, monkeypatch):
    """Both ways, and a few rows at a time."""
    monkeypatch.setattr(rows, "CHUNK", 700)
    if request.param == "krylov":
        monkeypatch.setattr(components, "EXACT", 0)
    return request.param


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "d"), [(120, 90), (90, 120)])
def test_components_are_those_of_the_centred_matrix(kind, n, d, way):
    x = KINDS[kind](low_rank(n, d))
    dense = np.asarray(x.toarray() if sparse.issparse(x) else x, np.float64)
    mean, found = principal_components(x, 4)
    _, size, expected = np.linalg.svd(dense - dense.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(mean, dense.mean(axis=0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.T @ found, np.eye(4), atol=1e-5)
    np.testing.assert_allclose(np.abs(found.T @ expected[:4].T), np.eye(4), atol=1e-5 if way == "whole" else 2e-3)
    np.testing.assert_allclose(
        np.linalg.norm(scores(x, mean, found), axis=0), size[:4], rtol=1e-5 if way == "whole" else 1e-4
    )
    assert (np.take_along_axis(found, np.abs(found).argmax(axis=0)[None], axis=0) > 0).all()
    again = principal_components(x, 4)[1]
    assert found.tobytes() == again.tobytes()


def test_constant_features_and_too_many_components_are_refused(way):
    with pytest.raises(ValueError, match="expected features that vary"):
        principal_components(np.ones((30, 20), np.float32), 3)
    with pytest.raises(ValueError, match=r"num_components: expected 1 to 19 for 30 training cells .*, got 20"):
        principal_components(np.ones((30, 20), np.float32), 20)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float32])
@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array])
def test_counts_are_brought_to_one_total_and_logged(dtype, kind, way):
    x = np.random.default_rng(0).poisson(2, (50, 8)).astype(dtype)
    x[3] = 0
    found = counts.survey(kind(x))
    total = found.usual_total
    assert found.counts
    sums = x.sum(axis=1, dtype=np.float64)
    assert total == np.median(sums[sums > 0])
    found = rows.whole(rows.rows_of(kind(x)).map(lambda part: counts.log_normalised(part, total)))
    found = found.toarray() if sparse.issparse(found) else found
    expected = np.log1p(x / np.where(sums > 0, sums, 1)[:, None] * total)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array])
@pytest.mark.parametrize("value", [-1.0, 0.5, np.nan, np.inf])
def test_other_numbers_are_no_counts(kind, value):
    x = np.ones((5, 3), np.float32)
    x[4, 1] = value
    assert not counts.survey(kind(x)).counts
    assert counts.survey(kind(x)).finite == np.isfinite(value)
    assert not counts.survey(kind(np.zeros((5, 3)))).something
    assert not counts.survey(kind(np.ones((5, 3), bool))).counts
