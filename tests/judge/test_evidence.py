"""Evidence from covariances: power where a state is common, silence where nothing is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psa_jax as psa
from psa_jax.judge.evidence import evidence

KEY = jax.random.key(0)
NUM, EACH, D = 8, 60, 9
T_A, T_B = np.repeat(np.arange(NUM), EACH), np.tile(np.arange(NUM), EACH)
GROUPS = psa.group(T_A, T_B, NUM)


def centred(x):
    return jnp.asarray(x - x.mean(1, keepdims=True), jnp.float32)


def views(seed=0, common=True, noise=1.0, blind=()):
    """Scores of independent samples: linear in states of three dimensions, by one map or by one for each modality."""
    rng = np.random.default_rng(seed)
    maps = [rng.normal(size=(3, D)) for _ in range(2)]
    out = []
    for side, t in enumerate((T_A, T_B)):
        x = rng.normal(size=(t.size, 3)) @ maps[0 if common else side] + noise * rng.normal(size=(t.size, D))
        out.append(centred(np.where(np.isin(t, blind)[:, None], rng.normal(size=x.shape), x)))
    return out


def test_a_common_state_is_found_in_every_treatment_and_only_where_it_is():
    found = evidence(KEY, *views(), GROUPS)
    assert bool(found.common)
    assert found.found.all()
    found = evidence(KEY, *views(blind=(2, 5)), GROUPS)
    assert np.flatnonzero(~np.asarray(found.found)).tolist() == [2, 5]


@pytest.mark.parametrize("common", ["noise", "maps of their own"])
def test_nothing_common_is_hardly_ever_found(common):
    """Accidents agree in some treatments, but as much when columns are renamed."""
    claims = []
    for seed in range(20):
        u, v = views(seed, common=False, noise=50.0 if common == "noise" else 1.0)
        claims.append(np.asarray(evidence(jax.random.key(seed), u, v, GROUPS).found))
    assert np.mean(claims) <= 0.05


def test_units_and_the_order_of_samples_change_nothing_that_counts():
    u, v = views()
    first, second = evidence(KEY, u, v, GROUPS), evidence(KEY, 100 * u, 1e-3 * v, GROUPS)
    np.testing.assert_allclose(first.z, second.z, rtol=1e-3)
    assert float(first.p_value) == float(second.p_value)


def test_few_columns_few_samples_and_treatments_of_one_side_have_none():
    u, v = views()
    found = evidence(KEY, u[:, :4], v[:, :4], GROUPS)
    assert np.isneginf(found.z).all()
    assert float(found.p_value) == 1
    t_b = np.where(T_B == 3, 2, T_B)
    t_a = np.where((T_A == 4) & (np.arange(T_A.size) % EACH > 2), 5, T_A)
    found = evidence(KEY, u, v, psa.group(t_a, t_b, NUM))
    assert np.flatnonzero(np.isneginf(found.z)).tolist() == [3, 4]
    assert bool(found.common)


def test_many_columns_are_drawn_from():
    rng = np.random.default_rng(1)
    mix = rng.normal(size=(3, 60))
    u, v = (centred(rng.normal(size=(t.size, 3)) @ mix + rng.normal(size=(t.size, 60))) for t in (T_A, T_B))
    assert evidence(KEY, u, v, GROUPS).found.all()
