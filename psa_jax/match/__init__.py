"""Matchers of one treatment: `(u, v, a, b) -> Coupling`, and the costs they use."""

from psa_jax.match.assign import assignment, class_mean, independent, known_pairs
from psa_jax.match.cost import cosine, euclidean, squared_euclidean
from psa_jax.match.eot import Relative, relative, sinkhorn
from psa_jax.match.nearest import nearest
from psa_jax.match.snn import snn

__all__ = [
    "Relative",
    "assignment",
    "class_mean",
    "cosine",
    "euclidean",
    "independent",
    "known_pairs",
    "nearest",
    "relative",
    "sinkhorn",
    "snn",
    "squared_euclidean",
]
