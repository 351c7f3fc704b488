"""How good something is where the truth is known: pairs, regressions, distributions; one number for each sample.

Imports `match` and below.
"""

from psa_jax.metrics.distributions import per_treatment
from psa_jax.metrics.divergence import gaussian_kl_divergence, kl_divergence
from psa_jax.metrics.pairs import by_treatment, foscttm, label_transfer, latent_mse, trace
from psa_jax.metrics.regression import R2, r2
from psa_jax.metrics.wasserstein import sliced_wasserstein1, wasserstein1

__all__ = [
    "R2",
    "by_treatment",
    "foscttm",
    "gaussian_kl_divergence",
    "kl_divergence",
    "label_transfer",
    "latent_mse",
    "per_treatment",
    "r2",
    "sliced_wasserstein1",
    "trace",
    "wasserstein1",
]
