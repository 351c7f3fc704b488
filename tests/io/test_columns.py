"""Columns of obs beside that of the treatment: read with the cells, refused by name, kept for new cells."""

import jax
import numpy as np
import pytest

import psa_jax as psa
from psa_jax import io

anndata = pytest.importorskip("anndata")
mudata = pytest.importorskip("mudata")
pd = pytest.importorskip("pandas")

pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'future.infer_string' option"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:The inplace keyword"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
QUICK = psa.Learner(psa.linear(3), members=1, folds=3, training=psa.Training(epochs=2))


def file(start, n, features, *, column="plate", seed=0):
    rng = np.random.default_rng(seed)
    drug, plate = np.arange(n) % 3, np.arange(n) // 3 % 2
    x = rng.normal(size=(n, features)) + 2 * np.eye(3, features)[drug] + 9 * plate[:, None]
    obs = pd.DataFrame(
        {
            "guide": np.array(list("xyz"))[drug],
            column: plate + 1,
            "donor": np.array(["old", "new"])[np.arange(n) % 5 // 3],
        },
        index=[f"{start}{i}" for i in range(n)],
    )
    var = pd.DataFrame(index=[f"{start}_g{i}" for i in range(features)])
    return anndata.AnnData(x.astype(np.float32), obs=obs, var=var)


@pytest.fixture(scope="module")
def made():
    rna, protein = file("r", 48, 5), file("p", 36, 4, column="well", seed=1)
    loaded = io.from_anndata(rna, protein, treatment="guide", columns=io.Columns(within=("plate", "well")))
    loaded = io.shuffle(jax.random.key(1), loaded)
    return rna, protein, loaded, psa.align(jax.random.key(0), loaded.data, a=QUICK, b=QUICK)


def test_cells_are_read_with_their_plates(made):
    rna, protein, loaded, _ = made
    assert loaded.treatments == ("x, 1", "x, 2", "y, 1", "y, 2", "z, 1", "z, 2")
    for cells, adata, side, column in (
        (loaded.cells_a, rna, loaded.data.a, "plate"),
        (loaded.cells_b, protein, loaded.data.b, "well"),
    ):
        obs = adata.obs.loc[list(cells)]
        told = [f"{guide}, {plate}" for guide, plate in zip(obs["guide"], obs[column], strict=True)]
        assert [loaded.treatments[k] for k in np.asarray(side.t)] == told
    assert loaded.T.data.strata == loaded.data.strata


def test_every_container_has_them():
    rna, protein = file("c", 48, 5), file("c", 48, 4)
    columns = io.Columns(within="plate")
    two = io.from_anndata(rna, protein, treatment="guide", pairs=True, columns=columns)
    both = io.from_mudata(
        mudata.MuData({"rna": rna, "protein": protein}), treatment="guide", pairs=True, columns=columns
    )
    one = rna.copy()
    one.obsm["X_rna"], one.obsm["X_protein"] = rna.X, protein.X
    one = io.from_anndata(one, treatment="guide", modalities=("X_rna", "X_protein"), columns=columns)
    for loaded in (both, one):
        assert loaded.data.strata == two.data.strata
        np.testing.assert_array_equal(loaded.data.a.t, two.data.a.t)
        np.testing.assert_array_equal(loaded.data.b.t, two.data.b.t)


def test_imputed_values_and_tables_know_plates(made):
    rna, protein, loaded, alignment = made
    out = io.impute(alignment, loaded, rna, protein)
    plate = rna.obs["plate"].to_numpy()
    np.testing.assert_allclose(out.X[plate == 1].mean(), 0.5, atol=0.7)
    np.testing.assert_allclose(out.X[plate == 2].mean(), 9.5, atol=0.7)
    assert list(out.uns["psa"]["treatments"]) == ["x", "y", "z"]
    obs = io.to_mudata(alignment, loaded, treatment="guide").mod["b"].obs
    assert obs["psa_within"].tolist() == protein.obs["well"].loc[obs.index].astype(str).tolist()
    assert obs["guide"].tolist() == protein.obs["guide"].loc[obs.index].tolist()


def test_new_cells_name_their_plate_or_are_mixed_and_marked(made):
    _, protein, loaded, alignment = made
    source, new = io.reference(loaded, protein), file("n", 12, 5, column="batch", seed=3)
    new.var_names = loaded.features_a
    known = io.impute_new(alignment, loaded.preparations[0], source, new, treatment="guide", within="batch")
    plate = new.obs["batch"].to_numpy()
    assert known.X[plate == 1].mean() < 2
    assert known.X[plate == 2].mean() > 7
    assert not known.obs["psa_mixed"].any()
    new.obs["batch"] = "7"
    other = io.impute_new(alignment, loaded.preparations[0], source, new, treatment="guide", within="batch")
    assert other.obs["psa_mixed"].all()
    with pytest.raises(ValueError, match="within: no column 'day' in obs"):
        io.impute_new(alignment, loaded.preparations[0], source, new, treatment="guide", within="day")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (lambda: io.Columns(within="day"), r"within: no column 'day' in obs of 'a' \[guide, plate, donor\]"),
        (lambda: io.Columns(within=("plate", "day")), "within: no column 'day' in obs of 'b'"),
        (lambda: io.Columns(within=("plate", "well", "day")), "within: expected one column of obs, or one for each"),
        (lambda: io.Columns(within=("plate", None)), "within: expected a column in each of two files"),
        (lambda: io.Columns(within=3), "within: expected one column of obs"),
    ],
)
def test_columns_that_are_none_are_refused(columns, message):
    with pytest.raises(ValueError, match=message):
        io.from_anndata(file("r", 9, 3), file("p", 9, 3, column="well"), treatment="guide", columns=columns())


