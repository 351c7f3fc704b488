import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import MATCHED, SIZES_A, ragged

import psa_jax as psa
from psa_jax import io

EPS = 0.3
TIGHT = functools.partial(psa.sinkhorn, eps=EPS, tol=1e-10, max_iters=5000)


def solved(dtype=jnp.float64, matcher=TIGHT):
    u, v, y, t_a, t_b, groups = ragged(dtype)
    return psa.blockwise(matcher)(u, v, groups), u, v, y, np.asarray(t_a), np.asarray(t_b)


def test_the_reference_itself_is_matched_as_before(x64):
    coupling, u, _, y, t_a, _ = solved()
    again = psa.extend(coupling, u, t_a)
    chex.assert_trees_all_close(again.apply(y), coupling.apply(y), atol=1e-8)
    chex.assert_trees_all_close(again.dense(), coupling.dense(), atol=1e-9)
    assert int(again.unmatched_rows) == int(coupling.unmatched_rows)
    assert int(again.unmatched_cols) == int(coupling.unmatched_cols)


def test_new_rows_equal_the_formula(x64):
    coupling, u, v, y, t_a, t_b = solved()
    rng = np.random.default_rng(5)
    new, t = rng.normal(size=(40, 3)), rng.integers(0, len(SIZES_A), 40)
    found = psa.extend(coupling, jnp.asarray(new), t)
    projected, dense = np.asarray(found.apply(y)), np.asarray(found.dense())
    np.testing.assert_array_equal(np.asarray(found.sample(jax.random.key(0))) < 0, ~np.isin(t, MATCHED))
    counts = np.bincount(t, minlength=len(SIZES_A))
    total = counts[MATCHED].sum()
    for code in MATCHED:
        i, j, k = (np.flatnonzero(labels == code) for labels in (t_a, t_b, t))
        one = TIGHT(u[i], v[j], jnp.full(i.size, 1 / i.size), jnp.full(j.size, 1 / j.size))
        potential = np.asarray(one.right[0][1])  # g + eps log b
        cost = np.linalg.norm(new[k][:, None] - np.asarray(v)[j][None], axis=-1)
        p = np.exp((potential - cost) / EPS)
        p /= p.sum(1, keepdims=True)
        np.testing.assert_allclose(projected[k], p @ np.asarray(y)[j], atol=1e-9)
        np.testing.assert_allclose(dense[np.ix_(k, j)], p / total, atol=1e-9)
    assert int(found.unmatched_rows) == (~np.isin(t, MATCHED)).sum()
    assert int(found.unmatched_cols) == (~np.isin(t_b, np.intersect1d(MATCHED, t))).sum()


def test_new_columns_and_back(x64):
    coupling, u, v, _, t_a, t_b = solved()
    new, t = v[:25] + 0.1, t_b[:25]
    found = psa.extend(coupling.T, new, t).T
    assert found.shape == (u.shape[0], 25)
    swapped = psa.blockwise(TIGHT)(v, u, psa.group(t_b, t_a, len(SIZES_A)))
    chex.assert_trees_all_close(found.T.dense(), psa.extend(swapped, new, t).dense(), atol=1e-8)


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_a_shrunk_coupling_stays_shrunk(x64, weight):
    coupling, u, _, y, t_a, _ = solved()
    shrunk = psa.shrink(coupling, weight)
    chex.assert_trees_all_close(psa.extend(shrunk, u, t_a).apply(y), shrunk.apply(y), atol=1e-8)


def test_far_away_samples_have_partners_and_finite_gradients():
    coupling, u, _, y, t_a, _ = solved(jnp.float32, psa.sinkhorn)

    def loss(u):
        return jnp.sum(psa.extend(coupling, u, t_a).apply(y) ** 2)

    value, grad = jax.value_and_grad(loss)(1e4 + 1e3 * u)
    chex.assert_tree_all_finite((value, grad))
    assert float(value) > 0


