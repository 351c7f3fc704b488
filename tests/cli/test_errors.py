import errno
import json
import os
import pathlib
import re
import warnings

import numpy as np
import pytest

anndata = pytest.importorskip("anndata")
mudata = pytest.importorskip("mudata")
pd = pytest.importorskip("pandas")
pytest.importorskip("rich")
typer = pytest.importorskip("typer")
testing = pytest.importorskip("typer.testing")

from psa_jax.cli import jobs, output, reading  # noqa: E402
from psa_jax.cli.app import app  # noqa: E402
from psa_jax.cli.errors import rephrased  # noqa: E402

pytestmark = [  # of pandas, anndata and mudata, about each other and about the files made here
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore:The inplace keyword"),
]

NO_OPTIONS = re.compile(r"`|\b(num_components|drop_unlabelled)\b|(?<!-)\b(layer|folds|treatment|modalities|members|k)=")

OPTIONS = {
    name
    for command in typer.main.get_command(app).commands.values()
    for p in command.params
    for name in [*p.opts, *p.secondary_opts]
}


def call(*arguments):
    return testing.CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "60"})


def refused(*arguments, code=1):
    """The one line that a command prints when it fails."""
    result = call(*arguments)
    assert result.exit_code == code, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert "Traceback" not in result.output
    assert not NO_OPTIONS.search(line), line
    for option in re.findall(r"(?<!\S)--[a-z-]+", line) if code == 1 else ():
        assert option in OPTIONS, line
    return line


def cells(n=40, **obs):
    """An AnnData of two feature types; `obs` are columns beside drug."""
    rng = np.random.default_rng(0)
    drug = np.array(["x", "y"])[np.arange(n) % 2]
    x = (rng.standard_normal((n, 5)) + (drug == "x")[:, None]).astype(np.float32)
    var = pd.DataFrame({"feature_types": ["GEX", "GEX", "GEX", "ADT", "ADT"]}, index=[f"f{i}" for i in range(5)])
    return anndata.AnnData(x, pd.DataFrame({"drug": drug, **obs}, index=[f"cell{i}" for i in range(n)]), var)


def paired(labels_a, labels_b):
    """A MuData whose modalities have cells and labels of their own."""
    sides = {}
    for name, labels in (("rna", labels_a), ("atac", labels_b)):
        x = np.random.default_rng(1).standard_normal((len(labels), 3)).astype(np.float32)
        obs = pd.DataFrame({"drug": labels}, index=[f"{name}{i}" for i in range(len(labels))])
        sides[name] = anndata.AnnData(x, obs, pd.DataFrame(index=[f"{name}_f{i}" for i in range(3)]))
    return mudata.MuData(sides)


def contradicting():
    """A MuData of other cells of the same names."""
    mdata = paired(["x", "y"] * 9, ["y", "x"] * 9)
    for adata in mdata.mod.values():
        adata.obs_names = [f"{i}" for i in range(18)]
    return mudata.MuData(dict(mdata.mod))


def written(folder, content):
    """The content as a file: AnnData, MuData, bytes, or None for a folder."""
    path = folder / ("cells.h5mu" if isinstance(content, mudata.MuData) else "cells.h5ad")
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is None:
        path.mkdir()
    elif isinstance(content, mudata.MuData):
        content.write(path)
    else:
        content.write_h5ad(path)
    return path


