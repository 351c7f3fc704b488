"""From two files of different cells to imputed values, and back again for new cells."""

import csv
import errno
import json
import os
import pathlib
import re
import shutil

import numpy as np
import pytest
from scipy import sparse

anndata = pytest.importorskip("anndata")
mudata = pytest.importorskip("mudata")
pd = pytest.importorskip("pandas")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")
testing = pytest.importorskip("typer.testing")

import psa_jax as psa  # noqa: E402
from psa_jax.cli.app import app  # noqa: E402
from psa_jax.io import stored  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore:The inplace keyword"),
]
BOTH = ["--treatment", "guide", "perturbation"]
QUICK = ["--quick", "--epochs", "1"]


def call(*arguments):
    return testing.CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "100"})


def refused(*arguments, code=1):
    result = call(*arguments)
    assert result.exit_code == code, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def file(start, n, features, *, column="guide", drugs="xyz", seed=0):
    rng = np.random.default_rng(seed)
    drug = [drugs[i % len(drugs)] for i in range(n)]
    rate = 3 + 4 * np.eye(4, features)[["xyzw".index(d) for d in drug]]
    obs = pd.DataFrame({column: drug}, index=[f"{start}{i}" for i in range(n)])
    var = pd.DataFrame({"symbol": "s"}, index=[f"{start[0]}_g{i}" for i in range(features)])
    return anndata.AnnData(sparse.csr_matrix(rng.poisson(rate).astype(np.float32)), obs=obs, var=var)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two files of different cells; treatment w is in b only."""
    folder = tmp_path_factory.mktemp("files")
    file("r", 45, 8).write_h5ad(folder / "rna.h5ad")
    file("p", 36, 5, column="perturbation", drugs="xyzw", seed=1).write_h5ad(folder / "protein.h5ad")
    new = file("rn", 12, 8, drugs="xyw", seed=2)
    new[:, ::-1].copy().write_h5ad(folder / "new.h5ad")
    new[:, :6].copy().write_h5ad(folder / "fewer.h5ad")
    return folder


@pytest.fixture(scope="module")
def made(files):
    out = files / "out"
    result = call("align", files / "rna.h5ad", files / "protein.h5ad", "--treatment", "guide", "perturbation", *QUICK,
                  "--control", "x", "--impute-b", "--output", out)  # fmt: skip
    assert result.exit_code == 0, result.output + result.stderr
    return out, result.stdout


def test_two_files_become_a_folder_to_go_on_with(files, made):
    out, told = made
    told = " ".join(told.split())
    for part in (
        "a is rna: 45 cells, 8 features of X, counts to a total of",
        "imputed.h5ad: 45 cells, 5 of 5 features of protein",
        "imputed_b.h5ad: 36 cells, 8 of 8 features of rna",
        "9 cells in imputed_b.h5ad have no treatment with a partner",
        "control x: 15 cells of a, 9 of b",
    ):
        assert part in told
    names = {path.name for path in out.iterdir()}
    assert {"alignment.npz", "preparations.npz", "reference_b.h5ad", "imputed.h5ad", "imputed_b.h5ad"} <= names
    assert {"cells_a.csv", "cells_b.csv", "cells.csv", "report.json", "coupling.npz"} <= names
    report = json.loads((out / "report.json").read_text())
    assert report["settings"]["members"] == 1
    assert report["settings"]["treatment_b"] == "perturbation"
    assert report["control"]["name"] == "x"
    assert report["control"]["distance_from_control_a"] == 0
    assert report["imputed"]["imputed.h5ad"]["features"] == 5
    assert {"evidence_z", "believed_a", "distance_from_control_b"} <= set(report["treatments"][0])
    imputed = anndata.read_h5ad(out / "imputed.h5ad")
    assert imputed.var_names.tolist() == [f"p_g{i}" for i in range(5)]
    assert imputed.obs_names.tolist() == [f"r{i}" for i in range(45)]
    assert imputed.layers["std"].shape == imputed.shape
    with (out / "cells_b.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == 36
    assert {row["partner_1"] for row in rows if row["treatment"] == "w"} == {""}
    assert all(row["partner_1"].startswith("r") for row in rows if row["treatment"] != "w")
    alignment = psa.Alignment.load(out)
    assert alignment.names == ("w", "x", "y", "z")


def test_the_report_is_one_page_with_its_pictures_inside(made):
    out, _ = made
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 5
    assert not re.search(r"""(src|href)=["'](?!data:)|url\(|@import""", page)
    for part in (
        "rna",
        "protein",
        "What to believe",
        "45 cells of rna and 36 of protein",
        "psa-jax predict",
        "control",
    ):
        assert part in page
    (out / "report.html").unlink()
    result = call("report", out)
    assert result.exit_code == 0, result.output + result.stderr
    again = (out / "report.html").read_text()
    assert again.count("data:image/png;base64,") == 5
    assert not any(path.name.startswith(".") for path in out.iterdir())
    assert "ends in .html" in refused("report", out, "--output", out / "it.pdf", code=2)


