"""Gradients of converged float32 solves: always finite, and those of float64 where the plan is no permutation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import slow

import psa_jax as psa

SEEDS, N, M = 16, 24, 20
SETTINGS = {
    "stored": {},
    "tiled": {"memory": 1024},
    "kept": {"memory": 5000},
    "unbalanced": {"tau_a": 0.9, "tau_b": 0.95},
    "newton": {"newton": 5},
}
SMALL = {"tiled": {"memory": 64}, "kept": {"memory": 300}}  # of 6 x 5 in float64


def problems(paired, dtype):
    """Sixteen problems of 2 to 24 rows, padded to one shape; the padding holds numbers that must not matter."""
    rng = np.random.default_rng(0)
    u, v = rng.normal(size=(SEEDS, N, 3)), rng.normal(size=(SEEDS, M, 3))
    if paired:
        v = u[:, :M] + 0.02 * v
    sizes = np.maximum(2, np.linspace(2, N, SEEDS).astype(int))
    a, b = (
        (np.arange(k) < np.minimum(sizes, k)[:, None]) / np.minimum(sizes, k)[:, None].astype(float) for k in (N, M)
    )
    y, w = rng.normal(size=(SEEDS, M, 2)), rng.normal(size=(SEEDS, N, 2))
    return tuple(jnp.asarray(x, dtype) for x in (u, v, a, b, y, w))


def gradients(settings):
    """Of a projection in both sides' scores, with the least certain row of each plan; one problem after the other."""

    def loss(scores, a, b, y, w, eps):
        coupling = psa.sinkhorn(*scores, a, b, eps=psa.relative(eps), tol=1e-4, max_iters=4000, **settings)
        return jnp.sum(w * coupling.apply(y)), coupling

    def one(args, eps):
        u, v, a, b, y, w = args
        found, coupling = jax.grad(loss, has_aux=True)((u, v), a, b, y, w, eps)
        best = coupling.top_k(1)[0][:, 0]
        return found, 1 - jnp.where(a > 0, best, 1).min(), coupling.info.converged

    return jax.jit(lambda args, eps: jax.lax.map(functools.partial(one, eps=eps), args))


@pytest.mark.parametrize("name", ["stored", "newton", *slow("tiled", "kept", "unbalanced")])
def test_gradients_are_finite_and_those_of_float64(name):
    compared = 0
    single = gradients(SETTINGS[name])
    for paired in (True, False):
        for eps in (0.3, 0.1, 0.02, 0.003):
            found, spread, ours_converged = single(problems(paired, jnp.float32), jnp.float32(eps))
            for side in found:
                assert np.isfinite(side).all(), (paired, eps)
            if name in ("tiled", "newton") or eps < 0.02:
                continue
            with jax.enable_x64(True):
                exact, spread, converged = gradients(SETTINGS[name])(problems(paired, jnp.float64), jnp.float64(eps))
            both = np.asarray(converged) & np.asarray(ours_converged)  # of what is said to have converged
            for k in np.flatnonzero((np.asarray(spread) > 1e-2) & both):
                ours, theirs = (np.concatenate([np.ravel(side[k]) for side in sides]) for sides in (found, exact))
                error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
                assert error < 1e-2, (paired, eps, k, error)
                compared += 1
    assert compared > 30 or name in ("tiled", "newton")


def test_two_points_that_are_their_own_partners_have_no_gradient():
    a = jnp.full(2, 0.5)
    u = jnp.array([[0.0, 0.0], [1.0, 1.5]])
    y = jnp.array([[1.0, 2.0], [3.0, 5.0]])

    for points in (u, jnp.zeros_like(u)):  # a permutation up to rounding, and a plan of equal costs

        def loss(u, v=points + 0.01):
            return jnp.sum(psa.sinkhorn(u, v, a, a, eps=psa.relative(0.05)).apply(y) ** 2)

        np.testing.assert_allclose(jax.grad(loss)(points), 0, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, *slow(jnp.bfloat16)])
