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
from psa_jax.align import (
    Alignment,
    AlignmentWarning,
    ManyAlignment,
    Prediction,
    align,
    align_many,
    evaluate,
    group_batch,
    ignore_nonfinite,
    match_batch,
)
from psa_jax.coupling import Blocked, Chained, Coupling, Info, chain, shrink
from psa_jax.data import Groups, Modality, Strata, Truth, Unpaired, group, permute_treatments, split, validate
from psa_jax.judge import (
    Diagnosis,
    EpsSweep,
    calibrated_coupling,
    diagnose,
    held_out_agreement,
    refine,
    select_eps,
    tune,
)
from psa_jax.match import (
    assignment,
    blockwise,
    class_mean,
    cosine,
    euclidean,
    extend,
    fused_gromov_wasserstein,
    geodesics,
    gradient_residual,
    gromov_wasserstein,
    hierarchical,
    independent,
    low_rank_sinkhorn,
    nearest,
    plain_distances,
    relative,
    sinkhorn,
    snn,
    squared_euclidean,
)
from psa_jax.metrics import (
    R2,
    by_treatment,
    foscttm,
    gaussian_kl_divergence,
    kl_divergence,
    label_transfer,
    latent_mse,
    per_treatment,
    r2,
    sliced_wasserstein1,
    trace,
    wasserstein1,
)
from psa_jax.predict import fit_predictor, fit_predictor_ensemble, predict
from psa_jax.propensity import (
    CrossFitted,
    Fitted,
    History,
    Learner,
    Model,
    Scorer,
    Training,
    batch_norm,
    calibrate,
    centre,
    class_weights,
    compose,
    conv,
    crossfit,
    expected_calibration_error,
    fit,
    fit_ensemble,
    from_linen,
    from_logits,
    from_nnx,
    gaussian_noise,
    layer_norm,
    linear,
    log_prior,
    mlp,
    propensity,
    relative_to,
    reliability,
    smoothing,
    tempered,
    translation,
)

if TYPE_CHECKING:
    from psa_jax import baselines, datasets, io, plot

__version__ = "0.5.0"

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
    "Learner",
    "ManyAlignment",
    "Modality",
    "Model",
    "Prediction",
    "Scorer",
    "Strata",
    "Training",
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
    "gradient_residual",
    "gromov_wasserstein",
    "group",
    "group_batch",
    "held_out_agreement",
    "hierarchical",
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
    "refine",
    "relative",
    "relative_to",
    "reliability",
    "select_eps",
    "shrink",
    "sinkhorn",
    "sliced_wasserstein1",
    "smoothing",
    "snn",
    "split",
    "squared_euclidean",
    "tempered",
    "trace",
    "translation",
    "tune",
    "validate",
    "wasserstein1",
]


def __getattr__(name: str) -> Any:
    if name in ("baselines", "datasets", "io", "plot"):
        return importlib.import_module(f"psa_jax.{name}")
    raise AttributeError(f"module 'psa_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
