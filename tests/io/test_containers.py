"""Containers that contradict themselves are refused before they are used, by the name of what is wrong."""

import warnings

import numpy as np
import pytest
from scipy import sparse

import psa_jax as psa
from psa_jax import io
from psa_jax.io.containers import matrix

anndata = pytest.importorskip("anndata")
mudata = pytest.importorskip("mudata")
pd = pytest.importorskip("pandas")

pytestmark = [  # what pandas 3 says of anndata and mudata, and mudata 0.3 of 0.4
    pytest.mark.filterwarnings("ignore:The 'future.infer_string' option"),
    pytest.mark.filterwarnings("ignore:The inplace keyword"),
    pytest.mark.filterwarnings("ignore:From 0.4 .update:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Variable names are not unique"),
    pytest.mark.filterwarnings("ignore:Observation names are not unique"),
]
FEATURES = {"GEX": 6, "ADT": 4}


def side(name, names, drugs="xyz", seed=0, kind=np.asarray):
    """One modality of cells with these names; their drugs take turns."""
    x = np.random.default_rng(seed).poisson(5, (len(names), FEATURES[name])).astype(np.float32) + 1
    obs = pd.DataFrame({"drug": [drugs[i % len(drugs)] for i in range(len(names))]}, index=list(map(str, names)))
    var = pd.DataFrame({"feature_types": name}, index=[f"{name}{i}" for i in range(FEATURES[name])])
    return anndata.AnnData(kind(x), obs=obs, var=var)


def both(n=30):
    return mudata.MuData({name: side(name, [f"c{i}" for i in range(n)]) for name in FEATURES})


def one(n=30):
    return anndata.concat([side(name, [f"c{i}" for i in range(n)]) for name in FEATURES], axis=1, merge="same")


# names that are taken for pairs


@pytest.mark.parametrize(("first", "second", "count"), [("xyz", "yzx", 70), ("xyz", "xzy", 46), ("xy", "xyxyxyxz", 8)])
def test_pairs_of_two_treatments_are_refused_with_their_number_and_first_names(first, second, count):
    names = [f"{i}" for i in range(70)]
    mdata = mudata.MuData({"GEX": side("GEX", names, first), "ADT": side("ADT", names, second, seed=1)})
    expected = f"got two for {count} of 70 .* has '[xy]' and .*pairs=False.*obs_names = 'ADT_'"
    with pytest.raises(ValueError, match=expected), pytest.warns(psa.AlignmentWarning):
        io.from_mudata(mdata, treatment="drug")
    with pytest.raises(ValueError, match=f"got two for {count} of 70"):
        io.from_mudata(mdata, treatment="drug", pairs=True)
    assert (np.asarray(io.from_mudata(mdata, treatment="drug", pairs=False).truth.pair) == -1).all()


@pytest.mark.parametrize(("start", "warns"), [("", True), ("c", False), ("AAACCTG-", False)])
def test_names_that_are_plain_numbers_are_noted(start, warns):
    names = [f"{start}{i}" for i in range(30)]
    mdata = mudata.MuData({name: side(name, names) for name in FEATURES})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", psa.AlignmentWarning)
        loaded = io.from_mudata(mdata, treatment="drug")
    told = [str(w.message) for w in caught if w.category is psa.AlignmentWarning]
    assert len(told) == warns
    assert all("30 cells are taken for pairs" in text and "pairs=False" in text for text in told)
    assert (np.asarray(loaded.truth.pair) == np.arange(30)).all()
    assert (np.asarray(io.from_mudata(mdata, treatment="drug", pairs=True).truth.pair) == np.arange(30)).all()


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
@pytest.mark.parametrize("sizes", [(30, 30), (40, 12)])
@pytest.mark.parametrize("container", ["AnnData", "MuData", "obsm"])
def test_an_outer_join_of_different_cells_is_refused_with_what_to_write(kind, sizes, container):
    sides = [side(name, [f"{name}{i}" for i in range(n)], kind=kind) for name, n in zip(FEATURES, sizes, strict=True)]
    joined, read = anndata.concat(sides, join="outer", merge="first"), io.from_anndata
    settings = {"modalities": ("GEX", "ADT")}
    types = joined.var_names.str[:3].to_numpy()  # an outer join sorts the features
    joined.var["feature_types"] = types
    if container == "MuData":
        joined, read = mudata.MuData({name: joined[:, types == name].copy() for name in FEATURES}), io.from_mudata
    if container == "obsm":
        for name in FEATURES:
            joined.obsm[f"x_{name}"] = joined.X[:, np.flatnonzero(types == name)]
        settings = {"modalities": ("x_GEX", "x_ADT")}
    expected = rf"{sizes[0]} with nothing in '(x_)?ADT' and {sizes[1]} with nothing in '(x_)?GEX'.*from_mudata\("
    with pytest.raises(ValueError, match=expected):
        read(joined, treatment="drug", **settings)


