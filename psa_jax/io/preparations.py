"""Preparations of both modalities in a file, beside the alignment that they belong to."""

import os
from typing import Any

import numpy as np

from psa_jax.arguments import checked
from psa_jax.io.archive import check_version, read_archive, reading, write_archive
from psa_jax.io.origin import Origin
from psa_jax.io.prepare import Preparation

_KIND = "psa_jax preparations"
_VERSION = 1
_END = "\0"  # of a name


@checked
def save_preparations(path: str | os.PathLike[str], preparations: tuple[Preparation, Preparation]) -> None:
    """Writes what was done to the features of a and of b into one archive, at once or not at all.

    Args:
        path: the `.npz` file.
        preparations: `loaded.preparations`.
    """
    stored, about = {}, {}
    for side, done in zip("ab", preparations, strict=True):
        stored[f"{side}_features"] = np.frombuffer("".join(name + _END for name in done.features).encode(), np.uint8)
        stored[f"{side}_mean"] = done.mean
        if done.components is not None:
            stored[f"{side}_components"] = done.components
        origin = {"layer": done.origin.layer, "obsm": done.origin.obsm, "feature_type": done.origin.feature_type}
        about[side] = {"modality": done.modality, "counts": done.counts, "total": done.total, "origin": origin}
        about[side] |= {"version": done.version}
    write_archive(path, stored, {"kind": _KIND, "version": _VERSION, **about})


@checked
def load_preparations(path: str | os.PathLike[str]) -> tuple[Preparation, Preparation]:
    """Reads what `save_preparations` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else, or a newer version made it.
    """
    stored, about = read_archive(path)
    if about.get("kind") != _KIND:
        raise ValueError(f"{path}: expected a file made by save_preparations, got another archive")
    check_version(path, about.get("version"), _VERSION)
    with reading(path, "a file made by save_preparations"):
        return _read(stored, about["a"], "a"), _read(stored, about["b"], "b")


def _read(stored: dict[str, np.ndarray], about: dict[str, Any], side: str) -> Preparation:
    names = tuple(stored[f"{side}_features"].tobytes().decode().split(_END)[:-1])
    mean, components = stored[f"{side}_mean"], stored.get(f"{side}_components")
    if mean.shape != (len(names),) or (
        components is not None and (components.ndim != 2 or len(components) != len(names))
    ):
        raise ValueError(f"{side}: expected a mean and components of {len(names)} features, got others")
    total = None if about["total"] is None else float(about["total"])
    return Preparation(
        str(about["modality"]),
        Origin(**{name: about["origin"][name] for name in ("layer", "obsm", "feature_type")}),
        names,
        bool(about["counts"]),
        total,
        mean,
        components,
        str(about["version"]),
    )
