"""Alignments in a file: couplings, scores and classifiers, to go on with in another process."""

import dataclasses
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from psa_jax.align.alignment import Alignment
from psa_jax.arguments import checked
from psa_jax.coupling.blocked import Blocked
from psa_jax.coupling.coupling import Coupling
from psa_jax.coupling.shrink import Shrunk, shrink
from psa_jax.data.groups import Bucket, Groups
from psa_jax.io.alignment_checks import check_description, check_plan, strata_of
from psa_jax.io.archive import check_version, fitted_in, pack, read_leaves, reading, write_archive
from psa_jax.io.described import describe, today
from psa_jax.judge.evidence import Evidence
from psa_jax.judge.projection import Projection
from psa_jax.judge.slopes import Refinement
from psa_jax.match import sinkhorn
from psa_jax.match.blockwise import blockwise
from psa_jax.propensity.augment import as_tree
from psa_jax.propensity.calibration import Calibration
from psa_jax.propensity.components import Components
from psa_jax.propensity.loop import Fitted, History
from psa_jax.propensity.model import Model
from psa_jax.propensity.nets import default_model
from psa_jax.propensity.scorer import Scorer
from psa_jax.propensity.scores import RelativeTo, Tempered, centre
from psa_jax.types import Array

_KIND = "psa_jax alignment"
_VERSION = 3  # 1, which files of psa_jax 0.4 do not say, names modules of that version; 3 has more in `info.details`


@checked
def save_alignment(path: str | os.PathLike[str], alignment: Alignment) -> None:
    """Writes all arrays of an alignment into one archive, bitwise; functions (models, kernel) are not in it.

    Args:
        path: the `.npz` file, written at once or not at all.
        alignment: as `align` made it; its coupling may have been replaced by one of another matcher or a shrunk one
            (`dataclasses.replace(alignment, coupling=...)`).

    Raises:
        ValueError: an alignment without scorers.
    """
    scorers = alignment.scorer_a, alignment.scorer_b
    if scorers[0] is None or scorers[1] is None:
        raise ValueError("alignment: expected scorers, as `align` makes them, got None")
    stored, about = pack(alignment)
    if not isinstance(alignment.coupling, Blocked):
        raise ValueError(f"alignment: expected a blocked coupling, got {type(alignment.coupling).__name__}")
    projection = alignment.projection
    if projection is not None and projection.coupling.blocks[0].coupling.flipped:
        raise ValueError("alignment: expected one as `align` makes it, got its T: save alignment.T, which is that")
    inner, shrunk = alignment.coupling.blocks[0].coupling.kernel, []
    while isinstance(inner, Shrunk):
        shrunk, inner = [inner.flipped, *shrunk], inner.kernel
    about["alignment"] = {
        "kind": _KIND,
        "version": _VERSION,
        "shape": list(alignment.groups.shape),
        "buckets": len(alignment.groups.buckets),
        "shrunk": shrunk,
        "kernel": describe(inner),
        "flipped": alignment.coupling.blocks[0].coupling.flipped,
        **{f"features_{side}": list(scorer.features) for side, scorer in zip("ab", scorers, strict=True) if scorer},
        **{f"dtype_{side}": scorer.dtype for side, scorer in zip("ab", scorers, strict=True) if scorer},
        **{f"model_{side}": describe(scorer.model) for side, scorer in zip("ab", scorers, strict=True) if scorer},
        "transform": _transform(scorers[0].transform),
        "names": None if alignment.names is None else list(alignment.names),
        "batches": None if alignment.batches is None else list(alignment.batches),
        "strata": None if alignment.strata is None else dataclasses.asdict(alignment.strata),
        "projection": None
        if projection is None
        else {"kernel": describe(projection.coupling.blocks[0].coupling.kernel), "most": projection.most},
    }
    write_archive(path, stored, about)


