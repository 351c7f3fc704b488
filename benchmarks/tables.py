"""Results as JSON, and the Markdown tables that are made of them.

`python -m benchmarks.tables` makes every table anew from `results/*.json`, without running anything: whole ones in
`benchmarks/README.md` and two pages of it, two short ones in the README. Other pages have reports of their own.
"""

import json
import os
import pathlib
import platform
import re
from importlib import metadata

import jax
import numpy as np

import psa_jax

HERE = pathlib.Path(__file__).parent
README = HERE.parent / "README.md"
WHOLE = HERE / "README.md"
PAGES = (HERE / "GIANTS.md", HERE / "SCALE.md")
NOT_SHOWN = ("ns per pair and iteration", "share of peak")
QUALITY = ("Sachs", "Bodenmiller", "SNARE-seq", "BMMC", "digits", "Sachs, labels permuted")
RECIPES = ("the paper's", "today")


def environment():
    """Machine and versions, without anything that identifies the machine."""
    names = ("jax", "jaxlib", "flax", "optax", "ott-jax", "numpy", "scipy")
    return {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "devices": [device.device_kind for device in jax.devices()],
        "psa-jax": psa_jax.__version__,  # of the code that ran: metadata of an editable install may be older
        **{name: metadata.version(name) for name in names},
    }


def markdown(rows):
    """A table of rows that share their columns."""
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join("---" for _ in columns) + " |"]
    return "\n".join([*lines, *("| " + " | ".join(_cell(row[column]) for column in columns) + " |" for row in rows)])


def save(name, settings, rows):
    """Writes `results/NAME.json`, prints its table, and makes the tables of both READMEs anew."""
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    record = {"settings": settings, "environment": environment(), "rows": rows}
    write(folder / f"{name}.json", json.dumps(record, indent=1, default=str) + "\n")
    print(markdown(rows))
    refill()


def refill():
    """Writes every marked table of the READMEs and pages from the results that there are."""
    for path in (README, WHOLE, *PAGES):
        write(path, filled(path.read_text(encoding="utf-8")))


def write(path, text):
    """Writes a text at once or not at all, so that a run cut short leaves what was there."""
    psa_jax.io.write_atomically(path, lambda file: file.write(text.encode()))


def filled(text, tables=None):
    """The text with what belongs between its marks; a table whose results do not exist is left as it is."""
    tables = TABLES if tables is None else tables

    def table(found):
        rows = tables[found[2]]() if found[2] in tables else whole(found[2])
        return found[1] + (markdown(rows) + "\n" if rows else found[3]) + found[4]

    return re.sub(r"(<!-- table: (\w+) -->\n)(.*?)(<!-- end -->)", table, text, flags=re.DOTALL)


def whole(name):
    """All rows of `results/NAME.json`, none if there is no such file."""
    path = HERE / "results" / f"{name}.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    return [{column: value for column, value in row.items() if column not in NOT_SHOWN} for row in rows]


def quality():
    """What `python -m benchmarks.quality` found of the paper's recipe and of today's default: medians over seeds."""
    found, rows = whole("quality"), []
    for name in QUALITY:
        recipes = [[row for row in found if (row["data"], row["recipe"]) == (name, which)] for which in RECIPES]
        if not all(recipes):
            continue

        def median(values):
            return f"{np.median(list(values)):.2f}"

        before, today = recipes
        rows.append(
            {
                "data": name,
                "the paper's recipe: FOSCTTM": median(row["paper"][1] for row in before),
                "error": median(row["paper"][2] for row in before),
                "`coupling`: FOSCTTM": median(row["FOSCTTM"] for row in today),
                "`project`: error": median(row["project: error"] for row in today),
            }
        )
    return rows


def seconds():
    """What `python -m benchmarks.matching` found on 12 treatments of 12 logits: seconds of a run."""
    columns = {
        "psa_jax": "psa_jax",
        "in tiles, O(n) memory": "psa_jax, tiles",
        "ott-jax as is": "ott-jax as is",
        "POT": "POT, numpy",
    }
    found = [row for row in whole("matching") if row["treatments"] == 12 and row["K"] == 12]
    runs = {(row["method"], row["n"]): row["run (s)"] for row in found}
    sizes = dict.fromkeys(row["n"] for row in found if row["method"] == "POT, numpy")
    return [
        {"samples each": n, **{title: _short(runs.get((method, n))) for title, method in columns.items()}}
        for n in sizes
    ]


def counted():
    """What `python -m benchmarks.scale_plan` found in a compiled program."""
    path = HERE / "results" / "scale_plan.json"
    found = json.loads(path.read_text())["counted"] if path.exists() else {}
    return [{"eight devices": name, "found": str(value)} for name, value in found.items()]


def scale():
    """The rows of `python -m benchmarks.scale`, which differ in what was done with the alignment."""
    found = whole("scale")
    columns = dict.fromkeys(column for row in found for column in row)
    return [{column: row.get(column) for column in columns} for row in found]


TABLES = {"quality": quality, "seconds": seconds, "scale": scale, "scale_counted": counted}


def _short(run):
    return None if run is None else f"{run:.2g}" if run < 10 else f"{run:.0f}"


def _cell(value):
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    refill()
