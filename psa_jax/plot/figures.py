"""Pictures of figures: by treatment, of calibration, over a sweep."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from psa_jax.judge.eps_sweep import CRITERIA, EpsSweep
from psa_jax.plot.style import BLUE, GREEN, GREY, INK, ORANGE, pyplot, tidy
from psa_jax.propensity.calibration import Calibration


def trace_by_treatment(report: dict[str, Any], names: Sequence[str] | None = None, *, ax: Any = None) -> Any:
    """Bars of the probability that the coupling gives to the true match, by treatment, against a random match.

    Args:
        report: what `evaluate` returned.
        names: of the treatments; by default those of the report, else their codes.
        ax: where to draw; a new figure by default.

    Returns:
        The axes. Treatments without any known pair are left out, and counted in the label of the axis.
    """
    plt = pyplot()
    found = report["metrics"]["trace"]
    columns = found["by_treatment"]
    told = names or report["treatments"].get("names") or list(map(str, range(len(columns["counted"]))))
    measured = [t for t, count in enumerate(columns["counted"]) if count and columns["mean"][t] is not None]
    order = sorted(measured, key=lambda t: (columns["mean"][t], told[t]))
    if ax is None:
        _, ax = plt.subplots(figsize=(7, 1.4 + 0.24 * max(len(order), 4)), layout="constrained")
    place = np.arange(len(order))
    ax.barh(place, [columns["mean"][t] for t in order], height=0.7, color=BLUE, label="alignment")
    ax.plot(
        [columns["chance"][t] for t in order],
        place,
        linestyle="none",
        marker="D",
        markersize=5,
        color=ORANGE,
        markeredgecolor="white",
        label="random match",
    )
    ax.set_yticks(place, [f"{told[t]}  ({columns['counted'][t]})" for t in order], fontsize=8)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(-0.6, len(order) - 0.4)
    ax.set_xlim(left=0)
    left_out = len(told) - len(order)
    ax.set_xlabel("mean P(true match)" + (f"; {left_out} treatments have no known pair" if left_out else ""))
    if found["micro"] is not None:
        times = f", {found['micro'] / found['chance']:.1f} times chance" if found["chance"] else ""
        ax.set_title(f"P(true match) {found['micro']:.3g} over all samples{times}", loc="left", fontsize=10)
    ax.legend(loc="lower right", frameon=False, fontsize=9)
    tidy(ax)
    return ax


def calibration(calibration: Calibration, label: str = "", *, ax: Any = None) -> Any:
    """A reliability diagram: accuracy against confidence on held-out samples, with counts.

    Args:
        calibration: `alignment.calibration_a` or `calibration_b`.
        label: name of the modality.
        ax: where to draw; a new figure by default.

    Returns:
        The axes of the diagram; the counts stand in a small panel above.
    """
    plt = pyplot()
    if ax is None:
        _, ax = plt.subplots(figsize=(4, 4.4), layout="constrained")
    count = np.asarray(calibration.count, float)
    confidence, frequency = np.asarray(calibration.confidence), np.asarray(calibration.frequency)
    full = count > 0
    edges = np.linspace(0, 1, count.size + 1)
    error = np.sqrt(frequency[full] * (1 - frequency[full]) / count[full])
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    ax.errorbar(
        confidence[full],
        frequency[full],
        yerr=np.stack([error, np.minimum(error, 1 - frequency[full])]),
        color=BLUE,
        marker="o",
        markersize=5,
        linewidth=1.5,
        elinewidth=1,
        zorder=2,
    )
    ax.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="confidence", ylabel="accuracy")
    ax.text(
        0.97,
        0.04,
        f"temperature {float(calibration.temperature):.2f}\n"
        f"calibration error {float(calibration.error_before):.3f} → {float(calibration.error_after):.3f}\n"
        f"accuracy {float(calibration.accuracy):.1%}",
        transform=ax.transAxes,
        ha="right",
        va="bottom",
        fontsize=8,
        color=INK,
    )
    tidy(ax)
    top = ax.inset_axes((0, 1.03, 1, 0.16), sharex=ax)
    top.bar(edges[:-1], count, width=np.diff(edges), align="edge", color=GREY, edgecolor="white", linewidth=0.5)
    ax.set_title(f"{label}  ({int(count.sum())} held-out samples)".strip(), loc="left", fontsize=10, pad=52)
    top.set_ylabel("samples", fontsize=8)
    top.tick_params(labelbottom=False, labelsize=7, bottom=False)
    top.locator_params(axis="y", nbins=2)
    tidy(top)
    return ax


def eps_sweep(table: EpsSweep, *, ax: Any = None) -> Any:
    """The label-only criteria of `select_eps` over eps, and the eps that is best by `prediction`.

    Each criterion is drawn between its own least and largest value, which the legend tells, so that shapes can be
    compared; where treatments did not converge there are open circles on the line of `prediction`.

    Args:
        table: what `select_eps` returned.
        ax: where to draw; a new figure by default.

    Returns:
        The axes. Criteria without a number (stability without members) are left out.
    """
    plt = pyplot()
    if ax is None:
        _, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    order = np.argsort(np.asarray(table.eps))
    eps, converged = np.asarray(table.eps)[order], np.asarray(table.converged)[order] == 1
    colours = (BLUE, ORANGE, GREEN, INK, GREY, GREY, GREY, BLUE)
    looks = zip(CRITERIA, colours, ("-", "-", "-", "-", "--", ":", "-.", "--"), strict=True)
    for name, colour, style in looks:
        values = np.asarray(getattr(table, name), float)[order]
        if not np.isfinite(values).any():
            continue
        low, high = np.nanmin(values), np.nanmax(values)
        height = (values - low) / (high - low) if high > low else np.full_like(values, 0.5)
        label = f"{name}  {low:.2g} to {high:.2g}"
        width = 2.4 if name == "prediction" else 1.4
        ax.plot(eps, height, color=colour, linestyle=style, linewidth=width, marker="o", markersize=3.5, label=label)
        if name == "prediction":
            ax.plot(eps[~converged], height[~converged], "o", markersize=9, markerfacecolor="none", color=INK)
    best = float(table.best)
    if np.isfinite(best):
        ax.axvline(best, color=BLUE, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    ax.set_xscale("log")
    ax.set(ylim=(-0.06, 1.06), yticks=[0, 1], yticklabels=["least", "largest"])
    ax.set_xlabel("eps, times the spread of the costs" if table.relative else "eps, in units of the cost")
    ax.set_title(f"best eps {best:.3g}" if np.isfinite(best) else "no eps converged", loc="left", fontsize=10)
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
    tidy(ax)
    return ax
