"""Principal components of matrices that may be sparse or stand in a file, without a copy of them."""

from typing import Any

import numpy as np
from scipy import sparse

from psa_jax.data.rows import Rows, rows_of, whole

SEED = 194122
EXACT, HELD = 4e9, 2e7  # operations and numbers: what is less than both is decomposed whole
EXTRA, STEPS = 14, 5  # directions beside those asked for; blocks of the Krylov space
LEAST = 1e-10  # of the variance of features as large: below it, they are constant up to rounding


def principal_components(x: Any, num_components: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean `[genes]` and components `[genes, num_components]` of cells `[n, genes]`, by falling variance.

    Small matrices are decomposed whole, of those with few genes the covariance is. Of large ones a block Krylov space
    is searched (a random block of directions, and what the covariance makes of it, `STEPS` times), in single precision
    and without centring the matrix, whose zeros stay unwritten. Each step reads the matrix once. The directions are the
    same every time; each component's largest weight is positive.

    Raises:
        ValueError: as many components as cells or genes, or more; features that do not vary.

    References:
        Musco and Musco, Randomized block Krylov methods for stronger and faster approximate singular value
        decomposition, NeurIPS 2015 (arXiv 1504.05477), algorithm 2, on the side of the genes.
    """
    x = rows_of(x)
    n, d = x.shape
    if not 1 <= num_components < min(n, d):
        raise ValueError(
            f"num_components: expected 1 to {min(n, d) - 1} for {n} training cells and {d} genes, got {num_components}"
        )
    mean, scale = moments(x)
    if d <= n and n * d * d <= EXACT:
        components, variance = _exact(x, mean, num_components)
    elif n * d <= HELD and n * n * d <= EXACT:
        dense = whole(x)
        dense = (dense.toarray() if sparse.issparse(dense) else dense).astype(np.float64)
        _, size, components = np.linalg.svd(dense - mean, full_matrices=False)
        variance = size[:num_components] ** 2
        components = components[:num_components].T
    else:
        components, variance = _krylov(x, mean, num_components)
    if not variance[0] > LEAST * max(scale, np.finfo(np.float32).tiny):
        raise ValueError("expected features that vary, got constant ones")
    largest = np.take_along_axis(components, np.abs(components).argmax(axis=0)[None], axis=0)
    return mean, components * np.where(largest < 0, -1.0, 1.0)


def scores(x: Any, mean: np.ndarray, components: np.ndarray) -> np.ndarray:
    """Cells `[n, genes]` in the coordinates of the components, `[n, k]` float32; sparse ones are not made dense."""
    components = components.astype(np.float32)
    shift = mean.astype(np.float64) @ components.astype(np.float64)
    parts = [part.astype(np.float32, copy=False) @ components - shift for part in rows_of(x)]
    return np.concatenate(parts).astype(np.float32)


def moments(x: Any) -> tuple[np.ndarray, float]:
    """The mean of each column, and the sum of all squares; in double precision, a few rows at a time."""
    total, squares = np.zeros(x.shape[1]), 0.0
    for part in rows_of(x):
        if sparse.issparse(part):
            data = part.data.astype(np.float64)
            total += np.bincount(part.indices, weights=data, minlength=x.shape[1])
            squares += float(data @ data)
        else:
            data = part.astype(np.float64)
            total += data.sum(axis=0)
            squares += float(np.vdot(data, data))
    return total / max(1, x.shape[0]), squares


def _exact(x: Rows, mean: np.ndarray, num_components: int) -> tuple[np.ndarray, np.ndarray]:
    """Components and their sums of squares, of the covariance of a few features."""
    products = np.zeros((x.shape[1], x.shape[1]))
    for part in x:
        centred = (part.toarray() if sparse.issparse(part) else part).astype(np.float64) - mean
        products += centred.T @ centred
    variance, components = np.linalg.eigh(products)
    best = np.argsort(-variance)[:num_components]
    return components[:, best], variance[best]


def _krylov(x: Rows, mean: np.ndarray, num_components: int) -> tuple[np.ndarray, np.ndarray]:
    """Components and their sums of squares, of the space that a random block spans with its images."""
    n, d = x.shape
    width = min(num_components + EXTRA, d, n)
    centre = mean.astype(np.float32)

    def image(v: np.ndarray) -> np.ndarray:
        """What the centred matrix and then its transpose make of directions `[genes, width]`, in one reading."""
        out, shift, total = np.zeros((d, v.shape[1]), np.float32), centre @ v, np.zeros(v.shape[1])
        for part in x:
            part = part.astype(np.float32, copy=False)
            u = part @ v - shift
            out += part.T @ u
            total += u.sum(axis=0, dtype=np.float64)
        return out - np.multiply.outer(centre, total.astype(np.float32))

    block = np.random.default_rng(SEED).standard_normal((d, width), np.float32)
    basis, images = np.zeros((d, 0), np.float32), np.zeros((d, 0), np.float32)
    for _ in range(max(1, min(STEPS, d // width))):
        for _ in range(2):  # once leaves a rest of what was there already, as large as rounding
            block = np.linalg.qr(block - basis @ (basis.T @ block))[0]
        basis = np.concatenate([basis, block], axis=1)
        block = image(block)
        images = np.concatenate([images, block], axis=1)
    products = basis.T.astype(np.float64) @ images
    variance, turn = np.linalg.eigh((products + products.T) / 2)
    best = np.argsort(-variance)[:num_components]
    return basis @ turn[:, best], variance[best]
