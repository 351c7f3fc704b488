import dataclasses
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import sparse

import psa_jax as psa
from psa_jax import io
from psa_jax.metrics.pairs import project

anndata = pytest.importorskip("anndata")
mudata = pytest.importorskip("mudata")
pd = pytest.importorskip("pandas")

pytestmark = [  # what pandas 3 says of anndata and mudata, and mudata 0.3 of 0.4
    pytest.mark.filterwarnings("ignore:The 'future.infer_string' option"),
    pytest.mark.filterwarnings("ignore:The inplace keyword"),
    pytest.mark.filterwarnings("ignore:From 0.4 .update:FutureWarning"),
]


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        if jnp.issubdtype(jnp.asarray(x).dtype if not hasattr(x, "dtype") else x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert np.asarray(x).dtype == np.asarray(y).dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.fixture
def tree():
    return {
        "w": jnp.array([[1.5, jnp.nan], [-jnp.inf, -0.0]]),
        "file": (jnp.arange(3, dtype=jnp.int8), jnp.asarray([1.25, 3.0], jnp.bfloat16)),
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(4, impl="rbg"), 2),
        "host": np.array([1.0, 1e-300]),
        "count": 7,
        "empty": jnp.zeros((0, 3)),
        "none": None,
        "fitted": psa.Fitted({"a/b": jnp.ones(2, bool)}, None),
    }


def test_round_trip_is_bitwise(tree, tmp_path):
    io.save(tmp_path / "tree.npz", tree)
    back = io.load(tmp_path / "tree.npz", tree)
    same(tree, back)
    assert back["count"] == 7
    assert isinstance(back["count"], int)
    assert isinstance(back["host"], np.ndarray)
    assert bool((back["keys"] == tree["keys"]).all())
    assert [path.name for path in tmp_path.iterdir()] == ["tree.npz"]
    with np.load(tmp_path / "tree.npz") as file:
        assert file["['w']"].dtype == np.float32


def test_load_takes_shapes_for_values(tmp_path):
    tree = {"w": jnp.arange(4.0), "key": jax.random.key(0)}
    io.save(tmp_path / "t.npz", tree)
    same(tree, io.load(tmp_path / "t.npz", jax.eval_shape(lambda: tree)))


def test_a_bare_leaf_and_a_coupling(tmp_path):
    io.save(tmp_path / "leaf.npz", jnp.arange(3))
    assert io.load(tmp_path / "leaf.npz", jnp.arange(3)).tolist() == [0, 1, 2]
    coupling = psa.independent(jnp.full(2, 0.5), jnp.full(3, 1 / 3))
    io.save(tmp_path / "coupling.npz", coupling)
    same(coupling, io.load(tmp_path / "coupling.npz", coupling))


def test_load_lists_everything_that_does_not_fit(tmp_path):
    path = tmp_path / "t.npz"
    io.save(path, {"a": jnp.ones(2), "b": jnp.ones(3), "c": jnp.ones(1)})
    like = {"a": jnp.ones(5), "b": jnp.ones(3, jnp.int32), "d": jnp.ones(1)}
    with pytest.raises(ValueError, match="missing") as error:
        io.load(path, like)
    for part in ("['a']: expected float32 (5,), got float32 (2,)", "['b']: expected int32", "unexpected ['c']"):
        assert part in str(error.value)
    assert "missing ['d']" in str(error.value)


def test_load_refuses_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        io.load(tmp_path / "nothing.npz", 0)
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "other.npz", x=np.ones(2))
    for name in ("text.npz", "other.npz"):
        with pytest.raises(ValueError, match="expected an archive made by psa_jax"):
            io.load(tmp_path / name, 0)
    io.save(tmp_path / "tree.npz", 1)
    with pytest.raises(ValueError, match="save_coupling"):
        io.load_coupling(tmp_path / "tree.npz")


def test_save_refuses_what_is_no_array(tmp_path):
    with pytest.raises(ValueError, match=r"expected arrays of numbers.*'name'"):
        io.save(tmp_path / "t.npz", {"name": "text"})
    assert not list(tmp_path.iterdir())


