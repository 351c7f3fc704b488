"""The notebooks run, and are stored with output that anybody may see; guide pages beside them say what is there.

To run all notebooks and store what they show:

    jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False notebooks/*.ipynb
"""

import ast
import os
import pathlib
import re

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
PICTURES = {"quickstart": 3, "single_cell": 3, "differentiable_alignment": 2, "bring_your_own_matcher": 2, "scaling": 3}
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
PLACES = re.compile(r"/(?:home|root|work|tmp|usr|opt|mnt|Users)/|\b[A-Z]:\\|ipykernel_\d")
LARGEST = 10**6  # bytes
LEFT_OUT = "…"  # what differs from message to message


def outputs_of(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def pictures_in(notebook):
    return sum("image/png" in output.get("data", {}) for output in outputs_of(notebook))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_with_what_it_shows(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), "execute it from top to bottom"
    assert pictures_in(notebook) == PICTURES[path.stem]
    assert path.stat().st_size < LARGEST
    for output in outputs_of(notebook):
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.text
        shown = [output.get("text", ""), *(v for k, v in output.get("data", {}).items() if k.startswith("text/"))]
        assert not PLACES.search("\n".join(shown))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the Jupyter client, which is not ours
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, monkeypatch):
    monkeypatch.setenv("PSA_JAX_SMALL", "1")
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": os.fspath(path.parent)}}
    ).execute()
    assert pictures_in(notebook) == PICTURES[path.stem]


@pytest.mark.slow
def test_examples_of_choosing_settings_run(capsys):
    text = (FOLDER / "choosing_settings.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) > 5
    exec(compile("\n".join(blocks), "choosing_settings.md", "exec"), {})
    assert "Alignment of" in capsys.readouterr().out


def test_files_and_commands_has_every_command_and_option():
    typer = pytest.importorskip("typer")
    from psa_jax.cli.app import app

    text = (FOLDER / "files_and_commands.md").read_text()
    root = typer.main.get_command(app)
    assert all(f"psa-jax {name}" in text for name in root.commands)
    parameters = [each for command in (root, *root.commands.values()) for each in command.params]
    options = {option for each in parameters for option in (*each.opts, *each.secondary_opts)}
    told = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))
    assert told == {option for option in options if option.startswith("--")} | {"--help"}


def literals():
    """Every text in the package; `…` stands for what is put in."""
    for path in sorted((ROOT / "psa_jax").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else LEFT_OUT for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield re.sub(r"\{\w*\}", LEFT_OUT, node.value)


TROUBLES = re.findall(r"^`{1,2}(.+?)`{1,2}\n: ", (FOLDER / "troubleshooting.md").read_text(), flags=re.MULTILINE)


def test_troubleshooting_quotes_messages_that_exist():
    texts = set(literals())
    assert len(TROUBLES) > 30
    for message in TROUBLES:
        parts = [re.escape(part) for part in message.split(LEFT_OUT)]
        pattern = re.compile(".*".join(parts), flags=re.DOTALL)
        assert any(pattern.fullmatch(text) for text in texts), message
