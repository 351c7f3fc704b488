import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psa_jax as psa
from psa_jax.coupling.info import Info
from psa_jax.judge.agreement import held_out_agreement
from psa_jax.judge.eps_sweep import CRITERIA
from psa_jax.judge.sweep import calibrated_coupling, select_eps
from psa_jax.match import relative

T = np.arange(240) % 4
GROUPS = psa.group(T, T, 4)


def views(noise, seed=0):
    """Two noisy copies of one four-dimensional linear map of a two-dimensional state, in unrelated orders."""
    rng = np.random.default_rng(seed)
    z, mix = rng.normal(size=(240, 2)), rng.normal(size=(2, 6))
    u, v = (z @ mix + noise * rng.normal(size=(240, 6)) for _ in range(2))
    order = np.concatenate([rng.permutation(np.flatnonzero(t == T)) for t in range(4)])
    place = np.concatenate([np.flatnonzero(t == T) for t in range(4)])
    shuffled = np.empty_like(v)
    shuffled[place] = v[order]
    return jnp.asarray(u, jnp.float32), jnp.asarray(shuffled, jnp.float32)


def test_it_falls_with_noise_that_is_not_shared_and_vanishes_without_a_common_state():
    key = jax.random.key(0)
    values = [float(held_out_agreement(key, psa.sinkhorn, *views(noise), GROUPS).mean()) for noise in (0.0, 0.5, 2.0)]
    assert values[0] > values[1] > values[2]
    assert values[0] > 0.8
    u, _ = views(0.1)
    _, v = views(0.1, seed=1)
    assert abs(float(held_out_agreement(key, psa.sinkhorn, u, jax.random.permutation(key, v), GROUPS).mean())) < 0.3


def test_centred_noise_does_not_agree_by_its_sum():
    scores = [jax.random.normal(k, (240, 6)) for k in jax.random.split(jax.random.key(11))]
    u, v = (x - x.mean(1, keepdims=True) for x in scores)
    assert abs(float(held_out_agreement(jax.random.key(0), psa.sinkhorn, u, v, GROUPS).mean())) < 0.06


def test_it_ignores_what_only_separates_treatments():
    offsets = 10 * jax.random.normal(jax.random.key(1), (4, 6))[T]
    u, v = views(0.3)
    key, matcher = jax.random.key(0), functools.partial(psa.sinkhorn, eps=0.5)
    plain, shifted = (held_out_agreement(key, matcher, *pair, GROUPS) for pair in ((u, v), (u + offsets, v + offsets)))
    np.testing.assert_allclose(plain, shifted, atol=0.02)


def test_one_column_cannot_be_held_out():
    with pytest.raises(ValueError, match="u: expected at least two columns"):
        held_out_agreement(jax.random.key(0), psa.sinkhorn, jnp.ones((240, 1)), jnp.ones((240, 1)), GROUPS)


EPS = (0.2, 1.0, 4.0)
KEY = jax.random.key(0)


def ensemble(members=3):
    pairs = [views(0.3, seed=0) for _ in range(members)]
    keys = jax.random.split(jax.random.key(7), 2 * members).reshape(members, 2)
    noisy = [
        [y + 0.3 * jax.random.normal(k, y.shape) for k, y in zip(ks, p, strict=True)]
        for ks, p in zip(keys, pairs, strict=True)
    ]
    return tuple(jnp.stack(side) for side in zip(*noisy, strict=True))


def _softmax_kernel(left, right, eps):
    return -jnp.sum((left[:, None] - right[None]) ** 2, axis=-1) / eps


def softmax(u, v, a, b, *, eps):
    """A matcher without iterations, quick to compile; eps is absolute."""
    return psa.Coupling(left=u, right=v, kernel=_softmax_kernel, args=eps, info=Info.closed_form(eps < 5))


sweep_softmax = functools.partial(select_eps, matcher=softmax, relative=False)


def columns(sweep):
    return {name: np.asarray(getattr(sweep, name)) for name in (*CRITERIA, "converged")}


def within(y):
    y = np.asarray(y, float)
    return np.concatenate([y[t == T] - y[t == T].mean(0) for t in range(4)])


def free(y):
    """Held-out columns less their mean."""
    return y - y.mean(1, keepdims=True)


def explained(y, y_hat):
    return 1 - ((within(y) - within(y_hat)) ** 2).sum() / (within(y) ** 2).sum()


