"""From a classifier to propensity scores: priors, temperature, centring."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from psa_jax.arguments import checked
from psa_jax.data.samples import check_codes, count_codes
from psa_jax.propensity.model import CHUNK, Model, logits
from psa_jax.types import Array, Float, Int, Number, PyTree


@checked
def centre(logits: Float[Array, "... K"]) -> Array:
    """Subtracts the mean over treatments, because logits carry an arbitrary offset in every sample.

    `log P(t | x)` is known from logits only up to a constant of x, and a distance must not see that constant.

    Example:
        >>> centre(jnp.array([[1.0, 3.0], [11.0, 13.0]])).tolist()
        [[-1.0, 1.0], [-1.0, 1.0]]
    """
    return logits - logits.mean(-1, keepdims=True)


@checked
def propensity(
    model: Model,
    params: PyTree,
    x: Float[Array, "n ..."],
    *,
    temperature: Number = 1.0,
    log_prior: Float[Array, " K"] | None = None,
    transform: Callable[[Any], Any] = centre,
    treatments: Int[Array, " d"] | None = None,
    chunk: int = CHUNK,
) -> Float[Array, "n d"]:
    """The score of each sample, `transform(logits / temperature - log_prior)`, in evaluation mode.

    Compiled once for each model, transform and shape. For an ensemble, `vmap` over params:
    `jax.vmap(lambda params: propensity(model, params, x))(fitted.params)`.

    Args:
        model: the classifier; static.
        params: its parameters, `Fitted.params`; traced.
        x: features `[n, ...]`; traced.
        temperature: see `from_logits`; traced.
        log_prior: see `from_logits`; traced.
        transform: see `from_logits`; static, so a module-level function.
        treatments: see `from_logits`; traced, but of static length.
        chunk: the most samples evaluated at a time; static. It changes no result.

    Returns:
        Scores `[n, d]`, with d the number of treatments (or of `treatments`) under the default transform.
        Differentiable in params, x, temperature and log_prior.

    Raises:
        ValueError: a log prior that is not `[K]`, or a chunk below 1.

    Example:
        >>> from psa_jax.propensity.nets import linear
        >>> model, x = linear(3), jnp.ones((5, 2))
        >>> propensity(model, model.init(jax.random.key(0), x), x).shape
        (5, 3)

    References:
        Xi et al., NeurIPS 2024, arXiv 2404.01595, section 3.
    """
    if chunk < 1:
        raise ValueError(f"chunk: expected at least 1, got {chunk}")
    treatments = None if treatments is None else jnp.asarray(treatments)
    return _propensity(
        params,
        jnp.asarray(x),
        temperature,
        log_prior,
        treatments,
        model=model,
        transform=transform,
        chunk=chunk,
    )


@functools.partial(jax.jit, static_argnames=("model", "transform", "chunk"))
def _propensity(
    params: Any,
    x: Any,
    temperature: Any,
    log_prior: Any,
    treatments: Any,
    *,
    model: Any,
    transform: Any,
    chunk: int,
) -> Array:
    out = logits(model, params, x, chunk)
    return from_logits(out, temperature=temperature, log_prior=log_prior, transform=transform, treatments=treatments)


@checked
def from_logits(
    logits: Float[Array, "n K"],
    *,
    temperature: Number = 1.0,
    log_prior: Float[Array, " K"] | None = None,
    transform: Callable[[Any], Any] = centre,
    treatments: Int[Array, " d"] | None = None,
) -> Float[Array, "n d"]:
    """`transform(logits / temperature - log_prior)`: what `propensity` does to logits.

    The two modalities must give the same score to the same latent state. Where their treatment frequencies
    differ, `log P(t | x)` differs by the log prior; without it, it is the likelihood ratio `log P(x | t) /
    P(x)`, which does not depend on how often a treatment was given (up to the offset that centring removes).

    Args:
        logits: `[n, K]`, for instance out-of-fold ones of `crossfit`.
        temperature: divides the logits, see `calibrate`.
        log_prior: `[K]` log frequencies of the treatments in the classifier's training data, see the function
            `log_prior`. Not to be given for a classifier trained with inverse frequency class weights: those
            have made the frequencies equal already.
        transform: `[n, d] -> [n, ...]`. `centre` by default; `jax.nn.log_softmax` gives log posteriors.
        treatments: `[d]` integer ids of the columns to keep: the treatments that both modalities have.

    Raises:
        ValueError: logits that are not `[n, K]`, a log prior that is not `[K]`, treatments that are not
            integers `[d]`.

    Example:
        >>> from_logits(jnp.array([[1.0, 3.0, 9.0]]), temperature=2.0, treatments=jnp.array([0, 1])).tolist()
        [[-0.5, 0.5]]
    """
    if jnp.ndim(logits) != 2:
        raise ValueError(f"logits: expected rank 2, [n, K], got shape {jnp.shape(logits)}")
    logits = jnp.asarray(logits)
    logits = logits / jnp.asarray(temperature, logits.dtype)
    if log_prior is not None:
        if jnp.shape(log_prior) != (logits.shape[1],):
            raise ValueError(f"log_prior: expected shape ({logits.shape[1]},), got {jnp.shape(log_prior)}")
        logits = logits - jnp.asarray(log_prior, logits.dtype)[None]
    if treatments is not None:
        treatments = jnp.asarray(treatments)
        if treatments.ndim != 1 or not jnp.issubdtype(treatments.dtype, jnp.integer):
            raise ValueError(f"treatments: expected integers [d], got {treatments.dtype} {treatments.shape}")
        logits = logits[:, treatments]
    return transform(logits)


@checked
def log_prior(t: Int[Array, " n"], num_treatments: int) -> Float[Array, " K"]:
    """Log frequencies of the treatments.

    An absent treatment gets the finite value of a treatment with one sample; its column of the scores means
    nothing and must be left out through the argument `treatments` of `propensity` and `from_logits`.

    Args:
        t: `[n]` integer codes in `[0, K)`; traced ones that are none are ignored.
        num_treatments: K, static.

    Raises:
        ValueError: codes outside `[0, K)`, if they are known.

    Example:
        >>> jnp.exp(log_prior(jnp.array([0, 0, 0, 1]), 3)).tolist()
        [0.75, 0.25, 0.25]
    """
    check_codes("t", t, num_treatments)
    counts = count_codes(t, num_treatments)
    return jnp.log(jnp.maximum(counts, 1) / jnp.maximum(counts.sum(), 1))


__all__ = ["centre", "from_logits", "log_prior", "propensity"]
