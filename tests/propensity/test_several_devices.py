"""Fewer classifiers than devices are trained by all of them together."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import psa_jax as psa
from psa_jax.propensity.augment import in_turn
from psa_jax.propensity.fit import _ensemble

N = 256
T = jnp.arange(N, dtype=jnp.int32) % 4
X = jax.random.normal(jax.random.key(0), (N, 6)) + T[:, None]
MODEL, TRAINING = psa.mlp((8,), 4), psa.Training(epochs=3, batch_size=64)
KEYS = jax.random.split(jax.random.key(1), 2)


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
        run = _ensemble.lower(KEYS[:1], X, T, None, in_turn(None, 1), None, vectorize=False, **settings)
        return run.compile().as_text()

    assert "all-reduce" not in compiled(None)
    text = compiled(devices(4))
    assert "all-reduce" in text
    assert re.search(r"f32\[16,8\]", text)
    assert not re.search(r"f32\[64,8\]", text)
