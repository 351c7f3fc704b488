"""What is written back keeps all that was in the files, and goes through theirs."""

import warnings

import jax
import numpy as np
import pytest
from scipy import sparse

import psa_jax as psa
from psa_jax import io

anndata = pytest.importorskip("anndata")
mudata = pytest.importorskip("mudata")
pd = pytest.importorskip("pandas")

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:The 'future.infer_string' option"),
    pytest.mark.filterwarnings("ignore:The inplace keyword"),
]
LEARNER = psa.Learner(psa.linear(4), members=1, folds=3, training=psa.Training(epochs=2))


def file(start, n, features, drugs, seed=0):
    """An AnnData with something in every place."""
    rng = np.random.default_rng(seed)
    drug = [drugs[i % len(drugs)] for i in range(n)]
    x = rng.poisson(3 + 4 * np.eye(5, features)[["xyzwv".index(d) for d in drug]]).astype(np.float32)
    obs = pd.DataFrame({"guide": drug, "plate": np.arange(n)}, index=[f"{start}{i}" for i in range(n)])
    var = pd.DataFrame({"symbol": "s"}, index=[f"{start}_g{i}" for i in range(features)])
    near = sparse.csr_matrix(np.eye(n, dtype=np.float32))
    return anndata.AnnData(
        sparse.csr_matrix(x), obs=obs, var=var, layers={"twice": sparse.csr_matrix(2 * x)}, obsm={"X_pca": x[:, :2]},
        varm={"PCs": np.ones((features, 2))}, obsp={"near": near}, uns={"log": {"base": 2}},
    )  # fmt: skip


def aligned(*files, **settings):
    loaded = io.shuffle(jax.random.key(1), io.from_anndata(*files, treatment="guide", **settings))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", psa.AlignmentWarning)
        return loaded, psa.align(jax.random.key(0), loaded.data, a=LEARNER, b=LEARNER)


@pytest.fixture(scope="module")
def made():
    """Treatment w is in a only; v, which both have, is left out."""
    rna, protein = file("r", 60, 9, "xyzwv"), file("p", 44, 6, "xyzv", seed=1)
    named = {"modalities": ("rna", "protein"), "treatments": ["x", "y", "z", "w"]}
    return rna, protein, *aligned(rna, protein, **named)


@pytest.mark.parametrize("stored", [False, True])
def test_a_mudata_keeps_everything_and_adds_the_alignment(made, tmp_path, stored):
    rna, protein, loaded, alignment = made
    columns = ["guide", "plate"]
    given = rna, protein
    if stored:
        for name, adata in (("rna", rna), ("protein", protein)):
            adata.write_h5ad(tmp_path / f"{name}.h5ad")
        given = [anndata.read_h5ad(tmp_path / f"{name}.h5ad", backed="r") for name in ("rna", "protein")]
    mdata = io.to_mudata(alignment, loaded, *given)
    mdata.write_h5mu(tmp_path / "it.h5mu")
    back = mudata.read_h5mu(tmp_path / "it.h5mu")
    for name, adata, law, own in (("rna", rna, alignment, loaded), ("protein", protein, alignment.T, loaded.T)):
        found = back.mod[name]
        assert found.obs_names.tolist() == adata.obs_names.tolist()
        there = (found.X, adata.X), (found.layers["twice"], 2 * adata.X), (found.obsp["near"], adata.obsp["near"])
        for mine, theirs in there:
            np.testing.assert_array_equal(mine.toarray(), theirs.toarray())
        np.testing.assert_array_equal(found.obsm["X_pca"], adata.obsm["X_pca"])
        np.testing.assert_array_equal(found.varm["PCs"], adata.varm["PCs"])
        assert found.uns["log"]["base"] == 2
        assert found.obs["plate"].tolist() == adata.obs["plate"].tolist()
        assert found.obs["guide"].tolist() == adata.obs["guide"].tolist()
        assert found.var["symbol"].tolist() == adata.var["symbol"].tolist()
        rows = adata.obs_names.get_indexer(list(own.cells_a))
        np.testing.assert_allclose(found.obsm["psa_scores"][rows], law.scores_a)
        np.testing.assert_allclose(found.obsm[f"psa_{own.modalities[1]}"][rows], law.project(own.data.b.x), rtol=1e-5)
        out = (adata.obs["guide"] == "v").to_numpy()
        assert np.isnan(found.obsm["psa_scores"][out]).all()
        assert set(found.obs["psa_status"][out]) == {"left out"}
        assert found.obs["treatment"][~out].astype(str).tolist() == adata.obs["guide"][~out].tolist()
        assert "counts to a total of" in found.uns["psa"]["preparation"]
        assert len(found.uns["psa"]["verdict"])
        assert list(adata.obs) == columns  # what was given stays as it is
        assert set(adata.obsm) == {"X_pca"}
        assert "psa" not in adata.uns


