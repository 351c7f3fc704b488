"""A batch that samples came in, such as a donor: what classifiers see of it, and what they believe by it.

It changes both what is measured and which treatments were given. A classifier that sees it beside the features predicts
`P(t | x, batch)`, and over `P(t | batch)` that is `P(x | t, batch) / P(x | batch)`: how samples of a batch differ among
each other, whatever was given how often there. `P(t | batch)` is the classifier's own.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psa_jax.data.samples import Modality
from psa_jax.data.source import Source
from psa_jax.propensity.augment import as_tree
from psa_jax.types import Array, Float, Int, KeyArray, pytree, static

MORE_SAMPLES, STEPS = 1.0, 100  # in every batch; of the least squares


@pytree
class Beside:
    """A random change of the first `width` features only: those beside them tell the batch, of which there is no doubt.

    Attributes:
        augment: of the features.
        width: static.
    """

    augment: Any
    width: int = static()

    def __call__(self, key: KeyArray, x: Array, /) -> Array:
        """Changes a batch `[n, width + B]`."""
        return jnp.concatenate([self.augment(key, x[:, : self.width]), x[:, self.width :]], axis=1)


def batches_of(name: str, modality: Modality) -> Int[Array, " B"] | None:
    """The codes of the batches that a modality has, or None. Host only.

    A `ValueError` if its features are no vectors, or the batch tells the treatment.
    """
    if modality.batch is None:
        return None
    if modality.x.ndim != 2:
        raise ValueError(
            f"modality {name}: batch: expected vector features [n, d], beside which classifiers see the batch, got "
            f"shape {tuple(modality.x.shape)}"
        )
    batch, t = np.asarray(modality.batch), np.asarray(modality.t)
    found = np.unique(batch)
    if found.size > 1 and np.unique(np.stack([batch, t], axis=1), axis=0).shape[0] == found.size:
        raise ValueError(
            f"modality {name}: batch: expected batches of several treatments, got {found.size} of one treatment each: "
            "what was given and what it came in cannot be told apart"
        )
    return jnp.asarray(found, jnp.int32)


def beside(
    x: Float[Array, "n ..."] | Source, batch: Int[Array, " n"] | None, batches: Int[Array, " B"] | None
) -> Float[Array, "n ..."] | Source:
    """Features, and for each of the batches a column that is one for its samples; those of no such batch have zeros."""
    if batches is None:
        return x
    batch = jnp.full(x.shape[0], -1) if batch is None else batch
    columns = (batch[:, None] == batches[None]).astype(x.dtype)
    return x.beside(columns) if isinstance(x, Source) else jnp.concatenate([x, columns], axis=1)


def augment_beside(augment: Any, width: int) -> Any:
    """The same change, or several, of the first `width` features only."""
    if isinstance(augment, tuple):
        return tuple(augment_beside(one, width) for one in augment)
    return None if augment is None else Beside(as_tree(augment), width)


def row_of(batch: Int[Array, " n"] | None, batches: Int[Array, " B"], n: int) -> Int[Array, " n"]:
    """The place of each sample's batch among `batches`; `B` where it is none of them."""
    if batch is None:
        return jnp.full(n, batches.shape[0])
    same = batch[:, None] == batches[None]
    return jnp.where(same.any(1), same.argmax(1), batches.shape[0])


@jax.jit
def log_prior_given(
    logits: Float[Array, "n K"],
    t: Int[Array, " n"],
    batch: Int[Array, " n"] | None,
    batches: Int[Array, " B"],
    overall: Float[Array, " K"],
) -> Float[Array, "rows K"]:
    """What a classifier believes of the treatments by the batch alone, `[B, K]`, and the frequencies overall.

    Were it perfect these would be the frequencies in each batch. But of a batch it knows as much as it has learnt, and
    to divide out more than that would put the batch into the scores instead. So its logits, of samples that it has not
    trained on, are split by least squares into a part of the treatment, a part of the batch, and a rest; the part of
    the batch (shrunk as if every batch had one sample more without any) is added to the overall log frequencies.

    Args:
        logits: calibrated, of samples that were held out.
        t: their treatments.
        batch: their batches.
        batches: the batches that there are.
        overall: log frequencies.
    """
    rows, number = row_of(batch, batches, t.shape[0]), batches.shape[0]
    count = jnp.zeros((number + 1, 1), logits.dtype).at[rows].add(1)
    count_t = jnp.zeros((logits.shape[1], 1), logits.dtype).at[t].add(1)

    def step(_: Array, effect: Array) -> Array:
        own = jnp.zeros_like(logits, shape=(logits.shape[1],) * 2).at[t].add(logits - effect[rows])
        rest = logits - (own / jnp.maximum(count_t, 1))[t]
        found = jnp.zeros_like(effect).at[rows].add(rest) / (count + MORE_SAMPLES)
        return found.at[number].set(0)

    effect = jax.lax.fori_loop(0, STEPS, step, jnp.zeros_like(logits, shape=(number + 1, logits.shape[1])))
    return overall[None].astype(logits.dtype) + effect
