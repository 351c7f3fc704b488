"""Pictures of who was matched with whom, and of what was projected."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from psa_jax.arguments import checked
from psa_jax.coupling.blocked import Blocked
from psa_jax.coupling.coupling import Coupling
from psa_jax.data.samples import Truth
from psa_jax.plot.style import BLUE, GREEN, GREY, INK, frame, pyplot, tidy
from psa_jax.types import Array, Float, Int, KeyArray

MIN_FIGURE_WIDTH = 6.4


@checked
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
    plt = pyplot()
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
            frame(ax, GREEN if true else "none", 3)
            if partner is None and titles is not None:
                ax.set_title(titles[i], fontsize=9, color=INK)
            if partner is best:
                chance = "no partner" if best[i] < 0 else f"p = {probability[i]:.2f}"
                ax.set_xlabel(chance, fontsize=8, color=INK, labelpad=2)
    return axes


@checked
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
    plt = pyplot()
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
        tidy(ax)
    axes[0].set_ylabel("projected through\nthe coupling")
    return axes