def test_criteria_against_brute_force():
    u, v = ensemble()
    sweep = sweep_softmax(KEY, u, v, GROUPS, EPS, draws=64)
    for e, eps in enumerate(EPS):
        match = psa.blockwise(functools.partial(softmax, eps=jnp.float32(eps)))
        couplings = [match(u[k], v[k], GROUPS) for k in range(3)]
        there = np.asarray(match(u.mean(0), v.mean(0), GROUPS).dense(), float)
        p, q = there / there.sum(1, keepdims=True), there.T / there.T.sum(1, keepdims=True)
        entropy = -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(1)
        np.testing.assert_allclose(sweep.cycle[e], (p * q.T).sum(1).mean(), rtol=0.03)
        np.testing.assert_allclose(sweep.entropy[e], np.exp(np.mean(entropy - np.log(60))), rtol=0.03)
        np.testing.assert_allclose(sweep.reconstruction[e], explained(u.mean(0), p @ np.asarray(v.mean(0))), atol=1e-4)
        seen = [within(coupling.apply(v.mean(0))).ravel() for coupling in couplings]
        cosines = [x @ y / np.sqrt(x @ x * (y @ y)) for x in seen for y in seen]
        np.testing.assert_allclose(sweep.stability[e], (np.sum(cosines) - 3) / 6, atol=1e-4)
    assert (sweep.converged == 1).all()
    assert float(sweep.best) == float(sweep.eps[np.argmax(sweep.prediction)])


@pytest.mark.slow
def test_sinkhorn_in_units_of_the_spread():
    u, v = views(0.3)
    sweep = select_eps(KEY, u, v, GROUPS, [0.2, 0.4])
    assert sweep.relative
    coupling = psa.blockwise(functools.partial(psa.sinkhorn, eps=relative(jnp.float32(0.4))))(u, v, GROUPS)
    np.testing.assert_allclose(sweep.reconstruction[1], explained(u, coupling.apply(v)), atol=1e-3)
    assert sweep.entropy[0] < sweep.entropy[1] < 1


def test_agreement_is_that_of_held_out_agreement_and_prediction_is_its_share_of_variation():
    u, v = views(0.3)
    sweep = sweep_softmax(KEY, u, v, GROUPS, [0.5, 1.0], repeats=2)
    key = jax.random.split(KEY)[0]
    matcher = functools.partial(softmax, eps=jnp.float32(0.5))
    expected = held_out_agreement(key, matcher, u, v, GROUPS, repeats=2).mean()
    np.testing.assert_allclose(sweep.agreement[0], expected, atol=1e-4)
    found = []
    for k in jax.random.split(key, 2):
        order = np.asarray(jax.random.permutation(k, 6))
        for used, held in ((order[:3], order[3:]), (order[3:], order[:3])):
            coupling = psa.blockwise(matcher)(u[:, used], v[:, used], GROUPS)
            found.append(explained(free(u[:, held]), coupling.apply(free(v[:, held]))))
    np.testing.assert_allclose(sweep.prediction[0], np.mean(found), atol=1e-4)


def test_best_is_sharp_for_clean_scores_and_smooth_for_noisy_ones():
    grid = (0.02, 0.1, 0.5, 2.0, 4.0)
    clean, noisy = (sweep_softmax(KEY, *views(noise), GROUPS, grid) for noise in (0.05, 1.5))
    assert float(clean.best) < float(noisy.best)
    assert (np.diff(clean.entropy) > 0).all()
    assert (np.diff(clean.cycle) < 0).all()


def test_a_sweep_is_one_program():
    u, v = views(0.3)
    traces = []

    def matcher(u, v, a, b, *, eps):
        traces.append(None)
        return softmax(u, v, a, b, eps=eps)

    sweep = functools.partial(select_eps, matcher=matcher, relative=False)
    first = sweep(KEY, u, v, GROUPS, [0.1, 0.2, 0.3])
    count = len(traces)
    assert count <= 2 * len(GROUPS.buckets)
    again = sweep(jax.random.key(1), 2 * u, 2 * v, GROUPS, jnp.array([0.4, 0.5, 0.6]))
    assert len(traces) == count
    assert not np.allclose(first.entropy, again.entropy)
    shapes = jax.eval_shape(lambda eps: sweep(KEY, u, v, GROUPS, eps), jnp.array([0.1, 0.2, 0.3]))
    assert shapes.prediction.shape == (3,)  # eps may itself be traced


@pytest.mark.parametrize("bind", [functools.partial, jax.tree_util.Partial])
def test_an_eps_bound_before_is_swept_over_all_the_same(bind):
    u, v = views(0.3)
    plain = sweep_softmax(KEY, u, v, GROUPS, EPS)
    bound = select_eps(KEY, u, v, GROUPS, EPS, matcher=bind(softmax, eps=0.7), relative=False)
    np.testing.assert_allclose(bound.prediction, plain.prediction, rtol=1e-5)


