import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import ragged

import psa_jax as psa
from psa_jax.judge.agreement import treatment_of_rows
from psa_jax.judge.thin import thin, together

KEY = jax.random.key(0)


@pytest.mark.parametrize("most", [2, 5, 8])
def test_at_most_so_many_of_each_treatment_and_each_its_own(most):
    u, v, _, t_a, t_b, groups = ragged()
    thinned = thin(KEY, groups, most)
    assert len(thinned.groups.buckets) <= len(groups.buckets)
    for side, t, scores, kept, sizes in (
        ("a", t_a, u, thinned.rows, thinned.groups.sizes_a),
        ("b", t_b, v, thinned.cols, thinned.groups.sizes_b),
    ):
        shared = np.intersect1d(t_a, t_b)
        expected = [min(most, (t == code).sum()) if code in shared else 0 for code in range(groups.num_treatments)]
        assert sizes.tolist() == expected
        real = np.asarray(kept)[np.asarray(kept) < t.size]
        assert np.unique(real).size == real.size == sum(expected)
        assert np.bincount(t[real], minlength=groups.num_treatments).tolist() == expected
        values = thinned.of_a(scores) if side == "a" else thinned.of_b(scores)
        np.testing.assert_array_equal(values[np.asarray(kept) < t.size], scores[real])
        assert not np.asarray(values)[np.asarray(kept) == t.size].any()
    t = np.asarray(treatment_of_rows(thinned.groups))
    known = np.asarray(thinned.rows) < t_a.size
    np.testing.assert_array_equal(t[known], t_a[np.asarray(thinned.rows)[known]])
    assert (t[~known] == groups.num_treatments).all()


def test_other_keys_draw_others_and_jit_the_same():
    *_, groups = ragged()
    one, again, other = thin(KEY, groups, 5), jax.jit(thin, static_argnums=2)(KEY, groups, 5), None
    other = thin(jax.random.key(1), groups, 5)
    jax.tree.map(np.testing.assert_array_equal, one, again)
    assert set(one.rows.tolist()) != set(other.rows.tolist())
    assert thin(KEY, groups, 64) is None


def screen(n, shared, seed=0):
    """Scores of two modalities, two members each, that share a state within treatments or do not."""
    rng = np.random.default_rng(seed)
    t = np.arange(n) % 3
    mix = rng.normal(size=(3, 6))
    states = rng.normal(size=(2, n, 3))
    states[1] = states[0] if shared else states[1]
    noise = 0.3 if shared else 3.0
    u, v = (jnp.asarray(shared * s @ mix + noise * rng.normal(size=(2, n, 6)), jnp.float32) for s in states)
    return u, v, psa.group(t, t, 3)


def test_criteria_of_some_samples_are_near_those_of_all():
    u, v, groups = screen(900, shared=True)
    sweep = functools.partial(psa.select_eps, KEY, u, v, groups, [0.1, 0.3], repeats=2)
    whole, some = sweep(most=1000), sweep(most=150)
    assert (whole.most, some.most) == (None, 150)
    assert "150 samples" in repr(some)
    for name in ("prediction", "agreement", "stability", "shrinkage"):
        np.testing.assert_allclose(getattr(some, name), getattr(whole, name), atol=0.1)
    assert (np.asarray(some.converged) == 1).all()


@pytest.mark.parametrize("shared", [True, False])
def test_evidence_of_some_samples(shared):
    u, v, groups = screen(900, shared)
    coupling = psa.blockwise(psa.sinkhorn)(u[0], v[0], groups)
    alignment = psa.Alignment(coupling, groups, u[0], v[0], *4 * [None], u, v)
    found = psa.diagnose(KEY, alignment, repeats=2, permutations=20, most=150)
    assert found.evidence.all() == shared
    assert (found.most, found.size_a.tolist()) == (150, [300] * 3)
    assert "of at most 150 samples" in str(found)
    assert psa.diagnose(KEY, alignment, repeats=2, permutations=20, most=400).most is None


@pytest.mark.parametrize(("call", "least"), [(psa.select_eps, 2), (psa.calibrated_coupling, 2), (psa.diagnose, 5)])
def test_too_few_samples_are_refused(call, least):
    u, v, groups = screen(30, True)
    arguments = {"u": u, "v": v, "groups": groups, "eps": [0.1]}
    if call is psa.diagnose:
        coupling = psa.blockwise(psa.nearest)(u[0], v[0], groups)
        arguments = {"alignment": psa.Alignment(coupling, groups, u[0], v[0], *6 * [None])}
    with pytest.raises(ValueError, match=f"most: expected at least {least}.*, got 1"):
        call(KEY, **arguments, most=1)


def test_one_bucket_says_what_several_do():
    rng = np.random.default_rng(3)
    t_a, t_b = np.repeat(np.arange(6), [5, 9, 20, 40, 70, 3]), np.repeat(np.arange(6), [8, 60, 7, 33, 50, 0])
    groups = psa.group(t_a, t_b, 6)
    one = together(groups)
    assert len(groups.buckets) > 1
    assert len(one.buckets) == 1
    assert one.shape == groups.shape
    u, v = (jnp.asarray(rng.normal(size=(t.size, 4)), jnp.float32) for t in (t_a, t_b))
    for matcher in (psa.class_mean, psa.sinkhorn):
        several, merged = (psa.blockwise(matcher)(u, v, plan).apply(v) for plan in (groups, one))
        np.testing.assert_allclose(merged, several, rtol=1e-3, atol=1e-4)
    assert together(one) is one
    wide = psa.group(np.repeat([0, 1], [3000, 2]), np.repeat([0, 1], [3000, 2]), 2)
    assert together(wide) is wide
