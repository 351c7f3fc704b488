import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import psa_jax as psa
from psa_jax import baselines, datasets

ADAM = optax.adam(1e-2)
MODEL = psa.mlp((8,), 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(({name: 0}, f"{name}: expected at least 1, got 0") for name in ("epochs", "batch_size", "patience")),
        *(({name: -3}, f"{name}: expected at least 1, got -3") for name in ("epochs", "batch_size", "patience")),
        *(({"epochs": wrong}, r"epochs: expected an integer of at least 1 \(it is stat") for wrong in (2.0, True, "3")),
        ({"batch_size": None}, "batch_size: expected an integer of at least 1"),
        ({"optimizer": "adam"}, r"optimizer: expected one of optax, such as optax.adam\(1e-3\), got 'adam'"),
        ({"optimizer": optax.adam}, "optimizer: expected one of optax"),
    ],
)
def test_training_that_is_none(settings, message):
    with pytest.raises(ValueError, match=message):
        psa.Training(**settings)


def test_numbers_of_training_are_static():
    with pytest.raises(ValueError, match=r"epochs: expected an integer .* static"):
        jax.jit(lambda n: psa.Training(epochs=n).batch_size)(3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"members": 0}, "members: expected at least 1, got 0"),
        ({"members": 1.0}, "members: expected an integer of at least 1, got 1.0"),
        ({"members": True}, "members: expected an integer"),
        ({"folds": 2}, "folds: expected at least 3, got 2"),
        ({"folds": None}, "folds: expected an integer of at least 3, got None"),
        ({"model": "mlp"}, r"model: expected psa_jax.Model\(init, apply\).*'mlp'"),
        ({"augment": 0.1}, r"augment: expected a function \(key, batch\) -> batch, None, or a tuple of them, got 0.1"),
        ({"augment": ()}, r"augment: expected a function .* got \(\)"),
        ({"transform": None}, "transform: expected a function of scores"),
        ({"training": {"epochs": 3}}, r"training: expected psa_jax.Training\(epochs=..., batch_size=...\)"),
        ({"training": None}, "training: expected psa_jax.Training"),
    ],
)
def test_learners_that_are_none(settings, message):
    with pytest.raises(ValueError, match=message):
        psa.Learner(**settings)


def test_settings_are_equal_by_value_and_hashable():
    pairs = [
        (psa.Training(), psa.Training(None, None, 128, None)),
        (psa.Training(ADAM, epochs=np.int64(3)), psa.Training(ADAM, epochs=3)),
        (psa.Learner(), psa.Learner(training=psa.Training())),
        (psa.Learner(MODEL, psa.gaussian_noise(0.1)), psa.Learner(psa.mlp([8], 3), psa.gaussian_noise(0.1))),
    ]
    for one, two in pairs:
        assert one == two
        assert hash(one) == hash(two)
    assert len({setting for pair in pairs for setting in pair}) == len(pairs)
    assert psa.Training(epochs=3) != psa.Training(epochs=4)
    assert psa.Learner(members=2) != psa.Learner()
    with pytest.raises(dataclasses.FrozenInstanceError):
        psa.Training().epochs = 3


@pytest.mark.parametrize(
    ("training", "n", "judged", "numbers"),
    [
        (psa.Training(), 1000, True, (286, 57)),
        (psa.Training(), 1000, False, (286, None)),
        (psa.Training(), 10, True, (500, 100)),
        (psa.Training(), 10**6, True, (20, 4)),
        (psa.Training(batch_size=10), 1000, True, (20, 4)),
        (psa.Training(epochs=3), 1000, True, (3, 1)),
        (psa.Training(epochs=30, patience=30), 1000, True, (30, 30)),
        (psa.Training(patience=7), 1000, True, (286, 7)),
    ],
)
def test_numbers_that_depend_on_the_samples(training, n, judged, numbers):
    found = training.resolved(n, judged=judged)
    assert (found.epochs, found.patience) == numbers
    assert dataclasses.replace(found, epochs=training.epochs, patience=training.patience) == training
    assert found.resolved(5 * n, judged=judged) == found


def test_only_what_differs_is_shown():
    assert repr(psa.Training()) == "Training()"
    assert repr(psa.Training(ADAM, epochs=3, patience=2)) == "Training(optimizer=..., epochs=3, patience=2)"
    assert repr(psa.Learner()) == "Learner()"
    quick = psa.Learner(augment=None, training=psa.Training(epochs=3), transform=jax.nn.log_softmax)
    assert repr(quick) == "Learner(augment=None, training=Training(epochs=3), transform=log_softmax)"
    assert repr(psa.Learner(MODEL)).startswith("Learner(model=Model(")
    assert len(repr(psa.Learner(MODEL))) < 100


