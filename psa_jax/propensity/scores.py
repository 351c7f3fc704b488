"""From a classifier to propensity scores: priors, temperature, centring."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from psa_jax.arguments import checked
from psa_jax.data.codes import check_codes, count_codes
from psa_jax.data.source import Source, reading
from psa_jax.propensity.augment import as_tree
from psa_jax.propensity.model import CHUNK, Model, logits
from psa_jax.types import Array, Float, Int, Number, PyTree

LEAST_TEMPERATURE = 4.0


@checked
def centre(logits: Float[Array, "... K"]) -> Array:
    """Subtracts the mean over treatments, because logits carry an arbitrary offset in every sample.

    `log P(t | x)` is known from logits only up to a constant of x, and a distance must not see that constant.

    Example:
        >>> centre(jnp.array([[1.0, 3.0], [11.0, 13.0]])).tolist()
        [[-1.0, 1.0], [-1.0, 1.0]]
    """
    return logits - logits.mean(-1, keepdims=True)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tempered:
    """See `tempered`."""

    temperature: Any = None

    def __call__(self, logits: Array, /) -> Array:
        """Scores `[..., K]` of logits."""
        if self.temperature is None:
            return centre(logits)
        warm = 2 * jnp.asarray(self.temperature, logits.dtype)
        root = jax.nn.log_softmax(2 * logits / warm, -1) / 2 + math.log(logits.shape[-1]) / 2
        return warm * jnp.expm1(root)  # the root of a probability by its logarithm: its derivative stays finite

    def settled(self, *scores: Array) -> "Tempered":
        """The same with a temperature: its own, or the spread of the given centred scores, at least 4."""
        if self.temperature is not None:
            return self
        spread = [jnp.sqrt(jnp.mean(jnp.square(x))) for x in scores]
        return Tempered(jnp.maximum(LEAST_TEMPERATURE, functools.reduce(jnp.maximum, spread)))


TEMPERED = Tempered()


@checked
def tempered(temperature: float | None = None) -> Callable[[Any], Any]:
    r"""The Hellinger embedding of tempered propensities, `2 T (sqrt(K p_k) - 1)` with `p = softmax(logits / T)`.

    Distances between logits are decided by the log-odds of treatments that are improbable anyway, which are mostly
    noise; the distance between roots of probabilities bounds them. Up to its scale it is Hellinger's; as T grows it
    becomes the distance between centred logits.

    Args:
        temperature: T, above zero; traced. None leaves it to `align`: the root mean square of the centred scores of
            the modality where it is larger, at least 4. It should be the same for both modalities.

    Returns:
        A function of logits `[..., K]`, hashable and a pytree; without a temperature it centres them.

    Raises:
        ValueError: a temperature that is not positive, if it is known.

    Example:
        >>> tempered(1e4)(jnp.array([[1.0, 3.0]])).round(2).tolist()
        [[-1.0, 1.0]]
        >>> tempered(1.0)(jnp.array([[0.0, -50.0, -70.0, -90.0]])).round(2).tolist()
        [[2.0, -2.0, -2.0, -2.0]]
    """
    if temperature is not None and not isinstance(temperature, Tracer) and not 0 < float(temperature) < math.inf:
        raise ValueError(f"temperature: expected a number above zero, got {temperature}")
    return Tempered(temperature)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RelativeTo:
    """See `relative_to`."""

    code: Any

    def __call__(self, logits: Array, /) -> Array:
        """Scores `[..., K - 1]` of logits, of which the control's is that at `code`."""
        others = jnp.arange(logits.shape[-1] - 1)
        others = jnp.where(others >= self.code, others + 1, others)
        control = jnp.take(logits, jnp.asarray(self.code)[None], axis=-1)
        return jnp.take(logits, others, axis=-1) - control

    def among(self, treatments: Array | None) -> "RelativeTo":
        """The same for logits of these treatments `[d]` only, the control one of them."""
        return self if treatments is None else RelativeTo(jnp.argmax(treatments == self.code))


@checked
def relative_to(code: int) -> Callable[[Any], Any]:
    """Log-odds of every other treatment against the control: how a sample differs from those of the control.

    A distance between them counts the control's own logit in every column; that between centred logits counts all
    alike. For screens whose treatments are to be read as effects on the control. The control's column, which would be
    zero, is left out.

    Args:
        code: of the control, which both modalities must have.

    Returns:
        A function of logits `[..., K]` to `[..., K - 1]`, hashable and a pytree. In `from_logits` and `Learner` the
        control is found by its code, whichever treatments are kept.

    Raises:
        ValueError: a code below 0.

    Example:
        >>> relative_to(0)(jnp.array([[1.0, 3.0, 0.5]])).tolist()
        [[2.0, -0.5]]
        >>> from_logits(jnp.array([[9.0, 1.0, 3.0]]), transform=relative_to(2), treatments=jnp.array([1, 2])).tolist()
        [[-2.0]]
    """
    if code < 0:
        raise ValueError(f"code: expected one of a treatment, from 0 up, got {code}")
    return RelativeTo(code)


@checked
def propensity(
    model: Model,
    params: PyTree,
    x: Float[Array, "n ..."] | Source,
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
        x: features `[n, ...]`, or a `psa.source`; traced.
        temperature: see `from_logits`; traced.
        log_prior: see `from_logits`; traced.
        transform: see `from_logits`; static, so a module-level function, but for `tempered`, which is traced.
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
    x = x if isinstance(x, Source) else jnp.asarray(x)
    with reading(("x", x)) as wait:
        given = temperature, log_prior, treatments, as_tree(transform)
        return wait(_propensity(params, x, *given, model=model, chunk=chunk))


@functools.partial(jax.jit, static_argnames=("model", "chunk"))
def _propensity(
    params: Any,
    x: Any,
    temperature: Any,
    log_prior: Any,
    treatments: Any,
    transform: Any,
    *,
    model: Any,
    chunk: int,
) -> Array:
    out = logits(model, params, x, chunk)
    return from_logits(out, temperature=temperature, log_prior=log_prior, transform=transform, treatments=treatments)


@checked
def from_logits(
    logits: Float[Array, "n K"],
    *,
    temperature: Number = 1.0,
    log_prior: Float[Array, "... K"] | None = None,
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
            have made the frequencies equal already. `[n, K]` where they differ from sample to sample.
        transform: `[n, d] -> [n, ...]`. `centre` by default; `tempered(8.0)` bounds what improbable treatments say;
            `jax.nn.log_softmax` gives log posteriors.
        treatments: `[d]` integer ids of the columns to keep: the treatments that both modalities have.

    Raises:
        ValueError: logits that are not `[n, K]`, a log prior that is not `[K]` or `[n, K]`, treatments that are not
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
        if jnp.shape(log_prior) not in ((logits.shape[1],), logits.shape):
            raise ValueError(f"log_prior: expected shape ({logits.shape[1]},), got {jnp.shape(log_prior)}")
        logits = logits - jnp.asarray(log_prior, logits.dtype).reshape(-1, logits.shape[1])
    if treatments is not None:
        treatments = jnp.asarray(treatments)
        if treatments.ndim != 1 or not jnp.issubdtype(treatments.dtype, jnp.integer):
            raise ValueError(f"treatments: expected integers [d], got {treatments.dtype} {treatments.shape}")
        logits = logits[:, treatments]
    return (transform.among(treatments) if isinstance(transform, RelativeTo) else transform)(logits)


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


__all__ = ["centre", "from_logits", "log_prior", "propensity", "relative_to", "tempered"]
