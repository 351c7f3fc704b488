import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import ragged

import psa_jax as psa
from psa_jax.match import known_pairs
from psa_jax.predict import draw_loss, fit_predictor, fit_predictor_ensemble, predict
from psa_jax.propensity.loop import minimise
from psa_jax.propensity.training import Training

KEY = jax.random.key(0)
LOSSES = ("unbiased", "sampled", "barycentric")


def affine_init(key, x):
    start = jnp.array([[0.7, -0.4], [0.2, 1.1]], x.dtype)
    return {"w": start, "b": jnp.zeros(2, x.dtype)}


def affine_apply(params, x, *, train, key):
    return x @ params["w"] + params["b"][None], params


AFFINE = psa.Model(affine_init, affine_apply)  # two numbers to two numbers, the same start for every key


def table_kernel(left, right, args):
    return left[:, right]


def table(mass):
    """A coupling of a stored table of masses `[n, m]`."""
    mass = np.asarray(mass, float)
    log_mass = np.where(mass > 0, np.log(np.where(mass > 0, mass, 1)), -np.inf)
    return psa.Coupling(left=jnp.asarray(log_mass), right=jnp.arange(mass.shape[1]), kernel=table_kernel)


def tiny(dtype=jnp.float32, seed=0):
    """Four samples of a, four of b; the last of each has no partner."""
    rng = np.random.default_rng(seed)
    x, y = (jnp.asarray(rng.normal(size=(4, 2)), dtype) for _ in range(2))
    mass = rng.exponential(size=(4, 4))
    mass[3] = mass[:, 3] = 0
    mass[1, 2] = 0
    return x, y, mass


def conditional(mass):
    total = mass.sum(1, keepdims=True)
    return mass / np.where(total > 0, total, 1)


def brute_force(loss, out, y, mass):
    """The exact loss, on numpy arrays or on JAX arrays that are differentiated."""
    if loss == "barycentric":
        rows = mass.sum(1) > 0
        return ((out[rows] - conditional(mass)[rows] @ y) ** 2).mean()
    rows = mass.sum(0) > 0
    p = conditional(mass.T)[rows]
    if loss == "unbiased":
        return ((y[rows] - p @ out) ** 2).mean()
    return (p[:, :, None] * (y[rows][:, None] - out[None]) ** 2).sum(1).mean()


def exact_gradient(loss, params, x, y, mass):
    def value(params):
        return brute_force(loss, affine_apply(params, x, train=True, key=None)[0], y, mass)

    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        return jax.grad(value)(params)


def gap(one, other):
    return max(float(jnp.abs(p - q).max()) for p, q in zip(*map(jax.tree.leaves, (one, other)), strict=True))


def same(one, other, tol=0.0):
    for p, q in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(p, q, rtol=tol, atol=tol)


def test_the_mean_over_all_pairs_of_draws_is_the_gradient_of_the_projected_loss(x64):
    x, y, mass = tiny(jnp.float64)
    params = affine_init(KEY, x)
    p = conditional(mass.T)[:3, :3]  # of the samples of b, over those of a
    draws = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), -1).reshape(-1, 3)  # a partner for each
    draws = np.concatenate([draws, np.full((27, 1), -1)], axis=1)  # and what `sample` says of the last
    chance = p[np.arange(3), draws[:, :3]].prod(1)
    np.testing.assert_allclose(chance.sum(), 1)
    matched = jnp.array([True, True, True, False])

    def value(params, *partners):
        return draw_loss([affine_apply(params, x[j], train=True, key=None)[0] for j in partners], y, matched)

    def mean_gradient(weights, *partners):
        grads = jax.vmap(jax.grad(value), (None, *[0] * len(partners)))(params, *map(jnp.asarray, partners))
        return jax.tree.map(lambda g: jnp.tensordot(jnp.asarray(weights), g, 1), grads)

    first, second = (k.ravel() for k in np.meshgrid(np.arange(27), np.arange(27)))
    two = mean_gradient(chance[first] * chance[second], draws[first], draws[second])
    one = mean_gradient(chance, draws)
    projected, sampled = (exact_gradient(loss, params, x, y, mass) for loss in ("unbiased", "sampled"))
    same(two, projected, 1e-13)
    same(one, sampled, 1e-13)
    assert gap(one, projected) > 0.1


