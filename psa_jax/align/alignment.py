"""What an alignment is: its coupling and everything it came from."""

import dataclasses
import importlib
import math
import os
from typing import Any

import jax.numpy as jnp
import numpy as np

from psa_jax.align.new import (
    Prediction,
    checked_batch,
    dense,
    drawn,
    matched_codes,
    partners,
    predicted,
    project_source,
    weighed,
)
from psa_jax.align.told import facts, table
from psa_jax.arguments import numbers
from psa_jax.coupling.blocked import Blocked
from psa_jax.coupling.coupling import Coupling
from psa_jax.data.groups import Groups
from psa_jax.data.source import Source, reading
from psa_jax.data.strata import Strata
from psa_jax.judge.projection import Projection
from psa_jax.judge.slopes import Refinement
from psa_jax.judge.verdict import verdict
from psa_jax.match.extend import extend
from psa_jax.metrics.pairs import project
from psa_jax.propensity.batches import row_of
from psa_jax.propensity.calibration import Calibration
from psa_jax.propensity.loop import Fitted
from psa_jax.propensity.scorer import Scorer
from psa_jax.types import Array, Bool, Float, Int, KeyArray, float_dtype, pytree, static

FILE = "alignment.npz"
SIDED = ("scores", "fitted", "calibration", "member_scores", "scorer", "refined")  # with one of each modality


class AlignmentWarning(UserWarning):
    """Something about an alignment that its user should know; the alignment's `info` has it in numbers."""


