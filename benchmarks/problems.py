"""The data sets of `python -m benchmarks.paper`, small or at the paper's scale."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import psa_jax as psa
from benchmarks import datasets as known

BALLS = {"small": (4000, 4000, 32, (32, 64, 128), 15), "paper": (20000, 20000, 128, (32, 64, 128, 256, 512), 30)}
SCREEN = {"small": (2000, 2000), "paper": (20000, 20000)}
UNSEEN = (3, 8, 13, 18)


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is fitted on, what is aligned (the same where `query` is None), and what only figures may know.

    `unseen` are treatments of the query that the fitted data lacks.
    """

    name: str
    train: psa.Unpaired
    train_truth: psa.Truth
    query: psa.Unpaired | None
    query_truth: psa.Truth | None
    model: psa.Model | None = None
    epochs: int | None = None
    unseen: tuple[int, ...] = ()

    @property
    def aligned(self) -> psa.Unpaired:
        return self.train if self.query is None else self.query

    @property
    def truth(self) -> psa.Truth:
        return self.train_truth if self.query_truth is None else self.query_truth

    def learner(self, members: int = 1) -> psa.Learner:
        """What the data set asks for, of either modality."""
        return psa.Learner(self.model, training=psa.Training(epochs=self.epochs), members=members)


def load(name: str, seed: int, scale: str, path: str | None, treatment: str | None) -> Problem:
    """One draw of a data set; real data are the same for every seed, in another order."""
    if name == "balls":
        train, test, size, widths, epochs = BALLS[scale]
        key_train, key_test = jax.random.split(jax.random.key(seed))
        draws = (
            psa.datasets.balls(k, num_samples=n, image_size=size) for k, n in ((key_train, train), (key_test, test))
        )
        (data, truth), (query, query_truth) = draws
        return Problem(name, data, truth, query, query_truth, psa.conv(widths, 12), epochs)
    if name == "screen":
        key_train, key_test = jax.random.split(jax.random.key(seed))
        train, test = SCREEN[scale]
        data, truth = psa.datasets.perturbation_screen(key_train, screen=seed, num_samples=train)
        query, query_truth = psa.datasets.perturbation_screen(key_test, screen=seed, num_samples=test)
        data, truth = rows_of(data, truth, *(~np.isin(side.t, UNSEEN) for side in (data.a, data.b)))
        return Problem(name, data, truth, query, query_truth, unseen=UNSEEN)
    if name == "file":
        loaded = psa.io.shuffle(jax.random.key(seed), _read(path, treatment))
        return Problem(name, loaded.data, loaded.truth, None, None)
    if name == "cite" and path is not None:
        train, truth = psa.datasets.cite_seq(path, split="train")
        query, query_truth = psa.datasets.cite_seq(path, split="test")
        return Problem(name, train, truth, query, query_truth)
    data, _, truth, _ = known.SOURCES["bmmc" if name == "cite" else name](seed)
    return Problem(name, data, truth, None, None)


def rows_of(data: psa.Unpaired, truth: psa.Truth, rows: Any, cols: Any) -> tuple[psa.Unpaired, psa.Truth]:
    """The samples under two masks, known pairs among them kept."""
    rows, cols = np.flatnonzero(rows), np.flatnonzero(cols)
    place = np.full(data.b.t.size + 1, -1)
    place[cols] = np.arange(cols.size)
    part = psa.Unpaired(
        psa.Modality(data.a.x[rows], data.a.t[rows]), psa.Modality(data.b.x[cols], data.b.t[cols]), data.num_treatments
    )
    z_a, z_b = (None if z is None else z[ids] for z, ids in ((truth.z_a, rows), (truth.z_b, cols)))
    return part, psa.Truth(jnp.asarray(place[np.asarray(truth.pair)[rows]], jnp.int32), z_a, z_b)


def _read(path: str | None, treatment: str | None) -> Any:
    if path is None or treatment is None:
        raise SystemExit("--data file: expected --path FILE (.h5ad or .h5mu) and --treatment COLUMN")
    if pathlib.Path(path).suffix == ".h5mu":
        import mudata

        return psa.io.from_mudata(mudata.read_h5mu(path), treatment=treatment)
    import anndata

    return psa.io.from_anndata(anndata.read_h5ad(path), treatment=treatment)
