import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special

from psa_jax.propensity import nets
from psa_jax.propensity.calibration import calibrate, expected_calibration_error, reliability
from psa_jax.propensity.model import Model
from psa_jax.propensity.scores import centre, from_logits, log_prior, propensity

KEY = jax.random.key(0)


def problem(n=400, k=5, sharp=3.0):
    """Overconfident logits: labels are drawn at temperature `sharp`."""
    logits = 4 * jax.random.normal(KEY, (n, k)) + 10
    return logits, jax.random.categorical(jax.random.key(1), logits / sharp).astype(jnp.int32)


def test_centre_forgets_the_offset():
    logits, _ = problem()
    offset = jax.random.normal(KEY, (400, 1))
    np.testing.assert_allclose(centre(logits + offset), centre(logits), atol=1e-5)
    np.testing.assert_allclose(centre(logits).sum(-1), 0, atol=1e-4)


def test_score_by_hand():
    logits, _ = problem()
    prior = jnp.log(jnp.array([0.1, 0.2, 0.3, 0.3, 0.1]))
    got = from_logits(logits, temperature=2.0, log_prior=prior, treatments=[4, 1, 0])
    want = (np.asarray(logits) / 2 - np.asarray(prior))[:, [4, 1, 0]]
    np.testing.assert_allclose(got, want - want.mean(1, keepdims=True), atol=1e-5)
    posterior = from_logits(logits, transform=jax.nn.log_softmax)
    np.testing.assert_allclose(posterior, scipy.special.log_softmax(np.asarray(logits), 1), atol=1e-5)


def test_prior_makes_frequencies_irrelevant():
    """Posteriors under different treatment frequencies give the same likelihood ratios."""
    likelihood = jax.random.normal(KEY, (50, 3))
    prior_a, prior_b = jnp.log(jnp.array([0.8, 0.1, 0.1])), jnp.log(jnp.array([0.2, 0.3, 0.5]))
    a, b = (jax.nn.log_softmax(likelihood + prior[None]) for prior in (prior_a, prior_b))
    one, two = from_logits(a, log_prior=prior_a), from_logits(b, log_prior=prior_b)
    np.testing.assert_allclose(one, two, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 3, 7, 1000])
def test_propensity_takes_the_path_of_score(chunk):
    model, x = nets.mlp((4,), 3, dropout=0.5), jax.random.normal(KEY, (7, 2))
    params = model.init(KEY, x)
    logits, _ = model.apply(params, x, train=False, key=None)
    prior = jnp.log(jnp.array([0.5, 0.25, 0.25]))
    got = propensity(model, params, x, temperature=0.5, log_prior=prior, treatments=jnp.array([2, 0]), chunk=chunk)
    want = from_logits(logits, temperature=0.5, log_prior=prior, treatments=jnp.array([2, 0]))
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_propensity_compiles_once():
    traces = []

    def apply(params, x, *, train, key):
        traces.append(1)
        return x @ params, params

    model = Model(lambda key, x: jnp.ones((x.shape[1], 3)), apply)
    x = jnp.ones((5, 2))
    for temperature in (1.0, 2.0, 3.0):
        propensity(model, jnp.full((2, 3), temperature), x, temperature=temperature, log_prior=jnp.ones(3))
    assert len(traces) == 1


def test_propensity_vmaps_over_an_ensemble():
    model, x = nets.linear(3), jax.random.normal(KEY, (5, 2))
    params = jax.vmap(lambda key: model.init(key, x))(jax.random.split(KEY, 4))
    scores = jax.vmap(lambda params: propensity(model, params, x))(params)
    one = propensity(model, jax.tree.map(lambda leaf: leaf[2], params), x)
    np.testing.assert_allclose(scores[2], one, atol=1e-5)


def test_propensity_is_differentiable():
    model, x = nets.mlp((4,), 3), jax.random.normal(KEY, (5, 2))
    params = model.init(KEY, x)
    grads = jax.grad(lambda x, s: propensity(model, params, x, temperature=s).max(), (0, 1))(x, 2.0)
    assert all(bool(jnp.isfinite(grad).all()) and bool((grad != 0).any()) for grad in grads)