@checked
def load_alignment(
    path: str | os.PathLike[str],
    *,
    model_a: Model | None = None,
    model_b: Model | None = None,
    matcher: Callable[..., Coupling] = sinkhorn,
    transform: Callable[[Any], Any] | None = None,
) -> Alignment:
    """Reads what `save_alignment` wrote: every method gives the same bits as before.

    Args:
        path: the file.
        model_a: the classifier of modality a that `align` was given; its default by default.
        model_b: that of modality b.
        matcher: the one that made the coupling, of which the kernel is taken; numbers are those of the file.
        transform: as given to `align`; `centre`, `relative_to` and `tempered`, whatever its temperature, need not be
            given.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another kind of file; a model, kernel or transform that is not the one of the file, by module, name
            and settings (functions without a name of their own, such as lambdas, cannot be told apart), or whose
            arrays have other names or shapes (they get listed).
    """
    leaves, about = read_leaves(path)
    meta = about.get("alignment")
    if not isinstance(meta, dict) or meta.get("kind") != _KIND:
        raise ValueError(f"{path}: expected a file made by save_alignment, got another archive")
    check_version(path, version := meta.get("version", 1), _VERSION)
    with reading(path, "a file made by save_alignment"):
        check_description(meta, leaves)
    if transform is None:
        known: dict[str, Callable[[Any], Any]] = {describe(centre): centre, _transform(RelativeTo(0)): RelativeTo(0)}
        transform = known.get(today(meta["transform"])) or Tempered()
    with reading(path, "an alignment by the models, the matcher and the transform that are given"):
        tree = _like(leaves, meta, (model_a, model_b), matcher, transform)
    if version < _VERSION:
        tree = dataclasses.replace(tree, coupling=_told_then(tree.coupling, leaves))
    used: Any = tree.coupling
    used = used.blocks[0].coupling.kernel
    while isinstance(used, Shrunk):
        used = used.kernel
    given = {"kernel": used, "model_a": tree.fitted_a.model, "model_b": tree.fitted_b.model}
    told = {**{name: describe(function) for name, function in given.items()}, "transform": _transform(transform)}
    for name, now in told.items():
        if now != (saved := today(meta[name]) if version == 1 else meta[name]):
            hint = f": give {name}=" if name.startswith("model_") else ""
            raise ValueError(f"{path}: {name}: expected {saved}, as saved, got {now}{hint}")
    alignment = fitted_in(path, leaves, tree)
    with reading(path, "a file made by save_alignment"):
        check_plan(alignment)
    return alignment


