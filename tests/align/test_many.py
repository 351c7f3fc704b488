import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import ragged

import psa_jax as psa
from psa_jax.match import known_pairs

EPS = 0.1


def three_laws():
    u, v, y, t_a, t_b, groups = ragged()
    rng = np.random.default_rng(3)
    t_c = np.asarray(rng.permutation(np.repeat([1, 2, 3, 4, 6], [2, 3, 8, 12, 5])))
    w = jnp.asarray(rng.normal(size=(t_c.size, 3)), jnp.float32)
    first = psa.blockwise(psa.sinkhorn)(u, v, groups)
    second = psa.blockwise(psa.sinkhorn)(v, w, psa.group(t_b, t_c, groups.num_treatments))
    return first, second, rng.normal(size=(t_c.size, 2)).astype(np.float32)


def conditional(coupling):
    mass = np.asarray(coupling.dense(), float)
    total = mass.sum(1, keepdims=True)
    return mass / np.where(total > 0, total, 1)


@pytest.mark.slow
def test_a_chain_is_the_product_of_conditionals():
    first, second, y = three_laws()
    through = psa.chain(first, second)
    wanted = conditional(first) @ conditional(second)
    total = wanted.sum(1, keepdims=True)
    np.testing.assert_allclose(through.apply(jnp.asarray(y)), wanted @ y / np.where(total > 0, total, 1), atol=1e-5)
    np.testing.assert_allclose(through.dense(), wanted / np.where(total > 0, total, 1), atol=1e-5)
    back = conditional(second.T) @ conditional(first.T)
    mass = back.sum(1, keepdims=True)
    np.testing.assert_allclose(through.T.dense(), back / np.where(mass > 0, mass, 1), atol=1e-5)
    assert through.shape == (first.shape[0], second.shape[1])
    chex.assert_trees_all_equal(through.T.T.dense(), through.dense())


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_probabilities_of_a_chain(chunk):
    first, second, _ = three_laws()
    through = psa.chain(first, second)
    p, (n, m) = np.asarray(through.dense()), through.shape
    j = jnp.asarray(np.random.default_rng(0).integers(-1, m, n), jnp.int32)
    wanted = np.where(j >= 0, p[np.arange(n), np.maximum(j, 0)], 0)
    np.testing.assert_allclose(np.exp(through.log_prob(j, chunk=chunk)), wanted, atol=1e-6)


def test_draws_of_a_chain():
    first, second, _ = three_laws()
    through = psa.chain(first, second)
    draws = np.stack([through.sample(jax.random.key(seed)) for seed in range(200)])
    p = np.asarray(through.dense())
    assert (draws[:, p.sum(1) == 0] == -1).all()
    row = int(np.argmax((p > 0.1).sum(1)))
    frequency = np.bincount(draws[:, row], minlength=p.shape[1]) / 200
    np.testing.assert_allclose(frequency, p[row], atol=0.13)


def test_draws_avoid_dead_ends():
    first = psa.blockwise(psa.match.class_mean)(
        jnp.zeros((2, 1)), jnp.zeros((4, 1)), psa.group(jnp.zeros(2, int), jnp.zeros(4, int), 1)
    )
    through = psa.chain(first, known_pairs(jnp.array([0, -1, -1, -1]), 2))
    for seed in range(10):
        assert through.sample(jax.random.key(seed)).tolist() == [0, 0]
    nowhere = psa.chain(first, known_pairs(jnp.full(4, -1), 2))
    assert nowhere.sample(jax.random.key(0)).tolist() == [-1, -1]
    assert not np.asarray(nowhere.apply(jnp.ones((2, 1)))).any()


def test_a_chain_of_pairs_and_of_chains():
    forth = known_pairs(jnp.array([2, 0, 1]), 3)
    thrice = psa.chain(psa.chain(forth, forth), forth)
    np.testing.assert_allclose(thrice.dense(), np.eye(3), atol=1e-6)
    with pytest.raises(ValueError, match="second: expected 3 rows"):
        psa.chain(forth, known_pairs(jnp.array([0, 1]), 2))


