"""What a perturbation does to the other modality, seen and unseen: `python -m benchmarks.perturbations [--data Sachs]`.

Cells of modality b are predicted from cells of a by predictors that were trained through couplings of other cells, and
compared with the observed test cells of b, treatment by treatment. In distribution, training had cells of all
treatments. Out of distribution, those left out in turn are in no part of training: neither modality's cells of them
are seen by classifiers, couplings or predictors; a prediction uses the test cells' features of a alone. (Features are
standardised over all cells of the data set, as in `benchmarks.cuts`.) Writes `results/perturbations.json` and
`PERTURBATIONS.md`.
"""

import argparse
import functools
import json
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial.distance import cdist

import psa_jax as psa
from benchmarks.alignments import quietly
from benchmarks.cuts import CUTS, known_here
from benchmarks.perturbations_report import report
from benchmarks.tables import HERE, environment, write
from psa_jax import baselines
from psa_jax.match import class_mean, known_pairs

NAMES = ("Sachs", "Bodenmiller, stimulations", "screen")
LOSSES = ("barycentric", "sampled", "unbiased")
LEARNER = psa.Learner(members=3, folds=3)
TRAINING = psa.Training(epochs=30)  # of predictors: nothing selects the epoch
COMPONENTS, MANY, GOES = 5, 12, 4  # axes of KL; of more treatments than that a quarter is left out in each go
UNSEEN = 20  # the first of their keys
RESULTS = HERE / "results" / "perturbations.json"


def turns(number):
    """Treatments to leave out together: each is left out once."""
    goes = GOES if number > MANY else number
    return [list(range(number))[place::goes] for place in range(goes)]


def without(rng, cut, left_out):
    """Training samples of the other treatments, and pairs (-1 for none), as many of each treatment in every turn."""
    data = cut.train
    t_a, t_b = np.asarray(data.a.t), np.asarray(data.b.t)
    most = np.bincount(t_a).min() if left_out else None
    stay = [code for code in range(data.num_treatments) if code not in left_out]
    rows, cols = (
        np.sort(np.concatenate([rng.permutation(np.flatnonzero(t == code))[:most] for code in stay]))
        for t in (t_a, t_b)
    )
    place = np.full(t_b.size, -1)
    place[cols] = np.arange(cols.size)
    part = psa.Unpaired(data.a.take(rows), data.b.take(cols), data.num_treatments)
    return part, place[cut.train_pair[rows]]


def laws(out, latents, data, pair):
    """Yields `(name, coupling)` of training samples; pairs are known to the last alone."""
    u, v, groups = out.scores_a, out.scores_b, out.groups
    yield "class mean", psa.blockwise(class_mean)(u, v, groups)
    yield "PS+OT", out.coupling
    yield "PS+OT, calibrated", out.projection.law
    yield "PS+SNN", psa.blockwise(psa.snn)(u, v, groups)
    yield "VAE+OT", psa.blockwise(psa.sinkhorn)(*latents, groups)
    yield "true pairs", known_pairs(jnp.asarray(pair, jnp.int32), data.b.t.size)


def embedded(key, data, x):
    """The VAE's latents of training cells of both modalities, and of cells with these features of a."""
    both = psa.Modality(np.concatenate([data.a.x, x]), np.concatenate([data.a.t, np.zeros(len(x), int)]))
    u, v = baselines.vae(key, data, query=psa.Unpaired(both, data.b, data.num_treatments))
    return u[: data.a.t.size], v, u[data.a.t.size :]


def predictions(key, data, pair, x):
    """Yields `(coupling, loss, predicted b of cells with these features of a)`.

    First predictors; then what needs none: values of partners, as means and drawn, and of the nearest cell.
    """
    key_laws, key_fit = jax.random.split(key)
    key_align, key_vae = jax.random.split(key_laws)
    out = quietly(psa.align, key_align, data, a=LEARNER, b=LEARNER)
    *latents, new = embedded(key_vae, data, x)
    model = psa.mlp((128, 128), data.b.x.shape[1])
    for name, law in laws(out, latents, data, pair):
        for loss in LOSSES:
            fitted = psa.fit_predictor(key_fit, model, data.a.x, data.b.x, law, loss=loss, training=TRAINING)
            yield name, loss, np.asarray(psa.predict(model, fitted.params, x))
    y = np.asarray(data.b.x)
    yield "PS+OT", "mean of partners", np.asarray(out.predict(x, y=y).values)
    yield "PS+OT", "drawn partner", y[out.sample(jax.random.fold_in(key, 0), x)]
    yield "VAE", "nearest cell", y[np.asarray(cdist(new, latents[1], "sqeuclidean")).argmin(1)]


def by_mean(data, x, t, rng):
    """Predictions without a model: by what is known of b in the treatment, or in the one whose cells of a are nearest.

    Yields `(name, predicted b)`: the mean there, and random cells from there.
    """
    codes = np.unique(data.a.t)
    own, other = np.asarray(data.a.x), np.asarray(data.b.x)
    centres = np.stack([own[data.a.t == code].mean(0) for code in codes])
    means, drawn = np.zeros((t.size, other.shape[1]), np.float32), np.zeros((t.size, other.shape[1]), np.float32)
    for code in np.unique(t):
        here = t == code
        nearest = code if code in codes else codes[((centres - x[here].mean(0)) ** 2).sum(1).argmin()]
        cells = other[data.b.t == nearest]
        means[here], drawn[here] = cells.mean(0), cells[rng.integers(len(cells), size=here.sum())]
    yield "treatment's mean, or the nearest one's", means
    yield "its cells at random, or the nearest one's", drawn


