"""The whole thing: from unpaired data to a coupling."""

import functools
import os
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from psa_jax.align.alignment import Alignment, AlignmentWarning
from psa_jax.align.processes import check_same
from psa_jax.align.programs import agreed, check_alike
from psa_jax.align.resume import kept_in, matched_in
from psa_jax.arguments import checked
from psa_jax.coupling.blocked import Blocked
from psa_jax.coupling.coupling import Coupling
from psa_jax.data.deal import deal
from psa_jax.data.groups import Groups, group
from psa_jax.data.labels import listed
from psa_jax.data.samples import Unpaired, check_like, on_host, validate
from psa_jax.data.source import Source, reading
from psa_jax.data.split import split
from psa_jax.devices import check_mesh
from psa_jax.judge.members import members_that_count
from psa_jax.judge.projection import Projection, fit_projection
from psa_jax.judge.refinement import Refined, refine
from psa_jax.match import sinkhorn
from psa_jax.match.blockwise import blockwise
from psa_jax.match.eot import MAX_ROUNDING
from psa_jax.match.features import takes_features, with_features
from psa_jax.progress import Progress, watching
from psa_jax.propensity.learn import classifier, learn, rows_to_look_at
from psa_jax.propensity.learner import Learner, check_learner
from psa_jax.propensity.representation import Representation, finished
from psa_jax.propensity.task import Task
from psa_jax.types import Array, KeyArray

VALID_SHARE = 0.2


@checked
def align(
    key: KeyArray,
    data: Unpaired,
    *,
    query: Unpaired | None = None,
    valid: Unpaired | None = None,
    a: Learner | None = None,
    b: Learner | None = None,
    matcher: Callable[..., Coupling] = sinkhorn,
    mesh: Mesh | None = None,
    resume: str | os.PathLike[str] | None = None,
    progress: Progress = False,
) -> Alignment:
    """Aligns two unpaired modalities: fits a classifier of the treatment to each, scores, matches within treatments.

    With a `query` the classifiers are fitted on `data` and the query is scored and matched. Without one `data` itself
    is, every sample scored by a classifier that saw its label neither in training nor in selection (`crossfit`), so
    that memorised labels cannot leak into the scores. Of members with several smoothings those of one count alone, in
    either modality, where labels say clearly that it suits the other modality better (`scorer_a.weights`). Scores are
    calibrated by temperature, freed of their treatment frequencies, and restricted to the treatments that both
    modalities of `data` have. Where `data` are stratified (`Unpaired.from_labels(..., within_a=, within_b=)`)
    classifiers learn the treatment, and all after them goes by treatment and stratum. Where samples have a batch
    (`batch_a=`, `batch_b=`) classifiers see it, and scores are also freed of what these have learnt of the treatment
    from it alone.

    It runs on the host and compiles what it calls; each stage is a function of its own (`fit`, `crossfit`,
    `propensity`, `group`, `blockwise`) to build something else from.

    Args:
        key: a typed key.
        data: what to learn from. Sizes may differ; treatments may be missing in one modality. `Unpaired.from_labels`
            makes it of labels of any kind. Features may be a `psa.source`, to be read: the result is the same.
        query: other samples of the same kind to align instead of `data`; they may have treatments that `data` lacks.
        valid: samples that select the best epoch and the temperature, with a query only; by default a fifth of `data`.
        a: how the scores of modality a are learnt, by default `Learner()`: the model, smoothing, training, members.
        b: the same for modality b.
        matcher: of one treatment, `(u, v, a, b) -> Coupling`. `fused_gromov_wasserstein`, and functions of yours with
            an attribute `takes_features`, get `(scores, features)` for `u` and `v`, scores in units of their largest
            distance within treatments, none from a `psa.source`; `project` then goes by transport of the scores.
        mesh: devices to use: classifiers (members times folds) and treatments are spread over them, see `blockwise`.
            The same key gives the same result up to rounding on any mesh. Of several processes each calls this alike.
        resume: a folder, made where there is none, in which finished classifiers and matched treatments are kept. What
            is there of the same key, data, settings and version of JAX is not done again, which the logger `psa_jax`
            tells at level INFO; the rest is replaced. What calls back into Python is always done again.
        progress: True draws a bar (needs rich); a function is called with every `psa_jax.progress.Step`.

    Returns:
        The coupling and everything it came from; `print` tells. `coupling.info` says what converged, by treatment.

    Raises:
        ValueError: invalid data (see `validate`), fewer than two treatments that both modalities have, a query of
            other features or treatments, `valid` without a query, scores that are not finite; with a mesh, processes
            that were given different data, keys, learners or matchers.

    Warns:
        AlignmentWarning: treatments that only one modality has, that did not converge, or whose scores have no
            direction (SNN); by name.

    Example:
        >>> from psa_jax.propensity import Training, mlp
        >>> x = jax.random.normal(jax.random.key(0), (40, 2))
        >>> t = np.arange(40) % 2
        >>> labels = np.array(["control", "drug"])[t]
        >>> data = Unpaired.from_labels(x + t[:, None], labels, (x - t[:, None])[:30], labels[:30])
        >>> quick = Learner(mlp((4,), 2), training=Training(epochs=2))
        >>> result = align(jax.random.key(1), data, a=quick, b=quick)
        >>> result.coupling.apply(data.b.x).shape, result.names
        ((40, 2), ('control', 'drug'))

    References:
        Xi et al., NeurIPS 2024 (arXiv 2404.01595).
    """
    check_mesh(mesh)
    learners = {"a": check_learner("a", a), "b": check_learner("b", b)}
    _check(data, query, valid)
    data = on_host(data)
    query, valid = (None if part is None else on_host(part) for part in (query, valid))
    if mesh is not None:
        check_same(key=key, data=data, query=query, valid=valid)
    taught = data.taught
    shared = np.intersect1d(np.asarray(taught.a.t), np.asarray(taught.b.t))
    if shared.size < 2:
        told = listed(shared, taught.names)
        raise ValueError(
            f"data: expected at least two treatments that both modalities have, got only [{told}]"
            ": a propensity cannot be estimated (blockwise matches scores of your own)"
        )
    check_matcher(matcher, int(shared.size))
    key_split, key_a, key_b = jax.random.split(key, 3)
    aligned, paired = data if query is None else query, takes_features(matcher)
    if paired and any(isinstance(side.x, Source) for side in (aligned.a, aligned.b)):
        raise ValueError("matcher: expected one of scores alone, as features come from a source, got one of features")
    if query is not None and valid is None:
        data, valid = _hold_out(key_split, data)
    taught, valid = data.taught, None if valid is None else valid.taught
    for name, learner in learners.items():  # what does not fit b is better known before a is learnt
        classifier(name, getattr(taught, name), taught.num_treatments, learner)
    labels = aligned.a.t, aligned.b.t
    number = taught.num_treatments, int(shared.size)
    rows = rows_to_look_at(jax.random.fold_in(key, 6), labels, list(learners.values()), *number)
    stage = Task.train if resume is None else kept_in(resume)
    stage = stage if mesh is None else functools.partial(agreed, stage)
    with watching(progress) as watch:
        learnt = [
            learn(
                k,
                name,
                getattr(taught, name),
                taught.num_treatments,
                shared,
                learners[name],
                watch,
                target=None if query is None else getattr(query, name),
                valid=None if valid is None else getattr(valid, name),
                rows=few,
                stage=stage,
                mesh=mesh,
            )
            for name, k, few in (("a", key_a, rows[0]), ("b", key_b, rows[1]))
        ]
        groups = group(*labels, aligned.num_treatments)
        looked = groups if rows[0] is None else group(labels[0][rows[0]], labels[1][rows[1]], aligned.num_treatments)
        sides, kinds = [one.represent() for one in learnt], (learnt[0].kinds, learnt[1].kinds)
        members, settle = [side.member_scores for side in sides], all(one.scorer.is_open for one in learnt)
        weights = members_that_count(jax.random.fold_in(key, 5), members[0], members[1], kinds, looked, settle=settle)
        sides = [
            side if weight is None else one.represent(weight)
            for one, side, weight in zip(learnt, sides, weights, strict=True)
        ]
        side_a, side_b = finished(jax.random.fold_in(key, 7), learnt, sides, labels)
        watch.begin("refinement", 1)
        features = aligned.a.x, aligned.b.x
        read = [(f"modality {name}: x", x) for name, x in zip("ab", features, strict=True)]
        with reading(*read):
            refined = refine(jax.random.fold_in(key, 4), side_a.scores, side_b.scores, *features, groups, mesh=mesh)
        watch.advance()
        watch.begin("matching", 1)
        u, v = refined.u, refined.v
        u, v = with_features(u, v, features[0], features[1], groups) if paired else (u, v)
        match = blockwise(matcher, mesh=mesh)
        if mesh is not None:
            check_alike("matcher", lambda: [jax.make_jaxpr(match)(u, v, groups)])
        match = match if resume is None else matched_in(resume, match)
        coupling = match(u, v, groups)
        warn(coupling, groups, data.names)
        watch.advance()
        watch.begin("projection", 1)
        key_project = jax.random.fold_in(key, 3)
        with reading(*read):
            projection = fit_projection(
                key_project,
                side_a.scores,
                side_b.scores,
                groups,
                matcher=sinkhorn if paired else matcher,  # which serves new samples too
                refined=refined,
                features=features,
                mesh=mesh,
            )
        watch.advance()
    groups = groups if mesh is None else deal(groups, mesh.size)  # as the coupling's blocks are
    return joined(coupling, groups, side_a, side_b, data.names, data, projection, refined)


