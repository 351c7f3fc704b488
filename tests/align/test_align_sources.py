"""Alignments of sources: those of the same data in memory, on any mesh, from files, and beyond memory."""

import dataclasses
import os
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

import psa_jax as psa

K, N, M = 5, 90, 80
RNG = np.random.default_rng(0)
STATE = RNG.normal(size=(N + M, 4)) + RNG.normal(size=(K, 4))[np.arange(N + M) % K]
X, Y = (np.tanh(STATE @ RNG.normal(size=(4, d))).astype(np.float32) for d in (8, 6))
X, Y, T_A, T_B = X[:N], Y[N:], np.arange(N) % K, np.arange(N, N + M) % K
QUICK = psa.Learner(psa.linear(K), members=2, folds=3, training=psa.Training(epochs=2, batch_size=32))
KEY = jax.random.key(3)


def data(wrap, batch_a=None, batch_b=None):
    return psa.Unpaired(psa.Modality(wrap(X), T_A, batch_a), psa.Modality(wrap(Y), T_B, batch_b), K)


def in_memory(x):
    return x


def aligned(data, **options):
    return psa.align(KEY, data, a=QUICK, b=QUICK, **options)


def same(found, expected, atol=1e-4):
    for name in ("scores_a", "scores_b", "member_scores_a", "member_scores_b"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=atol)
    for one, other in zip(*(jax.tree.leaves((x.fitted_a.params, x.fitted_b)) for x in (found, expected)), strict=True):
        np.testing.assert_allclose(one, other, atol=atol)


def test_an_alignment_of_sources_is_that_of_the_arrays(tmp_path):
    few = dataclasses.replace(QUICK, model=psa.linear(3))
    one, other = (
        psa.align(KEY, psa.Unpaired(psa.Modality(wrap(X), T_A % 3), psa.Modality(wrap(Y), T_B % 3), 3), a=few, b=few)
        for wrap in (psa.source, in_memory)
    )
    same(one, other)
    np.testing.assert_allclose(one.score_a(psa.source(X)), other.score_a(X), atol=1e-5)
    expected = other.project(Y)
    np.testing.assert_allclose(one.project(Y), expected, atol=1e-3)
    np.testing.assert_allclose(one.project(psa.source(Y)), expected, atol=1e-3)
    one.save(tmp_path / "it")
    again = psa.io.load_alignment(tmp_path / "it" / "alignment.npz", model_a=psa.linear(3), model_b=psa.linear(3))
    np.testing.assert_array_equal(again.scores_a, one.scores_a)
    np.testing.assert_allclose(again.score_b(psa.source(Y)), other.score_b(Y), atol=1e-5)


@pytest.mark.slow
def test_scores_that_are_refined_are_those_of_the_arrays():
    rng = np.random.default_rng(1)
    t = np.arange(900) % 9
    state = rng.normal(size=(2, 900, 3)) + rng.normal(size=(9, 3))[t]
    x, y = (np.tanh(z @ rng.normal(size=(3, d)) / 2).astype(np.float32) for z, d in zip(state, (8, 7), strict=True))
    learner = psa.Learner(psa.mlp((16,), 9), members=2, folds=3, augment=None, training=psa.Training(epochs=20))
    one, other = (
        psa.align(KEY, psa.Unpaired(psa.Modality(wrap(x), t), psa.Modality(wrap(y), t), 9), a=learner, b=learner)
        for wrap in (psa.source, in_memory)
    )
    assert one.refined_a is not None
    same(one, other, atol=1e-3)
    np.testing.assert_allclose(one.refined_b.slope, other.refined_b.slope, atol=1e-3)
    np.testing.assert_allclose(one.projection.weight_a, other.projection.weight_a, atol=1e-2)
    np.testing.assert_allclose(one.score_a(psa.source(x)), other.score_a(x), atol=1e-3)


