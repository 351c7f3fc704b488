"""What every command does with an alignment: measure it, write it, draw it, put it in words."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from psa_jax import io
from psa_jax.align.alignment import Alignment
from psa_jax.align.evaluate import evaluate
from psa_jax.cli.output import write_report, write_table
from psa_jax.cli.show import Show
from psa_jax.cli.tables import metrics_table
from psa_jax.data.labels import listed
from psa_jax.data.samples import Truth, Unpaired
from psa_jax.match import known_pairs, snn
from psa_jax.match.blockwise import blockwise
from psa_jax.types import KeyArray

PARTNERS = 5
Reports = dict[str, dict[str, Any]]
MEANING = {
    "matched, trivially": "one sample on a side: nothing to choose",
    "too few to judge": "matched, but fewer than 4 samples on a side",
    "not converged": "the coupling may be used, but it misses the accuracy asked for",
    "missing in a": "its samples have no partner",
    "missing in b": "its samples have no partner",
}


def status_line(states: list[str]) -> str:
    """How many treatments are in which state, and what that means."""
    parts = []
    for state in dict.fromkeys(states):
        meaning = f" ({MEANING[state]})" if state in MEANING else ""
        parts.append(f"{states.count(state)} {state}{meaning}")
    return f"{len(states)} treatments: {'; '.join(parts)}."


def finish_demo(
    folder: Path,
    show: Show,
    key: KeyArray,
    alignment: Alignment,
    truth: Truth,
    data: Unpaired,
    settings: dict[str, Any],
    pictures: Callable[..., None],
) -> None:
    """Measures the other ways of matching too, then writes and tells."""
    with show.stage("evaluation", "evaluation"), show.noting():
        shared = blockwise(snn)(alignment.scores_a, alignment.scores_b, alignment.groups)
        reports = {
            "PS+SNN": judge(key, alignment, shared, truth, data),
            "PS+OT": evaluate(key, alignment, truth, data),
            "true pairs": judge(key, alignment, known_pairs(truth.pair, data.b.t.shape[0]), truth, data),
        }
    report = write(folder, show, alignment, reports, "PS+OT", pictures)
    show.table(lambda width: metrics_table(metric_rows(reports, "PS+OT"), width))
    show.say(verdict(reports["PS+OT"], "PS+OT"))
    show.print_notes()
    write_report(folder, {"command": "demo", "settings": settings, **report})


def write(
    folder: Path,
    show: Show,
    alignment: Alignment,
    reports: Reports,
    label: str,
    pictures: Callable[..., None],
) -> dict[str, Any]:
    """Writes coupling and pictures; returns what every report holds."""
    with show.stage("coupling", "coupling"):
        io.save_coupling(folder / "coupling.npz", alignment.coupling)
    _draw(folder, show, alignment, reports[label], pictures)
    return {
        "metrics": metric_rows(reports, label),
        "treatments": _treatments(alignment, reports[label]),
        "details": reports,
        "notes": show.notes,
        "timings_s": {"compilation_included": True, **show.timings},
    }


def _draw(
    folder: Path,
    show: Show,
    alignment: Alignment,
    report: dict[str, Any],
    pictures: Callable[..., None],
) -> None:
    try:
        import matplotlib
    except ImportError:
        show.note("no pictures were drawn: they need pip install matplotlib")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from psa_jax import plot

    def save(name: str, axes: Any) -> None:
        figure = np.ravel(axes)[0].figure
        figure.savefig(folder / name, dpi=150, bbox_inches="tight", pad_inches=0.12)
        plt.close(figure)

    with show.stage("pictures", "pictures"):
        pictures(plot, save)
        if report["metrics"]["trace"]["micro"] is not None:
            save("trace_by_treatment.png", plot.trace_by_treatment(report))
        _, axes = plt.subplots(1, 2, figsize=(8, 4.4), layout="constrained")
        plot.calibration(alignment.calibration_a, "modality a", ax=axes[0])
        plot.calibration(alignment.calibration_b, "modality b", ax=axes[1])
        save("calibration.png", axes)


def write_cells(folder: Path, alignment: Alignment, loaded: io.Loaded, treatment: str, states: list[str]) -> None:
    """One line for each cell: its treatment, what became of it, and its most probable partners, best first.

    `cells_a.csv` and `cells_b.csv` have five partners each; `cells.csv` has the best one of each cell of a, with the
    modalities' names in its header.
    """
    law, strata = alignment.coupling, alignment.strata
    further = [] if strata is None else ["within"]
    sides = (("a", law, loaded.data.a, loaded.cells_a, loaded.cells_b), ("b", law.T, loaded.data.b, loaded.cells_b,
             loaded.cells_a))  # fmt: skip
    for side, coupling, own, cells, others in sides:
        probability, best = (np.asarray(x).tolist() for x in coupling.top_k(min(PARTNERS, coupling.shape[1])))
        codes, ranks = np.asarray(own.t).tolist(), range(1, len(best[0]) + 1)
        labels = [(loaded.treatments[t],) for t in codes]
        if strata is not None:
            pairs = zip(*strata.split(codes), strict=True)
            labels = [(strata.treatments[t], strata.names[s]) for t, s in pairs]
        rows = [
            (cell, *label, states[t], *_partners(others, js, ps))
            for cell, label, t, js, ps in zip(cells, labels, codes, best, probability, strict=True)
        ]
        head = ("cell", "treatment", *further, "status")
        header = (*head, *(f"{what}_{rank}" for rank in ranks for what in ("partner", "probability")))
        write_table(folder / f"cells_{side}.csv", header, rows)
        if side == "a":
            first, second = loaded.modalities
            header = (f"cell_{first}", treatment, *further, "status", f"match_{second}", "probability")
            write_table(folder / "cells.csv", header, (row[: len(header)] for row in rows))


def _partners(names: tuple[str, ...], columns: list[int], probabilities: list[float]) -> list[str]:
    """Names and probabilities in turn, nothing where there are fewer."""
    pairs = zip(columns, probabilities, strict=True)
    return [part for j, p in pairs for part in ((names[j], f"{p:.6g}") if j >= 0 else ("", ""))]


def judge(key: KeyArray, alignment: Alignment, coupling: Any, truth: Truth, data: Unpaired) -> dict[str, Any]:
    """Measures another coupling of the same scores."""
    return evaluate(key, dataclasses.replace(alignment, coupling=coupling), truth, data)


def metric_rows(reports: Reports, label: str) -> dict[str, dict[str, float | None]]:
    """The figures of each way of matching; random match and class mean are levels of every report."""

    def read(report: dict[str, Any], level: str) -> dict[str, float | None]:
        return {name: metric[level] for name, metric in report["metrics"].items()}

    rows = {"random match": read(reports[label], "chance"), "class mean": read(reports[label], "class_mean")}
    return rows | {name: read(report, "micro") for name, report in reports.items()}


def _treatments(alignment: Alignment, report: dict[str, Any]) -> list[dict[str, Any]]:
    """One entry for each treatment, largest first."""
    solver, found = report["treatments"], report["metrics"]["trace"]["by_treatment"]
    names = alignment.names or tuple(map(str, range(alignment.groups.num_treatments)))
    told = alignment.projection
    judged = {} if told is None else {
        "evidence_z": np.asarray(told.evidence.z),
        "believed_a": np.asarray(told.weight_a),
        "believed_b": np.asarray(told.weight_b),
    }  # fmt: skip
    entries = [
        {
            "name": name,
            "status": state,
            **{column: solver[column][t] for column in ("size_a", "size_b", "num_iters", "marginal_error")},
            "trace": found["mean"][t],
            "chance": found["chance"][t],
            **{name: float(values[t]) for name, values in judged.items()},
        }
        for t, (name, state) in enumerate(zip(names, io.status(alignment), strict=True))
    ]
    return sorted(entries, key=lambda entry: -min(entry["size_a"], entry["size_b"]))


def verdict(report: dict[str, Any], label: str) -> str:
    """The result in words."""
    metrics = report["metrics"]
    trace, latents = metrics["trace"], metrics.get("latent_mse")
    if latents is not None and latents["micro"] is not None and latents["class_mean"]:
        ratio = latents["micro"] / latents["class_mean"]
        return (
            f"{label} finds the hidden state with a mean squared error of {latents['micro']:.4f}: "
            f"{ratio:.2f} times that of the class mean ({latents['class_mean']:.4f})."
        )
    if trace["micro"] is None:
        return f"{label}: there is nothing to measure, no sample with a known partner was matched."
    times = trace["micro"] / trace["chance"]
    return (
        f"{label} gives the true partner a mean probability of {trace['micro']:.3g}, {times:.1f} times that of a "
        f"random match within the treatment ({trace['chance']:.3g})."
    )


def note_clipped(show: Show, alignment: Alignment, k: int | None) -> None:
    """Notes the treatments that have fewer samples than `k` neighbours."""
    details = alignment.coupling.info.details
    used = [np.asarray(details[name]) for name in ("k", "k_rows", "k_cols") if name in details]
    if k is None or not used:
        return
    matched = (np.asarray(alignment.groups.sizes_a) > 0) & (np.asarray(alignment.groups.sizes_b) > 0)
    clipped = np.flatnonzero(matched & (np.min(used, axis=0) < k))
    if clipped.size:
        told = listed(clipped, alignment.names)
        show.note(f"{clipped.size} treatments have fewer than {k} samples on a side; all of them were used: {told}")
