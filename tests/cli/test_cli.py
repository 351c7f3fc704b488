import json
import re
import subprocess
import sys

import numpy as np
import pytest

anndata = pytest.importorskip("anndata")
mudata = pytest.importorskip("mudata")
pd = pytest.importorskip("pandas")
pytest.importorskip("rich")
testing = pytest.importorskip("typer.testing")

import psa_jax as psa  # noqa: E402
from psa_jax.cli import jobs  # noqa: E402
from psa_jax.cli.app import app  # noqa: E402
from psa_jax.cli.output import write_report  # noqa: E402

pytestmark = [  # what pandas 3 says of anndata and mudata, and mudata 0.3 of 0.4
    pytest.mark.filterwarnings("ignore:The 'future.infer_string' option"),
    pytest.mark.filterwarnings("ignore:The inplace keyword"),
    pytest.mark.filterwarnings("ignore:From 0.4 .update:FutureWarning"),
]

TINY = ["--epochs", "1"]


def call(*arguments):
    return testing.CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "100"})


def strict(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


@pytest.fixture(autouse=True)
def _small_network(monkeypatch):
    monkeypatch.setattr(jobs, "BALLS_WIDTHS", (4,))
    monkeypatch.setattr(jobs, "BALLS_SIZE", 16)
    monkeypatch.setattr(jobs, "PICTURE_SIZE", 16)


@pytest.fixture(scope="module")
def h5ad(tmp_path_factory):
    """Forty cells: treatments x and y, and z with a single cell."""
    rng = np.random.default_rng(0)
    t = np.append(np.arange(39) % 2, 2)
    x = (rng.standard_normal((40, 5)) + t[:, None]).astype(np.float32)
    var = pd.DataFrame({"feature_types": ["GEX", "GEX", "GEX", "ADT", "ADT"]}, index=[f"f{i}" for i in range(5)])
    obs = pd.DataFrame({"drug": np.array(["x", "y", "z"])[t], "batch": "b"}, index=[f"cell{i}" for i in range(40)])
    path = tmp_path_factory.mktemp("data") / "cells.h5ad"
    anndata.AnnData(x, obs=obs, var=var).write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def h5mu(tmp_path_factory):
    """No cell is in both modalities; drug w is in b only."""
    rng = np.random.default_rng(0)
    sides = {}
    for name, drugs in (("rna", "xy"), ("atac", "xyw")):
        index = [f"{name}{i}" for i in range(30)]
        obs = pd.DataFrame({"drug": [drugs[i % len(drugs)] for i in range(30)]}, index=index)
        var = pd.DataFrame(index=[f"{name}_f{i}" for i in range(3)])
        sides[name] = anndata.AnnData(rng.standard_normal((30, 3)).astype(np.float32), obs=obs, var=var)
    path = tmp_path_factory.mktemp("data") / "cells.h5mu"
    mudata.MuData(sides).write(path)
    return path


@pytest.mark.slow
def test_demo(tmp_path):
    out = tmp_path / "out"
    result = call("demo", "--num-samples", 120, *TINY, "--output", out)
    assert result.exit_code == 0, result.output + result.stderr
    told = " ".join(result.stdout.split())
    for part in (
        "random match",
        "class mean",
        "PS+SNN",
        "PS+OT",
        "true pairs",
        "latent MSE",
        "times that of the class mean",
    ):
        assert part in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    pictures = {"matched_pairs.png", "latent_map.png", "trace_by_treatment.png", "calibration.png"}
    assert {path.name for path in out.iterdir()} == pictures | {"report.json", "coupling.npz"}
    report = strict(out / "report.json")
    assert report["settings"]["num_samples"] == 120
    assert report["metrics"]["true pairs"]["latent_mse"] == 0
    assert report["metrics"]["random match"]["latent_mse"] > report["metrics"]["class mean"]["latent_mse"]
    assert report["timings_s"]["compilation_included"] is True
    assert report["timings_s"]["classifiers"] > 0
    assert {"python", "jax", "flax", "optax", "ott-jax", "psa_jax", "numpy"} <= set(report["versions"])
    assert report["treatments"][0]["name"] == "x1 = 0.25"
    assert psa.io.load_coupling(out / "coupling.npz").shape == (60, 60)


@pytest.mark.slow
def test_the_smallest_demo(tmp_path):
    result = call("demo", "--num-samples", 24, *TINY, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.stderr  # some treatments have one sample: their mean is the truth


def test_align(h5ad, tmp_path):
    out = tmp_path / "out"
    result = call("align", h5ad, "--treatment", "drug", *TINY, "--output", out)
    assert result.exit_code == 0, result.output + result.stderr
    for part in ("40 cells are in both modalities", "matched, trivially", "PS+OT", "3 treatments: 2 matched"):
        assert part in result.stdout
    report = strict(out / "report.json")
    assert report["cells"] == {"a": 40, "b": 40, "known_pairs": 40}
    assert [entry["status"] for entry in report["treatments"]] == ["matched", "matched", "matched, trivially"]
    lines = (out / "cells.csv").read_text().splitlines()
    assert lines[0] == "cell_GEX,drug,status,match_ADT,probability"
    assert lines[-1] == 'cell39,z,"matched, trivially",cell39,1'


def test_an_output_folder_is_replaced_by_force_only(tmp_path, monkeypatch):
    def job(folder, show, *, seed, **settings):
        write_report(folder, {"seed": seed})
        assert not out.exists() or strict(out / "report.json")["seed"] < seed  # the old one stays until the end

    out = tmp_path / "out"
    monkeypatch.setattr(jobs, "balls", job)
    assert call("demo", "--output", out).exit_code == 0
    result = call("demo", "--output", out, "--seed", 1)
    assert result.exit_code == 1
    assert "--force" in result.stderr
    assert strict(out / "report.json")["seed"] == 0
    (out / "mark").touch()
    assert call("demo", "--output", out, "--seed", 1, "--force").exit_code == 0
    assert [path.name for path in out.iterdir()] == ["report.json"]
    assert strict(out / "report.json")["seed"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_align_mudata_without_pairs(h5mu, tmp_path):
    out = tmp_path / "out"
    names = ["--modalities", "rna", "atac", "--matcher", "nearest", "--k", 12]
    result = call("align", h5mu, "--treatment", "drug", *TINY, "--output", out, *names)
    assert result.exit_code == 0, result.output + result.stderr
    assert "missing in a" in result.stdout
    note = " ".join(result.stdout.split())
    assert "note only one modality has treatments w: 0 samples of a and 10 samples of b have no partner" in note
    assert "2 treatments have fewer than 12 samples on a side; all of them were used: x, y" in note
    assert "true pairs" not in result.stdout
    report = strict(out / "report.json")
    assert report["notes"][0].startswith("only one modality has treatments w")
    assert report["cells"]["known_pairs"] == 0
    assert not (out / "trace_by_treatment.png").exists()
    again = mudata.read_h5mu(h5mu)
    for adata in again.mod.values():
        adata.obs_names = [f"{i}" for i in range(adata.n_obs)]
    again = mudata.MuData(dict(again.mod))
    again.write(tmp_path / "again.h5mu")
    result = call(
        "align", tmp_path / "again.h5mu", "--treatment", "drug", *TINY, "--output", out, "--force", "--no-pairs"
    )
    assert result.exit_code == 0, result.output + result.stderr
    assert strict(out / "report.json")["cells"]["known_pairs"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--treatment", "dose"], "no column 'dose' in obs [drug, batch]"),
        (["--treatment", "drug", "--modalities", "GEX", "RNA"], "got 'RNA'"),
        (["--treatment", "batch"], "at least two treatments"),
    ],
)
def test_bad_input_is_one_line(h5ad, tmp_path, arguments, message):
    result = call("align", h5ad, *arguments, "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--treatment", "drug", "--eps", "0"], "--eps: expected a positive number, got 0.0"),
        (["--treatment", "drug", "--relative-eps", "-1"], "--relative-eps: expected a positive number"),
        (["--treatment", "drug", "--eps", "1", "--relative-eps", "1"], "expected one of them, got both"),
        (["--treatment", "drug", "--k", "3"], "--k: an option of --matcher snn and nearest"),
        (["--treatment", "drug", "--matcher", "snn", "--eps", "1"], "--eps: an option of --matcher sinkhorn"),
    ],
)
def test_options_that_do_not_fit_each_other_are_one_line(h5ad, tmp_path, arguments, message):
    result = call("align", h5ad, *arguments, "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_output_that_is_not_ours_is_never_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "balls", lambda folder, show, **settings: (folder / "report.json").touch())
    other = tmp_path / "photos"
    other.mkdir()
    (other / "cat.png").touch()
    file = tmp_path / "file"
    file.touch()
    for path in (other, file):
        result = call("demo", "--output", path, "--force")
        assert result.exit_code == 1
        assert "is not a folder that psa-jax made" in result.stderr
    assert (other / "cat.png").exists()
    result = call("demo", "--output", tmp_path / "no" / "parent")
    assert result.exit_code == 1
    assert "there is no folder" in result.stderr
    (tmp_path / "empty").mkdir()
    assert call("demo", "--output", tmp_path / "empty", "--force").exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "photos"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("bug"), ValueError("bad\ninput")])
def test_nothing_is_left_of_a_run_that_fails(tmp_path, monkeypatch, error):
    def job(folder, show, **settings):
        (folder / "half").write_text("written")
        with show.stage("data", "data"):
            raise error

    old = tmp_path / "out"
    old.mkdir()
    (old / "report.json").write_text('{"made_by": "psa-jax"}')
    monkeypatch.setattr(jobs, "balls", job)
    result = call("demo", "--output", old, "--force")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "report.json"]
    if error is KeyboardInterrupt:
        assert result.exit_code == 130
        assert "interrupted, nothing was written" in result.stderr
    else:
        assert result.exit_code == 1
        assert result.stderr.startswith("error: ")


def test_help_and_version():
    result = call("--version")
    assert result.exit_code == 0
    assert result.stdout == f"psa-jax {psa.__version__}\n"
    result = call("--help")
    assert result.exit_code == 0
    assert re.search(r"demo .*Align embedded data", result.stdout)


def test_missing_packages_are_named():
    code = "import sys; sys.modules['typer'] = None; from psa_jax_start import main; main()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "pip install typer rich" in result.stderr
    assert "Traceback" not in result.stderr
