"""Other people's methods, each installed in an environment of its own and run as a process with a limit of time."""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks.tables import HERE, write

SCRIPTS = HERE / "peer_scripts"
ENVIRONMENTS = HERE.parent / ".peers"
INSTALL_LIMIT = 480  # seconds
CORE_LIMIT, RUN_LIMIT = 180, 480  # of one core's seconds a run, which others' load leaves as they are; and of all
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
THREADS |= {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
TORCH = "torch==2.13.0"
TOLD = {"numpy", "scipy", "scikit-learn", "anndata", "scanpy", "torch", "jax", "ott-jax", "pot", "umap-learn"}


@dataclasses.dataclass(frozen=True)
class Peer:
    """A package, what it needs, and the variants of it that its script knows.

    `alone` are installed without what they ask for: that is in `packages`, as far as it is used. `left_out` says why
    nothing is installed.
    """

    name: str
    paper: str
    licence: str
    script: pathlib.Path | None = None
    packages: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    left_out: str = ""


PEERS = (
    Peer(
        "moscot",
        "Klein et al. (2025), Nature 638; the problem is SCOT's: Demetci et al. (2022), J. Comput. Biol. 29",
        "BSD-3-Clause",
        SCRIPTS / "run_moscot.py",
        packages=("moscot==0.5.2",),
        variants=(
            "GW by treatment",
            "fused GW, labels as joint term",
            "fused GW by treatment, our scores as joint term",
        ),
    ),
    Peer(
        "scglue",
        "Cao and Gao (2022), Nat. Biotechnol. 40",
        "MIT",
        SCRIPTS / "run_scglue.py",
        packages=("scglue==0.4.1", "scipy<1.14", TORCH),  # it asks sparse arrays for what later versions lack
        variants=("labels and guidance",),
    ),
    Peer(
        "maxfuse",
        "Chen et al. (2024), Nat. Biotechnol. 42",
        "Stanford academic licence",
        left_out="not installed: its licence binds whoever receives it to internal, academic, non-commercial use, and "
        "claims programs made for it. Whoever may accept that can add a script.",
    ),
    Peer(
        "uniport",
        "Cao et al. (2022), Nat. Commun. 13",
        "MIT",
        SCRIPTS / "run_uniport.py",
        packages=(
            "uniport==1.3",
            "numpy==1.26.4",
            "scipy<1.14",
            "pandas<3",
            "anndata==0.10.8",
            "scanpy==1.10.4",
            TORCH,
        ),
        variants=("diagonal, labels as prior", "horizontal, our scores as common features, labels as prior"),
    ),
    Peer(
        "unioncom",
        "Cao et al. (2020), Bioinformatics 36",
        "MIT",
        SCRIPTS / "run_unioncom.py",
        packages=(
            "unioncom==0.4.0",
            "numpy==1.23.5",
            "scikit-learn<1.6",
            "umap-learn<0.5.8",
            "matplotlib==3.9.4",
            TORCH,
        ),
        variants=("by treatment",),
    ),
    Peer(
        "pamona",
        "Cao et al. (2022), Bioinformatics 38",
        "MIT",
        SCRIPTS / "run_pamona.py",
        packages=(
            "pamona==0.1.0",
            "numpy==1.26.4",
            "scipy==1.10.1",
            "POT==0.9.3",
            "scikit-learn<1.6",
            "umap-learn<0.5.8",
            "matplotlib==3.9.4",
            TORCH,
        ),
        variants=("by treatment", "labels as disagreement"),
    ),
    Peer(
        "scconfluence",
        "Samaran et al. (2024), Nat. Commun. 15",
        "GPL-3.0-only",
        SCRIPTS / "run_scconfluence.py",
        packages=(
            "numpy==1.26.4",
            "scipy==1.10.1",
            "POT==0.9.3",
            "geomloss==0.2.6",
            "anndata==0.10.8",
            "mudata==0.2.4",
            "pytorch-lightning==2.5.2",
            "tensorboard",
            TORCH,
        ),
        alone=("scconfluence==0.1.1",),
        variants=("labels as costs", "our scores as costs"),
    ),
)


@dataclasses.dataclass(frozen=True)
class Run:
    """How a process ended: its error's last line ("" if none), its seconds, a core's, the most memory held in GiB."""

    error: str
    seconds: float
    core: float
    memory: float


def limited(command, limit, folder, core=None):
    """Runs a command in a folder, and ends it and what it started when its time is over, or that of one core."""
    log = pathlib.Path(folder) / "log.txt"
    hidden = {"PYTHONPATH", "PYTHONHOME", "XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= THREADS | {"JAX_PLATFORMS": "cpu", "MPLBACKEND": "agg"}
    start = time.monotonic()
    with open(log, "wb") as out:
        child = subprocess.Popen(
            [str(part) for part in command], cwd=folder, stdin=subprocess.DEVNULL, stdout=out,
            stderr=subprocess.STDOUT, env=environment,
            start_new_session=True,
        )  # fmt: skip
        if core is not None:
            resource.prlimit(child.pid, resource.RLIMIT_CPU, (math.ceil(core), math.ceil(core)))
        late, done, memory = False, 0, 0.0
        while not done:
            memory = max(memory, _held(child.pid))
            done, status, usage = os.wait4(child.pid, os.WNOHANG)
            if not done and not late and time.monotonic() - start > limit:
                late = True
                os.killpg(child.pid, signal.SIGKILL)
            time.sleep(0 if done else 0.05)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # what it started and left behind
    child.returncode, used = os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
    if late:
        error = f"over its limit of {limit:g} s"
    elif core is not None and child.returncode in (-signal.SIGKILL, -signal.SIGXCPU) and used > 0.8 * core:
        error = f"over its limit of {core:g} s of one core"
    else:
        error = _last(log, child.returncode) if child.returncode else ""
    return Run(error, time.monotonic() - start, used, memory)


def _held(pid):
    """The most memory that a process has held so far, in GiB: its own, as what `wait4` tells starts from ours."""
    try:
        told = pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    found = re.search(r"^VmHWM:\s+(\d+) kB", told, re.MULTILINE)
    return int(found[1]) / 2**20 if found else 0.0


def _last(log, code):
    """The last line of a log, without addresses and folders; or the code, where there is no line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    text = lines[-1] if lines else f"ended with code {code}"
    return re.sub(r"\w+://\S+|(?<![\w.])/(?:[\w.+-]+/)+", "", text)[:300]


def install(peer):
    """The environment of a peer as its record: Python, versions, seconds, error; made anew where packages changed."""
    folder, asked = ENVIRONMENTS / peer.name, [*peer.packages, *peer.alone]
    record = folder / "installed.json"
    if record.exists() and json.loads(record.read_text())["asked"] == asked:
        return json.loads(record.read_text())
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    python, start, error = python_of(peer), time.monotonic(), ""
    pip = [python, "-m", "pip", "install", "--no-input", "--quiet"]
    steps = [[sys.executable, "-m", "venv", folder]]
    steps += [[*pip, *peer.packages]] if peer.packages else []
    steps += [[*pip, "--no-deps", *peer.alone]] if peer.alone else []
    for step in steps:
        if not error:
            error = limited(step, INSTALL_LIMIT - (time.monotonic() - start), folder).error
    told = {
        "asked": asked,
        "python": ".".join(map(str, sys.version_info[:3])),
        "versions": {} if error else _versions(python),
        "seconds": round(time.monotonic() - start),
        "error": error,
    }
    write(record, json.dumps(told, indent=1) + "\n")
    return told


def python_of(peer):
    return ENVIRONMENTS / peer.name / "bin" / "python"


def _versions(python):
    """The versions of the packages of an environment that decide what it finds."""
    told = subprocess.run([python, "-m", "pip", "list", "--format=json"], capture_output=True, check=True, text=True)
    found = {package["name"].lower(): package["version"] for package in json.loads(told.stdout)}
    return {name: version for name, version in found.items() if name in TOLD | {peer.name for peer in PEERS}}


def ask(python, script, variant, seed, problem, limit=RUN_LIMIT, core=CORE_LIMIT):
    """What a script answers to a problem, arrays by name, and how its process ended; empty where it failed."""
    with tempfile.TemporaryDirectory(prefix="peer_") as folder:
        source, target = (pathlib.Path(folder) / name for name in ("problem.npz", "answer.npz"))
        np.savez(source, **problem)
        run = limited([python, script, variant, seed, source, target], limit, folder, core)
        if run.error or not target.exists():
            return {}, run if run.error else dataclasses.replace(run, error="wrote no answer")
        with np.load(target) as file:
            return {name: file[name] for name in file.files}, run
