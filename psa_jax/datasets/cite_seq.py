"""CITE-seq: expression and surface proteins of the same cells, in the layout of GEO GSE194122."""

from os import PathLike
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy import sparse

from psa_jax.arguments import checked
from psa_jax.data.components import principal_components
from psa_jax.data.samples import Modality, Truth, Unpaired

ORDER_SEED = 194122


@checked
def cite_seq(
    path: str | PathLike[str], *, num_components: int = 50, split: str | None = None
) -> tuple[Unpaired, Truth]:
    """Reads cells with expression (modality a) and surface proteins (modality b); cell types are treatments.

    Expression is log-normalised `X`, centred with the mean of the training cells and projected on the
    principal components of the training cells (`is_train == "train"`), whatever the split: no held-out cell
    has a say in them. Each component's largest weight is positive. Proteins are the centred log-ratio of each
    cell's raw counts, `log(1 + count) - mean over proteins of log(1 + count)`, which involves no other cell.

    The file is an AnnData: `var["feature_types"]` in {GEX, ADT}, `obs["cell_type"]`, `obs["is_train"]`
    (train, test, iid_holdout), log-normalised `X` and raw counts in `layers["counts"]`. Genes stay sparse.

    Args:
        path: the `.h5ad` file.
        num_components: how many principal components, below the numbers of training cells and of genes.
        split: return only the cells with this value of `is_train`; None returns all. Treatment codes are the
            same for every split.

    Returns:
        `a.x` `[n, num_components]` float32 in the order of the file, `b.x` `[n, proteins]` float32 in an
        order that depends only on `n` (numpy's `default_rng(194122)`; no row keeps its place) and the true
        pairs. No latents are known. `cite_seq_cell_types` names the treatment codes.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: anndata is not installed.
        ValueError: a column, a matrix or a kind of feature is missing, `split` has no cell, no cell is a
            training cell, a cell has no type, or there are too many components.

    Example:
        >>> cite_seq("GSE194122.h5ad", split="train")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        FileNotFoundError: ...Gene Expression Omnibus, accession GSE194122...

    References:
        Luecken et al. (2021), A sandbox for prediction and integration of DNA, RNA, and proteins in single
        cells, NeurIPS Datasets and Benchmarks.
    """
    cells = _read(path)
    _need("obs column", cells.obs.columns, "cell_type", "is_train")
    _need("var column", cells.var.columns, "feature_types")
    _need("layer", cells.layers, "counts")
    _need("matrix", () if cells.X is None else ("X",), "X")
    kind = np.asarray(cells.var["feature_types"], str)
    _need("feature type", np.unique(kind), "GEX", "ADT")
    part = np.asarray(cells.obs["is_train"], str)
    _need("is_train value", np.unique(part), "train")
    rows = np.arange(part.size) if split is None else np.flatnonzero(part == split)
    if not rows.size:
        raise ValueError(f"split: expected one of {np.unique(part).tolist()}, got {split!r}")
    names, t = _cell_types(cells)

    genes = sparse.csr_array(cells.X)[:, np.flatnonzero(kind == "GEX")]
    mean, components = principal_components(genes[np.flatnonzero(part == "train")], num_components)
    expression = genes[rows] @ components - mean @ components
    counts = sparse.csr_array(cells.layers["counts"])[:, np.flatnonzero(kind == "ADT")][rows]
    log_counts = np.log1p(counts.toarray().astype(np.float64))
    proteins = log_counts - log_counts.mean(axis=1, keepdims=True)

    order = np.random.default_rng(ORDER_SEED).permutation(rows.size)
    pair = np.empty_like(order)
    pair[order] = np.roll(order, 1)
    source = np.argsort(pair)
    t = t[rows]
    a = Modality(jnp.asarray(expression, jnp.float32), jnp.asarray(t, jnp.int32))
    b = Modality(jnp.asarray(proteins[source], jnp.float32), jnp.asarray(t[source], jnp.int32))
    return Unpaired(a, b, len(names), names), Truth(jnp.asarray(pair, jnp.int32))


@checked
def cite_seq_cell_types(path: str | PathLike[str]) -> tuple[str, ...]:
    """Names the treatment codes of `cite_seq`: the cell types of the whole file, sorted. Reads no expression.

    Args:
        path: the `.h5ad` file.

    Returns:
        The cell type of each treatment code.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: anndata is not installed.
        ValueError: there is no column `cell_type`, or a cell has no type.

    Example:
        >>> cite_seq_cell_types("GSE194122.h5ad")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        FileNotFoundError: ...Gene Expression Omnibus, accession GSE194122...
    """
    cells = _read(path, backed="r")
    try:
        _need("obs column", cells.obs.columns, "cell_type")
        return _cell_types(cells)[0]
    finally:
        cells.file.close()


def _read(path: str | PathLike[str], backed: Any = None) -> Any:
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{path}: no such file. The CITE-seq data are in the Gene Expression Omnibus, accession "
            "GSE194122: download the processed CITE file (.h5ad.gz), decompress it and give its path"
        )
    try:
        import anndata
    except ImportError as error:
        raise ImportError("cite_seq needs anndata: pip install anndata mudata") from error
    return anndata.read_h5ad(path, backed=backed)


def _need(what: str, found: Any, *wanted: str) -> None:
    missing = [name for name in wanted if name not in found]
    if missing:
        there = sorted(str(name) for name in found if name is not None)
        raise ValueError(f"expected {what} {', '.join(map(repr, missing))}, got only {there}")


def _cell_types(cells: Any) -> tuple[tuple[str, ...], np.ndarray]:
    """The sorted names and the code of each cell."""
    column = cells.obs["cell_type"]
    untyped = int(column.isna().sum())
    if untyped:
        raise ValueError(f"cell_type: expected a type for every cell, got none for {untyped} of {column.size}")
    names, t = np.unique(np.asarray(column, str), return_inverse=True)
    return tuple(names.tolist()), t
