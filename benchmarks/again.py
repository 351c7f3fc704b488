"""Does another key change the result? `python -m benchmarks.again [--data Sachs ...] [--keys 4]`.

`align` by its defaults with several keys on one split of each data set of `benchmarks.quality`: what differs is chance
in training, folds and halves alone. Writes `results/again.json` and the table in `QUALITY.md`.
"""

import argparse
import itertools
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np

import psa_jax as psa
from benchmarks.cuts import CUTS, as_jax, known_here
from benchmarks.quality import error_of
from benchmarks.quality_report import report
from benchmarks.tables import HERE, environment, write

RESULTS = HERE / "results" / "again.json"
TOO_LONG = ("balls", "digits", "SNARE-seq", "Sachs, labels permuted", "nothing shared")  # or without anything to find


def measure(name, keys):
    """FOSCTTM of the coupling and error of the projection, of each key."""
    cut = CUTS[name](0)
    data, t = cut.aligned, jnp.asarray(cut.aligned.a.t)
    pair, _, y = as_jax(cut)
    found = []
    for key in range(keys):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", psa.AlignmentWarning)
            out = psa.align(jax.random.key(100 + key), cut.train, query=cut.query, valid=cut.valid)
        groups = psa.group(data.a.t, data.b.t, data.num_treatments)
        rank = float(jnp.nanmean(psa.foscttm(out.coupling.apply(y), y[pair], t=t)))
        found.append((rank, error_of(out.projection.law, y, y[pair], groups, (out.scores_a, out.scores_b))))
    rows = []
    for metric, values in zip(("FOSCTTM", "project: error"), np.transpose(found), strict=True):
        apart = [abs(one - other) for one, other in itertools.combinations(values, 2)]
        rows.append(
            {
                "data": name,
                "metric": metric,
                "keys": keys,
                "median": round(float(np.median(values)), 4),
                "two keys differ by (mean)": round(float(np.mean(apart)), 4),
                "at most": round(float(np.max(apart)), 4),
            }
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = [name for name in known_here() if name not in TOO_LONG]
    parser.add_argument("--data", nargs="+", choices=CUTS, default=here)
    parser.add_argument("--keys", type=int, default=4)
    args = parser.parse_args()
    kept = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    for name in args.data:
        rows = measure(name, args.keys)
        print(rows, flush=True)
        kept = [row for row in kept if row["data"] != name] + rows
        write(RESULTS, json.dumps({"environment": environment(), "rows": kept}, indent=1) + "\n")
        report()


if __name__ == "__main__":
    main()
