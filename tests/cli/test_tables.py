import itertools
import re

import pytest

pytest.importorskip("rich")
pytest.importorskip("typer")

from psa_jax.cli.show import Show
from psa_jax.cli.tables import NAME, metrics_table, treatments_table

MODALITIES = [
    ("a", "b"),
    ("GEX", "ADT"),
    ("Gene Expression", "Antibody Capture"),
    ("chromatin_accessibility", "x" * 40),
]
TREATMENTS = ["x", "JAK2", "CRISPR knockout of STAT1", "interferon_gamma_10ng_ml"]
STATUSES = ["matched", "matched, trivially", "too few to judge", "not converged"]


def row(name, status, size):
    entry = {"name": name, "status": status, "size_a": size, "size_b": size + 1, "num_iters": 1234.0}
    return entry | {"marginal_error": 1.3e-4, "trace": 0.5678, "chance": 0.0124}


@pytest.fixture(params=itertools.product([60, 80, 100, 200], [False, True]), ids=str)
def show(request, monkeypatch):
    """At a width, and redirected or on a terminal."""
    width, terminal = request.param
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1") if terminal else monkeypatch.delenv("FORCE_COLOR", raising=False)
    return Show()


def printed(show, capsys, make):
    """What a table prints, each line without its colours; none is wider than the terminal."""
    show.table(make)
    lines = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= show.console.width
    return lines


@pytest.mark.parametrize("names", MODALITIES, ids=lambda names: f"{len(names[0])}-{len(names[1])}")
@pytest.mark.parametrize("size", [7, 21000])
def test_no_number_and_no_name_of_a_treatment_is_cut(show, capsys, names, size):
    assert max(map(len, TREATMENTS)) == NAME
    rows = [row(name, state, size) for name, state in zip(TREATMENTS, STATUSES, strict=True)]
    lines = printed(show, capsys, lambda width: treatments_table(rows, names, width))
    assert "…" not in "".join(lines)
    for name, state in zip(TREATMENTS, STATUSES, strict=True):
        place, line = next((i, line) for i, line in enumerate(lines) if line.startswith(name + " "))
        told = " ".join(lines[place : place + 2])  # numbers stand at the end of the name where the status is below it
        for part in (state, str(size), str(size + 1), "1234", "1e-04", "0.568", "0.012"):
            assert f" {part} " in f" {told} ", (name, part)


def test_longer_names_are_wrapped(show, capsys):
    name = "0123456789" * 7
    lines = printed(show, capsys, lambda width: treatments_table([row(name, "matched", 40)], ("GEX", "ADT"), width))
    body = lines[next(i for i, line in enumerate(lines) if "──" in line) + 1 :]
    assert name in "".join(re.match(r"\d*", line)[0] for line in body)


def test_numbers_of_metrics_are_whole(show, capsys):
    rows = {f"PS+assignment {i}": {"trace": 0.1234, "latent_mse": 1.2345, "foscttm": 0.4567} for i in range(2)}
    lines = printed(show, capsys, lambda width: metrics_table(rows, width))
    for label in rows:
        assert any(re.fullmatch(rf"{re.escape(label)} +0\.1234 +1\.2345 +0\.4567", line) for line in lines)


def test_names_are_no_markup(show, capsys):
    lines = printed(
        show, capsys, lambda width: treatments_table([row("[/b]", "matched", 40)], ("[red]", "[/x]"), width)
    )
    for part in ("[/b]", "[red]", "[/x]"):
        assert part in "\n".join(lines)
