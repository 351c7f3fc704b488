"""What a matcher reports of how it went."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from psa_jax.types import Array, Bool, Float, Int, known, pytree


@pytree
class Info:
    """What a matcher reports; one entry for a coupling, `[num_treatments]` entries for a blocked one.

    Attributes:
        converged: the matcher reached what was asked of it; False for treatments that were not matched.
        num_iters: iterations run; 0 for closed forms.
        marginal_error: the larger L1 distance of the two marginals from the weights; inf where it is no criterion
            or the treatment was not matched (not NaN, which `jax_debug_nans` would stop at).
        details: anything more that the matcher has to say, by name (its `eps`, the `k` it could use, ...).
    """

    converged: Bool[Array, " ..."]
    num_iters: Int[Array, " ..."]
    marginal_error: Float[Array, " ..."]
    details: dict[str, Array]

    @staticmethod
    def closed_form(converged: Any = True, **details: Array) -> "Info":
        """The report of a matcher that does not iterate."""
        return Info(jnp.asarray(converged), jnp.asarray(0, jnp.int32), jnp.asarray(jnp.inf, jnp.float32), details)

    def __repr__(self) -> str:
        """One line."""
        return f"Info({self.summary() or 'not known while tracing'})"

    def summary(self) -> str:
        """How it went, in words: "converged, 40 iterations, marginal error 0.0008"; empty while tracing."""
        if not known(self.converged, self.num_iters, self.marginal_error):
            return ""
        done, steps, error = (np.asarray(x) for x in (self.converged, self.num_iters, self.marginal_error))
        words = ["converged" if done.all() else "not converged"] if done.ndim == 0 else []
        if steps.size and steps.max() > 0:
            words.append(f"{'at most ' if steps.ndim else ''}{steps.max()} iterations")
        if np.isfinite(error).any():
            words.append(f"marginal error {error[np.isfinite(error)].max():.1g}")
        return ", ".join(words)
