import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from problems import SIZES_A, SIZES_B, ragged, slow

import psa_jax as psa
from psa_jax.match import class_mean

NUM = len(SIZES_A)
TIGHT = functools.partial(psa.sinkhorn, eps=0.3, tol=1e-9, max_iters=5000)
MATCHERS = {
    "sinkhorn": TIGHT,
    "gromov-wasserstein": psa.gromov_wasserstein,
    "snn": functools.partial(psa.snn, k=3),
    "nearest": functools.partial(psa.nearest, k=2),
    "assignment": psa.assignment,
    "class mean": class_mean,
}


SHARDED = {
    "stored": functools.partial(psa.sinkhorn, tol=1e-5),
    "tiled": functools.partial(psa.sinkhorn, tol=1e-5, memory=64),
    "newton, unbalanced": functools.partial(psa.sinkhorn, tol=1e-5, newton=3, tau_a=0.9),
    "snn": functools.partial(psa.snn, k=3),
    "nearest": psa.nearest,
}


def batch(seed=0, dtype=jnp.float32):
    u, v, y, t_a, t_b, groups = ragged(dtype, seed=seed)
    return u, v, y, jnp.asarray(t_a, jnp.int32), jnp.asarray(t_b, jnp.int32), groups


def match(u, v, t_a, t_b, matcher=TIGHT, capacity=30):
    return psa.match_batch(u, v, t_a, t_b, num_treatments=NUM, capacity=capacity, matcher=matcher)


@pytest.mark.parametrize(
    "name", ["sinkhorn", "snn", *slow(*(name for name in MATCHERS if name not in ("sinkhorn", "snn")))]
)
def test_a_batch_is_matched_as_on_the_host(x64, name):
    u, v, y, t_a, t_b, groups = batch(dtype=jnp.float64)
    ours, host = match(u, v, t_a, t_b, MATCHERS[name]), psa.blockwise(MATCHERS[name])(u, v, groups)
    loose = name == "gromov-wasserstein"  # not convex: padding may change the last digits of an optimum
    chex.assert_trees_all_close(ours.apply(y), host.apply(y), atol=1e-4 if loose else 1e-7)
    chex.assert_trees_all_close(ours.dense(), host.dense(), atol=1e-4 if loose else 1e-8)
    assert int(ours.unmatched_rows) == int(host.unmatched_rows) > 0
    assert int(ours.unmatched_cols) == int(host.unmatched_cols) > 0
    assert ours.info.converged.tolist() == host.info.converged.tolist()
    np.testing.assert_array_equal(ours.sample(jax.random.key(0)) < 0, host.sample(jax.random.key(0)) < 0)
    assert not int(ours.info.details["overflow_a"].sum() + ours.info.details["ignored_a"].sum())


def test_unequal_capacities():
    u, v, y, t_a, t_b, _ = batch()
    wide = match(u, v, t_a, t_b).apply(y)
    chex.assert_trees_all_close(match(u, v, t_a, t_b, capacity=(40, 22)).apply(y), wide, atol=1e-5)


def test_overflow_is_counted_and_has_no_partner():
    u, v, y, t_a, t_b, _ = batch()
    coupling = match(u, v, t_a, t_b, capacity=(6, 8))
    over = coupling.info.details
    assert over["overflow_a"].tolist() == [max(0, n - 6) for n in SIZES_A]
    assert over["overflow_b"].tolist() == [max(0, m - 8) for m in SIZES_B]
    rank = np.array([np.sum(np.asarray(t_a)[:i] == t) for i, t in enumerate(np.asarray(t_a))])
    lone = (rank >= 6) | ~np.isin(t_a, np.flatnonzero(SIZES_B))
    np.testing.assert_array_equal(coupling.sample(jax.random.key(0)) < 0, lone)
    assert int(coupling.unmatched_rows) == lone.sum()
    kept = match(u[~lone], v, t_a[~lone], t_b, capacity=(6, 8))
    chex.assert_trees_all_close(coupling.apply(y)[~lone], kept.apply(y), atol=1e-6)
    assert not np.asarray(coupling.apply(y)[lone]).any()


