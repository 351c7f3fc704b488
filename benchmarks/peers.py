"""Other people's methods beside ours, on the same splits: `python -m benchmarks.peers [--data Sachs ...] [--seeds 3]`.

Each peer is installed in an environment of its own (in `.peers/`, not committed) and run as a process, with its
documented settings; see `peer_runs.py` for versions and `peer_scripts/` for the calls. Measured are a peer's own
coupling, its embedding matched by us within treatments, and our scores in peers that take a joint space. True pairs
are used for the figures only. Writes `results/peers.json` after every run, and the tables of `PEERS.md`.
"""

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np

import psa_jax as psa
from benchmarks.cuts import CUTS, as_jax, known_here
from benchmarks.peer_problems import problem_of
from benchmarks.peer_runs import CORE_LIMIT, PEERS, RUN_LIMIT, ask, install, python_of
from benchmarks.peers_report import RESULTS, record, report
from benchmarks.quality import scores, tempered
from benchmarks.tables import environment, write
from psa_jax.judge.projection import fit_projection
from psa_jax.judge.refinement import refine
from psa_jax.judge.shapes import best_matcher, try_shapes
from psa_jax.match.features import with_features

DATA = ("Sachs", "SNARE-seq", "BMMC", "screen", "Bodenmiller", "Bodenmiller, stimulations")
TRIED = 8
OURS = {"our sinkhorn": psa.sinkhorn, "our snn": psa.snn}


def law_of(mass, t_a, t_b):
    """`P(j | i)` `[n, m]` of masses of pairs, within treatments, and which rows had none (they become uniform)."""
    same, mass = np.asarray(t_a)[:, None] == np.asarray(t_b)[None], np.asarray(mass, np.float64)
    mass = np.where(same & (mass > 0), mass, 0)  # what is not a number is no mass
    total = mass.sum(1, keepdims=True)
    uniform = same / np.maximum(same.sum(1, keepdims=True), 1)
    return np.where(total > 0, mass / np.where(total > 0, total, 1), uniform), total[:, 0] == 0


def figures(mass, cut):
    """Lift, FOSCTTM in b's features within treatments, and error over the class mean's, of masses of pairs `[n, m]`."""
    t_a, t_b = np.asarray(cut.aligned.a.t), np.asarray(cut.aligned.b.t)
    (law, empty), (blind, _) = law_of(mass, t_a, t_b), law_of(np.zeros_like(mass), t_a, t_b)
    y, true = np.asarray(cut.y_b, np.float64), np.asarray(cut.y_b, np.float64)[cut.pair]
    guess = law @ y
    rank = psa.foscttm(jnp.asarray(guess, jnp.float32), jnp.asarray(true, jnp.float32), t=jnp.asarray(t_a))
    size = np.bincount(t_b, minlength=cut.aligned.num_treatments)[t_a]
    return {
        "lift": float(np.mean(law[np.arange(len(law)), cut.pair] * size)),
        "FOSCTTM": float(np.nanmean(rank)),
        "error": float(((guess - true) ** 2).sum() / ((blind @ y - true) ** 2).sum()),
        "without mass": float(empty.mean()),
    }


def groups_of(cut):
    data = cut.aligned
    return psa.group(data.a.t, data.b.t, data.num_treatments)


def matched_by_us(z_a, z_b, groups):
    """Yields how an embedding of both modalities is matched within treatments, and the masses."""
    for told, matcher in OURS.items():
        coupling = psa.blockwise(matcher)(jnp.asarray(z_a, jnp.float32), jnp.asarray(z_b, jnp.float32), groups)
        yield told, np.asarray(coupling.dense())


