"""What was done to the features of a modality, kept to be done again to new cells."""

import dataclasses
import warnings
from typing import Any

import numpy as np
from scipy import sparse

import psa_jax
from psa_jax.align.alignment import AlignmentWarning
from psa_jax.arguments import checked
from psa_jax.data.components import moments, principal_components, scores
from psa_jax.data.counts import Survey, log_normalised, survey
from psa_jax.data.rows import Rows, whole
from psa_jax.io.containers import check_anndata, matrix, some
from psa_jax.io.origin import Origin


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Preparation:
    """From features of a file to those that were aligned: in their order, normalised, as principal components.

    Attributes:
        modality: its name.
        origin: where in an AnnData the features stand.
        features: their names, in order.
        counts: whether they were counts.
        total: counts are brought to this total in each cell, then `log(1 + count)` is taken; None leaves them.
        mean: `[features]` the training cells' mean, after that.
        components: `[features, k]` principal components of the training cells; None keeps all features.
        version: of psa_jax.

    Example:
        >>> from psa_jax.data.rows import rows_of
        >>> x = np.array([[1.0, 2.0], [3.0, 5.0], [4.0, 0.5]])
        >>> done, _ = learn_preparation("rna", Origin(), ("g1", "g2"), rows_of(x), survey(x), None, as_is=False)
        >>> done
        Preparation of 'rna': 2 features of X as they are
        >>> done.apply(x[2:]).tolist()
        [[4.0, 0.5]]
    """

    modality: str
    origin: Origin
    features: tuple[str, ...]
    counts: bool
    total: float | None
    mean: np.ndarray
    components: np.ndarray | None
    version: str

    def __repr__(self) -> str:
        """One line."""
        return f"Preparation of {self.modality!r}: {self.summary()}"

    def summary(self) -> str:
        """What is done, in words."""
        words = f"{len(self.features)} features of {self.origin}"
        words += f", {self.normalisation}" if self.total is not None else " as they are"
        return words if self.components is None else f"{words}, {self.components.shape[1]} principal components"

    @property
    def normalisation(self) -> str:
        """The unit of normalised features, in words."""
        if self.total is None:
            return "counts as they are" if self.counts else "as they are"
        return f"counts to a total of {self.total:g} a cell, then log(1 + count)"

    @checked
    def prepare(self, adata: Any, *, fill_missing: bool = False) -> np.ndarray:
        """Prepares the cells of an AnnData as those of training were, `[n, k]` float32.

        Features in another order are put right by their names; others than those of training are left out.

        Args:
            adata: an `anndata.AnnData` with the same features at the same place (`origin`).
            fill_missing: missing features take their training means, with a warning that says how many; else they
                raise.

        Raises:
            ValueError: features missing, no counts where training had counts, names that occur twice and are not
                those of training in their order, values that are not finite, no such layer or array.
        """
        check_anndata("adata", adata)
        x, names = self.origin.read(adata, self.modality)
        x, places = self._ordered(x, names, fill_missing)
        return self._reduced(self._normalised(x), places)

    @checked
    def normalised(self, adata: Any, *, fill_missing: bool = False) -> Any:
        """All features of an AnnData's cells before they are reduced, `[n, features]`; sparse if they are stored so.

        Arguments and errors are those of `prepare`.
        """
        check_anndata("adata", adata)
        x, names = self.origin.read(adata, self.modality)
        x, places = self._ordered(x, names, fill_missing)
        x = self._normalised(x)
        return whole(x if places is None else self._filled(x, places))

    @checked
    def apply(self, x: Any) -> np.ndarray:
        """As `prepare`, of a matrix `[n, features]`: an array, a sparse one, or a table with the features' names."""
        if hasattr(x, "obs_names"):
            return self.prepare(x)
        names = tuple(map(str, x.columns)) if hasattr(x, "columns") else self.features
        if getattr(x, "ndim", 0) != 2:
            raise ValueError(f"x: expected numbers [n, {len(self.features)}], got {type(x).__name__}")
        x = matrix("x", x, x.shape[0])
        if x.shape[1] != len(names):
            raise ValueError(f"x: expected the {len(names)} features of training in their order, got {x.shape[1]}")
        x, places = self._ordered(x, names, False)
        return self._reduced(self._normalised(x), places)

    def _ordered(self, x: Rows, names: tuple[str, ...], fill_missing: bool) -> tuple[Rows, np.ndarray | None]:
        """The features of training that there are, in its order; their places, or None for all."""
        if names == self.features:
            return x, None
        place = {name: i for i, name in enumerate(names)}
        for where, these, distinct in (
            ("the file", names, len(place)),
            ("training", self.features, len(set(self.features))),
        ):
            if distinct < len(these):
                raise ValueError(
                    f"modality {self.modality!r}: expected the features of training in their order, because some names "
                    f"of {where} occur twice, got another order or others"
                )
        there = np.array([name in place for name in self.features], bool)
        missing = [name for name, found in zip(self.features, there, strict=True) if not found]
        if missing and not (fill_missing and there.any()):
            hint = ": fill_missing=True takes their training means" if there.any() else ""
            raise ValueError(
                f"modality {self.modality!r}: expected the {len(there)} features of training, got none for "
                f"{len(missing)} of them ({some(missing)}){hint}"
            )
        if missing:
            warnings.warn(
                f"modality {self.modality!r}: {len(missing)} of {len(there)} features are missing and take their "
                f"training means ({some(missing)})",
                AlignmentWarning,
                stacklevel=4,
            )
        columns = np.array([place[name] for name in np.asarray(self.features, object)[there]], int)
        return x.map(lambda part: part[:, columns], columns.size), np.flatnonzero(there) if missing else None

    def _normalised(self, x: Rows) -> Rows:
        found = survey(x)
        if not found.finite:
            raise ValueError(f"modality {self.modality!r}: expected finite features, got NaN or infinity")
        if self.counts and found.something and not found.whole:
            raise ValueError(
                f"modality {self.modality!r}: expected counts in {self.origin}, as in training, got other numbers"
            )
        if found.counts and not self.counts and not self.origin.embedding:
            warnings.warn(
                f"modality {self.modality!r}: {self.origin} holds counts, and did not in training: are they the same?",
                AlignmentWarning,
                stacklevel=4,
            )
        return _brought_to(x, self.total)

    def _reduced(self, x: Rows, places: np.ndarray | None) -> np.ndarray:
        if self.components is None:
            found = whole(x if places is None else self._filled(x, places))
            return np.asarray(found.toarray() if sparse.issparse(found) else found, np.float32)
        there = slice(None) if places is None else places
        return scores(x, self.mean[there], self.components[there])  # what takes its mean adds nothing

    def _filled(self, x: Rows, places: np.ndarray) -> Rows:
        def fill(part: Any) -> np.ndarray:
            out = np.tile(self.mean.astype(np.float32), (part.shape[0], 1))
            out[:, places] = part.toarray() if sparse.issparse(part) else part
            return out

        return x.map(fill, len(self.features))


