"""`PERTURBATIONS.md`, from `results/perturbations.json`: `python -m benchmarks.perturbations_report`."""

import json

import matplotlib.pyplot as plt
import numpy as np

from benchmarks.report import COLOURS, PUBLISHED, summary
from benchmarks.tables import HERE, markdown, write

HEAD = """# Perturbations, seen and unseen

Written by `python -m benchmarks.perturbations`; every number is in `results/perturbations.json`. Medians over seeds,
with quartiles. Cells of modality b are predicted from test cells of a, whose treatment the predictors do not see, and
compared with the observed test cells of b of the same treatment; distances are averaged over treatments.

- **seen**: training had cells of every treatment. **unseen**: each treatment is left out in turn (of more than twelve
  a quarter at a time) of everything: classifiers, couplings, predictors. What is used for it are the features of a of
  its test cells, and nothing else of the treatment but this: features are standardised over all cells of the data set,
  test ones and those left out too. Of the treatments that stay as many cells are taken as the smallest has.
- **coupling, loss**: what a predictor (two layers of 128, 30 epochs, nothing selected) was trained through. PS:
  propensity scores of three classifiers a modality on three folds, tempered and refined; OT: entropic transport within
  treatments; SNN: shared nearest neighbours; "calibrated": `alignment.projection`. Losses: "barycentric" regresses on
  the mean of a cell's partners, "sampled" on one drawn partner, "unbiased" is the paper's, from two draws
  (`psa.fit_predictor`).
- Other rows train no predictor. "Mean of partners" is `alignment.predict` and "drawn partner" `alignment.sample`, both
  without the test cell's treatment: its propensities weigh those that training had. "Nearest cell" takes the values of
  the training cell of b whose latents of the VAE are nearest. Without a loss: what is known of b in the treatment
  itself, if it was seen, or in the treatment whose cells of a have the nearest mean, as that mean or as cells drawn
  there.
- **W1**: exact in one dimension, averaged over features (standardised); **sliced W1** over 128 directions. **KL** by
  nearest neighbours in the first {components} principal components, of observed from predicted cells, an estimate,
  which may be below zero. **energy**: the squared energy distance. A predictor of means spreads less than cells do,
  which all four count against it, and drawn cells do not: random cells of the treatment itself are what a perfect
  guess without features would have. The price of a draw is in the last column, where it pays its own spread.
- **R2 of mean effects, correlation**: of the predicted mean of a treatment less the mean of all training cells, with
  the observed one, over treatments and features.
- **cell error / class mean**: squared error of single cells (their pairs are known), over that of the treatment's mean
  among test cells, which no unseen prediction knows.

What the data are: [README.md](README.md). The paper reports W1 and KL between predicted and observed expression on data
that are not public: {paper}.

What holds, and what does not:

- Whole populations, of what is not told the treatment: on Sachs partners drawn by scores have the least W1 of all
  where treatments were seen, and, true pairs aside, where they were not. On the stimulations and the screen they are
  level with the VAE: ahead of its best row in W1 in two seeds of three (on the stimulations, where they were seen, in
  one), on the stimulations behind it in sliced W1. Random cells of the treatment itself, or of the nearest one where
  it is unseen, are nearer still on the real data. The VAE was given no draws of its own, only its nearest cells.
- KL is an estimate: that of random cells of the treatment is about 0, and what is far below says that predictions
  spread too little, not that they are good. Drawn partners are behind predictors through the VAE where treatments of
  the real data were seen (and behind our own through PS+SNN on the stimulations), and far from 0 (.33) where those of
  the screen were not.
- Single cells of seen treatments: on Sachs and the screen predictors through PS+OT with the barycentric or sampled
  loss, calibrated or not, and means of partners know them better than the treatment's mean does, and than predictors
  through the VAE. The unbiased loss does not, nor, on Sachs, does PS+SNN (1.53 to 1.69). On the four stimulations none
  does. Of unseen treatments: on the screen alone, by about 2 %. A draw is worse at single cells than a mean, by the
  spread that it has.
- Unseen: on Sachs and the screen predictors through PS+OT (barycentric, sampled) and means of partners are ahead of the
  nearest treatment's mean in W1, KL and single cells; on the four stimulations those predictors in the first two alone.
  The mean effect of an unseen treatment is predicted on the screen only: R2 .70 by predictors through PS+OT; .50 to .60
  through treatments' means, .59 through the VAE, .65 through true pairs, .56 by drawn partners, .23 by the nearest
  treatment.
- "True pairs" are predictors trained on them, so predictions of means: no bound for W1 or KL.

![Cell error and W1 of every prediction](figures/perturbations.png)
"""
CELL = "cell error / class mean"
MEAN, CELLS = "treatment's mean, or the nearest one's", "its cells at random, or the nearest one's"

