"""Out-of-fold logits: every sample scored by a classifier that never saw its label."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh

from psa_jax.arguments import checked
from psa_jax.data.source import Source, has_source, reading, some
from psa_jax.devices import each_run, side_by_side
from psa_jax.propensity.augment import in_turn
from psa_jax.propensity.checks import check
from psa_jax.propensity.fit import train_one
from psa_jax.propensity.loop import Fitted
from psa_jax.propensity.model import Model, logits
from psa_jax.propensity.training import Training, check_training
from psa_jax.types import Array, Augment, Float, Int, KeyArray, host_rng, pytree

VECTORIZE_BYTES = 2**30


@pytree
class CrossFitted:
    """Logits from classifiers that never saw the sample.

    Attributes:
        logits: `[n, K]`.
        fold: `[n]` which of the classifiers gave the logits of each sample.
        fitted: the classifiers, every leaf with a leading axis `[folds]`.
    """

    logits: Float[Array, "n K"]
    fold: Int[Array, " n"]
    fitted: Fitted


@checked
def crossfit(
    key: KeyArray,
    model: Model,
    x: Float[Array, "n ..."] | Source,
    t: Int[Array, " n"],
    *,
    folds: int = 5,
    training: Training = Training(),
    augment: Augment | None = None,
    class_weights: Float[Array, " K"] | None = None,
    on_epoch: Callable[..., None] | None = None,
) -> CrossFitted:
    """Logits of every sample from a classifier that saw its label neither in training nor in selection.

    A classifier that has memorised labels gives its training samples scores that say nothing about them. Here
    samples are dealt into stratified folds; classifier f scores fold f, keeps the parameters that are best on
    fold f + 1 and trains on the rest. All folds have one shape (one training sample may be left out) and
    share one program. Classifiers differ, so logits of different folds agree only up to the noise of
    training.

    Args:
        key: decides the folds and, split by fold, the training.
        model, x, training, class_weights: as in `fit`.
        t: `[n]` labels on the host: this function is not for use inside `jit`. A treatment with fewer samples
            than folds is missing from the training of some classifiers.
        folds: at least 3.
        augment: see `fit`; scored samples are not augmented.
        on_epoch: see `fit`; called for every fold.

    Returns:
        Logits `[n, K]`, the fold `[n]` of each sample and the classifiers `[folds]`.

    Raises:
        ValueError: as `fit`, and for fewer than 3 folds, fewer samples than folds, or traced labels.

    Example:
        >>> from psa_jax.propensity.nets import linear
        >>> x = jnp.arange(9.0)[:, None]
        >>> out = crossfit(jax.random.key(0), linear(2), x, jnp.arange(9) // 5, folds=3, training=Training(epochs=2))
        >>> out.logits.shape, np.bincount(out.fold).tolist()
        ((9, 2), [3, 3, 3])
    """
    with reading(("x", x)) as wait:
        found = wait(crossfit_members(key[None], model, x, t, folds, training, augment, class_weights, on_epoch))
    return CrossFitted(*jax.tree.map(lambda leaf: leaf[0], found))


def crossfit_members(
    keys: Any,
    model: Model,
    x: Any,
    t: Any,
    folds: int,
    training: Training,
    augment: Any,
    class_weights: Any,
    on_epoch: Callable[..., None] | None,
    mesh: Mesh | None = None,
    scored: bool = True,
) -> tuple[Float[Array, "members n K"] | None, Int[Array, "members n"], Fitted]:
    """`crossfit` of several keys `[members]`, which take the augments in turn, as one program.

    Without scores there are no logits, and all members deal samples alike, so that what a sample's classifiers say can
    be averaged before all is known.
    """
    judged = dataclasses.replace(check_training(training), patience=None)  # by folds, not by data that are given
    x, t, _ = check(model, x, t, None, class_weights, judged)
    if isinstance(t, Tracer):
        raise ValueError("t: expected labels on the host, got traced ones (call crossfit outside of jit)")
    if folds < 3 or folds > t.size:
        raise ValueError(f"folds: expected at least 3 and at most n = {t.size}, got {folds}")
    members = keys.shape[0]
    pairs = [jax.random.split(key) for key in keys]
    dealt = [_deal(key_folds, np.asarray(t), folds) for key_folds, _ in (pairs if scored else pairs[:1])]
    dealt = dealt if scored else dealt * members
    ids = tuple(np.concatenate(part) for part in zip(*(ids for _, ids in dealt), strict=True))  # [members * folds, ...]
    runs = (
        jnp.concatenate([jax.random.split(key_fit, folds) for _, key_fit in pairs]),
        ids,
        jnp.arange(members * folds),
        jax.tree.map(lambda setting: jnp.repeat(setting, folds, 0), in_turn(augment, members)),
    )
    static: Any = {
        "model": model,
        "training": training.annealed(max(t.size * (folds - 2) // folds, 1), judged=True),
        "on_epoch": on_epoch,
        "folds": folds,
        "vectorize": jax.default_backend() != "cpu" and members * folds * x.nbytes <= VECTORIZE_BYTES,
        "mesh": mesh,
        "scored": scored,
    }
    shared = x, t, class_weights
    alone = mesh is not None or has_source(x)
    done = _crossfit(shared, runs, **static) if alone else side_by_side(_crossfit, shared, runs, **static)
    out, fitted = jax.tree.map(lambda leaf: leaf.reshape(members, folds, *leaf.shape[1:]), done)
    fold = jnp.asarray(np.stack([fold for fold, _ in dealt]), jnp.int32)
    return None if out is None else _in_place(out, ids[2].reshape(members, folds, -1), t.size), fold, fitted


@functools.partial(jax.jit, static_argnames=("model", "training", "on_epoch", "folds", "vectorize", "mesh", "scored"))
def _crossfit(
    shared: Any,
    runs: Any,
    *,
    model: Model,
    training: Training,
    on_epoch: Callable[..., None] | None,
    folds: int,
    vectorize: bool,
    mesh: Mesh | None,
    scored: bool,
) -> tuple[Array | None, Fitted]:
    def one(shared: Any, args: Any) -> tuple[Array | None, Fitted]:
        x, t, weights = shared
        key, (train, valid, own), place, augment = args
        held_out, names = (some(x, valid), t[valid]), {"member": place // folds, "fold": place % folds}
        fitted = train_one(key, some(x, train), t[train], held_out, augment, weights, names, model, training, on_epoch)
        return logits(model, fitted.params, some(x, jnp.minimum(own, t.size - 1))) if scored else None, fitted

    return each_run(one, shared, runs, mesh=mesh, together=vectorize, cut=not has_source(shared))


@functools.partial(jax.jit, static_argnames="n")
def _in_place(out: Array, own: Array, n: int) -> Float[Array, "members n K"]:
    """Each fold's logits `[members, folds, s, K]` where its samples `[members, folds, s]` are."""
    empty = jnp.zeros((n, out.shape[-1]), out.dtype)
    return jax.vmap(lambda own, out: empty.at[own].set(out, mode="drop"))(own, out)


def _deal(key: KeyArray, t: np.ndarray, folds: int) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Stratified folds: `[n]` fold of each sample; ids `[folds, ...]` to train on, select by, score."""
    n = t.size
    rng = host_rng(key)
    fold = np.empty(n, np.int64)
    fold[np.lexsort((rng.random(n), t))] = np.arange(n) % folds
    order = rng.permutation(n)
    least, most = n // folds, -(-n // folds)
    plan = []
    for f in range(folds):
        scored = np.flatnonzero(fold == f)
        valid = order[fold[order] == (f + 1) % folds][:least]
        train = np.setdiff1d(order, np.concatenate([scored, valid]))
        spare = order[np.isin(order, train)][: train.size - (n - most - least)]
        padded = np.pad(scored, (0, most - scored.size), constant_values=n)  # read as the last, never written
        plan.append((np.setdiff1d(train, spare), valid, padded))
    return fold, tuple(np.stack(part).astype(np.int32) for part in zip(*plan, strict=True))
