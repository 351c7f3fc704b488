"""Speed, memory and error of the matchers beside ott-jax, POT and scikit-learn: `python -m benchmarks.matching`.

Everything runs in one process on the device JAX finds, on the same inputs (K realistic logits, Euclidean costs,
eps 0.05) and to the same L1 error of the marginals, 1e-3. `--large` runs, instead, the sizes that want an accelerator,
and writes `results/matching_large.json`. Compilation is reported apart; run times are medians, of one run for ott-jax,
POT and scikit-learn, which do some of the treatments only where that takes minutes, as the row says. Iterations
count those of the anneal, which are as dear. Peak memory is what the process held during the row, what earlier rows
left in it included; of an accelerator it is the most since the process began.
"""

import argparse
import contextlib
import functools
import json
import pathlib
import re
import sys
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np

import psa_jax as psa
from benchmarks.tables import HERE, save

EPS, TOL = 0.05, 1e-3
COMPARED = ((12, 200), (12, 600), (12, 1600))
ON_ACCELERATOR = jax.default_backend() != "cpu"


def logits(num, num_treatments, num_logits=12, seed=3):
    """Scores `[num, K]` of two modalities and treatment labels: a latent of four dimensions, and noise."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(4, num_logits)) * 1.6

    def one():
        return (rng.normal(size=(num, 4)) @ weights + 0.5 * rng.normal(size=(num, num_logits))).astype(np.float32)

    return one(), one(), np.arange(num) % num_treatments


def timed(call, repeats=5):
    """Result, seconds of the first call, and the median of later ones (0 for none)."""
    start = time.perf_counter()
    out = jax.block_until_ready(call())
    first = time.perf_counter() - start
    later = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        later.append(time.perf_counter() - start)
    return out, first, float(np.median(later)) if later else 0.0


def reset_peak():
    """Forgets the most memory this process held (Linux)."""
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")


def peak():
    """The most memory held since, in GiB: the device's where it tells, the process's else."""
    stats = jax.devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 2**30
    status = pathlib.Path("/proc/self/status")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text()).group(1)) / 2**20 if status.exists() else None


def costs_of(x, y):
    """Euclidean costs in float64."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    return np.sqrt(np.maximum((x * x).sum(1)[:, None] + (y * y).sum(1)[None] - 2 * x @ y.T, 0))


@functools.cache
def reference(n, num_logits):
    """The transport cost of the first treatment in float64, to a marginal error of 1e-6."""
    with jax.enable_x64(True):
        x, y = (jnp.asarray(scores[:n], jnp.float64) for scores in logits(n, 1, num_logits)[:2])
        w = jnp.full(n, 1 / n)
        plan = psa.sinkhorn(x, y, w, w, eps=EPS, tol=1e-6, newton=50, max_iters=3000)
        assert bool(plan.info.converged)
        return float((np.asarray(plan.dense()) * costs_of(np.asarray(x), np.asarray(y))).sum())


def errors(plan, x, y):
    """L1 error of the marginals of one treatment's plan, and of its transport cost relative to the reference."""
    plan = np.asarray(plan, np.float64)
    n = len(plan)
    found = float((plan * costs_of(x, y)).sum())
    right = reference(n, x.shape[1])
    worst = max(float(np.abs(plan.sum(axis) - 1 / n).sum()) for axis in (0, 1))
    return worst, abs(found - right) / right


def row(method, num_treatments, n, num_logits, first, run, iters, error, cost_error, note=""):
    pairs = num_treatments * n * n
    return {
        "method": method,
        "treatments": num_treatments,
        "n": n,
        "K": num_logits,
        "compile (s)": max(first - run, 0.0) if run else None,
        "run (s)": run or first,
        "iterations": iters or None,
        "ns per pair and iteration": (run or first) / pairs / iters * 1e9 if iters else None,
        "peak (GiB)": peak(),
        "marginal error": error,
        "cost error": cost_error,
        "note": note,
    }


