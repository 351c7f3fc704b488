"""What was done to features is kept, and done again to new cells."""

import re
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
    pytest.mark.filterwarnings("ignore:The 'future.infer_string' option"),
    pytest.mark.filterwarnings("ignore:The inplace keyword"),
    pytest.mark.filterwarnings("ignore:From 0.4 .update:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Variable names are not unique"),
]


def file(start, n, features, *, column="guide", drugs="xyz", counts=True, seed=0, kind=np.asarray):
    """An AnnData of cells with names of their own."""
    rng = np.random.default_rng(seed)
    x = rng.poisson(rng.gamma(2, 2, features), (n, features)) if counts else rng.standard_normal((n, features))
    obs = pd.DataFrame({column: [drugs[i % len(drugs)] for i in range(n)]}, index=[f"{start}{i}" for i in range(n)])
    var = pd.DataFrame(index=[f"{start}_g{i}" for i in range(features)])
    return anndata.AnnData(kind(x.astype(np.float32)), obs=obs, var=var)


def two(**settings):
    rna, protein = file("rna", 60, 30), file("protein", 40, 8, column="perturbation", drugs="yxw", counts=False)
    return rna, protein, io.from_anndata(rna, protein, treatment=("guide", "perturbation"), **settings)


# two files of different cells


def test_two_files_are_two_modalities():
    rna, protein, loaded = two(num_components=5)
    assert loaded.modalities == ("a", "b")
    assert loaded.treatments == ("w", "x", "y", "z")
    assert loaded.data.a.x.shape == (60, 5)
    assert (np.asarray(loaded.truth.pair) == -1).all()
    assert loaded.features_a == tuple(rna.var_names)
    assert loaded.num_features == (30, 8)
    assert loaded.preparations[0].components.shape == (30, 5)
    total = rna.X.sum(axis=1)
    expected = np.log1p(rna.X / total[:, None] * np.median(total))
    expected -= expected.mean(axis=0)
    size = np.linalg.svd(expected, compute_uv=False)[:5]
    np.testing.assert_allclose(np.linalg.norm(loaded.data.a.x, axis=0), size, rtol=1e-4)
    text = repr(loaded)
    assert "counts to a total of" in text
    assert "X as they are" in text
    raw = io.from_anndata(rna, protein, treatment=("guide", "perturbation"), as_is=True, num_components=None)
    np.testing.assert_array_equal(raw.data.a.x, rna.X)
    assert raw.preparations[0].counts
    assert raw.preparations[0].total is None


def test_one_column_name_for_both_files_and_what_they_are_called():
    loaded = io.from_anndata(
        file("r", 30, 6), file("p", 20, 4), treatment="guide", modalities=("rna", "protein"), layer=None
    )
    assert loaded.modalities == ("rna", "protein")
    assert [done.modality for done in loaded.preparations] == ["rna", "protein"]


def test_cells_of_one_name_are_pairs_and_that_is_said():
    one, other = file("c", 30, 6), file("c", 45, 4)
    with pytest.warns(
        psa.AlignmentWarning, match="30 cells have the same name in 'a' and in 'b' and are taken for pairs"
    ):
        loaded = io.from_anndata(one, other, treatment="guide")
    np.testing.assert_array_equal(loaded.truth.pair, np.arange(30))
    assert (np.asarray(io.from_anndata(one, other, treatment="guide", pairs=True).truth.pair) == np.arange(30)).all()
    assert (np.asarray(io.from_anndata(one, other, treatment="guide", pairs=False).truth.pair) == -1).all()


def test_treatments_are_chosen_and_small_ones_left_out_with_their_numbers():
    rna, protein = file("r", 61, 6, drugs="xyz"), file("p", 40, 4, drugs="xyyyyyyyzzzz")
    loaded = io.from_anndata(rna, protein, treatment="guide", treatments=["x", "y"])
    assert loaded.treatments == ("x", "y")
    assert loaded.left_out == (("z", 20, 12),)
    assert len(loaded.cells_a) == 41
    assert "1 treatments left out, of 20 cells of a and 12 of b" in repr(loaded)
    loaded = io.from_anndata(rna, protein, treatment="guide", min_cells=5)
    assert loaded.left_out == (("x", 21, 4),)
    assert loaded.treatments == ("y", "z")


