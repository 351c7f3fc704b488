import sys

import anndata
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from psa_jax.data.samples import validate
from psa_jax.datasets import (
    balls,
    balls_latents,
    cite_seq,
    cite_seq_cell_types,
    digits,
    render_balls,
    render_squares,
)
from psa_jax.datasets.balls import _VIEW_A, _VIEW_B, _draw

VIEWS = [render_balls, render_squares]
SAMPLE = "bmmc_cite_600.h5ad"


def moved(q):
    """The squashed, rotated position of view B, written out independently."""
    turn = np.array([[np.cos(0.3 * np.pi), -np.sin(0.3 * np.pi)], [np.sin(0.3 * np.pi), np.cos(0.3 * np.pi)]])
    return 1 / (1 + np.exp(-2 * ((q - 0.5) @ turn.T + 0.2)))


@pytest.fixture(scope="module")
def latents():
    t = np.arange(6000) % 12
    return t, np.asarray(balls_latents(jax.random.key(1), jnp.asarray(t)))


def test_latents_take_the_value_of_their_intervention(latents):
    t, z = latents
    assert z.dtype == np.float32
    np.testing.assert_array_equal(z[np.arange(t.size), t // 3], np.float32([0.25, 0.5, 0.75])[t % 3])
    assert np.all((z >= 0.1) & (z <= 0.9))


def test_ball_2_follows_the_mechanism(latents):
    t, z = latents
    far = 1.25 * (z[:, 0] ** 2 + z[:, 1] ** 2) >= 1
    low, high = np.where(far[:, None], [0.1, 0.5], [0.5, 0.1]), np.where(far[:, None], [0.5, 0.9], [0.9, 0.5])
    inside = (z[:, 2:] >= low - 1e-6) & (z[:, 2:] <= high + 1e-6)
    free = t[:, None] // 3 != np.array([2, 3])
    assert np.all(inside[free])
    assert 0.2 < far.mean() < 0.8
    assert not np.all(inside[~free]), "an intervention on ball 2 must override the mechanism"


def test_latents_are_uniform_where_nothing_is_set(latents):
    t, z = latents
    for coordinate in range(2):
        values = z[t // 3 != coordinate, coordinate]
        assert abs(values.mean() - 0.5) < 0.02
        assert abs(values.std() - 0.8 / np.sqrt(12)) < 0.02


@pytest.mark.parametrize("t", [jnp.zeros((2, 2), jnp.int32), jnp.zeros(3)])
def test_latents_reject_what_is_no_vector_of_codes(t):
    with pytest.raises(ValueError, match=r"t: expected integers \[n\]"):
        balls_latents(jax.random.key(0), t)


def test_pairs_are_consistent_and_hidden():
    data, truth = balls(jax.random.key(0), 37, 16)
    validate(data)
    pair = np.asarray(truth.pair)
    assert sorted(pair.tolist()) == list(range(37))
    np.testing.assert_array_equal(np.asarray(truth.z_b)[pair], truth.z_a)
    np.testing.assert_array_equal(np.asarray(data.b.t)[pair], data.a.t)
    assert (pair == np.arange(37)).mean() < 0.3
    sizes = np.bincount(np.asarray(data.a.t), minlength=12)
    assert sizes.max() - sizes.min() == 1
    assert np.any(np.diff(np.asarray(data.a.t)) < 0), "treatments are in random order"


def test_images_of_both_views_show_the_latents():
    data, truth = balls(jax.random.key(0), 24, 64)
    z_a, z_b = np.asarray(truth.z_a), moved(np.asarray(truth.z_b).reshape(24, 2, 2))
    for i in range(24):
        x, y = (z_a[i, 2:] * 64).astype(int)
        assert np.asarray(data.a.x)[i, y, x, 2] > 0.7, "ball 2 of view A is blue"
        x, y = (z_b[i, 1] * 64).astype(int)
        np.testing.assert_allclose(np.asarray(data.b.x)[i, y, x], [0.45, 0, 0.55], atol=0.3)


@pytest.mark.parametrize("num_samples", [1, 5, 12, 13])
@pytest.mark.parametrize("image_size", [8, 17, 32])
def test_images_are_finite_floats_in_the_unit_interval(num_samples, image_size):
    data, _ = balls(jax.random.key(3), num_samples, image_size)
    for x in (data.a.x, data.b.x):
        assert x.shape == (num_samples, image_size, image_size, 3)
        assert x.dtype == jnp.float32
        assert bool(jnp.all((x >= 0) & (x <= 1)))


def test_the_key_decides_everything():
    first, again, other = (balls(jax.random.key(k), 13, 16) for k in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.array_equal(first[0].a.x, other[0].a.x)
    assert not np.array_equal(first[0].b.x, other[0].b.x)
    assert not np.array_equal(first[1].pair, other[1].pair)


def test_the_size_changes_the_resolution_only():
    small, large = balls(jax.random.key(0), 12, 32), balls(jax.random.key(0), 12, 128)
    jax.tree.map(np.testing.assert_array_equal, small[1], large[1])
    for x, y in ((small[0].a.x, large[0].a.x), (small[0].b.x, large[0].b.x)):
        pooled = np.asarray(y).reshape(12, 32, 4, 32, 4, 3).mean((2, 4))
        assert np.abs(pooled - x).mean() < 0.004
        assert np.abs(pooled - x).max() < 0.2


@pytest.mark.parametrize("render", VIEWS)
def test_backgrounds_of_a_key_do_not_depend_on_the_latents_and_of_other_keys_differ(render):
    z = jnp.full((2, 4), 0.3)
    x, y = (np.asarray(render(jax.random.key(k), z, 16)) for k in (0, 1))
    assert np.abs(x - y).mean() > 0.05
    assert np.abs(x[0] - x[1]).mean() > 0.05
    moved_z = np.asarray(render(jax.random.key(0), jnp.full((2, 4), 0.8), 16))
    assert (np.abs(x - moved_z).max(-1) > 1e-6).mean() < 0.2


def coverage(render, view, ball, here, image_size):
    """What share of each pixel one ball covers, from two pictures of one background; borders are left out."""
    gone = 5.0 if render is render_balls else -1e3
    z = np.full((here.shape[0], 2, 2), gone, np.float32)
    draw = [render(jax.random.key(0), jnp.asarray(z.reshape(-1, 4)), image_size)]
    z[:, ball] = here
    draw.append(render(jax.random.key(0), jnp.asarray(z.reshape(-1, 4)), image_size))
    before, after = (np.asarray(x, np.float64) for x in draw)
    contrast = np.array([view.one, view.two][ball]) - before
    share = ((after - before) * contrast).sum(-1) / (contrast**2).sum(-1)
    border = -(-image_size // 16)
    share[:, :border] = share[:, -border:] = share[:, :, :border] = share[:, :, -border:] = 0
    return share


@pytest.mark.parametrize("image_size", [16, 32, 100, 128])
@pytest.mark.parametrize("ball", [0, 1])
@pytest.mark.parametrize("view", ["a", "b"])
def test_an_object_is_at_its_place_and_covers_its_area_at_any_size(view, ball, image_size):
    render, colours, area = {
        "a": (render_balls, _VIEW_A, np.pi * 0.02**2),
        "b": (render_squares, _VIEW_B, 0.04**2),
    }[view]
    here = np.random.default_rng(0).uniform(0.2, 0.8, (16, 2)).astype(np.float32)
    share = coverage(render, colours, ball, here, image_size)
    total = share.sum((1, 2))
    np.testing.assert_allclose(total / image_size**2, area, rtol=0.01)
    centre = (np.arange(image_size) + 0.5) / image_size
    place = np.stack([(share.sum(1) * centre).sum(1), (share.sum(2) * centre).sum(1)], 1) / total[:, None]
    # Half a pixel: a share is spread evenly over its pixel.
    np.testing.assert_allclose(place, here if view == "a" else moved(here), atol=0.5 / image_size)


@pytest.mark.parametrize("render", VIEWS)
@pytest.mark.parametrize("chunk", [1, 4, 7, 100])
def test_pictures_do_not_depend_on_the_chunk(render, chunk):
    z = jax.random.uniform(jax.random.key(0), (7, 4), jnp.float32, 0.1, 0.9)
    expected = render(jax.random.key(1), z, 16)
    np.testing.assert_allclose(render(jax.random.key(1), z, 16, chunk=chunk), expected, atol=1e-5)


def test_one_program_draws_any_number_of_images():
    before = _draw._cache_size()
    for n in (1, 3, 5, 11):
        render_balls(jax.random.key(0), jnp.full((n, 4), 0.5), 11, chunk=5)
    assert _draw._cache_size() == before + 1


def test_rendering_works_inside_jit():
    z = jnp.full((3, 4), 0.5)
    render = jax.jit(lambda key, z: render_squares(key, z, 16, chunk=2))
    np.testing.assert_allclose(render(jax.random.key(0), z), render_squares(jax.random.key(0), z, 16), atol=1e-5)


def test_double_precision_changes_no_dtype(x64):
    data, truth = balls(jax.random.key(0), 3, 8)
    assert {x.dtype for x in (data.a.x, data.b.x, truth.z_a, truth.z_b)} == {np.dtype(np.float32)}
    assert {x.dtype for x in (data.a.t, data.b.t, truth.pair)} == {np.dtype(np.int32)}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda key: balls(key, 0), "num_samples: expected at least 1, got 0"),
        (lambda key: balls(key, 5, 7), "image_size: expected at least 8, got 7"),
        (lambda key: render_balls(key, jnp.zeros((3, 2)), 8), r"z: expected shape \[n, 4\]"),
        (lambda key: render_squares(key, jnp.zeros((0, 4)), 8), "at least one row"),
        (lambda key: render_squares(key, jnp.zeros((3, 4)), 4), "image_size"),
        (lambda key: render_balls(key, jnp.zeros((3, 4)), 8, chunk=0), "chunk: expected at least 1, got 0"),
    ],
)
def test_bad_input_of_the_balls_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(jax.random.key(0))


def test_digits_halves_reassemble_the_images():
    from sklearn.datasets import load_digits

    data, truth = digits(jax.random.key(0))
    validate(data)
    pair = np.asarray(truth.pair)
    left, right = (np.asarray(x).reshape(-1, 8, 4) for x in (data.a.x, np.asarray(data.b.x)[pair]))
    source = load_digits()
    np.testing.assert_array_equal(np.concatenate([left, right], 2) * 16, source.images)
    np.testing.assert_array_equal(data.a.t, source.target)
    np.testing.assert_array_equal(np.asarray(data.b.t)[pair], source.target)
    assert truth.z_a is None
    assert data.a.x.dtype == jnp.float32
    assert (pair == np.arange(pair.size)).mean() < 0.01


def test_digits_order_follows_the_key():
    one, again, other = (np.asarray(digits(jax.random.key(k))[1].pair) for k in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def cells(seed=0):
    """Thirty cells, twelve genes and five proteins in the layout of GSE194122, feature types interleaved."""
    rng = np.random.default_rng(seed)
    kind = np.array(["GEX", "ADT", "GEX"] * 5 + ["GEX", "GEX"])
    counts = rng.poisson(2.0, (30, kind.size)).astype(np.float64)
    x = np.log1p(counts * rng.uniform(0.5, 2.0, (30, 1)))
    part = np.array(["train"] * 20 + ["test"] * 6 + ["iid_holdout"] * 4)
    types = np.array(["T", "B", "NK"], object)[rng.integers(3, size=30)]
    types[0], types[-1] = "Plasma", "Mono"
    names = [f"cell{i}" for i in range(30)]
    obs = pd.DataFrame({"cell_type": pd.Categorical(types), "is_train": pd.Categorical(part)}, index=names)
    var = pd.DataFrame({"feature_types": pd.Categorical(kind)}, index=[f"f{i}" for i in range(kind.size)])
    return anndata.AnnData(sparse.csr_matrix(x), obs=obs, var=var, layers={"counts": sparse.csr_matrix(counts)})


def written(tmp_path, data):
    path = tmp_path / "cells.h5ad"
    data.write_h5ad(path)
    return path


def dense(data, kind, matrix):
    return matrix.toarray()[:, np.asarray(data.var["feature_types"]) == kind]


def test_cite_seq_pairs_and_codes(tmp_path):
    source = cells()
    path = written(tmp_path, source)
    data, truth = cite_seq(path, num_components=3)
    validate(data)
    pair = np.asarray(truth.pair)
    assert sorted(pair.tolist()) == list(range(30))
    assert not np.any(pair == np.arange(30))
    np.testing.assert_array_equal(np.asarray(data.b.t)[pair], data.a.t)
    names = cite_seq_cell_types(path)
    assert names == ("B", "Mono", "NK", "Plasma", "T")
    assert data.num_treatments == 5
    np.testing.assert_array_equal(np.array(names)[np.asarray(data.a.t)], source.obs["cell_type"])
    log_counts = np.log1p(dense(source, "ADT", source.layers["counts"]))
    np.testing.assert_allclose(np.asarray(data.b.x)[pair], log_counts - log_counts.mean(1, keepdims=True), atol=1e-5)


def test_cite_seq_splits_share_codes_components_and_proteins(tmp_path):
    path = written(tmp_path, cells())
    whole, whole_truth = cite_seq(path, num_components=3)
    start = 0
    for split, size in (("train", 20), ("test", 6), ("iid_holdout", 4)):
        part, truth = cite_seq(path, num_components=3, split=split)
        assert part.num_treatments == whole.num_treatments
        rows = slice(start, start + size)
        np.testing.assert_array_equal(part.a.t, whole.a.t[rows])
        np.testing.assert_allclose(part.a.x, whole.a.x[rows], atol=1e-5)
        np.testing.assert_allclose(part.b.x[truth.pair], whole.b.x[whole_truth.pair][rows], atol=1e-6)
        start += size


def test_cells_held_out_do_not_influence_the_components(tmp_path):
    source = cells()
    before, _ = cite_seq(written(tmp_path, source), num_components=3)
    x = source.X.toarray()
    x[20:] = 7 * x[20:][::-1] + 1
    source.X = sparse.csr_matrix(x)
    after, _ = cite_seq(written(tmp_path, source), num_components=3)
    np.testing.assert_array_equal(before.a.x[:20], after.a.x[:20])
    assert not np.allclose(before.a.x[20:], after.a.x[20:])


def test_cite_seq_reads_dense_matrices_the_same(tmp_path):
    source = cells()
    expected = cite_seq(written(tmp_path, source), num_components=4)
    source.X, source.layers["counts"] = source.X.toarray(), source.layers["counts"].toarray()
    jax.tree.map(np.testing.assert_array_equal, cite_seq(written(tmp_path, source), num_components=4), expected)


@pytest.mark.parametrize("num_components", [1, 11])
def test_cite_seq_components_at_the_limits(tmp_path, num_components):
    data, _ = cite_seq(written(tmp_path, cells()), num_components=num_components)
    assert data.a.x.shape == (30, num_components)
    assert bool(jnp.isfinite(data.a.x).all())


def assert_principal_components(source, scores, atol):
    x = dense(source, "GEX", source.X)
    train = np.asarray(source.obs["is_train"]) == "train"
    centred = x - x[train].mean(0)
    _, _, components = np.linalg.svd(centred[train], full_matrices=False)
    expected = centred @ components[: scores.shape[1]].T
    signs = np.sign((expected * scores).sum(0))
    np.testing.assert_allclose(scores, expected * signs, atol=atol)


def test_cite_seq_components_are_the_singular_vectors_of_the_training_cells(tmp_path):
    source = cells()
    data, _ = cite_seq(written(tmp_path, source), num_components=6)
    assert_principal_components(source, np.asarray(data.a.x), atol=1e-5)


def test_cite_seq_on_real_cells(shared_data):
    path = shared_data / SAMPLE
    if not path.is_file():
        pytest.skip(f"no {SAMPLE} in {shared_data}")
    data, truth = cite_seq(path, num_components=20)
    validate(data)
    assert (data.a.x.shape, data.b.x.shape, data.num_treatments) == ((600, 20), (600, 134), 41)
    np.testing.assert_allclose(data.b.x.mean(1), 0, atol=1e-5)
    np.testing.assert_array_equal(data.b.t[truth.pair], data.a.t)
    assert_principal_components(anndata.read_h5ad(path), np.asarray(data.a.x), atol=1e-3)
    train, _ = cite_seq(path, num_components=20, split="train")
    assert train.a.t.size == 311
    assert len(cite_seq_cell_types(path)) == 41


def without_type(data):
    data.obs["cell_type"] = data.obs["cell_type"].where(np.arange(data.n_obs) != 3)


def relabelled(column, **names):
    def change(data):
        table = data.obs if column in data.obs else data.var
        table[column] = pd.Categorical([names.get(value, value) for value in table[column]])

    return change


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (
            lambda d: d.obs.drop(columns="cell_type", inplace=True),
            {},
            r"obs column 'cell_type'.*\['is_train'\]",
        ),
        (
            lambda d: d.obs.drop(columns="is_train", inplace=True),
            {},
            r"obs column 'is_train'.*\['cell_type'\]",
        ),
        (
            lambda d: d.var.drop(columns="feature_types", inplace=True),
            {},
            r"var column 'feature_types'.*\[\]",
        ),
        (lambda d: d.layers.pop("counts"), {}, r"layer 'counts', got only \[\]"),
        (lambda d: setattr(d, "X", None), {}, "matrix 'X'"),
        (relabelled("feature_types", ADT="ATAC"), {}, r"feature type 'ADT'.*\['ATAC', 'GEX'\]"),
        (relabelled("is_train", train="test"), {}, r"is_train value 'train'.*\['iid_holdout', 'test'\]"),
        (without_type, {}, "cell_type: expected a type for every cell, got none for 1 of 30"),
        (None, {"split": "valid"}, r"split: expected one of \['iid_holdout', 'test', 'train'\], got 'valid'"),
        (None, {"num_components": 12}, "num_components: expected 1 to 11 .* got 12"),
        (None, {"num_components": 0}, "num_components: expected 1 to 11 .* got 0"),
    ],
)
def test_bad_cite_seq_files_are_named(tmp_path, change, settings, message):
    source = cells()
    if change is not None:
        change(source)
    with pytest.raises(ValueError, match=message):
        cite_seq(written(tmp_path, source), **{"num_components": 3, **settings})


def test_cell_types_need_their_column(tmp_path):
    source = cells()
    source.obs.drop(columns="cell_type", inplace=True)
    with pytest.raises(ValueError, match="obs column 'cell_type'"):
        cite_seq_cell_types(written(tmp_path, source))


@pytest.mark.parametrize("read", [cite_seq, cite_seq_cell_types])
def test_a_missing_file_says_where_the_data_are(tmp_path, read):
    with pytest.raises(FileNotFoundError, match="accession GSE194122"):
        read(tmp_path / "nothing.h5ad")


@pytest.mark.parametrize(
    ("package", "wanted", "call"),
    [
        ("sklearn.datasets", "scikit-learn", lambda path: digits(jax.random.key(0))),
        ("anndata", "anndata", cite_seq),
        ("anndata", "anndata", cite_seq_cell_types),
    ],
)
def test_a_missing_package_is_named(tmp_path, monkeypatch, package, wanted, call):
    path = written(tmp_path, cells())
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"pip install {wanted}"):
        call(path)
