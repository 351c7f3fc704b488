"""An alignment in words: sizes, what was matched, treatments by name, classifiers."""

import html
from typing import Any

import numpy as np

from psa_jax.data.groups import Groups
from psa_jax.data.labels import listed
from psa_jax.data.strata import Strata
from psa_jax.propensity.calibration import Calibration
from psa_jax.propensity.loop import Fitted
from psa_jax.types import known

SHOWN = 8


def facts(
    coupling: Any, groups: Groups, sides: Any, names: tuple[str, ...] | None, strata: Strata | None
) -> list[tuple[str, str]]:
    """Names and texts of what there is to say, the headline first; `sides` are classifiers, calibration and scorers."""
    n, m = groups.shape
    size = f"{groups.num_treatments} treatments"
    if strata is not None:
        size = f"{groups.num_treatments} groups: {len(strata.treatments)} treatments within {len(strata.names)} strata"
    told = [("", f"Alignment of {n} samples of a and {m} of b in {size}")]
    law = repr(coupling).split("\n")
    told.append(("coupling", "; ".join([law[0].partition(" by ")[2] or law[0], *map(str.strip, law[1:])])))
    if known(groups.sizes_a, groups.sizes_b):
        a, b = np.asarray(groups.sizes_a), np.asarray(groups.sizes_b)
        order = np.argsort(-np.minimum(a, b), kind="stable")
        order = order[(a[order] > 0) | (b[order] > 0)]
        shown = [f"{listed([t], names)} ({a[t]}, {b[t]})" for t in order[:SHOWN]]
        more = f" and {order.size - SHOWN} more" if order.size > SHOWN else ""
        told.append(("treatments (a, b)", ", ".join(shown) + more))
        for side, here, there in (("a", a, b), ("b", b, a)):
            if alone := np.flatnonzero((here > 0) & (there == 0)).tolist():
                told.append((f"only in {side}, not matched", listed(alone, names, SHOWN)))
        converged = coupling.info.converged
        if known(converged) and np.ndim(converged):
            bad = np.flatnonzero((a > 0) & (b > 0) & ~np.asarray(converged))
            told += [("not converged", listed(bad, names, SHOWN))] if bad.size else []
    for side, (fitted, found, scorer) in zip("ab", sides, strict=True):
        weights, kept = (None, None) if scorer is None else (scorer.weights, scorer.components)
        if isinstance(fitted, Fitted) and isinstance(found, Calibration):
            runs = " x ".join(map(str, fitted.history.best_epoch.shape)) or "1"
            text = f"{runs} runs"
            if weights is not None and known(weights):
                text += f", {int((np.asarray(weights) > 0).sum())} of {weights.shape[0]} members count, by labels"
            if known(found.accuracy, found.cross_entropy, found.temperature):
                measured = {"held-out accuracy": found.accuracy, "cross-entropy": found.cross_entropy}
                measured["temperature"] = found.temperature
                text += "".join(f", {name} {float(value):.3g}" for name, value in measured.items())
            told.append((f"classifiers of {side}", text))
        if kept is not None and known(kept.kept):
            d, r = kept.basis.shape
            text = f"{r} components of {d} columns, with {100 * float(kept.kept):.1f} % of what varies in treatments"
            told.append((f"scores of {side}", text))
    return told


def table(told: list[tuple[str, str]]) -> str:
    """Facts as a table of HTML, whose caption is the headline."""
    head, *facts = told
    rows = "".join(
        f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
        f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
        for name, text in facts
    )
    return f"<table><caption>{html.escape(head[1])}</caption>{rows}</table>"
