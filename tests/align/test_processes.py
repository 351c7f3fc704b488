"""Two processes of two devices each give what one process gives."""

import os
import subprocess
import sys

import numpy as np
import pytest
from problems import free_port

SCRIPT = """
import functools, os, sys
rank, port, out, kept = int(sys.argv[1]), *sys.argv[2:]
import jax
if rank >= 0:
    jax.distributed.initialize(f"localhost:{port}", 2, rank, initialization_timeout=60)
import numpy as np
from jax.sharding import AxisType
import psa_jax as psa

rng = np.random.default_rng(0)
t = np.repeat(np.arange(5, dtype=np.int32), [12, 11, 10, 9, 7])
x, y = (rng.normal(size=(t.size, 4)).astype(np.float32) for _ in range(2))
mesh = None if rank < 0 else jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))
coupling = psa.blockwise(psa.sinkhorn, mesh=mesh)(x, y, psa.group(t, t, 5))
if rank == 1:
    psa.source(y)  # so that the source has another number in each process
data = psa.Unpaired(psa.Modality(psa.source(x), t), psa.Modality(y, t), 5)
quick = psa.Learner(psa.linear(5), members=1, folds=3, training=psa.Training(epochs=2))
trained = []
for _ in range(2):
    stages = []
    tell = lambda step: stages.append(step.stage)
    alignment = psa.align(jax.random.key(0), data, a=quick, b=quick, mesh=mesh, resume=kept, progress=tell)
    trained.append("classifiers" in stages)
print(coupling, alignment)
told = {"projected": alignment.project(y), "scores": alignment.scores_a, "trained": np.array(trained)}
if rank >= 0:
    other = psa.Learner(psa.linear(5), members=1, folds=3, training=psa.Training(epochs=2 + rank))
    uneven = {
        "learner of modality b": {"b": other},
        "matcher": {"matcher": functools.partial(psa.sinkhorn, eps=0.1 * (1 + rank))},
    }
    for name, changes in uneven.items():
        try:
            psa.align(jax.random.key(0), data, **{"a": quick, "b": quick, "mesh": mesh, "resume": kept, **changes})
        except ValueError as error:
            assert f"expected the same {name} in each, got another in [1]" in str(error), error
        else:
            raise AssertionError(name)
np.savez(out, applied=coupling.apply(y), **told)
if rank >= 0:
    jax.distributed.shutdown()
"""


@pytest.mark.slow
def test_two_processes_give_the_same_coupling_and_alignment(tmp_path):
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=2")
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    port, running = free_port(), []
    for rank in (-1, 0, 1):
        command = [sys.executable, "-c", SCRIPT, str(rank), port, str(tmp_path / f"{rank}.npz")]
        command.append(str(tmp_path / ("one" if rank < 0 else "two")))  # where finished classifiers are kept
        running.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    try:
        told = [process.communicate(timeout=400)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0, 0], "\n".join(told)
    alone, first, second = (np.load(tmp_path / f"{rank}.npz") for rank in (-1, 0, 1))
    assert alone["trained"].tolist() == [True, False]
    for name in alone.files:
        np.testing.assert_array_equal(first[name], second[name])
        np.testing.assert_allclose(first[name], alone[name], atol=1e-3)
