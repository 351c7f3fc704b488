"""What the demo does, and matchers by their options."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from psa_jax import datasets
from psa_jax.align.alignment import Alignment
from psa_jax.align.pipeline import align
from psa_jax.cli.reading import refuse
from psa_jax.cli.results import finish_demo
from psa_jax.cli.show import Show
from psa_jax.coupling.coupling import Coupling
from psa_jax.match import assignment, hierarchical, nearest, relative, sinkhorn, snn
from psa_jax.propensity import Learner, Training, conv
from psa_jax.propensity.augment import translation

BALLS_SIZE, PICTURE_SIZE = 32, 96
BALLS_WIDTHS = (32, 64, 128)
BALLS_SHIFT = 0.08
LATENTS = ("x1", "y1", "x2", "y2")
OTHERS = {"snn": snn, "nearest": nearest, "assignment": assignment, "hierarchical": hierarchical}
MATCHERS = {"sinkhorn": "PS+OT", **{name: f"PS+{name}" for name in OTHERS}, "snn": "PS+SNN"}


def balls(folder: Path, show: Show, *, seed: int, num_samples: int, epochs: int) -> None:
    """The demo on images: classifiers trained on some, others aligned."""
    key_train, key_query, key_align, key_rest = jax.random.split(jax.random.key(seed), 4)
    num_query = num_samples // 2
    with show.stage("data", f"{num_samples} images of each modality to train on, {num_query} others to align"):
        train, _ = datasets.balls(key_train, num_samples, BALLS_SIZE)
        query, truth = datasets.balls(key_query, num_query, BALLS_SIZE)
        jax.block_until_ready((train, query))
    learner = Learner(
        model=conv(BALLS_WIDTHS, train.num_treatments),
        augment=translation(BALLS_SHIFT),
        training=Training(epochs=epochs),
        members=1,  # a demo is short
    )
    with show.noting():
        alignment = show.aligning(
            lambda tell: align(key_align, train, query=query, a=learner, b=learner, progress=tell)
        )

    def pictures(plot: Any, save: Callable[[str, Any], None]) -> None:
        sharp, _ = datasets.balls(key_query, num_query, PICTURE_SIZE)  # the same scenes
        titles = [query.names[code] for code in np.asarray(query.a.t)] if query.names else None
        images = sharp.a.x, sharp.b.x
        axes = plot.matched_pairs(*images, alignment.coupling, key_rest, truth=truth, titles=titles)
        save("matched_pairs.png", axes)
        save("latent_map.png", plot.latent_map(alignment.coupling, truth, names=LATENTS))

    settings = {"data": "balls", "num_samples": num_samples, "num_query": num_query, "image_size": BALLS_SIZE}
    settings |= {"widths": BALLS_WIDTHS, "augment": f"translation({BALLS_SHIFT})", "epochs": epochs, "seed": seed}
    finish_demo(folder, show, key_rest, alignment, truth, query, settings, pictures)


def digits(folder: Path, show: Show, *, seed: int, epochs: int | None) -> None:
    """The demo on halves of handwritten digits, all of them aligned by cross-fitting."""
    key_data, key_align, key_rest = jax.random.split(jax.random.key(seed), 3)
    with show.stage("data", "1797 handwritten digits, left and right halves"):
        data, truth = datasets.digits(key_data)
    learner = Learner(training=Training(epochs=epochs))
    with show.noting():
        alignment = show.aligning(lambda tell: align(key_align, data, a=learner, b=learner, progress=tell))

    def pictures(plot: Any, save: Callable[[str, Any], None]) -> None:
        images = (x.reshape(-1, 8, 4) for x in (data.a.x, data.b.x))
        axes = plot.matched_pairs(*images, alignment.coupling, key_rest, truth=truth, joined=True)
        save("matched_pairs.png", axes)

    settings = {"data": "digits", "folds": learner.folds, "seed": seed} | epochs_of(alignment)
    finish_demo(folder, show, key_rest, alignment, truth, data, settings, pictures)


def epochs_of(alignment: Alignment) -> dict[str, int]:
    """The most epochs of each modality's training, as they were chosen."""
    sides = {"a": alignment.fitted_a, "b": alignment.fitted_b}
    return {f"epochs_{side}": fitted.history.train_loss.shape[-1] for side, fitted in sides.items()}


def make_matcher(name: str, eps: float | None, relative_eps: float | None, k: int | None) -> Callable[..., Coupling]:
    """The matcher with its settings, refused before any work if they do not fit it."""
    for option, value in (("--eps", eps), ("--relative-eps", relative_eps)):
        if value is not None and name != "sinkhorn":
            refuse(option, f"an option of --matcher sinkhorn only, got --matcher {name}")
        if value is not None and not np.finfo(np.float32).tiny <= value <= np.finfo(np.float32).max:
            refuse(option, f"expected a positive number, got {value} (of single precision: 2e-38 to 3e+38)")
    if eps is not None and relative_eps is not None:
        refuse("--eps, --relative-eps", "expected one of them, got both")
    if k is not None and name not in ("snn", "nearest"):
        refuse("--k", f"an option of --matcher snn and nearest only, got --matcher {name}")
    if name == "sinkhorn":
        chosen = eps if eps is not None else None if relative_eps is None else relative(relative_eps)
        return sinkhorn if chosen is None else functools.partial(sinkhorn, eps=chosen)
    return OTHERS[name] if k is None else functools.partial(OTHERS[name], k=k)