def ours(num_treatments, n, num_logits=12, name="psa_jax", repeats=5, **settings):
    """Our matcher on all treatments in one call."""
    x, y, _ = logits(num_treatments * n, 1, num_logits)
    t = np.repeat(np.arange(num_treatments), n)
    if num_treatments > 1:
        blocks = [logits(n, 1, num_logits, seed=3 + k)[:2] for k in range(num_treatments)]
        x, y = (np.concatenate(side) for side in zip(*blocks, strict=True))
    u, v, groups = jnp.asarray(x), jnp.asarray(y), psa.group(t, t, num_treatments)
    match = psa.blockwise(functools.partial(psa.sinkhorn, eps=EPS, tol=TOL, **settings))
    reset_peak()
    found, first, run = timed(lambda: match(u, v, groups), repeats)
    info = found.info
    note = "" if bool(info.converged.all()) else f"{int((~info.converged).sum())} not converged"
    error = cost_error = None
    if n <= 2000:
        own = psa.blockwise(functools.partial(psa.sinkhorn, eps=EPS, tol=TOL, **settings))(
            u[:n], v[:n], psa.group(t[:n], t[:n], 1)
        )
        error, cost_error = errors(own.dense(), x[:n], y[:n])
        error = max(error, float(info.marginal_error.max()))
    else:
        error = float(info.marginal_error.max())
    iters = float((info.num_iters + info.details["anneal_steps"]).mean())
    return row(name, num_treatments, n, num_logits, first, run, iters, error, cost_error, note)


def ott_alone(num_treatments, n, momentum=1.0, some=3):
    """ott-jax in the log domain, one jitted call for each treatment."""
    from ott.geometry import costs, pointcloud
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import acceleration, sinkhorn

    @jax.jit
    def solve(x, y):
        geometry = pointcloud.PointCloud(x, y, cost_fn=costs.Euclidean(), epsilon=EPS)
        solver = sinkhorn.Sinkhorn(threshold=TOL, momentum=acceleration.Momentum(value=momentum))
        out = solver(linear_problem.LinearProblem(geometry))
        return out.f, out.g, out.errors

    blocks = [tuple(map(jnp.asarray, logits(n, 1, seed=3 + k)[:2])) for k in range(min(some, num_treatments))]
    reset_peak()
    _, first, _ = timed(lambda: solve(*blocks[0]), 0)
    found, run, _ = timed(lambda: [solve(*block) for block in blocks], 0)
    f, g, _ = found[0]
    x, y = (np.asarray(side) for side in blocks[0])
    plan = np.exp((np.asarray(f, np.float64)[:, None] + np.asarray(g, np.float64)[None] - costs_of(x, y)) / EPS)
    iters = float(np.mean([int((e != -1).sum()) * 10 for *_, e in found]))
    run *= num_treatments / len(blocks)
    note = f"{len(blocks)} treatments run, scaled up" if len(blocks) < num_treatments else ""
    name = "ott-jax as is" if momentum == 1 else f"ott-jax, momentum {momentum}"
    return row(name, num_treatments, n, 12, first + run, run, iters, *errors(plan, x, y), note)


def pot(num_treatments, n, some, backend):
    """POT's log-domain loop, one call for each treatment; its L2 tolerance is ours over the root of n."""
    import ot

    if backend == "torch":
        import torch

        convert = functools.partial(torch.as_tensor, device="cuda" if torch.cuda.is_available() else "cpu")
    else:
        convert = np.asarray
    blocks = [tuple(map(convert, logits(n, 1, seed=3 + k)[:2])) for k in range(min(some, num_treatments))]
    w = convert(np.full(n, 1 / n, np.float32))
    reset_peak()
    start, plans, iters = time.perf_counter(), [], []
    for x, y in blocks:
        costs = ot.dist(x, y, "euclidean")
        plan, log = ot.bregman.sinkhorn_log(
            w, w, costs, EPS, numItermax=5000, stopThr=TOL / n**0.5, log=True, warn=False
        )
        plans.append(plan)
        iters.append(log["niter"] + 1)
    run = (time.perf_counter() - start) * num_treatments / len(blocks)
    found = errors(*(np.asarray(part.cpu() if backend == "torch" else part) for part in (plans[0], *blocks[0])))
    note = f"{len(blocks)} treatments run, scaled up" if len(blocks) < num_treatments else ""
    return row(f"POT, {backend}", num_treatments, n, 12, run, 0, float(np.mean(iters)), *found, note)


