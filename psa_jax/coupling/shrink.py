"""Shrinking a coupling toward what is known without it: the treatment's mean."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from psa_jax.arguments import checked
from psa_jax.coupling.blocked import Blocked
from psa_jax.coupling.coupling import Coupling, log_row_mass
from psa_jax.coupling.kernel import Masked, across
from psa_jax.types import Array, Float, float_dtype


@dataclasses.dataclass(frozen=True)
class Shrunk:
    """A kernel mixed with independence; a side is `(inner side, log mass)`, `args` are `(inner args, weight)`.

    `flipped` says which direction was shrunk: whether rows were those of `right`.
    """

    kernel: Callable
    flipped: bool

    @property
    def across(self) -> "Shrunk | None":
        """The kernel of the sides exchanged, where the inner one has such."""
        inner = across(self.kernel)
        return None if inner is None else Shrunk(inner, self.flipped)

    def __call__(self, left: Any, right: Any, args: Any) -> Array:
        """`log(weight exp(inner) + (1 - weight) exp(left + right))`, `-inf` where the second is."""
        (left, log_left), (right, log_right), (args, weight) = left, right, args
        z = self.kernel(left, right, args)
        base, weight = (log_left[:, None] + log_right[None]).astype(z.dtype), weight.astype(z.dtype)
        real = base != -jnp.inf
        base = jnp.where(real, base, 0)
        # The ratio of the two is at most the number of candidates: it cannot overflow. The mixture is zero only where
        # it underflows at weight 1, so that its log is the inner one.
        mixture = weight * jnp.exp(jnp.where(real, z, 0) - base) + (1 - weight)
        some = mixture != 0
        return jnp.where(real, jnp.where(some, base + jnp.log(jnp.where(some, mixture, 1)), z), -jnp.inf)


@checked
def shrink(coupling: Blocked | Coupling, weight: float | Float[Array, "*treatments"]) -> Any:
    r"""Mixes a coupling with the uniform match: `weight P(j | i) + (1 - weight) / m_i`, m_i the row's candidates.

    The barycentric projection then lies between the treatment's mean (`weight` 0) and the coupling's own (1). Row
    masses stay as they are; rows without a partner stay without one.

    Args:
        coupling: of all samples, or of one treatment (its candidates are then all columns of positive weight).
        weight: in [0, 1]; one number, or `[num_treatments]` for a blocked coupling. Traced.

    Returns:
        A coupling of the same kind, with the same `info`. Differentiable in `weight` and in the coupling; at weight 1
        the gradient in `weight` leaves out columns to which the coupling gives no mass at all.

    Raises:
        ValueError: weights of another shape, or outside [0, 1] if they are known (not traced).

    Example:
        >>> from psa_jax.match import known_pairs
        >>> C = shrink(known_pairs(jnp.array([1, 0]), 2), 0.5)
        >>> bool(jnp.allclose(C.apply(jnp.array([0.0, 4.0])), jnp.array([3.0, 1.0])))
        True

    References:
        James and Stein, Estimation with quadratic loss, 1961, for why; the form is a mixture.
    """
    weight = jnp.asarray(weight, float_dtype(jnp.asarray(weight)))
    if not isinstance(weight, Tracer) and not bool(((weight >= 0) & (weight <= 1)).all()):
        raise ValueError(f"weight: expected numbers in [0, 1], got {weight.tolist()}")
    if isinstance(coupling, Coupling):
        if weight.ndim:
            raise ValueError(f"weight: expected one number for one treatment, got shape {weight.shape}")
        return mix(coupling, weight, jnp.ones(coupling.shape[1], bool))
    number = coupling.info.converged.shape[0]
    if weight.shape not in ((), (number,)):
        raise ValueError(f"weight: expected one number or [{number}], one for each treatment, got {weight.shape}")
    return _shrink_blocks(coupling, jnp.broadcast_to(weight, (number,)))


@jax.jit
def _shrink_blocks(coupling: Blocked, weight: Array) -> Blocked:
    m = coupling.shape[1]
    blocks = tuple(
        dataclasses.replace(
            block,
            coupling=jax.lax.map(lambda args: mix(*args), (block.coupling, weight[block.treatment], block.cols < m)),
        )
        for block in coupling.blocks
    )
    return dataclasses.replace(coupling, blocks=blocks)


@jax.jit
def mix(coupling: Coupling, weight: Array, candidates: Array) -> Coupling:
    """`shrink` of one treatment, whose candidates are these columns as far as they have weight."""
    kernel, columns = coupling.kernel, coupling.left if coupling.flipped else coupling.right
    while isinstance(kernel, Shrunk):
        kernel, columns = kernel.kernel, columns[0]
    if isinstance(kernel, Masked):
        candidates = candidates & columns[1]
    rows = log_row_mass(coupling)
    count = jnp.maximum(candidates.sum(), 1).astype(rows.dtype)
    cols = jnp.where(candidates, -jnp.log(count), -jnp.inf)
    left, right = (cols, rows) if coupling.flipped else (rows, cols)
    return dataclasses.replace(
        coupling,
        left=(coupling.left, left),
        right=(coupling.right, right),
        args=(coupling.args, weight),
        kernel=Shrunk(coupling.kernel, coupling.flipped),
    )
