"""A few samples to look at where all would be too many: of the same treatments in every modality."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from psa_jax.types import KeyArray, host_rng

FEW = 16  # of a treatment, so that they say something of what varies within it


def look(key: KeyArray, labels: Sequence[Any], most: int) -> list[np.ndarray]:
    """The numbers, in order, of about `most` samples of each modality at most. On the host.

    Of every treatment as many as fit, and at least 16 where it has them: then of some treatments only, drawn at random
    and the same in all modalities, those that all have first.

    Args:
        key: decides which.
        labels: `[n]` codes of the treatments of each modality.
        most: of each modality.

    Example:
        >>> import jax
        >>> t = np.arange(4000) % 100
        >>> [rows.size for rows in look(jax.random.key(0), [t, t[:600]], 320)]
        [320, 120]
    """
    rng, labels = host_rng(key), [np.asarray(t) for t in labels]
    treatments = rng.permutation(np.unique(np.concatenate(labels)))
    each = max(FEW, most // max(1, treatments.size))
    number = max(1, most // each)
    lacking = sum(~np.isin(treatments, t) for t in labels)
    chosen = treatments[np.argsort(lacking, kind="stable")][:number]
    own = [chosen if np.isin(t, chosen).any() else rng.permutation(np.unique(t))[:number] for t in labels]
    return [_some(rng, t, some, each) for t, some in zip(labels, own, strict=True)]


def _some(rng: np.random.Generator, t: np.ndarray, chosen: np.ndarray, each: int) -> np.ndarray:
    """At most `each` samples of the chosen treatments."""
    rows = rng.permutation(np.flatnonzero(np.isin(t, chosen)))
    rows = rows[np.argsort(t[rows], kind="stable")]
    first = np.searchsorted(t[rows], t[rows])
    return np.sort(rows[np.arange(rows.size) - first < each])
