"""The data sets of `python -m benchmarks.quality`, cut into training, validation and test samples.

Real ones with enough samples are cut 60 : 20 : 20 within treatments, the split decided by the seed; small ones (fewer
than 2000 samples) are aligned whole, by cross-fitting. Features are standardised. Pairs are known to figures only.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import psa_jax as psa
from benchmarks.datasets import SHARED

SMALL = 2000


@dataclasses.dataclass(frozen=True)
class Cut:
    """What is learnt from, what is aligned (`train` where `query` is None), the truth, and what is projected.

    `pair` is the place in b of each of a's partners among what is aligned, `train_pair` among the training samples.
    """

    train: psa.Unpaired
    valid: psa.Unpaired | None
    query: psa.Unpaired | None
    pair: np.ndarray
    y_a: np.ndarray
    y_b: np.ndarray
    images: bool = False
    train_pair: np.ndarray | None = None

    @property
    def aligned(self):
        return self.train if self.query is None else self.query


def standard(x):
    x = np.asarray(x, np.float32).reshape(len(x), -1)
    scale = x.std(0)
    return (x - x.mean(0)) / np.where(scale > 0, scale, 1)


def _unpaired(x_a, x_b, t, rows, rng, number):
    """Samples in order for a, in another for b; and the place in b of each of a's partners."""
    order = rng.permutation(rows)
    place = np.empty(len(t), int)
    place[order] = np.arange(order.size)
    a, b = psa.Modality(x_a[rows], t[rows].astype(np.int32)), psa.Modality(x_b[order], t[order].astype(np.int32))
    return psa.Unpaired(a, b, number), place[rows]


def paired(x_a, x_b, t, seed):
    """A cut of truly paired samples."""
    x_a, x_b = standard(x_a), standard(x_b)
    _, t = np.unique(t, return_inverse=True)
    rng, number = np.random.default_rng(seed), int(t.max()) + 1
    if t.size < SMALL:
        data, pair = _unpaired(x_a, x_b, t, rng.permutation(t.size), rng, number)
        return Cut(data, None, None, pair, data.a.x, data.b.x)
    part = np.empty(t.size, int)
    for code in range(number):
        own = rng.permutation(np.flatnonzero(t == code))
        part[own] = np.digitize(np.arange(own.size) / own.size, (0.6, 0.8))
    (train, known), (valid, _), (query, pair) = (
        _unpaired(x_a, x_b, t, np.flatnonzero(part == which), rng, number) for which in range(3)
    )
    return Cut(train, valid, query, pair, query.a.x, query.b.x, train_pair=known)


def _file(name):
    with np.load(SHARED / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def sachs(seed):
    file = _file("sachs")
    return paired(file["x1"], file["x2"], file["t"], seed)


def bodenmiller(seed):
    file = _file("bodenmiller")
    return paired(file["x1"], file["x2"], file["t"], seed)


def stimulation(seed):
    file = _file("bodenmiller")
    big = file["t"] == np.bincount(file["t"]).argmax()
    return paired(file["x1"][big], file["x2"][big], file["stim"][big], seed)


def snare(seed):
    file = _file("snare_seq")
    return paired(file["x1"], file["x2"], file["t"], seed)


def _of(data, truth, seed):
    pair = np.asarray(truth.pair)
    known = pair >= 0
    return paired(np.asarray(data.a.x)[known], np.asarray(data.b.x)[pair[known]], np.asarray(data.a.t)[known], seed)


def bmmc(seed):
    return _of(*psa.datasets.cite_seq(SHARED / "bmmc_cite_600.h5ad"), seed)


def digits(seed):
    return _of(*psa.datasets.digits(jax.random.key(0)), seed)


def screen(seed):
    return _of(*psa.datasets.perturbation_screen(jax.random.key(seed), screen=seed, num_samples=3000), seed)


def balls(seed):
    key_train, key_valid, key_test = jax.random.split(jax.random.key(seed), 3)
    (train, _), (valid, _), (query, truth) = (
        psa.datasets.balls(key, num_samples=n, image_size=16)
        for key, n in ((key_train, 4000), (key_valid, 1000), (key_test, 4000))
    )
    return Cut(train, valid, query, np.asarray(truth.pair), np.asarray(truth.z_a), np.asarray(truth.z_b), True)


def permuted(seed):
    """Sachs with treatments permuted in each modality by itself: there is nothing to align."""
    cut, rng = sachs(seed), np.random.default_rng(100 + seed)

    def shuffled(data):
        sides = (psa.Modality(side.x, rng.permutation(side.t)) for side in (data.a, data.b))
        return psa.Unpaired(*sides, data.num_treatments)

    query = cut.query
    t = rng.permutation(query.a.t)  # the pairs of the query stay within one treatment, so that figures mean something
    t_b = np.empty_like(t)
    t_b[cut.pair] = t
    labelled = psa.Unpaired(psa.Modality(query.a.x, t), psa.Modality(query.b.x, t_b), query.num_treatments)
    return dataclasses.replace(cut, train=shuffled(cut.train), valid=shuffled(cut.valid), query=labelled)


def unrelated(seed):
    """Treatments act on both modalities, but on states of their own: within a treatment nothing is shared."""
    rng = np.random.default_rng(seed)
    t = np.repeat(np.arange(12), 400)
    sides = []
    for width in (20, 15):
        state = rng.normal(size=(12, 4))[t] + rng.normal(size=(t.size, 4))
        sides.append(np.tanh(state @ rng.normal(size=(4, width))) + 0.3 * rng.normal(size=(t.size, width)))
    return paired(*sides, t, seed)


CUTS = {
    "Sachs": sachs,
    "Bodenmiller": bodenmiller,
    "Bodenmiller, stimulations": stimulation,
    "SNARE-seq": snare,
    "BMMC": bmmc,
    "digits": digits,
    "screen": screen,
    "balls": balls,
    "Sachs, labels permuted": permuted,
    "nothing shared": unrelated,
}


FILES = {
    "Sachs": "sachs.npz", "Sachs, labels permuted": "sachs.npz", "Bodenmiller": "bodenmiller.npz",
    "Bodenmiller, stimulations": "bodenmiller.npz", "SNARE-seq": "snare_seq.npz", "BMMC": "bmmc_cite_600.h5ad",
}  # fmt: skip


def known_here():
    """The data sets that can be read here."""
    return [name for name in CUTS if name not in FILES or (SHARED / FILES[name]).is_file()]


def as_jax(cut):
    """Pairs and values as JAX arrays."""
    return jnp.asarray(cut.pair, jnp.int32), jnp.asarray(cut.y_a, jnp.float32), jnp.asarray(cut.y_b, jnp.float32)
