"""Features of samples as an array of numbers, whatever holds them."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from psa_jax.data.source import Source


def features(name: str, x: Any) -> Any:
    """Features as an array that is no table, or a source; a `ValueError` that says `name` if they are none of these."""
    if isinstance(x, Source):
        return x
    if hasattr(x, "iloc"):
        x = x.to_numpy()
    if hasattr(x, "toarray"):
        raise ValueError(f"{name}: expected a dense array [n, ...], got a sparse one: give {name}.toarray()")
    if not hasattr(x, "dtype"):
        if hasattr(x, "__getitem__") and not isinstance(x, list | tuple | str | dict) and not hasattr(x, "__array__"):
            raise ValueError(
                f"{name}: expected an array [n, ...], got {type(x).__name__}: psa_jax.source(...) of it reads its rows"
            )
        try:
            x = np.asarray(x)
        except ValueError as error:
            raise ValueError(f"{name}: expected an array [n, ...], got {type(x).__name__} ({error})") from error
    if x.dtype == object or not (np.issubdtype(x.dtype, np.number) or jnp.issubdtype(x.dtype, jnp.number)):
        raise ValueError(f"{name}: expected numbers [n, ...], got {x.dtype} {tuple(x.shape)}")
    if not x.shape:
        raise ValueError(f"{name}: expected an array [n, ...], got one number")
    return x
