"""Predictors of modality b from modality a, trained through couplings, for `python -m benchmarks.paper`."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

import psa_jax as psa
from benchmarks.alignments import quietly
from benchmarks.problems import rows_of
from psa_jax.match import class_mean, known_pairs

LOSSES = ("barycentric", "sampled", "unbiased")
TRAINING = psa.Training(epochs=60, batch_size=128, patience=10)
LARGE = dataclasses.replace(TRAINING, batch_size=1024)
COMPONENTS = 5


def parts(key, problem):
    """Training and test samples, test samples with known pairs."""
    if problem.query is not None:
        return (problem.train, problem.train_truth), (problem.query, problem.query_truth)
    return psa.split(key, problem.train, (0.75, 0.25), problem.train_truth)


def predictors(key, problem):
    """Yields `(coupling, loss, predictions of the test samples' b, test data, test truth, training data)`."""
    key_split, key_align, key_hold, key_fit = jax.random.split(key, 4)
    (train, truth), (test, test_truth) = parts(key_split, problem)
    out = quietly(psa.align, key_align, train)
    eps, weight = psa.relative(out.projection.eps), out.projection.weight_a  # each part is matched again below
    mean, scale = train.b.x.mean(0), train.b.x.std(0)
    scale = jnp.where(scale > 0, scale, 1)
    numbered = psa.Unpaired(
        *(psa.Modality(jnp.arange(side.t.size, dtype=jnp.float32)[:, None], side.t) for side in (train.a, train.b)),
        train.num_treatments,
    )
    held_out = psa.split(key_hold, numbered, (0.8, 0.2), truth)[1][0]  # of the same sizes for every seed: one program
    hold_a, hold_b = (
        np.isin(np.arange(side.t.size), np.asarray(part.x, int))
        for side, part in ((train.a, held_out.a), (train.b, held_out.b))
    )
    sides = []
    for rows, cols in ((~hold_a, ~hold_b), (hold_a, hold_b)):
        data, pairs = rows_of(train, truth, rows, cols)
        groups = psa.group(data.a.t, data.b.t, data.num_treatments)
        u, v = out.scores_a[np.flatnonzero(rows)], out.scores_b[np.flatnonzero(cols)]
        matched = psa.blockwise(functools.partial(psa.sinkhorn, eps=eps))(u, v, groups)
        laws = {
            "class mean": psa.blockwise(class_mean)(u, v, groups),
            "PS+OT": psa.blockwise(psa.sinkhorn)(u, v, groups),
            "PS+OT, calibrated": psa.shrink(matched, weight),
            "true pairs": known_pairs(pairs.pair, data.b.t.size),
        }
        sides.append((data, laws))
    (data, laws), (held, held_laws) = sides
    model = psa.mlp((128, 128), train.b.x.shape[1])
    targets = [(part.b.x - mean) / scale for part in (data, held)]
    for name, law in laws.items():
        if name == "true pairs" and not bool((truth.pair >= 0).any()):
            continue
        # A sample has one true partner, so that all losses are one; drawing it looks at every pair of samples.
        for loss in LOSSES[:1] if name == "true pairs" and problem.large else LOSSES:
            fitted = psa.fit_predictor(
                key_fit,
                model,
                data.a.x,
                targets[0],
                law,
                loss=loss,
                training=LARGE if problem.large else TRAINING,
                valid=(held.a.x, targets[1], held_laws[name]),
            )
            yield name, loss, psa.predict(model, fitted.params, test.a.x) * scale + mean, test, test_truth, train


def judge(predicted, test, truth, train, unseen):
    """R² of predictions where the truth is known, and distances of distributions by treatment."""
    known = np.asarray(truth.pair) >= 0
    seen = known & ~np.isin(test.a.t, unseen)
    true = test.b.x[truth.pair]
    mean = train.b.x.mean(0)
    total = psa.r2(true[seen], predicted[seen], center=mean)
    out = {
        "R2": float(total.pooled),
        "median R2": float(total.median),
        "R2 within": _within(predicted, true, test, seen),
    }
    axes = jnp.linalg.svd(train.b.x - mean, full_matrices=False)[2][:COMPONENTS].T
    places = {"": np.setdiff1d(np.arange(test.num_treatments), unseen)}
    if len(unseen):
        places[", unseen"] = np.asarray(unseen)
        far = known & np.isin(test.a.t, unseen)
        out["R2, unseen"] = float(psa.r2(true[far], predicted[far], center=mean).pooled)
    w1 = quietly(psa.per_treatment, psa.wasserstein1, predicted, test.a.t, test.b.x, test.b.t, test.num_treatments)
    kl = quietly(
        psa.per_treatment, psa.kl_divergence, test.b.x @ axes, test.b.t, predicted @ axes, test.a.t, test.num_treatments
    )
    for where, ids in places.items():
        out[f"W1{where}"] = float(np.nanmean(np.asarray(w1)[ids].mean(-1)))
        out[f"KL{where}"] = float(np.nanmean(np.asarray(kl)[ids]))
    return out


def _within(predicted, true, test, seen):
    """1 - squared error over that of the treatments' means (of the test samples, known pairs)."""
    t = np.asarray(test.a.t)[seen]
    predicted, true = np.asarray(predicted)[seen], np.asarray(true)[seen]
    means = np.stack(
        [true[t == code].mean(0) if (t == code).any() else 0 * true[0] for code in range(test.num_treatments)]
    )
    return float(1 - ((predicted - true) ** 2).sum() / ((true - means[t]) ** 2).sum())


def rows(key, problem):
    """Yields one row of figures for each coupling and loss."""
    if problem.train.b.x.ndim != 2:
        return
    for name, loss, predicted, test, truth, train in predictors(key, problem):
        yield {"coupling": name, "loss": loss, **judge(predicted, test, truth, train, problem.unseen)}
