"""What the README promises: its Python examples run, its first two commands are one line each, its links exist."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("example", blocks("python"), ids=["align", "arrays", "matcher", "calibrate", "layer"])
def test_examples_run(example, capsys):
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


def test_tables_are_filled():
    for name, body in re.findall(r"<!-- table: (\w+) -->\n(.*?)<!-- end -->", README, flags=re.DOTALL):
        assert body.count("\n|") > 2, f"run python -m benchmarks.{name}"