def test_one_file_has_one_column():
    one = file("r", 12, 3)
    one.obsm["X_a"], one.obsm["X_b"] = one.X, one.X
    with pytest.raises(ValueError, match="within: expected one column of obs for one file, got 'plate' and 'well'"):
        io.from_anndata(one, treatment="guide", modalities=("X_a", "X_b"), columns=io.Columns(within=("plate", "well")))


def test_cells_without_a_plate_raise_or_are_left_out_and_pairs_share_theirs():
    rna, protein = file("c", 24, 5), file("c", 24, 4)
    rna.obs["plate"] = rna.obs["plate"].astype(object).where(np.arange(24) != 3)
    columns = io.Columns(within="plate")
    with pytest.raises(ValueError, match="expected a 'plate' for every cell, got none for 1 of 24"):
        io.from_anndata(rna, protein, treatment="guide", pairs=True, columns=columns)
    loaded = io.from_anndata(rna, protein, treatment="guide", pairs=True, drop_unlabelled=True, columns=columns)
    assert loaded.unlabelled == (1, 0)
    protein.obs["plate"] = 3 - protein.obs["plate"]
    with pytest.raises(ValueError, match="expected one 'plate' for each cell that is in both by name"):
        io.from_anndata(rna, protein, treatment="guide", pairs=True, drop_unlabelled=True, columns=columns)


def test_batches_are_read_kept_and_asked_of_new_cells():
    rna, protein = file("r", 48, 5), file("p", 36, 4, seed=1)
    rna.obs["guide"] = rna.obs["guide"].astype(object).where(np.arange(48) != 3)
    columns = io.Columns(batch=("donor", None))
    loaded = io.from_anndata(rna, protein, treatment="guide", drop_unlabelled=True, columns=columns)
    loaded = io.shuffle(jax.random.key(1), loaded)
    assert loaded.data.b.batch is None
    names = [loaded.data.batches[k] for k in np.asarray(loaded.data.a.batch)]
    assert names == rna.obs["donor"].loc[list(loaded.cells_a)].tolist()
    assert loaded.T.data.b.batch is loaded.data.a.batch
    alignment = psa.align(jax.random.key(0), loaded.data, a=QUICK, b=QUICK)
    out = io.impute(alignment, loaded, rna, protein)
    assert np.flatnonzero(out.obs["psa_new_batch"]).tolist() == [3]  # which was not aligned: nobody asked its donor
    source, new = io.reference(loaded, protein), file("n", 12, 5, seed=3)
    new.var_names = loaded.features_a
    new.obs["donor"] = new.obs["donor"].astype(object).where(np.arange(12) != 4, "third")
    known = io.impute_new(alignment, loaded.preparations[0], source, new, treatment="guide", batch="donor")
    assert np.flatnonzero(known.obs["psa_new_batch"]).tolist() == [4]
    other = io.impute_new(alignment, loaded.preparations[0], source, new, treatment="guide")
    assert other.obs["psa_new_batch"].all()
    changed = np.flatnonzero(np.abs(known.obsm["psa_scores"] - other.obsm["psa_scores"]).max(axis=1) > 1e-6)
    assert changed.tolist() == [i for i in range(12) if i != 4]
    with pytest.raises(ValueError, match="batch: no column 'day' in obs"):
        io.impute_new(alignment, loaded.preparations[0], source, new, batch="day")
    with pytest.raises(ValueError, match="batch: expected none, as the cells that were aligned had no batches"):
        io.impute_new(alignment.T, loaded.preparations[1], source, protein, batch="donor")


def test_both_modalities_may_have_batches_of_their_own():
    rna, protein = file("r", 48, 5), file("p", 36, 4, column="well", seed=1)
    protein.obs["well"] = "w" + protein.obs["well"].astype(str)
    columns = io.Columns(within="donor", batch=("plate", "well"))
    data = io.from_anndata(rna, protein, treatment="guide", columns=columns).data
    assert data.batches == ("1", "2", "w1", "w2")
    assert set(np.asarray(data.a.batch).tolist()) == {0, 1}
    assert set(np.asarray(data.b.batch).tolist()) == {2, 3}
    assert len(data.strata.names) == 2