def truncated(folder):
    path = written(folder, cells())
    return path.read_bytes()[: path.stat().st_size // 2]


def h5mu(folder):
    path = written(folder, paired(["x", "y"], ["x", "y"]))
    content = path.read_bytes()
    path.unlink()
    return content


def without_x():
    found = cells()
    found.layers["counts"] = found.X
    del found.X
    return found


def obsm(x):
    found = cells()
    found.obsm["prot"] = x
    return found


def features(value):
    found = cells()
    found.X[:] = value
    return found


FILES = {
    "a folder": (lambda folder: None, [], "got a folder"),
    "empty": (lambda folder: b"", [], "could not be read as .h5ad"),
    "text": (lambda folder: b"cell,drug\n1,x\n", [], "could not be read as .h5ad"),
    "a MuData of another name": (lambda folder: h5mu(folder), [], "could not be read as .h5ad"),
    "truncated": (truncated, [], "could not be read as .h5ad"),
    "no column": (lambda folder: cells(), ["--treatment", "dose"], "--treatment: no column 'dose'"),
    "no labels": (lambda folder: cells(dose=np.full(40, np.nan)), ["--treatment", "dose"], "--drop-unlabelled"),
    "no labels, dropped": (
        lambda folder: cells(dose=np.full(40, np.nan)),
        ["--treatment", "dose", "--drop-unlabelled"],
        "",
    ),
    "one treatment": (lambda folder: cells(dose="high"), ["--treatment", "dose"], "at least two treatments"),
    "no shared treatment": (lambda folder: paired(["x", "y"] * 9, ["z", "w"] * 9), [], "both modalities have"),
    "pairs of two treatments": (lambda folder: contradicting(), [], "give --no-pairs, or names of their own"),
    "pairs of an .h5ad": (lambda folder: cells(), ["--no-pairs"], "--pairs, --no-pairs: for an .h5mu file only"),
    "few cells": (lambda folder: cells(4), ["--folds", "5"], "--folds: expected at least 3 and at most"),
    "no X": (lambda folder: without_x(), [], "--layer"),
    "no such layer": (lambda folder: without_x(), ["--layer", "raw"], "--layer: expected one of [counts]"),
    "no such modality": (lambda folder: cells(), ["--modalities", "GEX", "RNA"], "--modalities: expected values"),
    "one modality twice": (lambda folder: cells(), ["--modalities", "GEX", "GEX"], "--modalities: expected two"),
    "text in obsm": (
        lambda folder: obsm(pd.DataFrame({"kind": ["T"] * 40, "n": 1.0}, index=cells().obs_names)),
        ["--modalities", "GEX", "prot"],
        "",
    ),
    "NaN": (lambda folder: features(np.nan), [], "expected finite features"),
    "infinity": (lambda folder: features(np.inf), [], "expected finite features"),
    "no cells": (lambda folder: cells()[:0].copy(), [], "at least one sample"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_cannot_be_used_is_one_line(kind, tmp_path):
    make, more, message = FILES[kind]
    path = written(tmp_path, make(tmp_path))
    more = more if "--treatment" in more else ["--treatment", "drug", *more]
    assert message in refused("align", path, *more, "--output", tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["none.h5ad", "cells.csv", "none/cells.h5mu", "x" * 300 + ".h5ad"])
def test_a_file_that_is_not_there_is_one_line(name, tmp_path):
    refused("align", tmp_path / name, "--treatment", "drug", "--output", tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["--nothing"],
        ["demos"],
        ["demo", "--data", "cats"],
        ["demo", "--epochs", "0"],
        ["demo", "--epochs", "many"],
        ["demo", "--num-samples", "3"],
        ["demo", "--data", "digits", "--num-samples", "100"],
        ["demo", "more"],
        ["align"],
        ["align", "cells.h5ad"],
        ["align", "cells.h5ad", "--treatment"],
        ["align", "cells.h5ad", "--treatment", "drug", "--modalities", "a"],
        ["align", "cells.h5ad", "--treatment", "drug", "--folds", "2"],
        *(["align", "c.h5ad", "--treatment", "drug", "--eps", eps] for eps in ("0", "-1", "nan", "inf", "1e-300", "x")),
        *(["demo", option, str(10**30)] for option in ("--epochs", "--num-samples")),
        *(
            ["align", "c.h5ad", "--treatment", "drug", "--matcher", "snn", option, str(10**30)]
            for option in ("--epochs", "--members", "--folds", "--num-components", "--k")
        ),
        *(["demo", "--seed", seed] for seed in ("-1", str(2**32), str(2**63), str(2**64), "1.5", "one", "nan", "")),
    ],
    ids=" ".join,
)
def test_a_wrong_use_is_one_line(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(*arguments, code=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seed", [0, 2**31, 2**32 - 1])
def test_seeds_that_are_taken_are_used(seed, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(jobs, "balls", lambda folder, show, *, seed, **settings: seen.append(seed))
    assert call("demo", "--seed", seed, "--output", tmp_path / "out").exit_code == 0
    assert seen == [seed]


ERRORS = [
    RuntimeError("bug"),
    ValueError("bad\n\ninput"),
    KeyError("name"),
    MemoryError(),
    AssertionError(),
    RecursionError("deep"),
    ImportError("needs pandas"),
    ZeroDivisionError("division by zero"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    np.linalg.LinAlgError("singular"),
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    ValueError("x" * 5000),
    ValueError("\x1b[31m[/red] markup"),
    type("Foreign", (Exception,), {})("of another library"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_every_exception_is_one_line_and_debug_shows_where(error, tmp_path, monkeypatch):
    def job(folder, show, **settings):
        (folder / "half").write_text("written")
        with show.stage("data", "[/data]"):
            raise error

    monkeypatch.setattr(jobs, "balls", job)
    line = refused("demo", "--output", tmp_path / "out")
    assert len(line) < 1200
    for arguments in (["--debug", "demo"], ["demo", "--debug"]):
        result = call(*arguments, "--output", tmp_path / "out")
        assert result.exit_code == 1
        assert "Traceback" in result.stderr
        assert "in job" in result.stderr
        assert result.stderr.splitlines()[-1] == line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize("step", ["mkdir", "write", "rename"])
def test_output_that_cannot_be_written_is_one_line(number, step, tmp_path, monkeypatch):
    def refuse(*arguments, **settings):
        raise OSError(number, os.strerror(number))

    def job(folder, show, **settings):
        output.write_report(folder, {})

    monkeypatch.setattr(jobs, "balls", job)
    if step == "write":
        monkeypatch.setattr(json, "dumps", refuse)
    else:
        monkeypatch.setattr(pathlib.Path, step, refuse)
    line = refused("demo", "--output", tmp_path / "out")
    assert line == f"error: --output: {tmp_path / 'out'} could not be written: {os.strerror(number)}"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("folds: expected at least 3", "--folds: expected at least 3"),
        ("modality 'a': num_components: expected 1", "modality 'a': --num-components: expected 1"),
        ("none (`layer` names another)", "none (--layer names another)"),
        ("(drop_unlabelled leaves them out)", "(--drop-unlabelled leaves them out)"),
        ("give drop_unlabelled=True or treatment='drug'", "give --drop-unlabelled or --treatment='drug'"),
        ("give pairs=False, or pairs=True if not", "give --no-pairs, or --pairs if not"),
        ("modality b: x: expected finite features", "modality b: features: expected finite features"),
        ("within: expected none", "--within: expected none"),
        (
            "coupling: expected one of `sinkhorn`, whose potentials extend to new samples, got one of Leaves",
            "coupling: expected one of `sinkhorn`, whose potentials extend to new samples "
            "(a folder made with --matcher sinkhorn), got one of Leaves",
        ),
        ("the only treatment: x, of layers and seeds", "the only treatment: x, of layers and seeds"),
    ],
)
def test_arguments_become_options(message, expected):
    assert rephrased(message) == expected


@pytest.mark.slow
@pytest.mark.parametrize("category", [UserWarning, FutureWarning, DeprecationWarning])
def test_warnings_of_other_libraries_are_notes_at_most(category, tmp_path, monkeypatch, capfd):
    def read(*arguments, **settings):
        for _ in range(2):
            warnings.warn("of another library", category, stacklevel=2)
        return loaded(*arguments, **settings)

    loaded = reading.io.from_anndata
    monkeypatch.setattr(reading.io, "from_anndata", read)
    path = written(tmp_path, cells())
    result = call("align", path, "--treatment", "drug", "--epochs", "1", "--output", tmp_path / "out")
    assert result.exit_code == 0
    assert result.stdout.count("note of another library") == (category is UserWarning)
    assert result.stderr + capfd.readouterr().err == ""
