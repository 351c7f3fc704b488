"""Training the classifiers of one modality, as one piece of work with all that decides it."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Key

from psa_jax.data.samples import Modality
from psa_jax.data.source import Source, has_source, reading
from psa_jax.devices import cores
from psa_jax.progress import Watch
from psa_jax.propensity.augment import as_tree
from psa_jax.propensity.crossfit import crossfit_members
from psa_jax.propensity.fit import fit_ensemble, train_one
from psa_jax.propensity.loop import Fitted, History
from psa_jax.propensity.model import Model, logits
from psa_jax.propensity.panel import Panel
from psa_jax.propensity.training import Training
from psa_jax.types import Array, Float, Int, KeyArray, PyTree, pytree


@pytree
class Trained:
    """Classifiers and what they say.

    Attributes:
        logits: of the samples to score, or of those to look at.
        held_out: of the samples that judge, or None where these are the same.
        fitted: the classifiers.
        fold: `[n]` whose classifiers have not seen the sample; None without folds, or where all were asked.
    """

    logits: Float[Array, "members n K"]
    held_out: Float[Array, "members h K"] | None
    fitted: Fitted
    fold: Int[Array, " n"] | None


@dataclasses.dataclass(frozen=True)
class Task:
    """All that decides what is trained; see `learn`.

    Attributes:
        name: of the modality.
        keys: of the members.
        model: the classifier.
        learn: what to learn from.
        target: the samples to score, None for those of `learn`, by cross-fitting.
        valid: held-out samples, with a target.
        folds: of cross-fitting.
        training: with numbers for all that depends on the samples.
        augment: one for all members or a tuple, which they take in turn.
        rows: the samples to look at, of those to score; None for all.
        judges: the same of those held out.
        watch: who is told of the progress.
        mesh: the devices that train.
    """

    name: str
    keys: Key[Array, " members"]
    model: Model
    learn: Modality
    target: Modality | None
    valid: Modality | None
    folds: int
    training: Training
    augment: Any
    rows: np.ndarray | None
    judges: np.ndarray | None
    watch: Watch
    mesh: Mesh | None

    def train(self) -> Trained:
        """Fits the classifiers and asks them."""
        sides, epochs = (self.learn, self.target, self.valid), self.training.epochs
        assert epochs is not None
        total = self.keys.shape[0] * (self.folds or 1) * epochs
        together = self.mesh.size if self.mesh is not None else 1 if has_source(self.learn.x) else cores()
        self.watch.begin("classifiers", total, modality=self.name, epochs=epochs, together=together)
        with reading(*((f"modality {self.name}: x", side.x) for side in sides if side is not None)) as wait:
            return wait(self._by_folds() if self.target is None else self._held_out())

    def panel(self, fitted: Fitted, fold: Any) -> Panel:
        """What scores all samples."""
        x = (self.learn if self.target is None else self.target).x
        return Panel(self.model, fitted.params, x, None if fold is None else np.asarray(fold), self.mesh)

    def _by_folds(self) -> Trained:
        out, fold, fitted = crossfit_members(
            self.keys, self.model, self.learn.x, self.learn.t, self.folds, self.training, self.augment, None,
            self.watch.on_epoch, self.mesh, scored=self.rows is None,
        )  # fmt: skip
        if self.rows is None:
            assert out is not None
            return Trained(out, None, fitted, None)
        return Trained(self.panel(fitted, fold[0]).logits(self.rows), None, fitted, fold[0])

    def _held_out(self) -> Trained:
        assert self.target is not None
        assert self.valid is not None
        fitted = fit_ensemble(
            self.keys, self.model, self.learn.x, self.learn.t, valid=(self.valid.x, self.valid.t),
            training=self.training, augment=self.augment, on_epoch=self.watch.on_epoch, mesh=self.mesh,
        )  # fmt: skip
        if self.rows is None:
            found, judged = (_member_logits(self.model, fitted.params, side.x) for side in (self.target, self.valid))
            return Trained(found, judged, fitted, None)
        assert self.judges is not None
        judged = Panel(self.model, fitted.params, self.valid.x, None, self.mesh).logits(self.judges)
        return Trained(self.panel(fitted, None).logits(self.rows), judged, fitted, None)

    @property
    def arrays(self) -> PyTree:
        """All arrays and sources that decide what is trained."""
        return self.keys, self.learn, self.target, self.valid, self.rows, self.judges

    def programs(self) -> list[Any]:
        """The program that trains one classifier, for each augment: what it does is in their texts and constants."""
        x, t = self.learn.x, jnp.asarray(self.learn.t)
        n, held_out = x.shape[0], None
        if self.target is None:
            least, most = n // self.folds, -(-n // self.folds)
            held_out = _first(x, least), t[:least]
            x, t = _first(x, n - most - least), t[: n - most - least]
        elif self.valid is not None:
            held_out = self.valid.x, jnp.asarray(self.valid.t)

        def program(augment: Any) -> Any:
            def train(key: KeyArray, x: Any, t: Any, valid: Any) -> Fitted:
                return train_one(key, x, t, valid, as_tree(augment), None, {}, self.model, self.training, None)

            return jax.make_jaxpr(train)(self.keys[0], x, t, held_out)

        several = self.augment if isinstance(self.augment, tuple) else (self.augment,)
        return [program(augment) for augment in several]

    def like(self, leaves: dict[str, Any]) -> Trained:
        """A tree of the structure of what `train` gives, the shapes those of the leaves of a file."""

        def one(name: str) -> Any:
            return jax.ShapeDtypeStruct(leaves[name].shape, leaves[name].dtype) if name in leaves else None

        def needed(name: str) -> Any:  # whoever fills in the tree says that it is missing
            return one(name) or jax.ShapeDtypeStruct((), jnp.float32)

        x = self.learn.x
        params = jax.eval_shape(self.model.init, jax.random.key(0), jax.ShapeDtypeStruct((2, *x.shape[1:]), x.dtype))
        place = jax.tree_util.tree_map_with_path(
            lambda path, leaf: one(f".fitted.params{jax.tree_util.keystr(path)}") or leaf, params
        )
        history = History(*(needed(f".fitted.history.{name}") for name in History.__dataclass_fields__))
        fitted = Fitted(place, history, one(".fitted.unmatched"), self.model)
        return Trained(needed(".logits"), one(".held_out"), fitted, one(".fold"))


def _first(x: Any, number: int) -> Any:
    """As many samples as shapes: what they are does not matter."""
    if isinstance(x, Source):
        return x.take(np.arange(number, dtype=np.int32))
    return jax.ShapeDtypeStruct((number, *x.shape[1:]), x.dtype)


@functools.partial(jax.jit, static_argnames="model")
def _member_logits(model: Model, params: PyTree, x: Array | Source) -> Float[Array, "members n K"]:
    """The logits of an ensemble, whose params have a leading axis `[members]`."""
    return jax.lax.map(lambda member: logits(model, member, x), params)
