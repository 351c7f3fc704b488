"""One answer on any mesh: against the same call without one, values, gradients and what the compiled program sends."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import psa_jax as psa
from psa_jax.data.deal import deal
from psa_jax.devices import map_rows, spread, spread_over

SIZES = np.array([40, 33, 31, 30, 22, 21, 17, 13, 9, 5, 3])
MATCHERS = {
    "sinkhorn": psa.sinkhorn,
    "tiled": functools.partial(psa.sinkhorn, memory=2**12),
    "kept": functools.partial(psa.sinkhorn, memory=2**13),
    "unbalanced": functools.partial(psa.sinkhorn, tau_a=0.9),
    "snn": psa.snn,
    "nearest": functools.partial(psa.nearest, k=2),
}


def mesh_of(*shape):
    names = tuple("xyz"[: len(shape)])
    devices = jax.devices()[: int(np.prod(shape))]
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape), devices=devices)


@functools.cache
def problem():
    rng = np.random.default_rng(0)
    sizes_b = rng.permutation(SIZES)
    t_a, t_b = (rng.permutation(np.repeat(np.arange(SIZES.size), sizes)) for sizes in (SIZES, sizes_b))
    u, v = (jnp.asarray(rng.normal(size=(t.size, 4)), jnp.float32) for t in (t_a, t_b))
    return u, v, psa.group(t_a, t_b, SIZES.size, max_buckets=1)


@functools.cache
def alone(name):
    u, v, groups = problem()
    return psa.blockwise(MATCHERS[name])(u, v, groups)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("sinkhorn", (8,)),
        ("snn", (2,)),
        *(
            pytest.param(name, shape, marks=pytest.mark.slow)
            for name, shape in [("tiled", (8,)), ("kept", (8,)), ("unbalanced", (2, 2)), ("nearest", (2,))]
        ),
    ],
)
def test_a_mesh_changes_no_answer(name, shape):
    u, v, groups = problem()
    expected, mesh = alone(name), mesh_of(*shape)
    found = psa.blockwise(MATCHERS[name], mesh=mesh)(u, v, groups)
    assert found.mesh == mesh
    for ours, theirs, y in ((found, expected, v), (found.T, expected.T, u)):
        np.testing.assert_allclose(ours.apply(y), theirs.apply(y), atol=2e-4)
    np.testing.assert_allclose(found.row_marginal(), expected.row_marginal(), atol=1e-6)
    p, j = found.top_k(1)
    np.testing.assert_allclose(p, expected.top_k(1)[0], atol=1e-4)
    np.testing.assert_allclose(found.log_prob(j[:, 0]), jnp.log(p[:, 0]), atol=1e-3)
    drawn, same = found.sample(jax.random.key(1)), expected.sample(jax.random.key(1))
    assert np.mean(np.asarray(drawn) != np.asarray(same)) < 0.02
    np.testing.assert_array_equal(found.info.converged, expected.info.converged)
    assert (int(found.unmatched_rows), int(found.unmatched_cols)) == (0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiled", "kept"])
def test_gradients_are_those_of_one_device(name):
    u, v, groups = problem()

    def loss(mesh, scale, u, v):
        matcher = jax.tree_util.Partial(MATCHERS[name], eps=psa.relative(scale))
        return jnp.sum(psa.blockwise(matcher, mesh=mesh)(u, v, groups).apply(v) ** 2)

    of = jax.jit(jax.value_and_grad(loss, argnums=(1, 2, 3)), static_argnums=0)
    expected, found = (of(mesh, jnp.float32(0.2), u, v) for mesh in (None, mesh_of(4)))
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3 * float(jnp.abs(theirs).max()))


def test_treatments_are_dealt_evenly_and_the_rest_is_for_all():
    rng = np.random.default_rng(1)
    sizes = np.maximum(20, 4000 * np.arange(1, 201) ** -1.1).astype(int)  # a power law
    t = np.repeat(np.arange(sizes.size), sizes)
    groups = psa.group(rng.permutation(t), rng.permutation(t), sizes.size)
    for devices in (2, 4, 8):
        dealt = deal(groups, devices)
        work = np.zeros(devices)
        for bucket in dealt.buckets:
            pairs = sizes[np.asarray(bucket.treatment)].astype(float) ** 2
            if pairs.size % devices == 0:
                work += pairs.reshape(devices, -1).sum(1)
            else:
                assert pairs.size < devices
                assert bucket.rows.shape[1] % devices == bucket.cols.shape[1] % devices == 0
                work += pairs.sum() / devices
        assert work.max() / work.mean() < 1.2
        np.testing.assert_allclose(work.sum(), (sizes.astype(float) ** 2).sum())
        again = deal(dealt, devices)
        for one, other in zip(jax.tree.leaves(dealt), jax.tree.leaves(again), strict=True):
            np.testing.assert_array_equal(one, other)
    assert deal(groups, 1) is groups


def collectives(text):
    """Those of each computation of a compiled program: `{name: [(kind, shape), ...]}`."""
    found, name = {}, ""
    for line in text.splitlines():
        if line.endswith("{") and "(" in line:
            name = line.split("(")[0].strip()
        kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
        if match := re.search(rf"= (\S+) ({kinds})(?:-start)?\(", line):
            found.setdefault(name, []).append((match[2], match[1].split("{")[0]))
    return found


@pytest.mark.parametrize("memory", [2**28, 2**14, 2**20], ids=["stored", "tiled", "kept"])
def test_a_sweep_of_a_giant_treatment_sends_one_vector(memory):
    n, m, mesh = 512, 384, mesh_of(8)
    rng = np.random.default_rng(0)
    u, v = (jnp.asarray(rng.normal(size=(k, 3)), jnp.float32) for k in (n, m))
    a, b = jnp.full(n, 1 / n), jnp.full(m, 1 / m)

    def solve(u, v):
        u = jax.lax.with_sharding_constraint(u, NamedSharding(mesh, PartitionSpec("x")))
        with spread_over(mesh):
            return psa.sinkhorn(u, v, spread(a), b, memory=memory, newton=0)

    compiled = jax.jit(solve).lower(u, v).compile()
    alone = psa.sinkhorn(u, v, a, b, newton=0)
    np.testing.assert_allclose(compiled(u, v).apply(v), alone.apply(v), atol=2e-4)
    sent = collectives(compiled.as_text())
    assert {kind for each in sent.values() for kind, _ in each} == {"all-reduce"}
    loops = [shapes for name, shapes in sent.items() if not name.startswith("ENTRY")]
    vectors = [[shape for _, shape in shapes if shape == f"f32[{m}]"] for shapes in loops]
    assert max(map(len, vectors)) <= 2  # a sweep one; the log domain's, once a round, its maximum and its sum
    assert sum(len(found) == 1 for found in vectors) >= 1
    assert {shape for shapes in loops for _, shape in shapes} <= {"f32[]", "pred[]", f"f32[{m}]"}


@pytest.mark.parametrize("n", [5, 16, 24])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_rows_are_mapped_alike_in_lanes(n, chunk):
    x, mesh = jnp.arange(2.0 * n).reshape(n, 2), mesh_of(8)

    @jax.jit
    def run(x):
        x = jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec()))
        with spread_over(mesh):
            return map_rows(lambda row: (row**2).sum(1), x, chunk)

    np.testing.assert_allclose(run(x), (np.asarray(x) ** 2).sum(1))


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        (8, "mesh: expected Mesh, got 8"),
        ("explicit", r"mesh: expected axes of type Auto, got x \(Explicit\)"),
    ],
)
def test_what_is_no_mesh_is_refused(mesh, message):
    if mesh == "explicit":
        mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:2])
    with pytest.raises(ValueError, match=message):
        psa.blockwise(psa.sinkhorn, mesh=mesh)