@pytest.mark.parametrize("loss", LOSSES)
def test_one_step_of_training_follows_that_gradient_on_average(loss):
    x, y, mass = tiny()
    keys = jax.random.split(KEY, 4000)
    training = Training(optax.sgd(1.0), epochs=1)
    fitted = fit_predictor_ensemble(keys, AFFINE, x, y, table(mass), loss=loss, training=training)
    start = affine_init(KEY, x)
    exact = {name: exact_gradient(name, start, x, y, mass) for name in LOSSES}
    others = [exact[name] for name in LOSSES if name != loss]
    worst = []
    for name, before in start.items():
        steps = np.asarray(before, float) - np.asarray(fitted.params[name], float)
        error = steps.std(0) / np.sqrt(keys.size) + 1e-6
        assert (np.abs(steps.mean(0) - exact[loss][name]) < 5 * error).all()
        worst.append([(np.abs(steps.mean(0) - other[name]) / error).max() for other in others])
    assert np.max(worst, axis=0).min() > 10  # the others' gradients are told apart
    assert (fitted.unmatched == 1).all()


def linear_problem(n=200, noise=0.1):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(n, 3))
    y = x @ rng.normal(size=(3, 2)) + noise * rng.normal(size=(n, 2))
    order = rng.permutation(n)
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y[order], jnp.float32)
    return x, y, jnp.asarray(np.argsort(order), jnp.int32)


def adam(epochs, steps, rate=0.1):
    return optax.adam(optax.cosine_decay_schedule(rate, epochs * steps))


@pytest.mark.parametrize("loss", LOSSES)
def test_true_pairs_give_least_squares(loss):
    x, y, pair = linear_problem()
    truth = np.asarray(y)[np.asarray(pair)]
    design = np.column_stack([x, np.ones(200)])
    expected = design @ np.linalg.lstsq(design, truth, rcond=None)[0]
    training = Training(adam(80, 4), epochs=80, batch_size=50)
    fitted = fit_predictor(KEY, psa.linear(2), x, y, known_pairs(pair, 200), loss=loss, training=training)
    out = predict(psa.linear(2), fitted.params, x)
    np.testing.assert_allclose(out, expected, atol=0.03)
    assert 1 - ((out - truth) ** 2).mean() / truth.var(0).mean() > 0.97


def slope_init(key, x):
    return {"w": jnp.zeros((1, 1), x.dtype)}


def slope_apply(params, x, *, train, key):
    return x @ params["w"], params


SLOPE = psa.Model(slope_init, slope_apply)


def test_two_draws_recover_a_slope_that_one_draw_attenuates():
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(50), 6)  # the coupling knows the group, an instrument, and nothing more
    x = rng.normal(size=(50, 1))[group] + rng.normal(size=(300, 1))
    y = 2 * np.concatenate([rng.permutation(x[group == g]) for g in range(50)])
    mean = np.array([x[group == g].mean() for g in range(50)])[group]
    attenuated = 2 * (mean**2).mean() / (x**2).mean()
    assert attenuated < 1.3
    coupling = table(group[:, None] == group[None])
    slopes, training = {}, Training(adam(60, 6), epochs=60, batch_size=50)
    for loss in LOSSES:
        sides = (jnp.asarray(z, jnp.float32) for z in (x, y))
        fitted = fit_predictor(KEY, SLOPE, *sides, coupling, loss=loss, training=training)
        slopes[loss] = float(fitted.params["w"][0, 0])
    assert slopes == pytest.approx({"unbiased": 2, "sampled": attenuated, "barycentric": attenuated}, abs=0.12)


@pytest.mark.parametrize("loss", LOSSES)
def test_samples_without_a_partner_count_but_do_not_matter(loss):
    x, y, pair = linear_problem(40)
    x, y = x[:, :2], y
    pair = pair.at[jnp.array([0, 5, 39])].set(-1)
    alone = np.setdiff1d(np.arange(40), np.asarray(pair))
    coupling = known_pairs(pair, 40)
    fit = functools.partial(fit_predictor, KEY, AFFINE, loss=loss, training=Training(epochs=3, batch_size=7))
    one = fit(x, y, coupling)
    other = fit(x.at[jnp.array([0, 5, 39])].set(1e3), y.at[alone].set(-1e3), coupling)
    same(one, other)
    assert int(one.unmatched) == 3
    more = fit(x, jnp.concatenate([y, y[:2]]), known_pairs(pair, 42))
    assert int(more.unmatched) == (3 if loss == "barycentric" else 5)
    matters = fit(x.at[1].set(3.0), y, coupling)
    assert gap(one.params, matters.params) > 1e-3


