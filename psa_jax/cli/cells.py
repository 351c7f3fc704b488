"""The command `align`: two modalities of cells to a folder with all that is needed to go on.

The fields of its `report.json`, beside what every command writes (`made_by`, `arguments`, `versions`, `machine`):

- `settings`: every option as it was used; `cells`, `features`, `unlabelled`, `left_out`: what was read;
- `preparations`: what was done to the features of a and of b, in words;
- `tuning`: with `--tune`, the smoothing chosen and the agreement of each one tried (see `psa.tune`);
- `verdict`: what to believe, in words; `notes`: what else should be known; `timings_s`: seconds of each stage;
- `treatments`: for each its name, sizes, status, the matcher's `num_iters` and `marginal_error`, `evidence_z` (evidence
  from 3 on), `believed_a` and `believed_b` (the share of deviations from its mean that is kept), with a control
  `distance_from_control_a` and `_b` (of mean scores), and where pairs are known `trace` beside `chance`;
- `control`: the entry of the control; `imputed`: for each file of imputed values its cells, features, unit, and how
  many cells were imputed by mixing treatments;
- `metrics`: against known pairs, None where there are none; `details`: the same by treatment, see `psa_jax.evaluate`.
"""

import dataclasses
import textwrap
from pathlib import Path
from typing import Any

import jax
import numpy as np

from psa_jax import io
from psa_jax.align.alignment import Alignment
from psa_jax.align.evaluate import evaluate
from psa_jax.align.pipeline import align
from psa_jax.align.processes import gathered
from psa_jax.cli.folder import REFERENCES, Kept, controls, keep
from psa_jax.cli.jobs import MATCHERS, epochs_of, make_matcher
from psa_jax.cli.output import write_report
from psa_jax.cli.reading import Read, Source, chosen_features, quietly, read, refuse
from psa_jax.cli.report import write_html
from psa_jax.cli.results import judge, metric_rows, note_clipped, status_line, verdict, write, write_cells
from psa_jax.cli.show import Show
from psa_jax.cli.tables import metrics_table, treatments_table
from psa_jax.data.samples import Unpaired
from psa_jax.devices import all_devices
from psa_jax.io.impute import impute_from
from psa_jax.judge.tune import tune
from psa_jax.match import known_pairs
from psa_jax.propensity import Learner, Training, relative_to
from psa_jax.types import KeyArray

QUICK = {"members": 1, "folds": 3}


