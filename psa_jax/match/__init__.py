"""Matchers of one treatment: `(u, v, a, b) -> Coupling`, and the costs they use."""

from psa_jax.match.assign import assignment, class_mean, independent, known_pairs
from psa_jax.match.cost import cosine, euclidean, squared_euclidean
from psa_jax.match.distances import geodesics, plain_distances
from psa_jax.match.eot import Relative, relative, sinkhorn
from psa_jax.match.gw import fused_gromov_wasserstein, gromov_wasserstein
from psa_jax.match.low_rank import low_rank_sinkhorn
from psa_jax.match.nearest import nearest
from psa_jax.match.snn import snn

__all__ = [
    "Relative",
    "assignment",
    "class_mean",
    "cosine",
    "euclidean",
    "fused_gromov_wasserstein",
    "geodesics",
    "gromov_wasserstein",
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
