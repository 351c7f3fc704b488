"""The whole thing: from unpaired data to a coupling, and from a coupling to figures."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from psa_jax.alignment import Alignment, AlignmentWarning
from psa_jax.augment import smoothing
from psa_jax.blocked import Blocked
from psa_jax.coupling import Coupling
from psa_jax.data import Unpaired, check_like, on_host, split, validate
from psa_jax.groups import Groups, group
from psa_jax.match import sinkhorn
from psa_jax.match.blockwise import blockwise
from psa_jax.match.eot import MAX_ROUNDING
from psa_jax.model import Model
from psa_jax.represent import represent
from psa_jax.score import centre
from psa_jax.types import Array, Augment, KeyArray

VALID_SHARE = 0.2


def align(
    key: KeyArray,
    data: Unpaired,
    *,
    query: Unpaired | None = None,
    valid: Unpaired | None = None,
    model_a: Model | None = None,
    model_b: Model | None = None,
    matcher: Callable[..., Coupling] = sinkhorn,
    augment_a: Augment | None = smoothing,
    augment_b: Augment | None = smoothing,
    optimizer: optax.GradientTransformation | None = None,
    epochs: int | None = None,
    batch_size: int = 128,
    patience: int | None = None,
    members: int = 1,
    folds: int = 5,
    transform: Callable[[Any], Any] = centre,
    divide_prior: bool = True,
    on_epoch: Callable[[Any, Any, Any], None] | None = None,
) -> Alignment:
    """Aligns two unpaired modalities: fits a classifier of the treatment to each, scores, matches within treatments.

    With a `query` the classifiers are fitted on `data` and the query is scored and matched. Without one `data` itself
    is, every sample scored by a classifier that saw its label neither in training nor in selection (`crossfit`), so
    that memorised labels cannot leak into the scores. Scores are calibrated by temperature, freed of their treatment
    frequencies, and restricted to the treatments that both modalities of `data` have.

    It runs on the host and compiles what it calls; each stage is a function of its own (`fit`, `crossfit`,
    `propensity`, `group`, `blockwise`) to build something else from.

    Args:
        key: a typed key.
        data: what to learn from. Sizes may differ; treatments may be missing in one modality.
        query: other samples of the same kind to align instead of `data`; they may have treatments that `data` lacks.
        valid: samples that select the best epoch and the temperature, with a query only; by default a fifth of `data`.
        model_a: classifier of modality a; by default `mlp((256, 256))` for `[n, d]` features and
            `conv((32, 64, 128))` for images.
        model_b: classifier of modality b.
        matcher: of one treatment, `(u, v, a, b) -> Coupling`.
        augment_a: random change of a batch that smooths the propensity, or None; see `smoothing`.
        augment_b: the same for modality b.
        optimizer: see `fit`.
        epochs: see `fit`; by default as many as make 2000 steps, but at least 20 and at most 500.
        batch_size: see `fit`.
        patience: see `fit`; by default a fifth of the epochs.
        members: classifiers to train for each modality; their logits are averaged.
        folds: see `crossfit`; without a query only.
        transform: of scores, see `propensity`.
        divide_prior: subtract the log treatment frequencies from the logits.
        on_epoch: see `fit`; called for every epoch of every classifier.

    Returns:
        The coupling and everything it came from. `coupling.info` says per treatment whether it converged.

    Raises:
        ValueError: invalid data (see `validate`), fewer than two treatments that both modalities have, a query of
            other features or treatments, `valid` without a query, scores that are not finite.

    Warns:
        AlignmentWarning: treatments that only one modality has, that did not converge, or whose scores have no
            direction (SNN); by name.

    Example:
        >>> from psa_jax.data import Modality
        >>> from psa_jax.nets import mlp
        >>> x = jax.random.normal(jax.random.key(0), (40, 2))
        >>> t = jnp.arange(40) % 2
        >>> data = Unpaired(Modality(x + t[:, None], t), Modality((x - t[:, None])[:30], t[:30]), 2)
        >>> result = align(jax.random.key(1), data, epochs=2, model_a=mlp((4,), 2), model_b=mlp((4,), 2))
        >>> result.coupling.apply(data.b.x).shape
        (40, 2)

    References:
        Xi et al., NeurIPS 2024 (arXiv 2404.01595).
    """
    _check(data, query, valid, members, batch_size)
    if not callable(matcher):
        raise ValueError(f"matcher: expected a function (u, v, a, b) -> Coupling, got {matcher!r}")
    data = on_host(data)
    query, valid = (None if part is None else on_host(part) for part in (query, valid))
    shared = np.intersect1d(np.asarray(data.a.t), np.asarray(data.b.t))
    if shared.size < 2:
        raise ValueError(
            f"data: expected at least two treatments that both modalities have, got only {shared.tolist()}: a "
            "propensity cannot be estimated (blockwise matches scores of your own)"
        )
    check_matcher(matcher, int(shared.size))
    key_split, key_a, key_b = jax.random.split(key, 3)
    aligned = data if query is None else query
    if query is not None and valid is None:
        data, valid = _hold_out(key_split, data)
    side_a, side_b = (
        represent(
            k,
            name,
            getattr(data, name),
            data.num_treatments,
            shared,
            target=None if query is None else getattr(query, name),
            valid=None if valid is None else getattr(valid, name),
            model=model,
            augment=augment,
            optimizer=optimizer,
            epochs=epochs,
            batch_size=batch_size,
            patience=patience,
            members=members,
            folds=folds,
            transform=transform,
            divide_prior=divide_prior,
            on_epoch=on_epoch,
        )
        for name, k, model, augment in (("a", key_a, model_a, augment_a), ("b", key_b, model_b, augment_b))
    )
    groups = group(aligned.a.t, aligned.b.t, aligned.num_treatments)
    coupling = blockwise(matcher)(side_a.scores, side_b.scores, groups)
    warn(coupling, groups)
    return Alignment(
        coupling,
        groups,
        side_a.scores,
        side_b.scores,
        side_a.fitted,
        side_b.fitted,
        side_a.calibration,
        side_b.calibration,
        side_a.member_scores,
        side_b.member_scores,
        side_a.scorer,
        side_b.scorer,
    )


def _check(data: Unpaired, query: Unpaired | None, valid: Unpaired | None, members: int, batch_size: int) -> None:
    validate(data)
    for name, value in (("members", members), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    if valid is not None and query is None:
        raise ValueError("valid: expected a query too; without one every sample is validated by cross-fitting")
    for name, other in (("query", query), ("valid", valid)):
        if other is None:
            continue
        check_like(name, other, data)


def check_matcher(matcher: Callable[..., Any], num_scores: int) -> None:
    """Traces the matcher on empty shapes: what it refuses is better known before training than after."""
    u, w = jax.ShapeDtypeStruct((2, num_scores), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.float32)
    kinds = []

    def probe(u: Array, v: Array, a: Array, b: Array) -> tuple[()]:
        kinds.append(type(matcher(u, v, a, b)))
        return ()

    jax.eval_shape(probe, u, u, w, w)
    if kinds != [Coupling]:
        raise ValueError(f"matcher: expected one Coupling, got {kinds[0].__name__} (is `k` a tuple?)")


def _hold_out(key: KeyArray, data: Unpaired) -> tuple[Unpaired, Unpaired]:
    train, valid = split(key, data, (1 - VALID_SHARE, VALID_SHARE))
    if not (valid.a.t.size and valid.b.t.size):
        raise ValueError(
            f"data: expected enough samples to hold a fifth of them out, got {data.a.t.size} and {data.b.t.size} "
            "(or give `valid`)"
        )
    return train, valid


def warn(coupling: Blocked, groups: Groups) -> None:
    """Warns about treatments without a match or not converged, by name."""
    sizes_a, sizes_b = np.asarray(groups.sizes_a), np.asarray(groups.sizes_b)
    matched = (sizes_a > 0) & (sizes_b > 0)
    alone = (sizes_a > 0) != (sizes_b > 0)
    found = {
        f"only one modality has treatments {{}}: {int(coupling.unmatched_rows)} samples of a and "
        f"{int(coupling.unmatched_cols)} samples of b have no partner": alone,
        "the matcher did not converge within treatments {} (see coupling.info)": matched
        & ~np.asarray(coupling.info.converged),
        "eps is too small for this precision (enable x64, or raise it) in treatments {}": matched
        & (np.nan_to_num(coupling.info.details.get("rounding", np.zeros(matched.size))) >= MAX_ROUNDING),
        "some scores have no direction (all zero) in treatments {}": matched
        & (np.nan_to_num(coupling.info.details.get("zero_norm", np.zeros(matched.size))) > 0),
    }
    for text, which in found.items():
        if which.any():
            names = np.flatnonzero(which)
            listed = ", ".join(map(str, names[:10])) + (" and more" if names.size > 10 else "")
            warnings.warn(text.format(listed), AlignmentWarning, stacklevel=3)
