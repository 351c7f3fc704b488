"""Matchers of one large treatment beside each other: `python -m benchmarks.giants --sizes 1000 10000 100000`.

Squared Euclidean costs. The transport cost of each plan is told over that of the exact assignment up to 4,000 samples,
and over that of Sinkhorn. Cost and error are of 2,000 rows and columns, drawn, where there are more. Seconds are of one
run, compilation apart; memory is what the compiled program allocates. Sinkhorn, whose time grows as the square, is left
out above `--most` samples. On an accelerator it writes `results/giants_gpu.json`.
"""

import argparse
import functools
import itertools
import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

import psa_jax as psa
from benchmarks.matching import ON_ACCELERATOR, logits
from benchmarks.tables import HERE, save
from psa_jax.devices import map_rows
from psa_jax.match.cost import pairwise

EXACT = 4000
WEIGHED = 2000
SHARP = functools.partial(psa.sinkhorn, cost=psa.squared_euclidean, eps=psa.relative(0.02), max_iters=300)
SINKHORN = {"sinkhorn, eps 0.02": SHARP, "sinkhorn in tiles, eps 0.02": functools.partial(SHARP, memory=2**12)}
METHODS = {
    **SINKHORN,
    "hierarchical": psa.hierarchical,
    "hierarchical, leaf 512": functools.partial(psa.hierarchical, leaf=512),
    "low_rank_sinkhorn, rank 32": psa.low_rank_sinkhorn,
    "low_rank_sinkhorn, rank 128": functools.partial(psa.low_rank_sinkhorn, rank=128),
}


def clusters(n, seed=0):
    """Two samples `[n, 3]` of the same six clusters, whose proportions differ by chance, a little apart."""
    rng = np.random.default_rng(seed)
    centres = 4 * rng.normal(size=(6, 3))
    u, v = (centres[rng.integers(0, 6, n)] + 0.5 * rng.normal(size=(n, 3)) for _ in range(2))
    return u.astype(np.float32), (v + 0.3).astype(np.float32)


DATA = {"6 clusters, 3 features": clusters, "12 logits of 4 latents": lambda n: logits(n, 1)[:2]}


@jax.jit
def weighed(coupling, u, v):
    """The transport cost of a plan, and the L1 error of its marginals, chunk by chunk; estimated of some samples."""

    def side(coupling, u, v):
        n, m = coupling.shape
        few = min(n, WEIGHED)

        def rows(chunk):
            own, i = chunk
            mass = jnp.exp(coupling.log_mass(i))
            return (mass * pairwise(psa.squared_euclidean, own, v)).sum(1), mass.sum(1)

        ids = jax.random.permutation(jax.random.key(0), n)[:few]
        costs, mass = map_rows(rows, (u[ids], ids), max(1, 2**22 // m))
        return costs.sum() / mass.sum(), jnp.abs(mass - 1 / n).sum() * n / few

    (cost, error), (_, other) = side(coupling, u, v), side(coupling.T, v, u)
    return cost, jnp.maximum(error, other)


def one(method, data, n):
    """The row of a method on `n` samples a side."""
    u, v = map(jnp.asarray, DATA[data](n))
    w = jnp.full(n, 1 / n)
    match = jax.jit(METHODS[method]).lower(u, v, w, w).compile()
    memory, start = match.memory_analysis(), time.perf_counter()
    coupling = jax.block_until_ready(match(u, v, w, w))
    seconds = time.perf_counter() - start
    cost, error = map(float, weighed(coupling, u, v))
    return {
        "data": data,
        "n": n,
        "method": method,
        "cost": cost,
        "over the exact one's": None,
        "over Sinkhorn's": None,  # both by `compared`
        "marginal error": error,
        "seconds": seconds,
        "memory (MiB)": (memory.temp_size_in_bytes + memory.output_size_in_bytes) / 2**20,
        "converged": bool(coupling.info.converged),
    }


@functools.cache
def exact(data, n):
    """The least cost of all bijections."""
    u, v = (x.astype(np.float64) for x in DATA[data](n))
    costs = (u * u).sum(1)[:, None] + (v * v).sum(1)[None] - 2 * u @ v.T
    return float(costs[linear_sum_assignment(costs)].mean())


def compared(rows):
    """The rows with their costs over the exact one's and over Sinkhorn's, where there are such."""
    sharp = {(row["data"], row["n"]): row["cost"] for row in rows if row["method"] == next(iter(SINKHORN))}
    best = {place: exact(*place) for place in {(row["data"], row["n"]) for row in rows} if place[1] <= EXACT}
    for row in rows:
        place = row["data"], row["n"]
        row["over the exact one's"] = row["cost"] / best[place] if place in best else None
        row["over Sinkhorn's"] = row["cost"] / sharp[place] if place in sharp else None
    order = [*DATA], [*METHODS]
    return sorted(rows, key=lambda row: (row["n"], order[0].index(row["data"]), order[1].index(row["method"])))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000], help="samples of a side")
    parser.add_argument("--most", type=int, default=20_000, help="samples up to which Sinkhorn is run")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS], metavar="METHOD")
    args = parser.parse_args()
    name = "giants_gpu" if ON_ACCELERATOR else "giants"
    path = HERE / "results" / f"{name}.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    for n, data, method in itertools.product(args.sizes, DATA, args.methods):
        if method in SINKHORN and n > args.most:
            continue
        found = one(method, data, n)
        print(found, file=sys.stderr, flush=True)
        same = (data, n, method)
        rows = [row for row in rows if (row["data"], row["n"], row["method"]) != same] + [found]
        save(name, {"sizes": sorted({row["n"] for row in rows})}, compared(rows))  # so that none is lost


if __name__ == "__main__":
    main()