@pytree
class Alignment:
    """What `align` returns.

    Attributes:
        coupling: which column each row may belong to; ask it (`apply`, `sample`, `T`, `info`, ...).
        groups: the plan of which treatments were matched.
        scores_a: propensity scores `[n, d]` of modality a, refined by those of modality b where `refined_a` says so; d
            treatments that both modalities have, or components of those of many (`scorer_a.components`).
        scores_b: propensity scores `[m, d]` of modality b.
        fitted_a: the classifier of modality a; every leaf has leading axes `[members]` and, without a query, `[folds]`.
        fitted_b: the classifier of modality b.
        calibration_a: its calibration.
        calibration_b: its calibration.
        member_scores_a: `[members, n, d]` scores of each classifier of modality a, for `calibrated_coupling`.
        member_scores_b: `[members, m, d]` the same of modality b.
        scorer_a: how logits of modality a become scores; None in an alignment made by hand.
        scorer_b: the same of modality b.
        names: static; the names of the treatments, or None.
        projection: what `project` believes; None in an alignment made by hand.
        refined_a: how scores of modality a were refined by the other's (see `psa.refine`); None where they were not.
        refined_b: the same of modality b.
        strata: static; the treatment and the stratum of each code, as the data have them, or None.
        batches: static; the names of the codes of batches, as the data have them, or None.
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
    names: tuple[str, ...] | None = static(default=None)
    projection: Projection | None = None
    refined_a: Refinement | None = None
    refined_b: Refinement | None = None
    strata: Strata | None = static(default=None)
    batches: tuple[str, ...] | None = static(default=None)

    @property
    def treatments(self) -> tuple[str, ...]:
        """The names of the treatments, which classifiers predict; their codes where they have none."""
        if self.strata is not None:
            return self.strata.treatments
        return self.names or tuple(map(str, range(self.groups.num_treatments)))

    @property
    def T(self) -> "Alignment":
        """The same with the modalities exchanged; `alignment.T.project(data.a.x)` are values of a for samples of b."""
        exchanged = {f"{name}_{x}": getattr(self, f"{name}_{y}") for name in SIDED for x, y in ("ab", "ba")}
        projection = None if self.projection is None else self.projection.T
        return dataclasses.replace(
            self, coupling=self.coupling.T, groups=self.groups.T, projection=projection, **exchanged
        )

    def project(
        self,
        y: Float[Array, "m ..."] | Source,
        *,
        x: Float[Array, "k ..."] | Source | None = None,
        t: Int[Array, " k"] | None = None,
        batch: Int[Array, " k"] | None = None,
    ) -> Float[Array, "n ..."]:
        """What values of b are to be expected for each sample of a: `E[y | i]`, as far as labels let it be believed.

        The projection through a coupling smooth enough for averages, shrunk toward the treatment's mean by how much of
        its deviation held-out scores confirm (`Projection`). The treatment's mean itself where there is no evidence
        (`print(alignment)` says where). `coupling.apply(y)` believes all of the law of pairs instead, and is on average
        further from the truth than the mean on most data. For `fit_predictor(loss="barycentric")`, imputed values and
        plots this is the one to take.

        Args:
            y: `[m, ...]` values of the samples of b that were aligned, such as `data.b.x`; may be sparse, a table, or a
                `psa.source`, whose values are read treatment by treatment (not inside `jit`).
            x: `[k, ...]` new samples of a, to project for instead of those that were aligned; `sinkhorn` only.
            t: `[k]` their treatments.
            batch: `[k]` their batches, see `score_a`.

        Returns:
            `[n, ...]`, or `[k, ...]`. NaN for samples without a partner: those whose treatment b does not have, or
            that a matcher such as `assignment` leaves over. Open to `jit` and `grad` in `y`.

        Raises:
            ValueError: an alignment made by hand, `y` of another length, new samples without treatments.
        """
        law = self._law()
        if (x is None) != (t is None):
            raise ValueError("x, t: expected features and treatments of new samples, got only one of them")
        if x is not None:
            law = extend(law, self.score_a(x, batch), t)
        y = y if isinstance(y, Source) else numbers("y", dense(y))
        if y.ndim < 1 or y.shape[0] != law.shape[1]:
            raise ValueError(f"y: expected {law.shape[1]} values, one for each sample of b, got shape {y.shape}")
        if isinstance(y, Source):
            with reading(("y", y)) as wait:
                return wait(project_source(law, y))
        out = project(law, y.reshape(y.shape[0], math.prod(y.shape[1:])).astype(float_dtype(y)))
        return out.reshape(law.shape[0], *y.shape[1:])

    def predict(self, x: Any, t: Any = None, *, y: Any, batch: Any = None) -> Prediction:
        """What to expect of `y` for new samples of a, also of those whose treatment is not known. On the host.

        As `project(y, x=x, t=t)`. A sample without a treatment, or with one that b does not have, is projected within
        each treatment that both have, and these are averaged by its calibrated propensities.

        Args:
            x: `[k, ...]` new samples of a, prepared as those that were aligned; may be sparse or a table.
            t: `[k]` their treatments, -1 where not known; None for all. Of stratified data the codes of `strata`, or
                `[k, 2]` treatment and stratum, each -1 where not known: of several strata the projections are
                averaged, by how many samples of the treatment each has.
            y: `[m, ...]` values of the samples of b that were aligned; may be sparse or a table.
            batch: `[k]` their batches, see `score_a`.

        Returns:
            Mean, deviation, which samples were `mixed`, and which have a `new_batch`. NaN for samples too far from all
            that was aligned.

        Raises:
            ValueError: an alignment made by hand, or by another matcher than `sinkhorn`; other features, `y` or `t` of
                another length, treatments that do not exist.
        """
        law = self._law()
        x, y = numbers("x", dense(x)), y.tocsr() if hasattr(y, "tocsr") else np.asarray(numbers("y", dense(y)))
        if y.ndim < 1 or y.shape[0] != law.shape[1]:
            raise ValueError(f"y: expected {law.shape[1]} values, one for each sample of b, got shape {y.shape}")
        t, weights, treatments = self._treatments(x, t, batch)
        flat = y if y.ndim == 2 else y.reshape(y.shape[0], math.prod(y.shape[1:]))
        mean, std = predicted(law, self.score_a(x, batch), weights, treatments, t, flat)
        shape = (x.shape[0], *y.shape[1:])
        moments = jnp.asarray(mean).reshape(shape), jnp.asarray(std).reshape(shape)
        return Prediction(*moments, jnp.asarray(t < 0), self.new_batch(x.shape[0], batch))

    def new_batch(self, k: int, batch: Any = None) -> Bool[Array, " k"] | None:
        """Which of `k` new samples of a have a batch that classifiers have not seen, or none; None without batches."""
        seen = None if self.scorer_a is None else self.scorer_a.batches
        return None if seen is None else row_of(checked_batch(batch, k), seen, k) == seen.shape[0]

    def partners(self, x: Any, t: Any = None, *, k: int = 5, batch: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """The `k` most probable partners of new samples of a, by the law of pairs; arguments and errors as `predict`.

        Returns:
            Probabilities and samples of b `[n, k]`; 0 and -1 where there are fewer.
        """
        if not isinstance(k, int | np.integer) or isinstance(k, bool) or k < 1:
            raise ValueError(f"k: expected an integer of at least 1, got {k!r}")
        return partners(*self._new(x, t, batch), k)

    def sample(self, key: KeyArray, x: Any, t: Any = None, *, batch: Any = None) -> np.ndarray:
        """A partner for each new sample of a, drawn by the law of pairs; arguments and errors as `predict`.

        Drawn values spread as those of b do, where `predict` has means (those of `project`, whose law is smoother and
        believed only as far as labels confirm it): take these for what is said of a whole population (distances of
        distributions, shares above a level), `predict` for each sample alone. Of a sample without a treatment that is
        drawn first, by its calibrated propensities, of those in which it has a partner.

        Args:
            key: a typed PRNG key; the same key draws the same partners.
            x: `[k, ...]` new samples of a.
            t: `[k]` their treatments, -1 where not known; None for all.
            batch: `[k]` their batches, see `score_a`.

        Returns:
            Samples of b `[k]`, -1 for those that have no partner.
        """
        return drawn(key, *self._new(x, t, batch))

    def _new(self, x: Any, t: Any, batch: Any) -> tuple[Blocked, Array, np.ndarray, np.ndarray, np.ndarray]:
        """The law of pairs, and of new samples scores and what `_treatments` tells, as `new.partners` takes them."""
        if not isinstance(self.coupling, Blocked):
            raise ValueError("coupling: expected one as `align` makes it, got one of a single treatment")
        x = numbers("x", dense(x))
        t, weights, treatments = self._treatments(x, t, batch)
        return self.coupling, self.score_a(x, batch), weights, treatments, t

    def _law(self) -> Blocked:
        if self.projection is None:
            raise ValueError("projection: expected one, as `align` makes it, got None")
        return self.projection.law

    def _treatments(self, x: Array, t: Any, batch: Any = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Codes of new samples, -1 where none was matched; propensities `[k, T]` of the treatments `[T]` that were."""
        if self.scorer_a is None:
            raise ValueError("scorer_a: expected one, as `align` makes it, got None")
        sizes = np.asarray(self.groups.sizes_a), np.asarray(self.groups.sizes_b)
        found = matched_codes(t, x.shape[0], np.minimum(*sizes), self.strata)
        batch, axes = checked_batch(batch, x.shape[0]), self.fitted_a.history.best_epoch.ndim
        chance = self.scorer_a.propensities(self.fitted_a.params, x, axes, batch)
        return found, *weighed(np.asarray(chance), np.asarray(self.scorer_a.treatments), t, *sizes, self.strata)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the alignment into a folder, which is made where there is none; see `psa_jax.io.save_alignment`."""
        os.makedirs(folder, exist_ok=True)
        _files().save_alignment(os.path.join(folder, FILE), self)

    @staticmethod
    def load(folder: str | os.PathLike[str]) -> "Alignment":
        """Reads what `save` wrote. (Models and matchers of one's own are given to `psa_jax.io.load_alignment`.)"""
        return _files().load_alignment(os.path.join(folder, FILE))

    def score_a(self, x: Float[Array, "k ..."] | Source, batch: Int[Array, " k"] | None = None) -> Float[Array, "k d"]:
        """Scores new samples of modality a `[k, ...]`, for `extend`. Open to `jit` and `grad`.

        Every classifier has a say: logits are averaged over members and, without a query, over folds (the aligned
        samples themselves were scored by the one fold that had not seen them).

        Args:
            x: `[k, ...]` new samples, prepared as those that were aligned, or a `psa.source` of them.
            batch: `[k]` codes of their batches, as in the data, where these had some. Samples of another one, -1 say,
                and all if this is None, are scored as of no batch, by the treatments' frequencies overall.

        Raises:
            ValueError: other features, batches that are none, or an alignment without a scorer.
        """
        return _score("scorer_a", self.scorer_a, self.fitted_a, self.refined_a, x, batch)

    def score_b(self, x: Float[Array, "k ..."] | Source, batch: Int[Array, " k"] | None = None) -> Float[Array, "k d"]:
        """Scores new samples of modality b, as `score_a`."""
        return _score("scorer_b", self.scorer_b, self.fitted_b, self.refined_b, x, batch)

    def verdict(self) -> list[tuple[str, str]]:
        """What to believe, in words that name treatments: the evidence, how much `project` believes, what could help.

        The end of `summary`; empty while traced, and for an alignment made by hand.
        """
        return [] if self.projection is None else verdict(self.projection, self.groups, self.names)

    def summary(self) -> str:
        """What was aligned and how that went, in a few lines: sizes, what was matched, treatments by name."""
        head, *facts = self._facts()
        return "\n".join([head[1], *(f"  {name}: {text}" for name, text in facts)])

    def __repr__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        """A small table, for notebooks."""
        return table(self._facts())

    def _facts(self) -> list[tuple[str, str]]:
        sides = (
            (self.fitted_a, self.calibration_a, self.scorer_a),
            (self.fitted_b, self.calibration_b, self.scorer_b),
        )
        return facts(self.coupling, self.groups, sides, self.names, self.strata) + self.verdict()


def _files() -> Any:
    """The room of files, which stands above this one and is entered only to read or write."""
    return importlib.import_module("psa_jax.io.alignments")


def _score(name: str, scorer: Scorer | None, fitted: Fitted, refined: Refinement | None, x: Any, batch: Any) -> Array:
    if scorer is None:
        raise ValueError(f"{name}: expected one, as `align` makes it, got None")
    x = x if isinstance(x, Source) else numbers("x", dense(x))
    batch = checked_batch(batch, x.shape[0])
    if batch is not None and scorer.batches is None:
        raise ValueError("batch: expected none, as the samples that were aligned had none, got some")
    with reading(("x", x)) as wait:
        u = scorer.score(fitted.params, x, fitted.history.best_epoch.ndim, batch)
        return wait(u if refined is None else refined(u, x))
