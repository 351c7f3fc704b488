"""moscot's translation problem: Gromov-Wasserstein and fused Gromov-Wasserstein."""

import numpy as np
from anndata import AnnData
from moscot.problems.cross_modality import TranslationProblem
from problem import main


def translated(x, y, joint=None, **settings):
    """The plan `[n, m]` between features `x [n, d]`, `y [m, d']`, and `joint` coordinates of both."""
    source, target = AnnData(x), AnnData(y)
    for side, features, place in ((source, x, 0), (target, y, 1)):
        side.obsm["features"] = features
        if joint is not None:
            side.obsm["joint"] = joint[place]
    problem = TranslationProblem(source, target)
    problem = problem.prepare(src_attr="features", tgt_attr="features", joint_attr=None if joint is None else "joint")
    (solution,) = problem.solve(**settings).solutions.values()
    return np.asarray(solution.transport_matrix)


def solve(problem, variant, seed):
    x, y = problem.x_a, problem.x_b
    if variant == "fused GW, labels as joint term":
        codes = np.eye(max(problem.t_a.max(), problem.t_b.max()) + 1, dtype=np.float32)
        joint = codes[problem.t_a], codes[problem.t_b]
        return {"plan": translated(x, y, joint, alpha=0.7, epsilon=0.01)}
    fused = variant == "fused GW by treatment, our scores as joint term"

    def one(rows, cols):
        joint = (problem.u[rows], problem.v[cols]) if fused else None
        return translated(x[rows], y[cols], joint, alpha=0.7 if fused else 1.0, epsilon=0.01), None

    return problem.by_block(one, least=2)


if __name__ == "__main__":
    main(solve)