@pytest.mark.parametrize("order", [3, 4])
def test_the_order_of_a_batch_does_not_matter(order):
    u, v, y, t_a, t_b, _ = batch()
    rows, cols = (np.random.default_rng(order).permutation(x.shape[0]) for x in (u, v))
    moved = match(u[rows], v[cols], t_a[rows], t_b[cols]).apply(y[cols])
    chex.assert_trees_all_close(moved, match(u, v, t_a, t_b).apply(y)[rows], atol=1e-5)


def test_one_compilation_for_every_mix_of_labels():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(u, v, t_a, t_b, y):
        def loss(u):
            coupling = psa.match_batch(u, v, t_a, t_b, num_treatments=5, capacity=16)
            return jnp.sum(coupling.apply(y) ** 2)

        return jax.value_and_grad(loss)(u)

    rng = np.random.default_rng(0)
    mixes = [rng.integers(0, 5, 32), np.zeros(32, int), np.arange(32) % 5, np.repeat([1, 4], 16), np.full(32, -1)]
    for t in mixes:
        u, v, y = (jnp.asarray(rng.normal(size=(32, 4)), jnp.float32) for _ in range(3))
        value, grad = step(u, v, jnp.asarray(t, jnp.int32), jnp.asarray(rng.permutation(t), jnp.int32), y)
        chex.assert_tree_all_finite((value, grad))
        assert (float(value) > 0) == bool((t >= 0).any())


@pytest.mark.parametrize("matcher", [functools.partial(psa.snn, k=2), psa.gromov_wasserstein, *slow(TIGHT)])
def test_nothing_in_common(matcher):
    u, v, y, t_a, t_b, _ = batch()

    def loss(u, v):
        coupling = match(u, v, 0 * t_a, 0 * t_b + 3, matcher)
        return jnp.sum(coupling.apply(y) ** 2 + coupling.row_marginal()[:, None]), coupling

    (value, coupling), grads = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(u, v)
    assert float(value) == 0
    assert int(coupling.unmatched_rows) == u.shape[0]
    assert int(coupling.unmatched_cols) == v.shape[0]
    assert not np.asarray(coupling.info.converged).any()
    assert not np.asarray(grads[0]).any()
    assert not np.asarray(grads[1]).any()


def test_all_of_one_treatment():
    u, v, y, t_a, t_b, _ = batch()
    coupling = match(u, v, 0 * t_a + 4, 0 * t_b + 4, capacity=u.shape[0])
    one = TIGHT(u, v, jnp.full(u.shape[0], 1 / u.shape[0]), jnp.full(v.shape[0], 1 / v.shape[0]))
    chex.assert_trees_all_close(coupling.apply(y), one.apply(y), atol=1e-5)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_sample_that_is_not_finite_harms_no_other(bad):
    u, v, y, t_a, t_b, _ = batch()
    row, col = (int(jnp.flatnonzero(t == 4)[0]) for t in (t_a, t_b))

    def loss(u, v, t_a, t_b):
        return jnp.sum(match(u, v, t_a, t_b).apply(y) ** 2)

    dirty = u.at[row, 0].set(bad), v.at[col, 1].set(bad)
    clean = u.at[row].set(0), v.at[col].set(0)
    found = jax.value_and_grad(loss, argnums=(0, 1))(*dirty, t_a, t_b)
    chex.assert_tree_all_finite(found)
    wanted = jax.value_and_grad(loss, argnums=(0, 1))(*clean, t_a.at[row].set(-1), t_b.at[col].set(-1))
    chex.assert_trees_all_equal(found, wanted)
    details = match(*dirty, t_a, t_b).info.details
    assert details["ignored_a"].tolist() == details["ignored_b"].tolist() == [0, 0, 0, 0, 1, 0, 0, 0]


