"""The direction of imports: a module imports from its own folder or from those below it, and nothing in a circle."""

import ast
import graphlib
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "psa_jax"
LEVELS = [  # low to high; those of one level may not import each other, but for the modules at the top of the package
    ["types", "arguments", "progress", "devices"],
    ["data"],
    ["propensity", "coupling"],
    ["match"],
    ["metrics"],
    ["judge"],
    ["predict"],
    ["align"],
    ["baselines", "datasets", "io", "plot"],
    ["cli"],
]
LEVEL = {folder: level for level, row in enumerate(LEVELS) for folder in row}
SOLVERS = {"match.descent", "match.geometry", "match.quadratic", "match.solve"}
OPTIONAL = {"anndata", "mudata", "pandas", "matplotlib", "typer", "rich", "sklearn"}
LATE = "import sys, psa_jax; print(*{'ott', 'scipy.optimize', 'scipy.stats'} & set(sys.modules))"


def name_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


PATHS = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"}


def imported(nodes):
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def modules_of(name):
    """The modules of the package that one imports; a folder stands for its `__init__`."""
    for target in imported(ast.walk(ast.parse(PATHS[name].read_text()))):
        target = target.removeprefix("psa_jax.")
        yield from [part for part in (target, target.rpartition(".")[0]) if part in PATHS][:1]


@pytest.mark.parametrize("name", PATHS)
def test_imports_point_downward(name):
    own = name.split(".")[0]
    for target in modules_of(name):
        other = target.split(".")[0]
        inside = own == other or LEVEL[own] == LEVEL[other] == 0
        assert inside or LEVEL[other] < LEVEL[own], f"{name} imports {target}"


def test_nothing_is_imported_in_a_circle():
    order = graphlib.TopologicalSorter({name: set(modules_of(name)) for name in PATHS}).static_order()
    assert set(order) == set(PATHS)
    assert {name.split(".")[0] for name in PATHS} == set(LEVEL)


def test_only_the_solvers_import_ott():
    found = {name: list(imported(ast.walk(ast.parse(path.read_text())))) for name, path in PATHS.items()}
    assert {name for name, targets in found.items() if any(t.split(".")[0] == "ott" for t in targets)} == SOLVERS


def test_what_takes_long_is_imported_when_it_is_used():
    out = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, check=True)
    assert not out.stdout.split()


@pytest.mark.parametrize("name", [name for name in PATHS if not name.startswith("cli")])
def test_optional_packages_are_imported_where_they_are_used(name):
    top = imported(ast.parse(PATHS[name].read_text()).body)
    assert not {target.split(".")[0] for target in top} & OPTIONAL
