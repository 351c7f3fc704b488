"""`report.html`: one file with its pictures inside, made of what a folder holds."""

import base64
import io as memory
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from psa_jax.cli.folder import Kept
from psa_jax.cli.reading import open_file, quietly
from psa_jax.cli.show import Show
from psa_jax.judge.agreement import treatments_of

TEMPLATE = Path(__file__).with_name("report.html.jinja")
MARKERS = 3
FILES = {
    "imputed.h5ad": "cells of {a}, features of {b}: values in X, how far partners spread in layers['std'], scores in "
    "obsm['psa_scores']; obs['psa_mixed'] marks cells whose treatment has no partner",
    "imputed_b.h5ad": "cells of {b}, features of {a}, likewise",
    "cells_a.csv": "the best partners of each cell of {a}, with probabilities",
    "cells_b.csv": "the best partners of each cell of {b}",
    "report.json": "all figures of this page",
    "alignment.npz": "the alignment, for psa_jax.Alignment.load",
    "preparations.npz": "what was done to the features, for new cells",
    "reference_b.h5ad": "cells of {b} with the features that are imputed",
    "coupling.npz": "the 32 best partners of each cell of {a}, for psa_jax.io.load_coupling",
}


def write_html(output: Path, show: Show, kept: Kept, called: str) -> None:
    """Writes a page of what a folder holds; `called` is the folder's name as users know it."""
    folder = kept.path
    try:
        import jinja2
    except ImportError:
        show.note("no report.html was written: it needs pip install jinja2")
        return
    report = kept.report
    first, second = report["settings"]["modalities"]
    order = _order(report)
    maker = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    maker.filters["figure"] = _figure
    imputed = report["imputed"].get("imputed.h5ad") or {}
    text = maker.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        report=report,
        names=(first, second),
        rows=order,
        matched=sum(row["status"] not in ("missing in a", "missing in b") for row in report["treatments"]),
        found=not _none(report),
        unit=imputed.get("unit", ""),
        pictures=_pictures(folder, show, kept, [row["name"] for row in order]),
        files={name: told.format(a=first, b=second) for name, told in FILES.items() if (folder / name).exists()},
        folder=called,
    )
    output.write_text(text, encoding="utf-8")


def _order(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Treatments by their distance from the control, else as they are."""
    if not report["control"]:
        return report["treatments"]
    return sorted(report["treatments"], key=lambda row: _distance(row["distance_from_control_a"]))


def _distance(value: float | None) -> float:
    return float("inf") if value is None else value


def _none(report: dict[str, Any]) -> bool:
    return str(report["verdict"].get("evidence", "none")).startswith("none")


def _pictures(folder: Path, show: Show, kept: Kept, order: list[str]) -> dict[str, str]:
    """Pictures by name, as text."""
    try:
        import matplotlib
    except ImportError:
        show.note("report.html has no pictures: they need pip install matplotlib")
        return {}
    matplotlib.use("Agg")
    return {name: _png(axes) for name, axes in _drawn(folder, kept, order)}


def _drawn(folder: Path, kept: Kept, order: list[str]) -> Iterator[tuple[str, Any]]:
    import matplotlib.pyplot as plt

    from psa_jax import plot

    alignment, report = kept.alignment, kept.report
    titles, control = report["settings"]["modalities"], report["settings"]["control"]
    names = list(alignment.names or ())
    codes = [names.index(name) for name in order if name in names]
    there = [c for c in codes if alignment.groups.sizes_a[c] and alignment.groups.sizes_b[c]]
    drawn = names.index(report["control"]["name"]) if control else None
    yield "scores", plot.score_maps(alignment, control=drawn, titles=titles)
    if (folder / "imputed.h5ad").is_file():
        yield "features", _markers(folder, kept, plot)
    yield "evidence", plot.evidence(alignment, order=there if control else None)
    yield "partners", plot.partners(alignment, order=there if control else None)
    _, axes = plt.subplots(1, 2, figsize=(8, 4.4), layout="constrained")
    plot.calibration(alignment.calibration_a, titles[0], ax=axes[0])
    plot.calibration(alignment.calibration_b, titles[1], ax=axes[1])
    yield "calibration", axes


def _markers(folder: Path, kept: Kept, plot: Any) -> Any:
    """The features whose imputed values vary most within treatments, against how much they are measured to vary."""
    with quietly():
        imputed, reference = open_file(folder / "imputed.h5ad"), open_file(folder / "reference_b.h5ad")
    rows = imputed.obs_names.get_indexer(list(kept.own_cells()))
    values = np.asarray(imputed.X[rows])
    t = np.asarray(treatments_of(kept.alignment.groups)[0])
    spread = np.zeros(values.shape[1])
    for code in np.unique(t):
        spread += np.nan_to_num(((values[t == code] - values[t == code].mean(axis=0)) ** 2).sum(axis=0))
    best = np.argsort(-spread, kind="stable")[:MARKERS]
    measured = reference.X[:, best]
    measured = np.asarray(measured.toarray() if hasattr(measured, "toarray") else measured)
    titles = kept.report["settings"]["modalities"]
    return plot.feature_maps(
        kept.alignment, values[:, best], measured, reference.var_names[best].tolist(), titles=titles
    )


def _png(axes: Any) -> str:
    """A figure as text, which it is closed after."""
    import matplotlib.pyplot as plt

    figure, held = np.ravel(axes)[0].figure, memory.BytesIO()
    figure.savefig(held, format="png", dpi=120, bbox_inches="tight", pad_inches=0.1)
    plt.close(figure)
    return base64.b64encode(held.getvalue()).decode()


def _figure(value: Any, digits: int = 1) -> str:
    return "–" if not isinstance(value, int | float) else f"{value:.{digits}f}"
