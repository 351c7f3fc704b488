"""Parts and permutations of unpaired data. Host only."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psa_jax.arguments import checked
from psa_jax.data.codes import members_of
from psa_jax.data.samples import Truth, Unpaired, check_truth, on_host
from psa_jax.data.strata import Strata
from psa_jax.types import Array, KeyArray, host_rng


@checked
def split(key: KeyArray, data: Unpaired, fractions: Sequence[float], truth: Truth | None = None) -> tuple:
    """Splits both modalities into parts, stratified by treatment. Host only.

    Args:
        key: a typed PRNG key.
        data: what to split.
        fractions: the share of every treatment that goes to each part; at most one in all. What is left over of a
            sum below one is in no part. A treatment's only sample goes to the first part.
        truth: when given, true pairs stay together and every part comes with its own truth.

    Returns:
        One `Unpaired` for each fraction, or one `(Unpaired, Truth)` when `truth` is given.

    Raises:
        ValueError: fractions that are not positive or exceed one, invalid data, a truth of another length or
            with pairs of two treatments.

    Example:
        >>> from psa_jax.data.samples import Modality
        >>> data = Unpaired(*2 * [Modality(jnp.ones((10, 2)), jnp.arange(10) % 2)], 2)
        >>> train, test = split(jax.random.key(0), data, (0.6, 0.4))
        >>> train.a.t.size, test.b.t.size
        (6, 4)
    """
    data = on_host(data)
    edges = np.cumsum(np.asarray(fractions, float))
    if not (edges.size and np.all(np.asarray(fractions) > 0) and edges[-1] <= 1 + 1e-6):
        raise ValueError(f"fractions: expected positive numbers with a sum of at most 1, got {tuple(fractions)}")
    edges = np.where(edges > 1 - 1e-6, np.inf, edges)
    key_a, key_b = jax.random.split(key)
    t_a, t_b = np.asarray(data.a.t), np.asarray(data.b.t)
    part_a = np.searchsorted(edges, _rank(key_a, t_a, data.num_treatments), side="right")
    part_b = np.searchsorted(edges, _rank(key_b, t_b, data.num_treatments), side="right")
    if truth is None:
        pair = np.full(t_a.size, -1)
    else:
        pair = np.asarray(truth.pair)
        check_truth(truth, t_a.size, t_b.size, data)
        known = pair >= 0
        free = np.setdiff1d(np.arange(t_b.size), pair[known])
        part_b[free] = np.searchsorted(edges, _rank(key_b, t_b[free], data.num_treatments), side="right")
        part_b[pair[known]] = part_a[known]

    def part(p: int) -> Any:
        rows, cols = np.flatnonzero(part_a == p), np.flatnonzero(part_b == p)
        piece = dataclasses.replace(data, a=data.a.take(rows), b=data.b.take(cols))
        if truth is None:
            return piece
        place = np.full(t_b.size + 1, -1)
        place[cols] = np.arange(cols.size)
        z_a = None if truth.z_a is None else truth.z_a[rows]
        z_b = None if truth.z_b is None else truth.z_b[cols]
        return piece, Truth(jnp.asarray(place[pair[rows]], jnp.int32), z_a, z_b)

    return tuple(part(p) for p in range(len(edges)))


@checked
def permute_treatments(key: KeyArray, data: Unpaired) -> Unpaired:
    """The negative control: the same samples, the labels of each modality permuted among them.

    Nothing ties the modalities together any more, while features and treatment sizes stay. Run the whole pipeline on
    it, with the same settings: `diagnose(key_3, align(key_2, permute_treatments(key_1, data)))` should find no evidence
    in nearly every treatment, and evaluations that use labels no lift over chance. Where it does find some, that is
    how much of the figures on the true labels is the pipeline's own doing.

    Args:
        key: a typed key; each modality gets a permutation of its own, within strata where there are some (one that
            has a single treatment keeps it).
        data: what to permute the labels of.

    Returns:
        Data with the same features.

    Raises:
        ValueError: invalid data, see `validate`.

    Example:
        >>> from psa_jax.data.samples import Modality
        >>> data = Unpaired(*2 * [Modality(jnp.ones((6, 2)), jnp.arange(6) % 2)], 2)
        >>> control = permute_treatments(jax.random.key(0), data)
        >>> jnp.bincount(control.a.t).tolist()
        [3, 3]
    """
    data = on_host(data)
    a, b = (
        dataclasses.replace(side, t=_permuted(k, side.t, data.strata))
        for k, side in zip(jax.random.split(key), (data.a, data.b), strict=True)
    )
    return dataclasses.replace(data, a=a, b=b)


def _permuted(key: KeyArray, t: Array, strata: Strata | None) -> Array:
    """The codes in a random order, each within its stratum."""
    if strata is None or len(strata.names) == 1:
        return jax.random.permutation(key, t)
    place, codes = np.asarray(strata.stratum)[np.asarray(t)], np.asarray(t)
    mixed = codes.copy()
    mixed[np.argsort(place, kind="stable")] = codes[np.lexsort((host_rng(key).random(t.size), place))]
    return jnp.asarray(mixed)


def _rank(key: KeyArray, t: np.ndarray, num_treatments: int) -> np.ndarray:
    """A random order of each treatment's samples as numbers in [0, 1), evenly spaced, with a random offset if many."""
    rng = host_rng(key)
    order, offset = rng.random(t.shape), rng.random(num_treatments)
    rank = np.empty(t.shape, float)
    for code, ids in enumerate(members_of(t, num_treatments)):
        shift = offset[code] if ids.size > 1 else 0
        rank[ids[np.argsort(order[ids], kind="stable")]] = (np.arange(ids.size) + shift) / max(ids.size, 1)
    return rank
