"""Finished classifiers are taken from where they were kept, and only if they are the same."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import learner
from test_pipeline import LEARNER, screen

import psa_jax as psa
from psa_jax.align.resume import identity, matched_in
from psa_jax.io.archive import read_archive, write_archive
from psa_jax.propensity.task import Task

MODEL = LEARNER.model
DATA, _ = screen(120)
QUICK = learner(LEARNER, epochs=4, folds=3)
KEY = jax.random.key(0)


def align(folder, data=DATA, key=KEY, a=QUICK, b=QUICK):
    stages = []
    found = psa.align(key, data, a=a, b=b, matcher=psa.class_mean, resume=folder, progress=stages.append)
    return found, {step.modality for step in stages if step.stage == "classifiers"}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept") / "stages"
    return folder, align(folder)[0]


def same(one, other):
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(x, y)


def test_what_is_finished_is_not_trained_again(kept, caplog):
    folder, first = kept
    with caplog.at_level("INFO", logger="psa_jax"):
        again, trained = align(folder)
    assert trained == set()
    assert sorted(record.getMessage().split()[1] for record in caplog.records) == sorted(
        path.stem for path in folder.glob("*.npz")
    )
    same(first, again)
    assert again.summary() == first.summary()
    same(first, psa.align(KEY, DATA, a=QUICK, b=QUICK, matcher=psa.class_mean))


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
    "members": ({"b": learner(QUICK, members=2)}, {"b"}),
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


def task(model=MODEL, augment=None, optimizer=None, epochs=2, t=DATA.a.t):
    training = psa.Training(optimizer, epochs=epochs, batch_size=32).annealed(72, judged=True)
    keys = jax.random.split(KEY, 1)
    return Task("a", keys, model, psa.Modality(DATA.a.x, t), None, None, 3, training, augment, None, None, None, None)


def changed(after=None, evaluated=None, started=None):
    """The model with something done to its logits, to those of evaluation, and to its first parameters."""

    def init(key, x):
        params = MODEL.init(key, x)
        return params if started is None else started(params, x)

    def apply(params, x, *, train, key):
        out, params = MODEL.apply(params, x, train=train, key=key)
        out = out if after is None else after(out)
        return (out if train or evaluated is None else evaluated(out)), params

    return psa.Model(init, apply, MODEL.trainable)


def scaled_backwards(scale):
    @jax.custom_vjp
    def same(x):
        return x

    same.defvjp(lambda x: (x, None), lambda _, g: (g * scale,))
    return same


def of_many(scale):
    return lambda params, x: params if x.shape[0] < 10 else jax.tree.map(lambda p: p * scale, params)


def masked(ranks):
    return optax.adamw(0.1, weight_decay=5.0, mask=lambda tree: jax.tree.map(lambda p: p.ndim >= ranks, tree))


def jitted(values):
    held = jnp.asarray(values)
    return jax.jit(lambda x: x * held[None])


def smoothed(values):
    by = jitted(values)
    return lambda key, x: by(x)


ALIKE = {
    "labels": lambda k: task(t=jnp.roll(DATA.a.t, k)),
    "a rate": lambda k: task(optimizer=optax.adam(0.01 * k)),
    "an amount of noise": lambda k: task(augment=psa.gaussian_noise(0.4 * k)),
    "a width": lambda k: task(psa.mlp((8 * k,), 4)),
    "epochs": lambda k: task(epochs=k),
    "an array within jit": lambda k: task(changed(jitted(np.float32([1, 2, 3, k])))),
    "evaluation": lambda k: task(changed(evaluated=lambda out: out * np.float32([[1, 1, 1, k]]))),
    "gradients": lambda k: task(changed(scaled_backwards(float(k)))),
    "where all samples start": lambda k: task(changed(started=of_many(float(k)))),
    "what an optimizer does by shape": lambda k: task(optimizer=masked(k)),
    "a schedule of an array": lambda k: task(optimizer=optax.adam(jax.jit(lambda step: jnp.float32([0.1, k])[step]))),
    "an augment with an array": lambda k: task(augment=smoothed(np.float32([1, 1, 1, 1, k]))),
}


@pytest.mark.parametrize("kind", ALIKE)
def test_what_trains_otherwise_is_told_apart(kind):
    first, again, other = (identity(ALIKE[kind](k)) for k in (1, 1, 2))
    assert first == again != other


def test_what_calls_back_is_never_the_same():
    def outside(x):
        return jax.pure_callback(lambda v: np.asarray(v), jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    def augment(key, x):
        return jax.lax.stop_gradient(outside(x))

    assert identity(task(augment=augment)) != identity(task(augment=augment))


def test_an_optimizer_that_knows_the_parameters():
    by_name = {"trained": optax.adam(1e-2), "not": optax.set_to_zero()}
    optimizer = optax.multi_transform(by_name, lambda tree: jax.tree.map(lambda p: "trained", tree))
    assert identity(task(optimizer=optimizer)) == identity(task(optimizer=optimizer))


T = np.repeat(np.arange(5), [30, 28, 14, 13, 3])  # two buckets
U, V = np.random.default_rng(0).normal(size=(2, T.size, 3)).astype(np.float32)


def match(folder, u=U, t=T, matcher=psa.sinkhorn, mesh=None):
    """What was matched, and how the folder's files then stand."""
    groups = psa.group(t, T, 5)
    found = matched_in(folder, psa.blockwise(matcher, mesh=mesh))(u, V, groups)
    assert len(list(folder.iterdir())) == len(groups.buckets) == 2
    return found, {path.name: path.stat().st_mtime_ns for path in sorted(folder.iterdir())}


