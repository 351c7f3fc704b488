"""A batch that samples came in, such as a donor: what classifiers see of it, and how often treatments were given in it.

It changes both what is measured and which treatments were given. A classifier that sees it beside the features predicts
`P(t | x, batch)`, and over `P(t | batch)` that is `P(x | t, batch) / P(x | batch)`: how samples of a batch differ among
each other, whatever was given how often there.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psa_jax.data.codes import count_codes
from psa_jax.data.samples import Modality
from psa_jax.propensity.augment import as_tree
from psa_jax.propensity.scores import log_prior
from psa_jax.types import Array, Float, Int, KeyArray, pytree, static

PRIOR_SAMPLES = 1.0  # as if every batch had so many more, with treatments as they are overall


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
    """The codes of the batches that a modality has, or None; a `ValueError` if its features are no vectors. Host."""
    if modality.batch is None:
        return None
    if modality.x.ndim != 2:
        raise ValueError(
            f"modality {name}: batch: expected vector features [n, d], beside which classifiers see the batch, got "
            f"shape {tuple(modality.x.shape)}"
        )
    return jnp.asarray(np.unique(np.asarray(modality.batch)), jnp.int32)


def beside(
    x: Float[Array, "n d"], batch: Int[Array, " n"] | None, batches: Int[Array, " B"] | None
) -> Float[Array, "n c"]:
    """Features, and for each of the batches a column that is one for its samples; those of no such batch have zeros."""
    if batches is None:
        return x
    batch = jnp.full(x.shape[0], -1) if batch is None else batch
    return jnp.concatenate([x, (batch[:, None] == batches[None]).astype(x.dtype)], axis=1)


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


@functools.partial(jax.jit, static_argnames="num_treatments")
def log_prior_given(
    t: Int[Array, " n"], batch: Int[Array, " n"], batches: Int[Array, " B"], num_treatments: int
) -> Float[Array, "rows K"]:
    """Log frequencies of the treatments in each batch, `[B, K]`, and those overall in one row more.

    A treatment that a batch lacks has a finite one: every batch counts one sample more, with all treatments in it as
    often as they are overall.
    """
    overall = log_prior(t, num_treatments)
    rows = row_of(batch, batches, t.shape[0])
    counts = jax.vmap(lambda row: count_codes(jnp.where(rows == row, t, -1), num_treatments))(
        jnp.arange(batches.shape[0])
    )
    more = PRIOR_SAMPLES * jnp.exp(overall)[None]
    table = jnp.log((counts + more) / (counts + more).sum(1, keepdims=True))
    return jnp.concatenate([table, overall[None]])
