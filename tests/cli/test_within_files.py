"""`--within` from two files to new cells: every output tells treatment and plate, and no partner is of another one."""

import csv
import json

import numpy as np
import pytest

anndata = pytest.importorskip("anndata")
pd = pytest.importorskip("pandas")
pytest.importorskip("mudata")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")
testing = pytest.importorskip("typer.testing")

from psa_jax.cli.app import app  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore:The inplace keyword"),
]


def call(*arguments):
    return testing.CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "100"})


def file(start, n, features, *, column="plate", seed=0):
    rng = np.random.default_rng(seed)
    drug, plate = np.arange(n) % 3, np.arange(n) // 3 % 2
    x = rng.normal(size=(n, features)) + 2 * np.eye(3, features)[drug] + 9 * plate[:, None]
    obs = pd.DataFrame(
        {
            "guide": np.array(list("xyz"))[drug],
            column: plate + 1,
            "donor": np.array(["old", "new"])[np.arange(n) % 5 // 3],
        },
        index=[f"{start}{i}" for i in range(n)],
    )
    return anndata.AnnData(
        x.astype(np.float32), obs=obs, var=pd.DataFrame(index=[f"{start[0]}_g{i}" for i in range(features)])
    )


def table(path):
    with path.open(newline="") as rows:
        return list(csv.DictReader(rows))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("within")
    file("r", 48, 5).write_h5ad(folder / "rna.h5ad")
    file("p", 36, 4, column="well", seed=1).write_h5ad(folder / "protein.h5ad")
    result = call(
        "align", folder / "rna.h5ad", folder / "protein.h5ad", "--treatment", "guide", "--within", "plate", "--within",
        "well", "--batch", "donor", "--control", "x", "--impute-b", "--relative-to-control", "--quick", "--epochs", 1,
        "--output", folder / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return folder, result.output


def test_every_table_tells_treatment_and_plate(made):
    folder, printed = made
    rows, others = table(folder / "out" / "cells_a.csv"), table(folder / "out" / "cells_b.csv")
    plate = {row["cell"]: row["within"] for row in others}
    assert list(rows[0])[:4] == ["cell", "treatment", "within", "status"]
    assert {row["treatment"] for row in rows} == set("xyz")
    assert all(plate[row["partner_1"]] == row["within"] for row in rows)
    assert list(table(folder / "out" / "cells.csv")[0]) == [
        "cell_rna", "guide", "within", "status", "match_protein", "probability"
    ]  # fmt: skip
    report = json.loads((folder / "out" / "report.json").read_text())
    assert {row["name"] for row in report["treatments"]} == {f"{drug}, {plate}" for drug in "xyz" for plate in (1, 2)}
    assert (report["settings"]["within"], report["settings"]["within_b"]) == ("plate", "well")
    assert report["settings"]["relative_to_control"]
    assert report["control"]["name"] in ("x, 1", "x, 2")
    apart = {row["name"]: row["distance_from_control_a"] for row in report["treatments"]}
    assert apart["x, 1"] == apart["x, 2"] == 0
    assert min(value for name, value in apart.items() if name[0] != "x") > 0
    assert "x, 1" in printed


def test_new_cells_have_plates_of_either_name(made):
    folder, _ = made
    new = file("r", 12, 5, seed=5)
    new.obs_names = [f"n{i}" for i in range(12)]
    new.write_h5ad(folder / "new.h5ad")
    result = call("predict", folder / "out", folder / "new.h5ad", "--output", folder / "new_b.h5ad")
    assert result.exit_code == 0, result.output
    out = anndata.read_h5ad(folder / "new_b.h5ad")
    assert not out.obs["psa_mixed"].any()
    assert out.X[out.obs["plate"] == 1].mean() < 2 < 7 < out.X[out.obs["plate"] == 2].mean()
    result = call("match", folder / "out", folder / "new.h5ad", "--output", folder / "matches.csv")
    assert result.exit_code == 0, result.output
    rows, plate = table(folder / "matches.csv"), {r["cell"]: r["within"] for r in table(folder / "out" / "cells_b.csv")}
    assert all(plate[row["partner_1"]] == row["within"] for row in rows)
    assert not out.obs["psa_new_batch"].any()
    new.obs["day"] = ["1"] * 6 + ["9"] * 6
    new.obs["donor"] = ["old"] * 8 + ["third"] * 4
    new.write_h5ad(folder / "day.h5ad")
    result = call("match", folder / "out", folder / "day.h5ad", "--within", "day", "--output", folder / "day.csv")
    assert result.exit_code == 0, result.output
    rows = table(folder / "day.csv")
    assert [row["mixed"] for row in rows] == ["0"] * 6 + ["1"] * 6
    assert rows[7]["within"] == ""
    assert "6 of 12 cells have no treatment and plate that were matched" in " ".join(result.output.split())
    assert "those of no known plate among them" in " ".join(result.output.split())
    assert "4 of 12 cells have no batch that training had" in result.output
    result = call("score", folder / "out", folder / "day.h5ad", "--output", folder / "scored.h5ad", "--batch", "donor")
    assert result.exit_code == 0, result.output
    obs = anndata.read_h5ad(folder / "scored.h5ad").obs
    assert set(obs["psa_treatment"]) <= set("xyz")
    assert obs["psa_new_batch"].sum() == 4
    other = file("p", 6, 4, seed=6)
    other.write_h5ad(folder / "other.h5ad")
    result = call("predict", folder / "out", folder / "other.h5ad", "--from-b", "--within", "plate", "--batch", "donor",
                  "--output", folder / "other_a.h5ad")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert anndata.read_h5ad(folder / "other_a.h5ad").shape == (6, 5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--relative-to-control"], "--relative-to-control: expected --control beside it"),
        (["--within", "day"], "within: no column 'day'"),
        (3 * ["--within", "plate"], "--within: expected one column"),
        (["--batch", "day"], "batch: no column 'day'"),
        (3 * ["--batch", "donor"], "--batch: expected one column"),
    ],
)
def test_wrong_columns_are_refused(made, tmp_path, given, message):
    folder, _ = made
    result = call("align", folder / "rna.h5ad", folder / "protein.h5ad", "--treatment", "guide", *given, "--output",
                  tmp_path / "out")  # fmt: skip
    assert result.exit_code in (1, 2)
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()