def _like(
    leaves: dict[str, Any],
    meta: dict[str, Any],
    given: tuple[Model | None, Model | None],
    matcher: Callable[..., Coupling],
    transform: Callable[[Any], Any],
) -> Alignment:
    """The alignment that a file holds, with shapes for values."""

    def like(name: str, shape: tuple[int, ...] | None = None) -> Any:
        if name not in leaves:
            raise ValueError(f"missing {name}")
        return jax.ShapeDtypeStruct(leaves[name].shape if shape is None else shape, leaves[name].dtype)

    def axes_of(side: str) -> tuple[int, ...]:
        return leaves[f".fitted_{side}.history.best_epoch"].shape

    def batches(side: str) -> Any:
        place = f".scorer_{side}.batches"
        return like(place) if place in leaves else None

    def fitted(side: str, model: Model) -> Fitted:
        place, axes = f".fitted_{side}", axes_of(side)
        epochs = leaves[f"{place}.history.train_loss"].shape[len(axes) :][:1]
        shapes = {"train_loss": (*axes, *epochs), "valid_loss": (*axes, *epochs)}
        history = History(
            *(like(f"{place}.history.{name}", shapes.get(name, axes)) for name in History.__dataclass_fields__)
        )
        x: Any = jax.ShapeDtypeStruct((1, *meta[f"features_{side}"]), np.dtype(meta[f"dtype_{side}"]))
        if (seen := batches(side)) is not None:
            x = jax.ShapeDtypeStruct((1, x.shape[1] + seen.shape[0]), x.dtype)
        params = jax.eval_shape(model.init, jax.random.key(0), x)
        params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*axes, *leaf.shape), leaf.dtype), params)
        return Fitted(params, history, like(f"{place}.unmatched", axes), model)

    def scorer(side: str, model: Model) -> Scorer:
        place, features = f".scorer_{side}", tuple(meta[f"features_{side}"])
        seen = batches(side)
        rows = () if seen is None else (seen.shape[0] + 1,)
        prior = like(f"{place}.log_prior", (*rows, num_treatments)) if f"{place}.log_prior" in leaves else None
        warmth, code = f"{place}.transform.temperature", f"{place}.transform.code"
        used = Tempered(like(warmth, ())) if isinstance(transform, Tempered) and warmth in leaves else transform
        used = RelativeTo(like(code, ())) if isinstance(transform, RelativeTo) else used
        return Scorer(
            like(f"{place}.temperature", ()), prior, like(f"{place}.treatments"), as_tree(used), features,
            meta[f"dtype_{side}"], model, seen,
            like(f"{place}.weights", axes_of(side)[:1]) if f"{place}.weights" in leaves else None,
            Components(like(f"{place}.components.basis"), like(f"{place}.components.kept", ()))
            if f"{place}.components.basis" in leaves
            else None,
        )  # fmt: skip

    def calibration(side: str) -> Calibration:
        bins = leaves[f".calibration_{side}.confidence"].shape[:1]
        return Calibration(
            *(
                like(f".calibration_{side}.{name}", bins if name in ("confidence", "frequency", "count") else ())
                for name in Calibration.__dataclass_fields__
            )
        )

    def members(side: str) -> Any:
        return like(f".member_scores_{side}", (*axes_of(side)[:1], *leaves[f".scores_{side}"].shape))

    strata = strata_of(meta)
    models, num_treatments = [], int(leaves[".groups.sizes_a"].size) if strata is None else len(strata.treatments)
    for side, model in zip("ab", given, strict=True):
        x: Any = jax.ShapeDtypeStruct((1, *meta[f"features_{side}"]), np.dtype(meta[f"dtype_{side}"]))
        models.append(model or _default_model(side, x, num_treatments, meta[f"model_{side}"]))
    buckets = (f".groups.buckets[{place}]" for place in range(meta["buckets"]))
    groups = Groups(
        tuple(Bucket(like(f"{b}.rows"), like(f"{b}.cols"), like(f"{b}.treatment")) for b in buckets),
        like(".groups.sizes_a"),
        like(".groups.sizes_b"),
        (meta["shape"][0], meta["shape"][1]),
    )

    def match(u: Array, v: Array, groups: Groups) -> Blocked:
        coupling = blockwise(matcher)(u, v, groups)
        for flipped in meta["shrunk"]:
            coupling = shrink(coupling.T, 1.0).T if flipped else shrink(coupling, 1.0)
        return coupling.T if meta["flipped"] else coupling

    def refined(side: str) -> Refinement | None:
        place, d = f".refined_{side}", leaves[f".scores_{side}"].shape[-1]
        if f"{place}.share" not in leaves:
            return None
        flat = math.prod(meta[f"features_{side}"])
        return Refinement(like(f"{place}.share", ()), like(f"{place}.slope", (flat, d)), like(f"{place}.shift", (d,)))

    def projection() -> Projection | None:
        saved = meta.get("projection")
        if saved is None:
            return None
        for by in (matcher, sinkhorn):
            law: Any = jax.eval_shape(blockwise(by), like(".scores_a"), like(".scores_b"), groups)
            if describe(law.blocks[0].coupling.kernel) == saved["kernel"]:
                break
        else:
            raise ValueError(f"projection: made by a matcher of kernel {saved['kernel']}, which was not given")
        names = ("eps", "weight_a", "weight_b", "slope_a", "slope_b")
        arrays = {name: like(f".projection.{name}") for name in names}
        found = Evidence(like(".projection.evidence.z"), like(".projection.evidence.p_value"))
        return Projection(law, **arrays, evidence=found, most=saved["most"])

    return Alignment(
        jax.eval_shape(match, like(".scores_a"), like(".scores_b"), groups),
        groups,
        like(".scores_a"),
        like(".scores_b"),
        fitted("a", models[0]),
        fitted("b", models[1]),
        calibration("a"),
        calibration("b"),
        members("a"),
        members("b"),
        scorer("a", models[0]),
        scorer("b", models[1]),
        None if meta.get("names") is None else tuple(meta["names"]),
        projection(),
        refined("a"),
        refined("b"),
        strata,
        None if meta.get("batches") is None else tuple(meta["batches"]),
    )


def _default_model(side: str, x: Any, num_treatments: int, saved: str) -> Model:
    """The default model of this version, or that of an earlier one where the file says so."""
    now, before = (default_model(f"model_{side}", x, num_treatments, width=width) for width in (128, 256))
    return before if describe(before) == today(saved) else now


def _transform(transform: Any) -> str:
    """What a file says of a transform: the temperature of a tempered one and a control are among its arrays."""
    if isinstance(transform, Tempered | RelativeTo):
        return f"{type(transform).__module__}.{type(transform).__qualname__}"
    plain = isinstance(transform, jax.tree_util.Partial) and not (transform.args or transform.keywords)
    return describe(transform.func if plain else transform)


def _told_then(coupling: Any, leaves: dict[str, Any]) -> Any:
    """The coupling with what a solver told of itself when the file was written: later versions tell more."""
    told = [name for name in coupling.info.details if f".coupling.info.details['{name}']" in leaves]

    def then(part: Any) -> Any:
        details = {name: part.info.details[name] for name in told}
        return dataclasses.replace(part, info=dataclasses.replace(part.info, details=details))

    blocks = tuple(dataclasses.replace(block, coupling=then(block.coupling)) for block in coupling.blocks)
    return then(dataclasses.replace(coupling, blocks=blocks))
