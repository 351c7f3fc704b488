"""The data sets of `python -m benchmarks.paper`, small or at the paper's scale."""

import dataclasses
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import psa_jax as psa
from benchmarks import datasets as known
from benchmarks.simulated_cite import CELLS, simulated

BALLS = {"small": (4000, 0, 4000, 15), "paper": (20_000, 5000, 20_000, 6)}  # train, validate, test; epochs
PIXELS, POOLED, AT_ONCE = 128, 4, 512
SCREEN = {"small": (2000, 2000), "paper": (20000, 20000)}
UNSEEN = (3, 8, 13, 18)


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is fitted on, what is aligned (the same where `query` is None), and what only figures may know.

    `unseen` are treatments of the query that the fitted data lacks. A `large` one has the rows of the paper's table.
    """

    name: str
    train: psa.Unpaired
    train_truth: psa.Truth
    query: psa.Unpaired | None
    query_truth: psa.Truth | None
    model: psa.Model | None = None
    epochs: int | None = None
    unseen: tuple[int, ...] = ()
    valid: psa.Unpaired | None = None
    large: bool = False

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
        *sizes, epochs = BALLS[scale]
        model = psa.conv((32, 64, 128), 12)
        keys = jax.random.split(jax.random.key(seed), 3)
        if scale == "small":
            draws = [psa.datasets.balls(k, num_samples=n, image_size=32) for k, n in zip(keys, sizes, strict=True) if n]
            (data, truth), (query, query_truth) = draws
            return Problem(name, data, truth, query, query_truth, model, epochs)
        (data, truth), (valid, _), (query, query_truth) = (pooled_balls(k, n) for k, n in zip(keys, sizes, strict=True))
        return Problem(name, data, truth, query, query_truth, model, epochs, valid=valid, large=True)
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
    if name == "simulated":
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/cells.h5ad"
            simulated(seed, CELLS[scale]).write_h5ad(path)
            return _split(name, path, large=scale == "paper")
    if name == "cite" and path is not None:
        return _split(name, path, large=True)
    data, _, truth, _ = known.SOURCES["bmmc" if name == "cite" else name](seed)
    return Problem(name, data, truth, None, None)


def _split(name: str, path: str, large: bool) -> Problem:
    """The training and the test cells of a file in the layout of GSE194122."""
    (train, truth), (query, query_truth) = (psa.datasets.cite_seq(path, split=part) for part in ("train", "test"))
    return Problem(name, train, truth, query, query_truth, large=large)


def pooled_balls(key: Any, n: int) -> tuple[psa.Unpaired, psa.Truth]:
    """The paper's images of 128 x 128 pixels, drawn some at a time; kept are means of 4 x 4 pixels, the model's first
    step, so that 20,000 of them are a quarter of a gigabyte."""
    draw = psa.datasets
    key_t, key_z, key_order, key_a, key_b = jax.random.split(key, 5)
    t = np.asarray(jax.random.permutation(key_t, jnp.arange(n, dtype=jnp.int32) % 12))
    z, order = draw.balls_latents(key_z, jnp.asarray(t)), np.asarray(jax.random.permutation(key_order, n))

    def view(render: Any, key: Any, z: Any) -> np.ndarray:
        side = PIXELS // POOLED
        out = np.empty((n, side, side, 3), np.float32)
        for place, first in enumerate(range(0, n, AT_ONCE)):
            images = render(jax.random.fold_in(key, place), z[first : first + AT_ONCE], PIXELS)
            out[first : first + AT_ONCE] = images.reshape(-1, side, POOLED, side, POOLED, 3).mean((2, 4))
        return out

    a = psa.Modality(view(draw.render_balls, key_a, z), t)
    b = psa.Modality(view(draw.render_squares, key_b, z[order]), t[order])
    return psa.Unpaired(a, b, 12), psa.Truth(jnp.asarray(np.argsort(order), jnp.int32), z, z[order])


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