def test_embeddings_are_taken_from_obsm_and_stay_as_they_are():
    rna, image = file("r", 30, 6), file("i", 20, 4)
    image.obsm["X_net"] = np.arange(60.0).reshape(20, 3)
    loaded = io.from_anndata(rna, image, treatment="guide", obsm=(None, "X_net"))
    np.testing.assert_array_equal(loaded.data.b.x, image.obsm["X_net"])
    assert loaded.features_b == ("X_net_0", "X_net_1", "X_net_2")
    np.testing.assert_array_equal(loaded.prepare(image[:4], "b"), image.obsm["X_net"][:4])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"treatment": "dose"}, r"treatment: no column 'dose' in obs of 'a' \[guide\]"),
        ({"treatment": ("guide", "dose")}, r"treatment: no column 'dose' in obs of 'b' \[guide\]"),
        ({"treatment": ("guide",)}, "treatment: expected one name, or one for each of two files"),
        ({"treatments": ["x", "q"]}, r"treatments: expected some of \[x, y, z\], got \[q\]"),
        ({"treatments": ["x"]}, r"treatments: expected two or more, got \[x\]"),
        ({"min_cells": 0}, "min_cells: expected at least 1, got 0"),
        ({"layer": "raw"}, r"layer: expected one of \[\] of 'a', got 'raw'"),
        ({"layer": "raw", "obsm": "X_net"}, "layer, obsm: expected one of them"),
        ({"obsm": "X_net"}, "modality 'a': expected one of .* in obsm, got 'X_net'"),
        ({"pairs": True}, "pairs: expected cells whose names are in both modalities, got none"),
        ({"modalities": ("a", "a")}, "modalities: expected two different names"),
    ],
)
def test_two_files_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        io.from_anndata(file("r", 30, 6), file("p", 20, 4), **{"treatment": "guide", **settings})


@pytest.mark.parametrize("settings", [{"obsm": "X_net"}, {"pairs": True}, {"treatment": ("guide", "drug")}])
def test_settings_of_two_files_are_refused_for_one(settings):
    with pytest.raises(ValueError, match=rf"{next(iter(settings))}: expected"):
        io.from_anndata(file("r", 30, 6), **{"treatment": "guide", **settings})


# new cells


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
@pytest.mark.parametrize("components", [None, 5])
@pytest.mark.parametrize("counts", [True, False])
def test_the_same_cells_are_prepared_to_the_same_numbers(kind, components, counts):
    rna = file("r", 60, 30, counts=counts, kind=kind)
    loaded = io.from_anndata(rna, file("p", 40, 8), treatment="guide", num_components=components)
    np.testing.assert_allclose(loaded.prepare(rna), loaded.data.a.x, atol=2e-5)
    turned = rna[:, ::-1].copy()
    np.testing.assert_allclose(loaded.prepare(turned[10:20]), loaded.data.a.x[10:20], atol=2e-5)
    done = loaded.preparations[0]
    np.testing.assert_allclose(done.apply(rna.X), loaded.data.a.x, atol=2e-5)
    np.testing.assert_allclose(done.apply(turned.to_df()), loaded.data.a.x, atol=2e-5)
    np.testing.assert_allclose(done.apply(turned), loaded.data.a.x, atol=2e-5)


def test_features_of_other_kinds_and_more_of_them_do_not_matter():
    mdata = file("c", 40, 12)
    mdata.var["feature_types"] = ["GEX"] * 8 + ["ADT"] * 4
    loaded = io.from_anndata(mdata, treatment="guide")
    rng = np.random.default_rng(3)
    order = rng.permutation(12)
    np.testing.assert_allclose(loaded.prepare(mdata[:, order], "b"), loaded.data.b.x, rtol=1e-6)
    alone = mdata[:, :8].copy()
    del alone.var["feature_types"]
    np.testing.assert_allclose(loaded.prepare(alone), loaded.data.a.x, rtol=1e-6)
    assert loaded.preparations[1].origin == io.Origin(feature_type="ADT")