def joined(
    coupling: Blocked,
    groups: Groups,
    a: Representation,
    b: Representation,
    names: tuple[str, ...] | None,
    data: Unpaired | None = None,
    projection: Projection | None = None,
    refined: Refined | None = None,
) -> Alignment:
    """The alignment of two modalities that were learnt and matched; `data` tell of strata and batches."""
    return Alignment(
        coupling,
        groups,
        a.scores if refined is None else refined.u,
        b.scores if refined is None else refined.v,
        a.fitted,
        b.fitted,
        a.calibration,
        b.calibration,
        a.member_scores,
        b.member_scores,
        a.scorer,
        b.scorer,
        names,
        projection,
        None if refined is None else refined.a,
        None if refined is None else refined.b,
        None if data is None else data.strata,
        None if data is None else data.batches,
    )


def _check(data: Unpaired, query: Unpaired | None, valid: Unpaired | None) -> None:
    validate(data)
    if valid is not None and query is None:
        raise ValueError("valid: expected a query too; without one every sample is validated by cross-fitting")
    for name, other in (("query", query), ("valid", valid)):
        if other is not None:
            check_like(name, other, data)


def check_matcher(matcher: Callable[..., Any], num_scores: int) -> None:
    """Traces the matcher on empty shapes: what it refuses is better known before training than after."""
    if not callable(matcher):
        hint = f": give psa_jax.{matcher} itself" if isinstance(matcher, str) else ""
        raise ValueError(f"matcher: expected a function (u, v, a, b) -> Coupling, got {matcher!r}{hint}")
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


def warn(coupling: Blocked, groups: Groups, names: tuple[str, ...] | None) -> None:
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
            told = listed(np.flatnonzero(which), names)
            warnings.warn(text.replace("{}", told), AlignmentWarning, stacklevel=4)
