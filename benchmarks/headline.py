"""The table that `RESULTS.md` begins with: the paper's figures, and what stands beside them here."""

import json

import numpy as np

from benchmarks.peers_report import FIRST, record
from benchmarks.tables import HERE

RESULTS = HERE / "results"
COLUMNS = ("the paper", "its recipe, run here", "ours", "best of the others", "class mean", "true pairs")
RECIPE = {"OT": ("PS as published", "OT, eps 0.05"), "SNN": ("PS as published", "SNN")}
ALIGNED = (  # the paper's row, its figure, its data here, the column, the aligner
    ("synthetic images, latent MSE, OT", 0.0316, "balls", "latent MSE", "OT"),
    ("synthetic images, latent MSE, SNN", 0.0552, "balls", "latent MSE", "SNN"),
    ("CITE-seq, FOSCTTM, OT", 0.3049, "cite", "FOSCTTM", "OT"),
    ("CITE-seq, FOSCTTM, SNN", 0.3126, "cite", "FOSCTTM", "SNN"),
    ("CITE-seq, FOSCTTM the paper's way, OT", 0.3049, "cite", "FOSCTTM (paper's way)", "OT"),
    ("CITE-seq, FOSCTTM the paper's way, SNN", 0.3126, "cite", "FOSCTTM (paper's way)", "SNN"),
)
PREDICTED = ("CITE-seq, median R2 of a predictor", 0.233)
ITS_LOSS = "its loss alone"
PERTURBED = (("seen", 4.199, 50.967), ("unseen", 5.394, 43.554))


def rows():
    """A row for each of the paper's seven figures, as far as there are results."""
    out = []
    for title, paper, data, column, match in ALIGNED:
        found, scale = _paper(data)
        own = [row for row in found if row["table"] == "alignment"]
        if own and column not in own[0]:
            continue  # of code that did not measure it
        values = {(row["representation"], row["match"]): _median(own, row, column) for row in own}
        others = {
            who: value
            for (who, how), value in values.items()
            if how == match and who != "none" and who[:2] != "PS" and value is not None
        }
        cells = (
            paper,
            values.get(RECIPE[match]),
            values.get(("PS", match)),
            _best(others),
            values.get(("none", "class mean")),
            values.get(("none", "true pairs")),
        )
        out.append(_row(f"{title} ({scale} scale)" if found else title, cells))
    found, scale = _paper("cite")
    own = [row for row in found if row["table"] == "prediction"]
    values = {(row["coupling"], row["loss"]): _median(own, row, "median R2") for row in own}
    cells = (
        PREDICTED[1],
        _of(values, "PS+OT", "unbiased", ITS_LOSS),
        _of(values, "PS+OT, calibrated", "barycentric", "calibrated"),
        None,
        values.get(("class mean", "barycentric")),
        values.get(("true pairs", "barycentric")),
    )
    out.append(_row(f"{PREDICTED[0]} ({scale} scale)", cells))
    path = RESULTS / "perturbations.json"
    sets = json.loads(path.read_text())["sets"] if path.exists() else {}
    for where, w1, kl in PERTURBED:
        for name in sets:
            own = [row for row in sets[name]["rows"] if row["treatments"] == where]
            for column, paper in (("W1", w1), ("KL", kl)):
                values = {(row["coupling"], row["loss"]): _median(own, row, column) for row in own}
                cells = (
                    f"{paper} (other data)",
                    _of(values, "PS+OT", "unbiased", ITS_LOSS),
                    _of(values, "PS+OT", "drawn partner", "drawn partner"),
                    _best({", ".join(way): value for way, value in values.items() if way[0].startswith("VAE")}),
                    values.get(("class mean", "barycentric")),
                    values.get(("true pairs", "barycentric")),
                )
                out.append(_row(f"perturbations {where}, {column} ({name})", cells))
    return out + packages()


def packages():
    """Rows of other people's packages, each data set's best that was not given our scores, where some have run."""
    out = []
    for name in dict.fromkeys(row["data"] for row in record()["rows"]):
        found = [row for row in record()["rows"] if row["data"] == name and "FOSCTTM" in row]
        run = {row["seed"] for row in found if row["peer"] not in FIRST}
        found = [row for row in found if row["seed"] in run]  # ours may have more
        values = {}
        for row in found:
            values.setdefault((row["peer"], row["variant"], row["match"]), []).append(row["FOSCTTM"])
        middle = {way: float(np.median(each)) for way, each in values.items()}
        known = [way for way in middle if way[0] not in FIRST and "our scores" not in way[1]]
        if known:
            blind, ours, true = (
                middle.get((*way, "")) for way in (("class mean", ""), ("ours", "coupling"), ("true pairs", ""))
            )
            others = _best({way[0]: middle[way] for way in sorted(known, key=middle.get, reverse=True)})
            out.append(_row(f"FOSCTTM beside packages ({name})", (None, None, ours, others, blind, true)))
    return out


def _of(values, coupling, loss, told):
    """A value, and what it is of."""
    value = values.get((coupling, loss))
    return None if value is None else f"{value:.4g} ({told})"


def _best(values):
    """The value nearest to zero (estimates of KL may be below), and whose it is."""
    best = min(values, key=lambda who: abs(values[who]), default=None)
    return None if best is None else f"{values[best]:.4g} ({best})"


def _row(title, cells):
    return {"": title, **dict(zip(COLUMNS, cells, strict=True))}


def _paper(data):
    """Rows of `python -m benchmarks.paper`, at the paper's scale if they are there."""
    for scale in ("paper", "small"):
        path = RESULTS / f"paper_{data}_{scale}.json"
        if path.exists():
            return json.loads(path.read_text())["rows"], scale
    return [], "small"


def _median(rows, like, column):
    """Over seeds, of the rows that differ from one in the seed only."""
    keys = ("representation", "match", "coupling", "loss")
    same = [row.get(column) for row in rows if all(row.get(key) == like.get(key) for key in keys)]
    return None if None in same else float(np.median(same))
