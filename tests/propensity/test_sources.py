"""Learning from a source: the same as from the array, in one program, of any model."""

import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from problems import slow

import psa_jax as psa
from psa_jax.propensity.fit import _ensemble, _fit
from psa_jax.propensity.model import CHUNK

RNG = np.random.default_rng(0)
T = RNG.integers(0, 3, 200)
X = (RNG.normal(size=(200, 5)) * [1, 1e-3, 1e3, 1, 0] + 5 + T[:, None]).astype(np.float32)
KEY = jax.random.key(1)
QUICK = psa.Training(epochs=3, batch_size=16)


class Mine(nn.Module):
    """A module that knows of no sources, and takes statistics of what it is given at first."""

    @nn.compact
    def __call__(self, x, *, train):
        mean = self.variable("constants", "mean", lambda: x.mean(0, keepdims=True))
        return nn.Dense(3)(x - mean.value)


def make(rngs):
    return nnx.Linear(5, 3, rngs=rngs)


def close(found, expected, atol=1e-5):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=atol, rtol=1e-5),
        (found.params, found.history),
        (expected.params, expected.history),
    )


@pytest.mark.parametrize("augment", [*slow(None), psa.gaussian_noise(0.3)])
def test_fit_gives_what_it_gives_of_the_array(augment):
    for valid in (None, np.arange(60)):
        given = [
            psa.fit(
                KEY,
                psa.mlp((8,), 3),
                x,
                T,
                training=QUICK,
                augment=augment,
                valid=None if valid is None else (take(valid), T[valid]),
            )
            for x, take in ((psa.source(X), psa.source(X).take), (X, lambda ids: X[ids]))
        ]
        close(*given)


def test_members_folds_and_scores_are_those_of_the_array():
    model, keys = psa.mlp((8,), 3), jax.random.split(KEY, 2)
    augments = (psa.gaussian_noise(0.3), None)
    source, array = (psa.fit_ensemble(keys, model, x, T, training=QUICK, augment=augments) for x in (psa.source(X), X))
    close(source, array)
    found, expected = (psa.crossfit(KEY, model, x, T, folds=3, training=QUICK) for x in (psa.source(X), X))
    np.testing.assert_array_equal(found.fold, expected.fold)
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-4)
    close(found.fitted, expected.fitted)
    for chunk in (7, 1000):
        first = jax.tree.map(lambda leaf: leaf[0], array.params)
        one, other = (psa.propensity(model, first, x, chunk=chunk) for x in (psa.source(X), X))
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.slow
def test_images_of_bytes_are_those_of_the_array():
    images = RNG.integers(0, 255, (24, 8, 8, 2)).astype(np.uint8)
    training = psa.Training(epochs=1, batch_size=8)
    found, expected = (
        psa.fit(KEY, psa.conv((4,), 3, hidden=4), x, T[:24], training=training, augment=psa.translation(0.1))
        for x in (psa.source(images).astype("float32"), images.astype("float32"))
    )
    close(found, expected)


def test_statistics_of_several_parts_are_those_of_the_whole(monkeypatch):
    monkeypatch.setattr(sys.modules["psa_jax.propensity.nets"], "CHUNK", 17)
    for x in (X, X * 1e30, X * 1e-30, np.full_like(X, 7)):
        model = psa.linear(3)
        found, expected = (jax.jit(model.init)(KEY, given)["constants"] for given in (psa.source(x), jnp.asarray(x)))
        jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5), found, expected)


def test_models_that_know_of_no_sources_get_some_samples_at_first():
    x = np.arange(3.0 * CHUNK, dtype=np.float32)[:, None]
    t = np.arange(3 * CHUNK) % 3
    model = psa.from_linen(Mine())
    fitted = psa.fit(KEY, model, psa.source(x), t, training=psa.Training(epochs=1, batch_size=1024))
    assert abs(float(fitted.params["constants"]["mean"][0, 0]) - x.mean()) < 1
    few, all_ = (psa.fit(KEY, model, given, T, training=QUICK) for given in (psa.source(X), X))
    close(few, all_)


@pytest.mark.slow
def test_models_that_look_at_no_sample_read_none_at_first():
    model = psa.from_nnx(make)
    close(*(psa.fit(KEY, model, given, T, training=QUICK) for given in (psa.source(X), X)))


def test_one_program_serves_every_source_of_a_shape():
    psa.fit(KEY, psa.linear(3), psa.source(X), T, training=QUICK)
    before = _fit._cache_size()
    again = psa.fit(KEY, psa.linear(3), psa.source(X + 1), T, training=QUICK)
    assert _fit._cache_size() == before
    close(again, psa.fit(KEY, psa.linear(3), X + 1, T, training=QUICK))


def test_every_row_is_read_once_an_epoch_and_ahead():
    asked = []

    class Rows:
        def __len__(self):
            return len(X)

        def __getitem__(self, ids):
            asked.append(ids)
            return X[ids]

    x = psa.source(Rows())
    psa.validate(psa.Unpaired(psa.Modality(x, T), psa.Modality(X, T), 3))
    for epochs in (1, 3):
        asked.clear()
        psa.fit(KEY, psa.linear(3), x, T, training=psa.Training(epochs=epochs, batch_size=50))
        assert (
            sum(map(len, asked)) == (epochs + 1) * len(X) + 1
        )  # once more for means and deviations, which start at a row


def test_gradients_pass_by_what_is_read():
    model, x = psa.linear(3), psa.source(X)
    params = model.init(KEY, jnp.asarray(X))

    def total(params, x):
        return jnp.square(psa.propensity(model, params, x, chunk=64)).sum()

    found, expected = (jax.grad(lambda p, x=x: total(params | {"params": p}, x))(params["params"]) for x in (x, X))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4), found, expected)


def test_a_source_may_be_traced():
    x = psa.source(X)
    fitted = jax.jit(lambda x: psa.fit(KEY, psa.linear(3), x, T, training=QUICK))(x)
    close(fitted, psa.fit(KEY, psa.linear(3), X, T, training=QUICK))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: psa.source(X.astype(np.int32)), "x: expected float features"),
        (lambda: psa.source(X[:, 0]), "x: expected float features"),
        (lambda: psa.source(X[:7]), "x, t: expected as many labels as samples"),
    ],
)
def test_sources_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        psa.fit(KEY, psa.linear(3), make(), T)


def test_members_that_train_together_read_together():
    x, keys = psa.source(X), jax.random.split(KEY, 2)
    options = {"model": psa.linear(3), "training": QUICK, "on_epoch": None, "mesh": None}
    together, apart = (
        _ensemble(
            (x, jnp.asarray(T, jnp.int32), None, None), (keys, jnp.arange(2), None), vectorize=vectorize, **options
        )
        for vectorize in (True, False)
    )
    close(together, apart)
