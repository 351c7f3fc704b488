"""Matrices that stay in their file give what those in memory give, and are never read as a whole."""

import warnings

import jax
import numpy as np
import pytest
from scipy import sparse

import psa_jax as psa
from psa_jax import io
from psa_jax.data import components, rows
from psa_jax.io import stored

anndata = pytest.importorskip("anndata")
mudata = pytest.importorskip("mudata")
pd = pytest.importorskip("pandas")

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:The 'future.infer_string' option"),
    pytest.mark.filterwarnings("ignore:The inplace keyword"),
    pytest.mark.filterwarnings("ignore:Writing zarr v2"),
    pytest.mark.filterwarnings("ignore:Cannot join columns"),
]
KINDS = {"dense": np.asarray, "csr": sparse.csr_matrix, "csc": sparse.csc_matrix}
LEARNER = psa.Learner(psa.linear(4), members=1, folds=3, training=psa.Training(epochs=2))


def file(start, n, features, kind, seed=0):
    """Treatment w is in the first file only."""
    rng = np.random.default_rng(seed)
    drug = [("xyzw" if start == "r" else "xyz")[i % (4 if start == "r" else 3)] for i in range(n)]
    x = rng.poisson(2 + 3 * np.eye(4, features)[["xyzw".index(d) for d in drug]]).astype(np.float32)
    obs = pd.DataFrame({"guide": drug}, index=[f"{start}{i}" for i in range(n)])
    var = pd.DataFrame({"symbol": "s"}, index=[f"{start}_g{i}" for i in range(features)])
    return anndata.AnnData(kind(x), obs=obs, var=var, layers={"raw": kind(x)})


def backed(path):
    return anndata.read_h5ad(path, backed="r")


@pytest.fixture(autouse=True)
def a_few_rows_at_a_time(monkeypatch):
    """And a Krylov space of all but few features, as of large matrices."""
    monkeypatch.setattr(rows, "CHUNK", 200)
    monkeypatch.setattr(components, "EXACT", 5e3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["backed", "h5ad", "zarr"])
@pytest.mark.parametrize("layer", [None, "raw"])
def test_features_of_a_file_are_those_in_memory(tmp_path, monkeypatch, kind, way, layer):
    rna, protein = file("r", 70, 20, KINDS[kind]), file("p", 50, 6, KINDS[kind], seed=1)
    settings = {"treatment": "guide", "layer": layer, "num_components": 5, "treatments": ["x", "y", "z"]}
    expected = io.from_anndata(rna, protein, **settings)
    there = []
    for name, adata in (("rna", rna), ("protein", protein), ("turned", rna[:, ::-1].copy())):
        path = tmp_path / f"{name}.{'zarr' if way == 'zarr' else 'h5ad'}"
        (adata.write_zarr if way == "zarr" else adata.write_h5ad)(path)
        there.append(backed(path) if way == "backed" else stored.open_stored(path))

    def refuse(self):
        raise AssertionError("read as a whole")

    if kind != "dense":
        monkeypatch.setattr(type(there[0].X), "to_memory", refuse)
    found = io.from_anndata(*there[:2], **settings)
    assert found.left_out == expected.left_out == (("w", 17, 0),)
    assert [done.summary() for done in found.preparations] == [done.summary() for done in expected.preparations]
    np.testing.assert_allclose(found.data.a.x, expected.data.a.x, atol=1e-4)
    np.testing.assert_allclose(found.data.b.x, expected.data.b.x, atol=1e-4)
    np.testing.assert_allclose(found.prepare(there[0]), expected.prepare(rna), atol=1e-4)
    np.testing.assert_allclose(found.prepare(there[2]), expected.prepare(rna), atol=1e-4)
    normalised = (x.toarray() if sparse.issparse(x) else x for x in (
        found.preparations[1].normalised(there[1]), expected.preparations[1].normalised(protein)))  # fmt: skip
    np.testing.assert_allclose(next(normalised), next(normalised), rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_imputed_from_files(tmp_path, kind):
    rna, protein = file("r", 60, 9, KINDS[kind]), file("p", 44, 6, KINDS[kind], seed=1)
    loaded = io.shuffle(jax.random.key(1), io.from_anndata(rna, protein, treatment="guide"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", psa.AlignmentWarning)
        alignment = psa.align(jax.random.key(0), loaded.data, a=LEARNER, b=LEARNER)
    rna.write_h5ad(tmp_path / "rna.h5ad")
    protein.write_h5ad(tmp_path / "protein.h5ad")
    there = backed(tmp_path / "rna.h5ad"), backed(tmp_path / "protein.h5ad")
    for features in ("all", 3):
        expected = io.impute(alignment, loaded, rna, protein, features=features)
        found = io.impute(alignment, loaded, *there, features=features)
        assert found.var_names.tolist() == expected.var_names.tolist()
        assert found.obs["psa_mixed"].sum() == 15
        np.testing.assert_allclose(found.X, expected.X, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.obsm["psa_scores"], expected.obsm["psa_scores"], atol=1e-4)
    new = io.impute_new(alignment, loaded.preparations[0], io.reference(loaded, there[1]), there[0], treatment="guide")
    np.testing.assert_allclose(new.X, io.impute(alignment, loaded, rna, protein).X, rtol=1e-3, atol=1e-3)


def test_modalities_of_a_backed_mudata(tmp_path):
    sides = {name: file("r", 40, d, sparse.csr_matrix, seed=d) for name, d in (("rna", 9), ("protein", 5))}
    mdata = mudata.MuData(sides)
    mdata.write_h5mu(tmp_path / "both.h5mu")
    expected = io.from_mudata(mdata, treatment="guide")
    found = io.from_mudata(mudata.read_h5mu(tmp_path / "both.h5mu", backed="r"), treatment="guide")
    np.testing.assert_allclose(found.data.a.x, expected.data.a.x, rtol=1e-5)
    np.testing.assert_array_equal(found.truth.pair, expected.truth.pair)


@pytest.mark.parametrize("value", [0.5, -1.0, np.nan])
def test_numbers_that_are_no_counts_are_found_in_any_part(tmp_path, value):
    rna = file("r", 40, 9, sparse.csr_matrix)
    rna.X[39, 8] = value
    rna.write_h5ad(tmp_path / "rna.h5ad")
    there, protein = backed(tmp_path / "rna.h5ad"), file("p", 30, 5, np.asarray)
    if np.isnan(value):
        with pytest.raises(ValueError, match="NaN"):
            io.from_anndata(there, protein, treatment="guide")
        return
    loaded = io.from_anndata(there, protein, treatment="guide")
    assert loaded.preparations[0].total is None
    np.testing.assert_array_equal(loaded.data.a.x, rna.X.toarray())


def test_what_is_large_is_told_by_its_size_in_memory(tmp_path, monkeypatch):
    rna = file("r", 40, 9, sparse.csr_matrix)
    mudata.MuData({"rna": rna, "protein": file("r", 40, 5, np.asarray)}).write_h5mu(tmp_path / "it.h5mu")
    rna.write_h5ad(tmp_path / "it.h5ad", compression="gzip")
    rna.write_zarr(tmp_path / "it.zarr")
    size = 2 * sum(part.nbytes for part in (rna.X.data, rna.X.indices, rna.X.indptr))
    for name, much in (("it.h5ad", size), ("it.zarr", size), ("it.h5mu", size + 2 * 40 * 5 * 4)):
        monkeypatch.setattr(stored, "LARGE", much - 1)
        assert stored.is_large(tmp_path / name)
        monkeypatch.setattr(stored, "LARGE", much)
        assert not stored.is_large(tmp_path / name)