def test_missing_features_are_refused_by_name_or_take_their_means():
    rna, protein, loaded = two(num_components=5)
    fewer = rna[:, [i for i in range(30) if i not in (3, 17)]].copy()
    with pytest.raises(ValueError, match=r"the 30 features of training, got none for 2 of them \(rna_g3, rna_g17\)"):
        loaded.prepare(fewer)
    with pytest.warns(psa.AlignmentWarning, match=r"2 of 30 features are missing and take their training means"):
        found = loaded.prepare(fewer, fill_missing=True)
    done = loaded.preparations[0]
    total = fewer.X.sum(axis=1)
    filled = np.tile(done.mean, (60, 1))
    filled[:, [i for i in range(30) if i not in (3, 17)]] = np.log1p(fewer.X / total[:, None] * done.total)
    np.testing.assert_allclose(found, (filled - done.mean) @ done.components, atol=1e-4)
    with pytest.warns(psa.AlignmentWarning):
        np.testing.assert_allclose(done.normalised(fewer, fill_missing=True), filled, rtol=1e-4)
    with pytest.raises(ValueError, match="got none for 30 of them"):
        loaded.prepare(protein, fill_missing=True)


def test_names_that_occur_twice_are_taken_by_their_place_only():
    rna = file("r", 30, 6)
    rna.var_names = ["g", "g", "h", "i", "j", "k"]
    loaded = io.from_anndata(rna, file("p", 20, 4), treatment="guide")
    np.testing.assert_allclose(loaded.prepare(rna), loaded.data.a.x, rtol=1e-6)
    with pytest.raises(ValueError, match=r"some names of the file occur twice"):
        loaded.prepare(rna[:, ::-1].copy())


def test_other_numbers_than_in_training_are_refused_or_noted():
    rna, protein, loaded = two()
    logged = rna.copy()
    logged.X = np.log1p(logged.X)
    with pytest.raises(ValueError, match="modality 'a': expected counts in X, as in training, got other numbers"):
        loaded.prepare(logged)
    rounded = protein.copy()
    rounded.X = np.abs(np.rint(3 * rounded.X))
    with pytest.warns(psa.AlignmentWarning, match="X holds counts, and did not in training"):
        loaded.prepare(rounded, "b")
    logged.X[3, 1] = np.nan
    with pytest.raises(ValueError, match="expected finite features"):
        loaded.prepare(logged)
    with pytest.raises(ValueError, match="side: expected 'a' or 'b', got 'c'"):
        loaded.prepare(rna, "c")
    with pytest.raises(ValueError, match=r"expected the 30 features of training in their order, got 7"):
        loaded.preparations[0].apply(np.ones((3, 7)))


def test_layers_that_are_absent_are_named():
    rna, protein = file("r", 30, 6), file("p", 20, 4)
    for adata in (rna, protein):
        adata.layers["raw"] = adata.X.copy()
    loaded = io.from_anndata(rna, protein, treatment="guide", layer="raw")
    assert str(loaded.preparations[0].origin) == "layers['raw']"
    del rna.layers["raw"]
    with pytest.raises(ValueError, match=re.escape("layer: expected one of [] of 'a', got 'raw'")):
        loaded.prepare(rna)


def test_shuffling_keeps_preparations():
    rna, protein, loaded = two()
    assert io.shuffle(jax.random.key(0), loaded).preparations == loaded.preparations


def test_a_matrix_that_is_no_counts_is_left_alone_whatever_layers_there_are():
    rna, protein = file("r", 30, 6), file("p", 20, 4)
    rna.layers["counts"] = rna.X.copy()
    rna.X = np.log1p(rna.X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = io.from_anndata(rna, protein, treatment="guide")
    np.testing.assert_array_equal(loaded.data.a.x, rna.X)


def test_entries_that_are_stored_in_parts_are_one_number():
    rna, protein = file("r", 30, 6), file("p", 20, 4)
    expected = io.from_anndata(rna, protein, treatment="guide").data.a.x
    whole = sparse.csr_matrix(rna.X)
    halves = [np.repeat(part, 2) for part in (whole.data / 2, whole.indices)]
    rna.X = sparse.csr_matrix((*halves, 2 * whole.indptr), shape=whole.shape)
    np.testing.assert_allclose(io.from_anndata(rna, protein, treatment="guide").data.a.x, expected, rtol=1e-6)
