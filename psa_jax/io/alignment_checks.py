"""What a file that claims to hold an alignment must be."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from psa_jax.align.alignment import Alignment
from psa_jax.coupling.blocked import Blocked
from psa_jax.data.strata import Strata

FLOATS = ("float16", "bfloat16", "float32", "float64")


def check_description(meta: dict[str, Any], leaves: dict[str, Any]) -> None:
    """Raises a `ValueError` that says which part of what a file says of its alignment is none."""

    def is_size(value: Any) -> bool:
        return type(value) is int and 0 < value < 2**31

    def each(value: Any, test: Callable[[Any], bool]) -> bool:
        return isinstance(value, list) and all(map(test, value))

    def text(value: Any) -> bool:
        return isinstance(value, str)

    def flag(value: Any) -> bool:
        return isinstance(value, bool)

    fits = {
        "shape": lambda value: each(value, is_size) and len(value) == 2,
        "buckets": lambda value: is_size(value) and value <= len(leaves),
        "shrunk": lambda value: each(value, flag),
        "flipped": flag,
        "kernel": text,
        "transform": text,
        "model_a": text,
        "model_b": text,
        "features_a": lambda value: each(value, is_size),
        "features_b": lambda value: each(value, is_size),
        "dtype_a": lambda value: value in FLOATS,
        "dtype_b": lambda value: value in FLOATS,
    }
    for name, test in fits.items():
        if name not in meta or not test(meta[name]):
            raise ValueError(f"{name}: got {str(meta.get(name, 'nothing'))[:40]}")
    saved = meta.get("projection")
    if saved is not None and not (
        isinstance(saved, dict) and text(saved.get("kernel")) and (saved.get("most") is None or is_size(saved["most"]))
    ):
        raise ValueError(f"projection: got {str(saved)[:40]}")
    strata = strata_of(meta)
    if strata is not None and len(strata.treatment) != leaves[".groups.sizes_a"].size:
        raise ValueError(f"strata: expected a combination for each code, got {len(strata.treatment)}")
    batches = meta.get("batches")
    if batches is not None and not each(batches, text):
        raise ValueError(f"batches: expected names, got {str(batches)[:40]}")
    for side in "ab":
        if f".scorer_{side}.batches" in leaves and len(meta[f"features_{side}"]) != 1:
            raise ValueError(f"features_{side}: expected vectors, as there are batches, got {meta[f'features_{side}']}")
    names = meta.get("names")
    if names is not None and not (each(names, text) and len(names) == leaves[".groups.sizes_a"].size):
        raise ValueError(f"names: expected one for each treatment, got {str(names)[:40]}")


def strata_of(meta: dict[str, Any]) -> Strata | None:
    """The strata that a file tells of, or None; a `ValueError` if they are none."""
    saved = meta.get("strata")
    if saved is None:
        return None
    names = [field.name for field in dataclasses.fields(Strata)]
    if not isinstance(saved, dict) or set(saved) != set(names) or not all(isinstance(x, list) for x in saved.values()):
        raise ValueError(f"strata: got {str(saved)[:40]}")
    if not all(isinstance(name, str) for name in [*saved["treatments"], *saved["names"]]):
        raise ValueError(f"strata: expected names, got {str(saved)[:40]}")
    return Strata(*(tuple(saved[name]) for name in names))


def check_plan(alignment: Alignment) -> None:
    """Raises a `ValueError` unless the groups are a plan of samples that there are, each at most once."""
    groups, coupling = alignment.groups, alignment.coupling
    assert isinstance(coupling, Blocked)
    blocks = (coupling.T if coupling.blocks[0].coupling.flipped else coupling).blocks
    for scorer in (alignment.scorer_a, alignment.scorer_b):
        if scorer is not None:
            found = np.asarray(scorer.treatments)
            strata = alignment.strata
            number = groups.num_treatments if strata is None else len(strata.treatments)
            codes = np.arange(number)
            if found.ndim != 1 or not np.array_equal(np.sort(found), np.intersect1d(found, codes)):
                raise ValueError(f"scorers: expected different codes below {number}, got {found.tolist()}")
    for side, ids, sizes, scores, n in (
        ("a", "rows", groups.sizes_a, alignment.scores_a, groups.shape[0]),
        ("b", "cols", groups.sizes_b, alignment.scores_b, groups.shape[1]),
    ):
        sizes = np.asarray(sizes, np.int64)
        if scores.shape[0] != n or (sizes < 0).any() or sizes.sum() != n:
            raise ValueError(f"sizes_{side}: expected treatments of {n} samples, got {sizes.sum()} of {len(scores)}")
        seen = np.zeros(n + 1, np.int64)
        for bucket, block in zip(groups.buckets, blocks, strict=True):
            place, t = np.asarray(getattr(bucket, ids)), np.asarray(bucket.treatment)
            if not np.array_equal(place, np.asarray(getattr(block, ids))):
                raise ValueError(f"groups: expected the {ids} of the coupling's blocks, got others")
            if min(place.min(), t.min()) < 0 or place.max() > n or t.max() >= sizes.size:
                raise ValueError(f"groups: expected {ids} in [0, {n}] and {sizes.size} treatments, got others")
            if not np.array_equal((place < n).sum(1), sizes[t]):
                raise ValueError(f"groups: expected as many {ids} as the treatment has samples, got others")
            np.add.at(seen, place, 1)
        if (seen[:n] > 1).any():
            raise ValueError(f"groups: expected each of the {ids} at most once, got some twice")
