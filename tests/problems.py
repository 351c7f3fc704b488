"""Small problems that several test modules use."""

import dataclasses
import socket

import jax.numpy as jnp
import numpy as np
import pytest

import psa_jax as psa

SIZES_A = [0, 1, 2, 5, 30, 7, 1, 2]
SIZES_B = [3, 1, 1, 9, 22, 0, 4, 2]
TRAINING = [field.name for field in dataclasses.fields(psa.Training)]
MATCHED = [t for t, (n, m) in enumerate(zip(SIZES_A, SIZES_B, strict=True)) if n and m]


def learner(base=None, /, **changes):
    """A learner with other settings, those of its training among them."""
    training = {name: changes.pop(name) for name in TRAINING if name in changes}
    base = base or psa.Learner(members=1)
    return dataclasses.replace(base, training=dataclasses.replace(base.training, **training), **changes)


def labels(seed=0):
    """Labels of unequal groups, shuffled: treatments of size 0, 1 and 2 on either side are there."""
    rng = np.random.default_rng(seed)
    return (rng.permutation(np.repeat(np.arange(len(sizes)), sizes)) for sizes in (SIZES_A, SIZES_B))


def ragged(dtype=jnp.float32, dim=3, seed=0):
    """`(u, v, y, t_a, t_b, groups)` of unequal groups."""
    rng = np.random.default_rng(seed)
    t_a, t_b = labels(seed)
    u, v, y = (
        jnp.asarray(rng.normal(size=(n, d)), dtype) for n, d in ((t_a.size, dim), (t_b.size, dim), (t_b.size, 2))
    )
    return u, v, y, t_a, t_b, psa.group(t_a, t_b, len(SIZES_A))


def slow(*cases):
    """Cases of a parametrised test that repeat at length what a fast one shows: `pytest -m slow` runs them."""
    return [
        pytest.param(*case, marks=pytest.mark.slow)
        if isinstance(case, tuple)
        else pytest.param(case, marks=pytest.mark.slow)
        for case in cases
    ]


def uniform(n, dtype=jnp.float32):
    return jnp.full(n, 1 / n, dtype)


def pair_of_clouds(n, m, dim=3, seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(n, dim)), dtype), jnp.asarray(rng.normal(size=(m, dim)) + 0.3, dtype)


def free_port():
    """One that nobody listens at."""
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return str(server.getsockname()[1])