@pytest.mark.parametrize("far", [1e3, 1e5, 3e5, 1e6, 1e7])
def test_company_does_not_decide_who_is_too_far(far):
    rng = np.random.default_rng(0)
    u, v = (jnp.asarray(rng.normal(size=(40, 2)), jnp.float32) for _ in range(2))
    t = np.zeros(40, int)
    coupling = psa.blockwise(psa.sinkhorn)(u, v, psa.group(t, t, 1))
    laws = [psa.extend(coupling, jnp.full((n, 2), far, jnp.float32), np.zeros(n, int)) for n in (1, 2, 3, 5, 50)]
    lost = {bool(law.unmatched_rows == n) for law, n in zip(laws, (1, 2, 3, 5, 50), strict=True)}
    assert lost == {far >= 1e5}
    found = np.stack([np.asarray(law.apply(v))[0] for law in laws])
    np.testing.assert_allclose(found, np.broadcast_to(found[:1], found.shape), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("cost", [psa.euclidean, psa.squared_euclidean, psa.cosine])
@pytest.mark.parametrize("size", [1e10, 1e25, 3e38])
def test_samples_too_far_away_for_any_number_are_counted(cost, size):
    coupling, u, _, y, t_a, _ = solved(jnp.float32, functools.partial(psa.sinkhorn, cost=cost))
    row = int(np.flatnonzero(t_a == 4)[0])
    found = psa.extend(coupling, u.at[row].set(size), t_a)
    before = psa.extend(coupling, u, t_a)
    partner = bool(found.row_marginal()[row] > 0)
    assert np.isfinite(found.apply(y)).all()
    np.testing.assert_allclose(found.row_marginal().sum(), 1, rtol=1e-5)
    assert int(found.unmatched_rows) == int(before.unmatched_rows) + (not partner)
    assert bool(found.info.converged[4]) == partner
    assert found.info.details["lost"].tolist() == [int(t == 4 and not partner) for t in range(8)]
    if partner:
        np.testing.assert_allclose(found.dense()[row].sum(), before.dense()[row].sum(), rtol=1e-3)
    alone = psa.extend(coupling, u[:1].at[0].set(size), t_a[:1])
    nan = psa.extend(coupling, u[:1].at[0].set(jnp.nan), t_a[:1])
    if not bool(alone.row_marginal()[0] > 0):
        assert int(alone.unmatched_cols) == int(nan.unmatched_cols) == coupling.shape[1]
    elsewhere = np.asarray(t_a) != 4
    np.testing.assert_allclose(found.apply(y)[elsewhere], before.apply(y)[elsewhere], rtol=1e-5, atol=1e-6)


def test_it_may_be_compiled_with_the_coupling_closed_over():
    coupling, u, _, y, t_a, _ = solved(jnp.float32, psa.sinkhorn)
    wanted = psa.extend(coupling, u, t_a).apply(y)
    chex.assert_trees_all_close(jax.jit(lambda u: psa.extend(coupling, u, t_a).apply(y))(u), wanted, atol=1e-5)
    with pytest.raises(ValueError, match="expected values known on the host"):
        jax.jit(lambda c: psa.extend(c, u, t_a).apply(y))(coupling)


def test_scores_that_are_not_finite_have_no_partner():
    coupling, u, _, y, t_a, _ = solved(jnp.float32, psa.sinkhorn)
    row = int(np.flatnonzero(t_a == 4)[0])
    found = psa.extend(coupling, u.at[row, 0].set(jnp.nan), t_a)
    clean = psa.extend(coupling, u, t_a)
    rest = np.arange(len(t_a)) != row
    assert int(found.unmatched_rows) == int(clean.unmatched_rows) + 1
    chex.assert_trees_all_close(found.apply(y)[rest], clean.apply(y)[rest], atol=1e-5)
    assert not np.asarray(found.apply(y)[row]).any()
    chex.assert_tree_all_finite(found.T.apply(u))


def test_a_batch_is_extended_where_it_was_matched():
    u, v, y, t_a, t_b, _ = ragged()
    batch = psa.match_batch(u, v, jnp.asarray(t_a), jnp.asarray(t_b), num_treatments=len(SIZES_A), capacity=30)
    for law, scores, t in ((batch, u, t_a), (batch.T, v, t_b)):
        found = psa.extend(law, scores, t)
        assert int(found.unmatched_rows) == int(law.unmatched_rows)
        assert int(found.unmatched_cols) == int(law.unmatched_cols)
        np.testing.assert_allclose(found.dense().sum(), 1, rtol=1e-5)
        np.testing.assert_array_equal(np.asarray(found.row_marginal()) > 0, np.isin(t, MATCHED))


def test_a_coupling_shrunk_the_other_way_stays_so(x64):
    coupling, u, v, y, t_a, t_b = solved()
    shrunk = psa.shrink(psa.shrink(coupling, 0.7).T, 0.4)
    chex.assert_trees_all_close(psa.extend(shrunk, v, t_b).apply(u), shrunk.apply(u), atol=1e-8)
    chex.assert_trees_all_close(psa.extend(shrunk.T, u, t_a).apply(y), shrunk.T.apply(y), atol=1e-8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda C, u, t: psa.extend(C, u[:, :2], t), r"u: expected float scores \[k, 3\]"),
        (lambda C, u, t: psa.extend(C, u, t[:-1]), "t: expected"),
        (lambda C, u, t: psa.extend(C, u, t + 100), "t: expected codes"),
        (lambda C, u, t: psa.extend(C, u, t.astype(float)), "t: expected integer"),
        (lambda C, u, t: psa.extend(C.blocks[0].coupling, u, t), "coupling: expected psa_jax.Blocked, got a Coupling"),
        (lambda C, u, t: psa.extend(solved(jnp.float32, psa.snn)[0], u, t), "expected one of `sinkhorn`"),
    ],
)
def test_bad_input(make, message):
    coupling, u, _, _, t_a, _ = solved(jnp.float32, psa.sinkhorn)
    with pytest.raises(ValueError, match=message):
        make(coupling, u, t_a)


