"""How strongly what acts on the cells of a simulated screen, in one frozen object."""

import dataclasses
from typing import Any

import numpy as np

MAX_DISPERSION = 10.0


MAX_STRENGTH = 1e6
STRENGTHS = (
    "effect",
    "response",
    "heterogeneity",
    "private",
    "private_effect",
    "batch_effect",
    "noise",
    "dispersion",
    "depth",
)


@dataclasses.dataclass(frozen=True)
class ScreenLaw:
    """How strongly what acts on the cells of a simulated screen, and how they are spread over treatments.

    Strengths and standard deviations are in [0, 10^6]; see `perturbation_screen` for the formulas.

    Attributes:
        effect: strength of the treatments' effects on z.
        response: mean share of its treatment's effect that a cell realises, in (0, 1]; 1 is all of it in every cell.
        heterogeneity: standard deviation of each latent within a treatment, apart from the response.
        private: strength of the private states.
        private_effect: strength of the treatments' effects on the private states.
        batches: the number of batches of each modality.
        batch_effect: strength of the batches.
        noise: standard deviation of the noise of modality b.
        dispersion: of the counts, in [0, 10]; 0 makes them Poisson.
        depth: mean sum of a cell's counts, in (0, 10^6].
        control_factor: how many times as many cells the control has as the mean of the others, above 0.
        size_spread: standard deviation of the log sizes of the other treatments.

    Raises:
        ValueError: a setting out of its range.
    """

    effect: float = 2.5
    response: float = 0.6
    heterogeneity: float = 1.0
    private: float = 1.0
    private_effect: float = 0.0
    batches: int = 3
    batch_effect: float = 0.3
    noise: float = 0.4
    dispersion: float = 0.5
    depth: float = 1000.0
    control_factor: float = 4.0
    size_spread: float = 0.4

    def __post_init__(self) -> None:
        check(
            "batches",
            self.batches,
            isinstance(self.batches, int | np.integer) and self.batches >= 1,
            "an integer, at least 1",
        )
        for name in (*STRENGTHS, "size_spread"):
            value: Any = getattr(self, name)
            check(name, value, _real(value) and 0 <= value <= MAX_STRENGTH, "a number in [0, 10^6]")
        check("response", self.response, 0 < self.response <= 1, "a number in (0, 1]")
        check("dispersion", self.dispersion, self.dispersion <= MAX_DISPERSION, "a number in [0, 10]")
        check("depth", self.depth, self.depth > 0, "a number in (0, 10^6]")
        factor: Any = self.control_factor
        check("control_factor", factor, _real(factor) and 0 < factor <= MAX_STRENGTH, "a number in (0, 10^6]")


def check(name: str, value: object, holds: bool, expected: str) -> None:
    """Raises a `ValueError` that says what was expected, unless it holds."""
    if not holds:
        raise ValueError(f"{name}: expected {expected}, got {value!r}")


def _real(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)
