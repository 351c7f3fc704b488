"""Files: any pytree in one archive, alignments, couplings in a compact sparse form, cells from AnnData and MuData."""

from psa_jax.io.alignments import load_alignment, save_alignment
from psa_jax.io.archive import load, save
from psa_jax.io.cells import from_anndata, from_mudata, shuffle
from psa_jax.io.columns import Columns
from psa_jax.io.couplings import load_coupling, save_coupling
from psa_jax.io.files import write_atomically
from psa_jax.io.impute import impute, impute_new, reference
from psa_jax.io.loaded import Loaded
from psa_jax.io.origin import Origin
from psa_jax.io.preparations import load_preparations, save_preparations
from psa_jax.io.prepare import Preparation
from psa_jax.io.results import status, to_anndata, to_mudata

__all__ = [
    "Columns",
    "Loaded",
    "Origin",
    "Preparation",
    "from_anndata",
    "from_mudata",
    "impute",
    "impute_new",
    "load",
    "load_alignment",
    "load_coupling",
    "load_preparations",
    "reference",
    "save",
    "save_alignment",
    "save_coupling",
    "save_preparations",
    "shuffle",
    "status",
    "to_anndata",
    "to_mudata",
    "write_atomically",
]


def __dir__() -> list[str]:
    return sorted(__all__)
