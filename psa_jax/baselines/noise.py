"""An embedding that knows nothing."""

import jax

from psa_jax.arguments import checked
from psa_jax.baselines.inputs import prepared
from psa_jax.data.samples import Unpaired
from psa_jax.types import Array, Float, KeyArray


@checked
def noise(
    key: KeyArray, data: Unpaired, *, query: Unpaired | None = None, dim: int = 1
) -> tuple[Float[Array, "n d"], Float[Array, "m d"]]:
    """Independent normal draws for every sample: what a matcher makes of them is its own level of chance.

    `psa.blockwise(psa.assignment)(*baselines.noise(key, data), groups)` matches each treatment one to one, every way to
    do so being equally probable.

    Args:
        key: a typed key.
        data: only its sizes matter.
        query: other samples to draw for instead of `data`.
        dim: of the draws.

    Returns:
        `u [n, dim]` and `v [m, dim]`, float32.

    Raises:
        ValueError: invalid data, fewer than two shared treatments, a query of other features or treatments, or a
            `dim` below 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from psa_jax.data.samples import Modality
        >>> data = Unpaired(*2 * [Modality(jnp.ones((4, 2)), jnp.arange(4) % 2)], 2)
        >>> u, v = noise(jax.random.key(0), data)
        >>> u.shape, bool((u == v).any())
        ((4, 1), False)
    """
    _, target = prepared(data, query)
    if dim < 1:
        raise ValueError(f"dim: expected at least 1, got {dim}")
    key_a, key_b = jax.random.split(key)
    return (
        jax.random.normal(key_a, (target.a.t.size, dim), "float32"),
        jax.random.normal(key_b, (target.b.t.size, dim), "float32"),
    )
