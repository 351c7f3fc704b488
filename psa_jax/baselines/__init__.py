"""Other representations behind one interface, so that any matcher can follow them.

Each maps unpaired data to embeddings `u [n, d]` of modality a and `v [m, d]` of modality b, of the data themselves or
of a `query`. Labels are used, pairs never. What follows is the same for all of them::

    groups = psa.group(data.a.t, data.b.t, data.num_treatments)
    u, v = baselines.contrastive(key, data)
    coupling = psa.blockwise(psa.sinkhorn)(u, v, groups)

`cca` is linear and needs no key. `vae` and `contrastive` train networks. `raw` leaves features as they are, for
Gromov-Wasserstein: `psa.blockwise(psa.gromov_wasserstein)(*baselines.raw(data), groups)` is SCOT within treatments.
`noise` knows nothing: matching it is matching at random. `class_mean` (a matcher, uniform within treatments) and
`known_pairs` (the coupling of someone who knows the truth) need no representation.
"""

from psa_jax.baselines.cca import cca
from psa_jax.baselines.contrastive import contrastive
from psa_jax.baselines.noise import noise
from psa_jax.baselines.raw import raw
from psa_jax.baselines.vae import vae
from psa_jax.match import class_mean, known_pairs

__all__ = ["cca", "class_mean", "contrastive", "known_pairs", "noise", "raw", "vae"]


def __dir__() -> list[str]:
    return sorted(__all__)
