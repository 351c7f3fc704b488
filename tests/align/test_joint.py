"""Encoders trained through the coupling: other people's models, and a thousand steps that stay as they began."""

import gc

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import psa_jax as psa
from benchmarks.joint import prediction_error, train

T = 4


def plain_init(key, x):
    return {"w": 0.1 * jax.random.normal(key, (x.shape[1], T)), "b": jnp.zeros(T)}


def plain_apply(params, x, *, train, key):
    return x @ params["w"] + params["b"][None], params


PLAIN = psa.Model(plain_init, plain_apply)


def make_equinox(key, x):
    return eqx.nn.MLP(x.shape[1], T, 8, 1, key=key)


def equinox_init(key, x):
    return eqx.filter(make_equinox(key, x), eqx.is_array)


def equinox_apply(params, x, *, train, key):
    """The arrays are the params; everything else of the module is made anew from their shapes."""
    static = eqx.filter(make_equinox(jax.random.key(0), x), eqx.is_array, inverse=True)
    with jax.numpy_rank_promotion("allow"):
        return jax.vmap(eqx.combine(params, static))(x), params


EQUINOX = psa.Model(equinox_init, equinox_apply)


def problem(n=400, seed=0):
    """Two linear views of one state, each with a strong disturbance of its own."""
    rng = np.random.default_rng(seed)
    sides, states = [], []
    for place in range(2):
        t = rng.integers(0, T, n)
        z = rng.normal(size=(n, 2)) + 2 * np.array([[0, 0], [1, 0], [0, 1], [1, 1]])[t]
        x = np.concatenate([z, 2 * rng.normal(size=(n, 2))], 1) @ np.random.default_rng(place).normal(size=(4, 4))
        sides.append(psa.Modality(jnp.asarray(x, jnp.float32), jnp.asarray(t, jnp.int32)))
        states.append(z)
    return psa.Unpaired(*sides, T), states


@pytest.mark.slow  # a soak
def test_a_thousand_steps_are_stable():
    data, (z_a, z_b) = problem()
    models = {"a": PLAIN, "b": PLAIN}
    params = {side: PLAIN.init(jax.random.key(place), getattr(data, side).x) for place, side in enumerate("ab")}
    alive = []

    def report(number, params, loss, step):
        if number in (99, 999):
            gc.collect()
            alive.append((len(jax.live_arrays()) - number, step._cache_size()))  # each loss is kept

    with jax.numpy_dtype_promotion("standard"):  # optax relies on it
        out, losses, programs, _ = train(
            jax.random.key(2), models, params, data, steps=1000, rows=48, weight=0.05, rate=1e-2, report=report
        )
    chex.assert_tree_all_finite((out, losses))
    assert programs == 1
    assert alive[0] == alive[1]
    assert losses[-100:].mean() < 0.8 * losses[:20].mean()

    def error(params):
        u, v = (psa.centre(PLAIN.apply(params[s], getattr(data, s).x, train=False, key=None)[0]) for s in "ab")
        coupling = psa.blockwise(psa.sinkhorn)(u, v, psa.group(data.a.t, data.b.t, T))
        return float(np.mean((np.asarray(coupling.apply(jnp.asarray(z_b, jnp.float32))) - z_a) ** 2))

    assert error(out) < 0.5 * error(params)


def test_the_prediction_error_knows_pairs_from_noise():
    rng = np.random.default_rng(0)
    t = jnp.arange(90) % T
    state = rng.normal(size=(90, 1)) * np.array([[1.0, -2.0, 0.5, 1.5]])
    u, noise = jnp.asarray(state, jnp.float32), jnp.asarray(rng.normal(size=(90, 4)), jnp.float32)
    error = jax.jit(lambda u, v: prediction_error(jax.random.key(0), u, v, t, t, T, 30))
    assert float(error(u, u)) < 0.1
    assert float(error(u, noise)) > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("model", [PLAIN, EQUINOX], ids=["plain functions", "equinox"])
def test_other_peoples_models(model):
    data, _ = problem(90)
    x, t = data.a.x, data.a.t
    training = psa.Training(optax.adam(1e-2), epochs=60, batch_size=30)
    fitted = psa.fit(jax.random.key(0), model, x, t, training=training)
    assert fitted.history.train_loss[-1] < 0.8 * fitted.history.train_loss[0]
    assert psa.propensity(model, fitted.params, x).shape == (90, T)
    a, b = (psa.Learner(one, training=psa.Training(epochs=3), folds=3, members=1) for one in (model, PLAIN))
    found = psa.align(jax.random.key(1), data, a=a, b=b)
    chex.assert_tree_all_finite(found.coupling.apply(data.b.x))

    def loss(params):
        u = psa.centre(model.apply(params, x, train=True, key=None)[0])
        coupling = psa.match_batch(u, data.b.x, t, data.b.t, num_treatments=T, capacity=40)
        return jnp.sum(coupling.apply(data.b.x) ** 2)

    grads = jax.tree.leaves(jax.grad(loss)(fitted.params))
    chex.assert_tree_all_finite(grads)
    assert max(float(jnp.abs(g).max()) for g in grads) > 1e-3


@pytest.mark.slow
def test_frozen_features_in_bfloat16():
    data, _ = problem(120)
    frozen = jnp.tanh(data.a.x @ jax.random.normal(jax.random.key(5), (4, 16))).astype(jnp.bfloat16)
    training = psa.Training(epochs=5, batch_size=40)
    fitted = psa.fit(jax.random.key(0), PLAIN, frozen.astype(jnp.float32), data.a.t, training=training)
    head = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), fitted.params)

    def loss(head):
        u = PLAIN.apply(head, jax.lax.stop_gradient(frozen), train=False, key=None)[0]
        coupling = psa.match_batch(u, data.b.x[:, :T], data.a.t, data.b.t, num_treatments=T, capacity=60)
        return jnp.mean(coupling.apply(data.b.x) ** 2), coupling

    (value, coupling), grad = jax.value_and_grad(loss, has_aux=True)(head)
    assert value.dtype == coupling.row_marginal().dtype == jnp.float32
    assert grad["w"].dtype == jnp.bfloat16
    chex.assert_tree_all_finite(grad)
    assert bool(coupling.info.converged.all())
