"""Imputed values in real feature names, for the cells that were aligned, for the others, and for new ones."""

import dataclasses
import warnings

import jax
import numpy as np
import pytest
from scipy import sparse

import psa_jax as psa
from psa_jax import io

anndata = pytest.importorskip("anndata")
pd = pytest.importorskip("pandas")

pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'future.infer_string' option"),
    pytest.mark.filterwarnings("ignore:The inplace keyword"),
    pytest.mark.filterwarnings("ignore:ImplicitModificationWarning"),
]
QUICK = psa.Learner(psa.linear(4), members=1, folds=3, training=psa.Training(epochs=2))


def file(start, n, features, drugs, seed=0):
    rng = np.random.default_rng(seed)
    drug = [drugs[i % len(drugs)] for i in range(n)]
    rate = 3 + 4 * np.eye(5, features)[["xyzwv".index(d) for d in drug]]
    obs = pd.DataFrame({"guide": drug, "plate": 7}, index=[f"{start}{i}" for i in range(n)])
    var = pd.DataFrame({"symbol": "s"}, index=[f"{start}_g{i}" for i in range(features)])
    return anndata.AnnData(sparse.csr_matrix(rng.poisson(rate).astype(np.float32)), obs=obs, var=var)


@pytest.fixture(scope="module")
def made():
    """Treatment w is in rna only, v in protein only; one cell of rna has no label."""
    rna, protein = file("r", 60, 9, "xyzw"), file("p", 44, 6, "xyzv", seed=1)
    rna.obs["guide"] = rna.obs["guide"].where(np.arange(60) != 5)
    loaded = io.from_anndata(rna, protein, treatment="guide", modalities=("rna", "protein"), drop_unlabelled=True)
    loaded = io.shuffle(jax.random.key(1), loaded)
    learner = psa.Learner(psa.linear(5), members=1, folds=3, training=psa.Training(epochs=2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", psa.AlignmentWarning)
        alignment = psa.align(jax.random.key(0), loaded.data, a=learner, b=learner)
    return rna, protein, loaded, alignment


def test_cells_of_a_get_features_of_b_in_their_names_and_units(made, tmp_path):
    rna, protein, loaded, alignment = made
    out = io.impute(alignment, loaded, rna, protein)
    assert out.obs_names.tolist() == rna.obs_names.tolist()
    assert out.var_names.tolist() == protein.var_names.tolist()
    assert {"guide", "plate", "psa_mixed"} <= set(out.obs)
    assert "symbol" in out.var
    total = np.asarray(protein.X.sum(axis=1))
    y = np.log1p(protein.X.toarray() / total * np.median(total))
    order = protein.obs_names.get_indexer(list(loaded.cells_b))
    rows = rna.obs_names.get_indexer(list(loaded.cells_a))
    expected = np.asarray(alignment.project(y[order].astype(np.float32)))
    there = np.isfinite(expected).all(axis=1)
    np.testing.assert_allclose(out.X[rows][there], expected[there], rtol=1e-4, atol=1e-5)
    mixed = out.obs["psa_mixed"].to_numpy()
    np.testing.assert_array_equal(mixed, (np.arange(60) % 4 == 3) | (np.arange(60) == 5))
    assert np.isfinite(out.X).all()
    assert (out.layers["std"] > 0).all()
    np.testing.assert_allclose(out.obsm["psa_scores"][rows], alignment.scores_a)
    assert out.uns["psa"]["mixed"] == mixed.sum()
    assert "counts to a total of" in out.uns["psa"]["unit"]
    out.write_h5ad(tmp_path / "imputed.h5ad")
    back = anndata.read_h5ad(tmp_path / "imputed.h5ad")
    np.testing.assert_array_equal(back.X, out.X)
    assert list(back.uns["psa"]["treatments"]) == ["x", "y", "z"]


def test_cells_that_a_matcher_leaves_over_are_missing_and_not_mixed(made):
    rna, protein, loaded, alignment = made
    law = psa.blockwise(psa.assignment)(alignment.scores_a, alignment.scores_b, alignment.groups)
    other = dataclasses.replace(alignment, projection=dataclasses.replace(alignment.projection, coupling=law))
    out = io.impute(other, loaded, rna, protein)
    assert not out.obs["psa_mixed"].any()
    missing = ~np.isfinite(out.X).all(axis=1)
    assert out.uns["psa"]["mixed"] == 0
    assert out.uns["psa"]["missing"] == missing.sum() > alignment.coupling.unmatched_rows


def test_the_other_way(made):
    rna, protein, loaded, alignment = made
    out = io.impute(alignment.T, loaded.T, protein, rna)
    assert out.shape == (44, 9)
    assert out.obs["psa_mixed"].sum() == 11
    assert loaded.T.T.cells_a == loaded.cells_a
    assert repr(loaded.T.T) == repr(loaded)


def test_features_are_chosen_by_name_or_by_how_much_they_vary(made):
    rna, protein, loaded, alignment = made
    every = io.impute(alignment, loaded, rna, protein)
    some = io.impute(alignment, loaded, rna, protein, features=["p_g4", "p_g1"])
    np.testing.assert_allclose(some.X, every[:, ["p_g4", "p_g1"]].X, rtol=1e-5)
    most = io.reference(loaded, protein, features=3)
    variance = io.reference(loaded, protein).X.toarray().var(axis=0)
    assert set(most.var_names) == {f"p_g{i}" for i in np.argsort(-variance)[:3]}
    assert sparse.issparse(most.X)
    assert io.reference(loaded, protein, features=99).n_vars == 6
    for wrong in (["nope"], "hvg", 0, [], True):
        with pytest.raises(ValueError, match="features: expected"):
            io.impute(alignment, loaded, rna, protein, features=wrong)


def test_new_cells_are_imputed_by_what_was_kept(made, tmp_path):
    rna, protein, loaded, alignment = made
    io.save_preparations(tmp_path / "preparations.npz", loaded.preparations)
    back = io.load_preparations(tmp_path / "preparations.npz")
    assert [repr(done) for done in back] == [repr(done) for done in loaded.preparations]
    assert back[0].features == loaded.features_a
    new = file("n", 20, 9, "xyzwq"[:4], seed=3)
    new.var_names = rna.var_names
    new.obs.loc["n1", "guide"] = None
    out = io.impute_new(alignment, back[0], io.reference(loaded, protein), new[:, ::-1].copy(), treatment="guide")
    assert out.obs["psa_mixed"].sum() == 6
    x = loaded.prepare(new)
    y = io.reference(loaded, protein).X.toarray()
    expected = alignment.project(y, x=x[:1], t=np.array([loaded.treatments.index("x")]))
    np.testing.assert_allclose(out.X[:1], expected, rtol=1e-4)
    blind = io.impute_new(alignment, back[0], io.reference(loaded, protein), new)
    assert blind.obs["psa_mixed"].all()
    np.testing.assert_allclose(blind.X[1], out.X[1], rtol=1e-4)


def test_other_files_are_refused(made, tmp_path):
    rna, protein, loaded, alignment = made
    with pytest.raises(ValueError, match=r"a: expected the 59 cells that were loaded, got none for 59 \(r0, r1"):
        io.impute(alignment, loaded, protein, protein)
    with pytest.raises(ValueError, match=r"adata: expected the 44 cells that were loaded, got none for 44"):
        io.impute(alignment, loaded, rna, rna)
    with pytest.raises(ValueError, match="alignment: expected one of"):
        io.impute(alignment, loaded.T, protein, rna)
    with pytest.raises(ValueError, match="no column 'dose'"):
        io.impute_new(alignment, loaded.preparations[0], io.reference(loaded, protein), rna, treatment="dose")
    io.save(tmp_path / "other.npz", np.ones(3))
    with pytest.raises(ValueError, match="expected a file made by save_preparations"):
        io.load_preparations(tmp_path / "other.npz")
