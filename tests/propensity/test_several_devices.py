"""Fewer classifiers than devices are trained by all of them together; more than cores by several programs at once."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import psa_jax as psa
from psa_jax import devices as of_devices
from psa_jax.propensity.augment import in_turn
from psa_jax.propensity.fit import _ensemble

N = 256
T = jnp.arange(N, dtype=jnp.int32) % 4
X = jax.random.normal(jax.random.key(0), (N, 6)) + T[:, None]
MODEL, TRAINING = psa.mlp((8,), 4), psa.Training(epochs=3, batch_size=64)
KEYS = jax.random.split(jax.random.key(1), 5)


def devices(number):
    return jax.make_mesh((number,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:number])


@pytest.mark.parametrize("members", [1, 2])
def test_all_devices_train_what_one_does(members):
    options = {"training": TRAINING, "valid": (X[:50], T[:50]), "augment": psa.smoothing}
    one, several = (psa.fit_ensemble(KEYS[:members], MODEL, X, T, mesh=m, **options) for m in (None, devices(4)))
    for ours, theirs in zip(jax.tree.leaves(several), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_a_batch_is_cut_over_devices_and_gradients_are_added():
    """In the compiled program every device multiplies its own part of a batch only."""

    def compiled(mesh):
        settings = {"model": MODEL, "training": TRAINING.annealed(N, judged=False), "on_epoch": None, "mesh": mesh}
        runs = KEYS[:1], jnp.arange(1), in_turn(None, 1)
        run = _ensemble.lower((X, T, None, None), runs, vectorize=False, **settings)
        return run.compile().as_text()

    assert "all-reduce" not in compiled(None)
    text = compiled(devices(4))
    assert "all-reduce" in text
    assert re.search(r"f32\[16,8\]", text)
    assert not re.search(r"f32\[64,8\]", text)


def test_cores_train_side_by_side_what_one_trains(monkeypatch):
    """On one core five runs are one program, on three each is a program of its own; all are told of once."""
    options = {"training": TRAINING, "valid": (X[:50], T[:50]), "augment": (psa.smoothing, None)}
    found, told = [], []

    def note(epoch, train_loss, valid_loss, *, member):
        told.append((int(member), int(epoch)))

    for cores in (1, 3):
        monkeypatch.setattr(of_devices, "cores", lambda cores=cores: cores)
        found.append(psa.fit_ensemble(KEYS[:5], MODEL, X, T, on_epoch=note, **options))
    for ours, theirs in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    jax.effects_barrier()
    assert sorted(told) == sorted([(member, epoch) for member in range(5) for epoch in range(TRAINING.epochs)] * 2)


def test_side_by_side_within_jit_is_one_program(monkeypatch):
    monkeypatch.setattr(of_devices, "cores", lambda: 2)
    fit = jax.jit(lambda keys: psa.fit_ensemble(keys, MODEL, X, T, training=TRAINING))
    for ours, theirs in zip(*(jax.tree.leaves(f(KEYS[:2]).params) for f in (fit, fit.__wrapped__)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_what_is_trained_stays_where_its_data_are(monkeypatch):
    monkeypatch.setattr(of_devices, "cores", lambda: 2)
    place = jax.devices()[2]
    fitted = psa.fit_ensemble(KEYS[:2], MODEL, jax.device_put(X, place), jax.device_put(T, place), training=TRAINING)
    assert {device for leaf in jax.tree.leaves(fitted.params) for device in leaf.devices()} == {place}