def test_features_that_are_not_finite_spare_the_encoder():
    u, v, y, t_a, t_b, _ = batch()
    x = u.at[3, 1].set(jnp.nan)
    weights = jnp.eye(3)

    def loss(weights, clean):
        seen, t = psa.ignore_nonfinite(x, t_a) if clean else (x, t_a)
        return jnp.sum(match(jnp.tanh(seen @ weights), v, t, t_b).apply(y) ** 2)

    assert not np.isfinite(jax.grad(loss)(weights, False)).any()
    found = jax.grad(loss)(weights, True)
    chex.assert_tree_all_finite(found)
    assert np.abs(np.asarray(found)).max() > 1e-3


def encoders(dtype):
    rng = np.random.default_rng(1)
    sizes = {"first": (4, 5), "last": (5, 3)}
    return {
        side: {name: jnp.asarray(0.6 * rng.normal(size=shape), dtype) for name, shape in sizes.items()} for side in "ab"
    }


def downstream(params, x_a, x_b, t_a, t_b, y, eps=0.3):
    """A loss that reaches both encoders through the coupling only."""
    u, v = (jnp.tanh(x @ params[side]["first"]) @ params[side]["last"] for side, x in (("a", x_a), ("b", x_b)))
    matcher = jax.tree_util.Partial(psa.sinkhorn, eps=jnp.asarray(eps, x_a.dtype), tol=jnp.asarray(1e-11, x_a.dtype))
    coupling = psa.match_batch(u, v, t_a, t_b, num_treatments=NUM, capacity=(30, 22), matcher=matcher)
    return jnp.mean((coupling.apply(y) - x_a[:, :2]) ** 2)


def test_gradients_agree_with_finite_differences(x64):
    _, _, y, t_a, t_b, _ = batch(dtype=jnp.float64)
    rng = np.random.default_rng(2)
    x_a, x_b = (jnp.asarray(rng.normal(size=(t.size, 4))) for t in (t_a, t_b))
    params = encoders(jnp.float64)
    flat, restore = jax.flatten_util.ravel_pytree(params)
    loss = jax.jit(lambda flat: downstream(restore(flat), x_a, x_b, t_a, t_b, y))
    grad = jax.grad(loss)(flat)
    for seed in range(4):
        direction = jnp.asarray(np.random.default_rng(seed).normal(size=flat.shape))
        step = 1e-5 * direction
        numeric = (loss(flat + step) - loss(flat - step)) / 2e-5
        np.testing.assert_allclose(grad @ direction, numeric, rtol=1e-4)
    for side in "ab":
        assert float(jnp.abs(restore(grad)[side]["first"]).max()) > 1e-6


