import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from problems import SIZES_A, SIZES_B, labels, pair_of_clouds, ragged

import psa_jax as psa
from psa_jax.coupling.coupling import masked
from psa_jax.coupling.shrink import shrink
from psa_jax.match import known_pairs


def softmax_kernel(left, right, args):
    return -jnp.sum((left[:, None] - right[None]) ** 2, axis=-1)


def softmax(u, v, a, b):
    return psa.Coupling(left=u, right=v, kernel=softmax_kernel)


def turned(u, v, a, b):
    return psa.Coupling(left=v, right=u, kernel=softmax_kernel).T


MATCHERS = {
    "softmax": softmax,
    "turned": turned,
    "sinkhorn": functools.partial(psa.sinkhorn, eps=0.3),
    "snn": functools.partial(psa.snn, k=3),
    "assignment": psa.assignment,
}
U, V, Y, T_A, T_B, _ = ragged()
GROUPS = psa.group(T_A, T_B, len(SIZES_A), max_waste=99.0)  # one bucket: much padding, and little to compile
SAME = np.asarray(T_A)[:, None] == np.asarray(T_B)[None]


def conditional(dense):
    dense = np.asarray(dense, float)
    total = dense.sum(1, keepdims=True)
    return dense / np.where(total > 0, total, 1)


def mixture(dense, candidates, weight):
    """The definition, on stored tables."""
    p = conditional(dense)
    return weight * p + (1 - weight) * (p.sum(1, keepdims=True) > 0.5) * conditional(candidates)


@pytest.fixture(params=[*MATCHERS, "sinkhorn.T"])
def coupling(request):
    """Blocked couplings, one of them read backwards; with it which columns are candidates and a `y`."""
    name = request.param.removesuffix(".T")
    C = psa.blockwise(MATCHERS[name])(U, V, GROUPS)
    if request.param.endswith(".T"):
        return C.T, SAME.T, U
    return C, SAME, Y


def test_every_method_follows_the_mixture(coupling):
    C, candidates, y = coupling
    weight = np.linspace(0.1, 0.9, len(SIZES_A))
    of_rows = np.asarray(T_A if C.shape[0] == T_A.size else T_B)
    S, expected = shrink(C, jnp.asarray(weight, jnp.float32)), mixture(C.dense(), candidates, weight[of_rows][:, None])
    rows = expected.sum(1)
    assert set(np.round(rows, 6)) == {0, 1}
    np.testing.assert_array_equal(rows > 0, np.asarray(C.row_marginal()) > 0)  # who has no partner stays without
    np.testing.assert_allclose(conditional(S.dense()), expected, atol=1e-5)
    np.testing.assert_allclose(S.row_marginal(), C.row_marginal(), atol=1e-6)
    np.testing.assert_allclose(S.apply(y), expected @ np.asarray(y, float), atol=1e-5)
    np.testing.assert_allclose(S.T.dense(), S.dense().T, rtol=1e-5)
    assert S.shape == C.shape
    for ours, theirs in zip(jax.tree.leaves(S.T.T), jax.tree.leaves(S), strict=True):
        assert ours is theirs
    j = S.sample(jax.random.key(0))
    np.testing.assert_array_equal(np.asarray(j) >= 0, rows > 0)
    picked = np.where(rows > 0, expected[np.arange(rows.size), j], 0)
    assert (picked[rows > 0] > 0).all()
    np.testing.assert_allclose(jnp.exp(S.log_prob(j)), picked, atol=1e-5)
    best, columns = S.top_k(2)
    np.testing.assert_allclose(best, -np.sort(-expected, axis=1)[:, :2], atol=1e-5)
    np.testing.assert_array_equal(np.asarray(columns) >= 0, np.asarray(best) > 0)


def test_the_ends_and_the_line_between(coupling):
    C, candidates, y = coupling
    none, half, all_of_it = (np.asarray(shrink(C, weight).apply(y)) for weight in (0.0, 0.5, 1.0))
    np.testing.assert_allclose(none, mixture(C.dense(), candidates, 0) @ np.asarray(y, float), atol=1e-5)
    np.testing.assert_allclose(all_of_it, C.apply(y), atol=1e-5)
    np.testing.assert_allclose(half, (none + all_of_it) / 2, atol=1e-5)
    np.testing.assert_allclose(shrink(C, 1).dense(), C.dense(), atol=1e-6)


def test_samples_follow_the_mixture():
    C = shrink(psa.blockwise(softmax)(U, V, GROUPS), 0.4)
    draws = np.asarray(jax.vmap(C.sample)(jax.random.split(jax.random.key(1), 4000)))
    p = conditional(C.dense())
    for row in np.flatnonzero(p.sum(1) > 0)[:5]:
        frequency = np.bincount(draws[:, row], minlength=p.shape[1]) / 4000
        np.testing.assert_allclose(frequency, p[row], atol=4 * np.sqrt(0.25 / 4000))


