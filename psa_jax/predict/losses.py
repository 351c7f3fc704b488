"""What predictors are trained for, and judged by: errors of predictions through a coupling."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp

from psa_jax.coupling.blocked import Blocked
from psa_jax.coupling.coupling import Coupling
from psa_jax.propensity.model import Model, logits
from psa_jax.types import Array, Bool, Float, PyTree, float_dtype

Loss = Literal["unbiased", "sampled", "barycentric"]


Law = Blocked | Coupling


Samples = tuple[Array, Array, Law]


def draw_loss(
    outputs: Sequence[Float[Array, "k d"]], y: Float[Array, "k d"], matched: Bool[Array, " k"]
) -> Float[Array, ""]:
    """The loss of one draw: the mean of `(y - f(x_j)) (y - f(x_j'))` over features and samples that have a partner.

    Args:
        outputs: predictions for the drawn partners: two of independent draws ("unbiased"), or one, then squared.
        y: targets.
        matched: which samples have a partner; what the others hold is without influence.

    Returns:
        The loss; 0 if no sample has a partner.
    """
    return _mean((y - outputs[0]) * (y - outputs[-1]), matched)


@dataclasses.dataclass(frozen=True)
class Targets:
    """The samples a loss runs over: what is compared with predictions, and which of them have a partner."""

    y: Array
    matched: Array


def targets(loss: Loss, x_b: Array, coupling: Law) -> Targets:
    """What the loss compares with, in vectors."""
    y = x_b.reshape(x_b.shape[0], -1)
    if loss == "barycentric":
        both = coupling.apply(jnp.concatenate([y, jnp.ones_like(y[:, :1])], axis=1))
        return Targets(both[:, :-1], both[:, -1] > 0.5)
    return Targets(y, coupling.T.apply(jnp.ones(coupling.shape[0], y.dtype)) > 0.5)


def _mean(squares: Float[Array, "k d"], matched: Array) -> Float[Array, ""]:
    total = matched.sum().astype(squares.dtype)
    return jnp.where(matched, squares.mean(1), 0).sum() / jnp.maximum(total, 1)


def exact_loss(params: PyTree, *, model: Model, loss: Loss, valid: Samples) -> Float[Array, ""]:
    """The squared error to judge by: of projections of a, or of predictions in expectation over partners."""
    x_a, x_b, coupling = valid
    target = targets(loss, x_b, coupling)
    out = logits(model, params, x_a)
    out, y = out.astype(dtype := float_dtype(out, target.y)), target.y.astype(dtype)
    if loss == "barycentric":
        return _mean((out - y) ** 2, target.matched)
    out, y = out - (shift := out.mean(0, keepdims=True)), y - shift  # squares of large means would cancel
    moments = coupling.T.apply(jnp.concatenate([out, out**2], axis=1))
    first, second = jnp.split(moments.astype(dtype), 2, axis=1)
    return _mean((y - first) ** 2 + jnp.maximum(second - first**2, 0), target.matched)
