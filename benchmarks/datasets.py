"""Every data set with known pairs, every way of matching: `python -m benchmarks.datasets [--data digits ...]`.

`snare` and `bmmc` are read from the folder of shared data (environment variable PSA_JAX_DATA, or `../shared/data`), and
left out, with a word, where it does not exist. Averages over `--seeds`; the truth is used for these figures only.
"""

import argparse
import dataclasses
import os
import pathlib
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np

import psa_jax as psa
from benchmarks.tables import README, save
from psa_jax.match import known_pairs

SHARED = pathlib.Path(os.environ.get("PSA_JAX_DATA", README.parent.parent / "shared" / "data"))
FIGURES = ("trace", "latent_mse", "foscttm", "foscttm_features")


def balls(seed):
    key_train, key_test = jax.random.split(jax.random.key(seed))
    train, _ = psa.datasets.balls(key_train, num_samples=4000, image_size=32)
    test, truth = psa.datasets.balls(key_test, num_samples=2000, image_size=32)
    learner = psa.Learner(psa.conv((32, 64, 128), 12), training=psa.Training(epochs=15, patience=15), members=1)
    return train, test, truth, {"query": test, "a": learner, "b": learner}


def digits(seed):
    data, truth = psa.datasets.digits(jax.random.key(seed))
    return data, data, truth, {}


def snare(seed):
    with np.load(SHARED / "snare_seq.npz") as file:
        x_a, x_b, t = (file[name] for name in ("x1", "x2", "t"))
    order = np.asarray(jax.random.permutation(jax.random.key(seed), t.size))
    data = psa.Unpaired(
        psa.Modality(jnp.asarray(x_a), jnp.asarray(t, jnp.int32)),
        psa.Modality(jnp.asarray(x_b[order]), jnp.asarray(t[order], jnp.int32)),
        4,
    )
    return data, data, psa.Truth(jnp.asarray(np.argsort(order), jnp.int32)), {}


def bmmc(seed):
    data, truth = psa.datasets.cite_seq(SHARED / "bmmc_cite_600.h5ad")
    return data, data, truth, {}


SOURCES = {"digits": digits, "snare": snare, "bmmc": bmmc, "balls": balls}


def measure(name, seed):
    """The five rows of one data set and seed: figures by way of matching."""
    train, aligned, truth, options = SOURCES[name](seed)
    key_align, key_evaluate = jax.random.split(jax.random.key(1000 + seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", psa.AlignmentWarning)
        alignment = psa.align(key_align, train, **options)
    laws = {
        "PS+SNN": psa.blockwise(psa.snn)(alignment.scores_a, alignment.scores_b, alignment.groups),
        "PS+OT": alignment.coupling,
        "true pairs": known_pairs(truth.pair, aligned.b.t.size),
    }
    reports = {
        law: psa.evaluate(key_evaluate, dataclasses.replace(alignment, coupling=coupling), truth, aligned)["metrics"]
        for law, coupling in laws.items()
    }
    levels = reports["PS+OT"]
    figures = [figure for figure in FIGURES if figure in levels]
    return {
        "random match": {figure: levels[figure]["chance"] for figure in figures},
        "class mean": {figure: levels[figure]["class_mean"] for figure in figures},
        **{law: {figure: report[figure]["micro"] for figure in figures} for law, report in reports.items()},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=SOURCES, default=list(SOURCES))
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    rows = []
    for name in args.data:
        if name in ("snare", "bmmc") and not SHARED.is_dir():
            print(f"{name}: left out, there is no folder of shared data (set PSA_JAX_DATA)")
            continue
        start = time.perf_counter()
        runs = [measure(name, seed) for seed in range(args.seeds)]
        for law in runs[0]:
            means = {figure: float(np.mean([run[law][figure] for run in runs])) for figure in runs[0][law]}
            rows.append({"data": name, "match": law, **{figure: means.get(figure) for figure in FIGURES}})
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    save("datasets", vars(args), rows)


if __name__ == "__main__":
    main()
