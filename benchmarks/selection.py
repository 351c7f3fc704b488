"""Which label-only criterion for eps tracks the truth, on data with known pairs: `python -m benchmarks.selection`.

Scores of three classifiers (members) are swept over eps by `psa.select_eps`. The truth at each eps is that of the
coupling of their mean: the mean probability of the true match (trace); the share of modality b's variation within
treatments that the projection explains (R², of latents for balls, of standardised features elsewhere); and 1 - FOSCTTM
of that projection among the treatment's samples. Printed for each criterion: its Spearman correlation with each truth
over eps, and the truths at the eps where it is largest, beside the best ones of the sweep ("truth").

A criterion that only rises or falls with eps gets a large correlation wherever the truth does so too, whichever data it
sees: its choice is always an end of the grid. The choice says more than the correlation.
"""

import argparse
import functools
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import spearmanr

import psa_jax as psa
from benchmarks.datasets import SHARED, SOURCES
from benchmarks.tables import save
from psa_jax.judge.eps_sweep import CRITERIA
from psa_jax.match import class_mean

EPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
TRUTHS = ("trace", "R2", "1-FOSCTTM")


def balls(seed):
    key_train, key_test = jax.random.split(jax.random.key(seed))
    train, _ = psa.datasets.balls(key_train, num_samples=2000, image_size=32)
    test, truth = psa.datasets.balls(key_test, num_samples=1000, image_size=32)
    learner = psa.Learner(
        psa.conv((32, 64, 128), 12), psa.translation(0.05), training=psa.Training(epochs=12, patience=12), members=1
    )
    return train, test, truth, {"query": test, "a": learner, "b": learner}


def measure(name, seed, members):
    """The sweep of one data set, one dictionary for each eps: criteria and truths."""
    start = time.perf_counter()
    train, aligned, truth, options = (balls if name == "balls" else SOURCES[name])(seed)
    key_align, key_select = jax.random.split(jax.random.key(2000 + seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", psa.AlignmentWarning)
        runs = [psa.align(key, train, **options) for key in jax.random.split(key_align, members)]
    u, v = (jnp.stack([getattr(run, side) for run in runs]) for side in ("scores_a", "scores_b"))
    groups, trained = runs[0].groups, time.perf_counter()
    sweep = jax.block_until_ready(psa.select_eps(key_select, u, v, groups, EPS))
    swept = time.perf_counter()
    y = aligned.b.x.reshape(aligned.b.t.size, -1) if truth.z_b is None else truth.z_b
    y = (y - y.mean(0)) / jnp.where(y.std(0) > 0, y.std(0), 1)
    true = y[truth.pair]
    residual = jnp.sum((psa.blockwise(class_mean)(u[0], v[0], groups).apply(y) - true) ** 2)
    rows = []
    for row in sweep.rows():
        matcher = functools.partial(psa.sinkhorn, eps=psa.relative(jnp.float32(row["eps"])))
        coupling = psa.blockwise(matcher)(u.mean(0), v.mean(0), groups)
        projected = coupling.apply(y)
        found = {
            "trace": psa.trace(coupling, truth).mean(),
            "R2": 1 - jnp.sum((projected - true) ** 2) / residual,
            "1-FOSCTTM": 1 - jnp.nanmean(psa.foscttm(projected, true, t=aligned.a.t)),
        }
        rows.append({"data": name, "seed": seed, **row, **{truth: float(value) for truth, value in found.items()}})
    seconds = f"members {trained - start:.0f} s, sweep {swept - trained:.0f} s"
    print(f"{name}: {seconds}, chosen {float(sweep.best):.3g}", flush=True)
    return rows


def compare(name, runs):
    """One row for each criterion: rank correlations, and truths at its largest value, averaged over runs."""

    def column(rows, key):
        return np.array([row[key] for row in rows])

    def at(rows, criterion, truth):
        return column(rows, truth)[np.argmax(column(rows, criterion))]

    out = []
    for criterion in (*CRITERIA, "truth"):
        row, known = {"data": name, "criterion": criterion}, criterion == "truth"
        for truth in TRUTHS:
            found = [spearmanr(column(r, criterion), column(r, truth))[0] for r in runs if not known]
            row[f"rank correlation: {truth}"] = float(np.mean(found)) if found else None
        row["eps"] = None if known else " ".join(f"{at(r, criterion, 'eps'):.3g}" for r in runs)
        for truth in TRUTHS:
            row[f"there: {truth}"] = float(np.mean([at(r, truth if known else criterion, truth) for r in runs]))
        out.append(row)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=SOURCES, default=list(SOURCES))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--members", type=int, default=3)
    args = parser.parse_args()
    rows, sweeps = [], []
    for name in args.data:
        if name in ("snare", "bmmc") and not SHARED.is_dir():
            print(f"{name}: left out, there is no folder of shared data (set PSA_JAX_DATA)")
            continue
        runs = [measure(name, seed, args.members) for seed in range(args.seeds)]
        rows += compare(name, runs)
        sweeps += [row for run in runs for row in run]
    save("selection", {**vars(args), "sweeps": sweeps}, rows)


if __name__ == "__main__":
    main()
