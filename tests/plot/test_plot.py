import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psa_jax as psa
from psa_jax.align.alignment import Calibration
from psa_jax.match import known_pairs

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def close():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


@pytest.fixture(scope="module")
def pairs():
    """Ten rows; the partner of row i is 9 - i, row 3 has none."""
    pair = jnp.arange(9, -1, -1).at[3].set(-1)
    z = jax.random.uniform(jax.random.key(0), (10, 2))
    return known_pairs(pair, 10), psa.Truth(pair, z, z[::-1])


@pytest.fixture
def measured():
    bins = (jnp.arange(15.0) + 0.5) / 15
    numbers = (jnp.float32(v) for v in (1.1, 1.0, 0.6, 0.05, 0.03))
    return Calibration(*numbers, bins, bins * 0.9, jnp.arange(15.0).at[3].set(0))


@pytest.mark.parametrize("shape", [(10, 4, 5, 3), (10, 4, 5)])
def test_matched_pairs(pairs, shape):
    coupling, truth = pairs
    images_a, images_b = (jax.random.uniform(jax.random.key(i), shape) for i in (1, 2))
    key = jax.random.key(0)
    axes = psa.plot.matched_pairs(images_a, images_b, coupling, key, indices=[0, 3], truth=truth, titles=["t"] * 10)
    assert axes.shape == (4, 2)
    np.testing.assert_array_equal(axes[0, 0].images[0].get_array(), images_a[0])
    for line in (1, 2, 3):
        np.testing.assert_array_equal(axes[line, 0].images[0].get_array(), images_b[9])
        assert not axes[line, 1].images[0].get_visible()
    assert axes[0, 0].get_title() == "t"
    assert axes[1, 0].get_xlabel() == "p = 1.00"
    assert axes[1, 1].get_xlabel() == "no partner"
    assert not len(axes[0, 0].get_xticks())
    axes[0, 0].figure.canvas.draw()


def test_matched_pairs_chooses_rows_that_have_a_partner(pairs):
    coupling, _ = pairs
    images = jnp.arange(10.0)[:, None, None] / 10 * jnp.ones((1, 2, 2))
    axes = psa.plot.matched_pairs(images, images, coupling, jax.random.key(0), num=20, joined=True)
    assert axes.shape == (3, 9)
    assert axes[1, 0].images[0].get_array().shape == (2, 4)
    assert axes[0, 0].images[0].get_array().shape == (2, 4)
    shown = [round(float(ax.images[0].get_array()[0, 0]) * 10) for ax in axes[0]]
    assert shown == [0, 1, 2, 4, 5, 6, 7, 8, 9]


def test_matched_pairs_refuses(pairs):
    coupling, _ = pairs
    images = jnp.ones((10, 2, 2))
    with pytest.raises(ValueError, match="images_b: expected 10 images"):
        psa.plot.matched_pairs(images, images[:4], coupling, jax.random.key(0))
    with pytest.raises(ValueError, match="indices: expected rows"):
        psa.plot.matched_pairs(images, images, coupling, jax.random.key(0), indices=[10])


def test_trace_by_treatment():
    columns = {"mean": [0.2, None, 0.5], "chance": [0.1, None, 0.25], "counted": [10, 0, 4]}
    report = {"metrics": {"trace": {"micro": 0.3, "chance": 0.15, "by_treatment": columns}}}
    ax = psa.plot.trace_by_treatment(report, ["x", "y", "z"])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["x  (10)", "z  (4)"]
    assert [bar.get_width() for bar in ax.patches] == [0.2, 0.5]
    assert "1 treatment" in ax.get_xlabel()
    assert "2.0 times" in ax.get_title(loc="left")
    ax.figure.canvas.draw()


def test_calibration(measured):
    ax = psa.plot.calibration(measured, "modality a")
    line = next(line for line in ax.lines if len(line.get_xdata()) == 13)
    np.testing.assert_allclose(line.get_ydata(), 0.9 * np.asarray(line.get_xdata()), rtol=1e-6)
    assert "modality a" in ax.get_title(loc="left")
    (top,) = ax.child_axes
    np.testing.assert_array_equal([bar.get_height() for bar in top.patches], measured.count)
    ax.figure.canvas.draw()
    empty = dataclasses.replace(measured, count=jnp.zeros(15), confidence=jnp.zeros(15), frequency=jnp.zeros(15))
    psa.plot.calibration(empty).figure.canvas.draw()


def test_latent_map(pairs):
    coupling, truth = pairs
    axes = psa.plot.latent_map(coupling, truth, names=("x", "y"))
    assert axes.shape == (2,)
    points = axes[0].collections[0].get_offsets()
    np.testing.assert_allclose(points[:, 0], points[:, 1], rtol=1e-6)
    assert len(points) == 9
    assert axes[1].get_title(loc="left").startswith("y")
    with pytest.raises(ValueError, match="latents"):
        psa.plot.latent_map(coupling, psa.Truth(truth.pair))


def test_axes_of_ones_own(measured):
    import matplotlib.pyplot as plt

    _, ax = plt.subplots()
    assert psa.plot.calibration(measured, ax=ax) is ax


def test_eps_sweep():
    import matplotlib.pyplot as plt

    eps, nothing = jnp.array([1.0, 0.1, 0.5]), jnp.full(3, jnp.nan)
    rising = jnp.array([3.0, 1.0, 2.0])
    sweep = psa.EpsSweep(
        eps=eps,
        prediction=jnp.array([0.1, 0.2, 0.4]),
        agreement=rising,
        reconstruction=rising,
        stability=nothing,
        cycle=-rising,
        entropy=jnp.ones(3),
        shrinkage=nothing,
        calibrated=nothing,
        converged=jnp.array([1.0, 0.5, 1.0]),
        best=jnp.float32(0.5),
        relative=True,
    )
    _, own = plt.subplots()
    ax = psa.plot.eps_sweep(sweep, ax=own)
    assert ax is own
    lines = {line.get_label().split()[0]: line for line in ax.lines}
    np.testing.assert_allclose(lines["prediction"].get_xdata(), [0.1, 0.5, 1.0])
    np.testing.assert_allclose(lines["prediction"].get_ydata(), [1 / 3, 1, 0], rtol=1e-6)
    np.testing.assert_allclose(lines["entropy"].get_ydata(), 0.5)
    assert "stability" not in lines
    assert any(list(line.get_xdata()) == [np.float32(0.1)] for line in ax.lines)
    assert "0.5" in ax.get_title(loc="left")
    ax.figure.canvas.draw()
    failed = dataclasses.replace(sweep, best=jnp.float32(jnp.nan), converged=jnp.zeros(3), relative=False)
    ax = psa.plot.eps_sweep(failed)
    assert ax.get_title(loc="left") == "no eps converged"
    assert "units of the cost" in ax.get_xlabel()
    ax.figure.canvas.draw()
