"""One modality at a time: classifiers of the treatment, their training and calibration, and the scores they give.

Imports `data` and below; never couplings or matchers.
"""

from psa_jax.propensity.augment import compose, gaussian_noise, smoothing, translation
from psa_jax.propensity.calibration import Calibration, calibrate, expected_calibration_error, reliability
from psa_jax.propensity.crossfit import CrossFitted, crossfit
from psa_jax.propensity.fit import class_weights, fit, fit_ensemble
from psa_jax.propensity.learner import Learner
from psa_jax.propensity.loop import Fitted, History
from psa_jax.propensity.model import Model, from_linen, from_nnx
from psa_jax.propensity.nets import batch_norm, conv, layer_norm, linear, mlp
from psa_jax.propensity.representation import Representation
from psa_jax.propensity.scorer import Scorer
from psa_jax.propensity.scores import centre, from_logits, log_prior, propensity, relative_to, tempered
from psa_jax.propensity.training import Training

__all__ = [
    "Calibration",
    "CrossFitted",
    "Fitted",
    "History",
    "Learner",
    "Model",
    "Representation",
    "Scorer",
    "Training",
    "batch_norm",
    "calibrate",
    "centre",
    "class_weights",
    "compose",
    "conv",
    "crossfit",
    "expected_calibration_error",
    "fit",
    "fit_ensemble",
    "from_linen",
    "from_logits",
    "from_nnx",
    "gaussian_noise",
    "layer_norm",
    "linear",
    "log_prior",
    "mlp",
    "propensity",
    "relative_to",
    "reliability",
    "smoothing",
    "tempered",
    "translation",
]
