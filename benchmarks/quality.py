"""What each lever does to alignments of real data: `python -m benchmarks.quality [--data Sachs ...] [--seeds 3]`.

Writes `results/quality.json`, `QUALITY.md` and a picture for each data set. Recipes are rows: the paper's, version
0.4.0's default, today's, and today's without one of its parts. No run chooses with the truth. Trained scores are
kept in `.quality/` (not committed), so that changing a matcher does not train again; `--fresh` forgets them.
"""

import argparse
import concurrent.futures
import fcntl
import functools
import itertools
import json
import os
import subprocess
import sys
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np

import psa_jax as psa
from benchmarks.alignments import published
from benchmarks.cuts import CUTS, as_jax, known_here
from benchmarks.problems import Problem
from benchmarks.quality_report import report
from benchmarks.tables import HERE, environment, write
from psa_jax.judge.members import members_that_count
from psa_jax.judge.projection import fit_projection
from psa_jax.judge.refinement import refine
from psa_jax.judge.tune import SINGLE
from psa_jax.match.features import with_features
from psa_jax.propensity.training import ADAMW

KEPT = HERE.parent / ".quality"
RAW = ("Sachs", "BMMC")
SLOW = ("BMMC", "balls", "digits", "screen")  # which begin
EPS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
RESULTS = HERE / "results" / "quality.json"
BEFORE = psa.Training(optimizer=ADAMW)  # version 0.4.0: a constant rate, as many steps as its defaults made


def choice(name, seed, cut):
    """What `psa.tune` chooses from the training samples, and the seconds it took; kept as scores are."""
    path = KEPT / f"{_stem(name)}-tune-{seed}.json"
    if not path.exists():
        start = time.perf_counter()
        found = psa.tune(jax.random.key(4000 + seed), cut.train)
        told = {
            "chosen": found.chosen,
            "alpha": 0.0 if found.matcher is psa.sinkhorn else found.matcher.keywords["alpha"],
            "agreement": {row["smoothing"]: row["agreement"] for row in found.table},
            "seconds": round(time.perf_counter() - start, 1),
        }
        KEPT.mkdir(exist_ok=True)
        path.write_text(json.dumps(told))
    return json.loads(path.read_text())


