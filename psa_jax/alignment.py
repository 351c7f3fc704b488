"""What an alignment is: its coupling and everything it came from."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from psa_jax.blocked import Blocked
from psa_jax.coupling import Coupling
from psa_jax.groups import Groups
from psa_jax.loop import Fitted
from psa_jax.model import Model, logits
from psa_jax.score import from_logits
from psa_jax.types import Array, Float, Int, PyTree, pytree, static


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
class Scorer:
    """What turns a classifier's logits into scores; with `Fitted.params` it scores new samples.

    Attributes:
        temperature: what the logits are divided by.
        log_prior: `[K]` log treatment frequencies that are subtracted, or None.
        treatments: `[d]` the treatments whose columns are kept.
        features: static; the shape of one sample.
        dtype: static; the name of the features' type.
        model: static; the classifier.
        transform: static; see `propensity`.
    """

    temperature: Float[Array, ""]
    log_prior: Float[Array, " K"] | None
    treatments: Int[Array, " d"]
    features: tuple[int, ...] = static()
    dtype: str = static()
    model: Model = static()
    transform: Callable[[Any], Any] = static()

    def convert(self, out: Float[Array, "n K"]) -> Float[Array, "n d"]:
        """Scores of logits."""
        return from_logits(
            out,
            temperature=self.temperature,
            log_prior=self.log_prior,
            transform=self.transform,
            treatments=self.treatments,
        )

    @functools.partial(jax.jit, static_argnames="axes")
    def score(self, params: PyTree, x: Float[Array, "n ..."], axes: int) -> Float[Array, "n d"]:
        """Scores of samples by the mean logits of classifiers, whose `params` have `axes` leading axes."""
        if x.shape[1:] != self.features:
            raise ValueError(f"x: expected features {self.features}, got {x.shape[1:]}")
        params = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[axes:]), params)
        return self.convert(jax.lax.map(lambda one: logits(self.model, one, x), params).mean(0))


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
        scorer_a: how logits of modality a become scores; None in an alignment made by hand.
        scorer_b: the same of modality b.
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
    scorer_a: Scorer | None = None
    scorer_b: Scorer | None = None

    def score_a(self, x: Float[Array, "k ..."]) -> Float[Array, "k d"]:
        """Scores new samples of modality a `[k, ...]`, for `extend`. Open to `jit` and `grad`.

        Every classifier has a say: logits are averaged over members and, without a query, over folds (the aligned
        samples themselves were scored by the one fold that had not seen them).

        Raises:
            ValueError: other features, or an alignment without a scorer.
        """
        return _score("scorer_a", self.scorer_a, self.fitted_a, x)

    def score_b(self, x: Float[Array, "k ..."]) -> Float[Array, "k d"]:
        """Scores new samples of modality b, as `score_a`."""
        return _score("scorer_b", self.scorer_b, self.fitted_b, x)


def _score(name: str, scorer: Scorer | None, fitted: Fitted, x: Array) -> Array:
    if scorer is None:
        raise ValueError(f"{name}: expected one, as `align` makes it, got None")
    return scorer.score(fitted.params, jnp.asarray(x), fitted.history.best_epoch.ndim)