@dataclasses.dataclass(frozen=True)
class Fit:
    """How cells are aligned: options of `psa-jax align`."""

    matcher: str
    eps: float | None
    relative_eps: float | None
    k: int | None
    seed: int
    epochs: int | None
    members: int
    folds: int
    tune: bool = False
    relative_to_control: bool = False
    mesh: bool = False

    def learner(self, control: int | None) -> Learner:
        """Of both modalities, by the code of the control."""
        learner = Learner(training=Training(epochs=self.epochs), members=self.members, folds=self.folds)
        if not self.relative_to_control:
            return learner
        assert control is not None
        return dataclasses.replace(learner, transform=relative_to(control))


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is made of an alignment: the control, features to impute (see `check_features`), and whether of b too."""

    control: str | None
    features: Any
    impute_b: bool


def cells(
    folder: Path, show: Show, source: Source, fit: Fit, wanted: Wanted, called: str, resume: Path | None = None
) -> None:
    """Aligns two modalities of single cells; `called` is what the folder will be called, `resume` as for `align`."""
    key_shuffle, key_align, key_rest, key_tune = jax.random.split(jax.random.key(fit.seed), 4)
    names = ", ".join(file.name for file in source.files)
    with show.stage("data", f"read {names}"), show.noting(), quietly():
        found = read(source)
        found = dataclasses.replace(found, loaded=io.shuffle(key_shuffle, found.loaded))
    loaded, data = found.loaded, found.loaded.data
    _check(loaded, wanted)
    known = int((np.asarray(loaded.truth.pair) >= 0).sum())
    _introduce(show, source, loaded, known)
    matcher = make_matcher(fit.matcher, fit.eps, fit.relative_eps, fit.k)
    a, b, tuning = _learners(key_tune, show, data, fit, wanted.control)
    with show.noting():
        mesh = all_devices() if fit.mesh else None
        alignment = show.aligning(
            lambda tell: align(key_align, data, a=a, b=b, matcher=matcher, mesh=mesh, resume=resume, progress=tell)
        )
        alignment = _here(alignment)
    note_clipped(show, alignment, fit.k)
    label = MATCHERS[fit.matcher]
    with show.stage("evaluation", "evaluation"):
        reports = {label: evaluate(key_rest, alignment, loaded.truth, data)}
        if known:
            reports["true pairs"] = judge(
                key_rest, alignment, known_pairs(loaded.truth.pair, len(loaded.cells_b)), loaded.truth, data
            )
    imputed = _impute(folder, show, alignment, found, wanted)
    report = write(folder, show, alignment, reports, label, lambda plot, save: None)
    states = io.status(alignment)
    write_cells(folder, alignment, loaded, source.treatment[0], states)
    show.table(lambda width: treatments_table(report["treatments"], loaded.modalities, width))
    show.say(status_line(states))
    believed, control = dict(alignment.verdict()), None
    for name, text in believed.items():
        show.say(textwrap.fill(f"{name}: {text}.", 80, subsequent_indent="  ", break_on_hyphens=False))
    if wanted.control is not None:
        control = _control(report["treatments"], alignment, data, wanted.control)
        show.say(f"control {control['name']}: {control['size_a']} cells of a, {control['size_b']} of b.")
    if known:
        show.table(lambda width: metrics_table(metric_rows(reports, label), width))
        show.say(verdict(reports[label], label))
    told = {
        "command": "align",
        "settings": _settings(source, fit, wanted, loaded) | epochs_of(alignment),
        "cells": {"a": len(loaded.cells_a), "b": len(loaded.cells_b), "known_pairs": known},
        "features": loaded.num_features,
        "preparations": [done.summary() for done in loaded.preparations],
        "unlabelled": loaded.unlabelled,
        "left_out": [dict(zip(("name", "cells_a", "cells_b"), row, strict=True)) for row in loaded.left_out],
        "tuning": tuning,
        "verdict": believed,
        "control": control,
        "imputed": imputed,
        **report,
    }
    with show.stage("report", "report.html"):
        written = write_report(folder, told)
        write_html(folder / "report.html", show, Kept(folder, "a", written, alignment, loaded.preparations[0]), called)
    show.print_notes()


def _here(alignment: Alignment) -> Alignment:
    """The alignment whole in this process, which goes on alone."""
    if jax.process_count() == 1:
        return alignment
    found = gathered(alignment)
    projection = found.projection
    if projection is not None:
        projection = dataclasses.replace(projection, coupling=dataclasses.replace(projection.coupling, mesh=None))
    return dataclasses.replace(found, coupling=dataclasses.replace(found.coupling, mesh=None), projection=projection)


def _learners(
    key: KeyArray, show: Show, data: Unpaired, fit: Fit, control: str | None
) -> tuple[Learner, Learner, dict[str, Any] | None]:
    """Those of both modalities: as options say, or with the smoothing that labels choose; and why."""
    learner = fit.learner(None if control is None else (data.taught.names or ()).index(control))
    if not fit.tune:
        return learner, learner, None
    with show.stage("tuning", "smoothing, chosen by labels"), show.noting():
        tuned = tune(key, data, a=learner, b=learner, geometry=False)  # which new cells could not follow
    show.say("\n".join(f"  {line}" for line in repr(tuned).split("\n")))
    return tuned.a, tuned.b, {"chosen": tuned.chosen, "table": tuned.table}


def _check(loaded: io.Loaded, wanted: Wanted) -> None:
    """Refuses what does not fit the file, before anything is learnt."""
    names = loaded.data.taught.names or ()
    if wanted.control is not None and wanted.control not in names:
        raise ValueError(f"--control: expected one of {', '.join(names)}, got {wanted.control!r}")
    if isinstance(wanted.features, list):
        if wanted.impute_b:
            refuse("--features, --impute-b", "names of features are those of one modality: give all or hvg:NUMBER")
        absent = [name for name in wanted.features if name not in set(loaded.features_b)]
        if absent:
            raise ValueError(
                f"--features: expected names of features of {loaded.modalities[1]}, got {len(absent)} others "
                f"({', '.join(absent[:5])})"
            )


def _introduce(show: Show, source: Source, loaded: io.Loaded, known: int) -> None:
    """Says what was read and what was done to it."""
    counts = len(loaded.cells_a), len(loaded.cells_b)
    for side, name, n, done, dropped in zip(
        "ab", loaded.modalities, counts, loaded.preparations, loaded.unlabelled, strict=True
    ):
        left_out = f"; {dropped} more have no {source.treatment[-1 if side == 'b' else 0]} and are left out"
        show.say(f"  {side} is {name}: {n} cells, {done.summary()}{left_out if dropped else ''}")
    if loaded.left_out:
        told = ", ".join(f"{name} ({n_a}, {n_b} cells)" for name, n_a, n_b in loaded.left_out)
        show.say(f"  left out, as asked for: {told}")
    if known:
        show.say(
            f"  {known} cells are in both modalities. They are aligned as if that were unknown (in random order);\n"
            "  who is who is used only to measure the result."
        )


def _impute(folder: Path, show: Show, alignment: Alignment, found: Read, wanted: Wanted) -> dict[str, Any]:
    """Writes imputed values, and what is needed to impute those of new cells."""
    told = {}
    sides = {"b": (alignment, found.loaded, found.a, found.b)}
    if wanted.impute_b:
        sides["a"] = (alignment.T, found.loaded.T, found.b, found.a)
    with show.stage("imputation", "imputed values"), show.noting(), quietly():
        keep(folder, alignment, found.loaded)
        for side, (law, loaded, here, there) in sides.items():
            features = chosen_features(wanted.features, len(loaded.features_b))
            source = io.reference(loaded, there, features=features)
            source.write_h5ad(folder / REFERENCES[side])
            out = impute_from(law, loaded, here, source)
            name = "imputed.h5ad" if side == "b" else "imputed_b.h5ad"
            out.write_h5ad(folder / name)
            told[name] = {
                "cells": out.n_obs,
                "features": out.n_vars,
                "of": len(loaded.features_b),
                "modality": loaded.modalities[1],
                "unit": out.uns["psa"]["unit"],
                "mixed": out.uns["psa"]["mixed"],
                "missing": out.uns["psa"]["missing"],
            }
    for name, entry in told.items():
        show.say(
            f"  {name}: {entry['cells']} cells, {entry['features']} of {entry['of']} features of {entry['modality']} "
            f"({entry['unit']})"
        )
        if entry["mixed"]:
            show.note(f"{entry['mixed']} cells in {name} have no treatment with a partner: treatments are mixed")
        if entry["missing"]:
            show.note(f"{entry['missing']} cells in {name} have no partner: their values are missing (NaN)")
    return told


def _control(entries: list[dict[str, Any]], alignment: Alignment, data: Unpaired, name: str) -> dict[str, Any]:
    """The control's entry; every treatment is told its distance from the control in scores.

    Of stratified cells each from the control in its own stratum; the entry then is the control's largest one.
    """
    names, start_of = list(alignment.names or ()), controls(alignment, name)
    for side, scores, t in (("a", alignment.scores_a, data.a.t), ("b", alignment.scores_b, data.b.t)):
        scores, t = np.asarray(scores), np.asarray(t)
        means = {code: scores[t == code].mean(axis=0) for code in np.unique(t)}
        for entry in entries:
            code = names.index(entry["name"])
            here, start = means.get(code), means.get(int(start_of[code]))
            apart = None if here is None or start is None else float(np.linalg.norm(here - start))
            entry[f"distance_from_control_{side}"] = apart
    own = {names[code] for code in start_of.tolist() if code >= 0}
    return next(entry for entry in entries if entry["name"] in own)


def _settings(source: Source, fit: Fit, wanted: Wanted, loaded: io.Loaded) -> dict[str, Any]:
    """Every option as it was used."""
    told = {"file": str(source.files[0]), "files": [str(file) for file in source.files]}
    told |= {"treatment": source.treatment[0], "treatment_b": source.treatment[-1], "modalities": loaded.modalities}
    told |= {"layer": source.layer, "obsm": source.obsm, "treatments": source.treatments}
    told |= {"min_cells": source.min_cells, "as_is": source.as_is, "num_components": source.num_components}
    told |= {"drop_unlabelled": source.drop_unlabelled, "pairs": source.pairs, "control": wanted.control}
    for name, columns in (("within", source.within), ("batch", source.batch)):
        told |= {name: columns[0], f"{name}_b": columns[-1]} if columns else {name: None, f"{name}_b": None}
    return told | dataclasses.asdict(fit)