def test_same_key_same_bits_and_members_are_single_fits():
    x, y, pair = linear_problem(40)
    model, coupling = psa.mlp((4,), 2, dropout=0.2), known_pairs(pair, 40)
    given = {"training": Training(epochs=2, batch_size=20), "augment": psa.gaussian_noise(0.1)}
    keys = jax.random.split(KEY, 2)
    one, two = (fit_predictor(keys[1], model, x, y, coupling, **given) for _ in range(2))
    same(one, two)
    ensemble = fit_predictor_ensemble(keys, model, x, y, coupling, **given)
    same(jax.tree.map(lambda leaf: leaf[1], ensemble), one, 1e-5)
    assert gap(jax.tree.map(lambda leaf: leaf[0], ensemble.params), one.params) > 1e-3
    singles = [predict(model, jax.tree.map(lambda leaf, i=i: leaf[i], ensemble.params), x) for i in range(2)]
    assert singles[0].shape == (40, 2)
    np.testing.assert_allclose(
        predict(model, ensemble.params, x, members=True), (singles[0] + singles[1]) / 2, atol=1e-6
    )
    np.testing.assert_allclose(predict(model, one.params, x, chunk=7), singles[1], atol=1e-6)


def forget(key, x, /):
    return jnp.zeros_like(x)


