"""The import direction of the architecture: a module imports only from levels below its own, or beside it as listed."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "psa_jax"

# Lower levels first; modules of one line may import those before them in the same line.
ORDER = [
    ["types", "components"],
    ["data", "groups", "coupling", "blocked"],
    ["model", "nets", "augment", "loop", "train", "crossfit", "score"],
    [
        "match.cost",
        "match.neighbours",
        "match.geometry",
        "match.dual",
        "match.solve",
        "match.eot",
        "match.distances",
        "match.low_rank",
        "match.gw",
        "match.nearest",
        "match.snn",
        "match.assign",
        "match",
        "match.blockwise",
    ],
    ["metrics", "regression", "distributions", "wasserstein", "divergence"],
    [
        "layer",
        "chain",
        "shrink",
        "extend",
        "selection",
        "sweep",
        "predict",
        "alignment",
        "represent",
        "pipeline",
        "many",
        "evaluation",
        "diagnosis",
        "diagnose",
    ],
    ["baselines", "datasets", "io", "plot", "cli"],
]
RANK = {name: (level, place) for level, row in enumerate(ORDER) for place, name in enumerate(row)}
OPTIONAL = {"anndata", "mudata", "pandas", "matplotlib", "typer", "rich", "sklearn"}


def modules():
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def name_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def rank_of(name):
    while name not in RANK:
        name = name.rpartition(".")[0]
        assert name, "a module without a place in ORDER"
    return RANK[name]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_point_downward(path):
    name = name_of(path)
    for target in imports(path):
        if not target.startswith("psa_jax."):
            continue
        target = target.removeprefix("psa_jax.")
        if not (PACKAGE / target.replace(".", "/")).with_suffix(".py").exists() and target not in RANK:
            continue
        inside = target.split(".")[0] == name.split(".")[0] and rank_of(name) == rank_of(target)
        assert inside or rank_of(target) < rank_of(name), f"{name} imports {target}"


def test_only_the_solvers_import_ott():
    users = {name_of(path) for path in modules() if any(t.split(".")[0] == "ott" for t in imports(path))}
    assert users == {"match.dual", "match.geometry", "match.gw", "match.low_rank", "match.solve"}


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_optional_packages_are_imported_where_they_are_used(path):
    tree = ast.parse(path.read_text())
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {
        name.split(".")[0]
        for node in top
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
    }
    if not name_of(path).startswith("cli"):
        assert not names & OPTIONAL