WAYS = {  # what a prediction came through, and its colour
    MEAN: COLOURS["none"], CELLS: COLOURS["none"], "class mean": "0.75", "PS+OT": COLOURS["PS"],
    "PS+OT, calibrated": "C9", "PS+SNN": "C3", "VAE": COLOURS["VAE"], "true pairs": "0",
}  # fmt: skip
MARKS = {
    "": "x", "barycentric": "o", "sampled": "s", "unbiased": "^", "mean of partners": "D", "drawn partner": "*",
    "nearest cell": "P",
}  # fmt: skip


def draw(sets):
    """Two panels a data set: how far predictions of single cells and of the whole population are from the truth."""
    places = ("seen", "unseen")
    figure, axes = plt.subplots(2, len(sets), figsize=(4 * len(sets), 7.5), squeeze=False, layout="constrained")
    for row, where in zip(axes, places, strict=True):
        for axis, (name, found) in zip(row, sets.items(), strict=True):
            values = {}
            for one in found["rows"]:
                if one["treatments"] == where:
                    values.setdefault((one["coupling"], one["loss"]), []).append((one[CELL], one["W1"]))
            for (coupling, loss), pairs in values.items():
                x, y = np.median(pairs, axis=0)
                mark = "1" if coupling == CELLS else MARKS[loss]
                axis.plot(x, y, mark, color=_colour(coupling), markersize=10 if loss == "drawn partner" else 6)
            axis.axvline(1, color="0.8", lw=0.8, zorder=0)
            axis.set(title=f"{name}, {where}", xlabel=CELL, xscale="log", ylim=(0, None))
            ticks = [one for one in (0.5, 0.7, 1, 1.4, 2, 2.8, 4, 5.6) if axis.get_xlim()[0] < one < axis.get_xlim()[1]]
            axis.set_xticks(ticks, map(str, ticks))
            axis.minorticks_off()
        row[0].set_ylabel("W1")
    shown = [(colour, {MEAN: "x", CELLS: "1"}.get(way, "o"), way) for way, colour in WAYS.items()]
    shown += [("0.4", mark, how) for how, mark in MARKS.items() if how]
    handles = [plt.Line2D([], [], color=c, marker=mark, linestyle="", label=label) for c, mark, label in shown]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    figure.savefig(HERE / "figures" / "perturbations.png", dpi=100)
    plt.close(figure)


def _colour(coupling):
    return WAYS[coupling.replace("VAE+OT", "VAE")]


def report():
    """Writes the page, and its picture, from all data sets that have results."""
    record = json.loads((HERE / "results" / "perturbations.json").read_text())
    draw(record["sets"])
    published = "; ".join(f"{row['published']} {row['W1']} and {row['KL']}" for row in PUBLISHED["screen"])
    parts = [HEAD.format(components=5, paper=published)]
    for name, found in record["sets"].items():
        seconds, cores = found["seconds"], found["environment"]["cores"]
        told = ", ".join(f"{each} s" for each in seconds.values()) + f" of processor time on {cores} cores"
        parts.append(f"\n## {name}\n\nSeeds {', '.join(seconds)}: {told}, compilation included.\n")
        for where in ("seen", "unseen"):
            rows = [{**row, "table": ""} for row in found["rows"] if row["treatments"] == where]
            rows = [{k: v for k, v in row.items() if k not in ("data", "treatments")} for row in rows]
            if rows:
                parts.append(f"### {where}\n\n{markdown(summary(rows, ('coupling', 'loss')))}\n")
    write(HERE / "PERTURBATIONS.md", "\n".join(parts))


if __name__ == "__main__":
    report()