def test_each_modality_has_settings_of_its_own():
    t = jnp.arange(36) % 3
    x = jax.random.normal(jax.random.key(0), (36, 2)) + t[:, None].astype(float)
    data = psa.Unpaired(psa.Modality(x, t), psa.Modality(-x[:30], t[:30]), 3)
    a = psa.Learner(MODEL, training=psa.Training(ADAM, epochs=2), members=2, folds=3, transform=psa.centre)
    b = psa.Learner(
        psa.linear(3), None, psa.Training(epochs=4, batch_size=8, patience=4), 1, 4, psa.centre, divide_prior=False
    )
    found = psa.align(jax.random.key(1), data, a=a, b=b)
    assert found.member_scores_a.shape == (2, 36, 3)
    assert found.member_scores_b.shape == (1, 30, 3)
    assert found.fitted_a.history.train_loss.shape == (2, 3, 2)
    assert found.fitted_b.history.train_loss.shape == (1, 4, 4)
    assert (found.fitted_a.model, found.fitted_b.model) == (MODEL, psa.linear(3))
    assert found.scorer_a.log_prior is not None
    assert found.scorer_b.log_prior is None
    alone = psa.align(jax.random.key(1), data, a=a, b=a)
    np.testing.assert_array_equal(alone.scores_a, found.scores_a)  # what b is like is nothing to a
    by_hand = jax.random.split(jax.random.split(jax.random.key(1), 3)[2], 1)[0]
    fitted = psa.crossfit(by_hand, b.model, -x[:30], t[:30], folds=4, training=b.training)
    np.testing.assert_allclose(psa.centre(fitted.logits / found.scorer_b.temperature), found.scores_b, atol=1e-5)
    with pytest.raises(ValueError, match=r"b: expected psa_jax.Learner"):
        psa.align(jax.random.key(1), data, a=a, b=MODEL)


TRAINING = ("optimizer", "epochs", "batch_size", "patience")
LEARNER = ("members", "folds", "transform", "divide_prior")
TRAINED = (psa.fit, psa.fit_ensemble, psa.crossfit, psa.fit_predictor, psa.fit_predictor_ensemble)
TRAINED += (baselines.vae, baselines.contrastive)
LAW = [field.name for field in dataclasses.fields(datasets.ScreenLaw)]
STEP = "progress=True, or progress=a function of psa_jax.progress.Step"
MOVED = [
    (TRAINED, TRAINING, "training=psa_jax.Training({}=...)"),
    ([psa.align], TRAINING, "a=psa_jax.Learner(training=psa_jax.Training({}=...)) and the same for b"),
    ([psa.align], LEARNER, "a=psa_jax.Learner({0}=...) and b=psa_jax.Learner({0}=...)"),
    ([psa.align], ["model_a", "augment_a"], "a=psa_jax.Learner({}=...)"),
    ([psa.align], ["model_b", "augment_b"], "b=psa_jax.Learner({}=...)"),
    ([psa.align_many], TRAINING, "learners=psa_jax.Learner(training=psa_jax.Training({}=...))"),
    ([psa.align_many], LEARNER, "learners=psa_jax.Learner({}=...)"),
    ([psa.align_many], ["models", "augments"], "learners=[psa_jax.Learner({}=...), ...]"),
    ([psa.align, psa.align_many], ["on_epoch"], STEP),
    ([datasets.perturbation_screen], LAW, "law=psa_jax.datasets.ScreenLaw({}=...)"),
]
SHORT = {name + suffix: name for name in ("model", "augment") for suffix in ("_a", "_b", "s")}


@pytest.mark.parametrize(("functions", "names", "place"), MOVED)
def test_keywords_that_moved_say_where(functions, names, place):
    for function, name in itertools.product(functions, names):
        with pytest.raises(TypeError) as error:
            function(**{name: 1})
        assert str(error.value).endswith(f": since version 0.5 write {place.format(SHORT.get(name, name))}")


def test_keywords_that_never_were_are_refused_as_ever():
    expected = r"fit\(\) got an unexpected keyword argument 'epochs': since version 0.5 write training="
    with pytest.raises(TypeError, match=expected):
        psa.fit(jax.random.key(0), MODEL, jnp.ones((3, 2)), jnp.arange(3), epochs=2)
    with pytest.raises(TypeError, match=r"align\(\) got an unexpected keyword argument 'nonsense'$"):
        psa.align(jax.random.key(0), None, nonsense=1)
