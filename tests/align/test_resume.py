"""Finished classifiers are taken from where they were kept, and only if they are the same."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import learner
from test_pipeline import LEARNER, screen

import psa_jax as psa

DATA, _ = screen(120)
QUERY, _ = screen(80, seed=1)
QUICK = learner(LEARNER, epochs=4, folds=3)
KEY = jax.random.key(0)


def align(folder, data=DATA, key=KEY, query=None, a=QUICK, b=QUICK):
    stages = []
    found = psa.align(key, data, query=query, a=a, b=b, resume=folder, progress=stages.append)
    return found, {step.modality for step in stages if step.stage == "classifiers"}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept") / "stages"
    return folder, align(folder)[0]


def same(one, other):
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(x, y)


def test_what_is_finished_is_not_trained_again(kept):
    folder, first = kept
    again, trained = align(folder)
    assert trained == set()
    same(first, again)
    assert again.summary() == first.summary()
    same(first, psa.align(KEY, DATA, a=QUICK, b=QUICK))


def test_an_interrupted_run_goes_on_with_the_other_modality(kept, tmp_path):
    folder, first = kept
    (tmp_path / "classifiers_a.npz").write_bytes((folder / "classifiers_a.npz").read_bytes())
    again, trained = align(tmp_path)
    assert trained == {"b"}
    same(first, again)
    assert align(tmp_path)[1] == set()


CHANGED = {
    "key": ({"key": jax.random.key(1)}, {"a", "b"}),
    "features": ({"data": dataclasses.replace(DATA, a=psa.Modality(DATA.a.x.at[7, 0].add(1), DATA.a.t))}, {"a"}),
    "labels": ({"data": dataclasses.replace(DATA, b=psa.Modality(DATA.b.x, DATA.b.t[::-1]))}, {"b"}),
    "optimizer": ({"a": learner(QUICK, optimizer=optax.adam(2e-2))}, {"a"}),
    "epochs": ({"a": learner(QUICK, epochs=5)}, {"a"}),
    "model": ({"b": learner(QUICK, model=psa.mlp((12,), 4))}, {"b"}),
    "smoothing": ({"b": learner(QUICK, augment=psa.gaussian_noise(0.4))}, {"b"}),
    "members": ({"b": learner(QUICK, members=2)}, {"b"}),
    "query": ({"query": QUERY}, {"a", "b"}),
}


@pytest.mark.parametrize(("changes", "expected"), CHANGED.values(), ids=CHANGED)
def test_what_is_not_the_same_is_trained_again_and_replaced(kept, tmp_path, changes, expected):
    folder, _ = kept
    for name in "ab":
        (tmp_path / f"classifiers_{name}.npz").write_bytes((folder / f"classifiers_{name}.npz").read_bytes())
    found, trained = align(tmp_path, **changes)
    assert trained == expected
    again, trained = align(tmp_path, **changes)
    assert trained == set()
    same(found, again)


@pytest.mark.parametrize("changes", [{"transform": psa.centre}, {"divide_prior": False}])
def test_what_only_makes_scores_of_logits_needs_no_training(kept, changes):
    folder, first = kept
    one = learner(QUICK, **changes)
    found, trained = align(folder, a=one, b=one)
    assert trained == set()
    assert float(jnp.abs(found.scores_a - first.scores_a).max()) > 0


def test_a_damaged_file_is_named(kept, tmp_path):
    folder, _ = kept
    (tmp_path / "classifiers_a.npz").write_bytes((folder / "classifiers_a.npz").read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"classifiers_a\.npz"):
        align(tmp_path)


def test_a_source_is_known_by_its_rows(tmp_path):
    def read(x):
        return dataclasses.replace(DATA, a=psa.Modality(psa.source(np.asarray(x)), DATA.a.t))

    assert align(tmp_path, data=read(DATA.a.x))[1] == {"a", "b"}
    assert align(tmp_path, data=read(DATA.a.x))[1] == set()
    assert align(tmp_path, data=read(DATA.a.x[::-1]))[1] == {"a"}


def test_many_treatments_go_on_too(tmp_path):
    from test_many_treatments import DATA as MANY
    from test_many_treatments import LEARNER as OF_MANY

    one = learner(OF_MANY, components=8)
    first, trained = align(tmp_path, data=MANY, a=one, b=one)
    assert trained == {"a", "b"}
    again, trained = align(tmp_path, data=MANY, a=one, b=one)
    assert trained == set()
    same(first, again)


@pytest.mark.parametrize("wrong", [3, ["folder"], DATA])
def test_a_folder_is_named_by_a_path(wrong):
    with pytest.raises(ValueError, match="resume: expected"):
        psa.align(KEY, DATA, resume=wrong)


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="resume: expected a folder"):
        align(tmp_path / "file")
