import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psa_jax as psa
from psa_jax.selection import held_out_agreement

T = np.arange(240) % 4
GROUPS = psa.group(T, T, 4)


def views(noise, seed=0):
    """Two noisy copies of one four-dimensional linear map of a two-dimensional state, in unrelated orders."""
    rng = np.random.default_rng(seed)
    z, mix = rng.normal(size=(240, 2)), rng.normal(size=(2, 6))
    u, v = (z @ mix + noise * rng.normal(size=(240, 6)) for _ in range(2))
    order = np.concatenate([rng.permutation(np.flatnonzero(t == T)) for t in range(4)])
    place = np.concatenate([np.flatnonzero(t == T) for t in range(4)])
    shuffled = np.empty_like(v)
    shuffled[place] = v[order]
    return jnp.asarray(u, jnp.float32), jnp.asarray(shuffled, jnp.float32)


def test_it_falls_with_noise_that_is_not_shared_and_vanishes_without_a_common_state():
    key = jax.random.key(0)
    values = [float(held_out_agreement(key, psa.sinkhorn, *views(noise), GROUPS).mean()) for noise in (0.0, 0.5, 2.0)]
    assert values[0] > values[1] > values[2]
    assert values[0] > 0.8
    u, _ = views(0.1)
    _, v = views(0.1, seed=1)
    assert abs(float(held_out_agreement(key, psa.sinkhorn, u, jax.random.permutation(key, v), GROUPS).mean())) < 0.3


def test_it_ignores_what_only_separates_treatments():
    offsets = 10 * jax.random.normal(jax.random.key(1), (4, 6))[T]
    u, v = views(0.3)
    key, matcher = jax.random.key(0), functools.partial(psa.sinkhorn, eps=0.5)
    plain, shifted = (held_out_agreement(key, matcher, *pair, GROUPS) for pair in ((u, v), (u + offsets, v + offsets)))
    np.testing.assert_allclose(plain, shifted, atol=0.02)


def test_one_column_cannot_be_held_out():
    with pytest.raises(ValueError, match="u: expected at least two columns"):
        held_out_agreement(jax.random.key(0), psa.sinkhorn, jnp.ones((240, 1)), jnp.ones((240, 1)), GROUPS)
