"""A coupling as a sparse table of probabilities, as other packages take it."""

from typing import Any

import numpy as np
from scipy import sparse


def table(coupling: Any, k: int) -> sparse.csr_array:
    """The `k` most probable columns of each row as a sparse matrix `[n, m]` of `P(j | i)`, float32."""
    n, m = coupling.shape
    probability, column = (np.asarray(x) for x in coupling.top_k(min(k, m) if k > 0 else k))
    there = column >= 0
    order = np.argsort(np.where(there, column, m), axis=1)  # scipy wants them by column
    probability, column, there = (np.take_along_axis(x, order, axis=1) for x in (probability, column, there))
    starts = np.concatenate([[0], np.cumsum(there.sum(axis=1))])
    return sparse.csr_array((probability[there].astype(np.float32), column[there].astype(np.int32), starts), (n, m))
