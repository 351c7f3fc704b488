"""Alignments in files: those of version 0.4 too."""

import json
import pathlib
import shutil
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psa_jax as psa

OLD = pathlib.Path(__file__).with_name("alignment_0_4_0.npz")  # 24 x 18 samples, linear classifiers, shrunk by a half


def test_a_file_of_version_0_4_is_loaded_with_functions_by_their_names_of_today():
    model = psa.linear(3)
    alignment = psa.io.load_alignment(OLD, model_a=model, model_b=model)
    t = jnp.arange(24) % 3
    x = jax.random.normal(jax.random.key(0), (24, 3)) + t[:, None].astype(jnp.float32)
    # as version 0.4.0 printed them
    expected = [[-0.2750868797302246, -0.04047739505767822, 1.1594593524932861]]
    expected += [[-1.268242359161377, -1.0887643098831177, -1.0875483751296997]]
    np.testing.assert_allclose(alignment.coupling.apply(-x[:18])[:2], expected, rtol=1e-5)
    scores = [[-0.00014221668243408203, 0.0003249645233154297, -0.00018286705017089844]]
    np.testing.assert_allclose(alignment.score_a(x[:1]), scores, atol=1e-6)
    assert alignment.names is None


def test_a_file_of_version_0_4_with_another_transform_is_refused_by_todays_name():
    expected = r"transform: expected psa_jax.propensity.scores.centre, as saved, got .*softmax"
    with pytest.raises(ValueError, match=expected):
        psa.io.load_alignment(OLD, model_a=psa.linear(3), model_b=psa.linear(3), transform=jax.nn.log_softmax)


def test_a_file_of_the_future_is_refused(tmp_path):
    path = tmp_path / "it.npz"
    shutil.copy(OLD, path)
    with zipfile.ZipFile(OLD) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "about.json":
                about = json.loads(content)
                about["alignment"]["version"] = 99
                content = json.dumps(about).encode()
            new.writestr(name, content)
    with pytest.raises(ValueError, match="version 3 or before, got 99: a newer psa_jax"):
        psa.io.load_alignment(path)


def test_names_of_treatments_are_kept(tmp_path):
    t, labels = np.arange(30) % 2, np.array(["control", "drug"])
    x = np.random.default_rng(0).normal(size=(30, 2)).astype("float32") + t[:, None]
    data = psa.Unpaired.from_labels(x, labels[t], -x, labels[t])
    quick = psa.Learner(psa.linear(2), training=psa.Training(epochs=1), folds=3, members=1)
    alignment = psa.align(jax.random.key(0), data, a=quick, b=quick)
    psa.io.save_alignment(tmp_path / "it.npz", alignment)
    back = psa.io.load_alignment(tmp_path / "it.npz", model_a=quick.model, model_b=quick.model)
    assert back.names == ("control", "drug")
    assert jax.tree.structure(back) == jax.tree.structure(alignment)
    assert repr(back) == repr(alignment)


def test_refined_scores_and_what_refines_new_ones_are_kept(tmp_path):
    rng, t = np.random.default_rng(0), np.arange(1200) % 8
    shifts, maps = rng.normal(size=(8, 3)), rng.normal(size=(2, 3, 5))
    a, b = (
        psa.Modality((shifts[t] + rng.normal(size=(1200, 3))).astype("float32") @ mix.astype("float32"), t)
        for mix in maps
    )
    quick = psa.Learner(psa.linear(8), training=psa.Training(epochs=40), folds=3, members=1)
    alignment = psa.align(jax.random.key(0), psa.Unpaired(a, b, 8), a=quick, b=quick)
    assert alignment.refined_a is not None
    psa.io.save_alignment(tmp_path / "it.npz", alignment)
    back = psa.io.load_alignment(tmp_path / "it.npz", model_a=quick.model, model_b=quick.model)
    assert jax.tree.structure(back) == jax.tree.structure(alignment)
    np.testing.assert_array_equal(back.score_a(a.x[:9]), alignment.score_a(a.x[:9]))
    np.testing.assert_array_equal(back.T.score_b(a.x[:9]), alignment.score_a(a.x[:9]))
    near = np.corrcoef(np.ravel(alignment.score_a(a.x)), np.ravel(alignment.scores_a))[0, 1]
    assert near > 0.9