def normalised_rows(done: Preparation, adata: Any, cells: np.ndarray) -> Rows:
    """All features of the cells marked in `cells` `[n]` before they are reduced, some rows at a time."""
    x, names = done.origin.read(adata, done.modality)
    x, _ = done._ordered(x.where(cells), names, False)
    return done._normalised(x)


def prepare_some(done: Preparation, adata: Any, cells: np.ndarray) -> np.ndarray:
    """As `done.prepare`, of the cells marked in `cells` `[n]`."""
    return done._reduced(normalised_rows(done, adata, cells), None)


def learn_preparation(
    modality: str,
    origin: Origin,
    features: tuple[str, ...],
    x: Rows,
    found: Survey,
    num_components: int | None,
    *,
    as_is: bool,
) -> tuple[Preparation, np.ndarray]:
    """The preparation that training features `[n, features]` ask for, and what it makes of them `[n, k]`.

    Counts (`found` says whether they are) are normalised unless they are taken as they are (`as_is`); a modality with
    more features than `num_components` is reduced to so many principal components, fewer if there are not more cells.
    """
    counts = not origin.embedding and found.counts
    total = found.usual_total if counts and not as_is else None
    x = _brought_to(x, total)
    components = None
    if num_components is not None and x.shape[1] > num_components and min(x.shape) > 1:
        try:
            mean, components = principal_components(x, min(num_components, min(x.shape) - 1))
        except ValueError as error:
            raise ValueError(f"modality {modality!r}: {error}") from error
        components = components.astype(np.float32)
    else:
        mean, _ = moments(x)
    done = Preparation(
        modality, origin, features, counts, total, mean.astype(np.float32), components, psa_jax.__version__
    )
    return done, done._reduced(x, None)


def _brought_to(x: Rows, total: float | None) -> Rows:
    """Normalised anew in every reading, which takes less time than memory takes to hold it."""
    return x if total is None else x.map(lambda part: log_normalised(part, total))
