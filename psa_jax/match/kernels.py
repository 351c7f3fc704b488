"""Kernels of couplings whose log masses are stored, or are products of stored factors."""

from typing import Any

import jax
import jax.numpy as jnp

from psa_jax.types import Array, Float


def factored(left: Float[Array, "k r"], right: Float[Array, "m r"], args: Float[Array, " r"]) -> Float[Array, "k m"]:
    """Log masses `log sum_k q_ik r_jk / g_k` from log q, log r and log g, by one matrix product of shifted factors."""
    right = right - args[None]
    tops = []
    for side in (left, right):
        top = jax.lax.stop_gradient(side.max(axis=1, keepdims=True))
        tops.append(jnp.where(top != -jnp.inf, top, 0))
    mass = jnp.matmul(jnp.exp(left - tops[0]), jnp.exp(right - tops[1]).T, precision="highest")
    return jnp.where(mass > 0, jnp.log(jnp.where(mass > 0, mass, 1)) + tops[0] + tops[1].T, -jnp.inf)


def stored(left: Array, right: Array, args: Any) -> Array:
    """The kernel of a stored plan: a row's log masses at the columns."""
    return left[:, right]