def energy(x, y, *, a, b):
    """The squared energy distance of weighted samples (Székely and Rizzo, 2013)."""
    a, b = a / a.sum(), b / b.sum()

    def mean(x, y, a, b):
        return a @ jnp.sqrt(jnp.maximum(jnp.sum((x[:, None] - y[None]) ** 2, -1), 1e-12)) @ b

    return 2 * mean(x, y, a, b) - mean(x, x, a, a) - mean(y, y, b, b)


def judged(predicted, cut, base, axes, which):
    """Figures of predictions `[n, d]` of the test cells of a, averaged over the treatments `which`."""
    query = cut.query
    t_a, t_b, y = np.asarray(query.a.t), np.asarray(query.b.t), np.asarray(query.b.x)
    rows, cols = np.isin(t_a, which), np.isin(t_b, which)

    def distance(function, x, y):
        found = quietly(psa.per_treatment, function, x[rows], t_a[rows], y[cols], t_b[cols], query.num_treatments)
        return float(np.nanmean(np.asarray(found)[which]))

    effect, truth = (np.stack([x[t == code].mean(0) for code in which]) - base for x, t in ((predicted, t_a), (y, t_b)))
    true = y[cut.pair]
    level = np.stack([y[t_b == code].mean(0) if (t_b == code).any() else base for code in range(query.num_treatments)])
    return {
        "W1": distance(psa.wasserstein1, predicted, y),
        "sliced W1": distance(functools.partial(psa.sliced_wasserstein1, jax.random.key(0)), predicted, y),
        "KL": distance(lambda x, y, *, a, b: psa.kl_divergence(y, x, a=b, b=a), predicted @ axes, y @ axes),
        "energy": distance(jax.jit(energy), predicted, y),
        "R2 of mean effects": float(1 - ((effect - truth) ** 2).sum() / (truth**2).sum()),
        "correlation of effects": float(np.corrcoef(effect.ravel(), truth.ravel())[0, 1]),
        "cell error / class mean": float(
            ((predicted - true)[rows] ** 2).sum() / ((level[t_a] - true)[rows] ** 2).sum()
        ),
    }


def measure(name, seed):
    """The rows of one data set and seed."""
    cut, rng = CUTS[name](seed), np.random.default_rng(seed)
    number, x, t = cut.train.num_treatments, np.asarray(cut.query.a.x), np.asarray(cut.query.a.t)
    train = np.asarray(cut.train.b.x)
    base, axes = train.mean(0), np.linalg.svd(train - train.mean(0), full_matrices=False)[2][:COMPONENTS].T
    out = []
    for where, first, goes in (("seen", 0, [[]]), ("unseen", UNSEEN, turns(number))):
        found = {}
        for place, left_out in enumerate(goes):
            data, pair = without(rng, cut, left_out)
            key = jax.random.fold_in(jax.random.key(5000 + seed), first + place)
            rows = np.isin(t, left_out) if left_out else np.ones(t.size, bool)
            each = [((how, ""), value) for how, value in by_mean(data, x[rows], t[rows], rng)]
            each += [((law, loss), value) for law, loss, value in predictions(key, data, pair, x[rows])]
            for way, value in each:
                found.setdefault(way, np.zeros((t.size, value.shape[1]), np.float32))[rows] = value
        for (coupling, loss), predicted in found.items():
            figures = judged(predicted, cut, base, axes, np.unique(t))
            out.append({"data": name, "treatments": where, "seed": seed, "coupling": coupling, "loss": loss, **figures})
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=NAMES, default=[name for name in NAMES if name in known_here()])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fresh", action="store_true", help="seeds that there are, too")
    args = parser.parse_args()
    programs = tempfile.TemporaryDirectory()  # seeds share their programs, which are freed after each
    jax.config.update("jax_compilation_cache_dir", programs.name)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    for name in args.data:
        for seed in range(args.seeds):  # written after each, so that a run cut short is not lost
            record = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"sets": {}}
            found = record["sets"].get(name, {"seconds": {}, "rows": []})
            if str(seed) in found["seconds"] and not args.fresh:
                continue
            start = time.process_time()
            rows = [row for row in found["rows"] if row["seed"] != seed] + measure(name, seed)
            jax.clear_caches()
            seconds = found["seconds"] | {str(seed): round(time.process_time() - start)}
            record["sets"][name] = {"seconds": seconds, "environment": environment(), "rows": rows}
            RESULTS.parent.mkdir(exist_ok=True)
            write(RESULTS, json.dumps(record, indent=1) + "\n")
            report()
            print(f"{name}, seed {seed}: {seconds[str(seed)]} s of processor time", flush=True)


if __name__ == "__main__":
    main()
