"""What the scripts of peers read and write. Needs numpy alone: each script runs in an environment of its own."""

import dataclasses
import os
import sys

import numpy as np


@dataclasses.dataclass(frozen=True)
class Problem:
    """Cells of two modalities with the same treatments, in orders of their own.

    `x_a [n, d]`, `x_b [m, d']` standardised features of the cells to align, `t_a`, `t_b` their treatments.
    `wide_a`, `wide_b`: their features by name (where there are no names, `x_a` and `x_b`); `links [k, 2]` pairs of
    columns of these that are known to belong together. `fit_...`: wide features and treatments of the training split,
    whose cells are others (or the same ones, where all are aligned). `u [n, K]`, `v [m, K]`: our propensity scores of
    the cells to align.
    """

    x_a: np.ndarray
    t_a: np.ndarray
    x_b: np.ndarray
    t_b: np.ndarray
    wide_a: np.ndarray
    wide_b: np.ndarray
    fit_wide_a: np.ndarray
    fit_t_a: np.ndarray
    fit_wide_b: np.ndarray
    fit_t_b: np.ndarray
    links: np.ndarray
    u: np.ndarray
    v: np.ndarray

    def blocks(self, least=1):
        """Rows and columns of each treatment of which both modalities have `least` cells."""
        for t in np.intersect1d(self.t_a, self.t_b):
            rows, cols = np.flatnonzero(self.t_a == t), np.flatnonzero(self.t_b == t)
            if min(rows.size, cols.size) >= least:
                yield rows, cols

    def by_block(self, solve, least):
        """`solve(rows, cols)` of each large enough treatment, put together; smaller ones stay without mass."""
        plan, parts = np.zeros((len(self.t_a), len(self.t_b)), np.float32), []
        for rows, cols in self.blocks(least):
            plan[np.ix_(rows, cols)], own = solve(rows, cols)
            parts += [] if own is None else [(rows, cols, *own)]
        if not parts:
            return {"plan": plan}
        width = max(part[2].shape[1] for part in parts)  # small treatments may have fewer axes: the others are 0
        z_a, z_b = (np.zeros((len(t), width), np.float32) for t in (self.t_a, self.t_b))
        for rows, cols, own_a, own_b in parts:
            z_a[rows, : own_a.shape[1]], z_b[cols, : own_b.shape[1]] = own_a, own_b
        return {"plan": plan, "z_a": z_a, "z_b": z_b}


def read(path):
    with np.load(path) as file:
        return Problem(**{field.name: file[field.name] for field in dataclasses.fields(Problem)})


def write(path, answer):
    """Whole or not at all."""
    np.savez(path + ".part.npz", **answer)
    os.replace(path + ".part.npz", path)


def main(solve):
    """`python SCRIPT variant seed problem.npz answer.npz`: calls `solve(problem, variant, seed)`.

    The answer holds `plan [n, m]`, masses of pairs, or `z_a [n, k]` and `z_b [m, k]`, one space for both, or all three.
    """
    variant, seed, source, target = sys.argv[1:]
    write(target, solve(read(source), variant, int(seed)))