def views(n=240, seed=0):
    """Three views of one latent, with samples of their own; the third lacks a treatment."""
    rng = np.random.default_rng(seed)
    out = []
    for place, features in enumerate((4, 5, 3)):
        t = np.sort(rng.integers(0, 3 if place == 2 else 4, n - 20 * place))
        z = rng.normal(size=(t.size, 2)) + 1.5 * np.array([[0, 0], [1, 0], [0, 1], [1, 1]])[t]
        maps = np.random.default_rng(place).normal(size=(2, features))
        out.append((psa.Modality(jnp.asarray(z @ maps, jnp.float32), jnp.asarray(t, jnp.int32)), z))
    return out


@pytest.mark.slow
def test_three_views_agree():
    (a, z_a), (b, z_b), (c, z_c) = views()
    with pytest.warns(psa.AlignmentWarning, match="only one modality has treatments 3"):
        found = psa.align_many(
            jax.random.key(0),
            [a, b, c],
            4,
            reference=1,
            learners=psa.Learner(
                psa.linear(4), training=psa.Training(optax.adam(3e-2), epochs=100), folds=3, members=1
            ),
        )
    assert found.couplings[1] is None
    groups = psa.group(a.t, c.t, 4)
    direct = psa.blockwise(psa.sinkhorn)(*(found.representations[side].scores for side in (0, 2)), groups)
    through = found.between(0, 2)
    assert through.shape == (a.t.size, c.t.size)
    seen = np.asarray(a.t) < 3
    means = np.stack([z_c[np.asarray(c.t) == t].mean(0) for t in range(3)])[np.asarray(a.t)[seen]]
    error = {
        name: float(np.mean((np.asarray(guess)[seen] - z_a[seen]) ** 2))
        for name, guess in (
            ("through", through.apply(jnp.asarray(z_c, jnp.float32))),
            ("direct", direct.apply(jnp.asarray(z_c, jnp.float32))),
        )
    }
    blind = float(np.mean((means - z_a[seen]) ** 2))
    assert error["direct"] < 0.5 * blind
    assert error["through"] < 0.5 * blind
    chex.assert_trees_all_equal(found.between(1, 0).dense(), found.couplings[0].dense())
    chex.assert_trees_all_equal(found.between(0, 1).dense(), found.couplings[0].T.dense())
    alone = found.alignment(0)
    chex.assert_trees_all_equal(alone.coupling, found.couplings[0])
    chex.assert_trees_all_equal(alone.groups.sizes_b, jnp.bincount(a.t, length=4).astype(jnp.int32))
    assert alone.score_b(a.x[:3]).shape == (3, 3)
    with pytest.raises(ValueError, match="other: expected one of"):
        found.alignment(1)
    there_and_back = found.between(2, 0)
    chex.assert_trees_all_close(there_and_back.dense(), through.T.dense())
    assert z_b.shape[0] == b.t.size == found.representations[1].scores.shape[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modalities": 1}, "expected at least two modalities"),
        ({"reference": 3}, "expected at least two modalities and one of them"),
        ({"learners": [None]}, "learners: expected one for each of the 3"),
        ({"learners": 2 * [psa.Learner()]}, "learners: expected one for each of the 3"),
        ({"num_treatments": 2}, "expected codes in"),
    ],
)
def test_bad_input(change, message):
    sides = [side for side, _ in views(60)]
    options = {"reference": 0, "num_treatments": 4, **change}
    sides = sides[: options.pop("modalities", 3)]
    with pytest.raises(ValueError, match=message):
        psa.align_many(jax.random.key(0), sides, **options)


def test_between_asks_for_two_modalities():
    first, _, _ = three_laws()
    found = psa.ManyAlignment((None, first), (None, None), (None, None), 0)
    for pair in ((0, 0), (0, 2), (-1, 1)):
        with pytest.raises(ValueError, match="expected two modalities"):
            found.between(*pair)


def test_too_few_treatments_in_common():
    sides = [
        psa.Modality(jnp.ones((6, 2)), jnp.asarray(t, jnp.int32)) for t in ([0, 0, 0, 1, 1, 1], [0, 0, 0, 2, 2, 2])
    ]
    with pytest.raises(ValueError, match="at least two treatments that all have"):
        psa.align_many(jax.random.key(0), sides, 3)