def test_interrupted_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "t.npz"
    io.save(path, jnp.arange(2))

    def interrupt(*args, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(zipfile.ZipFile, "writestr", interrupt)
    with pytest.raises(KeyboardInterrupt):
        io.save(path, jnp.arange(5))
    monkeypatch.undo()
    assert io.load(path, jnp.arange(2)).tolist() == [0, 1]
    assert [p.name for p in tmp_path.iterdir()] == ["t.npz"]


@pytest.fixture(scope="module")
def law():
    """Treatment 2 exists in a only, treatment 3 in b only."""
    u, v = jax.random.normal(jax.random.key(0), (23, 2)), jax.random.normal(jax.random.key(1), (31, 2))
    groups = psa.group(np.arange(23) % 3, np.where(np.arange(31) % 3 == 2, 3, np.arange(31) % 3), 4)
    return psa.blockwise(psa.sinkhorn)(u, v, groups)


@pytest.mark.parametrize("k", [1, 4, 100])
def test_coupling_file(law, k, tmp_path):
    path = tmp_path / "coupling.npz"
    io.save_coupling(path, law, k)
    back = io.load_coupling(path)
    k = min(k, 31)
    p, columns = map(np.asarray, law.top_k(k))
    with np.load(path) as file:
        assert file["columns"].dtype == np.int32
        assert file["probabilities"].dtype == np.float32
        np.testing.assert_array_equal(file["columns"], columns)
        np.testing.assert_array_equal(file["probabilities"], p)
        np.testing.assert_allclose(file["kept"], p.sum(1), rtol=1e-6)
        np.testing.assert_allclose(file["kept_mean"], p.sum(1)[columns[:, 0] >= 0].mean(), rtol=1e-6)
        np.testing.assert_array_equal(file["shape"], [23, 31])
    assert isinstance(back, psa.Coupling)
    assert back.shape == law.shape
    np.testing.assert_allclose(back.info.details["kept"], p.sum(1), rtol=1e-6)

    dense = np.zeros(law.shape, np.float32)
    rows = np.repeat(np.arange(23), k)
    dense[rows[columns.ravel() >= 0], columns.ravel()[columns.ravel() >= 0]] = p.ravel()[columns.ravel() >= 0]
    total = dense.sum(1, keepdims=True)
    dense = np.where(total > 0, dense / np.where(total > 0, total, 1), 0)
    y = jax.random.normal(jax.random.key(2), (31, 2))
    np.testing.assert_allclose(back.apply(y), dense @ np.asarray(y), atol=1e-5)
    np.testing.assert_allclose(back.row_marginal(), law.row_marginal(), rtol=1e-4, atol=1e-7)
    alone = np.arange(23) % 3 == 2
    assert (np.asarray(back.sample(jax.random.key(0)))[alone] == -1).all()
    assert (np.asarray(back.apply(y))[alone] == 0).all()
    if k == 31:
        np.testing.assert_allclose(back.apply(y), law.apply(y), atol=1e-4)
        np.testing.assert_allclose(back.dense(), law.dense(), atol=1e-5)


def test_coupling_file_needs_a_column(law, tmp_path):
    with pytest.raises(ValueError, match="k: expected at least 1"):
        io.save_coupling(tmp_path / "c.npz", law, 0)


def cells(n=30, genes=6, proteins=4, seed=0, is_sparse=False):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, genes + proteins)).astype(np.float32)
    var = pd.DataFrame(
        {"feature_types": ["GEX"] * genes + ["ADT"] * proteins}, index=[f"f{i}" for i in range(genes + proteins)]
    )
    obs = pd.DataFrame({"drug": np.array(["x", "y", "z"])[np.arange(n) % 3]}, index=[f"cell{i}" for i in range(n)])
    return anndata.AnnData(sparse.csr_matrix(x) if is_sparse else x, obs=obs, var=var)


