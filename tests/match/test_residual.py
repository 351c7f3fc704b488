import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import MATCHED, pair_of_clouds, ragged, uniform

import psa_jax as psa

KEY = jax.random.key(0)


def dense_residual(key, coupling):
    """From dense matrices: how the solution of a backward pass, got by its own cotangents, misses what was asked."""
    plan = np.asarray(coupling.dense(), float)
    rows, cols = plan.sum(1), plan.sum(0)
    key_y, key_w = jax.random.split(key)
    y, w = np.asarray(jax.random.normal(key_y, cols.shape)), np.asarray(jax.random.normal(key_w, rows.shape))
    law = plan / rows[:, None]
    aim = (law * w[:, None] * (y[None] - (law @ y)[:, None])).sum(0)
    return np.linalg.norm(aim / np.sqrt(cols)), aim, plan, rows, cols


@pytest.mark.parametrize("memory", [2**31, 1024])
def test_smooth_plans_are_solved_and_of_permutations_nothing_is_asked(memory):
    u, _ = pair_of_clouds(48, 48)
    v = u + 0.02 * jax.random.normal(KEY, u.shape)
    found = {}
    for eps in (0.3, 0.1, 0.02, 0.0005):
        matcher = functools.partial(psa.sinkhorn, eps=psa.relative(eps), tol=1e-4, max_iters=5000, memory=memory)
        coupling = matcher(u, v, uniform(48), uniform(48))
        found[eps] = max(float(psa.gradient_residual(key, coupling)) for key in jax.random.split(KEY, 4))
    assert found[0.3] < 1e-3
    assert found[0.1] < 1e-3
    assert 1e-3 < found[0.02] <= 1.01
    assert found[0.0005] == 0


def test_one_sample_asks_nothing_and_a_plan_that_is_not_finite_solves_nothing():
    u, v = pair_of_clouds(9, 9)
    assert float(psa.gradient_residual(KEY, psa.sinkhorn(u[:1], v[:1], uniform(1), uniform(1)))) == 0
    whole = psa.sinkhorn(u, v, uniform(9), uniform(9))
    lost = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan) if x.dtype == jnp.float32 else x, whole.left)
    broken = dataclasses.replace(whole, left=lost)
    assert float(psa.gradient_residual(KEY, broken)) == np.inf


def test_double_precision_solves_what_a_dense_solve_does(x64):
    u, v = pair_of_clouds(9, 14, dtype=jnp.float64)
    coupling = psa.sinkhorn(u, v, uniform(9, u.dtype), uniform(14, u.dtype), eps=0.3, tol=1e-10)
    assert float(psa.gradient_residual(KEY, coupling)) < 1e-7
    norm, aim, plan, rows, cols = dense_residual(KEY, coupling)
    hessian = np.block([[np.diag(rows), plan], [plan.T, np.diag(cols)]])
    solution = np.linalg.lstsq(hessian, np.concatenate([np.zeros(9), aim]), rcond=None)[0]
    assert np.linalg.norm((plan.T @ solution[:9] + cols * solution[9:] - aim) / np.sqrt(cols)) / norm < 1e-7


def test_a_small_residual_means_the_gradient_of_float64():
    u, _ = pair_of_clouds(24, 24)
    v = u + 0.05 * jax.random.normal(KEY, u.shape)
    y = jax.random.normal(jax.random.key(1), (24, 2))

    def gradient(eps, dtype):
        scores = [jnp.asarray(x, dtype) for x in (u, v)]
        w = uniform(24, dtype)

        def loss(u, v):
            coupling = psa.sinkhorn(u, v, w, w, eps=psa.relative(eps), tol=1e-5, max_iters=20000)
            return jnp.sum(coupling.apply(y.astype(dtype)) ** 2), coupling

        return jax.grad(loss, has_aux=True)(*scores)

    small = 0
    for eps in (0.3, 0.1, 0.05):
        ours, coupling = gradient(eps, jnp.float32)
        if float(psa.gradient_residual(KEY, coupling)) > 1e-3:
            continue
        with jax.enable_x64(True):
            exact, _ = gradient(eps, jnp.float64)
        np.testing.assert_allclose(ours, exact, atol=1e-2 * np.linalg.norm(exact))
        small += 1
    assert small >= 2


def test_blocks_have_one_each_and_padding_changes_nothing():
    u, v, *_, t_a, t_b, groups = ragged()
    matcher = functools.partial(psa.sinkhorn, eps=0.2, tol=1e-4)
    coupling = psa.blockwise(matcher)(u, v, groups)
    found = np.asarray(jax.jit(psa.gradient_residual)(KEY, coupling))
    assert found.shape == (8,)
    assert (found < 1e-3).all()
    assert not np.delete(found, MATCHED).any()
    assert (psa.gradient_residual(KEY, coupling.T) < 1e-3).all()


@pytest.mark.parametrize("matcher", [psa.snn, psa.nearest, psa.assignment])
def test_others_have_no_such_system(matcher):
    u, v = pair_of_clouds(9, 14)
    with pytest.raises(ValueError, match="coupling: expected one of `sinkhorn`, as it is, got"):
        psa.gradient_residual(KEY, matcher(u, v, uniform(9), uniform(14)))
    shrunk = psa.shrink(psa.sinkhorn(u, v, uniform(9), uniform(14)), 0.5)
    with pytest.raises(ValueError, match="coupling: expected one of `sinkhorn`, as it is, got Shrunk"):
        psa.gradient_residual(KEY, shrunk)
