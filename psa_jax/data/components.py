"""Principal components of matrices that may be sparse, without a second copy of them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import sparse

SEED = 194122
EXACT, HELD = 4e9, 2e7  # operations and numbers: what is less than both is decomposed whole
EXTRA, STEPS = 14, 5  # directions beside those asked for; blocks of the Krylov space
CHUNK = 2**22  # numbers held in double precision at once
LEAST = 1e-10  # of the variance of features as large: below it, they are constant up to rounding


def principal_components(x: Any, num_components: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean `[genes]` and components `[genes, num_components]` of cells `[n, genes]`, by falling variance.

    Small matrices are decomposed whole. Of large ones a block Krylov space is searched (a random block of directions,
    and what the covariance makes of it, `STEPS` times), in single precision and without centring the matrix, whose
    zeros stay unwritten. The directions are the same every time; each component's largest weight is positive.

    Raises:
        ValueError: as many components as cells or genes, or more; features that do not vary.

    References:
        Musco and Musco, Randomized block Krylov methods for stronger and faster approximate singular value
        decomposition, NeurIPS 2015 (arXiv 1504.05477), algorithm 2, on the side of the genes.
    """
    n, d = x.shape
    if not 1 <= num_components < min(n, d):
        raise ValueError(
            f"num_components: expected 1 to {min(n, d) - 1} for {n} training cells and {d} genes, got {num_components}"
        )
    mean, scale = moments(x)
    if n * d <= HELD and n * d * min(n, d) <= EXACT:
        dense = (x.toarray() if sparse.issparse(x) else np.asarray(x)).astype(np.float64)
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
    parts = [part.astype(np.float32, copy=False) @ components - shift for part in chunks(x)]
    return np.concatenate(parts).astype(np.float32)


def moments(x: Any) -> tuple[np.ndarray, float]:
    """The mean of each column, and the sum of all squares; in double precision, a few rows at a time."""
    total, squares = np.zeros(x.shape[1]), 0.0
    for part in chunks(x):
        if sparse.issparse(part):
            data = part.data.astype(np.float64)
            total += np.bincount(part.indices, weights=data, minlength=x.shape[1])
            squares += float(data @ data)
        else:
            data = part.astype(np.float64)
            total += data.sum(axis=0)
            squares += float(np.vdot(data, data))
    return total / max(1, x.shape[0]), squares


def chunks(x: Any) -> Iterator[Any]:
    """The rows of a matrix, some at a time."""
    for first, last in bounds(x.shape[0], x.shape[1] if not sparse.issparse(x) else x.nnz // max(1, x.shape[0])):
        if not sparse.issparse(x):
            yield x[first:last]
            continue
        start, end = x.indptr[first], x.indptr[last]
        part = x.data[start:end], x.indices[start:end], x.indptr[first : last + 1] - start
        yield sparse.csr_array(part, shape=(last - first, x.shape[1]), copy=False)


def bounds(n: int, width: int) -> Iterator[tuple[int, int]]:
    """First and last of rows `[n, width]` that are few enough to hold in double precision."""
    step = max(1, CHUNK // max(1, width))
    for first in range(0, max(n, 1), step):
        yield first, min(n, first + step)


def _krylov(x: Any, mean: np.ndarray, num_components: int) -> tuple[np.ndarray, np.ndarray]:
    """Components and their sums of squares, of the space that a random block spans with its images."""
    n, d = x.shape
    width = min(num_components + EXTRA, d, n)
    centre = mean.astype(np.float32)

    def forward(v: np.ndarray) -> np.ndarray:
        return np.concatenate([part.astype(np.float32, copy=False) @ v for part in chunks(x)]) - centre @ v

    def backward(u: np.ndarray) -> np.ndarray:
        out, first = np.zeros((d, u.shape[1]), np.float32), 0
        for part in chunks(x):
            out += part.astype(np.float32, copy=False).T @ u[first : first + part.shape[0]]
            first += part.shape[0]
        return out - np.multiply.outer(centre, u.sum(axis=0, dtype=np.float64).astype(np.float32))

    block = np.random.default_rng(SEED).standard_normal((d, width), np.float32)
    basis, images = np.zeros((d, 0), np.float32), np.zeros((d, 0), np.float32)
    for _ in range(max(1, min(STEPS, d // width))):
        for _ in range(2):  # once leaves a rest of what was there already, as large as rounding
            block = np.linalg.qr(block - basis @ (basis.T @ block))[0]
        basis = np.concatenate([basis, block], axis=1)
        block = backward(forward(block))
        images = np.concatenate([images, block], axis=1)
    products = basis.T.astype(np.float64) @ images
    variance, turn = np.linalg.eigh((products + products.T) / 2)
    best = np.argsort(-variance)[:num_components]
    return basis @ turn[:, best], variance[best]