def _train(cut, learner, seed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", psa.AlignmentWarning)
        out = psa.align(
            jax.random.key(1000 + seed), cut.train, query=cut.query, valid=cut.valid, a=learner, b=learner,
            matcher=psa.class_mean,
        )  # fmt: skip
    return out.member_scores_a, out.member_scores_b


def _model(cut):
    """A small network for small images, the same in every row; None is the recipe's own."""
    return psa.conv((16, 32, 64), cut.train.num_treatments) if cut.images else None


def _paper(cut, seed):
    u, v = published(jax.random.key(1000 + seed), Problem("", cut.train, None, cut.query, None, _model(cut)))
    return u[None], v[None]


def _before(cut):
    number = cut.train.num_treatments
    return psa.Learner(
        _model(cut) or psa.mlp((256, 256), number), psa.smoothing, BEFORE, members=1, transform=psa.centre
    )


FAMILIES = {
    "paper": None,
    "before": _before,
    "today": lambda cut: psa.Learner(_model(cut), transform=psa.centre),
    "rough": lambda cut: psa.Learner(_model(cut), None, transform=psa.centre, members=2),
}
FAMILIES |= {
    f"tuned, {name}": functools.partial(lambda cut, one: psa.Learner(augment=one, transform=psa.centre), one=one)
    for name, one in SINGLE.items()
}


def scores(name, family, seed, cut):
    """Members' scores of both modalities, centred, and the seconds of their training; kept ones where there are."""
    if family == "tuned":
        chosen = choice(name, seed, cut)["chosen"]
        family = "today" if chosen == "as given" else f"tuned, {chosen}"
    path = KEPT / f"{_stem(name)}-{_stem(family)}-{seed}.npz"
    if not path.exists():
        start = time.perf_counter()
        make = FAMILIES[family]
        u, v = _paper(cut, seed) if make is None else _train(cut, make(cut), seed)
        u, v = jax.block_until_ready((u, v))
        KEPT.mkdir(exist_ok=True)
        np.savez(path, u=u, v=v, seconds=time.perf_counter() - start)
    with np.load(path) as file:
        return jnp.asarray(file["u"]), jnp.asarray(file["v"]), float(file["seconds"])


def _stem(name):
    return name.replace(" ", "_").replace(",", "").replace(".", "")


def tempered(u, v):
    """Mean scores in the embedding that `align` takes by default."""
    u, v = u.mean(0), v.mean(0)
    transform = psa.tempered().settled(u, v)
    return transform(u), transform(v)


def counted(seed, u, v, groups):
    """The members that count for `align`, which takes three smoothings in turn."""
    found = members_that_count(jax.random.key(5000 + seed), u, v, (3, 3), groups, settle=True)
    return (x if one is None else x[np.flatnonzero(one)] for x, one in zip((u, v), found, strict=True))


def plain(u, v):
    return u.mean(0), v.mean(0)


# A row: its name, the family of its scores, the members that it takes, what makes scores of them, and refining.
RECIPES = (
    ("the paper's", "paper", slice(None), plain, False),
    ("0.4.0", "before", slice(None), plain, False),
    ("today", "today", slice(None), tempered, True),
    ("tuned", "tuned", slice(None), tempered, True),
    ("not refined", "today", slice(None), tempered, False),
    ("one member", "today", slice(1), tempered, True),
    ("three members", "today", slice(3), tempered, True),
    ("noise 0.3 or shifts 0.05 alone", "today", slice(0, None, 3), tempered, True),
    ("noise 0.7 or shifts 0.08 alone", "today", slice(1, None, 3), tempered, True),
    ("noise 1.2 or shifts 0.12 alone", "today", slice(2, None, 3), tempered, True),
    ("no smoothing", "rough", slice(None), tempered, True),
    ("logits, not tempered", "today", slice(None), plain, True),
)


@functools.partial(jax.jit, static_argnames=("absolute", "alpha"))
def sweep(u, v, groups, y, pair, t, eps, absolute=False, alpha=0.0):
    """Lift, FOSCTTM and error over the class mean for each eps `[E, 3]`; of pairs of scores and features with alpha."""
    true, truth = y[pair], psa.Truth(pair)
    uniform = psa.blockwise(psa.class_mean)(*(jax.tree.leaves(side)[0] for side in (u, v)), groups)
    level = jnp.sum((uniform.apply(y) - true) ** 2)
    matcher = functools.partial(psa.fused_gromov_wasserstein, alpha=alpha) if alpha else psa.sinkhorn

    def at(number):
        strength = number if absolute else psa.relative(number)
        coupling = psa.blockwise(jax.tree_util.Partial(matcher, eps=strength))(u, v, groups)
        projected = coupling.apply(y)
        lift = jnp.mean(psa.trace(coupling, truth) * groups.sizes_b[t])
        rank = jnp.nanmean(psa.foscttm(projected, true, t=t))
        return jnp.stack([lift, rank, jnp.sum((projected - true) ** 2) / level])

    return jax.lax.map(at, eps)


def at_error(curve, level):
    """The lift where the error passes a level, interpolated over eps; NaN where it is never below it."""
    lift, error = curve[:, 0], curve[:, 2]
    for i in np.flatnonzero((error[:-1] >= level) & (error[1:] < level)):
        share = (error[i] - level) / (error[i] - error[i + 1])
        return float(lift[i] + share * (lift[i + 1] - lift[i]))
    return float(lift[0]) if error[0] < level else float("nan")


def keep_raw(name, sides, groups, found, y, pair, t):
    """What `python -m benchmarks.recomputed` computes figures of."""
    coupling = psa.blockwise(functools.partial(psa.sinkhorn, eps=psa.relative(0.1)))(*sides, groups)
    told = {"projected": coupling.apply(y), "averaged": found.law.apply(y), "true": y[pair], "t": t}
    np.savez_compressed(HERE / "results" / f"raw_{_stem(name)}.npz", data=name, **told)


def error_of(law, y, true, groups, shapes):
    uniform = psa.blockwise(psa.class_mean)(*shapes, groups)
    blind = uniform.apply(y)
    return float(jnp.sum((law.apply(y) - true) ** 2) / jnp.sum((blind - true) ** 2))


def measure(name, seed):
    """The rows of one data set and seed."""
    cut = CUTS[name](seed)
    data = cut.aligned
    pair, y_a, y_b = as_jax(cut)
    t, features = jnp.asarray(data.a.t), (jnp.asarray(data.a.x), jnp.asarray(data.b.x))
    groups = psa.group(data.a.t, data.b.t, data.num_treatments)
    back = jnp.zeros_like(pair).at[pair].set(jnp.arange(pair.size, dtype=pair.dtype))
    rows, levels = [], {}
    for recipe, family, members, embed, again in RECIPES:
        if family == "tuned" and cut.images:
            continue  # sixty-six networks on images: not within the time of this page
        u, v, seconds = scores(name, family, seed, cut)
        if members == slice(None) and family == "today":
            u, v = counted(seed, u, v, groups)
        u, v = embed(u[members], v[members])
        start = time.perf_counter()
        refined = refine(jax.random.key(3000 + seed), u, v, *features, groups) if again else None
        found = fit_projection(jax.random.key(2000 + seed), u, v, groups, refined=refined, features=features)
        spent = time.perf_counter() - start
        u, v = (u, v) if refined is None else (refined.u, refined.v)
        chosen = choice(name, seed, cut) if family == "tuned" else None
        alpha = chosen["alpha"] if chosen else 0.0
        sides = with_features(u, v, *features, groups) if alpha else (u, v)
        curve = np.asarray(sweep(*sides, groups, y_b, pair, t, jnp.asarray(EPS, jnp.float32), alpha=alpha))
        if recipe == "the paper's":
            levels = np.asarray(sweep(u, v, groups, y_b, pair, t, jnp.asarray([0.05], jnp.float32), absolute=True))[0]
        if recipe == "today" and seed == 0 and name in RAW:
            keep_raw(name, sides, groups, found, y_b, pair, t)
        matched = np.isfinite(np.asarray(found.evidence.z))
        default = curve[EPS.index(0.1)]
        rows.append(
            {
                "data": name,
                "seed": seed,
                "recipe": recipe,
                "lift at error 1": at_error(curve, 1.0),
                "lift at the paper's error": at_error(curve, float(levels[2])),
                "lift": float(default[0]),
                "FOSCTTM": float(default[1]),
                "least FOSCTTM": float(curve[:, 1].min()),
                "coupling: error": float(default[2]),
                "project: error": error_of(found.law, y_b, y_b[pair], groups, (u, v)),
                "project, b to a: error": error_of(found.T.law, y_a, y_a[back], groups.T, (v, u)),
                "evidence": float(np.mean(np.asarray(found.evidence.found)[matched])) if matched.any() else 0.0,
                "eps to project": float(found.eps),
                "refined": refined is not None and refined.a is not None,
                "seconds": round(seconds, 1),
                "seconds of projection": round(spent, 1),
                "tune": chosen,
                "curve": curve.tolist(),
                "paper": levels.tolist() if recipe == "the paper's" else None,
            }
        )
    return rows


def keep(name, seed, seeds, rows):
    """Puts the rows of a data set and seed in the place of those there were; other processes wait meanwhile."""
    RESULTS.parent.mkdir(exist_ok=True)
    KEPT.mkdir(exist_ok=True)
    with open(KEPT / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
        kept = [row for row in kept if row["data"] != name or (row["seed"] != seed and row["seed"] < seeds)] + rows
        kept.sort(key=lambda row: ([*CUTS].index(row["data"]), row["seed"]))
        record = {"settings": {"seeds": seeds, "eps": EPS}, "environment": environment(), "rows": kept}
        write(RESULTS, json.dumps(record, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=CUTS, default=known_here())
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fresh", action="store_true", help="train again")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="processes at once, of a data set and seed each"
    )
    parser.add_argument("--here", type=int, metavar="SEED", help=argparse.SUPPRESS)  # in this process, for those above
    args = parser.parse_args()
    if args.here is not None:
        (name,), start = args.data, time.perf_counter()
        keep(name, args.here, args.seeds, measure(name, args.here))
        print(f"{name}, seed {args.here}: {time.perf_counter() - start:.0f} s", flush=True)
        return
    for name in args.data if args.fresh else ():
        for path in KEPT.glob(f"{_stem(name)}-*"):
            path.unlink()
    # Seeds have the same shapes: the first compiles for all. No process could hold the programs of three.
    shared = {"JAX_COMPILATION_CACHE_DIR": str(KEPT / "programs"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
    command = [sys.executable, "-m", "benchmarks.quality", "--seeds", str(args.seeds)]
    names = sorted(args.data, key=lambda name: name not in SLOW)

    def one(task):
        seed, name = task
        here = ["--data", name, "--here", str(seed)]
        subprocess.run([*command, *here], check=True, cwd=HERE.parent, env=shared | os.environ)

    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(one, itertools.product(range(args.seeds), names)))
    report()


if __name__ == "__main__":
    main()