def test_an_augmentation_may_be_a_plain_function_and_changes_inputs_in_training_only():
    x, y, mass = tiny()
    given = {"augment": forget, "valid": (x, y, table(mass)), "training": Training(optax.sgd(0.1), epochs=1)}
    for fit, key in ((fit_predictor, KEY), (fit_predictor_ensemble, KEY[None])):
        fitted = fit(key, AFFINE, x, y, table(mass), loss="unbiased", **given)
        params = jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[-2:] if leaf.size == 4 else 2), fitted.params)
        np.testing.assert_array_equal(params["w"], affine_init(KEY, x)["w"])
        assert np.abs(params["b"]).min() > 0
        out = np.asarray(affine_apply(params, x, train=False, key=None)[0], float)
        expected = brute_force("sampled", out, np.asarray(y, float), mass)
        np.testing.assert_allclose(fitted.history.valid_loss.ravel(), [expected], rtol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_validation_loss_is_exact_and_its_best_epoch_is_returned(loss):
    x, y, mass = tiny()
    x_v, y_v, mass_v = tiny(seed=1)
    fit, sgd = functools.partial(fit_predictor, KEY, AFFINE, x, y, table(mass), loss=loss), optax.sgd(0.2)
    fitted = fit(valid=(x_v, y_v, table(mass_v)), training=Training(sgd, epochs=40, patience=3))
    history = fitted.history
    ran, best = int(history.epochs_run), int(history.best_epoch)
    assert best == int(np.argmin(history.valid_loss))
    assert ran < 40
    assert ran == best + 4
    assert np.isinf(history.valid_loss[ran:]).all()
    out = np.asarray(predict(AFFINE, fitted.params, x_v), float)
    np.testing.assert_allclose(
        history.valid_loss[best],
        brute_force("sampled" if loss == "unbiased" else loss, out, np.asarray(y_v, float), mass_v),
        rtol=1e-5,
    )
    last = fit(training=Training(sgd, epochs=2))
    assert int(last.history.best_epoch) == 1
    assert np.isinf(last.history.valid_loss).all()
    assert np.isfinite(last.history.train_loss).all()


def softmax_kernel(left, right, args):
    return -jnp.sum((left[:, None] - right[None]) ** 2, axis=-1)


def softmax(u, v, a, b):
    return psa.Coupling(left=u, right=v, kernel=softmax_kernel)


def test_blocks_both_directions_and_images():
    u, v, _, t_a, t_b, _ = ragged()
    groups = psa.group(t_a, t_b, 8, max_waste=99.0)
    coupling = psa.blockwise(softmax)(u, v, groups)
    x, y = u[:, :2], v[:, 1:]
    assert int(coupling.unmatched_rows) != int(coupling.unmatched_cols)
    fit = functools.partial(fit_predictor, KEY, AFFINE, loss="unbiased", training=Training(epochs=2, batch_size=16))
    there = fit(x, y, coupling, valid=(x, y, coupling))
    assert int(there.unmatched) == int(coupling.unmatched_cols)
    p, same_treatment = np.asarray(coupling.dense(), float), np.equal.outer(np.asarray(t_a), np.asarray(t_b))
    out = np.asarray(predict(AFFINE, there.params, x), float)
    expected = brute_force("sampled", out, np.asarray(y, float), p * same_treatment)
    np.testing.assert_allclose(np.min(there.history.valid_loss), expected, rtol=1e-4)
    assert int(fit(y, x, coupling.T).unmatched) == int(coupling.unmatched_rows)
    images = y.reshape(-1, 2, 1, 1)
    same(fit(x, images, coupling, valid=(x, images, coupling)), there)


def test_what_is_drawn_for_the_loop_is_new_in_every_epoch_and_stays_with_its_sample():
    n, epochs = 6, 3

    def draw(key):
        return {"id": jnp.arange(n), "token": jax.random.uniform(key, (n,))}

    def loss(params, rows, key):
        seen = params["seen"]
        tokens = params["tokens"].at[seen[rows["id"]], rows["id"]].set(rows["token"])
        return jnp.sum(params["w"] ** 2), {**params, "seen": seen.at[rows["id"]].add(1), "tokens": tokens}

    params = {"w": jnp.ones(1), "seen": jnp.zeros(n, jnp.int32), "tokens": jnp.zeros((epochs, n))}
    trainable = {"w": True, "seen": False, "tokens": False}
    training = Training(optax.sgd(0.1), epochs=epochs, batch_size=2)
    fitted = jax.jit(
        lambda key: minimise(key, params, trainable, n, loss, draw=draw, valid_loss=None, training=training)
    )(KEY)
    np.testing.assert_array_equal(fitted.params["seen"], np.full(n, epochs))
    assert np.unique(fitted.params["tokens"]).size == n * epochs
    assert int(fitted.unmatched) == 0


X, Y, PAIRS = jnp.ones((4, 2)), jnp.ones((4, 2)), known_pairs(jnp.arange(4), 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "squared"}, "loss: expected one of 'unbiased', 'sampled', 'barycentric', got the text 'squared'"),
        ({"training": 3}, "training: expected psa_jax.Training"),
        ({"training": Training(patience=2)}, "patience: expected validation data"),
        ({"x_a": jnp.ones((3, 2))}, "x_a: expected 4 samples, as in the coupling, got 3"),
        ({"x_b": jnp.ones((5, 2))}, "x_b: expected 4 samples, as in the coupling, got 5"),
        ({"x_a": jnp.ones(4)}, "x_a: expected float features"),
        ({"x_b": jnp.ones((4, 2), jnp.int32)}, "x_b: expected float features"),
        ({"x_a": X.at[1, 1].set(jnp.nan)}, "x_a: expected finite features"),
        ({"x_b": Y.at[1, 1].set(jnp.inf)}, "x_b: expected finite features"),
        ({"x_b": jnp.ones((4, 3))}, "model: expected 3 outputs, one for each number of a target, got 2"),
        ({"coupling": known_pairs(jnp.full(4, -1), 4)}, "coupling: expected at least one sample with a partner"),
        ({"valid": (X, Y)}, "valid: expected 3 entries, got 2"),
        ({"valid": (jnp.ones((3, 2)), Y, PAIRS)}, "valid: x_a: expected 4 samples"),
        ({"valid": (jnp.ones((4, 3)), Y, PAIRS)}, r"valid: x_a: expected features \(2,\), got \(3,\)"),
        ({"valid": (X, jnp.ones((4, 3)), PAIRS)}, r"valid: x_b: expected features \(2,\), got \(3,\)"),
        ({"valid": (X, Y * jnp.nan, PAIRS)}, "valid: x_b: expected finite"),
        ({"valid": (X, Y, known_pairs(jnp.full(4, -1), 4))}, "valid: coupling: expected at least one sample"),
    ],
)
def test_bad_input(change, message):
    given = {"x_a": X, "x_b": Y, "coupling": PAIRS, **change}
    data = given.pop("x_a"), given.pop("x_b"), given.pop("coupling")
    for fit, key in ((fit_predictor, KEY), (fit_predictor_ensemble, KEY[None])):
        with pytest.raises(ValueError, match=message):
            fit(key, AFFINE, *data, **given)


def test_keys_of_an_ensemble():
    for keys in (KEY, jax.random.split(KEY, 2)[:0]):
        with pytest.raises(ValueError, match=r"keys: expected .*\[members\]"):
            fit_predictor_ensemble(keys, AFFINE, X, Y, PAIRS)
