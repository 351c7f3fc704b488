"""The whole way: from unpaired data to an alignment, of two modalities or many, of whole data or of a batch.

Imports everything below; `baselines`, `datasets`, `io`, `plot` and `cli` stand above.
"""

from psa_jax.align.alignment import Alignment, AlignmentWarning
from psa_jax.align.batch import group_batch, ignore_nonfinite, match_batch
from psa_jax.align.evaluate import evaluate
from psa_jax.align.many import ManyAlignment, align_many
from psa_jax.align.new import Prediction
from psa_jax.align.pipeline import align

__all__ = [
    "Alignment",
    "AlignmentWarning",
    "ManyAlignment",
    "Prediction",
    "align",
    "align_many",
    "evaluate",
    "group_batch",
    "ignore_nonfinite",
    "match_batch",
]