def test_sharp_batches_have_finite_gradients(dtype):
    num_treatments = 8

    def step(key, eps):
        key_z, key_noise, key_t = jax.random.split(key, 3)
        z = jax.random.normal(key_z, (64, 4))
        x = (z + 0.02 * jax.random.normal(key_noise, z.shape)).astype(dtype)
        t = jax.random.randint(key_t, (64,), 0, num_treatments)

        def loss(u, v):
            matcher = functools.partial(psa.sinkhorn, eps=psa.relative(eps))
            coupling = psa.match_batch(u, v, t, t, num_treatments=num_treatments, capacity=16, matcher=matcher)
            return jnp.sum((coupling.apply(v).astype(jnp.float32) - u.astype(jnp.float32)) ** 2)

        return jax.grad(loss, (0, 1))(z.astype(dtype), x)

    steps = jax.jit(lambda keys, eps: jax.lax.map(functools.partial(step, eps=eps), keys))
    for eps in (0.1, 0.05, 0.02, 0.005):
        for side in steps(jax.random.split(jax.random.key(0), 40), jnp.float32(eps)):
            assert np.isfinite(np.asarray(side, np.float32)).all(), eps


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stored", "tiled", "kept", "unbalanced"])
def test_derivatives_of_any_order_and_mode(name, x64):
    """Forward mode, reverse over reverse and forward over reverse, against central differences."""
    rng = np.random.default_rng(1)
    u, v, y = (jnp.asarray(rng.normal(size=(n, 2))) for n in (6, 5, 5))
    a, b, along, step = jnp.full(6, 1 / 6), jnp.full(5, 0.2), jnp.asarray(rng.normal(size=(6, 2))), 1e-5
    settings = {**SETTINGS[name], **SMALL.get(name, {}), "newton": 5}

    @jax.jit
    def loss(u, eps):
        return jnp.sum(psa.sinkhorn(u, v, a, b, eps=eps, tol=1e-11, **settings).apply(y) ** 2)

    eps = jnp.asarray(0.3)
    gradient = jax.jit(jax.grad(loss))
    change = (loss(u + step * along, eps) - loss(u - step * along, eps)) / (2 * step)
    np.testing.assert_allclose(jnp.vdot(gradient(u, eps), along), change, rtol=1e-6)
    np.testing.assert_allclose(jax.jvp(lambda u: loss(u, eps), (u,), (along,))[1], change, rtol=1e-6)
    turn = (gradient(u + step * along, eps) - gradient(u - step * along, eps)) / (2 * step)
    for hessian in (jax.jacrev(gradient), jax.hessian(loss)):
        np.testing.assert_allclose(jnp.tensordot(hessian(u, eps), along, 2), turn, atol=1e-6 * jnp.abs(turn).max())
    in_eps = (gradient(u, eps + step) - gradient(u, eps - step)) / (2 * step)
    np.testing.assert_allclose(jax.jacfwd(gradient, 1)(u, eps), in_eps, atol=1e-5 * jnp.abs(in_eps).max())


@pytest.mark.parametrize("cost", [psa.euclidean, psa.squared_euclidean, psa.cosine])
def test_many_tangents_at_once_are_those_of_one_after_the_other(cost):
    """In float32 at sizes where XLA fuses: several tangents of one program against the gradient."""
    rng = np.random.default_rng(0)
    u, v, y, weight = (jnp.float32(rng.normal(size=(24, k))) for k in (3, 3, 2, 2))
    a = jnp.full(24, 1 / 24)

    def loss(u):
        return (psa.sinkhorn(u, v, a, a, eps=0.3, cost=cost).apply(y) * weight).sum()

    gradient = jax.grad(loss)(u)
    np.testing.assert_allclose(jax.jacfwd(loss)(u), gradient, atol=1e-3 * float(jnp.abs(gradient).max()))