def test_names_are_no_markup_in_the_report(made, tmp_path):
    out, _ = made
    report = json.loads((out / "report.json").read_text())
    report["settings"]["modalities"] = ["<script>", "b&b"]
    shutil.copytree(out, tmp_path / "copy")
    (tmp_path / "copy" / "report.json").write_text(json.dumps(report))
    assert call("report", tmp_path / "copy").exit_code == 0
    page = (tmp_path / "copy" / "report.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize("side", [[], ["--from-b"]])
def test_new_cells_are_imputed_scored_and_matched(files, made, tmp_path, side):
    out, _ = made
    new = files / ("protein.h5ad" if side else "new.h5ad")
    result = call("predict", out, new, "--output", tmp_path / "it.h5ad", *side)
    assert result.exit_code == 0, result.output + result.stderr
    imputed = anndata.read_h5ad(tmp_path / "it.h5ad")
    assert imputed.shape == ((36, 8) if side else (12, 5))
    assert imputed.obs["psa_mixed"].sum() == (9 if side else 4)
    assert np.isfinite(imputed.X).all()
    assert "treatments were mixed by their propensities" in " ".join(result.stdout.split())
    result = call("score", out, new, "--output", tmp_path / "scored.h5ad", *side)
    assert result.exit_code == 0, result.output + result.stderr
    scored = anndata.read_h5ad(tmp_path / "scored.h5ad")
    np.testing.assert_allclose(scored.obsm["psa_propensities"].sum(1), 1, rtol=1e-5)
    assert set(scored.obs["psa_treatment"]) <= set("xyz")
    result = call("match", out, new, "--output", tmp_path / "it.csv", *side)
    assert result.exit_code == 0, result.output + result.stderr
    with (tmp_path / "it.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert [row["mixed"] for row in rows].count("1") == (9 if side else 4)
    assert all(row["partner_1"].startswith("r" if side else "p") for row in rows)
    assert all(float(row["probability_1"]) >= float(row["probability_2"] or 0) for row in rows)
    assert {path.name for path in tmp_path.iterdir()} == {"it.h5ad", "scored.h5ad", "it.csv"}


@pytest.mark.slow
def test_a_folder_is_diagnosed(made):
    result = call("diagnose", made[0])
    assert result.exit_code == 0, result.output + result.stderr
    assert "overall: agreement" in result.stdout


def test_missing_features_and_outputs_that_exist_are_one_line(files, made, tmp_path):
    out, _ = made
    line = refused("predict", out, files / "fewer.h5ad", "--output", tmp_path / "it.h5ad")
    assert "got none for 2 of them (r_g6, r_g7): --fill-missing takes their training means" in line
    result = call("predict", out, files / "fewer.h5ad", "--output", tmp_path / "it.h5ad", "--fill-missing")
    assert result.exit_code == 0, result.stderr
    assert "2 of 8 features are missing and take their training means" in " ".join(result.stdout.split())
    assert "exists (--force replaces it)" in refused(
        "predict", out, files / "new.h5ad", "--output", tmp_path / "it.h5ad"
    )
    assert call("predict", out, files / "new.h5ad", "--output", tmp_path / "it.h5ad", "--force").exit_code == 0
    assert "ends in .h5ad" in refused("predict", out, files / "new.h5ad", "--output", tmp_path / "it.csv", code=2)
    assert "there is no folder" in refused("match", out, files / "new.h5ad", "--output", tmp_path / "no" / "it.csv")
    line = refused("predict", out, files / "new.h5ad", "--output", tmp_path / "more.h5ad", "--treatment", "dose")
    assert "--treatment: no column 'dose'" in line
    for folder in (files / "nothing", files, files / "rna.h5ad"):
        assert "expected a folder that psa-jax align" in refused("score", folder, files / "new.h5ad")
    assert [path.name for path in tmp_path.iterdir()] == ["it.h5ad"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), ValueError("bad"), KeyboardInterrupt()]
)
def test_nothing_is_left_of_a_file_that_is_half_written(files, made, tmp_path, monkeypatch, error):
    def half(self, path, *arguments, **settings):
        pathlib.Path(path).write_text("half")
        raise error

    monkeypatch.setattr(anndata.AnnData, "write_h5ad", half)
    (tmp_path / "it.h5ad").write_text("before")
    for command in ("predict", "score"):
        result = call(command, made[0], files / "new.h5ad", "--output", tmp_path / "it.h5ad", "--force")
        assert result.exit_code == (130 if isinstance(error, KeyboardInterrupt) else 1)
        assert len(result.stderr.splitlines()) == 1
        if isinstance(error, OSError):
            assert f"--output: {tmp_path / 'it.h5ad'} could not be written: No space" in result.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["it.h5ad"]
        assert (tmp_path / "it.h5ad").read_text() == "before"


