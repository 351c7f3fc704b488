import dataclasses

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import psa_jax as psa
from psa_jax.propensity import augment, nets
from psa_jax.propensity.crossfit import _deal, crossfit
from psa_jax.propensity.fit import _fit, class_weights, fit, fit_ensemble
from psa_jax.propensity.model import Model
from psa_jax.propensity.scores import propensity
from psa_jax.propensity.training import Training

KEY = jax.random.key(0)
SGD = optax.sgd(0.1)
ADAM = optax.adam(3e-2)


def blobs(n=120, k=3, d=4, key=KEY, noise=1.0):
    key_t, key_x = jax.random.split(key)
    t = jax.random.randint(key_t, (n,), 0, k)
    centres = 2 * jax.random.normal(jax.random.key(5), (k, d))
    return centres[t] + noise * jax.random.normal(key_x, (n, d)), t


def counting(traces):
    """A linear model that notes each of its traces."""

    def apply(params, x, *, train, key):
        traces.append(train)
        return x @ params["w"], params

    return Model(lambda key, x: {"w": jnp.zeros((x.shape[1], 3))}, apply)


def same(one, two, atol=0.0):
    chex.assert_trees_all_close(one, two, rtol=0, atol=atol)


def cross_entropy(model, params, x, t):
    logits, _ = model.apply(params, x, train=False, key=None)
    return optax.softmax_cross_entropy_with_integer_labels(logits, t).mean()


@pytest.mark.parametrize("weighted", [False, True])
def test_full_batch_training_is_a_plain_loop(weighted):
    x, t = blobs()
    weights = jnp.array([1.0, 2.0, 0.5])
    model = counting([])
    fitted = fit(
        KEY,
        model,
        x,
        t,
        training=Training(SGD, epochs=5, batch_size=1000),
        class_weights=weights if weighted else None,
    )
    w, losses = jnp.zeros((4, 3)), []
    sample = weights[t] / weights[t].mean() if weighted else jnp.ones(t.size)

    def loss(w):
        return (sample * optax.softmax_cross_entropy_with_integer_labels(x @ w, t)).mean()

    for _ in range(5):
        value, grad = jax.value_and_grad(loss)(w)
        losses.append(value)
        w = w - 0.1 * grad
    np.testing.assert_allclose(fitted.params["w"], w, atol=1e-5)
    np.testing.assert_allclose(fitted.history.train_loss, losses, atol=1e-5)
    assert fitted.history.epochs_run == 5
    assert fitted.history.best_epoch == 4
    assert jnp.isinf(fitted.history.valid_loss).all()


def test_every_epoch_sees_each_sample_once():
    seen = []

    def apply(params, x, *, train, key):
        if train:
            jax.debug.callback(lambda ids: seen.append(np.asarray(ids)), x[:, 0])
        return x @ params, params

    x = jnp.stack([jnp.arange(20.0), jnp.ones(20)], 1)
    model = Model(lambda key, x: jnp.zeros((2, 2)), apply)
    fit(KEY, model, x, jnp.arange(20) % 2, training=Training(SGD, epochs=2, batch_size=6))
    jax.effects_barrier()
    ids = np.concatenate(seen).astype(int).reshape(2, 18)
    assert all(len(set(epoch)) == 18 for epoch in ids.tolist())
    assert ids[0].tolist() != ids[1].tolist()


def test_linear_is_logistic_regression():
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, t = blobs(400, noise=3.0)
    fitted = fit(KEY, nets.linear(3), x, t, training=Training(ADAM, epochs=300, batch_size=400))
    with np.errstate(all="ignore"):
        reference = linear_model.LogisticRegression(C=1e6, max_iter=1000).fit(np.asarray(x), np.asarray(t))
    got = propensity(nets.linear(3), fitted.params, x, transform=jax.nn.log_softmax)
    np.testing.assert_allclose(got, reference.predict_log_proba(np.asarray(x)), atol=0.05)


def test_constants_and_statistics_are_not_trained():
    x, t = blobs()
    x = 100 * x + 1000
    model = nets.mlp((8,), 3, norm=nets.batch_norm)
    training = Training(optax.adamw(1e-2, weight_decay=1.0), epochs=20, batch_size=40)
    fitted = fit(KEY, model, x, t, training=training)
    constants = fitted.params["constants"]["Standardize_0"]
    np.testing.assert_allclose(constants["mean"], x.mean(0), rtol=1e-4)
    np.testing.assert_allclose(constants["scale"], jnp.std(x, 0), rtol=1e-4)
    stats = fitted.params["batch_stats"]["BatchNorm_0"]
    hidden = (x - constants["mean"][None]) / constants["scale"][None]
    dense = fitted.params["params"]["Dense_0"]
    hidden = hidden @ dense["kernel"] + dense["bias"][None]
    np.testing.assert_allclose(stats["var"], hidden.var(0), rtol=0.5)
    assert fitted.history.train_loss[-1] < fitted.history.train_loss[0]