def test_from_anndata():
    adata = cells()
    loaded = io.from_anndata(adata, treatment="drug")
    assert loaded.modalities == ("GEX", "ADT")
    assert loaded.treatments == ("x", "y", "z")
    assert loaded.num_features == (6, 4)
    assert loaded.data.a.x.dtype == jnp.float32
    np.testing.assert_array_equal(loaded.data.a.x, adata.X[:, :6])
    np.testing.assert_array_equal(loaded.data.b.t, np.arange(30) % 3)
    np.testing.assert_array_equal(loaded.truth.pair, np.arange(30))
    psa.validate(loaded.data)
    turned = io.from_anndata(adata, treatment="drug", modalities=("ADT", "GEX"))
    np.testing.assert_array_equal(turned.data.a.x, loaded.data.b.x)


def test_from_anndata_obsm_and_layer():
    adata = cells()
    adata.obsm["X_pca"] = np.ones((30, 2)) * np.arange(30)[:, None]
    adata.layers["twice"] = 2 * adata.X
    loaded = io.from_anndata(adata, treatment="drug", modalities=("GEX", "X_pca"), layer="twice")
    np.testing.assert_array_equal(loaded.data.a.x, 2 * adata.X[:, :6])
    np.testing.assert_array_equal(loaded.data.b.x, adata.obsm["X_pca"])


def test_many_features_become_principal_components():
    dense, stored = (cells(genes=60, is_sparse=s) for s in (False, True))
    one, other = (io.from_anndata(a, treatment="drug", num_components=5) for a in (dense, stored))
    assert one.data.a.x.shape == (30, 5)
    assert one.data.b.x.shape == (30, 4)
    assert one.num_features == (60, 4)
    np.testing.assert_allclose(one.data.a.x, other.data.a.x, atol=1e-4)
    centred = dense.X[:, :60] - dense.X[:, :60].mean(0)
    np.testing.assert_allclose(
        np.linalg.norm(one.data.a.x, axis=0), np.linalg.svd(centred, compute_uv=False)[:5], rtol=1e-4
    )
    assert io.from_anndata(dense, treatment="drug", num_components=50).data.a.x.shape == (30, 29)
    assert io.from_anndata(dense, treatment="drug", num_components=None).data.a.x.shape == (30, 60)


def test_shuffle_keeps_who_is_who():
    loaded = io.from_anndata(cells(), treatment="drug")
    mixed = io.shuffle(jax.random.key(0), loaded)
    pair = np.asarray(mixed.truth.pair)
    assert (pair != np.arange(30)).any()
    assert tuple(mixed.cells_b[j] for j in pair) == mixed.cells_a
    np.testing.assert_array_equal(mixed.data.b.x[pair], loaded.data.b.x)
    np.testing.assert_array_equal(mixed.data.b.t[pair], loaded.data.b.t)


def multimodal():
    """Cells c0 to c19 in a, c10 to c34 in b; drug w in b only, drug z in a only."""
    rng = np.random.default_rng(0)
    sides, drugs = {}, ["xyz"[i % 3] if i < 10 else "xyx"[i % 3] if i < 20 else "xyw"[i % 3] for i in range(35)]
    for name, ids in (("rna", range(20)), ("atac", range(10, 35))):
        obs = pd.DataFrame({"drug": [drugs[i] for i in ids]}, index=[f"c{i}" for i in ids])
        x = rng.standard_normal((len(ids), 3)).astype(np.float32)
        sides[name] = anndata.AnnData(x, obs=obs, var=pd.DataFrame(index=[f"{name}{i}" for i in range(3)]))
    return mudata.MuData(sides)


def test_from_mudata_with_other_cells_and_treatments():
    loaded = io.from_mudata(multimodal(), treatment="drug")
    assert loaded.modalities == ("rna", "atac")
    assert loaded.treatments == ("w", "x", "y", "z")
    assert loaded.data.a.x.shape == (20, 3)
    assert loaded.data.b.x.shape == (25, 3)
    pair = np.asarray(loaded.truth.pair)
    np.testing.assert_array_equal(pair, np.where(np.arange(20) < 10, -1, np.arange(20) - 10))
    assert set(np.asarray(loaded.data.a.t).tolist()) == {1, 2, 3}
    assert set(np.asarray(loaded.data.b.t).tolist()) == {0, 1, 2}
    psa.validate(loaded.data)


