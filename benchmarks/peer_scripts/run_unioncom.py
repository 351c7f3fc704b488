"""UnionCom: geodesic distances matched as matrices, then one embedding; it knows no labels, so by treatment."""

import sys
import types

import numpy as np
from problem import main

# It imports torchvision's models and never uses them, and torchvision wants to be built with the very torch there is.
sys.modules["torchvision"] = types.ModuleType("torchvision")
sys.modules["torchvision"].models = None

from unioncom.UnionCom import UnionCom  # noqa: E402

LEAST, MOST = 8, 50


class Kept(UnionCom):
    """Keeps the matrix of matches that the embedding is made of."""

    def match(self, dataset):
        self.matches = super().match(dataset)
        return self.matches


def reduced(x):
    """At most 50 components, which it takes of each treatment by itself, if there are cells enough in it."""
    if x.shape[1] <= MOST:
        return x.astype(float)
    left, scale, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    return left[:, :MOST] * scale[:MOST].astype(float)


def solve(problem, variant, seed):
    x, y = reduced(problem.x_a), reduced(problem.x_b)

    def one(rows, cols):
        fewest = min(rows.size, cols.size)
        method = Kept(manual_seed=seed, kmax=min(40, fewest - 1), perplexity=min(30, fewest / 4), log_pd=10**6)
        z = method.fit_transform([x[rows], y[cols]])
        return method.matches[0], z

    return problem.by_block(one, LEAST)


if __name__ == "__main__":
    main(solve)
