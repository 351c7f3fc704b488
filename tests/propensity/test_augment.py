import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psa_jax as psa
from psa_jax.propensity import augment

KEY = jax.random.key(0)


@pytest.mark.parametrize(("down", "right"), [(0, 0), (2, -3), (-1, 4)])
def test_integer_translation_is_a_roll_inside(down, right):
    x = jax.random.normal(KEY, (3, 12, 10, 2))
    got = augment.translate(x, jnp.tile(jnp.array([[down, right]], float), (3, 1)))
    want = jnp.roll(x, (down, right), (1, 2))
    np.testing.assert_allclose(got[:, 4:-4, 4:-4], want[:, 4:-4, 4:-4], atol=1e-6)


def test_subpixel_translation_interpolates_and_repeats_edges():
    x = jax.random.normal(KEY, (1, 9, 7, 2))
    got = augment.translate(x, jnp.array([[0.25, 0.0]]))
    np.testing.assert_allclose(got[:, 1:], 0.75 * x[:, 1:] + 0.25 * x[:, :-1], atol=1e-6)
    np.testing.assert_allclose(got[:, 0], x[:, 0], atol=1e-6)
    far = augment.translate(x, jnp.array([[100.0, -100.0]]))
    np.testing.assert_allclose(far, jnp.broadcast_to(x[:, :1, -1:], x.shape), atol=1e-6)


def test_translation_moves_by_its_std():
    ramp = jnp.broadcast_to(jnp.arange(40.0)[None, :, None, None], (4000, 40, 20, 1))
    moved = augment.translation(0.05)(KEY, ramp)
    shift = (ramp - moved)[:, 20, 10, 0]
    assert abs(float(shift.std()) - 0.05 * 40) < 0.1
    assert abs(float(shift.mean())) < 0.15


def test_noise_is_in_units_of_each_feature():
    x = jax.random.normal(KEY, (5000, 3)) * jnp.array([[1.0, 100.0, 0.0]])
    noise = augment.gaussian_noise(0.2)(jax.random.key(1), x) - x
    np.testing.assert_allclose(noise.std(0), [0.2, 20.0, 0.0], rtol=0.05)


@pytest.mark.parametrize("amount", [augment.translation(0.0), augment.gaussian_noise(0.0), augment.compose()])
def test_nothing_is_the_identity(amount):
    x = jax.random.normal(KEY, (4, 8, 9, 2))
    np.testing.assert_array_equal(amount(KEY, x), x)


def test_compose():
    x = jax.random.normal(KEY, (4, 8, 8, 1))
    first, second = augment.translation(0.1), augment.gaussian_noise(0.1)
    got = augment.compose(first, second)(KEY, x)
    want = second(jax.random.fold_in(KEY, 1), first(jax.random.fold_in(KEY, 0), x))
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(augment.compose(lambda key, x: x + 1)(KEY, x), x + 1)


def test_equal_hashable_and_traced():
    assert augment.translation(0.1) == augment.translation(0.1) != augment.translation(0.2)
    both = augment.compose(augment.translation(0.1), augment.gaussian_noise(1.0))
    assert hash(both) == hash(augment.compose(augment.translation(0.1), augment.gaussian_noise(1.0)))
    traces = []

    @jax.jit
    def apply(change, x):
        traces.append(1)
        return change(KEY, x)

    for amount in (0.1, 0.2):
        apply(augment.as_tree(augment.translation(amount)), jnp.ones((2, 8, 8, 1)))
    assert len(traces) == 1
    assert augment.as_tree(None) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: augment.gaussian_noise(-1.0), "scale: expected a number of at least 0"),
        (lambda: augment.translation(float("nan")), "std: expected a number of at least 0"),
        (lambda: augment.translation(0.1)(KEY, jnp.ones((3, 4))), "x: expected images"),
        (lambda: augment.translate(jnp.ones((3, 4)), jnp.ones((3, 2))), "x: expected images"),
    ],
)
def test_wrong_inputs(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_members_of_which_some_have_no_augment_are_those_that_fit_trains():
    x, t = jax.random.normal(jax.random.key(0), (30, 2)), jnp.arange(30) % 2
    keys, once = jax.random.split(jax.random.key(1), 2), psa.Training(epochs=1)
    augments = psa.gaussian_noise(0.3), None
    both = psa.fit_ensemble(keys, psa.linear(2), x, t, training=once, augment=augments)
    for place, own in enumerate(augments):
        alone = psa.fit(keys[place], psa.linear(2), x, t, training=once, augment=own)
        chex.assert_trees_all_close(jax.tree.map(lambda leaf, i=place: leaf[i], both.params), alone.params, atol=1e-5)