def test_cells_without_any_count_here_and_there_are_no_join():
    mdata = both()
    mdata.mod["GEX"].X[3], mdata.mod["ADT"].X[5] = 0, 0
    assert io.from_mudata(mdata, treatment="drug").data.a.x.shape == (30, 6)


# names that occur twice


@pytest.mark.parametrize("read", ["from_anndata", "from_mudata"])
def test_cell_names_that_occur_twice_are_refused(read):
    names = [f"c{i // 2 if i < 4 else i}" for i in range(30)]
    if read == "from_anndata":
        data = one()
        data.obs_names = names
    else:
        data = both()
        data.mod["ADT"].obs_names = names
    with pytest.raises(ValueError, match=r"expected unique cell names, got 2 more than once \(c0, c1\)"):
        getattr(io, read)(data, treatment="drug")


@pytest.mark.parametrize("place", ["obs", "var", "modality", "common"])
def test_columns_that_occur_twice_are_refused_by_their_name(place):
    data = one() if place in ("obs", "var") else both()
    table = {"obs": "obs", "var": "var"}.get(place)
    treatment = "drug"
    if place == "common":
        treatment = "arm"
        frame = pd.DataFrame(np.full((data.n_obs, 2), "x"), index=data.obs_names, columns=["arm", "arm"])
        data._obs = frame
    else:
        holder = data.mod["ADT"] if place == "modality" else data
        table = table or "obs"
        frame = getattr(holder, table)
        setattr(holder, f"_{table}", pd.concat([frame, frame], axis=1))
    read = io.from_anndata if place in ("obs", "var") else io.from_mudata
    with pytest.raises(ValueError, match=r"expected one column '(drug|arm|feature_types)' in .*, got 2 of this name"):
        read(data, treatment=treatment)


def test_names_of_features_may_occur_twice():
    """They are told apart by their place: genes of one symbol are common."""
    data = one()
    expected = io.from_anndata(data, treatment="drug")
    data.var_names = ["g"] * data.n_vars
    np.testing.assert_array_equal(io.from_anndata(data, treatment="drug").data.a.x, expected.data.a.x)


# matrices