def many(num_treatments=2000, low=20, high=200):
    """A screen: thousands of small treatments of unequal size in one call."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(low, high + 1, num_treatments)
    t = np.repeat(np.arange(num_treatments), sizes)
    x, y, _ = logits(t.size, 1)
    u, v, groups = jnp.asarray(x), jnp.asarray(y), psa.group(t, t, num_treatments)
    match = psa.blockwise(functools.partial(psa.sinkhorn, eps=EPS, tol=TOL))
    reset_peak()
    found, first, run = timed(lambda: match(u, v, groups), 3)
    done = int(found.info.converged.sum())
    note = f"{len(groups.buckets)} programs, waste {groups.waste:.2f}, {done} converged"
    n = int((sizes.astype(float) ** 2).mean() ** 0.5)
    iters = float((found.info.num_iters + found.info.details["anneal_steps"]).mean())
    error = float(found.info.marginal_error.max())
    return row(f"psa_jax, sizes {low} to {high}", num_treatments, n, 12, first, run, iters, error, None, note)


def shared_neighbours(n, k):
    """SNN and one projection through it, beside scikit-learn's graphs and scipy's sparse products."""
    from sklearn.neighbors import NearestNeighbors

    x, y, _ = logits(n, 1)
    z = np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32)

    def theirs():
        p, q = (s / np.linalg.norm(s, axis=1, keepdims=True) for s in (x, y))
        near_p, near_q = (NearestNeighbors(n_neighbors=k, n_jobs=-1).fit(s) for s in (p, q))
        shared = near_p.kneighbors_graph(p) @ near_p.kneighbors_graph(q).T
        shared = shared + near_q.kneighbors_graph(p) @ near_q.kneighbors_graph(q).T
        shared.data = shared.data / (4 * k - shared.data)
        return (shared @ z) / np.asarray(shared.sum(1))

    u, v, w, z_jax = jnp.asarray(x), jnp.asarray(y), jnp.full(n, 1 / n), jnp.asarray(z)
    match = jax.jit(functools.partial(psa.snn, k=k))
    reset_peak()
    found, first, run = timed(lambda: match(u, v, w, w).apply(z_jax), 3)
    mine = row(f"psa_jax SNN, k = {k}, with a projection", 1, n, 12, first, run, 0, None, None)
    reset_peak()
    expected, other, _ = timed(theirs, 0)
    differing = int((np.abs(np.asarray(found) - expected).max(1) > 1e-3).sum())
    mine["note"] = f"{other / run:.1f} x scikit-learn; {differing} of {n} rows differ (ties at rank k in float32)"
    return mine, row(f"scikit-learn SNN, k = {k}, with a projection", 1, n, 12, other, 0, 0, None, None)


def gradient(num_treatments, n):
    """Value and gradient, with respect to both sides' scores, of a loss through the coupling, beside the value."""
    blocks = [logits(n, 1, seed=3 + k)[:2] for k in range(num_treatments)]
    u, v = (jnp.asarray(np.concatenate(side)) for side in zip(*blocks, strict=True))
    t = np.repeat(np.arange(num_treatments), n)
    groups, y = psa.group(t, t, num_treatments), jax.random.normal(jax.random.key(0), (t.size, 4))
    match = psa.blockwise(functools.partial(psa.sinkhorn, eps=EPS, tol=TOL))

    def loss(u, v):
        return (match(u, v, groups).apply(y) ** 2).sum()

    forward, both = jax.jit(loss), jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    *_, alone = timed(lambda: forward(u, v), 3)
    reset_peak()
    _, first, run = timed(lambda: both(u, v), 3)
    note = f"backward is {(run - alone) / alone:.1f} x forward"
    return row("psa_jax, loss and gradients", num_treatments, n, 12, first, run, 0, None, None, note)


