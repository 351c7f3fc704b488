"""Features that are read when they are used: what a source gives, and what is said of one that is broken."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psa_jax as psa
from psa_jax.data.source import fold_samples, map_parts, map_samples
from psa_jax.data.whole import not_finite

X = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
T = np.arange(50) % 3


class Rows:
    """Rows that are computed, and told what was asked of them."""

    def __init__(self, x=X, change=lambda found, asked: found):
        self.x, self.change, self.asked = x, change, []

    def __len__(self):
        return len(self.x)

    def __getitem__(self, ids):
        self.asked.append(np.array(ids))
        return self.change(self.x[ids], self.asked)


class Grain:
    """A source of single records, as grain has them."""

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return X[index.__index__()]


def in_hdf5(folder):
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "x.h5", "w") as file:
        file["x"] = X
    return h5py.File(folder / "x.h5", "r")["x"]


def zarr_of(folder):
    return pytest.importorskip("zarr").save_array(folder / "x.zarr", X) or pytest.importorskip("zarr").open_array(
        folder / "x.zarr", mode="r"
    )


def memmap(folder):
    np.save(folder / "x.npy", X)
    return np.load(folder / "x.npy", mmap_mode="r")


def sparse(folder):
    return Rows(pytest.importorskip("scipy.sparse").csr_array(X).toarray(), lambda found, _: csr(found))


def csr(x):
    return pytest.importorskip("scipy.sparse").csr_array(x)


def backed(folder):
    anndata = pytest.importorskip("anndata")
    anndata.AnnData(csr(X)).write_h5ad(folder / "x.h5ad")
    return anndata.read_h5ad(folder / "x.h5ad", backed="r").X


@pytest.mark.parametrize("make", [in_hdf5, zarr_of, memmap, sparse, backed, lambda _: Grain(), lambda _: list(X)])
def test_rows_come_as_from_the_array_whatever_holds_them(make, tmp_path):
    rows = make(tmp_path)
    x = psa.source(rows, each=isinstance(rows, Grain | list))
    assert x.shape == X.shape
    assert (x.ndim, x.size, x.nbytes, x.dtype, len(x)) == (2, 150, 600, np.float32, 50)
    ids = np.array([7, 3, 3, 49, 0])
    np.testing.assert_array_equal(x[ids], X[ids])
    np.testing.assert_array_equal(jax.jit(lambda x, ids: x[ids])(x, ids), X[ids])
    np.testing.assert_array_equal(x.take(ids)[np.array([1, 4])], X[[3, 0]])
    np.testing.assert_array_equal(x.take(ids[:4])[1:], X[[3, 3, 49]])
    np.testing.assert_array_equal(x[:], X)


def test_a_source_is_asked_for_distinct_rows_in_ascending_order():
    rows = Rows()
    psa.source(rows)[np.array([9, 2, 9, 4])]
    assert [ids.tolist() for ids in rows.asked] == [[0], [2, 4, 9]]


def test_types_are_those_of_arrays():
    for dtype in (np.float64, ">f4", np.float16, np.uint8):
        x = np.arange(12).reshape(6, 2).astype(dtype)
        read = psa.source(x)
        with jax.numpy_dtype_promotion("standard"):
            same = jnp.asarray(x.astype(x.dtype.newbyteorder("=")))
        assert read.dtype == same.dtype
        np.testing.assert_array_equal(read[:3], same[:3])
    assert read.astype("float32")[:2].dtype == jnp.float32
    assert read.astype("float64").dtype == jnp.float32
    assert repr(read) == "Source of uint8[6,2]"
    assert psa.source(read) is read


def test_programs_are_shared_and_sources_are_not_kept():
    calls = []

    @jax.jit
    def first(x):
        calls.append(1)
        return x[jnp.arange(2)]

    for shift in (0, 1, 2):
        np.testing.assert_array_equal(first(psa.source(X + shift)), X[:2] + shift)
    assert len(calls) == 1
    x = psa.source(Rows())
    first(x).block_until_ready()
    copy = jax.tree.map(lambda leaf: leaf, x)
    gone = weakref.ref(x.reader)
    del x
    gc.collect()
    np.testing.assert_array_equal(copy[:2], X[:2])
    del copy
    gc.collect()
    assert gone() is None


def test_vmap_reads_for_all_at_once():
    rows = Rows()
    x = psa.source(rows)
    ids = jnp.array([[0, 1], [1, 5]])
    np.testing.assert_array_equal(jax.jit(jax.vmap(lambda own: x[own]))(ids), X[np.asarray(ids)])
    assert rows.asked[-1].tolist() == [0, 1, 5]


@pytest.mark.parametrize("chunk", [7, 10, 50, 64])
def test_parts_are_those_of_arrays_and_are_read_once_each(chunk):
    rows = Rows()
    x, order = psa.source(rows), np.random.default_rng(1).permutation(50)
    for given, array in ((x, X), (x.take(order[:33]), X[order[:33]])):
        rows.asked.clear()
        for read in (
            lambda x: map_samples(lambda part: part.sum(1), x, chunk),
            lambda x: map_parts(lambda ids, part: part.sum(1) + ids.max().astype(part.dtype), x, chunk),
        ):
            shown = jax.jit(read)
            np.testing.assert_array_equal(shown(given), shown(jnp.asarray(array)))
        asked = np.concatenate(rows.asked)
        assert len(asked) == 2 * len(array)

        def add(total, ids, part, real):
            return total + jnp.where(real[:, None], part, 0).sum(0)

        total = jax.jit(lambda x: fold_samples(add, jnp.zeros(3), x, chunk))(given)
        np.testing.assert_allclose(total, array.sum(0), rtol=1e-4)
        assert sum(map(len, rows.asked)) == 3 * len(array)


def test_columns_stand_beside_what_is_read():
    x = psa.source(X)
    both = x.take(np.array([4, 8, 6])).beside(jnp.arange(6.0).reshape(3, 2))
    assert both.shape == (3, 5)
    ids = jnp.array([2, 0])
    expected = np.concatenate([X[[6, 4]], [[4.0, 5.0], [0.0, 1.0]]], axis=1)
    np.testing.assert_allclose(both[ids], expected)
    np.testing.assert_allclose(jax.jit(lambda x: x.take(ids)[:])(both), expected)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (None, r"rows: expected something with len\(rows\) and rows\[ids\].* got None"),
        ("x.npy", "rows: expected something with"),
        (3, "rows: expected something with"),
        ({"x": X}, "rows: expected something with"),
        (iter(X), "rows: expected something with"),
        (X[:0], "rows: expected at least one row, got none"),
        (np.float32(3), "rows: expected something with|rows: expected an array"),
        (Grain(), r"rows: expected an array of rows\[ids\].*give each=True"),
        (list(X), r"rows: expected an array of rows\[ids\].*TypeError.*give each=True"),
        (Rows(change=lambda found, _: found[0]), r"rows: expected an array \[1, ...\] of one row, got \[3\]"),
        (Rows(change=lambda found, _: found.astype(str)), "rows: expected numbers"),
        (Rows(change=lambda found, _: [None]), "rows: expected numbers"),
    ],
)
def test_what_is_no_source_is_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        psa.source(rows)


def later(change):
    """A change of what is read, from the third reading on."""
    return lambda found, asked: change(found) if len(asked) > 2 else found


def failing(found):
    raise OSError("the disk is gone")


BROKEN = {
    "another shape": (later(lambda x: x[:, :2]), ValueError, r"expected an array \[\d+, 3\], got \[\d+, 2\]"),
    "another type": (later(lambda x: x.astype(np.float64)), ValueError, "expected float32, .* got float64"),
    "too few rows": (later(lambda x: x[:-1]), ValueError, r"expected an array \[(\d+), 3\], got"),
    "raises": (later(failing), RuntimeError, "which raised OSError: the disk is gone"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_breaks_half_way_is_told_by_name_and_rows(name):
    change, kind, message = BROKEN[name]
    once = psa.Training(epochs=2, batch_size=10)
    with pytest.raises(kind, match=rf"^x: .*{message}") as error:
        psa.fit(jax.random.key(0), psa.linear(3), psa.source(Rows(change=change)), T, training=once)
    assert "of the source" in str(error.value)
    assert (error.value.__cause__ is None) is False
    data = psa.Unpaired(psa.Modality(X, T), psa.Modality(psa.source(Rows(change=change)), T), 3)
    quick = psa.Learner(psa.linear(3), members=1, folds=3, training=once)
    with pytest.raises(kind, match=rf"^modality b: x: .*{message}"):
        psa.align(jax.random.key(0), data, a=quick, b=quick)


def test_a_length_that_changes_and_numbers_that_are_none_are_told():
    rows = Rows()
    x = psa.source(rows)
    rows.x = X[:49]
    with pytest.raises(ValueError, match=r"^source: expected 50 rows, as there were at first, got 49"):
        x[:2]
    with pytest.raises(ValueError, match=r"^x: expected 50 rows"):
        psa.fit(jax.random.key(0), psa.linear(3), x, T)
    broken = X.copy()
    broken[7, 1], broken[31, 0] = np.nan, np.inf
    x = psa.source(broken)
    assert not_finite(x).tolist() == [7, 31]
    assert not_finite(x.take(np.array([1, 31]))).tolist() == [1]
    for told, call in {
        "x": lambda: psa.fit(jax.random.key(0), psa.linear(3), x, T),
        "modality b: x": lambda: psa.validate(psa.Unpaired(psa.Modality(X, T), psa.Modality(x, T), 3)),
    }.items():
        with pytest.raises(
            ValueError, match=rf"^{told}: expected finite features, .* 2 of 50 rows, the first at row 7"
        ):
            call()


def test_a_source_that_failed_once_is_read_again():
    gone = []
    rows = Rows(change=lambda found, asked: failing(found) if gone else found)
    x = psa.source(rows)
    gone.append(True)
    with pytest.raises(RuntimeError, match=r"^source: expected rows 0 to 1 of the source, which raised OSError"):
        x[:2]
    gone.clear()
    np.testing.assert_array_equal(x[:2], X[:2])


def test_a_source_of_integers_or_beside_what_holds_arrays_is_refused_by_name():
    images = psa.Modality(psa.source(np.zeros((6, 8, 8, 1), np.uint8)), np.arange(6) % 2)
    with pytest.raises(ValueError, match=r"modality a: x: .*uint8: give x.astype\('float32'\)"):
        psa.validate(psa.Unpaired(images, images, 2))
    x = psa.source(X)
    with pytest.raises(ValueError, match=r"u: expected numbers .*in memory, got a Source"):
        psa.snn(x, X, np.ones(50), np.ones(50))
    with pytest.raises(ValueError, match=r"x_a: expected an array .*psa_jax.source\(...\) of it"):
        psa.Unpaired.from_labels(Rows(), T, X, T)
    data = psa.Unpaired(psa.Modality(x, T), psa.Modality(X, T), 3)
    with pytest.raises(ValueError, match="data: expected features in memory, got a Source"):
        psa.baselines.raw(data)


def test_parts_of_data_read_nothing():
    rows = Rows()
    data = psa.Unpaired(psa.Modality(psa.source(rows), T), psa.Modality(X, T), 3)
    psa.validate(data)
    rows.asked.clear()
    train, test = psa.split(jax.random.key(0), data, (0.6, 0.4))
    control = psa.permute_treatments(jax.random.key(1), train)
    assert not rows.asked
    assert isinstance(control.a.x, psa.Source)
    assert "samples of 3 features, float32" in repr(train)
    same = psa.split(jax.random.key(0), psa.Unpaired(psa.Modality(X, T), data.b, 3), (0.6, 0.4))[1]
    np.testing.assert_array_equal(test.a.x[:], same.a.x)
