"""Results as JSON and Markdown, and the tables of the README."""

import json
import os
import pathlib
import platform
from importlib import metadata

import jax

import psa_jax

HERE = pathlib.Path(__file__).parent
README = HERE.parent / "README.md"


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
    """Writes `results/NAME.json`; returns the Markdown table."""
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    record = {"settings": settings, "environment": environment(), "rows": rows}
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1, default=str) + "\n")
    table = markdown(rows)
    print(table)
    return table


def fill_readme(name, table):
    """Puts the table between the README's marks for it."""
    text = README.read_text()
    start = text.index(f"<!-- table: {name} -->\n") + len(f"<!-- table: {name} -->\n")
    end = text.index("<!-- end -->", start)
    README.write_text(text[:start] + table + "\n" + text[end:])


def _cell(value):
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
