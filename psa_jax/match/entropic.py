"""What an entropic problem is, whatever solves it: its settings, its eps and the kernel that potentials make."""

import contextlib
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from psa_jax.match.cost import cosine, euclidean, pairwise, squared_euclidean
from psa_jax.types import Array, Cost, pytree

MAX_NUMBER = float(np.finfo(np.float64).max)


class Settings(NamedTuple):
    """What is static about a solve."""

    tau_a: float
    tau_b: float
    max_iters: int
    absorb: bool
    newton: int


@pytree
class Relative:
    """An eps that is `scale` times the standard deviation of the costs between real samples."""

    scale: Any


SYMMETRIC = (euclidean, squared_euclidean, cosine)
DEFAULT_EPS = Relative(0.1)


def relative(scale: Any) -> Relative:
    """Makes eps relative: `scale` times the spread (standard deviation) of the costs under the product of the weights.

    Padding has no weight and does not count. The spread is taken to be at least 1e5 rounding errors of the mean cost,
    so that plans of nearly equal costs can be represented. Scale-free: scores multiplied by a constant give the same
    plan. Around 0.1 to 0.2 suits projections, 0.05 and less suits sampled pairs. Traced and differentiable.

    Example:
        >>> float(relative(0.1).scale)
        0.1

    Raises:
        ValueError: a scale that is known and not positive.
    """
    check_range("scale", scale, "a positive number", low=0.0)
    return Relative(scale)


@dataclasses.dataclass(frozen=True)
class Gibbs:
    """The kernel of entropic transport: `(f_i + g_j - cost(u_i, v_j)) / eps`."""

    cost: Cost

    @property
    def label(self) -> str:
        """What it is called where a coupling introduces itself."""
        return f"entropic transport ({getattr(self.cost, '__name__', 'own cost')})"

    @property
    def across(self) -> "Gibbs | None":
        """Itself, if its cost is known to be symmetric."""
        return self if self.cost in SYMMETRIC else None

    def __call__(self, left: tuple[Array, Array], right: tuple[Array, Array], eps: Array) -> Array:
        """Log masses `[k, m]` from `(u [k, d], f [k])`, `(v [m, d], g [m])` and eps."""
        (u, f), (v, g) = left, right
        real = jnp.ones_like(f, bool), jnp.ones_like(g, bool)
        return log_density(pairwise(self.cost, u, v), (f, real[0]), (g, real[1]), eps)


def log_density(costs: Array, rows: Any, columns: Any, eps: Array) -> Array:
    """`(f_i + g_j - C_ij) / eps` for rows `(f, real)` and columns `(g, real)`, `-inf` for padding and infinite costs.

    Differentiable; gradients are zero where it is `-inf`.
    """
    (f, real_a), (g, real_b) = rows, columns
    real = real_a[:, None] & real_b[None] & (costs != jnp.inf)
    return jnp.where(real, over(f[:, None] + g[None] - jnp.where(real, costs, 0), eps), -jnp.inf)


@jax.custom_jvp
def over(x: Array, eps: Array) -> Array:
    """`x / eps`, whose derivative does not square eps: it may be as small as numbers get."""
    return x / eps


@over.defjvp
def _over_differential(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (x, eps), (dx, deps) = primals, tangents
    z = over(x, eps)
    return z, over(dx - z * deps, eps)


@contextlib.contextmanager
def ott_rules() -> Any:
    """For calls of ott-jax, which relies on JAX's default promotion rules; callers may run under stricter ones.

    Its products decide plans, and ask for the full precision that accelerators do not give by default.

    Most of its loops start from constants, which `shard_map` refuses as it is by default: said in words.
    """
    try:
        with (
            jax.numpy_dtype_promotion("standard"),
            jax.numpy_rank_promotion("allow"),
            jax.default_matmul_precision("highest"),
        ):
            yield
    except TypeError as error:
        if "manual axis types" not in str(error):
            raise
        raise ValueError(
            "matcher: expected one that jax.shard_map can check, got a solver of ott-jax whose loops start from "
            "constants: give shard_map check_vma=False, or match with sinkhorn, snn or nearest"
        ) from error


def check_range(name: str, value: Any, expected: str, *, low: float, high: float = MAX_NUMBER) -> None:
    """Raises a `ValueError` unless a number, if it is known (not traced), is in `(low, high]`."""
    if isinstance(value, Tracer):
        return
    if not isinstance(value, int | float | np.generic | np.ndarray | jax.Array) or jnp.ndim(value):
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
    if isinstance(value, int) and abs(value) >= 2**31:  # which JAX does not take where 64 bits are not enabled
        raise ValueError(f"{name}: expected {expected}, got an integer beyond 32 bits: give {name}=float(...)")
    if not low < float(value) <= high:
        raise ValueError(f"{name}: expected {expected}, got {value}")
