"""What can be said and chosen without true pairs: held-out agreement, sweeps of eps, calibration, diagnosis.

Takes scores, plans and couplings and imports `match` and below, so that `align` may use it.
"""

from psa_jax.judge.agreement import held_out_agreement
from psa_jax.judge.diagnose import diagnose
from psa_jax.judge.diagnosis import Diagnosis
from psa_jax.judge.eps_sweep import EpsSweep
from psa_jax.judge.evidence import Evidence
from psa_jax.judge.projection import Projection, fit_projection
from psa_jax.judge.refinement import Refined, refine
from psa_jax.judge.slopes import Refinement
from psa_jax.judge.sweep import calibrated_coupling, select_eps
from psa_jax.judge.tune import Tuned, tune

__all__ = [
    "Diagnosis",
    "EpsSweep",
    "Evidence",
    "Projection",
    "Refined",
    "Refinement",
    "Tuned",
    "calibrated_coupling",
    "diagnose",
    "fit_projection",
    "held_out_agreement",
    "refine",
    "select_eps",
    "tune",
]
