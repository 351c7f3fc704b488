"""Progress: what is told, in which order, and that telling neither changes nor recompiles anything."""

import io
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psa_jax as psa
from psa_jax.progress import Bar, Step, Watch, tell, watching

KEY = jax.random.key(0)
T = jnp.arange(24) % 2
X = jax.random.normal(KEY, (24, 2)) + T[:, None]
DATA = psa.Unpaired(*2 * [psa.Modality(X, T)], 2)
LEARNER = psa.Learner(psa.linear(2), training=psa.Training(epochs=2, patience=2), folds=3, members=2)


@pytest.mark.parametrize(
    ("together", "epochs", "expected"),
    [
        (1, [0, 1, 2, 0, 1, 2], [1, 2, 3, 4, 5, 6]),
        (1, [0, 1, 0, 1, 2], [1, 2, 4, 5, 6]),
        (2, [0, 0, 1, 1, 2, 2, 0, 0], [1, 2, 3, 4, 5, 6, 7, 8]),
        (2, [0, 0, 1, 1, 0, 0], [1, 2, 3, 4, 5, 7]),
    ],
)
def test_epochs_add_up_over_runs_that_stop_early(together, epochs, expected):
    told = []
    with watching(told.append) as watch:
        watch.begin("classifiers", 12, epochs=3, together=together)
        for epoch in epochs:
            tell(np.int32(epoch), np.float32(0.5), np.float32(np.nan))
    assert [step.done for step in told[1:]] == expected
    assert told[-1].loss == 0.5


def test_align_names_modality_member_fold_and_loss():
    told = []
    found = psa.align(KEY, DATA, a=LEARNER, b=LEARNER, progress=told.append)
    silent = psa.align(KEY, DATA, a=LEARNER, b=LEARNER)
    assert np.array_equal(found.scores_a, silent.scores_a)
    assert {step.stage for step in told} == {"classifiers", "refinement", "matching", "projection"}
    trained = [step for step in told if step.loss is not None]
    runs = set(itertools.product("ab", (0, 1), (0, 1, 2)))
    assert {(step.modality, step.member, step.fold) for step in trained} == runs
    assert max(step.done for step in trained) == trained[0].total == 2 * 3 * 2
    assert told[-1] == Step("projection", 1, 1)
    assert str(trained[0]) in {
        f"classifiers, modality a, member {i}, fold {f}" for i, f in itertools.product((0, 1), range(3))
    }


def test_another_listener_is_no_other_program():
    traced = []

    def apply(params, x, *, train, key):
        traced.append(train)
        return LEARNER.model.apply(params, x, train=train, key=key)

    model = psa.Model(LEARNER.model.init, apply, LEARNER.model.trainable)
    counts = []
    for listener in ([].append, lambda step: None):
        psa.crossfit(KEY, model, X, T, folds=3, training=LEARNER.training)
        with watching(listener) as watch:
            psa.crossfit(KEY, model, X, T, folds=3, training=LEARNER.training, on_epoch=watch.on_epoch)
        counts.append(sum(traced))
    assert counts[0] == counts[1] > 0


@pytest.mark.slow
def test_others_tell_of_their_stages():
    groups = psa.group(T, T, 2)
    scores = jnp.concatenate([X, -X, X**2], 1)
    coupling = psa.blockwise(psa.sinkhorn)(scores, scores, groups)
    alignment = psa.Alignment(coupling, groups, scores, scores, *6 * [None])
    told = []
    psa.diagnose(KEY, alignment, repeats=1, draws=1, permutations=2, progress=told.append)
    assert told[-1] == Step("evidence", 2, 2)
    psa.select_eps(KEY, scores, scores, groups, [0.1, 0.5], repeats=1, draws=1, progress=told.append)
    assert told[-1] == Step("sweep", 2, 2)
    training = psa.Training(epochs=3, batch_size=8)
    psa.fit_predictor(KEY, psa.linear(2), X, X, coupling, loss="sampled", training=training, progress=told.append)
    assert (told[-1].stage, told[-1].done, told[-1].total) == ("predictor", 3, 3)


def test_on_epoch_gets_the_names_it_has_parameters_for():
    told = []

    def named(epoch, train_loss, valid_loss, fold):
        told.append((int(epoch), int(fold)))

    psa.crossfit(KEY, LEARNER.model, X, T, folds=3, training=LEARNER.training, on_epoch=named)
    jax.effects_barrier()
    assert sorted(told) == [(epoch, fold) for epoch in (0, 1) for fold in (0, 1, 2)]


def test_a_bar_draws_on_a_terminal():
    console = pytest.importorskip("rich.console").Console(file=io.StringIO(), force_terminal=True, width=120)
    with Bar(console) as bar:
        bar(Step("classifiers", 3, 10, modality="a", fold=2, loss=0.25))
        bar._rich.refresh()
    text = console.file.getvalue()
    assert "classifiers, modality a, fold 2" in text
    assert "3/10" in text
    assert "loss 0.250" in text


def test_nobody_is_told_without_a_listener():
    with watching(False) as watch:
        assert watch.on_epoch is None
        watch.begin("matching", 1)
        watch.advance()
    assert isinstance(watch, Watch)
