"""What a coupling's kernel may know beside its log masses: its transpose, sums over a row, what it is called."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from psa_jax.types import Array, Float


@dataclasses.dataclass(frozen=True)
class Masked:
    """A kernel without mass where either side's weight is zero; its sides are `(inner side, weight > 0)`."""

    kernel: Callable

    def __call__(self, left: Any, right: Any, args: Any) -> Array:
        """The inner log mass where both sides are real, `-inf` elsewhere, with zero gradients there."""
        (left, real_left), (right, real_right) = left, right
        return jnp.where(real_left[:, None] & real_right[None], self.kernel(left, right, args), -jnp.inf)

    @property
    def across(self) -> "Masked | None":
        """The kernel of the sides exchanged, where the inner one has such."""
        inner = across(self.kernel)
        return None if inner is None else Masked(inner)

    def sums(self, left: Any, right: Any, args: Any, y: Array) -> Array | None:
        """Those of the inner kernel, where it knows them."""
        (left, real_left), (right, real_right) = left, right
        found = sums(self.kernel, left, right, args, jnp.where(real_right[:, None], y, 0))
        return None if found is None else jnp.where(real_left[:, None], found, 0)


def across(kernel: Callable) -> Callable | None:
    """The kernel `k'` with `k'(right, left, args) = k(left, right, args).T`, of kernels that know theirs."""
    return getattr(kernel, "across", None)


def sums(kernel: Callable, left: Any, right: Any, args: Any, y: Float[Array, "m d"]) -> Float[Array, "n d"] | None:
    """`sum_j exp kernel(left_i, right_j) y_j` of kernels that know it without all pairs; None of others.

    Such a kernel is symmetric: the sides may be exchanged.
    """
    known = getattr(kernel, "sums", None)
    return None if known is None else known(left, right, args, y)


def kernel_name(kernel: Any) -> str:
    """What a kernel is called: its function's name, and those of the kernels it wraps."""
    inner = getattr(kernel, "kernel", None)
    name = getattr(kernel, "label", None) or getattr(kernel, "__name__", type(kernel).__name__)
    if inner is None:
        return name
    return kernel_name(inner) if isinstance(kernel, Masked) else f"{name.lower()} {kernel_name(inner)}"
