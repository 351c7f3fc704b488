import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import pair_of_clouds, ragged, uniform
from sklearn.neighbors import NearestNeighbors

import psa_jax as psa
from psa_jax.match.cost import pairwise
from psa_jax.match.neighbours import counts, first_same, largest, nearest_ids


def graph(points, queries, k):
    return NearestNeighbors(n_neighbors=k).fit(points).kneighbors_graph(queries).toarray()


def reference(u, v, k):
    """Shared nearest neighbours from scikit-learn's neighbour graphs."""
    x, y = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (np.asarray(u), np.asarray(v)))
    k_x, k_y = min(k, len(x)), min(k, len(y))
    shared = graph(x, x, k_x) @ graph(x, y, k_x).T + graph(y, x, k_y) @ graph(y, y, k_y).T
    return shared / (2 * k_x + 2 * k_y - shared)


def rows(plan):
    total = plan.sum(1, keepdims=True)
    return plan / np.where(total > 0, total, 1)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("g", range(3))
def test_golden(x64, golden, g, k):
    u, v = jnp.asarray(golden[f"s1_{g}"]), jnp.asarray(golden[f"s2_{g}"])
    plan = psa.snn(u, v, uniform(len(u)), uniform(len(v)), k=k).dense()
    np.testing.assert_allclose(rows(np.asarray(plan)), golden[f"snn_k{k}_{g}"], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("n", "m", "k"), [(12, 20, 4), (20, 12, 1), (3, 9, 5), (1, 4, 2), (2, 2, 1)])
def test_scikit_learn(x64, n, m, k):
    u, v = pair_of_clouds(n, m, dtype=jnp.float64)
    C = psa.snn(u, v, uniform(n), uniform(m), k=k)
    np.testing.assert_allclose(C.dense(), reference(u, v, k), atol=1e-12)
    np.testing.assert_allclose(C.T.dense(), reference(u, v, k).T, atol=1e-12)
    assert (int(C.info.details["k_rows"]), int(C.info.details["k_cols"])) == (min(k, n), min(k, m))


@pytest.mark.parametrize("matcher", [psa.snn, psa.nearest, psa.assignment])
def test_padding_changes_nothing(matcher):
    u, v = pair_of_clouds(6, 9)
    a, b = uniform(6), uniform(9)

    def pad(x, n):
        return jnp.concatenate([x, jnp.zeros((n, *x.shape[1:]))])

    plain, padded = matcher(u, v, a, b), matcher(pad(u, 5), pad(v, 3), pad(a, 5), pad(b, 3))
    np.testing.assert_array_equal(padded.dense()[:6, :9], plain.dense())
    assert float(padded.dense().sum() - plain.dense().sum()) == 0


@pytest.mark.parametrize("duplicates", [False, True])
def test_every_row_and_column_shares_a_neighbour(duplicates):
    u, v = pair_of_clouds(15, 40)
    v = jnp.concatenate([v[:5]] * 8) if duplicates else v
    C = psa.snn(u, v, uniform(15), uniform(40), k=1)
    assert float(C.row_marginal().min()) > 0
    if not duplicates:
        assert float(C.col_marginal().min()) > 0


def test_all_zero_scores_are_reported():
    u, v = pair_of_clouds(5, 6)
    info = psa.snn(u.at[1].set(0), v.at[2:4].set(0), uniform(5), uniform(6), k=2).info
    assert int(info.details["zero_norm"]) == 3


