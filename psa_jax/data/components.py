"""Principal components of matrices that may be sparse."""

from typing import Any

import numpy as np
from scipy.sparse.linalg import ArpackError, LinearOperator, svds

START_SEED = 194122


def principal_components(x: Any, num_components: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean `[genes]` and components `[genes, num_components]` of cells `[n, genes]`, by falling variance."""
    if not 1 <= num_components < min(x.shape):
        raise ValueError(
            f"num_components: expected 1 to {min(x.shape) - 1} for {x.shape[0]} training cells and "
            f"{x.shape[1]} genes, got {num_components}"
        )
    x = x.astype(np.float64)
    mean = x.mean(axis=0)

    def forward(v: np.ndarray) -> np.ndarray:
        return x @ v - mean @ v

    def backward(v: np.ndarray) -> np.ndarray:
        return x.T @ v - np.multiply.outer(mean, v.sum(axis=0))

    operator: Any = LinearOperator
    centred = operator(x.shape, matvec=forward, rmatvec=backward, matmat=forward, rmatmat=backward, dtype=x.dtype)
    start = np.random.default_rng(START_SEED).standard_normal(min(x.shape))
    try:
        _, size, components = map(np.asarray, svds(centred, k=num_components, v0=start))
    except ArpackError as error:
        raise ValueError(f"expected features that vary, got constant ones ({error})") from error
    components = components[np.argsort(-size)]
    largest = np.take_along_axis(components, np.abs(components).argmax(axis=1)[:, None], axis=1)
    return mean, (components * np.where(largest < 0, -1.0, 1.0)).T
