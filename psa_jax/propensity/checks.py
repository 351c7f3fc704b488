"""Whether samples, labels and weights fit a classifier, before it is trained on them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from psa_jax.data.source import Source
from psa_jax.data.whole import not_finite
from psa_jax.propensity.model import Model
from psa_jax.propensity.training import check_training
from psa_jax.types import Array, KeyArray


@functools.lru_cache(maxsize=128)
def num_outputs(model: Model, shape: tuple[int, ...], dtype: Any) -> int:
    """The number of logits a model gives for inputs `[n, *shape]`; traces the model once."""

    def logits(key: KeyArray, x: Array) -> Array:
        return model.apply(model.init(key, x), x, train=False, key=None)[0]

    out = jax.eval_shape(logits, jax.random.key(0), jax.ShapeDtypeStruct((2, *shape), dtype))
    if len(out.shape) != 2 or out.shape[0] != 2:
        raise ValueError(f"model: expected logits [n, K], got shape {out.shape} for n = 2")
    return out.shape[1]


def check(
    model: Model, x: Any, t: Any, valid: Any, weights: Any, training: Any
) -> tuple[Array | Source, Array, tuple[Array | Source, Array] | None]:
    """Raises what is wrong by name; returns arrays, labels as int32."""
    check_training(training, judged=valid is not None)
    x, t = _check_samples(model, x, t, "")
    codes = None if isinstance(t, Tracer) else np.unique(np.asarray(t))
    if codes is not None and codes.size < 2:
        raise ValueError(f"t: expected at least two treatments, got only {codes.tolist()}")
    if valid is not None:
        valid = _check_samples(model, valid[0], valid[1], "valid: ")
        if valid[0].shape[1:] != x.shape[1:]:
            raise ValueError(f"valid: x: expected shape [n, *{x.shape[1:]}], got {valid[0].shape}")
    k = num_outputs(model, x.shape[1:], x.dtype)
    if weights is not None and jnp.shape(weights) != (k,):
        raise ValueError(f"class_weights: expected shape ({k},), got {jnp.shape(weights)}")
    if weights is not None and codes is not None and not isinstance(weights, Tracer):
        present = np.asarray(weights)[codes]
        if not (np.isfinite(present).all() and (present >= 0).all() and present.any()):
            raise ValueError(
                f"class_weights: expected finite numbers of at least 0, not all 0, for treatments of t, got {present}"
            )
    return x, t, valid


def _check_samples(model: Model, x: Any, t: Any, where: str) -> tuple[Array | Source, Array]:
    if not isinstance(t, Tracer) and not np.issubdtype(np.asarray(t).dtype, np.integer):
        raise ValueError(f"{where}t: expected integer codes [n], got {np.asarray(t).dtype} {np.shape(t)}")
    x, t = x if isinstance(x, Source) else jnp.asarray(x), jnp.asarray(t)
    if x.ndim < 2 or not x.size or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{where}x: expected float features [n, ...], n at least 1, got {x.dtype} {x.shape}")
    if t.ndim != 1 or not jnp.issubdtype(t.dtype, jnp.integer):
        raise ValueError(f"{where}t: expected integer codes [n], got {t.dtype} {t.shape}")
    if t.size != x.shape[0]:
        raise ValueError(f"{where}x, t: expected as many labels as samples, got {t.size} labels, {x.shape[0]} samples")
    k = num_outputs(model, x.shape[1:], x.dtype)
    if not isinstance(t, Tracer):
        bad = np.flatnonzero((np.asarray(t) < 0) | (np.asarray(t) >= k))
        if bad.size:
            raise ValueError(f"{where}t: expected codes in [0, {k}), got {np.asarray(t)[bad[0]]} at row {bad[0]}")
    if not isinstance(x.number if isinstance(x, Source) else x, Tracer):
        if isinstance(x, Source):
            bad = not_finite(x)
        else:
            with jax.ensure_compile_time_eval():
                bad = np.flatnonzero(~np.asarray(jnp.isfinite(x).all(tuple(range(1, x.ndim)))))
        if bad.size:
            raise ValueError(
                f"{where}x: expected finite features, got NaN or infinity in {bad.size} of "
                f"{x.shape[0]} rows, the first at row {bad[0]}"
            )
    return x, t.astype(jnp.int32)
