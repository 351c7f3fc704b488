"""Pictures of an alignment; every function draws with matplotlib and returns its axes.

Needs `pip install psa-jax[plot]`. The colours are those of Okabe and Ito, for colour-blind readers too.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from psa_jax.alignment import Calibration
from psa_jax.blocked import Blocked
from psa_jax.coupling import Coupling
from psa_jax.data import Truth
from psa_jax.sweep import CRITERIA, EpsSweep
from psa_jax.types import Array, Float, Int, KeyArray

BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#9AA0A6", "#333333"
MIN_FIGURE_WIDTH = 6.4


def matched_pairs(
    images_a: Float[Array, "n ..."],
    images_b: Float[Array, "m ..."],
    coupling: Coupling | Blocked,
    key: KeyArray,
    *,
    indices: Sequence[int] | Int[Array, " k"] | None = None,
    num: int = 8,
    truth: Truth | None = None,
    titles: Sequence[str] | None = None,
    joined: bool = False,
) -> np.ndarray:
    """Shows samples of modality a above their most probable, a sampled, and the true partner.

    Args:
        images_a: `[n, height, width]` or `[n, height, width, channels]` in [0, 1].
        images_b: `[m, ...]` of the same kind.
        coupling: `[n, m]`.
        key: draws the partners, and the queries unless `indices` are given.
        indices: rows of modality a to show.
        num: how many of them to draw, among rows that have a partner.
        truth: adds a row of true partners, and a frame around a most probable partner that is the true one.
        titles: one for each row of modality a, `[n]`, say its treatment.
        joined: draw each partner to the right of its query, as one image (halves of one image).

    Returns:
        Axes `[3 or 4, num]`.

    Raises:
        ValueError: images of another rank or number, a row that does not exist.
    """
    plt = _pyplot()
    for name, images, count in (("images_a", images_a, 0), ("images_b", images_b, 1)):
        if images.ndim not in (3, 4) or images.shape[0] != coupling.shape[count]:
            raise ValueError(
                f"{name}: expected {coupling.shape[count]} images [n, height, width] or [n, height, width, "
                f"channels], got shape {images.shape}"
            )
    key_rows, key_draw = jax.random.split(key)
    probability, best = (np.asarray(x)[:, 0] for x in coupling.top_k(1))
    drawn = np.asarray(coupling.sample(key_draw))
    if indices is None:
        matched = jax.random.permutation(key_rows, np.flatnonzero(best >= 0))
        rows = np.sort(np.asarray(matched)[:num])
    else:
        rows = np.asarray(indices, int)
    if rows.size and not (rows.min() >= 0 and rows.max() < coupling.shape[0]):
        raise ValueError(f"indices: expected rows in [0, {coupling.shape[0]}), got {rows.min()} to {rows.max()}")
    pair = None if truth is None else np.asarray(truth.pair)
    lines: list[tuple[str, np.ndarray | None]] = [
        ("sample of A", None),
        ("best match", best),
        ("sampled match", drawn),
    ]
    if pair is not None:
        lines[1] = "best match\n(framed: true)", best
        lines.append(("true partner", pair))
    a, b = np.asarray(images_a), np.asarray(images_b)
    figure, axes = plt.subplots(
        len(lines),
        max(rows.size, 1),
        figsize=(max(1.3 * rows.size + 1.2, MIN_FIGURE_WIDTH), 1.42 * len(lines) + 0.3),
        squeeze=False,
        layout="constrained",
    )
    figure.get_layout_engine().set(w_pad=0.04, h_pad=0.04)
    for (label, partner), line in zip(lines, axes, strict=True):
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", labelpad=10, color=INK)
        for i, ax in zip(rows.tolist(), line, strict=False):
            j = i if partner is None else int(partner[i])
            missing = j < 0
            image = a[i] if partner is None or missing else b[j]
            if joined:
                blank = np.full_like(b[0], a.ndim == 4)
                image = np.concatenate([a[i], blank if partner is None or missing else image], axis=1)
            ax.imshow(np.clip(image, 0, 1), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
            if missing:
                ax.images[0].set_visible(False)
            true = partner is best and pair is not None and j == pair[i] >= 0
            _frame(ax, GREEN if true else "none", 3)
            if partner is None and titles is not None:
                ax.set_title(titles[i], fontsize=9, color=INK)
            if partner is best:
                chance = "no partner" if best[i] < 0 else f"p = {probability[i]:.2f}"
                ax.set_xlabel(chance, fontsize=8, color=INK, labelpad=2)
    return axes


def trace_by_treatment(report: dict[str, Any], names: Sequence[str], *, ax: Any = None) -> Any:
    """Bars of the probability that the coupling gives to the true match, by treatment, against a random match.

    Args:
        report: what `evaluate` returned.
        names: of the treatments.
        ax: where to draw; a new figure by default.

    Returns:
        The axes. Treatments without any known pair are left out, and counted in the label of the axis.
    """
    plt = _pyplot()
    found = report["metrics"]["trace"]
    columns = found["by_treatment"]
    measured = [t for t, count in enumerate(columns["counted"]) if count and columns["mean"][t] is not None]
    order = sorted(measured, key=lambda t: (columns["mean"][t], names[t]))
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
    ax.set_yticks(place, [f"{names[t]}  ({columns['counted'][t]})" for t in order], fontsize=8)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(-0.6, len(order) - 0.4)
    ax.set_xlim(left=0)
    left_out = len(names) - len(order)
    ax.set_xlabel("mean P(true match)" + (f"; {left_out} treatments have no known pair" if left_out else ""))
    if found["micro"] is not None:
        times = f", {found['micro'] / found['chance']:.1f} times chance" if found["chance"] else ""
        ax.set_title(f"P(true match) {found['micro']:.3g} over all samples{times}", loc="left", fontsize=10)
    ax.legend(loc="lower right", frameon=False, fontsize=9)
    _tidy(ax)
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
    plt = _pyplot()
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
    _tidy(ax)
    top = ax.inset_axes((0, 1.03, 1, 0.16), sharex=ax)
    top.bar(edges[:-1], count, width=np.diff(edges), align="edge", color=GREY, edgecolor="white", linewidth=0.5)
    ax.set_title(f"{label}  ({int(count.sum())} held-out samples)".strip(), loc="left", fontsize=10, pad=52)
    top.set_ylabel("samples", fontsize=8)
    top.tick_params(labelbottom=False, labelsize=7, bottom=False)
    top.locator_params(axis="y", nbins=2)
    _tidy(top)
    return ax


def latent_map(
    coupling: Coupling | Blocked, truth: Truth, *, names: Sequence[str] | None = None, axes: Any = None
) -> np.ndarray:
    """Projected against true latents, one panel for each; a perfect alignment lies on the diagonal.

    Args:
        coupling: `[n, m]`.
        truth: with latents.
        names: of the latents.
        axes: one for each latent; a new figure by default.

    Returns:
        Axes `[d]`.

    Raises:
        ValueError: a truth without latents.
    """
    plt = _pyplot()
    if truth.z_a is None or truth.z_b is None:
        raise ValueError("truth: expected latents z_a and z_b, got a truth without them")
    matched = np.asarray(coupling.top_k(1)[1])[:, 0] >= 0
    z, projected = np.asarray(truth.z_a)[matched], np.asarray(coupling.apply(truth.z_b))[matched]
    d = z.shape[1]
    if axes is None:
        _, axes = plt.subplots(1, d, figsize=(2.6 * d, 2.9), squeeze=False, layout="constrained", sharey=True)
    axes = np.ravel(axes)
    low, high = float(min(z.min(), projected.min())), float(max(z.max(), projected.max()))
    margin = 0.03 * (high - low) or 1.0
    for i, ax in enumerate(axes):
        spread = z[:, i].var()
        r2 = 1 - ((projected[:, i] - z[:, i]) ** 2).mean() / (spread if spread > 0 else 1)
        ax.plot([low, high], [low, high], color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        ax.scatter(z[:, i], projected[:, i], s=5, color=BLUE, alpha=0.35, linewidths=0, rasterized=True)
        name = f"latent {i}" if names is None else names[i]
        ax.set_title(f"{name}   R² {r2:.2f}", loc="left", fontsize=10)
        ax.set(xlabel="true", xlim=(low - margin, high + margin), ylim=(low - margin, high + margin))
        ax.locator_params(nbins=5)
        _tidy(ax)
    axes[0].set_ylabel("projected through\nthe coupling")
    return axes


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
    plt = _pyplot()
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
    _tidy(ax)
    return ax


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("psa_jax.plot needs matplotlib: pip install psa-jax[plot]") from error
    return plt


def _tidy(ax: Any) -> None:
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    ax.set_axisbelow(True)


def _frame(ax: Any, colour: str, width: float) -> None:
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set(edgecolor=colour, linewidth=width)


__all__ = ["calibration", "eps_sweep", "latent_map", "matched_pairs", "trace_by_treatment"]
