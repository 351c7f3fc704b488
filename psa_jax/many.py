"""More than two modalities, each aligned to a reference."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax

from psa_jax.alignment import Alignment
from psa_jax.augment import smoothing
from psa_jax.blocked import Blocked
from psa_jax.chain import Chained, chain
from psa_jax.coupling import Coupling
from psa_jax.data import Modality, Unpaired, on_host
from psa_jax.groups import Groups, group
from psa_jax.match import sinkhorn
from psa_jax.match.blockwise import blockwise
from psa_jax.model import Model
from psa_jax.pipeline import check_matcher, warn
from psa_jax.represent import Representation, represent
from psa_jax.score import centre
from psa_jax.types import Augment, KeyArray, pytree, static


@pytree
class ManyAlignment:
    """What `align_many` returns.

    Attributes:
        couplings: the reference's samples (rows) with those of each modality (columns); with itself None.
        groups: which samples each of them may match; with itself None.
        representations: scores, classifier and calibration of each modality.
        reference: static; which modality is the reference.
    """

    couplings: tuple[Blocked | None, ...]
    groups: tuple[Groups | None, ...]
    representations: tuple[Representation, ...]
    reference: int = static()

    def alignment(self, other: int) -> Alignment:
        """The reference (modality a) with another modality (b), as `align` would give it.

        Raises:
            ValueError: the reference itself, or a modality that does not exist.
        """
        number = len(self.couplings)
        if not 0 <= other < number or other == self.reference:
            raise ValueError(f"other: expected one of [0, {number}) but the reference {self.reference}, got {other}")
        coupling, groups = self.couplings[other], self.groups[other]
        a, b = self.representations[self.reference], self.representations[other]
        assert coupling is not None
        assert groups is not None
        return Alignment(
            coupling,
            groups,
            a.scores,
            b.scores,
            a.fitted,
            b.fitted,
            a.calibration,
            b.calibration,
            a.member_scores,
            b.member_scores,
            a.scorer,
            b.scorer,
        )

    def between(self, first: int, second: int) -> Blocked | Chained:
        """The coupling of two modalities: direct if one of them is the reference, else through its samples.

        Raises:
            ValueError: a modality that does not exist, or twice the same.
        """
        number = len(self.couplings)
        if not (0 <= first < number and 0 <= second < number) or first == second:
            raise ValueError(f"first, second: expected two modalities in [0, {number}), got {first} and {second}")
        there, here = self.couplings[second], self.couplings[first]
        if here is None:
            assert there is not None
            return there
        return here.T if there is None else chain(here.T, there)


def align_many(
    key: KeyArray,
    modalities: Sequence[Modality],
    num_treatments: int,
    *,
    reference: int = 0,
    models: Sequence[Model | None] | None = None,
    augments: Sequence[Augment | None] | None = None,
    matcher: Callable[..., Coupling] = sinkhorn,
    optimizer: optax.GradientTransformation | None = None,
    epochs: int | None = None,
    batch_size: int = 128,
    patience: int | None = None,
    members: int = 1,
    folds: int = 5,
    transform: Callable[[Any], Any] = centre,
    divide_prior: bool = True,
    on_epoch: Callable[[Any, Any, Any], None] | None = None,
) -> ManyAlignment:
    """Aligns several modalities, each with a reference, in the one space that all their scores share.

    Every modality gets one classifier (cross-fitted, see `align`), whose scores are restricted to the treatments that
    all of them have. Two modalities that are not the reference meet through its samples, so that all couplings tell one
    story: `between(i, k)` is `between(i, reference)` and then `between(reference, k)`.

    Args:
        key: a typed key.
        modalities: at least two; sizes may differ, treatments may be missing.
        num_treatments: of the codes.
        reference: the one that the others are matched with; best the one with most samples of most treatments.
        models: one for each modality, None for the default; see `align`.
        augments: one for each modality; by default `smoothing` for all.
        matcher, optimizer, epochs, batch_size, patience, members, folds, transform, divide_prior, on_epoch: as in
            `align`.

    Raises:
        ValueError: as `align`; fewer than two modalities, a reference or a number of models that does not fit, fewer
            than two treatments that all modalities have.

    Warns:
        AlignmentWarning: as `align`, once for each coupling.

    Example:
        >>> import jax.numpy as jnp
        >>> from psa_jax.nets import mlp
        >>> z, t = jax.random.normal(jax.random.key(0), (60, 2)), jnp.arange(60) % 2
        >>> views = [Modality(scale * z + t[:, None], t) for scale in (1.0, -1.0, 2.0)]
        >>> found = align_many(jax.random.key(1), views, 2, epochs=2, models=3 * [mlp((4,), 2)])
        >>> found.between(1, 2).apply(views[2].x).shape
        (60, 2)
    """
    number = len(modalities)
    if number < 2 or not 0 <= reference < number:
        raise ValueError(
            f"modalities, reference: expected at least two modalities and one of them, got {number} and {reference}"
        )
    for name, given in (("models", models), ("augments", augments)):
        if given is not None and len(given) != number:
            raise ValueError(f"{name}: expected one for each of the {number} modalities, got {len(given)}")
    for name, value in (("members", members), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    main = modalities[reference]
    sides = [on_host(Unpaired(main, other, num_treatments)).b for other in modalities]
    shared = np.asarray(sides[0].t)
    for side in sides:
        shared = np.intersect1d(shared, np.asarray(side.t))
    if shared.size < 2:
        raise ValueError(f"modalities: expected at least two treatments that all have, got only {shared.tolist()}")
    check_matcher(matcher, int(shared.size))
    found = tuple(
        represent(
            jax.random.fold_in(key, place),
            str(place),
            side,
            num_treatments,
            shared,
            target=None,
            valid=None,
            model=None if models is None else models[place],
            augment=smoothing if augments is None else augments[place],
            optimizer=optimizer,
            epochs=epochs,
            batch_size=batch_size,
            patience=patience,
            members=members,
            folds=folds,
            transform=transform,
            divide_prior=divide_prior,
            on_epoch=on_epoch,
        )
        for place, side in enumerate(sides)
    )
    couplings, plans = [], []
    for place, side in enumerate(sides):
        if place == reference:
            couplings.append(None)
            plans.append(None)
            continue
        groups = group(sides[reference].t, side.t, num_treatments)
        coupling = blockwise(matcher)(found[reference].scores, found[place].scores, groups)
        warn(coupling, groups)
        couplings.append(coupling)
        plans.append(groups)
    return ManyAlignment(tuple(couplings), tuple(plans), found, reference)
