"""What to believe of an alignment, in words that name treatments."""

from typing import Any

import numpy as np

from psa_jax.data.groups import Groups
from psa_jax.data.labels import listed
from psa_jax.judge.diagnosis import FEWEST
from psa_jax.judge.evidence import FEWEST_COLUMNS
from psa_jax.judge.projection import Projection
from psa_jax.types import known

SHOWN, PLENTY = 8, 100


def verdict(projection: Projection, groups: Groups, names: tuple[str, ...] | None) -> list[tuple[str, str]]:
    """Names and texts: the evidence, how much of projections is believed, what could be done. Empty while traced."""
    found = projection.evidence
    if not known(found.z, found.p_value, projection.weight_a, projection.weight_b, groups.sizes_a, groups.sizes_b):
        return []
    a, b = np.asarray(groups.sizes_a), np.asarray(groups.sizes_b)
    matched, p_value = (a > 0) & (b > 0), float(found.p_value)
    sure = matched & np.asarray(found.found)
    if not bool(found.common):
        few = matched.sum() < FEWEST_COLUMNS
        why = f"there are fewer than {FEWEST_COLUMNS} treatments" if few else f"p = {p_value:.2g}"
        facts = [
            ("evidence", f"none that the modalities share anything within treatments ({why})"),
            ("project", "the treatment's mean, everywhere"),
        ]
        advice = ["more treatments"] if few else ["more members", "more samples", "other features"]
        return [*facts, ("could help", ", ".join(advice))]
    facts = [("evidence", f"in {sure.sum()} of {matched.sum()} treatments (p = {p_value:.2g}){_named(sure, names)}")]
    weights = [np.asarray(weight)[matched] for weight in (projection.weight_a, projection.weight_b)]
    told = [
        f"{np.median(w):.2f} ({w.min():.2f} to {w.max():.2f}) for {side}" for w, side in zip(weights, "ab", strict=True)
    ]
    facts.append(("project believes", f"of deviations from the treatment's mean {', '.join(told)}"))
    blind = matched & ~np.asarray(projection.believed)
    if blind.any():
        facts.append(("only the mean of", listed(np.flatnonzero(blind), names, SHOWN)))
    small = matched & ~sure & (np.minimum(a, b) < PLENTY)
    if small.any():
        least = f" (fewer than {FEWEST} tell nothing)" if (np.minimum(a, b)[small] < FEWEST).any() else ""
        facts.append(("could help", f"more samples of {listed(np.flatnonzero(small), names, SHOWN)}{least}"))
    return facts


def _named(which: np.ndarray, names: tuple[str, ...] | None) -> Any:
    return f": {listed(np.flatnonzero(which), names, SHOWN)}" if which.any() else ""