def test_same_key_same_bits_and_another_key_other_draws():
    u, v = ensemble()
    one, two, other = (columns(sweep_softmax(jax.random.key(s), u, v, GROUPS, EPS)) for s in (0, 0, 1))
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])
    assert (one["cycle"] != other["cycle"]).any()


def test_members_may_come_in_any_order_and_one_is_none():
    u, v = ensemble()
    one = columns(sweep_softmax(KEY, u, v, GROUPS, EPS))
    two = columns(sweep_softmax(KEY, u[::-1], v[::-1], GROUPS, EPS))
    for name in one:
        np.testing.assert_allclose(one[name], two[name], rtol=1e-3, atol=1e-4)
    plain, single = (columns(sweep_softmax(KEY, *pair, GROUPS, EPS)) for pair in ((u[0], v[0]), (u[:1], v[:1])))
    for name in plain:
        np.testing.assert_array_equal(plain[name], single[name])
    assert np.isnan(plain["stability"]).all()
    assert not np.isnan(plain["prediction"]).any()


def test_eps_that_does_not_converge_is_not_chosen():
    pair = views(1.5)  # noisy scores: the largest eps would be best
    sweep = sweep_softmax(KEY, *pair, GROUPS, (0.1, 4.0, 8.0))
    assert sweep.converged.tolist() == [1, 1, 0]
    assert int(np.argmax(sweep.prediction)) == 2
    assert float(sweep.best) == 4.0
    assert np.isnan(sweep_softmax(KEY, *pair, GROUPS, (6.0, 7.0, 8.0)).best)


def test_treatments_of_one_modality_do_not_count():
    u, v = views(0.3)
    sweep = sweep_softmax(KEY, u, v, psa.group(T, np.where(T == 3, 4, T), 5), EPS)
    kept = T < 3
    alone = sweep_softmax(KEY, u[kept], v[kept], psa.group(T[kept], T[kept], 3), EPS)
    for name in ("prediction", "agreement", "reconstruction", "converged"):
        np.testing.assert_allclose(getattr(sweep, name), getattr(alone, name), atol=1e-4)
    for name in ("cycle", "entropy"):
        np.testing.assert_allclose(getattr(sweep, name), getattr(alone, name), rtol=0.1)


def test_rows_are_the_table():
    rows = sweep_softmax(KEY, *views(0.3), GROUPS, EPS).rows()
    assert [row["eps"] for row in rows] == pytest.approx(EPS)
    assert list(rows[0]) == ["eps", *CRITERIA, "converged"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": 0.1}, "eps: expected numbers"),
        ({"eps": [[0.1]]}, "eps: expected numbers"),
        ({"eps": []}, "eps: expected numbers"),
        ({"eps": [0.1, 0.0]}, "eps: expected positive"),
        ({"eps": [0.1, np.nan]}, "eps: expected positive"),
        ({"u": jnp.ones((239, 6))}, "u: expected scores"),
        ({"v": jnp.ones(240)}, "v: expected numbers"),
        ({"u": jnp.ones((2, 240, 6)), "v": jnp.ones((3, 240, 6))}, "u, v: expected the same members"),
        ({"u": jnp.ones((2, 240, 6))}, "u, v: expected the same members"),
        ({"u": jnp.ones((240, 5))}, "u, v: expected the same members"),
        ({"u": jnp.ones((240, 1)), "v": jnp.ones((240, 1))}, "u: expected at least two columns"),
        ({"u": jnp.ones((0, 240, 6)), "v": jnp.ones((0, 240, 6))}, "u: expected at least one member"),
        ({"y": jnp.ones((239, 2))}, r"y: expected \[240, ...\]"),
        ({"y": jnp.ones(240)}, r"y: expected \[240, ...\]"),
        ({"y": jnp.ones((240, 2)).at[3, 1].set(jnp.nan)}, "y: expected finite"),
        ({"repeats": 0}, "repeats: expected"),
        ({"draws": 0}, "draws: expected"),
    ],
)
def test_bad_input(change, message):
    given = {"u": jnp.ones((240, 6)), "v": jnp.ones((240, 6)), "eps": [0.1], **change}
    u, v, eps = given.pop("u"), given.pop("v"), given.pop("eps")
    with pytest.raises(ValueError, match=message):
        select_eps(KEY, u, v, GROUPS, eps, **given)