KINDS = {
    "csr": sparse.csr_matrix,
    "csc": sparse.csc_matrix,
    "csr array": sparse.csr_array,
    "big-endian": lambda x: x.astype(">f4"),
    "big-endian double": lambda x: x.astype(">f8"),
    "big-endian integers": lambda x: x.astype(">i2"),
    "half": lambda x: x.astype(np.float16),
    "column-major": np.asfortranarray,
    "masked": lambda x: np.ma.masked_array(x, np.zeros(x.shape, bool)),
    "table": lambda x: pd.DataFrame(x, index=[f"c{i}" for i in range(len(x))], columns=[f"p{i}" for i in range(4)]),
    "table of Int64": lambda x: KINDS["table"](x).astype("Int64"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("components", [None, 2])
def test_matrices_of_every_kind_are_the_same_numbers(kind, components):
    data, mdata = one(), both()
    x = np.asarray(data.X[:, 6:])
    data.obsm["plain"] = x
    expected = io.from_anndata(data, treatment="drug", modalities=("GEX", "plain"), num_components=components)
    data.obsm["other"] = KINDS[kind](x)
    loaded = [io.from_anndata(data, treatment="drug", modalities=("GEX", "other"), num_components=components)]
    if not kind.startswith("table"):
        mdata.mod["ADT"].X = KINDS[kind](x)
        mdata.mod["ADT"].layers["it"] = KINDS[kind](x)
        mdata.mod["GEX"].layers["it"] = mdata.mod["GEX"].X
        loaded += [
            io.from_mudata(mdata, treatment="drug", layer=layer, num_components=components) for layer in (None, "it")
        ]
    for found in loaded:
        np.testing.assert_allclose(found.data.b.x, expected.data.b.x, rtol=1e-4, atol=1e-4)
        assert found.data.b.x.dtype == np.float32


BAD = {
    "text": (lambda x: x.astype(str), r"expected numbers \[30 cells, features\], got <U"),
    "objects": (lambda x: x.astype(object), "expected numbers .*, got object"),
    "complex": (lambda x: x.astype(complex), "expected numbers .*, got complex128"),
    "rank 3": (lambda x: x[:, :, None], r"expected numbers .*, got shape \(30, 4, 1\)"),
    "no column": (lambda x: x[:, :0], r"expected numbers .*, got shape \(30, 0\)"),
    "table with a text": (
        lambda x: KINDS["table"](x).assign(batch="b", plate=pd.Categorical(["q"] * len(x))),
        r"expected columns of numbers, got others in \[batch, plate\]",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_matrices_that_are_no_numbers_are_refused_by_their_place(kind):
    change, message = BAD[kind]
    data = one()
    data.obsm["other"] = change(np.asarray(data.X[:, 6:]))
    with pytest.raises(ValueError, match=rf"obsm\['other'\]: {message}"):
        io.from_anndata(data, treatment="drug", modalities=("GEX", "other"))


@pytest.mark.parametrize("kind", ["text", "objects", "complex"])
@pytest.mark.parametrize("layer", [None, "it"])
def test_so_are_those_of_modalities(kind, layer):
    change, message = BAD[kind]
    mdata = both()
    adata = mdata.mod["ADT"]
    mdata.mod["GEX"].layers["it"] = mdata.mod["GEX"].X
    if layer is None:
        mdata.mod["ADT"] = anndata.AnnData(change(np.asarray(adata.X)), obs=adata.obs, var=adata.var)
    else:
        adata.layers["it"] = change(np.asarray(adata.X))
    place = "X" if layer is None else r"layers\['it'\]"
    with pytest.raises(ValueError, match=f"modality 'ADT': {place}: {message}"):
        io.from_mudata(mdata, treatment="drug", layer=layer)


@pytest.mark.parametrize("kind", ["masked", "table of Int64"])
def test_values_that_are_missing_are_not_read_as_numbers(kind):
    data = one()
    x = KINDS[kind](np.asarray(data.X[:, 6:]))
    if kind == "masked":
        x[3, 1] = np.ma.masked
    else:
        x.iloc[3, 1] = pd.NA
    data.obsm["other"] = x
    with pytest.raises(ValueError, match="expected finite features, got NaN or infinity in 1 of 30 rows"):
        io.from_anndata(data, treatment="drug", modalities=("GEX", "other"))


# labels


@pytest.mark.parametrize("fault", ["renamed", "new cells", "twice", "no column"])
def test_a_common_obs_that_is_out_of_date_is_refused_by_name(fault):
    mdata = both()
    mdata.obs["arm"] = np.array(["x", "y"])[np.arange(30) % 2]
    if fault == "renamed":
        mdata.mod["ADT"].obs_names = [f"d{i}" for i in range(30)]
        message = r"mdata\.obs: expected a row for each cell of modality 'ADT', got none for 30 of 30 \(d0, d1"
    elif fault == "new cells":
        mdata._obs = mdata.obs.iloc[:28]
        message = r"mdata\.obs: expected .* of modality 'GEX', got none for 2 of 30 \(c28, c29\): it is out of date"
    elif fault == "twice":
        mdata._obs = mdata.obs.iloc[[*range(30), 3]]
        message = r"mdata\.obs: .*got some names twice"
    else:
        del mdata.obs["arm"]
        message = r"treatment: no column 'arm' in obs of modality 'GEX' \[drug\]"
    with pytest.raises(ValueError, match=message):
        io.from_mudata(mdata, treatment="arm")


@pytest.mark.parametrize("kind", [">i4", ">f8", "category", "Sparse[int64]", "Int64", "string", "bytes"])
def test_labels_of_every_kind_are_read(kind):
    data = one()
    codes = np.arange(30) % 3
    column = pd.Series(codes.astype(kind) if kind.startswith(">") else codes, index=data.obs_names)
    if kind == "bytes":
        column = pd.Series([str(code).encode() for code in codes], index=data.obs_names)
    elif not kind.startswith(">"):
        column = column.astype(kind)
    data.obs["dose"] = column
    loaded = io.from_anndata(data, treatment="dose")
    assert loaded.treatments == ("0", "1", "2")
    np.testing.assert_array_equal(loaded.data.a.t, codes)


@pytest.mark.parametrize("value", [None, np.ones((3, 2)), "file.h5ad", {"X": 1}])
def test_what_is_no_container_is_refused_by_its_type(value):
    with pytest.raises(ValueError, match=rf"adata: expected an anndata\.AnnData, got {type(value).__name__}"):
        io.from_anndata(value, treatment="drug")
    with pytest.raises(ValueError, match=rf"mdata: expected a mudata\.MuData, got {type(value).__name__}"):
        io.from_mudata(value, treatment="drug")


def test_one_container_for_the_other_is_told_where_it_goes():
    with pytest.raises(ValueError, match=r"got MuData \(psa_jax\.io\.from_mudata takes it\)"):
        io.from_anndata(both(), treatment="drug")
    with pytest.raises(ValueError, match=r"got AnnData \(psa_jax\.io\.from_anndata takes it\)"):
        io.from_mudata(one(), treatment="drug")


@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csc_matrix])
@pytest.mark.parametrize("index", [50, -3])
def test_indices_that_point_nowhere_are_refused(kind, index):
    x = kind(np.eye(4, 5, dtype=np.float32))
    x.indices[1] = index
    with pytest.raises(ValueError, match=r"X of 'rna': expected a sparse matrix \[4, 5\] that is whole"):
        matrix("X of 'rna'", x, 4)
