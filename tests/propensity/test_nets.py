import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import psa_jax as psa
from psa_jax.propensity import nets

KEY = jax.random.key(0)


def group_norm(train):
    return nn.GroupNorm(2)


class Plain(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x, *, train: bool):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(nn.Dense(self.width)(x))
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.5, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(self.norm(self.first(x))))


MODELS = {
    "linear": (nets.linear(3), (4,)),
    "mlp": (nets.mlp((8, 6), 3), (4,)),
    "mlp batch dropout": (nets.mlp((8,), 3, norm=nets.batch_norm, dropout=0.5), (4,)),
    "mlp none raw": (nets.mlp((8,), 3, norm=None, standardize=False), (4,)),
    "mlp own norm": (nets.mlp((8,), 3, norm=group_norm), (4,)),
    "conv": (nets.conv((4, 6), 3, hidden=8), (8, 8, 2)),
    "conv odd": (nets.conv((4, 6, 6, 4, 4), 3, hidden=8, norm=nets.layer_norm, dropout=0.1), (9, 13, 1)),
    "linen": (psa.from_linen(Plain(8)), (4,)),
    "nnx": (psa.from_nnx(Nnx), (4,)),
}


@pytest.mark.parametrize("name", MODELS)
def test_contract(name):
    model, shape = MODELS[name]
    x = 5 + 3 * jax.random.normal(KEY, (7, *shape))
    params = jax.jit(model.init)(KEY, x)
    apply = jax.jit(model.apply, static_argnames="train")
    logits, same = apply(params, x, train=False, key=None)
    assert logits.shape == (7, 3)
    assert jax.tree.all(jax.tree.map(lambda p, q: bool((p == q).all()), params, same))
    _, after = apply(params, x, train=True, key=KEY)
    assert jax.tree.structure(after) == jax.tree.structure(params)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, params)
    mask = model.trainable(params)
    assert jax.tree.structure(mask) == jax.tree.structure(params)
    assert all(isinstance(flag, bool) for flag in jax.tree.leaves(mask))
    moved = jax.tree.map(lambda p, q: bool((p != q).any()), params, after)
    assert not jax.tree.reduce(lambda a, b: a or b, jax.tree.map(lambda m, f: m and f, moved, mask))
    assert hash(model) == hash(model)


@pytest.mark.parametrize("name", ["mlp batch dropout", "linen", "nnx"])
def test_running_statistics_and_dropout(name):
    model, shape = MODELS[name]
    x = 5 + 3 * jax.random.normal(KEY, (64, *shape))
    params = jax.jit(model.init)(KEY, x)
    apply = jax.jit(functools.partial(model.apply, train=True))
    one, after = apply(params, x, key=jax.random.key(1))
    two, _ = apply(params, x, key=jax.random.key(2))
    again, _ = apply(params, x, key=jax.random.key(1))
    np.testing.assert_array_equal(one, again)
    assert (one != two).any()
    assert not jax.tree.all(jax.tree.map(lambda p, q: bool((p == q).all()), params, after))
    if name == "mlp batch dropout":  # standardised inputs
        return
    for _ in range(40):
        _, params = apply(params, x, key=KEY)
    flat = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    variance = next(leaf for path, leaf in flat.items() if "var" in path)
    kernel = next(leaf for path, leaf in flat.items() if "kernel" in path and leaf.shape == (4, 8))
    np.testing.assert_allclose(variance, jnp.var(x @ kernel, 0), rtol=1e-3)


def test_equal_models():
    assert nets.mlp((8,), 3) == nets.mlp([8], 3)
    assert hash(nets.mlp((8,), 3)) == hash(nets.mlp([8], 3))
    assert nets.mlp((8,), 3) != nets.mlp((9,), 3)
    assert nets.conv((8,), 3) == nets.conv((8,), 3)
    assert nets.conv((8,), 3) != nets.conv((8,), 3, norm=None)
    assert psa.from_linen(Plain(4)) == psa.from_linen(Plain(4))
    assert psa.from_nnx(Nnx) == psa.from_nnx(Nnx)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 8), (8, 11), (13, 9)])
def test_patches_are_a_convolution(height, width):
    x = jax.random.normal(KEY, (2, height, width, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 5))
    numbers = ("NHWC", "HWIO", "NHWC")
    want = jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=numbers, precision="highest")
    got = jnp.matmul(nets.patches(x), kernel.reshape(27, 5), precision="highest")
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_no_convolution_is_compiled():
    model, x = nets.conv((4, 4), 3), jnp.ones((2, 8, 8, 1))
    params = model.init(KEY, x)
    jaxpr = jax.make_jaxpr(jax.grad(lambda p: model.apply(p, x, train=True, key=KEY)[0].sum()))(params)
    assert "conv_general" not in str(jaxpr)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_standardize_makes_scale_and_offset_irrelevant(scale):
    model = nets.mlp((8,), 3)
    x = jax.random.normal(KEY, (50, 4)).at[:, 2].set(0.1)
    params, params_scaled = jax.jit(model.init)(KEY, x), jax.jit(model.init)(KEY, x * scale)
    mean, spread = (params["constants"]["Standardize_0"][name] for name in ("mean", "scale"))
    np.testing.assert_allclose(mean, x.mean(0), atol=1e-6)
    np.testing.assert_allclose(spread, jnp.std(x, 0).at[2].set(1.0), rtol=1e-5)
    assert mean[2] == x[0, 2]
    one, _ = model.apply(params, x, train=False, key=None)
    two, _ = model.apply(params_scaled, x * scale, train=False, key=None)
    np.testing.assert_allclose(one, two, atol=1e-4)


def test_standardize_is_per_channel():
    x = jax.random.normal(KEY, (20, 8, 9, 2)) * jnp.array([1.0, 100.0]).reshape(1, 1, 1, 2) + 7
    constants = jax.jit(nets.conv((4,), 3).init)(KEY, x)["constants"]["Standardize_0"]
    np.testing.assert_allclose(constants["mean"], x.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(constants["scale"], jnp.std(x, (0, 1, 2)), rtol=1e-4)


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (nets.linear(3), (5,), r"x: expected rank 2, \[n, d\], got shape \(5,\)"),
        (nets.mlp((4,), 3), (5, 8, 8, 1), "x: expected rank 2"),
        (nets.conv((4,), 3), (5, 64), "x: expected images"),
        (nets.conv((4,), 3), (5, 7, 9, 1), r"at least 8, got shape \(5, 7, 9, 1\)"),
    ],
)
def test_wrong_inputs(model, shape, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, KEY, jax.ShapeDtypeStruct(shape, jnp.float32))


@pytest.mark.parametrize(
    "make", [lambda: nets.mlp((0,), 3), lambda: nets.linear(0), lambda: nets.conv((4,), 3, hidden=0)]
)
def test_wrong_sizes(make):
    with pytest.raises(ValueError, match="expected at least 1, got 0"):
        make()
