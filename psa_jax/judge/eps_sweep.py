"""What a sweep over eps found: a table, and the choice it recommends."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from psa_jax.match import Relative
from psa_jax.types import Array, Float, brief, known, pytree, static

SHOWN = 10


CRITERIA = ("prediction", "agreement", "reconstruction", "stability", "cycle", "entropy", "shrinkage", "calibrated")


@pytree
class EpsSweep:
    """What `select_eps` returns: a table with one row for each eps, as arrays `[E]`.

    Attributes:
        eps: as given.
        prediction: share of the held-out scores' variation within treatments that the projection through a coupling
            of the other scores explains (R², at most 1; negative where the treatment's mean is a better guess).
        agreement: the mean of `held_out_agreement`, the correlation of the same quantities.
        reconstruction: as `prediction`, but of the scores that were matched; nothing is held out.
        stability: correlation, within treatments, of the projections (of `y`, if given, else of the scores) through
            two members' couplings, averaged over pairs of members; NaN without members.
        cycle: mean probability `sum_j P(j | i) P(i | j)` of being back after one step there and one back.
        entropy: effective number of partners, `exp(mean_i H(P(. | i)) - log m_i)`, as a share of the `m_i` candidates:
            1 for a random match, `1 / m` for a permutation.
        shrinkage: how much of the projection's deviation from the treatment's mean to believe, in [0, 1]: the slope of
            the held-out scores on their projection, which corrects for what the coupling overstates, times `stability`
            (if there are members), which corrects for what another training run would not reproduce. See `shrink`.
        calibrated: as `prediction`, after that shrinkage.
        converged: share of the matched treatments of which every matching behind the row converged.
        best: `[]` the eps with the largest `prediction` among those where all treatments converged; NaN if there is
            none.
        relative: static; whether eps is in units of the spread of the costs.
        most: static; how many samples of each treatment and modality were looked at, at most; None for all.
    """

    eps: Float[Array, " E"]
    prediction: Float[Array, " E"]
    agreement: Float[Array, " E"]
    reconstruction: Float[Array, " E"]
    stability: Float[Array, " E"]
    cycle: Float[Array, " E"]
    entropy: Float[Array, " E"]
    shrinkage: Float[Array, " E"]
    calibrated: Float[Array, " E"]
    converged: Float[Array, " E"]
    best: Float[Array, ""]
    relative: bool = static()
    most: int | None = static(default=None)

    def __repr__(self) -> str:
        """A small table."""
        if not known(self.eps):
            return f"EpsSweep of {brief(self.eps)}"
        rows = self.rows()
        shown = rows if len(rows) <= SHOWN else [*rows[: SHOWN - 1], rows[-1]]
        columns = ("eps", "prediction", "agreement", "stability", "shrinkage", "calibrated", "converged")
        lines = [columns, *(tuple(f"{row[name]:.3g}" for name in columns) for row in shown)]
        unit = "the spread of the costs" if self.relative else "the cost"
        table = ["  " + "  ".join(map(str.rjust, line, map(len, columns))) for line in lines]
        some = f", of at most {self.most} samples of each treatment" if self.most else ""
        return "\n".join([f"EpsSweep of {len(rows)} eps in units of {unit}, best {float(self.best):.3g}{some}", *table])

    @property
    def choice(self) -> tuple[Any, Float[Array, ""]]:
        """The eps with the largest `calibrated`, in a form for the matcher, and its `shrinkage`, 0 where that is NaN.

        Of those where all treatments converged, if there are any.
        """
        usable = jnp.where(jnp.isfinite(self.calibrated), self.calibrated, -jnp.inf)
        chosen = jnp.argmax(jnp.where(self.converged == 1, usable + 2, usable))  # `calibrated` is in (-1, 1]
        eps, weight = self.eps[chosen], self.shrinkage[chosen]
        return Relative(eps) if self.relative else eps, jnp.where(jnp.isfinite(weight), weight, 0)

    def rows(self) -> list[dict[str, float]]:
        """The table on the host, one dictionary for each eps: `pandas.DataFrame(sweep.rows())`."""
        columns = {name: np.asarray(getattr(self, name)).tolist() for name in ("eps", *CRITERIA, "converged")}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
