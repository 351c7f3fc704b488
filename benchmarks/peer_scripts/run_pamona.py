"""Pamona: partial Gromov-Wasserstein of geodesic distances, then one embedding; labels by a matrix of disagreement."""

import numpy as np
from pamona.Pamona import Pamona
from problem import main

LEAST = 12


def integrated(x, y, disagreement=None):
    """Masses of pairs and the embedding of both."""
    settings = {"M": None if disagreement is None else [disagreement], "output_dim": min(30, len(x), len(y))}
    method = Pamona(verbose=False, **settings)
    z, plans = method.run_Pamona([x.astype(float), y.astype(float)])
    return plans[0][: len(x), : len(y)], [np.real(side) for side in z]


def solve(problem, variant, seed):
    if variant == "labels as disagreement":
        same = problem.t_a[:, None] == problem.t_b[None]
        plan, (z_a, z_b) = integrated(problem.x_a, problem.x_b, np.where(same, 0.5, 1.0))
        return {"plan": plan, "z_a": z_a, "z_b": z_b}
    return problem.by_block(lambda rows, cols: integrated(problem.x_a[rows], problem.x_b[cols]), LEAST)


if __name__ == "__main__":
    main(solve)
