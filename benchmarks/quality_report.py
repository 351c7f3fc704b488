"""`QUALITY.md` and its pictures, from `results/quality.json`: `python -m benchmarks.quality_report`."""

import json

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from benchmarks.report import COLOURS as OF
from benchmarks.tables import HERE, markdown, write

ORDER = (
    "Sachs", "Bodenmiller", "Bodenmiller, stimulations", "SNARE-seq", "BMMC", "digits", "screen", "balls",
    "Sachs, labels permuted", "nothing shared",
)  # fmt: skip
COLUMNS = (
    "lift at error 1", "lift at the paper's error", "lift", "FOSCTTM", "least FOSCTTM", "coupling: error",
    "project: error", "project, b to a: error", "evidence", "seconds",
)  # fmt: skip
COLOURS = {
    "the paper's": OF["PS as published"], "0.4.0": "C3", "no smoothing": "C6", "logits, not tempered": "C7",
    "today": OF["PS"],
}  # fmt: skip
HEAD = """# Quality

Written by `python -m benchmarks.quality`; every number is in `results/quality.json`. Medians of {seeds} seeds, which
decide the split, the training and the order. No run chooses a setting with the truth; but the
constants of `psa.refine`, of `project` and of which members count (ridge, share, 95 %, agreement by 0.1) were compared
on these sets, pairs known.

- **lift**: mean of n_t P(true match | i), of entropic transport at eps 0.1 of the spread of the costs, the default of
  `alignment.coupling`; chance is 1. **lift at error 1**: interpolated over eps to where the projection is as good as
  the treatment's mean; where it is better at every eps, the lift at the least (0.02). **lift at the paper's error**:
  the same at the error of the paper's recipe (eps 0.05 absolute). Medians of the seeds that reach it; empty where half
  of them or more do not.
- **FOSCTTM**: of the barycentric projection among the treatment's samples, in the features of modality b (balls: in
  latents); chance is 0.5. **least**: over eps.
- **error**: squared, over that of the treatment's mean. Of `coupling.apply` at eps 0.1, and of `project`, both ways.
- **evidence**: share of the treatments (of five samples or more) in which `project` finds any, by labels only.
- **seconds**: of training and scoring both modalities, the first seed's with compilation included; of rows that take
  some of the six classifiers, those of all six.
- Curves in the pictures: every eps, the default ringed; a star is the paper's recipe at its own eps.

"The paper's" is its recipe (logits of one classifier, without smoothing) with our network and optimiser. "today" is the
default of `align`: six classifiers, two of each smoothing (those of one alone where labels clearly say
so, as for balls), tempered propensities, refined scores (`psa.refine`). "tuned" is what `psa.tune` makes of it, its
matcher included (not of images). Rows below leave out or change one thing; of one smoothing alone, and of none, there
are two classifiers. SNARE-seq, BMMC and digits are aligned whole, by cross-fitting. Balls are 16 x 16 pixels, seen by a
network of 16, 32 and 64 channels. What the data are: [README.md](README.md).
"""
TUNED = """
## What `psa.tune` chooses

By labels only, from the training samples: the smoothing (the mix of three as given, or one of its family), and whether
distances within modalities help (`alpha`). **behind the best**: FOSCTTM of the row of what was chosen, less the least
of its family's rows ("three members", which is the mix, "no smoothing", and each noise or shift alone).
"""
AGAIN = """
## What another key changes

`align` by its defaults with several keys on the first split of each data set: chance in training, folds and halves
alone (`python -m benchmarks.again`).
"""
FAMILY = {
    "as given": "three members",
    "none": "no smoothing",
    "noise 0.3, shifts 0.05": "noise 0.3 or shifts 0.05 alone",
    "noise 0.7, shifts 0.08": "noise 0.7 or shifts 0.08 alone",
    "noise 1.2, shifts 0.12": "noise 1.2 or shifts 0.12 alone",
}


