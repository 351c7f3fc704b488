"""What the commands do: read or draw data, align, measure, write."""

import functools
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
import typer

from psa_jax import datasets, io
from psa_jax.align.alignment import Alignment
from psa_jax.align.evaluate import evaluate
from psa_jax.align.pipeline import align
from psa_jax.cli.output import write_report
from psa_jax.cli.results import finish_demo, judge, metric_rows, note_clipped, status_line, verdict, write, write_cells
from psa_jax.cli.show import Show
from psa_jax.cli.tables import metrics_table, treatments_table
from psa_jax.coupling.coupling import Coupling
from psa_jax.match import assignment, known_pairs, nearest, relative, sinkhorn, snn
from psa_jax.propensity import Learner, Training, conv
from psa_jax.propensity.augment import translation

BALLS_SIZE, PICTURE_SIZE = 32, 96
BALLS_WIDTHS = (32, 64, 128)
BALLS_SHIFT = 0.08
LATENTS = ("x1", "y1", "x2", "y2")
MATCHERS = {"sinkhorn": "PS+OT", "snn": "PS+SNN", "nearest": "PS+nearest", "assignment": "PS+assignment"}


def balls(folder: Path, show: Show, *, seed: int, num_samples: int, epochs: int) -> None:
    """The demo on images: classifiers trained on some, others aligned."""
    key_train, key_query, key_align, key_rest = jax.random.split(jax.random.key(seed), 4)
    num_query = num_samples // 2
    with show.stage("data", f"{num_samples} images of each modality to train on, {num_query} others to align"):
        train, _ = datasets.balls(key_train, num_samples, BALLS_SIZE)
        query, truth = datasets.balls(key_query, num_query, BALLS_SIZE)
        jax.block_until_ready((train, query))
    learner = Learner(
        model=conv(BALLS_WIDTHS, train.num_treatments),
        augment=translation(BALLS_SHIFT),
        training=Training(epochs=epochs),
        members=1,  # a demo is short
    )
    with show.noting():
        alignment = show.aligning(
            lambda tell: align(key_align, train, query=query, a=learner, b=learner, progress=tell)
        )

    def pictures(plot: Any, save: Callable[[str, Any], None]) -> None:
        sharp, _ = datasets.balls(key_query, num_query, PICTURE_SIZE)  # the same scenes
        titles = [query.names[code] for code in np.asarray(query.a.t)] if query.names else None
        images = sharp.a.x, sharp.b.x
        axes = plot.matched_pairs(*images, alignment.coupling, key_rest, truth=truth, titles=titles)
        save("matched_pairs.png", axes)
        save("latent_map.png", plot.latent_map(alignment.coupling, truth, names=LATENTS))

    settings = {"data": "balls", "num_samples": num_samples, "num_query": num_query, "image_size": BALLS_SIZE}
    settings |= {"widths": BALLS_WIDTHS, "augment": f"translation({BALLS_SHIFT})", "epochs": epochs, "seed": seed}
    finish_demo(folder, show, key_rest, alignment, truth, query, settings, pictures)


def digits(folder: Path, show: Show, *, seed: int, epochs: int | None) -> None:
    """The demo on halves of handwritten digits, all of them aligned by cross-fitting."""
    key_data, key_align, key_rest = jax.random.split(jax.random.key(seed), 3)
    with show.stage("data", "1797 handwritten digits, left and right halves"):
        data, truth = datasets.digits(key_data)
    learner = Learner(training=Training(epochs=epochs))
    with show.noting():
        alignment = show.aligning(lambda tell: align(key_align, data, a=learner, b=learner, progress=tell))

    def pictures(plot: Any, save: Callable[[str, Any], None]) -> None:
        images = (x.reshape(-1, 8, 4) for x in (data.a.x, data.b.x))
        axes = plot.matched_pairs(*images, alignment.coupling, key_rest, truth=truth, joined=True)
        save("matched_pairs.png", axes)

    settings = {"data": "digits", "folds": learner.folds, "seed": seed} | _epochs(alignment)
    finish_demo(folder, show, key_rest, alignment, truth, data, settings, pictures)


