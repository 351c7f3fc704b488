"""What more devices would bring, computed: `python -m benchmarks.scale --plan`.

Seconds of matching with 100 sweeps of Sinkhorn's algorithm: pairs by what a pair and a sweep cost, plus what a sweep
sends by what a link carries. The first is measured here (`results/matching.json`) or, for cards that were not at hand,
their memory's rate by the bytes of a stored pair, which no program can beat; the second is counted in the program that
is compiled for eight simulated devices. Writes `results/scale_plan.json`, a table of it into `SCALE.md`, and a picture.
"""

import json
import os
import re
import subprocess
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from benchmarks.tables import HERE, environment, refill, write

SWEEPS, DEVICES, BYTES = 100, (1, 2, 4, 8, 16, 32, 64), 4
# Bytes a second: of the memory that holds the kernel, and of a link between devices (makers' figures).
CARDS = {"H100, stored, at its memory's rate": (3.35e12, 4.5e11)}
ETHERNET = 1.25e9  # between hosts of two cores
PROBLEMS = {
    "10,000,000 cells a side, 10,000 treatments of 1000": (10_000, 1000),
    "1,000,000 cells a side, 2000 treatments of 500": (2000, 500),
    "one treatment of 100,000 a side": (1, 100_000),
}
RESULTS = HERE / "results" / "scale_plan.json"


def sent():
    """Of eight simulated devices: all-reduces in one sweep of a giant treatment, their numbers over its columns; and
    the most work of a device over the mean, for treatments whose sizes follow a power law."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "benchmarks.scale_plan", "--counted"]
    found = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, cwd=HERE.parent)
    return json.loads(found.stdout.splitlines()[-1])


def counted():
    """What `sent` tells, in a process that has eight devices."""
    import jax
    import jax.numpy as jnp

    import psa_jax as psa
    from psa_jax.data.deal import deal
    from psa_jax.devices import all_devices, spread, spread_over

    n, m, mesh = 1024, 768, all_devices()
    u, v, a, b = jnp.zeros((n, 4)), jnp.zeros((m, 4)), jnp.full(n, 1 / n), jnp.full(m, 1 / m)

    def solve(u, v):
        u = jax.lax.with_sharding_constraint(u, jax.NamedSharding(mesh, jax.P("devices")))
        with spread_over(mesh):  # as `blockwise` does for a treatment that all devices solve together
            return psa.sinkhorn(u, v, spread(a), b, newton=0)

    loops, name = {}, ""
    for line in jax.jit(solve).lower(u, v).compile().as_text().splitlines():
        if line.endswith("{") and "(" in line:
            name = line.split("(")[0].strip()
        kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
        if found := re.search(rf"= (\S+) ({kinds})(?:-start)?\(", line):
            loops.setdefault(name, []).append((found[2], found[1].split("{")[0]))
    vectors = [each for name, each in loops.items() if not name.startswith("ENTRY") and _numbers(each, m)]
    least = min(vectors, key=lambda each: _numbers(each, m))  # a sweep; a round's beginning sends more

    sizes = np.maximum(2, (3000 / np.arange(1, 401) ** 0.8).astype(int))
    t = np.repeat(np.arange(sizes.size), sizes)
    plan = deal(psa.group(t, t, sizes.size), 8)
    work = np.zeros(8)
    for bucket in plan.buckets:
        own = np.asarray(plan.sizes_a[bucket.treatment], float) * np.asarray(plan.sizes_b[bucket.treatment], float)
        work += own.sum() / 8 if own.size % 8 else own.reshape(8, -1).sum(1)
    return {
        "kinds of collectives": ", ".join(sorted({kind for each in loops.values() for kind, _ in each})),
        "vectors in a sweep": _numbers(least, m),
        "numbers beside them": len(least) - _numbers(least, m),
        "work of a device, largest over mean, sizes of a power law": round(float(work.max() / work.mean()), 3),
    }


def _numbers(each, m):
    """How many of the collectives send a number for each column."""
    return sum(shape == f"f32[{m}]" for _, shape in each)


def rows():
    """Seconds for each problem, kind of device and number of devices."""
    measured = json.loads((HERE / "results" / "matching.json").read_text())["rows"]
    pair = {
        row["method"]: row["ns per pair and iteration"] * 1e-9
        for row in measured
        if (row["treatments"], row["n"], row["K"]) == (12, 1600, 12) and row["method"].startswith("psa_jax")
    }
    kinds = {
        "two cores, stored, measured rate": (pair["psa_jax"], ETHERNET),
        "two cores, tiled, measured rate": (pair["psa_jax, tiles"], ETHERNET),
        **{name: (2 * BYTES / memory, link) for name, (memory, link) in CARDS.items()},  # a sweep reads it twice
    }
    found, out = sent(), []
    for problem, (number, n) in PROBLEMS.items():
        for kind, (cost, link) in kinds.items():
            if "stored" in kind and number == 1 and "cores" in kind:
                continue  # 40 GB
            row = {"problem": problem, "device": kind}
            for devices in DEVICES:
                together = number % devices  # treatments that all devices solve together
                dealt = number - together
                work = SWEEPS * n * n * cost * (dealt / devices + together / devices)
                bytes_sent = together * SWEEPS * n * found["vectors in a sweep"] * BYTES
                row[f"{devices}"] = work + (2 * bytes_sent * (devices - 1) / devices / link if devices > 1 else 0)
            out.append(row)
    return found, out


def draw(table):
    """Seconds against devices, a panel for each problem."""
    figure, axes = plt.subplots(1, len(PROBLEMS), figsize=(11, 3.4), sharex=True, layout="constrained")
    colours = {kind: f"C{place}" for place, kind in enumerate(dict.fromkeys(row["device"] for row in table))}
    for axis, problem in zip(axes, PROBLEMS, strict=True):
        for row in table:
            if row["problem"] == problem:
                axis.loglog(DEVICES, [row[str(d)] for d in DEVICES], "o-", color=colours[row["device"]], base=10)
        axis.set(title=problem.replace(", ", "\n", 1) if len(problem) > 40 else problem, xlabel="devices")
        axis.set_xticks(DEVICES, [str(d) for d in DEVICES])
        axis.minorticks_off()
    axes[0].set_ylabel(f"seconds of {SWEEPS} sweeps, computed")
    handles = [plt.Line2D([], [], color=colour, marker="o", label=kind) for kind, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(HERE / "figures" / "scale_plan.png", dpi=110)
    plt.close(figure)


def main():
    """Writes the table and the picture."""
    found, table = rows()
    write(RESULTS, json.dumps({"environment": environment(), "counted": found, "rows": table}, indent=1) + "\n")
    draw(table)
    refill()
    print(found)


if __name__ == "__main__":
    print(json.dumps(counted())) if "--counted" in sys.argv else main()
