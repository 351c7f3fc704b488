"""Propensity score alignment of unpaired multimodal data, in JAX (Xi et al., NeurIPS 2024, arXiv 2404.01595).

Samples become scores, scores a coupling, and the coupling answers whatever is asked of it:

    data, truth = psa.datasets.balls(key, num_samples=2000, image_size=32)
    alignment = psa.align(key, data)
    alignment.coupling.apply(data.b.x)

`baselines`, `datasets`, `io` and `plot` are imported when first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from psa_jax import match
from psa_jax.alignment import Alignment, AlignmentWarning, Scorer
from psa_jax.augment import compose, gaussian_noise, smoothing, translation
from psa_jax.blocked import Blocked
from psa_jax.chain import Chained, chain
from psa_jax.coupling import Coupling, Info
from psa_jax.crossfit import CrossFitted, crossfit
from psa_jax.data import Modality, Truth, Unpaired, split, validate
from psa_jax.diagnose import diagnose, permute_treatments
from psa_jax.diagnosis import Diagnosis
from psa_jax.distributions import per_treatment
from psa_jax.divergence import gaussian_kl_divergence, kl_divergence
from psa_jax.evaluation import evaluate
from psa_jax.extend import extend
from psa_jax.groups import Groups, group
from psa_jax.layer import group_batch, ignore_nonfinite, match_batch
from psa_jax.loop import Fitted, History
from psa_jax.many import ManyAlignment, align_many
from psa_jax.match import (
    assignment,
    class_mean,
    cosine,
    euclidean,
    fused_gromov_wasserstein,
    geodesics,
    gromov_wasserstein,
    independent,
    low_rank_sinkhorn,
    nearest,
    plain_distances,
    relative,
    sinkhorn,
    snn,
    squared_euclidean,
)
from psa_jax.match.blockwise import blockwise
from psa_jax.metrics import by_treatment, foscttm, label_transfer, latent_mse, trace
from psa_jax.model import Model, from_linen, from_nnx
from psa_jax.nets import batch_norm, conv, layer_norm, linear, mlp
from psa_jax.pipeline import align
from psa_jax.predict import fit_predictor, fit_predictor_ensemble, predict
from psa_jax.regression import R2, r2
from psa_jax.score import calibrate, centre, expected_calibration_error, from_logits, log_prior, propensity, reliability
from psa_jax.selection import held_out_agreement
from psa_jax.shrink import shrink
from psa_jax.sweep import EpsSweep, calibrated_coupling, select_eps
from psa_jax.train import class_weights, fit, fit_ensemble
from psa_jax.wasserstein import sliced_wasserstein1, wasserstein1

if TYPE_CHECKING:
    from psa_jax import baselines, datasets, io, plot

__version__ = "0.4.0"

__all__ = [
    "R2",
    "Alignment",
    "AlignmentWarning",
    "Blocked",
    "Chained",
    "Coupling",
    "CrossFitted",
    "Diagnosis",
    "EpsSweep",
    "Fitted",
    "Groups",
    "History",
    "Info",
    "ManyAlignment",
    "Modality",
    "Model",
    "Scorer",
    "Truth",
    "Unpaired",
    "align",
    "align_many",
    "assignment",
    "baselines",
    "batch_norm",
    "blockwise",
    "by_treatment",
    "calibrate",
    "calibrated_coupling",
    "centre",
    "chain",
    "class_mean",
    "class_weights",
    "compose",
    "conv",
    "cosine",
    "crossfit",
    "datasets",
    "diagnose",
    "euclidean",
    "evaluate",
    "expected_calibration_error",
    "extend",
    "fit",
    "fit_ensemble",
    "fit_predictor",
    "fit_predictor_ensemble",
    "foscttm",
    "from_linen",
    "from_logits",
    "from_nnx",
    "fused_gromov_wasserstein",
    "gaussian_kl_divergence",
    "gaussian_noise",
    "geodesics",
    "gromov_wasserstein",
    "group",
    "group_batch",
    "held_out_agreement",
    "ignore_nonfinite",
    "independent",
    "io",
    "kl_divergence",
    "label_transfer",
    "latent_mse",
    "layer_norm",
    "linear",
    "log_prior",
    "low_rank_sinkhorn",
    "match",
    "match_batch",
    "mlp",
    "nearest",
    "per_treatment",
    "permute_treatments",
    "plain_distances",
    "plot",
    "predict",
    "propensity",
    "r2",
    "relative",
    "reliability",
    "select_eps",
    "shrink",
    "sinkhorn",
    "sliced_wasserstein1",
    "smoothing",
    "snn",
    "split",
    "squared_euclidean",
    "trace",
    "translation",
    "validate",
    "wasserstein1",
]


def __getattr__(name: str) -> Any:
    if name in ("baselines", "datasets", "io", "plot"):
        return importlib.import_module(f"psa_jax.{name}")
    raise AttributeError(f"module 'psa_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
