"""What is compiled also lowers for CUDA and TPU, and products that decide distances or plans ask for full precision."""

import functools
import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import psa_jax as psa
from psa_jax.judge.agreement import held_out_agreement
from psa_jax.judge.slopes import folds_of, once
from psa_jax.match.features import with_features
from psa_jax.match.residual import gradient_residual

T = np.repeat(np.arange(6), 4)
GROUPS = psa.group(T, T, 6)
KEY, SHAPE = jax.random.key(0), jax.ShapeDtypeStruct((T.size, 6), jnp.float32)
W = jnp.full(T.size, 1 / T.size)
MATCHERS = {
    "sinkhorn": psa.sinkhorn,
    "tiled": functools.partial(psa.sinkhorn, memory=2**5),
    "kept": functools.partial(psa.sinkhorn, memory=2**7),
    "ott-jax": functools.partial(psa.sinkhorn, absorb=False, newton=0),
    "unbalanced": functools.partial(psa.sinkhorn, tau_a=0.9, newton=2),
    "low rank": functools.partial(psa.low_rank_sinkhorn, rank=2),
    "hierarchical": psa.hierarchical,
    "gw": psa.gromov_wasserstein,
    "snn": psa.snn,
    "nearest": psa.nearest,
    "class mean": psa.class_mean,
}


def blocked(matcher):
    return lambda u, v: psa.blockwise(matcher)(u, v, GROUPS)


def fused(u, v):
    return psa.blockwise(psa.fused_gromov_wasserstein)(*with_features(u, v, u, v, GROUPS), GROUPS)


def batch_gradient(u, v):
    def loss(u, v):
        coupling = psa.match_batch(u, v, jnp.asarray(T), jnp.asarray(T), num_treatments=6, capacity=4)
        return jnp.sum(coupling.apply(v) ** 2)

    return jax.grad(loss, argnums=(0, 1))(u, v)


def asked(u, v):
    coupling = blocked(psa.sinkhorn)(u, v)
    both = psa.chain(psa.shrink(coupling, 0.5), coupling.T)
    told = coupling.sample(KEY), coupling.top_k(2), coupling.row_marginal(), coupling.dense(), both.apply(u)
    return *told, coupling.log_prob(jnp.zeros(T.size, jnp.int32)), gradient_residual(KEY, coupling)


def judged(u, v):
    found = held_out_agreement(KEY, psa.sinkhorn, u, v, GROUPS, repeats=2)
    return found, once(folds_of(KEY, u, v), u, v, u, v, GROUPS)


def measured(u, v):
    coupling, truth = blocked(psa.sinkhorn)(u, v), psa.Truth(jnp.arange(T.size))
    pairs = psa.trace(coupling, truth), psa.foscttm(coupling.apply(v), v), psa.r2(v, u)
    return *pairs, psa.wasserstein1(u, v), psa.kl_divergence(u, v)


PLANS = {
    **{name: blocked(matcher) for name, matcher in MATCHERS.items()},
    "fused": fused,
    "gradient of match_batch": batch_gradient,
    "methods of a coupling": asked,
    "criteria": judged,
    "metrics": measured,
}


def lowered(function, platforms):
    return jax.export.export(jax.jit(function), platforms=platforms)(SHAPE, SHAPE).mlir_module()


@pytest.mark.parametrize("name", PLANS)
def test_plans_lower_for_accelerators_in_full_precision(name):
    text = lowered(PLANS[name], ["cuda", "tpu"])
    products = re.findall(r"stablehlo\.dot_general.*", text)
    assert [line for line in products if "HIGHEST, HIGHEST" not in line] == []


@pytest.mark.parametrize("model", [psa.linear(6), psa.mlp((8,), 6), psa.conv((4, 8), 6)], ids=["linear", "mlp", "conv"])
def test_classifiers_lower_for_accelerators(model):
    x = jnp.zeros((T.size, 8, 8, 1) if model == psa.conv((4, 8), 6) else (T.size, 5))

    def train(x):
        fitted = psa.fit(KEY, model, x, jnp.asarray(T), training=psa.Training(epochs=2))
        return psa.propensity(model, fitted.params, x), fitted.history.train_loss

    jax.export.export(jax.jit(train), platforms=["cuda", "tpu"])(jax.ShapeDtypeStruct(x.shape, x.dtype))
