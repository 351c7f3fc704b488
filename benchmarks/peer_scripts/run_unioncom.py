"""UnionCom: geodesic distances matched as matrices, then one embedding; it knows no labels, so by treatment."""

import sys
import types

from problem import main

# It imports torchvision's models and never uses them, and torchvision wants to be built with the very torch there is.
sys.modules["torchvision"] = types.ModuleType("torchvision")
sys.modules["torchvision"].models = None

from unioncom.UnionCom import UnionCom  # noqa: E402

LEAST = 8


class Kept(UnionCom):
    """Keeps the matrix of matches that the embedding is made of."""

    def match(self, dataset):
        self.matches = super().match(dataset)
        return self.matches


def solve(problem, variant, seed):
    def one(rows, cols):
        fewest = min(rows.size, cols.size)
        method = Kept(manual_seed=seed, kmax=min(40, fewest - 1), perplexity=min(30, fewest / 4), log_pd=10**6)
        z = method.fit_transform([problem.x_a[rows].astype(float), problem.x_b[cols].astype(float)])
        return method.matches[0], z

    return problem.by_block(one, LEAST)


if __name__ == "__main__":
    main(solve)