def other_matchers():
    """Low rank and Gromov-Wasserstein, which have no counterpart here to be compared with."""
    for name, n, matcher in (
        ("low rank 16", 20_000, functools.partial(psa.low_rank_sinkhorn, rank=16)),
        ("Gromov-Wasserstein", 600, psa.gromov_wasserstein),
        ("Newton to 1e-5", 600, functools.partial(psa.sinkhorn, eps=EPS, tol=1e-5, max_iters=100, newton=20)),
    ):
        u, v = (jnp.asarray(side) for side in logits(n, 1)[:2])
        w, match = jnp.full(n, 1 / n), jax.jit(matcher)
        reset_peak()
        found, first, run = timed(lambda match=match, u=u, v=v, w=w: match(u, v, w, w), 1)
        info = found.info
        note = f"converged: {bool(info.converged)}; steps"
        iters, error = int(info.num_iters), float(info.marginal_error)
        yield row(f"psa_jax, {name}", 1, n, 12, first, run, iters, error, None, note + f" {iters}")


def limits():
    """Copy bandwidth in GB/s and float32 matrix product in TFLOP/s, as this process gets them."""
    size, side = (2**28, 8192) if ON_ACCELERATOR else (2**25, 2048)
    x, m = jnp.ones(size), jnp.ones((side, side))
    copy = jax.jit(lambda x: x + 1)
    product = jax.jit(lambda m: jnp.matmul(m, m, precision="highest"))
    *_, copied = timed(lambda: copy(x))
    *_, multiplied = timed(lambda: product(m))
    return 8 * size / copied / 1e9, 2 * side**3 / multiplied / 1e12


def reached(rows, copy, product):
    """The share of copy bandwidth (stored) or arithmetic peak (tiles) reached, anneal and checks included.

    Stored kernels are read twice an iteration, 8 bytes a pair; above 1 they stay in the cache. Tiles take about
    `2 K + 12` operations a pair.
    """
    for found in rows:
        per_pair = found["ns per pair and iteration"]
        iterates = found["method"] == "psa_jax" or found["method"].startswith(("psa_jax, tiles", "psa_jax, stored"))
        if not per_pair or not iterates:
            continue
        if "tiles" in found["method"]:
            found["share of peak"] = (2 * found["K"] + 12) / per_pair / 1e3 / product
        else:
            found["share of peak"] = 8 / per_pair / copy
    for found in rows:
        found.setdefault("share of peak", None)


def compare(rows):
    """Notes beside our rows how many times faster they are than the others on the same problem."""
    for mine in rows:
        if mine["method"] not in ("psa_jax", "psa_jax, tiles"):
            continue
        same = [r for r in rows if all(r[name] == mine[name] for name in ("treatments", "n", "K"))]
        others = [r for r in same if r["method"].startswith(("ott", "POT"))]
        ratios = [f"{r['run (s)'] / mine['run (s)']:.0f} x {r['method']}" for r in others]
        mine["note"] = "; ".join([*filter(None, [mine["note"]]), *ratios])


def exponents(rows):
    """How run time grows with the pairs evaluated, pairs times iterations, for each method compared."""
    for method in dict.fromkeys(found["method"] for found in rows):
        mine = [r for r in rows if r["method"] == method and r["treatments"] == 12 and r["K"] == 12 and r["iterations"]]
        if len(mine) > 1:
            evaluated = [r["treatments"] * r["n"] ** 2 * r["iterations"] for r in mine]
            slope = np.polyfit(np.log(evaluated), np.log([r["run (s)"] for r in mine]), 1)[0]
            print(f"{method}: run time grows as the pairs evaluated to the power {slope:.2f}")


def compared(pot_limit):
    """Rows of every method on 12 treatments, then ours alone against the number of treatments and of logits."""
    for num_treatments, n in COMPARED:
        yield ours(num_treatments, n)
        yield ours(num_treatments, n, name="psa_jax, tiles", repeats=1, memory=4 * n * n - 1)
        yield ott_alone(num_treatments, n)
        yield ott_alone(num_treatments, n, momentum=1.5)
        some = {200: 12, 600: 3, 1600: 1}[n]
        if n <= pot_limit:
            yield pot(num_treatments, n, some, "numpy")
            try:
                yield pot(num_treatments, n, some, "torch")
            except ImportError:
                print("POT with torch is left out: torch is not installed")
    for num_treatments in (48, 192):
        yield ours(num_treatments, 200)
    for num_logits in (32, 128):
        yield ours(12, 600, num_logits)
    yield many()
    yield ours(1, 10_000, name="psa_jax, tiles, 50 iterations", repeats=1, memory=2**28, max_iters=50)
    yield gradient(12, 128)
    yield gradient(12, 600)
    yield from other_matchers()
    for k in (1, 100):
        yield from shared_neighbours(10_000, k)


