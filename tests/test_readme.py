"""What the README promises: its Python examples run, its first two commands are one line each, its links exist.

It is short, and its tables are those of the saved results.
"""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.slow  # as users run it: with the default models and as many epochs as it takes
def test_the_first_example_runs(tmp_path):
    plain = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # which make programs slow
    command = [sys.executable, "-c", blocks("python")[0]]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=plain, timeout=500)
    assert "Alignment of" in out.stdout


@pytest.mark.slow
@pytest.mark.parametrize("example", blocks("python")[1:], ids=["own_data", "layer"])
def test_other_examples_run(example, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # examples may write files
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_the_library_example_is_fifteen_lines():
    for example in blocks("python")[:2]:
        assert len([line for line in example.splitlines() if line.strip()]) <= 15


def test_the_first_two_commands():
    run, test = blocks("bash")[:2]
    assert len(run.strip().splitlines()) == len(test.strip().splitlines()) == 1
    assert run.strip().endswith("psa-jax demo")
    assert "pytest" in test


def test_pictures_and_files_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_it_is_short():
    assert len(README.split()) <= 1500


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("README.md", {"quality", "seconds"}),
        ("benchmarks/README.md", {"smoothing", "joint", "matching", "matching_large"}),
    ],
)
def test_tables_are_those_of_the_results(path, names, monkeypatch):
    text = (ROOT / path).read_text()
    tables = dict(re.findall(r"<!-- table: (\w+) -->\n(.*?)<!-- end -->", text, flags=re.DOTALL))
    assert set(tables) == names
    for name, body in tables.items():
        assert body.count("\n|") > 2, f"{name}: run python -m benchmarks.tables"
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.tables import filled

    assert filled(text) == text, "run python -m benchmarks.tables"