def test_own_trainable():
    x, t = blobs()

    def apply(params, x, *, train, key):
        count = params["count"] + 1 if train else params["count"]
        return x @ params["w"] + params["bias"][None], {**params, "count": count}

    def init(key, x):
        return {"w": jnp.zeros((4, 3)), "bias": jnp.ones(3), "count": jnp.zeros((), jnp.int32)}

    training = Training(epochs=2, batch_size=40)
    everything = fit(KEY, Model(init, apply), x, t, training=training)
    assert everything.params["count"] == 6
    assert (everything.params["bias"] != 1).any()
    model = Model(init, apply, lambda params: {"w": True, "bias": False, "count": False})
    some = fit(KEY, model, x, t, training=training)
    np.testing.assert_array_equal(some.params["bias"], 1)
    assert (some.params["w"] != 0).any()


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.last = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(self.norm(self.first(x))))


class Lin(nn.Module):
    @nn.compact
    def __call__(self, x, *, train: bool):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
        return nn.Dense(3)(nn.Dropout(0.2, deterministic=not train)(x))


@pytest.mark.parametrize("model", [psa.from_nnx(Nnx), psa.from_linen(Lin())], ids=["nnx", "linen"])
def test_flax_modules_learn(model):
    x, t = blobs()
    training = Training(ADAM, epochs=30, batch_size=40, patience=30)
    fitted = fit(KEY, model, x, t, training=training, valid=(x, t))
    logits = propensity(model, fitted.params, x)
    assert (logits.argmax(1) == t).mean() > 0.85


def test_conv_learns_from_smoothed_images():
    t = jnp.arange(64) % 2
    x = 0.1 * jax.random.normal(KEY, (64, 9, 8, 1)) + 50
    x = x.at[:, 3:6, 3:6].add(t.astype(x.dtype)[:, None, None, None])
    model = nets.conv((4, 4), 2, hidden=8)
    training = Training(ADAM, epochs=20, batch_size=32)
    fitted = fit(KEY, model, x, t, training=training, augment=augment.translation(0.05))
    assert fitted.history.train_loss[-1] < 0.2
    assert (propensity(model, fitted.params, x).argmax(1) == t).mean() > 0.9


def test_best_parameters_on_validation_data():
    x, t = blobs(60, noise=3.0)
    x_valid, t_valid = blobs(50, key=jax.random.key(9), noise=3.0)
    model = nets.mlp((32,), 3)
    training = Training(ADAM, epochs=40, batch_size=20, patience=40)
    fitted = fit(KEY, model, x, t, training=training, valid=(x_valid, t_valid))
    history = fitted.history
    assert history.best_epoch == jnp.argmin(history.valid_loss)
    assert history.best_epoch < 39
    got = cross_entropy(model, fitted.params, x_valid, t_valid)
    np.testing.assert_allclose(got, history.valid_loss.min(), rtol=1e-4)

    impatient = dataclasses.replace(training, patience=3)
    stopped = fit(KEY, model, x, t, training=impatient, valid=(x_valid, t_valid))
    losses = np.asarray(history.valid_loss)
    best, stop = 0, 40
    for epoch, loss in enumerate(losses):
        best = epoch if loss < losses[best] else best
        if epoch - best >= 3:
            stop = epoch + 1
            break
    assert stop < 40
    assert stopped.history.epochs_run == stop
    assert stopped.history.best_epoch == best
    np.testing.assert_allclose(stopped.history.valid_loss[:stop], losses[:stop], atol=1e-5)
    assert jnp.isinf(stopped.history.valid_loss[stop:]).all()
    assert jnp.isinf(stopped.history.train_loss[stop:]).all()
    got = cross_entropy(model, stopped.params, x_valid, t_valid)
    np.testing.assert_allclose(got, losses[best], rtol=1e-4)


def test_diverged_training_is_told():
    x, t = blobs()
    model = counting([])
    training = Training(optax.sgd(1e38), epochs=4, batch_size=40, patience=2)
    fitted = fit(KEY, model, x, t, training=training, valid=(x, t))
    assert fitted.history.best_epoch == -1
    assert fitted.history.epochs_run == 2
    np.testing.assert_array_equal(fitted.params["w"], 0)