def large():
    """The sizes for an accelerator."""
    yield ours(12, 1667)
    yield ott_alone(12, 1667)
    yield ott_alone(12, 1667, momentum=1.5)
    with contextlib.suppress(ImportError):
        yield pot(12, 1667, 3, "torch")
    yield gradient(12, 1667)
    yield ours(1000, 200)
    for k in (1, 100):
        yield from shared_neighbours(10_000, k)
    yield ours(1000, 2000, repeats=1)
    settings = {"num_logits": 32, "repeats": 1, "max_iters": 100}
    yield ours(1, 100_000, name="psa_jax, tiles, 100 iterations", **settings)
    yield ours(1, 100_000, name="psa_jax, kernel stored, 100 iterations", memory=2**36, **settings)
    yield ours(1, 60_000, name="psa_jax, stored, 100 iterations", memory=2**38, **settings)


def plot(rows):
    """Run time against n, the number of treatments, and K, on logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
    wanted = [r for r in rows if "SNN" not in r["method"] and "sizes" not in r["method"]]
    colours = {method: f"C{place % 10}" for place, method in enumerate(dict.fromkeys(r["method"] for r in wanted))}
    panels = (
        ("n", "run (s)", "12 treatments, K 12", lambda r: r["treatments"] == 12 and r["K"] == 12),
        ("treatments", "run (s)", "200 samples each, K 12", lambda r: r["n"] == 200 and r["K"] == 12),
        ("K", "run (s)", "12 treatments of 600", lambda r: r["treatments"] == 12 and r["n"] == 600),
    )
    drawn = {}
    for ax, (x, y, title, keep) in zip(axes, panels, strict=True):
        ticks = set()
        for method, colour in colours.items():
            points = sorted((r[x], r[y]) for r in wanted if r["method"] == method and keep(r) and r[y])
            if points:
                drawn[method] = ax.loglog(*zip(*points, strict=True), "o-", color=colour, label=method)[0]
                ticks |= {point[0] for point in points}
        names = {"n": "samples in a treatment", "K": "logits (K)"}
        ax.set(xlabel=names.get(x, x), ylabel=y, title=title)
        ax.set_xticks(sorted(ticks), [str(tick) for tick in sorted(ticks)])
        ax.minorticks_off()
    figure.legend(handles=list(drawn.values()), loc="outside lower center", ncols=len(drawn), frameon=False)
    folder = HERE / "figures"
    folder.mkdir(exist_ok=True)
    figure.savefig(folder / "matching.png", dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="the sizes for an accelerator instead")
    parser.add_argument("--pot-limit", type=int, default=1600, help="largest treatment for POT (minutes at 1600)")
    parser.add_argument("--snn", action="store_true", help="shared neighbours alone, in the place of their rows")
    parser.add_argument("--draw", action="store_true", help="the picture anew, from the results there are")
    args = parser.parse_args()
    if args.draw:
        plot(json.loads((HERE / "results" / "matching.json").read_text())["rows"])
        return
    if args.snn:
        record = json.loads((HERE / "results" / "matching.json").read_text())
        rows = [found for found in record["rows"] if "SNN" not in found["method"]]
        rows += [found | {"share of peak": None} for k in (1, 100) for found in shared_neighbours(10_000, k)]
        save("matching", record["settings"], rows)
        return
    warnings.filterwarnings("ignore", module="ot")
    copy, product = limits()
    rows = []
    with contextlib.suppress(KeyboardInterrupt):  # which keeps the rows so far
        for found in large() if args.large else compared(args.pot_limit):
            print({key: value for key, value in found.items() if value not in (None, "")}, file=sys.stderr, flush=True)
            rows.append(found)
    reached(rows, copy, product)
    compare(rows)
    settings = {"eps": EPS, "tolerance": TOL, "copy (GB/s)": copy, "float32 product (TFLOP/s)": product}
    if args.large:
        save("matching_large", settings, rows)
        return
    exponents(rows)
    save("matching" if not ON_ACCELERATOR else "matching_gpu", settings, rows)
    plot(rows)


if __name__ == "__main__":
    main()
