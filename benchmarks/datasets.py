"""Small data sets with known pairs, by the seed that decides their order.

`snare` and `bmmc` are read from the folder of shared data (environment variable PSA_JAX_DATA, or `../shared/data`).
"""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

import psa_jax as psa
from benchmarks.tables import README

SHARED = pathlib.Path(os.environ.get("PSA_JAX_DATA", README.parent.parent / "shared" / "data"))


def balls(seed):
    key_train, key_test = jax.random.split(jax.random.key(seed))
    train, _ = psa.datasets.balls(key_train, num_samples=4000, image_size=32)
    test, truth = psa.datasets.balls(key_test, num_samples=2000, image_size=32)
    learner = psa.Learner(psa.conv((32, 64, 128), 12), training=psa.Training(epochs=15, patience=15), members=1)
    return train, test, truth, {"query": test, "a": learner, "b": learner}


def digits(seed):
    data, truth = psa.datasets.digits(jax.random.key(seed))
    return data, data, truth, {}


def snare(seed):
    with np.load(SHARED / "snare_seq.npz") as file:
        x_a, x_b, t = (file[name] for name in ("x1", "x2", "t"))
    order = np.asarray(jax.random.permutation(jax.random.key(seed), t.size))
    data = psa.Unpaired(
        psa.Modality(jnp.asarray(x_a), jnp.asarray(t, jnp.int32)),
        psa.Modality(jnp.asarray(x_b[order]), jnp.asarray(t[order], jnp.int32)),
        4,
    )
    return data, data, psa.Truth(jnp.asarray(np.argsort(order), jnp.int32)), {}


def bmmc(seed):
    data, truth = psa.datasets.cite_seq(SHARED / "bmmc_cite_600.h5ad")
    return data, data, truth, {}


SOURCES = {"digits": digits, "snare": snare, "bmmc": bmmc, "balls": balls}
