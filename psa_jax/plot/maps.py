"""Pictures of scores: where treatments lie, where features are high; how strong evidence, how sure partners are."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from psa_jax.align.alignment import Alignment
from psa_jax.data.groups import Groups
from psa_jax.judge.agreement import treatments_of
from psa_jax.judge.evidence import EVIDENCE
from psa_jax.plot.style import BLUE, GREY, INK, ORANGE, pyplot, tidy

SHOWN, MOST_POINTS, ROWS = 12, 4000, 40
OTHERS = "#DADCE0"


def score_maps(
    alignment: Alignment, *, control: int | None = None, titles: Sequence[str] = ("a", "b"), axes: Any = None
) -> np.ndarray:
    """Scores of both modalities in the same two directions, coloured by treatment.

    The directions are those in which the scores of both together vary most. If the modalities share what treatments do,
    a treatment lies at the same place in both.

    Args:
        alignment: as `align` made it.
        control: the code of the control, drawn in grey.
        titles: names of the modalities.
        axes: two of them; a new figure by default.

    Returns:
        Axes `[2]`. Of more than 12 treatments the 12 largest have a colour.
    """
    plt = pyplot()
    if axes is None:
        _, axes = plt.subplots(1, 2, figsize=(9.6, 4.2), sharex=True, sharey=True, layout="constrained")
    axes = np.ravel(axes)
    sides, labels = _directions(alignment)
    order, names = _largest(alignment.groups, control), alignment.names
    palette = plt.get_cmap("tab20")(np.linspace(0, 1, 20))[[0, 2, 4, 6, 8, 10, 12, 16, 18, 1, 3, 5]]
    for ax, z, t, title in zip(axes, sides, treatments_of(alignment.groups), titles, strict=True):
        t = np.asarray(t)
        rest = ~np.isin(t, order)
        ax.scatter(*_thinned(z[rest]).T, s=5, color=OTHERS, linewidths=0, rasterized=True)
        for place, code in enumerate(order):
            colour = GREY if code == control else palette[place % SHOWN]
            name = str(code) if names is None else names[code]
            ax.scatter(
                *_thinned(z[t == code]).T, s=6, color=colour, alpha=0.7, linewidths=0, label=name, rasterized=True
            )
        ax.set_title(f"{title}  ({len(z)} cells)", loc="left", fontsize=10)
        ax.set(xlabel=labels[0], ylabel=labels[1])
        tidy(ax)
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8, markerscale=2.5)
    return axes


def feature_maps(
    alignment: Alignment,
    imputed: np.ndarray,
    measured: np.ndarray,
    names: Sequence[str],
    *,
    titles: Sequence[str] = ("a", "b"),
    axes: Any = None,
) -> np.ndarray:
    """Features of b over the maps of scores: imputed for a in the upper row, as measured in b below, in one scale.

    Args:
        alignment: as `align` made it.
        imputed: `[n, k]` for the samples of a, NaN where unknown.
        measured: `[m, k]` of the samples of b.
        names: of the features.
        titles: names of the modalities.
        axes: `[2, k]`; a new figure by default.

    Returns:
        Axes `[2, k]`.
    """
    plt = pyplot()
    k = len(names)
    if axes is None:
        _, axes = plt.subplots(
            2, k, figsize=(3.2 * k, 5.6), squeeze=False, sharex=True, sharey=True, layout="constrained"
        )
    sides, labels = _directions(alignment)
    kinds = f"imputed for {titles[0]}", f"measured in {titles[1]}"
    for j, name in enumerate(names):
        low, high = np.nanpercentile(measured[:, j], [2, 98])
        for row, (z, values) in enumerate(zip(sides, (imputed[:, j], measured[:, j]), strict=True)):
            ax = axes[row, j]
            there = np.isfinite(values)
            picked = _picked(int(there.sum()))
            order = np.argsort(values[there][picked])
            drawn = ax.scatter(
                *z[there][picked][order].T, c=values[there][picked][order], s=5, cmap="viridis", vmin=low, vmax=high,
                linewidths=0, rasterized=True,
            )  # fmt: skip
            ax.set_title(f"{name}, {kinds[row]}", loc="left", fontsize=9)
            if row:
                ax.set_xlabel(labels[0], fontsize=8)
            if not j:
                ax.set_ylabel(labels[1], fontsize=8)
            tidy(ax)
            ax.figure.colorbar(drawn, ax=ax, shrink=0.8, aspect=24, pad=0.02)
    return axes


def evidence(alignment: Alignment, *, order: Sequence[int] | None = None, ax: Any = None) -> Any:
    """Bars of the evidence that modalities share something within each treatment, and of how much is believed.

    Args:
        alignment: as `align` made it.
        order: codes of the treatments to show, from the top; by default all that were matched, the strongest first.
        ax: where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        ValueError: an alignment made by hand.
    """
    plt = pyplot()
    told = alignment.projection
    if told is None:
        raise ValueError("alignment: expected one with a projection, as `align` makes it, got one made by hand")
    z, common = np.asarray(told.evidence.z), bool(told.evidence.common)
    z = np.where(np.isfinite(z), z, 0)  # of too few samples to tell
    if order is None:
        order = [code for code in np.argsort(-z, kind="stable").tolist() if _matched(alignment.groups)[code]]
    order = list(order)[:ROWS]
    if ax is None:
        _, ax = plt.subplots(figsize=(5.4, 1.3 + 0.24 * max(len(order), 4)), layout="constrained")
    place, found = np.arange(len(order))[::-1], z[order]
    sure = np.asarray(told.evidence.found)[order] & common
    ax.barh(place, found, height=0.7, color=[BLUE if s else OTHERS for s in sure])
    ax.axvline(EVIDENCE, color=ORANGE, linewidth=1.2, linestyle=(0, (4, 3)))
    names = alignment.names or tuple(map(str, range(z.size)))
    sizes = zip(np.asarray(alignment.groups.sizes_a)[order], np.asarray(alignment.groups.sizes_b)[order], strict=True)
    ax.set_yticks(place, [f"{names[c]}  ({n}, {m})" for c, (n, m) in zip(order, sizes, strict=True)], fontsize=8)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(-0.6, len(order) - 0.4)
    ax.set_xlabel(f"z, in deviations of chance (dashed: {EVIDENCE:g}, where evidence begins)", fontsize=9)
    verdict = "shared beyond chance" if common else "no more than by chance"
    ax.set_title(f"all together: p = {float(told.evidence.p_value):.2g}, {verdict}", loc="left", fontsize=10)
    tidy(ax)
    return ax


def partners(alignment: Alignment, *, order: Sequence[int] | None = None, ax: Any = None) -> Any:
    """How sure the best partner of each sample of a is, by treatment: its probability against that of a random one.

    Args:
        alignment: as `align` made it.
        order: as for `evidence`; the largest first by default.
        ax: where to draw; a new figure by default.

    Returns:
        The axes, of bars from the first to the third quartile about the median, lines to the 5th and 95th percentiles.
    """
    plt = pyplot()
    groups = alignment.groups
    sizes_b, matched = np.asarray(groups.sizes_b), _matched(groups)
    if order is None:
        order = [code for code in np.argsort(-np.asarray(groups.sizes_a), kind="stable").tolist() if matched[code]]
    order = [code for code in order if matched[code]][:ROWS]
    if ax is None:
        _, ax = plt.subplots(figsize=(5.4, 1.3 + 0.24 * max(len(order), 4)), layout="constrained")
    best, t = np.asarray(alignment.coupling.top_k(1)[0])[:, 0], np.asarray(treatments_of(groups)[0])
    times = np.array([np.percentile(best[t == code] * sizes_b[code], (5, 25, 50, 75, 95)) for code in order])
    place = np.arange(len(order))[::-1]
    low, first, middle, third, high = times.reshape(-1, 5).T
    ax.hlines(place, low, high, color=BLUE, linewidth=1.2)
    ax.barh(place, third - first, left=first, height=0.6, color=BLUE, alpha=0.5)
    ax.vlines(middle, place - 0.3, place + 0.3, color=INK, linewidth=1.6)
    names = alignment.names or tuple(map(str, range(sizes_b.size)))
    ax.set_yticks(place, [f"{names[c]}  ({sizes_b[c]})" for c in order], fontsize=8)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(-0.6, len(order) - 0.4)
    ax.axvline(1, color=ORANGE, linewidth=1.2, linestyle=(0, (4, 3)))
    ax.set_xscale("log")
    ax.set_xlabel("best partner's probability, times that of a random one (dashed: 1)", fontsize=9)
    tidy(ax)
    return ax


def _directions(alignment: Alignment) -> tuple[list[np.ndarray], list[str]]:
    """Both sides' scores in the two directions of most variance, and what to call these."""
    both = [np.asarray(side, float) for side in (alignment.scores_a, alignment.scores_b)]
    centre = np.concatenate(both).mean(axis=0)
    _, size, turn = np.linalg.svd(np.concatenate(both) - centre, full_matrices=False)
    share = size**2 / max(float((size**2).sum()), 1e-30)
    labels = [f"direction {i + 1} of the scores ({share[i]:.0%})" for i in range(2)]
    return [(side - centre) @ turn[:2].T for side in both], labels


def _matched(groups: Groups) -> np.ndarray:
    return (np.asarray(groups.sizes_a) > 0) & (np.asarray(groups.sizes_b) > 0)


def _largest(groups: Groups, control: int | None) -> list[int]:
    """The treatments to colour, the control first, in the order of their codes."""
    sizes = np.where(_matched(groups), np.minimum(np.asarray(groups.sizes_a), np.asarray(groups.sizes_b)), 0)
    chosen = [code for code in np.argsort(-sizes, kind="stable").tolist() if sizes[code] and code != control][:SHOWN]
    return ([] if control is None else [control]) + sorted(chosen)


def _picked(n: int) -> np.ndarray:
    """Some of many points, always the same."""
    return np.arange(n) if n <= MOST_POINTS else np.sort(np.random.default_rng(0).permutation(n)[:MOST_POINTS])


def _thinned(z: np.ndarray) -> np.ndarray:
    return z[_picked(len(z))]
