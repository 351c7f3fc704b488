"""Figures of `QUALITY.md` again, from what was projected, with NumPy alone: `python -m benchmarks.recomputed`.

`python -m benchmarks.quality` keeps the first seed's projections of some data sets in `results/raw_*.npz`: of today's
recipe, through the coupling at eps 0.1 and by `project`, with the true values and treatments. Exits with 1 if a figure
differs from that of `results/quality.json` by more than a thousandth.
"""

import json
import pathlib
import sys

import numpy as np

RESULTS = pathlib.Path(__file__).parent / "results"
NEAR = 1e-3


def error(projected, true, t):
    """Squared error over that of the treatment's mean."""
    mean = np.zeros_like(true)
    for code in np.unique(t):
        mean[t == code] = true[t == code].mean(0)
    return ((projected - true) ** 2).sum() / ((mean - true) ** 2).sum()


def foscttm(projected, true, t):
    """The share of the treatment's other samples that are closer than the true one, both ways, ties one half."""
    found = np.empty(len(t))
    for code in np.unique(t):
        own = np.flatnonzero(t == code)
        if own.size < 2:
            found[own] = np.nan
            continue
        apart = ((projected[own][:, None] - true[own][None]) ** 2).sum(-1)
        right = np.diag(apart)
        closer = [
            (apart < r).sum(axis) + ((apart == r).sum(axis) - 1) / 2 for r, axis in ((right[:, None], 1), (right, 0))
        ]
        found[own] = (closer[0] + closer[1]) / 2 / (own.size - 1)
    return np.nanmean(found)


def main():
    """Prints every figure twice."""
    rows, wrong = json.loads((RESULTS / "quality.json").read_text())["rows"], 0
    for path in sorted(RESULTS.glob("raw_*.npz")):
        with np.load(path) as file:
            raw = {name: file[name] for name in file.files}
        name, true, t = str(raw["data"]), raw["true"].astype(float), raw["t"]
        told = next(row for row in rows if (row["data"], row["recipe"], row["seed"]) == (name, "today", 0))
        projected, averaged = raw["projected"].astype(float), raw["averaged"].astype(float)
        for figure, found in {
            "coupling: error": error(projected, true, t),
            "FOSCTTM": foscttm(projected, true, t),
            "project: error": error(averaged, true, t),
        }.items():
            near = abs(found - told[figure]) <= NEAR * abs(told[figure])
            wrong += not near
            print(f"{name}, {figure}: {told[figure]:.5f}, again {found:.5f}{'' if near else ' (DIFFERS)'}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
