"""The tables of `PEERS.md`, from `results/peers.json`: `python -m benchmarks.peers_report`."""

import json

import numpy as np

from benchmarks.peer_runs import PEERS
from benchmarks.tables import HERE, filled, write

RESULTS = HERE / "results" / "peers.json"
PAGE = HERE / "PEERS.md"
FIGURES = {"lift": 2, "FOSCTTM": 3, "error": 3}
FIRST = ("class mean", "true pairs", "ours")
SHOWN = {
    "peers_sachs": "Sachs",
    "peers_snare": "SNARE-seq",
    "peers_bmmc": "BMMC",
    "peers_screen": "screen",
    "peers_bodenmiller": "Bodenmiller",
    "peers_stimulations": "Bodenmiller, stimulations",
}


def record():
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {"environments": {}, "rows": []}


def compared(name):
    """Medians over seeds of every method on one data set, quartiles in brackets."""
    rows = [row for row in record()["rows"] if row["data"] == name]
    kinds = dict.fromkeys((row["peer"], row["variant"], row["match"]) for row in rows if "lift" in row)
    kinds |= dict.fromkeys((row["peer"], row["variant"], "") for row in rows if "lift" not in row)
    told = [_row(kind, [row for row in rows if (row["peer"], row["variant"]) == kind[:2]]) for kind in kinds]
    places = {name: place for place, name in enumerate([*FIRST, *(peer.name for peer in PEERS)])}
    orders = {peer.name: list(peer.variants) for peer in PEERS}

    def place(row):
        own = orders.get(row["method"], [])
        return places.get(row["method"], 99), own.index(row["what"]) if row["what"] in own else -1

    return sorted((row for row in told if row), key=place)


def _row(kind, same):
    peer, variant, match = kind
    good = [row for row in same if row["match"] == match and "lift" in row]
    errors = dict.fromkeys(row["error of run"] for row in same if row["error of run"])
    if not good and any("lift" in row for row in same):
        return None  # told in the note of the runs that did end
    notes = [f"{sum(row['error of run'] == error for row in same)} seeds: {error}" for error in errors]
    empty = np.median([row["without mass"] for row in good]) if good else 0
    notes += [f"{empty:.1%} of cells without mass: uniform"] if empty > 0 else []
    figures = {name: _spread([row[name] for row in good], digits) for name, digits in FIGURES.items()}
    cost = {name: _median([row.get(column) for row in good or same]) for name, column in COSTS.items()}
    return {
        "method": peer,
        "what": variant,
        "matched by": match,
        "seeds": len(good),
        **figures,
        **cost,
        "note": "; ".join(notes),
    }


COSTS = {"seconds": "seconds", "of one core": "seconds of one core", "GiB": "memory"}


def _spread(values, digits):
    if not values:
        return None
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:.{digits}f} ({low:.{digits}f}, {high:.{digits}f})" if len(values) > 1 else f"{middle:.{digits}f}"


def _median(values):
    known = [value for value in values if value is not None]
    return f"{np.median(known):.3g}" if known else None


def environments():
    """What was installed, and what was not and why."""
    found, rows = record()["environments"], []
    for peer in PEERS:
        told = found.get(peer.name, {})
        versions = [f"{name} {version}" for name, version in told.get("versions", {}).items()]
        state = peer.left_out or told.get("error") or ", ".join(versions)
        rows.append({"peer": peer.name, "paper": peer.paper, "licence": peer.licence, "versions, or why not": state})
    return rows


TABLES = {key: (lambda name=name: compared(name)) for key, name in SHOWN.items()} | {"peers_versions": environments}


def report():
    """Writes every table of the page anew."""
    write(PAGE, filled(PAGE.read_text(encoding="utf-8"), TABLES))


if __name__ == "__main__":
    report()