def problem(n=90, seed=0):
    rng = np.random.default_rng(seed)
    t = np.arange(n) % 3
    z = rng.normal(size=(n, 2)) + np.array([[0, 0], [1.5, 0], [0, 1.5]])[t]
    a, b = z @ rng.normal(size=(2, 4)), np.tanh(z @ rng.normal(size=(2, 3)))
    return psa.Unpaired(*(psa.Modality(jnp.asarray(x, jnp.float32), jnp.asarray(t, jnp.int32)) for x in (a, b)), 3)


MODEL = psa.mlp((8,), 3)
MODELS = {"model_a": MODEL, "model_b": MODEL}
LEARNER = psa.Learner(MODEL, training=psa.Training(epochs=4), folds=3, members=1)


@pytest.mark.slow
@pytest.mark.parametrize("queried", [False, True])
def test_new_samples_are_scored_as_the_classifiers_say(queried):
    data, new = problem(), problem(30, 1)
    two, query = dataclasses.replace(LEARNER, members=2), problem(60, 2) if queried else None
    alignment = psa.align(jax.random.key(0), data, query=query, a=two, b=two)
    found = alignment.score_a(new.a.x)
    scorer = alignment.scorer_a
    mapped = functools.partial(MODEL.apply, train=False, key=None)
    params = alignment.fitted_a.params
    members = [(i,) for i in range(2)] if queried else [(i, fold) for i in range(2) for fold in range(3)]
    logits = [mapped(jax.tree.map(lambda leaf, at=at: leaf[at], params), new.a.x)[0] for at in members]
    mean = sum(logits) / len(logits)
    wanted = psa.from_logits(
        mean, temperature=scorer.temperature, log_prior=scorer.log_prior, transform=scorer.transform
    )
    chex.assert_trees_all_close(found, wanted, atol=1e-5)
    if queried:
        again = alignment.score_a(problem(60, 2).a.x)
        chex.assert_trees_all_close(again, alignment.scores_a, atol=1e-5)
    with pytest.raises(ValueError, match=r"x: expected features \(4,\)"):
        alignment.score_a(new.b.x)