def report():
    """Writes the page and the pictures of all data sets that have results."""
    record = json.loads((HERE / "results" / "quality.json").read_text())
    rows = record["rows"]
    parts = [HEAD.format(seeds=record["settings"]["seeds"])]
    for name in ORDER:
        own = [row for row in rows if row["data"] == name]
        if own:
            picture = name.replace(",", "").replace(" ", "_").lower()
            draw(own, name, record["settings"]["eps"], HERE / "figures" / f"quality_{picture}.png")
            parts += [f"\n## {name}\n", table(own), f"\n![{name}](figures/quality_{picture}.png)\n"]
    parts += [TUNED, choices(rows)]
    again = HERE / "results" / "again.json"
    if again.exists():
        parts += [AGAIN, markdown(json.loads(again.read_text())["rows"])]
    machine = record["environment"]
    parts.append(f"\nMachine: {machine['cores']} cores, Python {machine['python']}, jax {machine['jax']}.\n")
    write(HERE / "QUALITY.md", "\n".join(parts))


def table(rows):
    """Medians over seeds, a row for each recipe."""
    recipes = list(dict.fromkeys(row["recipe"] for row in rows))
    out = []
    for recipe in recipes:
        same = [row for row in rows if row["recipe"] == recipe]
        own = [row["paper"] for row in same if row["paper"]]
        if own:
            lift, rank, error = np.transpose(own)
            figures = {"lift": lift, "FOSCTTM": rank, "coupling: error": error}
            told = {column: _median(list(figures[column])) if column in figures else None for column in COLUMNS}
            out.append({"recipe": f"{recipe}, eps 0.05 absolute", **told})
        out.append({"recipe": recipe, **{column: _median([row[column] for row in same]) for column in COLUMNS}})
    return markdown(out)


def choices(rows):
    """What was chosen for each data set, by seed, and how far its FOSCTTM is behind the best of the family."""
    out = []
    for name in ORDER:
        own = [row for row in rows if row["data"] == name]
        tuned = [row for row in own if row["recipe"] == "tuned"]
        behind = []
        for row in tuned:
            same = {other["recipe"]: other["FOSCTTM"] for other in own if other["seed"] == row["seed"]}
            behind.append(same[FAMILY[row["tune"]["chosen"]]] - min(same[recipe] for recipe in FAMILY.values()))
        if tuned:
            out.append(
                {
                    "data": name,
                    "chosen": ", ".join(row["tune"]["chosen"].split(",")[0] for row in tuned),
                    "alpha": ", ".join(f"{row['tune']['alpha']:g}" for row in tuned),
                    "behind the best": _median(behind),
                    "seconds": _median([row["tune"]["seconds"] for row in tuned]),
                }
            )
    return markdown(out)


def _median(values):
    known = [value for value in values if value is not None and np.isfinite(value)]
    return f"{np.median(known):.3f}" if len(known) > len(values) / 2 else None


def draw(rows, name, eps, path):
    """Error against lift, a line for each recipe over `eps`, the default ringed, the paper's own setting as a star."""
    fig, ax = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for recipe, colour in COLOURS.items():
        same = [row for row in rows if row["recipe"] == recipe]
        if not same:
            continue
        curve = np.median([row["curve"] for row in same], axis=0)
        ax.plot(curve[:, 2], curve[:, 0], ".-", color=colour, label=recipe)
        default = curve[eps.index(0.1)]
        ax.plot(default[2], default[0], "o", color=colour, fillstyle="none", markersize=8)
        own = [row["paper"] for row in same if row["paper"]]
        if own:
            lift, _, error = np.median(own, axis=0)
            ax.plot(error, lift, "*", color=colour, markersize=11, linestyle="", label="its eps, 0.05 absolute")
        if recipe in ("the paper's", "today"):
            told, project = f"{recipe}, project", np.median([row["project: error"] for row in same])
            ax.axvline(project, color=colour, lw=1, ls=":" if recipe == "today" else "--", label=told)
    ax.axhline(1, color="0.7", lw=0.8)
    ax.set(title=name, ylabel="lift over chance")
    ax.set_xlabel(f"error / treatment's mean\n(eps {eps[0]:g}, on the right, to {eps[-1]:g}; ringed: the default, 0.1)")
    fig.legend(loc="outside right center", frameon=False, fontsize="small")
    path.parent.mkdir(exist_ok=True)
    fig.savefig(path, dpi=110)
    plt.close(fig)


if __name__ == "__main__":
    report()