def ours(name, seed, cut):
    """The rows that need no peer: knowing nothing, ours, and knowing all."""
    groups, pair = groups_of(cut), as_jax(cut)[0]
    u, v, seconds = scores(name, "today", seed, cut)
    u, v = tempered(u, v)
    features = jnp.asarray(cut.aligned.a.x), jnp.asarray(cut.aligned.b.x)
    refined = refine(jax.random.key(3000 + seed), u, v, *features, groups)
    found = fit_projection(jax.random.key(2000 + seed), u, v, groups, refined=refined, features=features)
    fused = with_features(refined.u, refined.v, *features, groups)
    n, m = groups.shape
    shapes = try_shapes(jax.random.key(4000 + seed), u, v, *features, groups, repeats=TRIED)
    told = "fused" if best_matcher(shapes) is not psa.sinkhorn else "coupling"  # by labels alone, as `psa.tune` does
    masses = {
        ("class mean", ""): np.zeros((n, m)),
        ("ours", "project"): np.asarray(found.law.dense()),
        ("ours", "coupling"): np.asarray(psa.blockwise(psa.sinkhorn)(refined.u, refined.v, groups).dense()),
        ("ours", "fused"): np.asarray(psa.blockwise(psa.fused_gromov_wasserstein)(*fused, groups).dense()),
        ("ours", "coupling, not refined"): np.asarray(psa.blockwise(psa.sinkhorn)(u, v, groups).dense()),
        ("true pairs", ""): np.eye(m)[np.asarray(pair)],
    }
    masses["ours", "coupling or fused, by labels"] = masses["ours", told]
    for (who, what), mass in masses.items():
        row = {"data": name, "seed": seed, "peer": who, "variant": what, "match": "", "error of run": ""}
        row |= figures(mass, cut) | {"seconds": round(seconds, 1) if who == "ours" else None, "memory": None}
        yield row | ({"without mass": 0.0} if who == "class mean" else {})


def rows_of(peer, variant, name, seed, cut, problem, core=CORE_LIMIT):
    """The rows of one run of a peer, or the one that says why there are none."""
    row = {"data": name, "seed": seed, "peer": peer.name, "variant": variant}
    told = install(peer)
    if told["error"]:
        return [row | {"match": "", "error of run": f"not installed: {told['error']}"}]
    limit = max(RUN_LIMIT, core)
    answer, run = ask(python_of(peer), peer.script, variant, seed, problem, limit, core)
    row |= {"error of run": run.error, "memory": round(run.memory, 2)}
    row |= {"seconds": round(run.seconds, 1), "seconds of one core": round(run.core, 1)}
    masses = [("its own", answer["plan"])] if "plan" in answer else []
    if "z_a" in answer:
        masses += matched_by_us(answer["z_a"], answer["z_b"], groups_of(cut))
    return [row | {"match": how} | figures(mass, cut) for how, mass in masses] or [row | {"match": ""}]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [name for name in DATA if name in known_here()]
    parser.add_argument("--data", nargs="+", choices=CUTS, default=known)
    parser.add_argument("--peers", nargs="+", choices=[peer.name for peer in PEERS], default=None)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=CORE_LIMIT, help="seconds of one core that a run may take")
    parser.add_argument("--fresh", action="store_true", help="run again what has results, or an error, already")
    args = parser.parse_args()
    chosen = [peer for peer in PEERS if args.peers is None or peer.name in args.peers]
    for name in args.data:
        for seed in range(args.seeds):
            known = set() if args.fresh else {run_of(row) for row in record()["rows"]}
            runs = [(peer, variant) for peer in chosen for variant in peer.variants]
            runs = [run for run in runs if (name, seed, run[0].name, run[1]) not in known]
            cut = CUTS[name](seed)
            if (name, seed, "ours", "project") not in known:
                keep(list(ours(name, seed, cut)), [])
            problem = problem_of(name, seed, cut) if runs else {}
            for peer, variant in runs:
                rows = rows_of(peer, variant, name, seed, cut, problem, args.limit)
                keep(rows, [peer])
                print(*rows, sep="\n", flush=True)
        jax.clear_caches()


def run_of(row):
    return row["data"], row["seed"], row["peer"], row["variant"]


def keep(rows, chosen):
    """Puts rows in the place of what was known of the same runs, and writes results and page."""
    found, new = record(), {run_of(row) for row in rows}
    found["rows"] = sorted([row for row in found["rows"] if run_of(row) not in new] + rows, key=run_of)
    found["environment"] = environment()
    found["environments"] |= {peer.name: install(peer) for peer in chosen}
    RESULTS.parent.mkdir(exist_ok=True)
    write(RESULTS, json.dumps(found, indent=1) + "\n")
    report()


if __name__ == "__main__":
    main()
