"""Matchers of one treatment, `(u, v, a, b) -> Coupling`, their costs, and what lifts them over all treatments.

Imports `coupling`, `data` and below; the only room that imports ott-jax, when a solver first runs.
"""

from psa_jax.match.assign import assignment, class_mean, independent, known_pairs
from psa_jax.match.blockwise import blockwise
from psa_jax.match.cost import cosine, euclidean, squared_euclidean
from psa_jax.match.distances import geodesics, plain_distances
from psa_jax.match.entropic import Relative, relative
from psa_jax.match.eot import sinkhorn
from psa_jax.match.extend import extend
from psa_jax.match.gw import fused_gromov_wasserstein, gromov_wasserstein
from psa_jax.match.hierarchical import hierarchical
from psa_jax.match.low_rank import low_rank_sinkhorn
from psa_jax.match.nearest import nearest
from psa_jax.match.residual import gradient_residual
from psa_jax.match.snn import snn

__all__ = [
    "Relative",
    "assignment",
    "blockwise",
    "class_mean",
    "cosine",
    "euclidean",
    "extend",
    "fused_gromov_wasserstein",
    "geodesics",
    "gradient_residual",
    "gromov_wasserstein",
    "hierarchical",
    "independent",
    "known_pairs",
    "low_rank_sinkhorn",
    "nearest",
    "plain_distances",
    "relative",
    "sinkhorn",
    "snn",
    "squared_euclidean",
]


def __dir__() -> list[str]:
    return sorted(__all__)
