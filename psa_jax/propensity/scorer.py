"""What turns a classifier's logits into scores, kept to score new samples."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psa_jax.data.source import Source, map_parts
from psa_jax.propensity.batches import beside, row_of
from psa_jax.propensity.components import Components
from psa_jax.propensity.model import CHUNK, Model, member_logits
from psa_jax.propensity.scores import RelativeTo, Tempered, from_logits
from psa_jax.types import Array, Float, Int, PyTree, pytree, static


@pytree
class Scorer:
    """What turns a classifier's logits into scores; with `Fitted.params` it scores new samples.

    Attributes:
        temperature: what the logits are divided by.
        log_prior: `[K]` log treatment frequencies that are subtracted, or None; with batches `[B + 1, K]`, what
            the classifier believes by each of them, and those overall.
        treatments: `[d]` the treatments whose columns are kept.
        features: static; the shape of one sample.
        dtype: static; the name of the features' type.
        transform: see `propensity`; a pytree (`jax.tree_util.Partial` of a function).
        model: static; the classifier.
        batches: `[B]` codes of the batches that the classifier has seen, or None. Samples of any other, or of none that
            is known, are scored without one, by the overall frequencies.
        weights: `[members]` how much each classifier counts (all its folds alike), or None: all count alike.
        components: what is kept of the scores of many treatments, or None: every one has a column.
    """

    temperature: Float[Array, ""]
    log_prior: Float[Array, "... K"] | None
    treatments: Int[Array, " d"]
    transform: Callable[[Any], Any]
    features: tuple[int, ...] = static()
    dtype: str = static()
    model: Model = static()
    batches: Int[Array, " B"] | None = None
    weights: Float[Array, " members"] | None = None
    components: Components | None = None

    @property
    def is_open(self) -> bool:
        """Whether scores are those of `tempered()` before its temperature is settled."""
        return isinstance(self.transform, Tempered) and self.transform.temperature is None

    @property
    def columns(self) -> np.ndarray:
        """The treatments that scores are of: those that are kept, without a control they are relative to."""
        kept = np.asarray(self.treatments)
        return kept[kept != np.asarray(self.transform.code)] if isinstance(self.transform, RelativeTo) else kept

    def convert(self, out: Float[Array, "n K"], batch: Int[Array, " n"] | None = None) -> Float[Array, "n d"]:
        """Scores of logits, of samples of these batches."""
        prior = self.log_prior
        if self.batches is not None and prior is not None:
            prior = prior[row_of(batch, self.batches, out.shape[0])]
        scores = from_logits(
            out,
            temperature=self.temperature,
            log_prior=prior,
            transform=self.transform,
            treatments=self.treatments,
        )
        return scores if self.components is None else self.components(scores)

    @functools.partial(jax.jit, static_argnames="axes")
    def score(
        self, params: PyTree, x: Float[Array, "n ..."] | Source, axes: int, batch: Int[Array, " n"] | None = None
    ) -> Float[Array, "n d"]:
        """Scores of samples by the mean logits of classifiers, whose `params` have `axes` leading axes."""
        return self._each(params, x, axes, batch, self.convert)

    @functools.partial(jax.jit, static_argnames="axes")
    def propensities(
        self, params: PyTree, x: Float[Array, "n ..."] | Source, axes: int, batch: Int[Array, " n"] | None = None
    ) -> Float[Array, "n d"]:
        """Calibrated probabilities of the treatments that are kept, given that it is one of them; as `score`."""

        def convert(out: Array, _: Array | None) -> Array:
            return jax.nn.softmax(out[:, self.treatments] / self.temperature.astype(out.dtype))

        return self._each(params, x, axes, batch, convert)

    def _each(self, params: PyTree, x: Array | Source, axes: int, batch: Array | None, convert: Any) -> Array:
        """`convert(logits [k, K], batch [k])` of the mean logits of all classifiers, a few samples at a time."""
        if x.shape[1:] != self.features:
            raise ValueError(f"x: expected features {self.features}, got {x.shape[1:]}")
        params = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[axes:]), params)
        number, weights = jax.tree.leaves(params)[0].shape[0], self.weights
        weights = None if weights is None else jnp.repeat(weights, number // weights.shape[0])

        def part(ids: Array, rows: Array) -> Array:
            found = member_logits(self.model, params, rows)
            return convert(averaged(found, weights), None if batch is None else batch[ids])

        return map_parts(part, beside(x, batch, self.batches), CHUNK)


def averaged(members: Float[Array, "members n K"], weights: Float[Array, " members"] | None) -> Float[Array, "n K"]:
    """The mean over members that count."""
    if weights is None:
        return members.mean(0)
    weights = weights.astype(members.dtype)
    return jnp.sum(weights[:, None, None] * members, axis=0) / weights.sum()
