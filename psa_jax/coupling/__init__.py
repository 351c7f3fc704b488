"""The lazy joint law of rows and columns, of one treatment and of all, and what can be made of such laws.

Imports `types` only; it knows nothing of how a coupling came about.
"""

from psa_jax.coupling.blocked import Block, Blocked
from psa_jax.coupling.chain import Chained, chain
from psa_jax.coupling.coupling import Coupling
from psa_jax.coupling.info import Info
from psa_jax.coupling.shrink import shrink

__all__ = [
    "Block",
    "Blocked",
    "Chained",
    "Coupling",
    "Info",
    "chain",
    "shrink",
]
