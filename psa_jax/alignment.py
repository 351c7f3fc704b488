"""What an alignment is: its coupling and everything it came from."""

from psa_jax.blocked import Blocked
from psa_jax.coupling import Coupling
from psa_jax.groups import Groups
from psa_jax.loop import Fitted
from psa_jax.types import Array, Float, pytree


class AlignmentWarning(UserWarning):
    """Something about an alignment that its user should know; the alignment's `info` has it in numbers."""


@pytree
class Calibration:
    """How far a classifier's confidence can be trusted, on samples that it was not trained on.

    Attributes:
        temperature: what its logits were divided by.
        cross_entropy: mean `-log P(t | x)` after that, in nats.
        accuracy: share of samples whose most probable treatment is theirs.
        error_before: expected calibration error of the raw logits.
        error_after: the same after division by the temperature.
        confidence: `[bins]` mean confidence of the samples in each bin, 0 where empty, after division.
        frequency: `[bins]` their accuracy.
        count: `[bins]` their number.
    """

    temperature: Float[Array, ""]
    cross_entropy: Float[Array, ""]
    accuracy: Float[Array, ""]
    error_before: Float[Array, ""]
    error_after: Float[Array, ""]
    confidence: Float[Array, " bins"]
    frequency: Float[Array, " bins"]
    count: Array


@pytree
class Alignment:
    """What `align` returns.

    Attributes:
        coupling: which column each row may belong to; ask it (`apply`, `sample`, `T`, `info`, ...).
        groups: the plan of which treatments were matched.
        scores_a: propensity scores `[n, d]` of modality a, d the number of treatments both modalities have.
        scores_b: propensity scores `[m, d]` of modality b.
        fitted_a: the classifier of modality a; every leaf has leading axes `[members]` and, without a query, `[folds]`.
        fitted_b: the classifier of modality b.
        calibration_a: its calibration.
        calibration_b: its calibration.
        member_scores_a: `[members, n, d]` scores of each classifier of modality a, for `calibrated_coupling`.
        member_scores_b: `[members, m, d]` the same of modality b.
    """

    coupling: Blocked | Coupling
    groups: Groups
    scores_a: Float[Array, "n d"]
    scores_b: Float[Array, "m d"]
    fitted_a: Fitted
    fitted_b: Fitted
    calibration_a: Calibration
    calibration_b: Calibration
    member_scores_a: Float[Array, "members n d"]
    member_scores_b: Float[Array, "members m d"]
