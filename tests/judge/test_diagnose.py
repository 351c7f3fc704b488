import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psa_jax as psa
from psa_jax.coupling.info import Info
from psa_jax.judge.agreement import halves

KEY = jax.random.key(0)
NUM, EACH, D = 6, 40, 8
T_A = np.repeat(np.arange(NUM), EACH)
T_B = np.tile(np.arange(NUM), EACH)  # another order, so that rows and columns cannot be confused
GROUPS = psa.group(T_A, T_B, NUM)


def _softmax_kernel(left, right, eps):
    return -jnp.sum((left[:, None] - right[None]) ** 2, axis=-1) / eps


def softmax(u, v, a, b, *, eps=0.5):
    """A matcher without iterations, quick to compile."""
    eps = jnp.asarray(eps, u.dtype)
    return psa.Coupling(left=u, right=v, kernel=_softmax_kernel, args=eps, info=Info.closed_form(eps < 5))


def alignment(u, v, groups=GROUPS, matcher=softmax, members=None):
    u, v = (jnp.asarray(y, jnp.float32) for y in (u, v))
    coupling = psa.blockwise(matcher)(u, v, groups)
    extra = (None, None) if members is None else tuple(jnp.asarray(y, jnp.float32) for y in members)
    return psa.Alignment(coupling, groups, u, v, *4 * [None], *extra)


def diagnose(u, v, groups=GROUPS, members=None, **options):
    return psa.diagnose(KEY, alignment(u, v, groups, members=members), matcher=softmax, **options)