def test_treatments_that_were_matched_are_not_matched_again(tmp_path):
    first, before = match(tmp_path)
    again, after = match(tmp_path)
    assert before == after
    same(first, again)
    whole = psa.blockwise(psa.sinkhorn)(U, V, psa.group(T, T, 5))
    assert jax.tree.structure(whole) == jax.tree.structure(first)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(first), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    (tmp_path / "coupling_1.npz").unlink()
    again, after = match(tmp_path)
    assert [name for name in before if before[name] != after[name]] == ["coupling_1.npz"]
    same(first, again)


OTHERWISE = {
    "a setting": {"matcher": functools.partial(psa.sinkhorn, eps=0.2)},
    "a traced setting": {"matcher": jax.tree_util.Partial(psa.sinkhorn, eps=jnp.float32(0.2))},
    "a matcher": {"matcher": psa.snn},
    "a score": {"u": U + (np.arange(U.size).reshape(U.shape) == 7)},
    "the plan": {"t": np.roll(T, 1)},
}


@pytest.mark.parametrize("changes", OTHERWISE.values(), ids=OTHERWISE)
def test_what_is_matched_otherwise_is_matched_again(tmp_path, changes):
    _, before = match(tmp_path)
    found, after = match(tmp_path, **changes)
    assert all(before[name] != after[name] for name in before)
    again, last = match(tmp_path, **changes)
    assert after == last
    same(found, again)


def test_treatments_matched_by_several_devices_go_on(tmp_path):
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    first, before = match(tmp_path, mesh=mesh)
    again, after = match(tmp_path, mesh=mesh)
    assert before == after
    np.testing.assert_array_equal(first.apply(V), again.apply(V))
    np.testing.assert_allclose(
        first.apply(V), psa.blockwise(psa.sinkhorn)(U, V, psa.group(T, T, 5)).apply(V), atol=1e-5
    )
    same(first.info, again.info)


@pytest.mark.parametrize("name", ["classifiers_a.npz", "coupling_0.npz"])
def test_a_damaged_file_is_named(kept, tmp_path, name):
    folder, _ = kept
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes()[: -100 if path.name == name else None])
    with pytest.raises(ValueError, match=f"resume: .*{re.escape(name)}.* without this file"):
        align(tmp_path)


@pytest.mark.parametrize(
    "name", [".logits", ".fitted.history.best_epoch", ".fitted.params['params']['Dense_0']['bias']"]
)
def test_a_file_that_lacks_an_array_is_named(kept, tmp_path, name):
    stored, about = read_archive(kept[0] / "classifiers_a.npz")
    path = tmp_path / "classifiers_a.npz"
    write_archive(path, *({key: one[key] for key in one if key != name} for one in (stored, about)), deflated=False)
    with pytest.raises(ValueError, match=f"resume: .*{path.name}: missing {re.escape(name)}: without this file"):
        align(tmp_path)


def test_a_source_is_known_by_its_rows(tmp_path):
    def read(x):
        return dataclasses.replace(DATA, a=psa.Modality(psa.source(np.asarray(x)), DATA.a.t))

    assert align(tmp_path, data=read(DATA.a.x))[1] == {"a", "b"}
    assert align(tmp_path, data=read(DATA.a.x))[1] == set()
    for place in (0, 2, 71):
        assert align(tmp_path, data=read(DATA.a.x.at[place, 1].add(0.1)))[1] == {"a"}


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


def test_what_cannot_be_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for wrong in (tmp_path / "file", tmp_path / "file" / "below", "", "a\0b", "/proc/self"):
        with pytest.raises(ValueError, match="resume: expected a folder"):
            align(wrong)


def test_a_folder_in_the_place_of_a_file(tmp_path):
    (tmp_path / "classifiers_a.npz").mkdir()
    with pytest.raises(ValueError, match="resume: expected the place of a file, got a folder"):
        align(tmp_path)