@pytest.mark.slow
def test_new_samples_and_the_other_direction_may_be_read_too():
    one = aligned(data(psa.source))
    np.testing.assert_allclose(one.T.project(psa.source(X)), one.T.project(X), atol=1e-5)
    new = {"x": X[:7] + 0.1, "t": T_A[:7]}
    read = one.project(psa.source(Y), x=psa.source(new["x"]), t=new["t"])
    np.testing.assert_allclose(read, one.project(Y, **new), atol=1e-5)
    images = np.stack([Y[:, :4], Y[:, 2:]], axis=2)
    np.testing.assert_allclose(one.project(psa.source(images)), one.project(images), atol=1e-5)
    truth = psa.Truth(np.where(np.arange(N) < M, np.arange(N), -1))
    figures = [psa.evaluate(KEY, one, truth, given)["metrics"] for given in (data(psa.source), data(in_memory))]
    assert set(figures[1]) - set(figures[0]) == {"foscttm_features"}
    assert figures[0]["trace"] == figures[1]["trace"]
    with pytest.raises(ValueError, match="y: expected 80 values"):
        one.project(psa.source(Y[:79]))
    with pytest.raises(ValueError, match="x: expected features"):
        one.score_a(psa.source(Y))


@pytest.mark.slow
@pytest.mark.parametrize("devices", [None, 4, 8])
def test_failures_and_results_are_the_same_on_any_mesh(devices):
    mesh = None
    if devices is not None:
        mesh = jax.make_mesh((devices,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])

    class Failing:
        left = 12

        def __len__(self):
            return N

        def __getitem__(self, ids):
            self.left -= 1
            if self.left < 0:
                raise OSError("the disk is gone")
            return X[ids]

    broken = psa.Unpaired(psa.Modality(psa.source(Failing()), T_A), psa.Modality(Y, T_B), K)
    steps = []
    with pytest.raises(RuntimeError, match=r"^modality a: x: expected row.* of the source, which raised OSError"):
        aligned(broken, mesh=mesh, progress=steps.append)
    jax.effects_barrier()  # nothing of what failed is left
    same(aligned(data(psa.source), mesh=mesh, progress=steps.append), aligned(data(in_memory)), atol=1e-4)


@pytest.mark.slow
def test_batches_queries_and_many_modalities_are_read(tmp_path):
    batch = {"batch_a": RNG.integers(0, 2, N), "batch_b": RNG.integers(0, 2, M)}
    same(aligned(data(psa.source, **batch)), aligned(data(in_memory, **batch)))
    train, rest = psa.split(KEY, data(psa.source), (0.7, 0.3))
    array_train, array_rest = psa.split(KEY, data(in_memory), (0.7, 0.3))
    same(aligned(train, query=rest), aligned(array_train, query=array_rest))
    sides = [psa.align_many(KEY, [x.a, x.b], K, learners=QUICK) for x in (data(psa.source), data(in_memory))]
    np.testing.assert_allclose(*(side.representations[1].scores for side in sides), atol=1e-5)
    named = psa.Unpaired.from_labels(psa.source(X), T_A, psa.source(Y), T_B)
    same(aligned(named), aligned(data(in_memory)))


def test_matchers_of_features_are_refused_before_anything_is_read():
    for wrong in (data(psa.source), psa.Unpaired(data(psa.source).a, data(in_memory).b, K)):
        with pytest.raises(ValueError, match="matcher: expected one of scores alone"):
            aligned(wrong, matcher=psa.fused_gromov_wasserstein)


@pytest.mark.slow
def test_data_larger_than_memory_are_never_held():
    program = """
        import resource

        import jax
        import numpy as np

        import psa_jax as psa

        K = 16


        class Computed:
            def __init__(self, n, d):
                self.n, self.w = n, np.random.default_rng(0).normal(size=d).astype(np.float32)

            def __len__(self):
                return self.n

            def __getitem__(self, ids):
                return (np.sin(ids) + ids % K).astype(np.float32)[:, None] * self.w


        def peak(n, d):
            t, few = np.arange(n) % K, np.arange(128) % K
            training = psa.Training(epochs=1, batch_size=256)
            quick = psa.Learner(psa.linear(K), members=1, folds=3, augment=None, training=training)
            y = np.random.default_rng(1).normal(size=(128, 5)).astype(np.float32)
            a, b = psa.Modality(psa.source(Computed(n, d)), t), psa.Modality(y, few)
            alignment = psa.align(jax.random.key(0), psa.Unpaired(a, b, K), a=quick, b=quick)
            alignment.score_a(psa.source(Computed(n, d))).block_until_ready()
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

        small = peak(20480, 8)
        print(peak(20480, 8192) - small)
    """
    plain = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # which optimises memory, too
    command = [sys.executable, "-c", textwrap.dedent(program)]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=500, env=plain)
    data = 4 * 20480 * 8192
    assert int(out.stdout) < data / 3, f"{int(out.stdout) / 2**20:.0f} MiB more for {data / 2**20:.0f} MiB of data"
