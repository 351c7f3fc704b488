"""What a diagnosis found: its figures, as a table and in words."""

from typing import Any

import numpy as np

from psa_jax.data.labels import listed
from psa_jax.types import Array, Bool, Float, Int, pytree, static

FEWEST = 5
EVIDENCE = 3.0
UNIFORM = 0.9
MEASURES = ("partners", "partners_share", "spread", "agreement", "null_mean", "null_sd", "z", "stability")


@pytree
class Diagnosis:
    """What `diagnose` returns: one entry for each treatment, `[T]`, NaN where there is none.

    Attributes:
        size_a: samples of modality a.
        size_b: samples of modality b.
        converged: whether the matcher converged; False for treatments that were not matched.
        rematched: share of the matchings made here (of halves, of members) that converged.
        partners: effective number of partners, `exp(mean_i H(P(. | i)))`.
        partners_share: the same as a share of the `size_b` candidates; 1 for a random match.
        spread: mean variance of the scores of b under `P(. | i)` over their variance within the treatment; near 1 the
            coupling leaves nearly everything open.
        agreement: correlation of held-out scores with their projection, see `diagnose`; NaN below 5 samples on a side.
        null_mean: mean of the same where the held-out half of b is permuted within the treatment.
        null_sd: its standard deviation.
        z: how far scores of both modalities hang together alike within the treatment, in standard deviations; see
            `Evidence`. At most 2 where `p_value` finds nothing common to them; NaN with fewer than five columns.
        stability: correlation of the scores projected through the couplings of two members, averaged over pairs; NaN
            with one member.
        overall_agreement: `[]` agreement of all matched samples, pooled.
        overall_z: `[]` the same in standard deviations of its null.
        p_value: `[]` how often the modalities would hang together as much if the columns of one were renamed.
        overall_stability: `[]` stability, averaged over matched treatments by size.
        names: static; of the treatments, or None.
        most: static; agreement and stability are of at most so many samples of each treatment and modality; None for
            all.
    """

    size_a: Int[Array, " T"]
    size_b: Int[Array, " T"]
    converged: Bool[Array, " T"]
    rematched: Float[Array, " T"]
    partners: Float[Array, " T"]
    partners_share: Float[Array, " T"]
    spread: Float[Array, " T"]
    agreement: Float[Array, " T"]
    null_mean: Float[Array, " T"]
    null_sd: Float[Array, " T"]
    z: Float[Array, " T"]
    stability: Float[Array, " T"]
    overall_agreement: Float[Array, ""]
    overall_z: Float[Array, ""]
    overall_stability: Float[Array, ""]
    p_value: Float[Array, ""]
    names: tuple[str, ...] | None = static(default=None)
    most: int | None = static(default=None)

    @property
    def evidence(self) -> np.ndarray:
        """Treatments `[T]` whose scores hang together alike, three standard deviations above chance or more."""
        return np.nan_to_num(np.asarray(self.z)) >= EVIDENCE

    @property
    def warnings(self) -> list[str]:
        """What its user should know, in words that name the treatments."""
        size_a, size_b = np.asarray(self.size_a), np.asarray(self.size_b)
        matched = (size_a > 0) & (size_b > 0)
        enough = np.minimum(size_a, size_b) >= FEWEST
        measured = enough & ~np.isnan(np.asarray(self.agreement))
        share = np.nan_to_num(np.asarray(self.partners_share))
        found = {
            "treatments {}: only one modality has them, they were not matched": (size_a > 0) != (size_b > 0),
            f"treatments {{}}: fewer than {FEWEST} samples on a side: nothing can be said": matched & ~enough,
            "treatments {}: the matcher did not converge": matched & ~np.asarray(self.converged),
            "treatments {}: a matching behind agreement or stability did not converge": (
                matched & (np.nan_to_num(np.asarray(self.rematched), nan=1) < 1)
            ),
            "coupling is nearly uniform within treatments {}: hardly better than a random match": enough
            & (share > UNIFORM),
            "no evidence of alignment within treatments {}: scores hang together alike less than "
            f"{EVIDENCE:g} standard deviations more than by chance": measured & ~self.evidence,
        }
        texts = [
            text.replace("{}", listed(np.flatnonzero(which), self.names))
            for text, which in found.items()
            if which.any()
        ]
        if enough.any() and not measured.any():
            texts.append("fewer than three columns of scores: nothing can be held out, agreement is unknown")
        if matched.any() and np.isnan(np.asarray(self.stability)).all():
            texts.append("only one training run (members=1): stability is unknown")
        return texts

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary of Python values for each treatment, None for NaN: `pandas.DataFrame(diagnosis.rows())`."""
        names = ("size_a", "size_b", "converged", "rematched", *MEASURES)
        columns = {name: np.asarray(getattr(self, name)).tolist() for name in names}
        return [
            {
                "treatment": self.names[t] if self.names else t,
                **{name: _known(value) for name, value in zip(columns, row, strict=True)},
            }
            for t, row in enumerate(zip(*columns.values(), strict=True))
        ]

    def __str__(self) -> str:
        """A table, the overall numbers and the warnings."""
        heads = ("treatment", "a", "b", "converged", "partners", "share", "spread", "agreement", "z", "stability")
        names = ("treatment", "size_a", "size_b", "converged", *MEASURES[:4], "z", "stability")
        lines = [[_cell(row[name]) for name in names] for row in self.rows()]
        widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
        table = ["  ".join(map(str.rjust, line, widths)) for line in (heads, *lines)]
        overall = ", ".join(
            f"{name} {_cell(_known(float(getattr(self, f'overall_{name}'))))}"
            for name in ("agreement", "z", "stability")
        )
        some = f" (of at most {self.most} samples of each treatment)" if self.most else ""
        return "\n".join([*table, f"overall: {overall}{some}", *(f"- {text}" for text in self.warnings)])


def _known(value: Any) -> Any:
    """The Python value, None for NaN."""
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
