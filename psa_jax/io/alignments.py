"""Alignments in a file: couplings, scores and classifiers, to go on with in another process."""

import dataclasses
import functools
import os
import re
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
from psa_jax.io.archive import load, pack, read_archive, write_archive
from psa_jax.match import sinkhorn
from psa_jax.match.blockwise import blockwise
from psa_jax.propensity.calibration import Calibration
from psa_jax.propensity.loop import Fitted, History
from psa_jax.propensity.model import Model
from psa_jax.propensity.nets import default_model
from psa_jax.propensity.scorer import Scorer
from psa_jax.propensity.scores import centre
from psa_jax.types import Array

_KIND = "psa_jax alignment"
_VERSION = 2  # 1, which files of psa_jax 0.4 do not say, describes functions by the modules of that version
MOVED = {  # modules of version 0.4 that stood at the package's root
    "augment": "propensity.augment",
    "blocked": "coupling.blocked",
    "chain": "coupling.chain",
    "coupling": "coupling.coupling",
    "model": "propensity.model",
    "nets": "propensity.nets",
    "score": "propensity.scores",
    "shrink": "coupling.shrink",
}


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
        "transform": describe(scorers[0].transform),
        "names": None if alignment.names is None else list(alignment.names),
    }
    write_archive(path, stored, about)


@checked
def load_alignment(
    path: str | os.PathLike[str],
    *,
    model_a: Model | None = None,
    model_b: Model | None = None,
    matcher: Callable[..., Coupling] = sinkhorn,
    transform: Callable[[Any], Any] = centre,
) -> Alignment:
    """Reads what `save_alignment` wrote: every method gives the same bits as before.

    Args:
        path: the file.
        model_a: the classifier of modality a that `align` was given; its default by default.
        model_b: that of modality b.
        matcher: the one that made the coupling, of which the kernel is taken; numbers are those of the file.
        transform: as given to `align`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another kind of file; a model, kernel or transform that is not the one of the file, by module, name
            and settings (functions without a name of their own, such as lambdas, cannot be told apart), or whose
            arrays have other names or shapes (they get listed).
    """
    stored, about = read_archive(path)
    meta = about.get("alignment")
    if not isinstance(meta, dict) or meta.get("kind") != _KIND:
        raise ValueError(f"{path}: expected a file made by save_alignment, got another archive")
    if (version := meta.get("version", 1)) not in range(1, _VERSION + 1):
        raise ValueError(
            f"{path}: expected a file of version {_VERSION} or before, got {version}: a newer psa_jax made it"
        )

    def like(name: str) -> Any:
        if name not in stored:
            raise ValueError(f"{path}: missing {name}")
        return jax.ShapeDtypeStruct(stored[name].shape, np.dtype(about[name]["dtype"]))

    def fitted(side: str, model: Model) -> Fitted:
        place = f".fitted_{side}"
        history = History(*(like(f"{place}.history.{name}") for name in History.__dataclass_fields__))
        x = jax.ShapeDtypeStruct((1, *meta[f"features_{side}"]), np.dtype(meta[f"dtype_{side}"]))
        params = jax.eval_shape(model.init, jax.random.key(0), x)
        axes = history.best_epoch.shape
        params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*axes, *leaf.shape), leaf.dtype), params)
        return Fitted(params, history, like(f"{place}.unmatched"), model)

    def scorer(side: str, model: Model) -> Scorer:
        place, features = f".scorer_{side}", tuple(meta[f"features_{side}"])
        prior = like(f"{place}.log_prior") if f"{place}.log_prior" in stored else None
        return Scorer(
            like(f"{place}.temperature"), prior, like(f"{place}.treatments"), features, meta[f"dtype_{side}"], model,
            transform,
        )  # fmt: skip

    def calibration(side: str) -> Calibration:
        return Calibration(*(like(f".calibration_{side}.{name}") for name in Calibration.__dataclass_fields__))

    models = []
    for side, model in (("a", model_a), ("b", model_b)):
        x: Any = jax.ShapeDtypeStruct((1, *meta[f"features_{side}"]), np.dtype(meta[f"dtype_{side}"]))
        num_treatments = int(stored[".groups.sizes_a"].size)
        models.append(model or default_model(f"model_{side}", x, num_treatments))
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

    tree = Alignment(
        jax.eval_shape(match, like(".scores_a"), like(".scores_b"), groups),
        groups,
        like(".scores_a"),
        like(".scores_b"),
        fitted("a", models[0]),
        fitted("b", models[1]),
        calibration("a"),
        calibration("b"),
        like(".member_scores_a"),
        like(".member_scores_b"),
        scorer("a", models[0]),
        scorer("b", models[1]),
        None if meta.get("names") is None else tuple(meta["names"]),
    )
    used: Any = tree.coupling
    used = used.blocks[0].coupling.kernel
    while isinstance(used, Shrunk):
        used = used.kernel
    given = {"kernel": used, "model_a": models[0], "model_b": models[1], "transform": transform}
    for name, function in given.items():
        if (now := describe(function)) != (saved := _today(meta[name]) if version == 1 else meta[name]):
            raise ValueError(f"{path}: {name}: expected {saved}, as saved, got {now}")
    return load(path, tree)


def _today(described: str) -> str:
    """What a file says of a function, with the modules of version 0.4 by the names that they have now."""
    described = re.sub(r"\bpsa_jax\.(\w+)\.", lambda m: f"psa_jax.{MOVED.get(m[1], m[1])}.", described)
    return re.sub(r"\bpsa_jax\.match\.(low_rank\.factored|gw\.stored)\b", _in_kernels, described)


def _in_kernels(found: re.Match[str]) -> str:
    return "psa_jax.match.kernels." + found[1].rpartition(".")[2]


def describe(value: Any) -> str:
    """What a static part of an alignment is, the same in every process: names of functions, settings of classes."""
    if isinstance(value, functools.partial | jax.tree_util.Partial):
        settings = [*map(describe, value.args), *(f"{k}={describe(v)}" for k, v in sorted(value.keywords.items()))]
        return f"{describe(value.func)}({', '.join(settings)})"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [f for f in dataclasses.fields(value) if f.name not in ("parent", "name")]  # of flax linen modules
        settings = [f"{field.name}={describe(getattr(value, field.name, None))}" for field in fields]
        return f"{type(value).__qualname__}({', '.join(settings)})"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(describe, value))})"
    if isinstance(value, bool | int | float | str | None):
        return repr(value)
    kind = value if callable(value) and hasattr(value, "__qualname__") else type(value)
    return f"{kind.__module__}.{kind.__qualname__}"
