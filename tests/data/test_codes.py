"""One convention for treatment codes: known and out of range is an error, traced and out of range is ignored."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psa_jax as psa
from psa_jax.propensity.calibration import expected_calibration_error, reliability
from psa_jax.propensity.scores import log_prior

K, N = 3, 12
LOGITS = jnp.asarray(np.random.default_rng(0).normal(size=(N, K)), jnp.float32)
FUNCTIONS = {
    "class_weights": lambda keep, t: psa.class_weights(t, K),
    "log_prior": lambda keep, t: log_prior(t, K),
    "calibrate": lambda keep, t: psa.calibrate(LOGITS[keep], t),
    "reliability": lambda keep, t: reliability(LOGITS[keep], t),
    "expected_calibration_error": lambda keep, t: expected_calibration_error(LOGITS[keep], t),
}
LABELS = np.arange(N) % K


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("bad", [-1, K, 10**6])
def test_codes_out_of_range_are_refused_if_known_and_ignored_if_traced(name, bad):
    function, everything = FUNCTIONS[name], np.arange(N)
    t = LABELS.copy()
    t[5] = bad
    with pytest.raises(ValueError, match=r"t: expected codes in \[0, 3\)"):
        function(everything, jnp.asarray(t))
    ignored = jax.jit(functools.partial(function, everything))(jnp.asarray(t))
    left_out = function(np.delete(everything, 5), jnp.asarray(np.delete(LABELS, 5)))
    for found, expected in zip(jax.tree.leaves(ignored), jax.tree.leaves(left_out), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_labels_that_are_no_integers_are_refused(name):
    with pytest.raises(ValueError, match="t: expected"):
        FUNCTIONS[name](np.arange(N), jnp.asarray(LABELS, jnp.float32))


def test_a_number_of_treatments_beyond_reason_is_refused_before_memory_is_filled():
    with pytest.raises(ValueError, match="num_treatments: expected about as many"):
        psa.group(LABELS, LABELS, 10**9)
