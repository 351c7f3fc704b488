"""Features as they are."""

import jax

from psa_jax.arguments import checked
from psa_jax.baselines.inputs import prepared
from psa_jax.data.samples import Unpaired
from psa_jax.propensity.nets import Standardize
from psa_jax.types import Array, Float, float_dtype


@checked
def raw(data: Unpaired, *, query: Unpaired | None = None) -> tuple[Float[Array, "n p"], Float[Array, "m q"]]:
    """Standardised features of both modalities, for matchers that need no common space (Gromov-Wasserstein).

    `(x - mean) / std` of each feature, with the moments of `data`; a constant feature is only centred. Images are
    standardised by channel and flattened. Matched within treatments by Gromov-Wasserstein this is SCOT (with its
    distances by hops: `functools.partial(psa.gromov_wasserstein, distances=psa.geodesics)`).

    Args:
        data: whose moments are used.
        query: other samples to embed instead of `data`.

    Returns:
        `u [n, p]` and `v [m, q]`: each modality keeps its own features.

    Raises:
        ValueError: invalid data, fewer than two shared treatments, or a query of other features or treatments.

    Example:
        >>> import jax.numpy as jnp
        >>> import psa_jax as psa
        >>> x, t = jnp.array([[0.0], [1.0], [5.0], [7.0], [8.0], [19.0]]), jnp.array([0, 0, 0, 1, 1, 1])
        >>> data = psa.Unpaired(psa.Modality(x, t), psa.Modality(2 * x[jnp.array([1, 2, 0, 5, 3, 4])], t), 2)
        >>> u, v = raw(data)
        >>> C = psa.blockwise(psa.gromov_wasserstein)(u, v, psa.group(t, t, 2))
        >>> C.top_k(1)[1][:, 0].tolist()
        [2, 0, 1, 4, 5, 3]

    References:
        Demetci et al., J. Comput. Biol. 2022 (SCOT).
    """
    data, target = prepared(data, query)
    return _standardised(data.a.x, target.a.x), _standardised(data.b.x, target.b.x)


@jax.jit
def _standardised(x: Array, target: Array) -> Array:
    x, target = (part.astype(float_dtype(part)) for part in (x, target))
    moments = Standardize().init({}, x)
    out: Array = Standardize().apply(moments, target)  # pyright: ignore[reportAssignmentType]
    return out.reshape(target.shape[0], -1)
