"""Evidence from covariances: power where a state is common, silence where nothing is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psa_jax as psa
from psa_jax.judge.evidence import _agreement, evidence

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


def brute(x, y, used, orders):
    """Agreement of the halves' cross-covariances, and the same with the held-out half of y reordered."""

    def standardised(z, columns):
        mine, held = z[:, columns], z[:, ~columns]
        held = held - held.mean(1, keepdims=True)
        return mine / mine.std(0), held / held.std(0)

    found = []
    for columns in used:
        (x_mine, x_held), (y_mine, y_held) = standardised(x, columns), standardised(y, columns)
        cross = x_mine.T @ x_held / len(x)
        reach = y_mine @ cross
        found.append([np.sum(reach * y_held[order]) / len(y) for order in orders])
    return np.mean(found, axis=0)


def test_agreement_and_its_deviation_are_those_of_random_pairings():
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(3, D))
    x, y = (rng.normal(size=(n, 3)) @ mix + rng.normal(size=(n, D)) for n in (50, 40))
    x, y = x - x.mean(0), y - y.mean(0)
    used = np.stack([rng.permutation(D) < D // 2 for _ in range(3)])
    found = [x.T @ x / len(x), len(x), y.T @ y / len(y), len(y)]
    s, deviation = _agreement(*(jnp.asarray(part, jnp.float32)[None] for part in found), jnp.asarray(used))
    orders = [np.arange(40), *(rng.permutation(40) for _ in range(4000))]
    of_b = brute(x, y, used, orders)
    of_a = brute(y, x, used, [np.arange(50), *(rng.permutation(50) for _ in range(4000))])
    np.testing.assert_allclose(s[0], of_b[0], rtol=1e-4)
    np.testing.assert_allclose(s[0], of_a[0], rtol=1e-4)
    np.testing.assert_allclose(deviation[0], max(of_a[1:].std(), of_b[1:].std()), rtol=0.05)
