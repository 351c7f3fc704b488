"""Scores of many treatments in few columns: what varies of them within treatments, in both modalities."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from psa_jax.data.components import principal_components
from psa_jax.types import Array, Float, KeyArray, host_rng, pytree

LEAST = 1e-10  # of the sum of squares: less is rounding


@pytree
class Components:
    """Few columns in place of one for each treatment; called with scores `[..., d]` it gives `[..., r]`.

    Attributes:
        basis: `[d, r]` orthonormal columns, so that distances are those of what is kept.
        kept: share of the scores' variation within treatments that is kept, in the samples that were looked at.
    """

    basis: Float[Array, "d r"]
    kept: Float[Array, ""]

    def __call__(self, scores: Float[Array, "... d"]) -> Float[Array, "... r"]:
        """The scores in few columns."""
        return jnp.matmul(scores, self.basis.astype(scores.dtype), precision="highest")


def components(key: KeyArray, scores: Sequence[Any], labels: Sequence[Any], number: int) -> list[Components]:
    r"""What is to be kept of the scores of several modalities, the same of all. On the host.

    Their deviations from the treatment's mean, each modality's in units of its own magnitude, are put under each
    other; the `number` principal components are what varies most within treatments, where samples are matched. They are
    turned at random: as columns of scores are dealt into halves that are to predict each other, none may be a direction
    of its own.

    Args:
        key: decides the turn.
        scores: `[h, d]` of some samples of each modality, columns alike.
        labels: `[h]` their treatments.
        number: of columns, less than d.
    """
    sides = [np.asarray(x, np.float32) for x in scores]
    own = [_within(x, np.asarray(t)) for x, t in zip(sides, labels, strict=True)]
    if not any(_varies(x, side) for x, side in zip(own, sides, strict=True)):  # one sample of each treatment, say
        own = [x - x.mean(0) for x in sides]
    used = [x / _size(x) for x, side in zip(own, sides, strict=True) if _varies(x, side)]
    d = sides[0].shape[1]
    number = min(number, d - 1)
    basis = np.eye(d, number)
    if used and (rows := np.concatenate(used)).shape[0] > number:
        basis = principal_components(rows, number)[1]
    turn = np.linalg.qr(host_rng(key).normal(size=(number, number)))[0]
    basis = (basis @ turn).astype(np.float32)
    return [Components(jnp.asarray(basis), jnp.asarray(_kept(x, basis), jnp.float32)) for x in own]


def _within(x: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Deviations from the treatment's mean."""
    _, place, count = np.unique(t, return_inverse=True, return_counts=True)
    order = np.argsort(place, kind="stable")
    total = np.add.reduceat(x[order], np.concatenate([[0], np.cumsum(count)[:-1]]), axis=0)
    return x - (total / count[:, None])[place]


def _size(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def _varies(own: np.ndarray, x: np.ndarray) -> bool:
    return _size(own) ** 2 > LEAST * _size(x) ** 2


def _kept(own: np.ndarray, basis: np.ndarray) -> float:
    size = _size(own) ** 2 * own.shape[1]
    return _size(own @ basis) ** 2 * basis.shape[1] / size if size else 1.0
