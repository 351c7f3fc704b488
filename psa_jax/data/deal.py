"""Treatments dealt to devices."""

import jax.numpy as jnp
import numpy as np

from psa_jax.data.groups import Bucket, Groups
from psa_jax.types import Array


def deal(groups: Groups, devices: int) -> Groups:
    """The same treatments in buckets that so many devices can share evenly.

    Of each bucket as many blocks as the devices divide are dealt, the longest first and there and back, so that every
    device has about as much work; they stand in the order of the devices. The few that are left, the largest, make a
    bucket of their own, to be solved by all devices together: padded to a width that the devices divide. Shapes alone
    decide how many are left, so that it composes with `jit`. A plan that was dealt stays as it is.

    Args:
        groups: the plan.
        devices: static.

    Example:
        >>> from psa_jax.data.groups import group
        >>> t = np.repeat([0, 1, 2, 3, 4], 3)
        >>> [bucket.rows.shape for bucket in deal(group(t, t, 5), 2).buckets]
        [(1, 4), (4, 3)]
    """
    if devices == 1:
        return groups
    n, m = groups.shape
    buckets = []
    for bucket in groups.buckets:
        number = bucket.treatment.shape[0]
        order = _longest_first(bucket, groups)
        left = number % devices
        if left:
            few = _some(bucket, order[:left])
            buckets.append(Bucket(_widened(few.rows, devices, n), _widened(few.cols, devices, m), few.treatment))
        if number > left:
            buckets.append(_some(bucket, order[left:][_there_and_back(number - left, devices)]))
    return Groups(tuple(buckets), groups.sizes_a, groups.sizes_b, groups.shape)


def _longest_first(bucket: Bucket, groups: Groups) -> Array:
    """Places of blocks by their number of pairs, equal ones by their treatment."""
    a, b = (sizes[bucket.treatment].astype(jnp.float32) for sizes in (groups.sizes_a, groups.sizes_b))
    return jnp.lexsort((bucket.treatment, -a * b))


def _there_and_back(number: int, devices: int) -> np.ndarray:
    """Which of `number` things, the longest first, stand where: those of the first device, of the second, ..."""
    rounds = np.arange(number).reshape(-1, devices)
    rounds[1::2] = rounds[1::2, ::-1]
    return rounds.T.ravel()


def _some(bucket: Bucket, places: Array) -> Bucket:
    return Bucket(bucket.rows[places], bucket.cols[places], bucket.treatment[places])


def _widened(ids: Array, devices: int, none: int) -> Array:
    return jnp.pad(ids, ((0, 0), (0, -ids.shape[1] % devices)), constant_values=none)