def test_from_mudata_common_column():
    mdata = multimodal()
    drug = pd.Series({f"c{i}": "pq"[i % 2] for i in range(35)})
    mdata.obs["arm"] = drug.loc[mdata.obs_names].to_numpy()
    loaded = io.from_mudata(mdata, treatment="arm", modalities=("atac", "rna"))
    assert loaded.modalities == ("atac", "rna")
    np.testing.assert_array_equal(loaded.data.a.t, np.arange(10, 35) % 2)
    np.testing.assert_array_equal(loaded.data.b.t, np.arange(20) % 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"treatment": "dose"}, r"no column 'dose' in obs \[drug\]"),
        ({"treatment": "drug", "modalities": ("GEX", "RNA")}, r"\['GEX', 'ADT'\].*got 'RNA'"),
        ({"treatment": "drug", "modalities": ("GEX", "GEX")}, "two different names"),
        ({"treatment": "drug", "layer": "counts"}, "layer: expected one of"),
        ({"treatment": "drug", "num_components": 0}, "num_components: expected at least 1"),
    ],
)
def test_from_anndata_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        io.from_anndata(cells(), **settings)


def test_from_anndata_without_feature_types():
    adata = cells()
    del adata.var["feature_types"]
    with pytest.raises(ValueError, match="modalities: expected two names"):
        io.from_anndata(adata, treatment="drug")


def test_from_mudata_refuses():
    with pytest.raises(ValueError, match=r"no column 'dose' in obs of modality 'rna' \[drug\]"):
        io.from_mudata(multimodal(), treatment="dose")
    with pytest.raises(ValueError, match=r"names in \[rna, atac\], got 'adt'"):
        io.from_mudata(multimodal(), treatment="drug", modalities=("rna", "adt"))


@pytest.mark.parametrize("is_sparse", [False, True])
def test_features_that_are_not_finite(is_sparse):
    adata = cells(genes=60, is_sparse=is_sparse)
    adata.X[4, 61] = np.nan
    with pytest.raises(ValueError, match=r"modality b.*in 1 of 30 rows, the first at row 4"):
        io.from_anndata(adata, treatment="drug", num_components=5)


def test_constant_features():
    adata = cells(genes=60)
    adata.X[:, :60] = 1
    with pytest.raises(ValueError, match="modality 'GEX': expected features that vary"):
        io.from_anndata(adata, treatment="drug", num_components=5)


def test_cells_without_a_treatment():
    adata = cells()
    adata.obs["drug"] = pd.Categorical([None if i in (0, 7) else v for i, v in enumerate(adata.obs["drug"])])
    with pytest.raises(ValueError, match="got none for 2 of 30"):
        io.from_anndata(adata, treatment="drug")
    loaded = io.from_anndata(adata, treatment="drug", drop_unlabelled=True)
    assert loaded.unlabelled == (2, 2)
    assert len(loaded.cells_a) == loaded.data.a.t.size == 28
    assert "cell7" not in loaded.cells_b
    np.testing.assert_array_equal(loaded.truth.pair, np.arange(28))


def test_drop_unlabelled_keeps_pairs_by_name():
    mdata = multimodal()
    mdata.mod["atac"].obs.loc["c10", "drug"] = None
    mdata.mod["rna"].obs.loc["c11", "drug"] = None
    loaded = io.from_mudata(mdata, treatment="drug", drop_unlabelled=True)
    assert loaded.unlabelled == (1, 1)
    for cell, j in zip(loaded.cells_a, np.asarray(loaded.truth.pair).tolist(), strict=True):
        assert (cell in loaded.cells_b) == (j >= 0)
        assert j < 0 or loaded.cells_b[j] == cell


def test_no_shared_treatment():
    mdata = multimodal()
    mdata.mod["atac"].obs["drug"] = "w"
    with pytest.raises(ValueError, match="at least one treatment that both modalities have"):
        io.from_mudata(mdata, treatment="drug")