def test_validation_inputs_are_augmented():
    x, t = blobs()

    def apart(key, x):
        return x + 100

    model = counting([])
    training = Training(SGD, epochs=2, batch_size=200, patience=2)
    shifted = fit(KEY, model, x, t, valid=(x, t), augment=apart, training=training)
    by_hand = fit(KEY, model, x + 100, t, valid=(x + 100, t), training=training)
    same(shifted, by_hand, 1e-3)


def test_same_key_same_bits_and_one_compilation():
    x, t = blobs()
    traces = []
    model = counting(traces)

    def run(key, amount=0.1, x=x):
        noise = augment.gaussian_noise(amount)
        weights = jnp.ones(3) * amount
        training = Training(epochs=2, batch_size=40)
        return fit(key, model, x, t, training=training, augment=noise, class_weights=weights)

    first = run(KEY)
    count = len(traces)
    same(first, run(KEY))
    other = run(jax.random.key(1), 0.3, 2 * x)
    assert len(traces) == count
    assert (other.params["w"] != first.params["w"]).any()


def test_equal_models_share_a_compilation():
    x, t = blobs()
    fit(KEY, nets.mlp((5,), 3), x, t, training=Training(epochs=2))
    size = _fit._cache_size()
    fit(KEY, nets.mlp((5,), 3), x, t, training=Training(epochs=2))
    assert _fit._cache_size() == size


def test_on_epoch():
    x, t = blobs()
    calls = []

    def note(epoch, train_loss, valid_loss):
        calls.append((int(epoch), float(train_loss), float(valid_loss)))

    training = Training(epochs=3, patience=3)
    fitted = fit(KEY, nets.linear(3), x, t, training=training, valid=(x, t), on_epoch=note)
    jax.effects_barrier()
    assert sorted(call[0] for call in calls) == [0, 1, 2]
    np.testing.assert_allclose([call[2] for call in sorted(calls)], fitted.history.valid_loss)


@pytest.mark.parametrize("vectorize", [False, True])
def test_ensemble_is_fit(vectorize, monkeypatch):
    x, t = blobs()
    model, keys = nets.mlp((6,), 3, dropout=0.1), jax.random.split(KEY, 3)
    kwargs = {
        "training": Training(epochs=4, batch_size=40, patience=2),
        "valid": (x, t),
        "augment": augment.gaussian_noise(0.1),
    }
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu" if vectorize else "cpu")
    ensemble = fit_ensemble(keys, model, x, t, **kwargs)
    for i in range(3):
        one = fit(keys[i], model, x, t, **kwargs)
        same(jax.tree.map(lambda leaf, i=i: leaf[i], ensemble), one, 1e-5)


def test_fit_inside_jit():
    x, t = blobs()
    training = Training(epochs=2)
    inside = jax.jit(lambda key, x, t: fit(key, nets.linear(3), x, t, training=training))(KEY, x, t)
    same(inside, fit(KEY, nets.linear(3), x, t, training=training), 1e-5)


def test_class_weights():
    t = jnp.array([0, 0, 0, 0, 2, 2])
    weights = class_weights(t, 4)
    np.testing.assert_allclose(weights, [0.75, 0, 1.5, 0])
    np.testing.assert_allclose(weights[t].mean(), 1)
    x = jax.random.normal(KEY, (300, 2))  # says nothing of the label
    t = (jnp.arange(300) % 10 == 0).astype(jnp.int32)
    model, kwargs = nets.linear(2), {"training": Training(SGD, epochs=100, batch_size=300)}
    plain = fit(KEY, model, x, t, **kwargs)
    equal = fit(KEY, model, x, t, class_weights=class_weights(t, 2), **kwargs)
    share = [
        float(jnp.exp(propensity(model, f.params, x, transform=jax.nn.log_softmax))[:, 1].mean())
        for f in (plain, equal)
    ]
    np.testing.assert_allclose(share, [0.1, 0.5], atol=0.06)


@pytest.mark.parametrize(("n", "folds"), [(30, 3), (31, 3), (32, 5), (33, 5), (34, 5), (5, 5)])
def test_folds(n, folds):
    t = np.sort(np.arange(n) % 4)
    fold, (fitted, valid, scored) = _deal(KEY, t, folds)
    sizes = np.bincount(fold, minlength=folds)
    assert sizes.max() - sizes.min() <= 1
    for code in range(4):
        per_class = np.bincount(fold[t == code], minlength=folds)
        assert per_class.max() - per_class.min() <= 1
    for f in range(folds):
        own = scored[f][scored[f] < n]
        assert sorted(own.tolist()) == np.flatnonzero(fold == f).tolist()
        assert set(fold[valid[f]]) == {(f + 1) % folds}
        used = own.tolist() + valid[f].tolist() + fitted[f].tolist()
        assert len(set(used)) == len(used)
        assert len(used) >= n - 1


