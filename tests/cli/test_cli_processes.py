"""`psa-jax align --mesh`, started by a launcher in two processes of two devices each."""

import json
import os
import subprocess
import sys

import anndata
import numpy as np
import pytest
from problems import free_port

from psa_jax.align.processes import ADDRESS, NUMBER, RANK

OPTIONS = ["align", "cells.h5ad", "--treatment", "drug", "--quick", "--epochs", "2", "--mesh", "--output", "out"]
PROGRAM = """
import importlib
importlib.import_module("psa_jax.align.processes").PATIENCE = 6  # psa_jax.align itself is the function
from psa_jax.cli.start import main
main()
"""
COMMAND = [sys.executable, "-c", PROGRAM, *OPTIONS]


def write_cells(path, seed=0):
    rng = np.random.default_rng(seed)
    drugs = np.repeat(["x", "y", "z"], 12)
    x = rng.normal(size=(36, 8)).astype(np.float32)
    cells = anndata.AnnData(x, obs={"drug": drugs}, var={"feature_types": ["rna"] * 5 + ["protein"] * 3})
    cells.write_h5ad(path / "cells.h5ad")


def start(folders, **more):
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=2")
    several = {ADDRESS: f"localhost:{free_port()}", NUMBER: "2"}
    return [
        subprocess.Popen(
            COMMAND,
            cwd=folder,
            env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", **several, RANK: str(rank), **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, folder in enumerate(folders)
    ]


def ended(running):
    try:
        return [process.communicate(timeout=400)[0] for process in running]
    finally:
        for process in running:
            process.kill()


@pytest.mark.slow
def test_two_processes_write_once(tmp_path):
    write_cells(tmp_path)
    running = start([tmp_path, tmp_path])
    told = ended(running)
    assert [process.returncode for process in running] == [0, 0], "\n".join(told)
    assert "written to out" in told[0]
    assert "rna" not in told[1]  # what is left are lines of JAX's own
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["settings"]["mesh"]
    assert {row["status"] for row in report["treatments"]} == {"matched"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.h5ad", "out"]


@pytest.mark.slow
def test_processes_with_other_data_say_so(tmp_path):
    folders = [tmp_path / "first", tmp_path / "second"]
    for seed, folder in enumerate(folders):
        folder.mkdir()
        write_cells(folder, seed)
    running = start(folders)
    told = ended(running)
    assert all(process.returncode for process in running)
    assert "processes: expected the same data in each, got another in [1] than in process 0" in told[0]
    assert not (folders[0] / "out").exists()


@pytest.mark.slow
def test_a_process_that_fails_ends_the_other(tmp_path):
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    write_cells(folders[0])
    running = start(folders)
    told = ended(running)
    assert "cells.h5ad" in told[1]
    assert running[1].returncode == 1
    assert running[0].returncode
    assert "task" in told[0]  # that the other one is gone
    assert [path.name for path in folders[0].iterdir() if not path.name.startswith(".")] == ["cells.h5ad"]


def test_an_address_without_numbers_is_refused(monkeypatch):
    from psa_jax.align.processes import join

    monkeypatch.setenv(ADDRESS, "localhost:1")
    monkeypatch.delenv(NUMBER, raising=False)
    with pytest.raises(ValueError, match=f"{ADDRESS}: expected numbers in {NUMBER} and {RANK}"):
        join()
