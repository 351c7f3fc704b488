import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from problems import slow

pytest.importorskip("rich")
typer = pytest.importorskip("typer")

from psa_jax.cli.output import OutputFolder  # noqa: E402
from psa_jax.cli.running import run  # noqa: E402

START = pathlib.Path(__file__).parents[2] / "psa_jax" / "cli" / "start.py"
LISTENING = """
import runpy, signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, {handler})
print("up", flush=True)
runpy.run_path({start!r}, run_name="__main__")
"""
HANDLERS = "signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL"  # as from a terminal
pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="signals of POSIX")


def started(*arguments, handler=HANDLERS):
    """A psa-jax of which Python itself has started."""
    command = [sys.executable, "-c", LISTENING.format(handler=handler, start=str(START)), *map(str, arguments)]
    environment = {**os.environ, "XLA_FLAGS": "", "COLUMNS": "80"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True)
    assert process.stdout.readline() == "up\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("seconds", [0.1, 0.3, 0.6, 1.0, *slow(2.0, 3.0, 6.0)])
def test_a_signal_at_any_moment_ends_it_without_a_traceback(number, seconds, tmp_path):
    process = started("demo", "--output", tmp_path / "out")
    time.sleep(seconds)
    process.send_signal(number)
    sent = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert errors in ("interrupted\n", "interrupted, nothing was written\n")
    assert time.monotonic() - sent < 20
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_while_compiled_code_runs_leaves_nothing(number, tmp_path):
    process = started("demo", "--output", tmp_path / "out")
    begun = time.monotonic()
    while not list(tmp_path.iterdir()) and time.monotonic() - begun < 60:
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(number)
    process.send_signal(number)  # impatience changes nothing
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert errors == "interrupted, nothing was written\n"
    assert not list(tmp_path.iterdir())


def test_signals_that_are_to_be_ignored_are(tmp_path):
    process = started("--version", handler="signal.SIG_IGN")
    time.sleep(0.3)
    for number in (signal.SIGINT, signal.SIGHUP):
        process.send_signal(number)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert out.startswith("psa-jax ")


def test_a_signal_while_the_output_takes_its_place_comes_too_late_to_harm_it(tmp_path, monkeypatch, capsys):
    def take_place(folder):
        os.kill(os.getpid(), signal.SIGTERM)
        moved(folder)

    moved = OutputFolder._take_place
    monkeypatch.setattr(OutputFolder, "_take_place", take_place)
    with pytest.raises(typer.Exit) as ended:
        run(lambda folder, show: (folder / "report.json").touch(), tmp_path / "out", force=False)
    assert ended.value.exit_code == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "interrupted, after all was written\n"
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "report.json"]
