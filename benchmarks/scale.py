"""How far it goes: whole alignments of many cells, each in a process of its own: `python -m benchmarks.scale`.

Cells are simulated: 50 features of a state that treatments move, sizes of treatments as the row says. A row is what one
process took, stage by stage, compilation included, and the most memory it held, the data too (Linux). The first row is
also judged, calibrated, projected, saved and loaded. `--only NAME` runs one. `--plan` computes what more devices would
bring: see `scale_plan.py`. Writes `results/scale.json`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

import psa_jax as psa
from benchmarks import scale_plan
from benchmarks.matching import peak
from benchmarks.tables import HERE, environment, refill, write

FEATURES, STATE = 50, 10
RESULTS = HERE / "results" / "scale.json"
QUICK = {"members": 1, "folds": 3, "training": psa.Training(epochs=1)}
# A row: sizes of the treatments, what the learner has beside its default, and whether all else is done with it, too.
ROWS = {
    "90,000 a side, 45 types": ([17_312, *[1652] * 44], {}, True),
    "90,000 a side, 45 types, one classifier": ([17_312, *[1652] * 44], {"members": 1}, False),
    "200,000 a side, 400 treatments, one epoch": ([500] * 400, QUICK, False),
    "100,000 a side, 2000 treatments, one epoch": ([50] * 2000, QUICK, False),
    "1,000,000 a side, 2000 treatments, one epoch": ([500] * 2000, QUICK, False),
}


def cells(sizes, seed=0):
    """Two modalities of different cells of the same treatments."""
    rng = np.random.default_rng(seed)
    t = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    effects = rng.normal(size=(len(sizes), STATE)).astype(np.float32)

    def one():
        weights = rng.normal(size=(STATE, FEATURES)).astype(np.float32)
        state = effects[t] + rng.normal(size=(t.size, STATE)).astype(np.float32)
        x = np.tanh(state @ weights / 2) + 0.3 * rng.normal(size=(t.size, FEATURES)).astype(np.float32)
        return psa.Modality(x.astype(np.float32), t)

    return psa.Unpaired(one(), one(), len(sizes))


class Clock:
    """Seconds by stage, of what is told as progress and of what is done within `stage`."""

    def __init__(self):
        self.seconds, self._now, self._since = {}, None, time.perf_counter()

    def __call__(self, step):
        if step.stage != self._now:
            self.turn(step.stage)

    def turn(self, stage):
        """What was done until now belongs to the stage before."""
        now = time.perf_counter()
        if self._now is not None:
            self.seconds[self._now] = self.seconds.get(self._now, 0) + now - self._since
        self._now, self._since = stage, now


def run(name):
    """The row of one alignment, in this process."""
    sizes, settings, rest = ROWS[name]
    data, clock, learner = cells(sizes), Clock(), psa.Learner(**settings)
    start = time.perf_counter()
    alignment = jax.block_until_ready(psa.align(jax.random.key(0), data, a=learner, b=learner, progress=clock))
    clock.turn("evaluation")
    seconds, memory = time.perf_counter() - start, peak()
    if rest:
        key = jax.random.key(1)
        members = alignment.member_scores_a, alignment.member_scores_b
        with tempfile.TemporaryDirectory() as folder:
            for stage, work in {
                "diagnose": lambda: psa.diagnose(key, alignment),
                "calibrate": lambda: psa.calibrated_coupling(key, *members, alignment.groups),
                "project": lambda: alignment.project(data.b.x),
                "save": lambda: alignment.save(folder),
                "load": lambda: psa.Alignment.load(folder),
            }.items():
                clock.turn(stage)
                jax.block_until_ready(work())
            clock.turn(None)
    stages = {f"{stage} (s)": round(spent, 1) for stage, spent in clock.seconds.items() if stage != "evaluation"}
    converged = np.asarray(alignment.coupling.info.converged)
    return {
        "row": name,
        "align (s)": round(seconds, 1),
        "align, peak (GiB)": round(memory, 2),
        "peak in all (GiB)": round(peak(), 2),
        "converged": f"{int(converged.sum())} of {converged.size}",
        **stages,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=ROWS)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # in this process, for the one below
    parser.add_argument("--plan", action="store_true", help="what more devices would bring, computed")
    args = parser.parse_args()
    if args.plan:
        scale_plan.main()
        return
    if args.here:
        print(json.dumps(run(args.only)))
        return
    kept = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    for name in [args.only] if args.only else ROWS:
        command = [sys.executable, "-m", "benchmarks.scale", "--here", "--only", name]
        found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=HERE.parent)
        kept = [row for row in kept if row["row"] != name] + [json.loads(found.stdout.splitlines()[-1])]
        print(kept[-1], flush=True)
        write(RESULTS, json.dumps({"environment": environment(), "rows": kept}, indent=1) + "\n")
        refill()


if __name__ == "__main__":
    main()
