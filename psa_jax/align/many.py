"""More than two modalities, each aligned to a reference."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from psa_jax.align.alignment import Alignment
from psa_jax.align.pipeline import check_matcher, joined, warn
from psa_jax.arguments import checked
from psa_jax.coupling.blocked import Blocked
from psa_jax.coupling.chain import Chained, chain
from psa_jax.coupling.coupling import Coupling
from psa_jax.data.groups import Groups, group
from psa_jax.data.labels import listed
from psa_jax.data.samples import Modality, Unpaired, on_host
from psa_jax.match import sinkhorn
from psa_jax.match.blockwise import blockwise
from psa_jax.progress import Progress, watching
from psa_jax.propensity.learn import classifier, learn, rows_to_look_at
from psa_jax.propensity.learner import Learner, check_learner
from psa_jax.propensity.representation import Representation, finished
from psa_jax.types import KeyArray, pytree, static


@pytree
class ManyAlignment:
    """What `align_many` returns.

    Attributes:
        couplings: the reference's samples (rows) with those of each modality (columns); with itself None.
        groups: which samples each of them may match; with itself None.
        representations: scores, classifier and calibration of each modality.
        reference: static; which modality is the reference.
        names: static; the names of the treatments, or None.
    """

    couplings: tuple[Blocked | None, ...]
    groups: tuple[Groups | None, ...]
    representations: tuple[Representation, ...]
    reference: int = static()
    names: tuple[str, ...] | None = static(default=None)

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
        return joined(coupling, groups, a, b, self.names)

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


@checked
def align_many(
    key: KeyArray,
    modalities: Sequence[Modality],
    num_treatments: int,
    *,
    reference: int = 0,
    learners: Sequence[Learner | None] | Learner | None = None,
    matcher: Callable[..., Coupling] = sinkhorn,
    names: Sequence[str] | None = None,
    progress: Progress = False,
) -> ManyAlignment:
    """Aligns several modalities, each with a reference, in the one space that all their scores share.

    Every modality gets one classifier (cross-fitted, see `align`), whose scores are restricted to the treatments that
    all of them have. Two modalities that are not the reference meet through its samples, so that all couplings tell one
    story: `between(i, k)` is `between(i, reference)` and then `between(reference, k)`.

    Args:
        key: a typed key.
        modalities: at least two; sizes may differ, treatments may be missing. Codes that stand for a treatment within a
            stratum are not told apart here: classifiers predict whatever the codes are.
        num_treatments: of the codes.
        reference: the one that the others are matched with; best the one with most samples of most treatments.
        learners: one for each modality, None for the default, or one for all; see `align`.
        matcher: as in `align`.
        names: of the treatments, for messages.
        progress: as in `align`.

    Raises:
        ValueError: as `align`; fewer than two modalities, a reference or a number of learners that does not fit, fewer
            than two treatments that all modalities have.

    Warns:
        AlignmentWarning: as `align`, once for each coupling.

    Example:
        >>> import jax.numpy as jnp
        >>> from psa_jax.propensity import Training, mlp
        >>> z, t = jax.random.normal(jax.random.key(0), (60, 2)), jnp.arange(60) % 2
        >>> views = [Modality(scale * z + t[:, None], t) for scale in (1.0, -1.0, 2.0)]
        >>> quick = Learner(mlp((4,), 2), training=Training(epochs=2))
        >>> found = align_many(jax.random.key(1), views, 2, learners=quick)
        >>> found.between(1, 2).apply(views[2].x).shape
        (60, 2)
    """
    if isinstance(modalities, Modality | Unpaired | str) or not isinstance(modalities, Sequence):
        raise ValueError(f"modalities: expected a list of psa_jax.Modality, got {type(modalities).__name__}")
    number = len(modalities)
    if number < 2 or not 0 <= reference < number:
        raise ValueError(
            f"modalities, reference: expected at least two modalities and one of them, got {number} and {reference}"
        )
    if num_treatments < 2:
        raise ValueError(f"num_treatments: expected at least 2, got {num_treatments}")
    told = None if names is None else tuple(names)
    settings = [learners] * number if isinstance(learners, Learner) or learners is None else list(learners)
    if len(settings) != number:
        raise ValueError(f"learners: expected one for each of the {number} modalities, got {len(settings)}")
    settings = [check_learner(f"learners[{place}]", learner) for place, learner in enumerate(settings)]
    main = modalities[reference]
    sides = [on_host(Unpaired(main, other, num_treatments, told)).b for other in modalities]
    shared = np.asarray(sides[0].t)
    for side in sides:
        shared = np.intersect1d(shared, np.asarray(side.t))
    if shared.size < 2:
        raise ValueError(
            f"modalities: expected at least two treatments that all have, got only [{listed(shared, told)}]"
        )
    check_matcher(matcher, int(shared.size))
    for place, side in enumerate(sides):
        classifier(str(place), side, num_treatments, settings[place])
    labels = [side.t for side in sides]
    rows = rows_to_look_at(jax.random.fold_in(key, number + 1), labels, settings, num_treatments, int(shared.size))
    with watching(progress) as watch:
        learnt = [
            learn(jax.random.fold_in(key, place), str(place), side, num_treatments, shared, how, watch, rows=few)
            for place, (side, how, few) in enumerate(zip(sides, settings, rows, strict=True))
        ]
        found = finished(jax.random.fold_in(key, number), learnt, [one.represent() for one in learnt], labels)
        couplings, plans = [], []
        watch.begin("matching", number - 1)
        for place, side in enumerate(sides):
            if place == reference:
                couplings.append(None)
                plans.append(None)
                continue
            groups = group(sides[reference].t, side.t, num_treatments)
            coupling = blockwise(matcher)(found[reference].scores, found[place].scores, groups)
            warn(coupling, groups, told)
            couplings.append(coupling)
            plans.append(groups)
            watch.advance()
    return ManyAlignment(tuple(couplings), tuple(plans), tuple(found), reference, told)
