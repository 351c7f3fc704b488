"""Predicting one modality from the other, trained through a coupling of samples that were never paired.

Imports `propensity`, `coupling` and below.
"""

from psa_jax.predict.losses import draw_loss
from psa_jax.predict.predictor import fit_predictor, fit_predictor_ensemble, predict

__all__ = ["draw_loss", "fit_predictor", "fit_predictor_ensemble", "predict"]
