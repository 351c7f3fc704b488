"""Parity with the paper's own code and with POT, memory and speed of the core: `python -m benchmarks.core`.

Parity needs the folder of shared data (PSA_JAX_DATA, or `../shared/data`). Peak memory is that of a process of its own.
"""

import argparse
import functools
import pathlib
import re
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

import psa_jax as psa
from benchmarks.datasets import SHARED
from benchmarks.tables import save
from psa_jax.match.entropic import Gibbs

NUM = 20_000
TILES = 2**28  # bytes, which hold no kernel of so many samples
SOFT = 2.0  # a gradient of a sharp plan takes many more sweeps, and as much memory


def uniform(n, dtype=jnp.float32):
    return jnp.full(n, 1 / n, dtype)


def rows(plan):
    return np.asarray(plan) / np.asarray(plan).sum(1, keepdims=True)


def parity():
    """Largest differences from the golden outputs and from POT, in float64."""
    import ot

    with jax.enable_x64(True), np.load(SHARED / "reference_golden.npz") as golden:
        for g in range(3):
            u, v = jnp.asarray(golden[f"s1_{g}"]), jnp.asarray(golden[f"s2_{g}"])
            a, b = uniform(len(u), u.dtype), uniform(len(v), u.dtype)
            soft = psa.sinkhorn(u, v, a, b, eps=2.0, tol=1e-12, max_iters=20000).dense()
            hard = psa.sinkhorn(u, v, a, b, eps=0.05, tol=0.0, max_iters=1000, absorb=False).dense()
            yield f"sinkhorn, eps 2, golden group {g}", np.abs(rows(soft) - golden[f"eot_soft_{g}"]).max(), 1e-6
            yield f"sinkhorn, eps 0.05, 1000 iterations, group {g}", np.abs(rows(hard) - golden[f"eot_{g}"]).max(), 1e-4
            for k in (1, 3, 5):
                plan = psa.snn(u, v, a, b, k=k).dense()
                yield f"snn, k = {k}, golden group {g}", np.abs(rows(plan) - golden[f"snn_k{k}_{g}"]).max(), 1e-6
            n = min(len(u), len(v))
            value = psa.foscttm(u[:n], v[:n], convention="paper").mean()
            yield f"FOSCTTM as in the paper, group {g}", abs(float(value) - float(golden[f"foscttm_{g}"])), 1e-12
        rng = np.random.default_rng(0)
        for n, m in ((37, 61), (80, 23)):
            u, v = rng.normal(size=(n, 6)), rng.normal(size=(m, 6)) + 0.2
            costs = ot.dist(u, v, "euclidean")
            expected = ot.bregman.sinkhorn_log(
                np.full(n, 1 / n), np.full(m, 1 / m), costs, 0.1, numItermax=20000, stopThr=1e-13
            )
            weights = (uniform(k, jnp.float64) for k in (n, m))
            ours = psa.sinkhorn(jnp.asarray(u), jnp.asarray(v), *weights, eps=0.1, tol=1e-12, max_iters=20000).dense()
            yield f"sinkhorn against POT, {n} x {m}, eps 0.1", np.abs(np.asarray(ours) - expected).max(), 1e-5


def timed(call, repeats=5):
    """Seconds of the first call, and the median of later ones."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    first = time.perf_counter() - start
    later = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        later.append(time.perf_counter() - start)
    return first, float(np.median(later))


def peak():
    """The most memory this process held, in GiB (Linux; `ru_maxrss` would count the parent's)."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) / 2**20


def large(name):
    """Matches and projects one treatment of 20,000 x 20,000, and for tiles takes a gradient; prints seconds and GiB."""
    keys = jax.random.split(jax.random.key(0), 3)
    u, v, y = (jax.random.normal(key, (NUM, 12)) for key in keys)
    a = uniform(NUM)
    potentials = functools.partial(jnp.zeros, NUM)
    matchers = {
        "snn, k = 1": lambda: psa.snn(u, v, a, a, k=1),
        "snn, k = 5": lambda: psa.snn(u, v, a, a, k=5),
        "nearest, k = 5": lambda: psa.nearest(u, v, a, a, k=5),
        "sinkhorn's coupling": lambda: psa.Coupling(
            left=(u, potentials()), right=(v, potentials()), args=jnp.float32(0.5), kernel=Gibbs(psa.euclidean)
        ),
        "sinkhorn in tiles, 20 iterations": lambda: psa.sinkhorn(u, v, a, a, eps=SOFT, max_iters=20, memory=TILES),
        "independent": lambda: psa.independent(a, a),
    }
    jax.block_until_ready((u, v, y))
    before = peak()
    start = time.perf_counter()
    coupling = jax.block_until_ready(matchers[name]())
    middle = time.perf_counter()
    if name.startswith("sinkhorn in tiles"):
        assert bool(coupling.info.details["tiled"])
        loss = jax.grad(lambda u: (psa.sinkhorn(u, v, a, a, eps=SOFT, max_iters=20, memory=TILES).apply(y) ** 2).sum())
        jax.block_until_ready(jax.jit(loss)(u))
    jax.block_until_ready(coupling.apply(y))
    print(f"{middle - start:.2f} {time.perf_counter() - middle:.2f} {before:.3f} {peak():.3f}")


def memory():
    names = "snn, k = 1", "snn, k = 5", "nearest, k = 5", "sinkhorn's coupling", "sinkhorn in tiles, 20 iterations"
    for name in (*names, "independent"):
        command = [sys.executable, "-m", "benchmarks.core", "--large", name]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        match, apply, before, after = map(float, out.split())
        yield {
            "coupling of 20,000 x 20,000": name,
            "match (s, compilation included)": match,
            "apply, and for tiles a gradient (s, compilation included)": apply,
            "memory before (GiB)": before,
            "peak memory (GiB)": after,
        }


def speed():
    key = jax.random.key(0)
    for size in (32, 128):
        first, median = timed(lambda size=size: psa.datasets.balls(key, num_samples=1000, image_size=size)[0].a.x)
        yield {"what": f"balls, 1000 pairs of {size} x {size}", "first (s)": first, "median (s)": median}
    t = np.arange(12 * 200) % 12
    u, v = (jax.random.normal(k, (t.size, 12)) for k in jax.random.split(key))
    groups = psa.group(t, t, 12)
    for name, matcher in {"sinkhorn, relative eps 0.1": psa.sinkhorn, "snn, k = 1": psa.snn}.items():
        first, median = timed(lambda matcher=matcher: psa.blockwise(matcher)(u, v, groups).info.converged)
        yield {"what": f"{name}, 12 treatments of 200", "first (s)": first, "median (s)": median}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.large:
        large(args.large)
        return
    if SHARED.is_dir():
        found = [{"what": what, "difference": float(gap), "at most": bar} for what, gap, bar in parity()]
        save("parity", {}, found)
        failed = [row["what"] for row in found if not row["difference"] <= row["at most"]]
        if failed:
            raise SystemExit(f"parity is missed by: {failed}")
    save("memory", {"samples": NUM, "features": 12}, list(memory()))
    save("speed", {}, list(speed()))


if __name__ == "__main__":
    main()
