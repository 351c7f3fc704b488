"""How much to smooth the propensity, chosen with labels only, and the truth: `python -m benchmarks.smoothing`.

Scenes of `datasets.balls`; a classifier for each modality is trained with random translations of growing size. Printed
beside the label-only criterion (`psa_jax.held_out_agreement`) are the figures that only the truth can give.
Chosen is the least amount whose criterion is within one standard error of the best one.
"""

import argparse
import time
import warnings

import jax
import numpy as np

import psa_jax as psa
from benchmarks.tables import save
from psa_jax.judge.agreement import held_out_agreement
from psa_jax.match import class_mean

AMOUNTS = (0.0, 0.02, 0.05, 0.08, 0.12, 0.2)


def run(num_train, num_test, epochs, seed):
    key_train, key_test, key_align, key_select = jax.random.split(jax.random.key(seed), 4)
    train, _ = psa.datasets.balls(key_train, num_samples=num_train, image_size=32)
    test, truth = psa.datasets.balls(key_test, num_samples=num_test, image_size=32)
    model = psa.conv((32, 64, 128), 12)
    rows, criteria = [], []
    for amount in AMOUNTS:
        start = time.perf_counter()
        training = psa.Training(epochs=epochs, patience=epochs)
        learner = psa.Learner(model, psa.translation(amount), training=training, members=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", psa.AlignmentWarning)
            out = psa.align(key_align, train, query=test, a=learner, b=learner)
        criterion = held_out_agreement(key_select, psa.sinkhorn, out.scores_a, out.scores_b, out.groups)
        baseline = psa.blockwise(class_mean)(out.scores_a, out.scores_b, out.groups)
        criteria.append(np.asarray(criterion))
        rows.append(
            {
                "translation (std)": amount,
                "cross-entropy a": float(out.calibration_a.cross_entropy),
                "cross-entropy b": float(out.calibration_b.cross_entropy),
                "held-out agreement": float(criterion.mean()),
                "latent MSE": float(psa.latent_mse(out.coupling, truth).mean()),
                "class mean": float(psa.latent_mse(baseline, truth).mean()),
                "trace": float(psa.trace(out.coupling, truth).mean()),
                "seconds": round(time.perf_counter() - start, 1),
            }
        )
        print(rows[-1], flush=True)
    best = int(np.argmax([criterion.mean() for criterion in criteria]))
    for row, criterion in zip(rows, criteria, strict=True):
        behind = criteria[best] - criterion
        row["within noise of the best"] = bool(behind.mean() <= behind.std(ddof=1) / np.sqrt(behind.size))
    chosen = next(row for row in rows if row["within noise of the best"])
    for row in rows:
        row["chosen"] = "x" if row is chosen else ""
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-train", type=int, default=4000)
    parser.add_argument("--num-test", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = run(args.num_train, args.num_test, args.epochs, args.seed)
    save("smoothing", vars(args), rows)


if __name__ == "__main__":
    main()
