"""Results as JSON, and the Markdown tables that are made of them.

`python -m benchmarks.tables` makes every table anew from `results/*.json`, without running anything: whole ones in
`benchmarks/README.md`, two short ones in the README.
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
NOT_SHOWN = ("ns per pair and iteration", "share of peak")
QUALITY = {"balls": "scenes", "cite": "bone marrow, RNA and protein", "snare": "cell lines, RNA and chromatin"}


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
    """Writes every marked table of both READMEs from the results that there are."""
    for path in (README, WHOLE):
        write(path, filled(path.read_text(encoding="utf-8")))


def write(path, text):
    """Writes a text at once or not at all, so that a run cut short leaves what was there."""
    psa_jax.io.write_atomically(path, lambda file: file.write(text.encode()))


def filled(text):
    """The text with what belongs between its marks; a table whose results do not exist is left as it is."""

    def table(found):
        rows = TABLES[found[2]]() if found[2] in TABLES else whole(found[2])
        return found[1] + (markdown(rows) + "\n" if rows else found[3]) + found[4]

    return re.sub(r"(<!-- table: (\w+) -->\n)(.*?)(<!-- end -->)", table, text, flags=re.DOTALL)


def whole(name):
    """All rows of `results/NAME.json`, none if there is no such file."""
    path = HERE / "results" / f"{name}.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    return [{column: value for column, value in row.items() if column not in NOT_SHOWN} for row in rows]


def quality():
    """What `python -m benchmarks.paper` found of the default and of calibrated couplings: medians over seeds."""
    rows = []
    for name, title in QUALITY.items():
        found = [row for row in whole(f"paper_{name}_small") if row["table"] == "alignment"]
        if not found:
            continue

        def median(match, column, found=found):
            same = [row for row in found if (row["representation"], row["match"]) == ("PS", match)]
            return f"{np.median([row[column] for row in same]):.2f}"

        rows.append(
            {
                "data": title,
                "lift": median("OT", "lift"),
                "FOSCTTM": median("OT", "FOSCTTM"),
                "error": median("OT", "error / class mean"),
                "calibrated: lift": median("OT, calibrated", "lift"),
                "calibrated: error": median("OT, calibrated", "error / class mean"),
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


TABLES = {"quality": quality, "seconds": seconds}


def _short(run):
    return None if run is None else f"{run:.2g}" if run < 10 else f"{run:.0f}"


def _cell(value):
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    refill()