@pytest.mark.slow
def test_the_layer_composes():
    u, v, y, t_a, t_b, _ = batch()

    def loss(u, v):
        return jnp.sum(match(u, v, t_a, t_b, psa.sinkhorn).apply(y) ** 2)

    grad = jax.jit(jax.grad(loss))
    wanted = grad(u, v)
    chex.assert_trees_all_close(jax.grad(jax.checkpoint(loss))(u, v), wanted, rtol=1e-4, atol=1e-5)
    several = jnp.stack([u, u[::-1], 2 * u])
    together = jax.vmap(jax.grad(loss), in_axes=(0, None))(several, v)
    chex.assert_trees_all_close(together, jnp.stack([grad(x, v) for x in several]), rtol=1e-3, atol=1e-3)

    def step(total, x):
        return total + loss(x, v), grad(x, v)

    total, scanned = jax.jit(lambda: jax.lax.scan(step, jnp.zeros(()), several))()
    chex.assert_trees_all_close(scanned, together, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(total, sum(float(loss(x, v)) for x in several), rtol=1e-4)


def test_labels_may_be_mapped_too():
    u, v, y, t_a, t_b, _ = batch()
    labels = jnp.stack([t_a, t_a[::-1]])
    out = jax.vmap(lambda t: match(u, v, t, t_b, psa.sinkhorn).apply(y))(labels)
    for t, found in zip(labels, out, strict=True):
        chex.assert_trees_all_close(found, match(u, v, t, t_b, psa.sinkhorn).apply(y), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "devices", "check_vma"),
    [
        *((name, 2, True) for name in SHARDED),
        ("stored", 4, True),
        ("stored", 4, False),
    ],
)
def test_every_device_matches_its_own_samples(name, devices, check_vma):
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    rng = np.random.default_rng(0)
    u, v, y = (jnp.asarray(rng.normal(size=(devices * 12, 3)), jnp.float32) for _ in range(3))
    t_a, t_b = (jnp.asarray(rng.integers(0, 3, devices * 12), jnp.int32) for _ in range(2))
    scale = jnp.ones(3)

    def local(scale, u, v, t_a, t_b, y):
        settings = {"num_treatments": 3, "capacity": 12, "matcher": SHARDED[name]}
        coupling = psa.match_batch(scale[None] * u, scale[None] * v, t_a, t_b, **settings)
        both = psa.chain(coupling, coupling.T)
        drawn = both.sample(jax.random.key(0)) + coupling.sample(jax.random.key(0)) + coupling.top_k(2)[1][:, 0]
        return jnp.sum(psa.shrink(coupling, 0.9).apply(y) ** 2) + 0 * drawn.sum().astype(jnp.float32)

    def sharded(scale, *data):
        value, grad = jax.value_and_grad(local)(scale, *data)
        if not check_vma:  # otherwise the gradient of what all devices share is summed already
            grad = jax.lax.psum(grad, "data")
        return jax.lax.psum(value, "data"), grad

    spec = PartitionSpec("data")
    run = jax.jit(
        jax.shard_map(
            sharded,
            mesh=mesh,
            in_specs=(PartitionSpec(), *5 * (spec,)),
            out_specs=PartitionSpec(),
            check_vma=check_vma,
        )
    )
    value, grad = run(scale, u, v, t_a, t_b, y)
    pieces = [
        jax.value_and_grad(local)(scale, *(x[12 * d : 12 * d + 12] for x in (u, v, t_a, t_b, y)))
        for d in range(devices)
    ]
    np.testing.assert_allclose(value, sum(float(p[0]) for p in pieces), rtol=1e-5)
    np.testing.assert_allclose(grad, sum(np.asarray(p[1]) for p in pieces), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("matcher", [psa.gromov_wasserstein, functools.partial(psa.low_rank_sinkhorn, rank=2)])
def test_what_shard_map_cannot_check_says_so(matcher):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    u, v, _, t_a, t_b, _ = batch()
    rows = 2 * (min(len(u), len(v)) // 2)
    spec = PartitionSpec("data")

    def local(u, v, t_a, t_b):
        return match(u, v, t_a, t_b, matcher).apply(v)

    run = jax.shard_map(local, mesh=mesh, in_specs=(spec,) * 4, out_specs=spec)
    with pytest.raises(ValueError, match="check_vma=False"):
        run(u[:rows], v[:rows], t_a[:rows], t_b[:rows])


@pytest.mark.parametrize("name", ["sinkhorn", "snn", "nearest", "class mean"])
def test_bfloat16_scores_are_matched_in_float32(name):
    u, v, y, t_a, t_b, _ = batch()
    u, v = u.astype(jnp.bfloat16), v.astype(jnp.bfloat16)
    low = match(u, v, t_a, t_b, MATCHERS[name])
    high = match(u.astype(jnp.float32), v.astype(jnp.float32), t_a, t_b, MATCHERS[name])
    assert low.apply(y).dtype == low.row_marginal().dtype == jnp.float32
    chex.assert_trees_all_close(low.apply(y), high.apply(y), atol=1e-6)


def test_the_gradient_of_bfloat16_features_is_theirs():
    u, v, y, t_a, t_b, _ = batch()

    def loss(u):
        return jnp.sum(match(u, v, t_a, t_b, psa.sinkhorn).apply(y) ** 2)

    low, high = jax.grad(loss)(u.astype(jnp.bfloat16)), jax.grad(loss)(u.astype(jnp.bfloat16).astype(jnp.float32))
    assert low.dtype == jnp.bfloat16
    chex.assert_trees_all_close(low.astype(jnp.float32), high, rtol=1e-2, atol=1e-3)


def test_stop_gradient_spares_one_encoder():
    u, v, y, t_a, t_b, _ = batch()

    def loss(u, v):
        return jnp.sum(match(u, jax.lax.stop_gradient(v), t_a, t_b).apply(y) ** 2)

    grads = jax.grad(loss, argnums=(0, 1))(u, v)
    assert np.abs(np.asarray(grads[0])).max() > 1e-3
    assert not np.asarray(grads[1]).any()


@pytest.mark.slow
def test_seeds_eps_and_temperatures_in_one_program():
    u, v, y, t_a, t_b, _ = batch()
    traces = []

    def projected(key, eps, temperature):
        traces.append(1)
        noisy = u + 0.1 * jax.random.normal(key, u.shape)
        matcher = jax.tree_util.Partial(psa.sinkhorn, eps=psa.relative(eps))
        return match(noisy / temperature, v / temperature, t_a, t_b, matcher).apply(y)

    inner = jax.vmap(projected, in_axes=(None, None, 0))
    sweep = jax.jit(jax.vmap(jax.vmap(inner, in_axes=(None, 0, None)), in_axes=(0, None, None)))
    keys, eps, temperature = jax.random.split(jax.random.key(0), 2), jnp.array([0.1, 0.4]), jnp.array([1.0, 3.0])
    out = sweep(keys, eps, temperature)
    assert out.shape == (2, 2, 2, *y[: u.shape[0]].shape[:0], u.shape[0], 2)
    sweep(keys, eps + 0.1, temperature)
    assert len(traces) == 1
    chex.assert_trees_all_close(out[:, :, 0], out[:, :, 1], atol=1e-3)  # a relative eps does not see the scale
    one = projected(keys[1], eps[1], temperature[0])
    chex.assert_trees_all_close(out[1, 1, 0], one, atol=1e-4)


@pytest.mark.parametrize(("dtype", "number"), [("int8", 128), ("int8", 200), ("uint8", 256), ("uint8", 300)])
def test_narrow_labels(dtype, number):
    t = jnp.array([0, 1, 100, 100], dtype)
    groups = psa.group_batch(t, t, num_treatments=number, capacity=2)
    assert groups.sizes_a[jnp.array([0, 1, 100])].tolist() == [1, 1, 2]
    assert int(groups.sizes_a.sum()) == 4
    x = jnp.array([[1.0], [jnp.nan], [1.0], [1.0]])
    assert psa.ignore_nonfinite(x, t)[1].tolist() == [0, -1, 100, 100]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"u": jnp.zeros((3, 2, 1))}, r"u: expected numbers \[n, d\]"),
        ({"u": jnp.zeros((3, 2), int)}, "u: expected float scores"),
        ({"v": jnp.zeros((0, 2))}, "v: expected float scores"),
        ({"t_a": jnp.zeros(2, int)}, "t_a: expected integer labels"),
        ({"t_b": jnp.zeros(3)}, r"t_b: expected integers \[m\]"),
        ({"capacity": 0}, "capacity: expected at least 1"),
        ({"capacity": (2, 0)}, "capacity: expected at least 1"),
        ({"num_treatments": 0}, "num_treatments"),
        ({"matcher": functools.partial(psa.snn, k=(1, 2))}, "matcher: expected one Coupling"),
    ],
)
def test_bad_input(change, message):
    good = {
        "u": jnp.zeros((3, 2)),
        "v": jnp.zeros((3, 2)),
        "t_a": jnp.zeros(3, int),
        "t_b": jnp.zeros(3, int),
        "num_treatments": 2,
        "capacity": 3,
    }
    with pytest.raises(ValueError, match=message):
        psa.match_batch(**{**good, **change})
