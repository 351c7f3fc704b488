"""How the scores of one modality are learnt, in one frozen object."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from psa_jax.propensity.augment import SMOOTHINGS
from psa_jax.propensity.model import Model
from psa_jax.propensity.scores import TEMPERED
from psa_jax.propensity.training import Training, check_training
from psa_jax.types import Augment, brief


@dataclasses.dataclass(frozen=True)
class Learner:
    """Every setting of one modality's propensity scores; the arguments `a` and `b` of `align`.

    Attributes:
        model: the classifier of the treatment; by default `mlp((128, 128), K)` for vectors `[n, d]` and
            `conv((32, 64, 128), K)` for images `[n, H, W, C]`, K the number of treatments.
        augment: `(key, batch) -> batch`, a random change that smooths the propensity, or None; or a tuple of such,
            which members take in turn, as by default: noise of 0.3, 0.7 and 1.2 standard deviations for vectors,
            shifts of 0.05, 0.08 and 0.12 of the canvas for images. The lever that matters most; `psa_jax.tune`
            chooses it by labels.
        training: see `Training`.
        members: classifiers to train; their logits are averaged. With one, another seed gives other pairs.
        folds: see `crossfit`; without a query only.
        transform: of logits to scores, see `from_logits`; by default `tempered()`; `relative_to(code)` for effects on a
            control. It should be the same for both modalities.
        divide_prior: subtract the log treatment frequencies from the logits, so that scores do not depend on how often
            a treatment was given. It should be the same for both modalities.
        components: the most columns that scores have, at least 8. With more treatments than that scores are made of a
            part of the samples first; then of all of them, a few at a time, and only so many principal components of
            what varies within treatments are kept, in both modalities the same (`Scorer.components` tells what share
            of it that is). It should be the same for both modalities.

    Raises:
        ValueError: members or folds that are no such numbers, functions that are none.

    Example:
        >>> Learner(members=3).members
        3
        >>> Learner() == Learner(training=Training())
        True
    """

    model: Model | None = None
    augment: Augment | tuple[Augment | None, ...] | None = SMOOTHINGS
    training: Training = Training()
    members: int = 6
    folds: int = 5
    transform: Callable[[Any], Any] = TEMPERED
    divide_prior: bool = True
    components: int = 128

    def __repr__(self) -> str:
        """What differs from the default."""
        changed = [f for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
        return f"Learner({', '.join(f'{field.name}={brief(getattr(self, field.name))}' for field in changed)})"

    def __post_init__(self) -> None:
        check_training(self.training)
        for name, least in (("members", 1), ("folds", 3), ("components", 8)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}")
            if value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value}")
            object.__setattr__(self, name, int(value))
        if self.model is not None and not isinstance(self.model, Model):
            raise ValueError(
                f"model: expected psa_jax.Model(init, apply), such as psa_jax.mlp(...), or psa_jax.from_linen(module), "
                f"psa_jax.from_nnx(make), got {brief(self.model)}"
            )
        several = self.augment if isinstance(self.augment, tuple) else (self.augment,)
        if not several or not all(one is None or callable(one) for one in several):
            raise ValueError(
                f"augment: expected a function (key, batch) -> batch, None, or a tuple of them, got {self.augment!r}"
            )
        if not callable(self.transform):
            raise ValueError(f"transform: expected a function of scores [n, d], got {self.transform!r}")


def check_learner(name: str, learner: object) -> Learner:
    """The learner, the default for None; a `ValueError` that says `name` if it is none."""
    if learner is None:
        return Learner()
    if not isinstance(learner, Learner):
        raise ValueError(f"{name}: expected psa_jax.Learner(model=..., training=...), got {learner!r}")
    return learner
