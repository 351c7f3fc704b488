"""Two couplings one after the other."""

import functools
import math

import jax
import jax.numpy as jnp

from psa_jax.arguments import checked
from psa_jax.coupling.blocked import Blocked
from psa_jax.coupling.coupling import Coupling
from psa_jax.types import Array, Float, Int, KeyArray, float_dtype, pytree

COLUMNS_AT_ONCE = 256
ATTEMPTS = 1000


@pytree
class Chained:
    r"""The law of going through intermediate samples, `P(k | i) = sum_j P(j | i) P(k | j)`; made by `chain`.

    The same methods as `Coupling`, as far as they make sense without a joint law of one's own; nothing of size `n x m`
    is stored.

    Attributes:
        first: from rows to intermediate samples.
        second: from there to columns. A chain may be either.
    """

    first: "Blocked | Coupling | Chained"
    second: "Blocked | Coupling | Chained"

    @property
    def shape(self) -> tuple[int, int]:
        """`(n, m)`."""
        return self.first.shape[0], self.second.shape[1]

    @property
    def T(self) -> "Chained":
        """The way back, `sum_j P(j | k) P(i | j)`; nothing is computed."""
        return Chained(self.second.T, self.first.T)

    @jax.jit
    def apply(self, y: Float[Array, "m ..."]) -> Float[Array, "n ..."]:
        """The barycentric projection `E[y_k | i]` `[n, ...]`; zeros for rows without a way.

        Where only a part of a row's intermediate samples lead on, it is the mean over those that do.
        """
        y = jnp.asarray(y)
        flat = y.reshape(y.shape[0], math.prod(y.shape[1:]))
        ones = jnp.ones((y.shape[0], 1), flat.dtype)
        out = self.first.apply(self.second.apply(jnp.concatenate([flat, ones], axis=1)))
        mass = out[:, -1:]
        out = jnp.where(mass > 0, out[:, :-1] / jnp.where(mass > 0, mass, 1), 0)
        return out.reshape(out.shape[0], *y.shape[1:])

    @jax.jit
    def sample(self, key: KeyArray) -> Int[Array, " n"]:
        """Draws a column for each row `[n]`, -1 for rows without one.

        Rows that pass through the same intermediate sample arrive at the same column. Where only a part of a row's
        intermediate samples lead on, it is drawn again until one does (at most 1000 times, -1 then).
        """
        key_first, key_second = jax.random.split(key)
        last = self.second.sample(key_second)
        open_ends = self.first.apply((last >= 0).astype(jnp.float32)) > 0

        def draw(state: tuple[Array, Array]) -> tuple[Array, Array]:
            attempt, found = state
            middle = self.first.sample(jax.random.fold_in(key_first, attempt))
            return attempt + 1, jnp.where((found < 0) & (middle >= 0), last[middle], found)

        def missing(state: tuple[Array, Array]) -> Array:
            attempt, found = state
            return (attempt < ATTEMPTS) & (open_ends & (found < 0)).any()

        start = jnp.zeros((), jnp.int32), jnp.full_like(open_ends & (last >= 0).any(), -1, jnp.int32)
        return jax.lax.while_loop(missing, draw, start)[1]

    @functools.partial(jax.jit, static_argnames="chunk")
    def log_prob(self, j: Int[Array, " n"], *, chunk: int = COLUMNS_AT_ONCE) -> Float[Array, " n"]:
        """`log P(j_i | i)` for one column per row, `-inf` where it is negative or there is no way.

        Every column is projected back, `chunk` (static) at a time: the cost is that of `m` features.
        """
        n, m = self.shape
        if j.shape != (n,):
            raise ValueError(f"j: expected shape ({n},), one column per row, got {j.shape}")
        steps = -(-m // chunk)

        def some(start: Array) -> Array:
            columns = start + jnp.arange(chunk)
            back = self.apply((jnp.arange(m)[:, None] == columns[None]).astype(jnp.float32))
            here = (j >= start) & (j < start + chunk)
            return jnp.where(here, back[jnp.arange(n), jnp.where(here, j - start, 0)], 0)

        p = jax.lax.map(some, jnp.arange(steps) * chunk).sum(0)
        known = (j >= 0) & (j < m) & (p > 0)
        return jnp.where(known, jnp.log(jnp.where(known, p, 1)), -jnp.inf)

    def dense(self) -> Float[Array, "n m"]:
        """The conditional law `P(k | i)` `[n, m]`, rows that sum to one or zero: the one that stores so much."""
        return self.apply(jnp.eye(self.shape[1], dtype=float_dtype()))


@checked
def chain(first: Blocked | Coupling | Chained, second: Blocked | Coupling | Chained) -> Chained:
    """Composes a coupling of a with b and one of b with c into one of a with c.

    It asks that, given the sample in the middle, the two ends tell nothing of each other: with scores as common space
    the middle is a stand-in for the shared state.

    Args:
        first: of shape `(n, k)`.
        second: of shape `(k, m)`.

    Raises:
        ValueError: sizes that do not meet.

    Example:
        >>> from psa_jax.match import known_pairs
        >>> forth, on = known_pairs(jnp.array([1, 0]), 2), known_pairs(jnp.array([2, 1]), 3)
        >>> chain(forth, on).apply(jnp.array([5.0, 6.0, 7.0])).tolist()
        [6.0, 7.0]
    """
    if first.shape[1] != second.shape[0]:
        raise ValueError(f"second: expected {first.shape[1]} rows, as the first has columns, got {second.shape[0]}")
    return Chained(first, second)
