"""Where the features of a modality stand in an AnnData."""

import dataclasses
from typing import Any

import numpy as np

from psa_jax.data.rows import Rows
from psa_jax.io.containers import column, layers_of, listed, matrix


@dataclasses.dataclass(frozen=True)
class Origin:
    """A matrix of an AnnData, or some of its columns.

    Attributes:
        layer: a layer instead of `X`.
        obsm: an array of `obsm` instead of `X`.
        feature_type: of `X` or the layer, only the features with this value of `var["feature_types"]`; all of them
            in a file that has no such column.
    """

    layer: str | None = None
    obsm: str | None = None
    feature_type: str | None = None

    def __str__(self) -> str:
        if self.obsm is not None:
            return f"obsm[{self.obsm!r}]"
        return "X" if self.layer is None else f"layers[{self.layer!r}]"

    @property
    def embedding(self) -> bool:
        """Whether these are coordinates, no counts even where they are whole: scanpy's `X_pca` and the like."""
        return self.obsm is not None and self.obsm.startswith("X_")

    def read(self, adata: Any, modality: str) -> tuple[Rows, tuple[str, ...]]:
        """The matrix `[cells, features]`, some rows at a time, and the names of its features.

        Raises:
            ValueError: no such layer, array or feature type, no matrix, or no numbers in it; it names the modality.
        """
        if self.obsm is not None:
            if self.obsm not in adata.obsm:
                raise ValueError(
                    f"modality {modality!r}: expected one of {listed(adata.obsm)} in obsm, got {self.obsm!r}"
                )
            found = adata.obsm[self.obsm]
            x = matrix(f"obsm[{self.obsm!r}]", found, adata.n_obs)
            columns = getattr(found, "columns", [f"{self.obsm}_{i}" for i in range(x.shape[1])])
            return x, tuple(map(str, columns))
        if self.layer is not None and self.layer not in adata.layers:
            raise ValueError(f"layer: expected one of {listed(layers_of(adata))} of {modality!r}, got {self.layer!r}")
        found = adata.X if self.layer is None else adata.layers[self.layer]
        if found is None:
            raise ValueError(
                f"modality {modality!r}: expected a matrix X, the file has none (`layer` names another, of "
                f"{listed(layers_of(adata))})"
            )
        x, names = matrix(f"modality {modality!r}: {self}", found, adata.n_obs), np.asarray(adata.var_names)
        if self.feature_type is not None and "feature_types" in adata.var:
            ours = feature_types(adata) == self.feature_type
            if not ours.any():
                raise ValueError(
                    f"modality {modality!r}: expected features of type {self.feature_type!r} in var['feature_types'], "
                    f"got {sorted(set(feature_types(adata).tolist()))}"
                )
            if not ours.all():
                columns, names = np.flatnonzero(ours), names[ours]
                x = x.map(lambda part: part[:, columns], columns.size)
        return x, tuple(map(str, names))


def feature_types(adata: Any) -> np.ndarray:
    """The type of each feature, as text; empty where the file has no such column."""
    if "feature_types" not in adata.var:
        return np.array([], str)
    return np.asarray(column(adata.var, "feature_types", "modalities", "var").astype(str))