@pytest.mark.parametrize("sharp", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("absent", [False, True])
def test_calibrate_is_the_minimum(sharp, absent):
    logits, t = problem(sharp=sharp)
    t = jnp.where(t == 2, 1, t) if absent else t
    z, labels = np.asarray(logits, float), np.asarray(t)

    def loss(log_beta):
        return -scipy.special.log_softmax(np.exp(log_beta) * z, 1)[np.arange(len(z)), labels].mean()

    want = np.exp(-scipy.optimize.minimize_scalar(loss, bounds=(-7, 7), method="bounded", options={"xatol": 1e-8}).x)
    np.testing.assert_allclose(calibrate(logits, t), want, rtol=1e-3)


def test_calibrate_edges():
    t = jnp.arange(6) % 3
    right = jax.nn.one_hot(t, 3)
    np.testing.assert_allclose(calibrate(right, t), 1e-3, rtol=1e-3)
    np.testing.assert_allclose(calibrate(-right, t), 1e3, rtol=1e-3)
    assert jnp.isnan(calibrate(right.at[0, 0].set(jnp.nan), t))


def test_calibrate_compiles_once_and_vmaps():
    logits, t = problem()
    many = jax.vmap(calibrate, (0, None))(jnp.stack([logits, 2 * logits]), t)
    np.testing.assert_allclose(many[1] / many[0], 2, rtol=1e-4)


@pytest.mark.parametrize("bins", [1, 4, 15])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_calibration_error_by_brute_force(bins, temperature):
    logits, t = problem()
    p = scipy.special.softmax(np.asarray(logits, float) / temperature, 1)
    confidence, right = p.max(1), p.argmax(1) == np.asarray(t)
    want, edges = 0.0, np.linspace(0, 1, bins + 1)
    table = reliability(logits, t, temperature=temperature, bins=bins)
    for b in range(bins):
        inside = (confidence > edges[b]) & (confidence <= edges[b + 1])
        assert int(table[2][b]) == inside.sum()
        if inside.any():
            np.testing.assert_allclose(table[0][b], confidence[inside].mean(), atol=1e-5)
            np.testing.assert_allclose(table[1][b], right[inside].mean(), atol=1e-5)
            want += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    got = expected_calibration_error(logits, t, temperature=temperature, bins=bins)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_calibration_lowers_the_error():
    logits, t = problem()
    before = expected_calibration_error(logits, t)
    after = expected_calibration_error(logits, t, temperature=calibrate(logits, t))
    assert after < before / 2


def test_log_prior():
    t = jnp.array([0, 0, 0, 1, 1, 3])
    got = log_prior(t, 5)
    np.testing.assert_allclose(jnp.exp(got), np.array([3, 2, 1, 1, 1]) / 6, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(log_prior, static_argnums=1)(t, 5), got)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: from_logits(jnp.ones(3)), r"logits: expected numbers \[n, K\]"),
        (lambda: from_logits(jnp.ones((2, 3)), log_prior=jnp.ones(2)), r"log_prior: expected shape \(3,\)"),
        (lambda: from_logits(jnp.ones((2, 3)), treatments=jnp.ones(2)), "treatments: expected integers"),
        (lambda: calibrate(jnp.ones((2, 3)), jnp.ones(2)), r"t: expected integers \[n\]"),
        (lambda: calibrate(jnp.ones((2, 3)), jnp.ones(3, int)), "t: expected integer codes"),
        (lambda: calibrate(jnp.ones((0, 3)), jnp.ones(0, int)), "logits: expected"),
        (lambda: reliability(jnp.ones((2, 3)), jnp.ones(2, int), bins=0), "bins: expected at least 1"),
        (
            lambda: propensity(nets.linear(2), {}, jnp.ones((2, 2)), chunk=0),
            "chunk: expected at least 1",
        ),
    ],
)
def test_wrong_inputs(call, message):
    with pytest.raises(ValueError, match=message):
        call()