def test_shrinkage_is_the_slope_on_held_out_scores_times_stability_and_y_changes_only_these():
    u, v = ensemble()
    y = jax.random.normal(jax.random.key(5), (240, 2, 2))
    plain, told = (
        sweep_softmax(KEY, u, v, GROUPS, [1.0], repeats=1),
        sweep_softmax(KEY, u, v, GROUPS, [1.0], repeats=1, y=y),
    )
    match = psa.blockwise(functools.partial(softmax, eps=jnp.float32(1.0)))
    order = np.asarray(jax.random.permutation(jax.random.split(jax.random.split(KEY)[0], 1)[0], 6))
    own, projected = [], []
    for used, held in ((order[:3], order[3:]), (order[3:], order[:3])):
        coupling = match(u.mean(0)[:, used], v.mean(0)[:, used], GROUPS)
        own.append(within(free(u.mean(0)[:, held])))
        projected.append(within(coupling.apply(free(v.mean(0)[:, held]))))
    own, projected = np.concatenate(own, axis=1), np.concatenate(projected, axis=1)
    slope = np.clip((own * projected).sum() / (projected**2).sum(), 0, 1)
    seen = [within(match(u[k], v[k], GROUPS).apply(y.reshape(240, -1))).ravel() for k in range(3)]
    stability = np.mean([np.corrcoef(seen[i], seen[j])[0, 1] for i, j in ((0, 1), (0, 2), (1, 2))])
    np.testing.assert_allclose(told.stability, [stability], atol=2e-3)
    for sweep in (plain, told):
        weight = float(slope * sweep.stability[0])
        np.testing.assert_allclose(sweep.shrinkage, [weight], atol=2e-3)
        share = 1 - ((own - weight * projected) ** 2).sum() / (own**2).sum()
        np.testing.assert_allclose(sweep.calibrated, [share], atol=2e-3)
    one, other = columns(plain), columns(told)
    assert abs(one["stability"] - other["stability"]) > 0.05
    for name in set(one) - {"stability", "shrinkage", "calibrated"}:
        np.testing.assert_array_equal(one[name], other[name])
    alone = sweep_softmax(KEY, u[0], v[0], GROUPS, [1.0], repeats=1)
    assert np.isnan(alone.stability).all()
    assert 0 < float(alone.shrinkage[0]) <= 1


CALIBRATED = functools.partial(calibrated_coupling, eps=(0.05, 0.2, 0.8), repeats=2)


def test_calibration_believes_a_shared_state_and_not_noise():
    coupling, sweep = CALIBRATED(KEY, *views(0.05), GROUPS)
    best = int(np.argmax(sweep.calibrated))
    assert best < 2
    assert float(sweep.shrinkage[best]) > 0.9
    assert coupling.shape == (240, 240)

    u, v, y, truth = (jax.random.normal(k, (240, 6)) for k in jax.random.split(jax.random.key(3), 4))
    coupling, sweep = CALIBRATED(KEY, u, v, GROUPS)
    best = int(np.argmax(sweep.calibrated))
    assert float(sweep.shrinkage[best]) < 0.2
    eps = relative(sweep.eps[best])
    unshrunk = psa.blockwise(functools.partial(psa.sinkhorn, eps=eps))(u, v, GROUPS)
    mean = np.stack([np.asarray(y)[t == T].mean(0) for t in range(4)])[T]
    nothing, shrunk, bare = (
        ((np.asarray(truth) - np.asarray(guess)) ** 2).mean() for guess in (mean, coupling.apply(y), unshrunk.apply(y))
    )
    assert shrunk < 1.02 * nothing
    assert bare > 1.05 * nothing


@pytest.mark.slow
def test_noise_of_members_lowers_the_shrinkage():
    clean = views(0.05)
    keys = jax.random.split(jax.random.key(8), 2)
    noisy = [x[None] + 1.5 * jax.random.normal(k, (2, *x.shape)) for k, x in zip(keys, clean, strict=True)]
    same = [jnp.stack([x, x]) for x in clean]
    weights = []
    for pair in (same, noisy):
        _, sweep = CALIBRATED(KEY, *pair, GROUPS, y=clean[1])
        weights.append(float(sweep.shrinkage[np.argmax(sweep.calibrated)]))
    assert weights[0] > 0.9
    assert weights[1] < 0.8 * weights[0]


def test_a_bad_y_for_calibration():
    with pytest.raises(ValueError, match="y: expected finite"):
        calibrated_coupling(KEY, *views(0.3), GROUPS, y=jnp.full((240, 2), jnp.inf))
