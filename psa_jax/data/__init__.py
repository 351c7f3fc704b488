"""Samples, treatments and their names, and the host-side plan of who may be matched with whom.

Imports `types`, `arguments` and `devices` only; every room above may import it.
"""

from psa_jax.data.groups import Bucket, Groups, group
from psa_jax.data.samples import Modality, Truth, Unpaired, validate
from psa_jax.data.source import Source, source
from psa_jax.data.split import permute_treatments, split
from psa_jax.data.strata import Strata

__all__ = [
    "Bucket",
    "Groups",
    "Modality",
    "Source",
    "Strata",
    "Truth",
    "Unpaired",
    "group",
    "permute_treatments",
    "source",
    "split",
    "validate",
]
