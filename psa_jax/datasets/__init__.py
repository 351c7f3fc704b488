"""Data with known pairs, to try the library and to measure it.

`balls` draws synthetic interventional images whose latents are known, `perturbation_screen` expression and
image embeddings of cells whose latents are known, `digits` cuts scikit-learn's handwritten digits into
halves, and `cite_seq` reads single cells with expression and surface proteins. Each returns
`(Unpaired, Truth)`: the two modalities in unrelated orders, and, apart from them, which row belongs to which.
Nothing is downloaded; packages beyond the core are imported by the function that needs them.
"""

from psa_jax.datasets.balls import balls, balls_latents, render_balls, render_squares
from psa_jax.datasets.cite_seq import cite_seq, cite_seq_cell_types
from psa_jax.datasets.digits import digits
from psa_jax.datasets.perturbation_screen import perturbation_screen
from psa_jax.datasets.screen_law import ScreenLaw

__all__ = [
    "ScreenLaw",
    "balls",
    "balls_latents",
    "cite_seq",
    "cite_seq_cell_types",
    "digits",
    "perturbation_screen",
    "render_balls",
    "render_squares",
]


def __dir__() -> list[str]:
    return sorted(__all__)
