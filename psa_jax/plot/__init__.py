"""Pictures of an alignment; every function draws with matplotlib, which it needs, and returns its axes.

Imports `align` and below.
"""

from psa_jax.plot.figures import calibration, eps_sweep, trace_by_treatment
from psa_jax.plot.maps import evidence, feature_maps, partners, score_maps
from psa_jax.plot.pairs import latent_map, matched_pairs

__all__ = [
    "calibration",
    "eps_sweep",
    "evidence",
    "feature_maps",
    "latent_map",
    "matched_pairs",
    "partners",
    "score_maps",
    "trace_by_treatment",
]


def __dir__() -> list[str]:
    return sorted(__all__)