def test_nearest_neighbours_of_scikit_learn():
    u, v = pair_of_clouds(30, 40)
    ids = nearest_ids(u, v, jnp.ones(40, bool), 7, functools.partial(pairwise, psa.euclidean))
    np.testing.assert_array_equal(ids, NearestNeighbors(n_neighbors=7).fit(v).kneighbors(u)[1])
    plan = np.asarray(psa.nearest(u, v, uniform(30), uniform(40), k=7).dense())
    np.testing.assert_allclose(plan[np.arange(30)[:, None], ids], 1 / 210, rtol=1e-6)
    np.testing.assert_allclose(plan.sum(1), 1 / 30, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("distinct", [1, 3, 10**6])
def test_of_equal_samples_the_first_is_found(x64, dtype, distinct):
    rng = np.random.default_rng(0)
    x, real = rng.integers(0, distinct, (60, 2)).astype(dtype), rng.random(60) < 0.8
    x[rng.random(60) < 0.3] *= -1.0  # zeros have two signs
    found = first_same(jnp.asarray(x), jnp.asarray(real))
    expected = [
        min(np.flatnonzero(real & (x == row).all(1)), default=60) if own else 60
        for row, own in zip(x, real, strict=True)
    ]
    np.testing.assert_array_equal(found, expected)


def test_counts_are_sizes_of_intersections():
    rng = np.random.default_rng(0)
    lists = np.stack([rng.permutation(11)[:4] for _ in range(5)])
    others = np.stack([rng.permutation(11)[:3] for _ in range(8)])
    expected = [[np.intersect1d(p[p < 10], q[q < 10]).size for q in others] for p in lists]
    found = counts((jnp.asarray(lists),), (jnp.asarray(others),), (10,))
    np.testing.assert_array_equal(found, np.transpose(expected))


@pytest.mark.parametrize("matcher", [psa.snn, psa.nearest])
@pytest.mark.parametrize("k", [0, -1, 1.5])
def test_bad_k(matcher, k):
    u, v = pair_of_clouds(3, 4)
    with pytest.raises(ValueError, match="k: expected"):
        matcher(u, v, uniform(3), uniform(4), k=k)


def test_k_is_static():
    u, v = pair_of_clouds(3, 4)
    with pytest.raises(ValueError, match="k: expected a number known at trace time"):
        jax.jit(lambda k: psa.snn(u, v, uniform(3), uniform(4), k=k))(2)


@pytest.mark.slow
def test_several_k_in_one_search():
    u, v = pair_of_clouds(40, 33)
    a, b = uniform(40), uniform(33)
    for k, C in zip((1, 3, 9), psa.snn(u, v, a, b, k=(1, 3, 9)), strict=True):
        np.testing.assert_allclose(C.dense(), psa.snn(u, v, a, b, k=k).dense(), atol=1e-6)
    u, v, y, _, _, groups = ragged()
    one, two = psa.blockwise(functools.partial(psa.snn, k=(1, 2)))(u, v, groups)
    for k, C in ((1, one), (2, two)):
        alone = psa.blockwise(functools.partial(psa.snn, k=k))(u, v, groups)
        np.testing.assert_allclose(C.apply(y), alone.apply(y), atol=1e-6)
        np.testing.assert_array_equal(C.info.details["k_rows"], alone.info.details["k_rows"])


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31), m=st.integers(1, 300), k=st.integers(1, 12), distinct=st.sampled_from([2, 10, 10**6])
)
def test_top_k_of_stretches_is_top_k(seed, m, k, distinct):
    values = jnp.asarray(np.random.default_rng(seed).integers(0, distinct, (5, m)), jnp.float32)
    k = min(k, m)
    for ours, expected in zip(largest(values, k), jax.lax.top_k(values, k), strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("k", [300, 70_000])
def test_counts_beyond_a_byte(k):
    lists = jnp.arange(k)[None]
    assert int(counts((lists,), (lists,), (k,))[0, 0]) == k


def test_approximate_search_agrees_on_the_cpu():
    u, v = pair_of_clouds(50, 60)
    a, b = uniform(50), uniform(60)
    np.testing.assert_allclose(psa.snn(u, v, a, b, k=4, approximate=True).dense(), psa.snn(u, v, a, b, k=4).dense())


def test_no_k_at_all():
    u, v = pair_of_clouds(4, 5)
    with pytest.raises(ValueError, match="k: expected at least one"):
        psa.snn(u, v, uniform(4), uniform(5), k=())


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("distinct", [2, 100])
@pytest.mark.parametrize("flipped", [False, True])
def test_projections_are_those_of_all_pairs(k, distinct, flipped):
    """With one neighbour they are sums by neighbour, without pairs: of equal samples, padding and gaps too."""
    rng = np.random.default_rng(0)
    u, v = (jnp.asarray(rng.normal(size=(distinct, 3))[rng.integers(0, distinct, n)], jnp.float32) for n in (17, 23))
    a, b = jnp.ones(17).at[-3:].set(0), jnp.ones(23).at[:4].set(0)
    C = psa.snn(u, v, a, b, k=k)
    plan, C = (np.asarray(C.dense(), np.float64).T, C.T) if flipped else (np.asarray(C.dense(), np.float64), C)
    y = rng.normal(size=(plan.shape[1], 2)).astype(np.float32)
    np.testing.assert_allclose(C.apply(jnp.asarray(y)), rows(plan) @ y, atol=1e-6)
    gaps = jnp.asarray(y).at[5, 0].set(jnp.nan)
    expected = np.where(plan[:, [5]] > 0, [[np.nan, 0]], 0) + rows(plan) @ np.where(np.isnan(gaps), 0, gaps)
    np.testing.assert_allclose(C.apply(gaps), expected, atol=1e-6)
    np.testing.assert_allclose(
        C.apply(jnp.asarray(y + 1e4)), rows(plan) @ y + 1e4 * plan.any(1, keepdims=True), atol=5e-3
    )
    np.testing.assert_allclose(C.apply(jnp.full_like(y, 1e38))[:, 0], 1e38 * plan.any(1), rtol=1e-6)
    gradient = jax.grad(lambda y: (C.apply(y) ** 2).sum())(jnp.asarray(y))
    np.testing.assert_allclose(gradient, 2 * rows(plan).T @ rows(plan) @ y, atol=1e-5)
