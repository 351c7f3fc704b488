"""The paper's tables, honestly: `python -m benchmarks.paper --data snare [--scale small --seeds 3]`.

One data set a call. For every representation and aligner, and for every predictor trained through a coupling, the
figures that only the truth can give, over seeds, beside chance, the class mean and the true pairs. Writes
`results/paper_DATA_SCALE.json` and a figure of it, and anew, from all such files, `RESULTS.md` and the README's table
of quality. `cite` is the shared sample of 600 cells, or with `--path` the full file (GEO GSE194122, processed AnnData
of the CITE-seq part; its columns are checked); `simulated` is a file of simulated cells in that layout, 6000 of them
or, at the paper's scale, 90,000 of 13,953 genes; `file` is any AnnData or MuData whose cells have both modalities,
with `--path` and `--treatment`.
"""

import argparse
import json
import tempfile
import time

import jax
import numpy as np

from benchmarks import alignments, predictions, tables
from benchmarks.problems import load
from benchmarks.report import draw, write
from benchmarks.tables import HERE, environment, refill

NAMES = ("balls", "cite", "simulated", "screen", "digits", "snare", "file")


def measure(args, seed):
    """Yields the rows of one seed, as they are found."""
    problem = load(args.data, seed, args.scale, args.path, args.treatment)
    key_align, key_figures, key_predict = jax.random.split(jax.random.key(10_000 + seed), 3)
    for representation, match, coupling in alignments.couplings(key_align, problem):
        found = alignments.figures(key_figures, coupling, problem)
        converged = np.asarray(coupling.info.converged)
        share = float(converged[np.asarray(problem_sizes(problem)) > 0].mean()) if converged.ndim else 1.0
        names = {"representation": representation, "match": match}
        yield {"table": "alignment", **names, "seed": seed, "converged": share, **found}
        jax.clear_caches()  # programs of many shapes exhaust the memory maps that Linux allows a process
    for row in predictions.rows(key_predict, problem):
        yield {"table": "prediction", "seed": seed, **row}
        jax.clear_caches()


def problem_sizes(problem):
    """Pairs in each treatment: 0 where it is not matched."""
    data = problem.aligned
    sizes = [np.bincount(np.asarray(side.t), minlength=data.num_treatments) for side in (data.a, data.b)]
    return sizes[0] * sizes[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=NAMES, default="snare")
    parser.add_argument("--scale", choices=("small", "paper"), default="small")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="the first seed to run; earlier ones keep their rows")
    parser.add_argument("--path")
    parser.add_argument("--treatment")
    args = parser.parse_args()
    programs = tempfile.TemporaryDirectory()  # rows and seeds share their programs, which are freed after each
    jax.config.update("jax_compilation_cache_dir", programs.name)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    name = f"paper_{args.data}_{args.scale}"
    path = HERE / "results" / f"{name}.json"
    if args.first and not path.exists():
        parser.error(f"--first {args.first}: expected results of earlier seeds in {path.name}, found none")
    before = json.loads(path.read_text()) if args.first else {"rows": [], "settings": {"seconds": 0}}
    rows = [row for row in before["rows"] if row["seed"] < args.first]
    start = time.perf_counter() - before["settings"]["seconds"]
    for seed in range(args.first, args.seeds):
        for row in measure(args, seed):  # written after each, so that a run cut short is not lost
            rows.append(row)
            settings = {**vars(args), "seeds": seed + 1, "path": None if args.path is None else "given"}
            del settings["first"]
            settings["seconds"] = round(time.perf_counter() - start)
            record = {"settings": settings, "environment": environment(), "rows": rows}
            path.parent.mkdir(exist_ok=True)
            tables.write(path, json.dumps(record, indent=1) + "\n")
            print(settings["seconds"], "s", row, flush=True)
        draw(name, record)
        write()
        refill()


if __name__ == "__main__":
    main()