def test_to_mudata_and_status():
    loaded = io.shuffle(jax.random.key(0), io.from_mudata(multimodal(), treatment="drug"))
    data = loaded.data
    groups = psa.group(data.a.t, data.b.t, 4)
    coupling = psa.blockwise(psa.match.class_mean)(data.a.x, data.b.x, groups)
    alignment = psa.Alignment(coupling, groups, data.a.x, data.b.x, *6 * [None])
    assert io.status(alignment) == ["missing in a", "matched", "matched", "missing in b"]
    mdata = io.to_mudata(alignment, loaded, treatment="drug")
    assert list(mdata.mod) == ["rna", "atac"]
    rna = mdata.mod["rna"]
    assert rna.obs_names.tolist() == list(loaded.cells_a)
    assert set(rna.obs["psa_status"][rna.obs["drug"] == "z"]) == {"missing in b"}
    np.testing.assert_allclose(rna.obsm["psa_atac"], project(alignment.coupling, loaded.data.b.x))
    np.testing.assert_allclose(mdata.mod["atac"].obsm["psa_rna"], project(alignment.coupling.T, loaded.data.a.x))
    with pytest.raises(ValueError, match="expected one of"):
        io.to_mudata(alignment, io.from_anndata(cells(), treatment="drug"))


@pytest.mark.parametrize(
    ("n", "m", "converged", "expected"),
    [
        (5, 4, True, "matched"),
        (5, 3, True, "too few to judge"),
        (1, 9, True, "matched, trivially"),
        (9, 9, False, "not converged"),
        (0, 9, False, "missing in a"),
        (9, 0, False, "missing in b"),
    ],
)
def test_status(n, m, converged, expected):
    groups = psa.group(np.repeat([0, 1], [n, 2]), np.repeat([0, 1], [m, 2]), 2)
    coupling = psa.blockwise(psa.match.class_mean)(jnp.ones((n + 2, 1)), jnp.ones((m + 2, 1)), groups)
    info = dataclasses.replace(coupling.info, converged=jnp.array([converged, True]))
    coupling = dataclasses.replace(coupling, info=info)
    assert io.status(psa.Alignment(coupling, groups, *8 * [None]))[0] == expected


def test_real_file(shared_data):
    adata = anndata.read_h5ad(shared_data / "bmmc_cite_600.h5ad")
    loaded = io.from_anndata(adata, treatment="cell_type")
    assert loaded.modalities == ("GEX", "ADT")
    assert loaded.num_features == (1000, 134)
    assert loaded.data.a.x.shape == loaded.data.b.x.shape == (600, 50)
    assert loaded.data.num_treatments == len(loaded.treatments) == 41


def test_frames_in_obsm_and_files_without_a_matrix():
    adata = cells()
    adata.obsm["first"] = pd.DataFrame(np.random.default_rng(0).normal(size=(30, 3)), index=adata.obs_names)
    adata.obsm["second"] = np.random.default_rng(1).normal(size=(30, 2))
    loaded = io.from_anndata(adata, treatment="drug", modalities=("first", "second"))
    np.testing.assert_allclose(loaded.data.a.x, adata.obsm["first"].to_numpy(), rtol=1e-6)
    adata.X = None
    with pytest.raises(ValueError, match="expected a matrix X, the file has none"):
        io.from_anndata(adata, treatment="drug")


def test_loaded_introduces_itself():
    loaded = io.from_anndata(cells(), treatment="drug")
    text = repr(loaded)
    assert len(text.split("\n")) <= 12
    assert "30 known pairs" in text
    assert "'GEX'" in text
    assert "treatments (a, b): x (" in text


def test_labels_are_compared_as_numbers_and_missing_texts_are_none():
    mdata = multimodal()
    for name, kind in (("rna", int), ("atac", float)):
        obs = mdata.mod[name].obs
        obs["dose"] = (np.arange(len(obs)) % 2 * 10).astype(kind)
    loaded = io.from_mudata(mdata, treatment="dose")
    assert loaded.treatments == loaded.data.names == ("0", "10")
    obs = mdata.mod["rna"].obs
    obs["dose"] = np.where(np.arange(len(obs)) == 3, "NA", "10")
    mdata.mod["atac"].obs["dose"] = "10"
    with pytest.raises(ValueError, match=r"modality 'rna': expected a 'dose' for every cell, got none for 1 of"):
        io.from_mudata(mdata, treatment="dose")
    assert io.from_mudata(mdata, treatment="dose", drop_unlabelled=True).unlabelled[0] == 1
