"""`align` over several devices gives what it gives on one."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

import psa_jax as psa
from psa_jax.propensity import Training, linear


@pytest.mark.slow
def test_one_alignment_on_any_mesh(tmp_path):
    rng = np.random.default_rng(0)
    t = np.repeat(np.arange(6), 12)
    state = rng.normal(size=(t.size, 4)) + rng.normal(size=(6, 4))[t]
    x, y = (np.tanh(state @ rng.normal(size=(4, k))).astype(np.float32) for k in (8, 5))
    order = rng.permutation(t.size)
    data = psa.Unpaired(psa.Modality(x, t), psa.Modality(y[order], t[order]), 6)
    quick = psa.Learner(linear(6), members=2, folds=3, training=Training(epochs=3))
    found, steps = [], []
    for devices in (None, 4):
        mesh = None if devices is None else jax.make_mesh(
            (devices,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
        )  # fmt: skip
        found.append(psa.align(jax.random.key(1), data, a=quick, b=quick, mesh=mesh, progress=steps.append))
    one, several = found
    for name in ("scores_a", "scores_b", "member_scores_a"):
        np.testing.assert_allclose(getattr(several, name), getattr(one, name), atol=1e-4)
    np.testing.assert_allclose(several.project(data.b.x), one.project(data.b.x), atol=1e-3)
    np.testing.assert_allclose(several.T.project(data.a.x), one.T.project(data.a.x), atol=1e-3)
    np.testing.assert_array_equal(several.projection.evidence.found, one.projection.evidence.found)
    new = {"x": data.a.x[:7] + 0.1, "t": data.a.t[:7]}
    np.testing.assert_allclose(several.project(data.b.x, **new), one.project(data.b.x, **new), atol=1e-3)
    assert all(step.done <= step.total for step in steps if step.total)
    several.save(tmp_path / "it")
    again = psa.io.load_alignment(tmp_path / "it" / "alignment.npz", model_a=linear(6), model_b=linear(6))
    assert again.coupling.mesh is None
    np.testing.assert_allclose(again.project(data.b.x), several.project(data.b.x), atol=1e-5)