WRONG = {
    "three files": (["rna.h5ad", "protein.h5ad", "new.h5ad"], ["--treatment", "guide"], "expected one file, or one of"),
    "two columns for one file": (["rna.h5ad"], ["--treatment", "a", "--treatment", "b"], "one column for one file"),
    "an .h5mu beside a file": (["rna.h5ad", "both.h5mu"], ["--treatment", "guide"], "an .h5mu has both"),
    "obsm of one file": (["rna.h5ad"], ["--treatment", "guide", "--obsm", "X_pca"], "an option of two files only"),
    "one treatment": (["rna.h5ad"], ["--treatment", "guide", "--treatments", "x"], "--treatments: expected two"),
    "quick and members": (["rna.h5ad"], ["--treatment", "guide", "--quick", "--members", "2"], "--quick: it is one"),
    "quick and tune": (["rna.h5ad"], ["--treatment", "guide", "--quick", "--tune"], "expected one of them"),
    "another control": (
        ["rna.h5ad"],
        ["--treatment", "guide", "--treatments", "x,y", "--control", "z"],
        "--control: expected one of --treatments",
    ),
    "no name of a folder": (["rna.h5ad"], ["--treatment", "guide", "--resume", ""], "expected a folder, got no name"),
    "no features": (["rna.h5ad"], ["--treatment", "guide", "--features", "hvg:0"], "--features: expected a number"),
    "no file of features": (["rna.h5ad"], ["--treatment", "guide", "--features", "most"], "--features: expected all"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_options_that_contradict_are_one_line_before_any_work(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words, options, message = WRONG[kind]
    line = refused("align", *words, *options, code=2)
    assert message in line.replace("Invalid value for ", "")
    assert not os.listdir(tmp_path)


@pytest.mark.slow
def test_a_run_goes_on_after_what_is_finished(files, tmp_path):
    kept, values = tmp_path / "kept", []
    for place in ("first", "second"):
        result = call("align", files / "rna.h5ad", files / "protein.h5ad", *BOTH, *QUICK, "--resume", kept, "--output",
                      tmp_path / place)  # fmt: skip
        assert result.exit_code == 0, result.output + result.stderr
        assert ("classifiers_b was finished" in " ".join(result.stdout.split())) == (place == "second")
        values.append(anndata.read_h5ad(tmp_path / place / "imputed.h5ad").X)
        written = {path.name: path.stat().st_mtime_ns for path in sorted(kept.iterdir())}
        assert [*written][:3] == ["classifiers_a.npz", "classifiers_b.npz", "coupling_0.npz"]
        times = written if place == "first" else times
    assert written == times
    np.testing.assert_array_equal(*values)


@pytest.mark.slow
def test_smoothing_may_be_chosen_by_labels_first(files, tmp_path):
    little = ["--epochs", "1", "--members", "1", "--folds", "3"]
    result = call("align", files / "rna.h5ad", files / "protein.h5ad", *BOTH, *little, "--tune", "--output",
                  tmp_path / "out")  # fmt: skip
    assert result.exit_code == 0, result.output + result.stderr
    assert "as given: agreement" in result.stdout
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    assert told["settings"]["tune"]
    assert [row["smoothing"] for row in told["tuning"]["table"]][:2] == ["as given", "none"]
    assert told["tuning"]["chosen"] in {row["smoothing"] for row in told["tuning"]["table"]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--treatment", "guide"],
            "--treatment: no column 'guide' in obs of 'protein' [perturbation] (where",
        ),
        ([*BOTH, "--control", "q"], "--control: expected one of w, x, y, z, got 'q'"),
        (
            [*BOTH, "--treatments", "x,q"],
            "--treatments: expected some of [w, x, y, z]",
        ),
        ([*BOTH, "--layer", "raw"], "--layer: expected one of [] of 'rna', got 'raw'"),
        ([*BOTH, "--obsm", "X_net"], "--obsm: expected an array in obsm of one of"),
        ([*BOTH, "--min-cells", "50"], "--min-cells: expected at most the cells of"),
        ([*BOTH, "--pairs"], "--pairs: expected cells whose names are in both"),
    ],
)
def test_options_that_do_not_fit_the_files_are_one_line(files, tmp_path, options, message):
    line = refused("align", files / "rna.h5ad", files / "protein.h5ad", *options, "--output", tmp_path / "out")
    assert message in line
    assert not os.listdir(tmp_path)


@pytest.mark.slow
def test_files_of_other_kinds_and_names_of_features(files, tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "LARGE", 0)  # so that all matrices stay in their files
    anndata.read_h5ad(files / "rna.h5ad").write_zarr(tmp_path / "rna.zarr")
    (tmp_path / "names.txt").write_text("p_g3\n\np_g1\n")
    out = tmp_path / "out"
    result = call("align", tmp_path / "rna.zarr", files / "protein.h5ad", *BOTH, *QUICK,
                  "--features", tmp_path / "names.txt", "--as-is", "--min-cells", "5", "--treatments", "x,y",
                  "--matcher", "hierarchical", "--output", out)  # fmt: skip
    assert result.exit_code == 0, result.output + result.stderr
    assert anndata.read_h5ad(out / "imputed.h5ad").var_names.tolist() == ["p_g3", "p_g1"]
    report = json.loads((out / "report.json").read_text())
    assert [row["name"] for row in report["left_out"]] == ["w", "z"]
    assert "as they are" in report["preparations"][0]
    line = refused("predict", out, files / "new.h5ad", "--output", tmp_path / "it.h5ad")
    assert "expected one of `sinkhorn`" in line
    assert line.endswith("got one of Leaves")
    assert "--impute-b writes" in refused(
        "predict", out, files / "protein.h5ad", "--from-b", "--output", tmp_path / "i.h5ad"
    )
