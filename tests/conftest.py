"""Strict settings for every test: dtype and rank promotion are errors, and the host plays eight devices.

Nearly all the time of these tests is compiling. So the processes of one run share their programs, and these are made
quickly rather than made quick: LLVM does not optimise them, and where XLA has two ways to emit code for the CPU it
takes the one that compiles three times as fast. Benchmarks, notebooks and users have XLA's defaults.
"""

import atexit
import gc
import importlib.metadata
import os
import pathlib
import shutil
import tempfile

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # once, before workers and child processes inherit it
    folder = tempfile.mkdtemp(prefix="psa_jax_programs_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    atexit.register(shutil.rmtree, folder, ignore_errors=True)

os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_cpu_parallel_codegen_split_count=1 " + os.environ.get("XLA_FLAGS", "")
)
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):  # later ones have one way
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

import jax
import numpy as np
import pytest

gc.set_threshold(
    200_000, 20, 100
)  # tracing makes many objects that live on: looking at them again took a tenth of the time


@pytest.fixture(autouse=True)
def strict():
    """Strict promotion; doctests run under JAX's defaults, as users do."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Frees each module's compiled programs: thousands of them in one process exhaust the memory maps Linux allows."""
    yield
    jax.clear_caches()


@pytest.fixture
def x64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of shared real data; tests that need it are skipped where it does not exist."""
    default = pathlib.Path(__file__).parents[2] / "shared" / "data"
    folder = pathlib.Path(os.environ.get("PSA_JAX_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder} (set PSA_JAX_DATA)")
    return folder


@pytest.fixture(scope="session")
def golden(shared_data) -> dict[str, np.ndarray]:
    """Outputs of the paper's own functions on fixed inputs."""
    with np.load(shared_data / "reference_golden.npz") as file:
        return dict(file)
