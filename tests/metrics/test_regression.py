import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import r2_score

import psa_jax as psa


def predictions(n=40, d=5, seed=0, dtype=np.float32, offset=0.0):
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(n, d)) * np.arange(1, d + 1) + offset
    return (y + rng.normal(size=(n, d))).astype(dtype), y.astype(dtype)


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("d", [4, 5])
def test_scikit_learn(d, offset):
    y_hat, y = predictions(d=d, offset=offset)
    found = psa.r2(jnp.asarray(y), jnp.asarray(y_hat))
    each = r2_score(y.astype(float), y_hat.astype(float), multioutput="raw_values")
    pooled = r2_score(y.astype(float), y_hat.astype(float), multioutput="variance_weighted")
    np.testing.assert_allclose(found.per_feature, each, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(float(found), pooled, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.median, np.median(each), rtol=1e-4, atol=1e-5)
    assert not found.undefined.any()
    assert (int(found.counted), int(found.excluded)) == (40, 0)


def test_double_precision(x64):
    y_hat, y = predictions(dtype=np.float64)
    found = psa.r2(jnp.asarray(y), jnp.asarray(y_hat))
    np.testing.assert_allclose(found.per_feature, r2_score(y, y_hat, multioutput="raw_values"), rtol=1e-12)


def test_the_training_mean_is_the_reference():
    y_hat, y = predictions()
    center = np.linspace(-1, 1, 5, dtype=np.float32)
    found = psa.r2(jnp.asarray(y), jnp.asarray(y_hat), center=jnp.asarray(center))
    sse, sst = ((y - y_hat) ** 2).sum(0), ((y - center) ** 2).sum(0)
    np.testing.assert_allclose(found.per_feature, 1 - sse / sst, rtol=1e-5)
    np.testing.assert_allclose(found.pooled, 1 - sse.sum() / sst.sum(), rtol=1e-5)
    constant = psa.r2(jnp.asarray(y), jnp.broadcast_to(jnp.asarray(center), y.shape), center=jnp.asarray(center))
    np.testing.assert_allclose(constant.per_feature, 0, atol=1e-6)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e4, 12345.678])
@pytest.mark.parametrize("given", [False, True])
def test_constant_features_are_undefined_whatever_their_level(constant, given):
    y_hat, y = predictions(n=999)
    y[:, 1] = constant
    center = y.mean(0) if given else None
    found = psa.r2(jnp.asarray(y), jnp.asarray(y_hat), center=None if center is None else jnp.asarray(center))
    assert found.undefined.tolist() == [False, True, False, False, False]
    np.testing.assert_array_equal(np.isnan(found.per_feature), found.undefined)
    others = [0, 2, 3, 4]
    each = r2_score(y[:, others], y_hat[:, others], multioutput="raw_values")
    np.testing.assert_allclose(found.median, np.median(each), rtol=1e-4)
    sst = ((y - y.mean(0)) ** 2)[:, others].sum()
    np.testing.assert_allclose(float(found), 1 - ((y - y_hat) ** 2).sum() / sst, rtol=1e-4)


def test_a_constant_that_is_not_the_training_mean_is_defined():
    found = psa.r2(jnp.full((3, 1), 5.0), jnp.full((3, 1), 5.5), center=jnp.array([4.0]))
    np.testing.assert_allclose(found.per_feature, 0.75)
    assert not found.undefined.any()


def test_nothing_that_varies_gives_no_number():
    for y in (jnp.ones((4, 2)), jnp.full((4, 2), jnp.nan), jnp.arange(2.0)[None]):
        found = psa.r2(y, jnp.zeros(y.shape))
        assert np.isnan(float(found))
        assert np.isnan(found.median)
        assert found.undefined.all()


def test_rows_without_a_value_are_counted_and_left_out():
    y_hat, y = predictions()
    broken_hat, broken = y_hat.copy(), y.copy()
    broken_hat[0, 2], broken_hat[7] = np.nan, np.inf
    broken[3, 0] = np.nan
    keep = np.setdiff1d(np.arange(40), [0, 3, 7])
    found, expected = psa.r2(jnp.asarray(broken), jnp.asarray(broken_hat)), psa.r2(y[keep], y_hat[keep])
    assert (int(found.counted), int(found.excluded)) == (37, 3)
    for name in ("pooled", "per_feature", "median"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-5)


@pytest.mark.parametrize("part", ["pooled", "median", "per_feature"])
def test_gradients_are_finite_where_rows_and_features_are_not(part):
    y_hat, y = predictions()
    y_hat[0], y[5, 1], y[:, 3] = np.nan, np.inf, 7.0

    def total(y_hat):
        return jnp.nansum(getattr(psa.r2(jnp.asarray(y), y_hat), part))

    slope = np.asarray(jax.jit(jax.grad(total))(jnp.asarray(y_hat)))
    assert np.isfinite(slope).all()
    assert not slope[[0, 5]].any()
    assert slope[1].any()
    if part == "pooled":
        real = np.setdiff1d(np.arange(40), [0, 5])
        sst = ((y[real] - y[real].mean(0)) ** 2).sum()
        np.testing.assert_allclose(slope[real], -2 * (y_hat - y)[real] / sst, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: psa.r2(jnp.ones((3, 1)), jnp.ones((2, 1))), "y_true, y_pred: expected one shape"),
        (lambda: psa.r2(jnp.ones(3), jnp.ones(3)), r"y_true: expected numbers \[n, d\], got shape \(3,\)"),
        (lambda: psa.r2(jnp.ones((0, 2)), jnp.ones((0, 2))), "y_true, y_pred: expected at least one sample"),
        (lambda: psa.r2(jnp.ones((2, 0)), jnp.ones((2, 0))), "y_true, y_pred: expected at least one sample"),
        (lambda: psa.r2(jnp.ones((3, 2)), jnp.ones((3, 2)), center=jnp.ones(3)), r"center: expected shape \(2,\)"),
        (lambda: psa.r2(jnp.ones((3, 1)), jnp.ones((3, 1)), center=jnp.array([jnp.nan])), "center: expected finite"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
