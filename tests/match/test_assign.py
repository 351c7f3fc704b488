import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import pair_of_clouds, ragged, uniform
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

import psa_jax as psa
from psa_jax.match import known_pairs


@pytest.mark.parametrize(("n", "m"), [(8, 8), (5, 9), (9, 5), (1, 1), (1, 3)])
def test_assignment_is_exact(n, m):
    u, v = pair_of_clouds(n, m)
    C = psa.assignment(u, v, uniform(n), uniform(m))
    rows, cols = linear_sum_assignment(cdist(u, v))
    expected = np.full(n, -1)
    expected[rows] = cols
    np.testing.assert_array_equal(C.sample(jax.random.key(0)), expected)
    assert int(C.info.details["unassigned"]) == max(n - m, 0)
    np.testing.assert_allclose(C.row_marginal(), np.where(expected >= 0, 1 / n, 0), rtol=1e-6)


def test_assignment_composes_with_jit_vmap_and_blocks():
    u, v, y, t_a, t_b, groups = ragged()
    C = jax.jit(psa.blockwise(psa.assignment))(u, v, groups)
    column = np.asarray(C.sample(jax.random.key(0)))
    for t in range(groups.num_treatments):
        i, j = np.flatnonzero(t_a == t), np.flatnonzero(t_b == t)
        if not (i.size and j.size):
            assert (column[i] == -1).all()
            continue
        rows, cols = linear_sum_assignment(cdist(u[i], v[j]))
        np.testing.assert_array_equal(column[i[rows]], j[cols])
    many = jax.vmap(lambda s: psa.assignment(s * u[:4], v[:4], uniform(4), uniform(4)).dense())(jnp.array([1.0, -1.0]))
    np.testing.assert_array_equal(many[1], psa.assignment(-u[:4], v[:4], uniform(4), uniform(4)).dense())


def test_costs_that_are_not_finite_are_reported():
    u, v = pair_of_clouds(3, 3)
    C = psa.assignment(u.at[0].set(jnp.nan), v, uniform(3), uniform(3))
    assert not bool(C.info.converged)
    assert int(C.info.details["unassigned"]) == 3


def test_independence_projects_to_the_weighted_mean():
    a, b = jnp.array([0.5, 0.5, 0.0]), jnp.array([0.2, 0.8, 0.0])
    C = psa.independent(a, b)
    np.testing.assert_allclose(C.apply(jnp.array([1.0, 2.0, 99.0])), [1.8, 1.8, 0.0], rtol=1e-6)
    np.testing.assert_allclose(C.dense(), np.outer(a, b), rtol=1e-6)


def test_known_pairs():
    C = known_pairs(jnp.array([2, -1, 0]), 4)
    y = jnp.array([1.0, 2.0, 3.0, 4.0])
    np.testing.assert_array_equal(C.apply(y), [3.0, 0.0, 1.0])
    np.testing.assert_array_equal(C.T.apply(jnp.array([7.0, 8.0, 9.0])), [9.0, 0.0, 7.0, 0.0])