def planted(seed=0, which=range(NUM)):
    """Centred scores that are noisy copies of one linear map of independent states; noise in other treatments."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(3, D))
    out = []
    for t in (T_A, T_B):
        signal = rng.normal(size=(t.size, 3)) @ mix + 0.2 * rng.normal(size=(t.size, D))
        y = np.where(np.isin(t, list(which))[:, None], signal, rng.normal(size=(t.size, D)))
        out.append(y - y.mean(1, keepdims=True))
    return out


def noise(seed=0):
    return planted(seed, which=())


def test_a_common_state_is_evidence_in_every_treatment():
    u, v = planted()
    report = diagnose(u, v)
    assert report.evidence.all()
    assert float(report.overall_z) > 8
    assert (np.asarray(report.agreement) > 0.7).all()
    assert (np.asarray(report.spread) < 0.5).all()
    assert (np.asarray(report.partners_share) < 0.5).all()
    assert report.warnings == ["only one training run (members=1): stability is unknown"]


def test_noise_is_none_even_though_centred_columns_tell_each_other():
    reports = [diagnose(*noise(seed)) for seed in range(8)]
    z = np.array([report.z for report in reports])
    assert (z >= 3).mean() <= 0.03
    assert z.mean() < 0.5
    assert z.std() < 1.5
    assert max(float(report.overall_z) for report in reports) < 3.5
    named = "no evidence of alignment within treatments 0, 1, 2, 3, 4, 5: scores hang together alike less than 3 "
    assert any(text.startswith(named) for text in reports[0].warnings)
    u, v = (jnp.asarray(y, jnp.float32) for y in noise())
    assert abs(float(psa.held_out_agreement(KEY, softmax, u, v, GROUPS).mean())) < 0.05


def test_smooth_projections_of_noise_are_no_evidence():
    """Scores of a that are correlated among themselves make projections of anything vary with them."""
    z = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        u = rng.normal(size=(T_A.size, 1)) @ rng.normal(size=(1, D)) + 0.1 * rng.normal(size=(T_A.size, D))
        z.append(diagnose(u, rng.normal(size=(T_B.size, D))).z)
    assert (np.array(z) >= 3).mean() <= 0.03


def test_only_the_treatments_with_a_common_state_are_evidence():
    report = diagnose(*planted(which=(1, 4)))
    assert np.flatnonzero(report.evidence).tolist() == [1, 4]
    assert any("within treatments 0, 2, 3, 5:" in text for text in report.warnings)


def members_of(t):
    return [np.flatnonzero(t == k) for k in range(NUM)]


def brute(y, t):
    return [y[ids] - y[ids].mean(0) for ids in members_of(t)]


def conditional(coupling):
    p = np.asarray(coupling.dense(), float)
    return p / p.sum(1, keepdims=True)


def test_partners_and_spread_against_the_dense_coupling():
    u, v = planted()
    found = alignment(u, v)
    report = psa.diagnose(KEY, found, matcher=softmax, draws=1000, repeats=1, permutations=2)
    p = conditional(found.coupling)
    entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(1)
    expected = np.exp([entropy[ids].mean() for ids in members_of(T_A)])
    np.testing.assert_allclose(report.partners, expected, rtol=0.03)
    np.testing.assert_allclose(report.partners_share, np.asarray(report.partners) / EACH, rtol=1e-5)
    left = (p @ v**2 - (p @ v) ** 2).sum(1)
    total = np.array([(y**2).sum(1).mean() for y in brute(v, T_B)])
    np.testing.assert_allclose(report.spread, [left[ids].mean() for ids in members_of(T_A)] / total, rtol=1e-3)


def test_agreement_and_its_null_against_brute_force():
    u, v = planted()
    report = diagnose(u, v, repeats=2, permutations=400)
    rng, values, nulls = np.random.default_rng(1), [], []
    orders = np.tile(np.arange(T_B.size), (400, 1))
    for order in orders:
        for ids in members_of(T_B):
            order[ids] = rng.permutation(ids)
    for used in np.asarray(halves(jax.random.split(KEY, 3)[0], D, 2)):
        kept, held = np.flatnonzero(used), np.flatnonzero(~used)
        p = conditional(alignment(u[:, kept], v[:, kept]).coupling)
        own, theirs = (y[:, held] - y[:, held].mean(1, keepdims=True) for y in (u, v))

        def correlations(y, p=p, own=own):
            pairs = zip(brute(own, T_A), brute(p @ y, T_A), strict=True)
            return [(x * z).sum() / np.sqrt((x**2).sum() * (z**2).sum()) for x, z in pairs]

        values.append(correlations(theirs))
        nulls.append([correlations(theirs[order]) for order in orders])
    np.testing.assert_allclose(report.agreement, np.mean(values, 0), atol=1e-4)
    null = np.mean(nulls, 0)
    np.testing.assert_allclose(report.null_mean, null.mean(0), atol=0.05)
    np.testing.assert_allclose(report.null_sd, null.std(0), rtol=0.2)


def test_stability_against_brute_force_and_unknown_with_one_member():
    u, v = planted()
    rng = np.random.default_rng(2)
    members = [y + 0.5 * rng.normal(size=(3, *y.shape)) for y in (u, v)]
    report = diagnose(u, v, members=members, repeats=1, permutations=2)
    seen = [brute(conditional(alignment(*pair).coupling) @ v, T_A) for pair in zip(*members, strict=True)]
    unit = np.array([[(x / np.linalg.norm(x)).ravel() for x in each] for each in seen])
    gram = np.einsum("mtx,ntx->tmn", unit, unit)
    np.testing.assert_allclose(report.stability, (gram.sum((1, 2)) - 3) / 6, atol=1e-3)
    np.testing.assert_allclose(report.overall_stability, np.mean(report.stability), rtol=1e-5)
    assert not any("members" in text for text in report.warnings)
    one = diagnose(u, v, members=[y[:1] for y in members], repeats=1, permutations=2)
    assert np.isnan(one.stability).all()
    assert "only one training run (members=1): stability is unknown" in one.warnings


def test_tiny_treatments_and_those_of_one_modality():
    u, v = planted()
    rank = np.arange(T_A.size) % EACH
    a = (T_A != 5) & ((T_A != 2) | (rank < 3))
    b = (T_B != 3) & ((T_B != 0) | (np.arange(T_B.size) < NUM))
    report = diagnose(u[a], v[b], psa.group(T_A[a], T_B[b], NUM + 1, max_buckets=1))
    assert np.flatnonzero(report.evidence).tolist() == [1, 4]
    assert report.size_a.tolist() == [40, 40, 3, 40, 40, 0, 0]
    assert report.size_b.tolist() == [1, 40, 40, 0, 40, 40, 0]
    assert report.converged.tolist() == [True, True, True, False, True, False, False]
    assert np.isnan(np.asarray(report.agreement)[[0, 2, 3, 5, 6]]).all()
    assert np.isnan(np.asarray(report.partners)[[3, 5, 6]]).all()
    assert float(report.partners[0]) == pytest.approx(1)
    assert np.isfinite(report.overall_z)
    assert report.warnings[:2] == [
        "treatments 3, 5: only one modality has them, they were not matched",
        "treatments 0, 2: fewer than 5 samples on a side: nothing can be said",
    ]
    assert not any("no evidence" in text or "converge" in text for text in report.warnings)
    whole = diagnose(u, v)  # other treatments do not matter
    np.testing.assert_allclose(report.agreement[1], whole.agreement[1], atol=1e-4)
    np.testing.assert_allclose(report.spread[1], whole.spread[1], rtol=1e-3)


def never(u, v, a, b):
    return psa.Coupling(
        left=0 * u, right=v, kernel=_softmax_kernel, args=jnp.float32(1e6), info=Info.closed_form(False)
    )


def test_what_did_not_converge_and_what_is_uniform_is_named():
    u, v = planted()
    report = psa.diagnose(KEY, alignment(u, v, matcher=never), matcher=never, repeats=1)
    texts = "\n".join(report.warnings)
    for text in (
        "treatments 0, 1, 2, 3, 4, 5: the matcher did not converge",
        "treatments 0, 1, 2, 3, 4, 5: a matching behind agreement",
        "nearly uniform within treatments 0, 1",
    ):
        assert text in texts
    np.testing.assert_allclose(report.spread, 1, atol=1e-3)
    np.testing.assert_allclose(report.partners_share, 1, atol=1e-3)


def test_too_few_columns_leave_agreement_unknown():
    u, v = planted()
    report = diagnose(u[:, :2], v[:, :2])
    assert np.isnan(report.agreement).all()
    assert not report.evidence.any()
    assert any("fewer than three columns" in text for text in report.warnings)
    assert not any("no evidence" in text for text in report.warnings)
    assert np.isfinite(report.spread).all()


def test_scores_that_do_not_vary_are_no_evidence():
    report = diagnose(np.zeros((T_A.size, D)), np.zeros((T_B.size, D)))
    assert not report.evidence.any()
    assert any("no evidence" in text for text in report.warnings)


def test_it_is_a_pytree_a_table_and_plain_numbers():
    u, v = planted()
    report = diagnose(u, v)
    rows = report.rows()
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert [row["treatment"] for row in rows] == list(range(NUM))
    assert rows[2]["stability"] is None
    assert rows[2]["agreement"] == pytest.approx(float(report.agreement[2]))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(report))
    lines = str(report).splitlines()
    assert len(lines) == 1 + NUM + 1 + len(report.warnings)
    assert len({len(line) for line in lines[: 1 + NUM]}) == 1
    again = diagnose(u, v)
    for one, two in zip(jax.tree.leaves(report), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, two)


def test_double_precision_stays(x64):
    u, v = (jnp.asarray(y[:120]) for y in planted())
    groups = psa.group(T_A[:120], np.sort(T_B[:120]), NUM)
    found = psa.Alignment(psa.blockwise(softmax)(u, v, groups), groups, u, v, *6 * [None])
    assert psa.diagnose(KEY, found, matcher=softmax, repeats=1, permutations=2).agreement.dtype == jnp.float64


def test_permuted_treatments_keep_samples_and_sizes_and_untie_the_modalities():
    x = jnp.arange(2 * T_A.size, dtype=jnp.float32).reshape(-1, 2)
    data = psa.Unpaired(psa.Modality(x, jnp.asarray(T_A)), psa.Modality(x[:-6], jnp.asarray(T_A[:-6])), NUM)
    control = psa.permute_treatments(KEY, data)
    for side, old in ((control.a, data.a), (control.b, data.b)):
        np.testing.assert_array_equal(side.x, old.x)
        np.testing.assert_array_equal(np.bincount(side.t), np.bincount(old.t))
        assert 0.05 < (np.asarray(side.t) == np.asarray(old.t)).mean() < 0.3  # 1/6 by chance
    assert 0.05 < (np.asarray(control.a.t[:-6]) == np.asarray(control.b.t)).mean() < 0.3
    other = psa.permute_treatments(jax.random.key(1), data)
    assert (np.asarray(other.a.t) != np.asarray(control.a.t)).any()
    with pytest.raises(ValueError, match="modality a"):
        psa.permute_treatments(KEY, psa.Unpaired(psa.Modality(x[:3], data.a.t), data.b, NUM))


def test_the_negative_control_is_no_evidence():
    """The scores of linear classifiers, once of the labels and once of permuted ones."""
    state = np.random.default_rng(3).normal(size=(NUM, D))
    x, y = (y + 2 * state[t] for y, t in zip(planted(), (T_A, T_B), strict=True))
    sides = (psa.Modality(jnp.asarray(side, jnp.float32), jnp.asarray(t)) for side, t in ((x, T_A), (y, T_B)))
    data = psa.Unpaired(*sides, NUM)

    def report(data):
        scores = []
        for side in (data.a, data.b):
            features = np.asarray(side.x, float)
            fitted = features @ np.linalg.lstsq(features, np.eye(NUM)[np.asarray(side.t)], rcond=None)[0]
            scores.append(10 * (fitted - fitted.mean(1, keepdims=True)))
        return diagnose(*scores, psa.group(data.a.t, data.b.t, NUM))

    true, control = report(data), report(psa.permute_treatments(KEY, data))
    assert float(true.overall_z) > 5
    assert true.evidence.sum() >= 2
    assert control.evidence.sum() == 0
    assert float(control.overall_agreement) < 0.5 * float(true.overall_agreement)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"matcher": "sinkhorn"}, "matcher: expected a function"),
        ({"repeats": 0}, "repeats: expected at least 1"),
        ({"draws": 0}, "draws: expected at least 1"),
        ({"permutations": 1}, "permutations: expected at least 2"),
        ({"scores_a": jnp.ones((3, D))}, "scores_a: expected"),
        ({"scores_b": jnp.ones(240)}, "scores_b: expected"),
        ({"scores_b": jnp.ones((240, D - 1))}, "scores_a, scores_b: expected the same columns"),
        ({"coupling": psa.independent(jnp.full(2, 0.5), jnp.full(3, 1 / 3))}, "coupling: expected shape"),
    ],
)
def test_bad_input(change, message):
    fields = {"coupling": psa.independent(jnp.full(240, 1 / 240), jnp.full(240, 1 / 240)), "groups": GROUPS}
    fields |= {"scores_a": jnp.ones((240, D)), "scores_b": jnp.ones((240, D))}
    options = {k: change[k] for k in change if k not in fields}
    fields |= {k: change[k] for k in change if k in fields}
    with pytest.raises(ValueError, match=message):
        psa.diagnose(KEY, psa.Alignment(*fields.values(), *6 * [None]), **options)