def test_known_pairs():
    C = known_pairs(jnp.array([2, -1, 0]), 4)
    y = jnp.array([1.0, 2.0, 3.0, 6.0])
    np.testing.assert_allclose(shrink(C, 0.25).apply(y), [3.0, 0.0, 2.5], rtol=1e-6)
    np.testing.assert_allclose(shrink(C.T, 0.25).apply(jnp.array([3.0, 6.0, 9.0])), [6.75, 0, 5.25, 0], rtol=1e-6)


@pytest.mark.parametrize("turn", [False, True])
def test_columns_without_weight_are_no_candidates_however_often_it_is_shrunk(turn):
    u, v = pair_of_clouds(3, 4)
    a, b = jnp.array([0.5, 0.0, 0.5]), jnp.array([0.5, 0.25, 0.0, 0.25])
    C, real = masked(softmax(u, v, a, b), a, b), np.outer(a > 0, b > 0)
    if turn:
        C, real = C.T, real.T
    S = shrink(shrink(C, 0.5), 0.5)
    np.testing.assert_allclose(conditional(S.dense()), mixture(C.dense(), real, 0.25), atol=1e-6)
    back = shrink(S.T, 0.0)
    np.testing.assert_allclose(conditional(back.dense()), mixture(C.dense().T, real.T, 0), atol=1e-6)


def test_padding_changes_nothing():
    t_a, t_b = labels()
    groups = [psa.group(t_a, t_b, len(SIZES_A), max_waste=waste) for waste in (1.0, 99.0)]
    assert len(groups[0].buckets) > len(groups[1].buckets)
    weight = jnp.linspace(0, 1, len(SIZES_B))
    one, other = (shrink(psa.blockwise(softmax)(U, V, plan), weight) for plan in groups)
    np.testing.assert_allclose(one.dense(), other.dense(), atol=1e-7)
    np.testing.assert_array_equal(one.sample(jax.random.key(2)), other.sample(jax.random.key(2)))


def test_full_weight_keeps_masses_too_small_for_a_ratio():
    C = softmax(jnp.array([[0.0], [20.0]]), jnp.array([[0.0], [19.0]]), None, None)
    np.testing.assert_allclose(shrink(C, 1.0).log_prob(jnp.array([1, 0])), C.log_prob(jnp.array([1, 0])), rtol=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_gradients(x64, weight):
    u, v, y, _, _, _ = ragged(jnp.float64)
    mix = jnp.asarray(np.random.default_rng(0).normal(size=(u.shape[0], y.shape[1])))

    def value(weight, u):
        return (shrink(psa.blockwise(softmax)(u, v, GROUPS), weight).apply(y) * mix).sum()

    value = jax.jit(value)
    np.testing.assert_allclose(
        jax.grad(value)(jnp.float64(weight), u), value(jnp.float64(1), u) - value(jnp.float64(0), u), rtol=1e-10
    )
    check_grads(functools.partial(value, jnp.float64(weight)), (u,), order=1, modes=["rev"], rtol=1e-5)


def test_gradients_without_partners_are_finite():
    C = known_pairs(jnp.array([1, -1, 0]), 3)
    for weight in (0.0, 0.5):
        slope = jax.grad(lambda w: shrink(C, w).apply(jnp.array([1.0, 4.0, 7.0])).sum())(jnp.float32(weight))
        np.testing.assert_allclose(slope, 1 + 4 - 2 * 4, rtol=1e-6)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (1.5, r"weight: expected numbers in \[0, 1\], got 1.5"),
        (-0.1, "weight: expected numbers in"),
        (np.nan, "weight: expected numbers in"),
        ([0.5, 2.0], "weight: expected numbers in"),
    ],
)
@pytest.mark.parametrize("law", [known_pairs(jnp.array([0, 1]), 2), psa.blockwise(softmax)(U, V, GROUPS)])
def test_weights_out_of_range(law, weight, message):
    with pytest.raises(ValueError, match=message):
        shrink(law, weight)


def test_weights_of_a_wrong_shape():
    with pytest.raises(ValueError, match="weight: expected one number for one treatment"):
        shrink(known_pairs(jnp.array([0, 1]), 2), [0.5, 0.5])
    for wrong in ([0.5, 0.5], [[0.5] * 8]):
        with pytest.raises(ValueError, match=r"weight: expected one number or \[8\]"):
            shrink(psa.blockwise(softmax)(U, V, GROUPS), wrong)