@pytest.mark.parametrize("shrunk", [False, True])
def test_a_saved_alignment_gives_the_same_bits(tmp_path, shrunk):
    data, new = problem(), problem(30, 1)
    alignment = psa.align(jax.random.key(0), data, a=LEARNER, b=LEARNER)
    if shrunk:
        twice = psa.shrink(psa.shrink(alignment.coupling, 0.5).T, 0.9).T
        alignment = dataclasses.replace(alignment, coupling=twice)
    io.save_alignment(tmp_path / "it.npz", alignment)
    back = io.load_alignment(tmp_path / "it.npz", **MODELS)
    chex.assert_trees_all_equal(back, alignment)
    assert jax.tree.structure(back) == jax.tree.structure(alignment)
    for one in (back, alignment):
        u = one.score_a(new.a.x)
        law = psa.extend(one.coupling, u, new.a.t)
        answers = u, law.apply(data.b.x), law.sample(jax.random.key(3)), one.coupling.apply(data.b.x)
        if one is back:
            kept = answers
    chex.assert_trees_all_equal(kept, answers)


@pytest.mark.slow
def test_default_models_and_another_process(tmp_path):
    data = problem(45)
    one = psa.Learner(training=psa.Training(epochs=1), folds=3, members=1)
    alignment = psa.align(jax.random.key(0), data, a=one, b=one)
    io.save_alignment(tmp_path / "it.npz", alignment)
    chex.assert_trees_all_equal(io.load_alignment(tmp_path / "it.npz"), alignment)


def test_files_that_do_not_fit(tmp_path):
    alignment = psa.align(jax.random.key(0), problem(45), a=LEARNER, b=LEARNER)
    io.save_alignment(tmp_path / "it.npz", alignment)
    io.save(tmp_path / "other.npz", {"x": jnp.ones(3)})
    with pytest.raises(ValueError, match="expected a file made by save_alignment"):
        io.load_alignment(tmp_path / "other.npz")
    with pytest.raises(ValueError, match=r"model_a: expected .*8.*, as saved, got .*128"):
        io.load_alignment(tmp_path / "it.npz")
    with pytest.raises(ValueError, match=r"kernel: expected .*Gibbs.*, as saved, got .*SharedNeighbours"):
        io.load_alignment(tmp_path / "it.npz", **MODELS, matcher=psa.snn)
    other = functools.partial(psa.sinkhorn, cost=psa.squared_euclidean)
    with pytest.raises(ValueError, match=r"kernel: expected .*euclidean.*, as saved, got .*squared_euclidean"):
        io.load_alignment(tmp_path / "it.npz", **MODELS, matcher=other)
    with pytest.raises(ValueError, match=r"transform: expected .*Tempered, as saved, got .*log_softmax"):
        io.load_alignment(tmp_path / "it.npz", **MODELS, transform=jax.nn.log_softmax)
    with pytest.raises(ValueError, match="expected a blocked coupling"):
        io.save_alignment(
            tmp_path / "it.npz", dataclasses.replace(alignment, coupling=psa.match.known_pairs(jnp.arange(45), 45))
        )
    with pytest.raises(FileNotFoundError):
        io.load_alignment(tmp_path / "nothing.npz")
    with pytest.raises(ValueError, match="expected scorers"):
        io.save_alignment(tmp_path / "it.npz", dataclasses.replace(alignment, scorer_a=None))
    with pytest.raises(ValueError, match="scorer_b: expected one"):
        dataclasses.replace(alignment, scorer_b=None).score_b(problem().b.x)
