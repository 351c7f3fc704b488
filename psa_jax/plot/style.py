"""What all pictures share: colours (those of Okabe and Ito, for colour-blind readers too) and the look of axes."""

from typing import Any

BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#9AA0A6", "#333333"


def pyplot() -> Any:
    """matplotlib's, imported when something is drawn."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("psa_jax.plot needs matplotlib: pip install matplotlib") from error
    return plt


def tidy(ax: Any) -> None:
    """Axes without a box."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    ax.set_axisbelow(True)


def frame(ax: Any, colour: str, width: float) -> None:
    """A frame around a picture in place of axes."""
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set(edgecolor=colour, linewidth=width)
