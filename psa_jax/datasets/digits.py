"""Handwritten digits cut in two: the smallest real data with known pairs."""

from typing import Any

import jax
import jax.numpy as jnp

from psa_jax.arguments import checked
from psa_jax.data.samples import Modality, Truth, Unpaired
from psa_jax.types import KeyArray


@checked
def digits(key: KeyArray) -> tuple[Unpaired, Truth]:
    """Splits scikit-learn's handwritten digits into a left and a right half.

    Modality a is the left four columns of each 8 x 8 image, modality b the right four in a random order; the
    digit is the treatment.

    Args:
        key: a typed PRNG key; draws the order of modality b.

    Returns:
        1797 samples of 10 treatments, both modalities `[1797, 32]` float32 in [0, 1], each half image row by
        row, and their true pairs. No latents are known.

    Raises:
        ImportError: scikit-learn is not installed.

    Example:
        >>> data, truth = digits(jax.random.key(0))
        >>> data.a.x.shape, data.b.x.shape, data.num_treatments
        ((1797, 32), (1797, 32), 10)
        >>> bool((data.b.t[truth.pair] == data.a.t).all())
        True
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("digits needs scikit-learn: pip install scikit-learn") from error
    source: Any = load_digits()
    images = jnp.asarray(source.images / 16, jnp.float32)
    t = jnp.asarray(source.target, jnp.int32)
    n = t.shape[0]
    order = jax.random.permutation(key, n)
    left, right = images[:, :, :4].reshape(n, -1), images[:, :, 4:].reshape(n, -1)
    data = Unpaired(Modality(left, t), Modality(right[order], t[order]), 10, tuple(map(str, range(10))))
    return data, Truth(jnp.argsort(order).astype(jnp.int32))