def test_one_file_becomes_a_modality_of_each_kind_of_feature():
    both = file("c", 40, 15, "xyzw")
    both.var["feature_types"] = ["GEX"] * 9 + ["ADT"] * 6
    loaded = io.from_anndata(both, treatment="guide")
    data = loaded.data
    groups = psa.group(data.a.t, data.b.t, 4)
    coupling = psa.blockwise(psa.match.class_mean)(data.a.x, data.b.x, groups)
    alignment = psa.Alignment(coupling, groups, data.a.x, data.b.x, *6 * [None])
    mdata = io.to_mudata(alignment, loaded, both, both, treatment="guide")
    assert mdata.mod["GEX"].var_names.tolist() == [f"c_g{i}" for i in range(9)]
    assert mdata.mod["ADT"].shape == (40, 6)
    assert "treatment" not in mdata.mod["ADT"].obs
    assert mdata.n_obs == 40
    assert set(mdata.mod["GEX"].obsm) >= {"psa_scores", "psa_ADT"}
    assert "psa_scores" not in both.obsm


def test_a_coupling_as_an_anndata_of_cells_by_cells(made, tmp_path):
    _, _, loaded, alignment = made
    law = io.to_anndata(alignment, loaded, 5, treatment="guide")
    assert law.shape == (len(loaded.cells_a), len(loaded.cells_b))
    assert law.obs_names.tolist() == list(loaded.cells_a)
    assert law.var_names.tolist() == list(loaded.cells_b)
    law.write_h5ad(tmp_path / "law.h5ad")
    back = anndata.read_h5ad(tmp_path / "law.h5ad")
    np.testing.assert_allclose(back.X.toarray(), alignment.coupling.to_sparse(5).toarray())
    cell, partner = back.X.nonzero()
    assert (back.obs["guide"].astype(str).to_numpy()[cell] == back.var["guide"].astype(str).to_numpy()[partner]).all()
    assert set(back.obs["psa_status"][back.obs["guide"] == "w"]) == {"missing in b"}
    assert (back.X[(back.obs["guide"] == "w").to_numpy()].nnz) == 0


def test_other_cells_are_refused(made):
    rna, protein, loaded, alignment = made
    with pytest.raises(ValueError, match="a: expected the 48 cells that were loaded, got none for 48"):
        io.to_mudata(alignment, loaded, protein, protein)
    with pytest.raises(ValueError, match=r"b: expected an anndata\.AnnData, got str"):
        io.to_mudata(alignment, loaded, rna, "protein.h5ad")
    with pytest.raises(ValueError, match="alignment: expected one of"):
        io.to_anndata(alignment, loaded.T)
    with pytest.raises(ValueError, match="k: expected"):
        io.to_anndata(alignment, loaded, 0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # scanpy's and numba's own
def test_scanpy_goes_on_with_scores(made, tmp_path):
    rna, protein, loaded, alignment = made
    io.impute(alignment, loaded, rna, protein).write_h5ad(tmp_path / "imputed.h5ad")
    import scanpy

    imputed = scanpy.read_h5ad(tmp_path / "imputed.h5ad")
    scanpy.pp.neighbors(imputed, n_neighbors=5, use_rep="psa_scores")
    scanpy.tl.umap(imputed, maxiter=5)
    assert imputed.obsm["X_umap"].shape == (60, 2)
    assert np.isfinite(imputed.obsm["X_umap"]).all()
    scanpy.tl.rank_genes_groups(imputed, "guide", groups=["x"])
    assert set(imputed.uns["rank_genes_groups"]["names"]["x"]) == set(protein.var_names)
