"""How something is trained, in one frozen object."""

import dataclasses

import numpy as np
import optax
from jax.core import Tracer

ADAMW = optax.adamw(1e-3, weight_decay=1e-4)
STEPS, FEWEST_EPOCHS, MOST_EPOCHS = 2000, 20, 500
ANNEALED_STEPS, FEWEST_ANNEALED, PEAK = 550, 5, 5e-3


@dataclasses.dataclass(frozen=True)
class Training:
    """The settings of one training: of a classifier, a predictor or a baseline. Static: other settings compile anew.

    Attributes:
        optimizer: by default AdamW with weight decay 1e-4: for classifiers with a rate that falls along a cosine from
            5e-3 to zero over all steps, for predictors and baselines with rate 1e-3. Give one that is made once: a
            new `optax.adam(...)` is a new function, and compiles again.
        epochs: the most passes over the samples; by default as many as make 2000 steps, at least 20 and at most 500;
            for classifiers with the falling rate 550 steps, at least 5 and at most 500 epochs.
        batch_size: samples in a step, at most all of them.
        patience: stop after that many epochs without a lower loss on validation data; by default a fifth of the
            epochs where there are such data, a third with the falling rate. `patience=epochs` never stops.

    Raises:
        ValueError: numbers that are not integers of at least 1, an optimizer that is none.

    Example:
        >>> Training(epochs=30)
        Training(epochs=30)
        >>> Training().resolved(1000, judged=True)
        Training(epochs=286, patience=57)
    """

    optimizer: optax.GradientTransformation | None = None
    epochs: int | None = None
    batch_size: int = 128
    patience: int | None = None

    def __post_init__(self) -> None:
        for name, optional in (("epochs", True), ("batch_size", False), ("patience", True)):
            value = getattr(self, name)
            if value is None and optional:
                continue
            if isinstance(value, bool | Tracer) or not isinstance(value, int | np.integer):
                raise ValueError(f"{name}: expected an integer of at least 1 (it is static), got {value!r}")
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
            object.__setattr__(self, name, int(value))
        if self.optimizer is not None and not (hasattr(self.optimizer, "init") and hasattr(self.optimizer, "update")):
            raise ValueError(f"optimizer: expected one of optax, such as optax.adam(1e-3), got {self.optimizer!r}")

    def resolved(self, num_samples: int, *, judged: bool) -> "Training":
        """The same with numbers in place of what depends on how many samples there are, and whether others judge."""
        steps = max(1, num_samples // self.batch_size)
        epochs = self.epochs or min(MOST_EPOCHS, max(FEWEST_EPOCHS, -(-STEPS // steps)))
        patience = (self.patience or max(1, epochs // 5)) if judged else None
        return dataclasses.replace(self, epochs=epochs, patience=patience)

    def annealed(self, num_samples: int, *, judged: bool) -> "Training":
        """`resolved` for a classifier: without an optimizer of its own few steps, whose rate falls, are enough."""
        if self.optimizer is not None:
            return self.resolved(num_samples, judged=judged)
        steps = max(1, num_samples // self.batch_size)
        epochs = self.epochs or min(MOST_EPOCHS, max(FEWEST_ANNEALED, -(-ANNEALED_STEPS // steps)))
        patience = (self.patience or max(1, epochs // 3)) if judged else None
        return dataclasses.replace(self, epochs=epochs, patience=patience)

    def falling(self, num_samples: int) -> "Training":
        """The same, resolved before, with the default optimizer of classifiers if it has none. Inside `jit` only."""
        if self.optimizer is not None or self.epochs is None:
            return self
        rate = optax.cosine_decay_schedule(PEAK, self.epochs * max(1, num_samples // self.batch_size))
        return dataclasses.replace(self, optimizer=optax.adamw(rate, weight_decay=1e-4))

    def __repr__(self) -> str:
        """What differs from the default."""
        changed = [
            f"{field.name}={getattr(self, field.name) if field.name != 'optimizer' else '...'}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]
        return f"Training({', '.join(changed)})"


def check_training(training: object, *, judged: bool = True) -> Training:
    """Raises a `ValueError` unless it is a `Training`, and one without patience where no validation data judge."""
    if not isinstance(training, Training):
        raise ValueError(f"training: expected psa_jax.Training(epochs=..., batch_size=...), got {training!r}")
    if training.patience is not None and not judged:
        raise ValueError("patience: expected validation data to judge by (valid=...), got none")
    return training
