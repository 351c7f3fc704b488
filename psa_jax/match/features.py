"""Matchers that take features beside scores."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from psa_jax.data.groups import Groups
from psa_jax.match.cost import euclidean, pairwise
from psa_jax.match.gw import fused_gromov_wasserstein
from psa_jax.types import Array, Int


def takes_features(matcher: Callable[..., Any]) -> bool:
    """Whether `align` hands `(scores, features)` of each side to a matcher: to `fused_gromov_wasserstein`, whatever is
    bound to it, and to functions of one's own that say so: `mine.takes_features = True`."""
    while isinstance(matcher, functools.partial):
        matcher = matcher.func
    fused = inspect.unwrap(matcher) is inspect.unwrap(fused_gromov_wasserstein)
    return fused or bool(getattr(matcher, "takes_features", False))


@jax.jit
def with_features(
    u: Array, v: Array, x: Array, y: Array, groups: Groups
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Scores and flat features of both sides; scores in units of their largest distance within a treatment.

    Distances of features are in units of their largest too (`plain_distances`), so that `alpha` weighs like and like.
    """

    def largest(args: tuple[Int[Array, " N"], Int[Array, " M"]]) -> Array:
        rows, cols = args
        a, b = (side.at[ids].get(mode="fill", fill_value=0) for side, ids in ((u, rows), (v, cols)))
        real = (rows < u.shape[0])[:, None] & (cols < v.shape[0])[None]
        return jnp.max(jnp.where(real, pairwise(euclidean, a, b), 0), initial=0)

    each = [jax.lax.map(largest, (bucket.rows, bucket.cols)).max() for bucket in groups.buckets]
    unit = jnp.max(jnp.stack(each)) if each else jnp.ones((), u.dtype)
    unit = jnp.where(unit > 0, unit, 1)
    return (u / unit, x.reshape(x.shape[0], -1)), (v / unit, y.reshape(y.shape[0], -1))