@pytest.mark.parametrize("vectorize", [False, True])
def test_crossfit_scores_are_out_of_fold(vectorize, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu" if vectorize else "cpu")
    x = jax.random.normal(KEY, (151, 40))
    t = jax.random.randint(jax.random.key(1), (151,), 0, 2)
    model = nets.mlp((128,), 2)
    out = crossfit(KEY, model, x, t, folds=3, training=Training(ADAM, epochs=40, batch_size=50, patience=40))
    memorised = fit(KEY, model, x, t, training=Training(ADAM, epochs=40, batch_size=50))
    assert (propensity(model, memorised.params, x).argmax(1) == t).mean() > 0.97
    assert abs(float((out.logits.argmax(1) == t).mean()) - 0.5) < 0.13
    assert out.fitted.history.train_loss.shape == (3, 40)
    for f in range(3):
        params = jax.tree.map(lambda leaf, f=f: leaf[f], out.fitted.params)
        logits, _ = model.apply(params, x, train=False, key=None)
        np.testing.assert_allclose(out.logits[out.fold == f], logits[out.fold == f], atol=1e-4)


def test_crossfit_compiles_once_and_repeats():
    x, t = blobs(50)
    traces = []
    model = counting(traces)
    training = Training(epochs=2, patience=1)
    first = crossfit(KEY, model, x, t, training=training)
    count = len(traces)
    same(first, crossfit(KEY, model, x, t, training=training))
    crossfit(jax.random.key(1), model, x, t, training=training)
    assert len(traces) == count


X, T = blobs(12)
BAD = {
    "empty": ({"x": X[:0], "t": T[:0]}, "x: expected float features"),
    "rank of x": ({"x": T}, "x: expected float features"),
    "dtype of x": ({"x": jnp.ones((12, 4), int)}, "x: expected float features"),
    "lengths": ({"t": T[:5]}, "x, t: expected as many labels as samples, got 5 labels, 12 samples"),
    "dtype of t": ({"t": T.astype(float)}, "t: expected integers"),
    "rank of t": ({"t": T[:, None]}, r"t: expected integers \[n\]"),
    "range of t": ({"t": T.at[4].set(3)}, r"t: expected codes in \[0, 3\), got 3 at row 4"),
    "one treatment": ({"t": jnp.ones(12, int)}, r"at least two treatments, got only \[1\]"),
    "nan": ({"x": X.at[3, 1].set(jnp.nan).at[7, 0].set(jnp.inf)}, "in 2 of 12 rows, the first at row 3"),
    "no training": ({"training": 3}, "training: expected psa_jax.Training"),
    "patience alone": ({"training": Training(patience=2)}, "patience: expected validation data"),
    "negative weights": ({"class_weights": -jnp.ones(3)}, "class_weights: expected finite numbers"),
    "nan weights": ({"class_weights": jnp.full(3, jnp.nan)}, "class_weights: expected finite numbers"),
    "weights": ({"class_weights": jnp.ones(2)}, r"class_weights: expected shape \(3,\), got \(2,\)"),
    "valid lengths": ({"valid": (X, T[:5])}, "valid: x, t: expected as many labels"),
    "valid shape": ({"valid": (X[:, :2], T)}, "valid: x: expected shape"),
    "valid nan": ({"valid": (X.at[0].set(jnp.nan), T)}, "valid: x: expected finite features"),
    "rank of the model": ({"model": nets.conv((4,), 3)}, "x: expected images"),
    "logits": (
        {"model": Model(lambda key, x: jnp.ones(1), lambda p, x, *, train, key: (x[:, 0], p))},
        "expected logits",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_inputs(name):
    changes, message = BAD[name]
    arguments = {"model": nets.linear(3), "x": X, "t": T, "training": Training(epochs=1), **changes}
    with pytest.raises(ValueError, match=message):
        fit(KEY, **arguments)
    with pytest.raises(ValueError, match=message):
        fit_ensemble(KEY[None], **arguments)


def test_wrong_keys_and_folds():
    with pytest.raises(ValueError, match=r"keys: expected keys \[members\]"):
        fit_ensemble(KEY, nets.linear(3), X, T)
    for folds in (2, 13):
        with pytest.raises(ValueError, match=f"folds: expected at least 3 and at most n = 12, got {folds}"):
            crossfit(KEY, nets.linear(3), X, T, folds=folds)
    with pytest.raises(ValueError, match="labels on the host"):
        jax.jit(lambda t: crossfit(KEY, nets.linear(3), X, t).logits)(T)
