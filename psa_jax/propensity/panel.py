"""Trained classifiers and who of them may score which sample: logits a few samples at a time."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from psa_jax.data.source import Source, map_parts, some
from psa_jax.devices import each_run
from psa_jax.propensity.model import Model, member_logits
from psa_jax.propensity.scorer import Scorer, averaged
from psa_jax.types import Array, Float, Int, PyTree

MOST_LOGITS, FEWEST = 2**22, 16  # held at a time, of all members; samples at a time


@dataclasses.dataclass(frozen=True)
class Panel:
    """Classifiers, and the samples that they score.

    Attributes:
        model: of the classifiers.
        params: every leaf has a leading axis `[members]`, and with folds `[members, folds]`.
        x: features `[n, ...]`.
        fold: `[n]` the fold whose classifiers have not seen the sample; None where none has, and there are no folds.
        mesh: the devices to use.
    """

    model: Model
    params: PyTree
    x: Array | Source
    fold: np.ndarray | None
    mesh: Mesh | None

    def logits(self, rows: np.ndarray) -> Float[Array, "members h K"]:
        """Of the samples with these numbers."""
        params, own, place = self._parts(rows)
        return _logits(params, self.x, own, place, rows.size, model=self.model, mesh=self.mesh)

    def scores(
        self, scorer: Scorer, batch: Int[Array, " n"] | None
    ) -> tuple[Float[Array, "n r"], Float[Array, "members n r"], Array]:
        """Of all samples: by the mean logits, by each member's, and which of the former are finite."""
        n = self.x.shape[0]
        params, own, place = self._parts(np.arange(n))
        return _scores(params, self.x, own, place, n, scorer, batch, model=self.model, mesh=self.mesh)

    def _parts(self, rows: np.ndarray) -> tuple[PyTree, np.ndarray, np.ndarray]:
        """Parameters with the folds first, the samples of each fold `[folds, s]`, and where their scores go.

        Padding is scored as the first sample is, and goes nowhere.
        """
        if self.fold is None:
            return jax.tree.map(lambda leaf: leaf[None], self.params), rows[None], np.arange(rows.size)[None]
        params = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), self.params)
        number = jax.tree.leaves(params)[0].shape[0]
        place = [np.flatnonzero(self.fold[rows] == f) for f in range(number)]
        most = max(1, *(part.size for part in place))
        padded = np.stack([np.pad(part, (0, most - part.size), constant_values=rows.size) for part in place])
        return params, np.append(rows, 0)[padded], padded


def _folds(
    fn: Callable[[Array, Array], PyTree], params: PyTree, x: Any, own: Any, model: Model, mesh: Mesh | None
) -> PyTree:
    """`fn(ids, logits [members, k, K])` of each fold's samples, whose leaves `[k, ...]` become `[folds, s, ...]`."""
    rows = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
    held = jax.eval_shape(functools.partial(member_logits, model), jax.tree.map(lambda leaf: leaf[0], params), rows)
    chunk = max(FEWEST, MOST_LOGITS // held.size)

    def fold(x: Any, args: Any) -> PyTree:
        params, own = args
        return map_parts(lambda place, rows: fn(own[place], member_logits(model, params, rows)), some(x, own), chunk)

    cut = not isinstance(x, Source)
    return each_run(fold, x, (params, jnp.asarray(own)), mesh=mesh, together=False, cut=cut)


def _put(parts: Array, place: Any, n: int) -> Array:
    """Rows `[folds, s, ...]` at their places `[n, ...]`."""
    return jnp.zeros((n, *parts.shape[2:]), parts.dtype).at[place].set(parts, mode="drop")


@functools.partial(jax.jit, static_argnames=("n", "model", "mesh"))
def _logits(params: PyTree, x: Any, own: Any, place: Any, n: int, *, model: Model, mesh: Mesh | None) -> Array:
    parts = _folds(lambda ids, found: jnp.swapaxes(found, 0, 1), params, x, own, model, mesh)
    return jnp.swapaxes(_put(parts, place, n), 0, 1)


@functools.partial(jax.jit, static_argnames=("n", "model", "mesh"))
def _scores(
    params: PyTree, x: Any, own: Any, place: Any, n: int, scorer: Scorer, batch: Any, *, model: Model, mesh: Mesh | None
) -> tuple[Array, Array, Array]:
    members = jax.tree.leaves(params)[0].shape[1]

    def convert(ids: Array, found: Array) -> PyTree:
        told = None if batch is None else batch[ids]
        mean = scorer.convert(averaged(found, scorer.weights), told)
        each = [] if members == 1 else [jax.vmap(lambda one: scorer.convert(one, told), out_axes=1)(found)]
        return mean, each, jnp.isfinite(mean).all(-1)

    parts = _folds(convert, params, x, own, model, mesh)
    mean, each, finite = jax.tree.map(lambda part: _put(part, place, n), parts)
    return mean, jnp.moveaxis(each[0], 1, 0) if each else mean[None], finite