def cells(
    folder: Path,
    show: Show,
    *,
    file: Path,
    treatment: str,
    modalities: tuple[str, str] | None,
    layer: str | None,
    matcher: Callable[..., Coupling],
    matcher_name: str,
    settings: dict[str, Any],
    seed: int,
    epochs: int | None,
    members: int,
    folds: int,
    num_components: int,
    drop_unlabelled: bool,
    pairs: bool | None,
) -> None:
    """Aligns two modalities of a file of single cells."""
    key_shuffle, key_align, key_rest = jax.random.split(jax.random.key(seed), 3)
    with show.stage("data", f"read {file.name}"), show.noting(), warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):  # of packages that read, about each other
            warnings.simplefilter("ignore", category)
        single = _check_suffix(file) == ".h5ad"
        if single and pairs is not None:
            raise ValueError("--pairs, --no-pairs: for an .h5mu file only; the cells of an .h5ad have both modalities")
        read = io.from_anndata if single else functools.partial(io.from_mudata, pairs=pairs)
        loaded = read(
            _open(file),
            treatment=treatment,
            modalities=modalities,
            layer=layer,
            num_components=num_components,
            drop_unlabelled=drop_unlabelled,
        )
        loaded = io.shuffle(key_shuffle, loaded)
    data = loaded.data
    known = int((np.asarray(loaded.truth.pair) >= 0).sum())
    for side, name, n, features, x, dropped in zip(
        "ab",
        loaded.modalities,
        (len(loaded.cells_a), len(loaded.cells_b)),
        loaded.num_features,
        (data.a.x, data.b.x),
        loaded.unlabelled,
        strict=True,
    ):
        reduced = f", reduced to {x.shape[1]} principal components" if x.shape[1] < features else ""
        left_out = f"; {dropped} more have no {treatment} and are left out" if dropped else ""
        show.say(f"  {side} is {name}: {n} cells, {features} features{reduced}{left_out}")
    if known:
        show.say(
            f"  {known} cells are in both modalities. They are aligned as if that were unknown (in random order);\n"
            "  who is who is used only to measure the result."
        )
    learner = Learner(training=Training(epochs=epochs), members=members, folds=folds)
    with show.noting():
        alignment = show.aligning(
            lambda tell: align(key_align, data, a=learner, b=learner, matcher=matcher, progress=tell)
        )
    note_clipped(show, alignment, settings["k"])
    label = MATCHERS[matcher_name]
    with show.stage("evaluation", "evaluation"):
        reports = {label: evaluate(key_rest, alignment, loaded.truth, data)}
        if known:
            reports["true pairs"] = judge(
                key_rest, alignment, known_pairs(loaded.truth.pair, len(loaded.cells_b)), loaded.truth, data
            )
    report = write(folder, show, alignment, reports, label, lambda plot, save: None)
    states = io.status(alignment)
    write_cells(folder / "cells.csv", alignment, loaded, treatment, states)
    common = {"file": str(file), "treatment": treatment, "modalities": loaded.modalities, "layer": layer}
    common |= (
        {"matcher": matcher_name} | settings | {"folds": folds, "members": members, "num_components": num_components}
    )
    common |= _epochs(alignment)
    show.table(lambda width: treatments_table(report["treatments"], loaded.modalities, width))
    show.say(status_line(states))
    believed = dict(alignment.verdict())
    for name, text in believed.items():
        show.say(textwrap.fill(f"{name}: {text}.", 80, subsequent_indent="  ", break_on_hyphens=False))
    if known:
        show.table(lambda width: metrics_table(metric_rows(reports, label), width))
        show.say(verdict(reports[label], label))
    show.print_notes()
    write_report(
        folder,
        {
            "command": "align",
            "settings": common | {"seed": seed, "drop_unlabelled": drop_unlabelled, "pairs": pairs},
            "cells": {"a": len(loaded.cells_a), "b": len(loaded.cells_b), "known_pairs": known},
            "features": loaded.num_features,
            "unlabelled": loaded.unlabelled,
            "verdict": believed,
            **report,
        },
    )


def _epochs(alignment: Alignment) -> dict[str, int]:
    """The most epochs of each modality's training, as they were chosen."""
    sides = {"a": alignment.fitted_a, "b": alignment.fitted_b}
    return {f"epochs_{side}": fitted.history.train_loss.shape[-1] for side, fitted in sides.items()}


def make_matcher(name: str, eps: float | None, relative_eps: float | None, k: int | None) -> Callable[..., Coupling]:
    """The matcher with its settings, refused before any work if they do not fit it."""

    def refuse(option: str, text: str) -> NoReturn:
        raise typer.BadParameter(text, param_hint=option)

    for option, value in (("--eps", eps), ("--relative-eps", relative_eps)):
        if value is not None and name != "sinkhorn":
            refuse(option, f"an option of --matcher sinkhorn only, got --matcher {name}")
        if value is not None and not np.finfo(np.float32).tiny <= value <= np.finfo(np.float32).max:
            refuse(option, f"expected a positive number, got {value} (of single precision: 2e-38 to 3e+38)")
    if eps is not None and relative_eps is not None:
        refuse("--eps, --relative-eps", "expected one of them, got both")
    if k is not None and name not in ("snn", "nearest"):
        refuse("--k", f"an option of --matcher snn and nearest only, got --matcher {name}")
    if name == "sinkhorn":
        chosen = eps if eps is not None else None if relative_eps is None else relative(relative_eps)
        return sinkhorn if chosen is None else functools.partial(sinkhorn, eps=chosen)
    matcher = {"snn": snn, "nearest": nearest, "assignment": assignment}[name]
    return matcher if k is None else functools.partial(matcher, k=k)


def _check_suffix(file: Path) -> str:
    if file.suffix not in (".h5ad", ".h5mu"):
        raise ValueError(f"{file}: expected a file that ends in .h5ad (AnnData) or .h5mu (MuData)")
    return file.suffix


def _open(file: Path) -> Any:
    """Reads an `.h5ad` or `.h5mu` file."""
    if not file.is_file():
        raise ValueError(f"{file}: expected a file, got {'a folder' if file.is_dir() else 'no such file'}")
    try:
        import anndata
        import mudata
    except ImportError as error:
        raise ImportError(f"{file.suffix} files need anndata and mudata: pip install anndata mudata") from error
    try:
        return anndata.read_h5ad(file) if file.suffix == ".h5ad" else mudata.read_h5mu(file)
    except Exception as error:
        raise ValueError(f"{file}: could not be read as {file.suffix} ({type(error).__name__}: {error})") from error
