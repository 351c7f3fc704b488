"""What the user sees: stages, progress, notes and tables."""

import contextlib
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from psa_jax.cli.errors import rephrased
from psa_jax.progress import Bar, Step

_T = TypeVar("_T")


class Show:
    """One command's terminal: stages with their times, a bar for epochs, notes, tables."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(highlight=False, quiet=quiet)
        self.errors = Console(stderr=True, highlight=False, soft_wrap=True)
        self.timings: dict[str, float] = {}
        self.notes: list[str] = []
        self._live: Any = None

    @contextlib.contextmanager
    def stage(self, name: str, text: str) -> Iterator[None]:
        """Shows that a stage runs, and how long it took, compilation included."""
        self._live = self.console.status(f"{escape(text)} ...")
        self._live.start()
        start = time.perf_counter()
        try:
            yield
        finally:
            self._live.stop()
        self._finished(name, text, start)

    def aligning(self, work: Callable[[Callable[[Step], None]], _T]) -> _T:
        """Shows a bar while `work(tell)` runs, where `tell` is the `progress` of `align`.

        Its time is split in two: the classifiers, and the rest, which is scores and matching.
        """
        start = end = time.perf_counter()

        def tell(step: Step) -> None:
            nonlocal end
            if step.stage == "classifiers":
                end = time.perf_counter()
            bar(step)

        with Bar(self.console) as bar:
            self._live = bar
            result = work(tell)
            jax.block_until_ready(result)
        self._line("classifiers", "classifiers", end - start)
        self._line("scores_and_matching", "scores and matching", time.perf_counter() - end)
        return result

    def _finished(self, name: str, text: str, start: float) -> None:
        self._line(name, text, time.perf_counter() - start)

    def _line(self, name: str, text: str, seconds: float) -> None:
        self.timings[name] = round(seconds, 3)
        self.console.print(f"[green]✓[/green] {escape(text)} [dim]{seconds:.1f} s[/dim]")

    def note(self, text: str) -> None:
        """Keeps a note for the end and for the report."""
        self.notes.append(text)

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """Turns warnings that are meant for users, and what the library logs, into notes, one for each text."""
        with warnings.catch_warnings(record=True) as caught, _logged(self.note):
            warnings.simplefilter("always", UserWarning)
            yield
        for warning in caught:
            if not issubclass(warning.category, UserWarning):
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
            elif (text := rephrased(str(warning.message))) not in self.notes:
                self.note(text)

    def print_notes(self) -> None:
        """Prints the notes."""
        for text in self.notes:
            self.console.print(f"[yellow]note[/yellow] {escape(text)}")

    def say(self, text: str) -> None:
        """Prints a sentence."""
        self.console.print(escape(text))

    def verbatim(self, text: str) -> None:
        """Prints lines as they are, whatever the width."""
        self.console.print(escape(text), soft_wrap=True)

    def table(self, make: Callable[[int], Table]) -> None:
        """Prints the table that `make(width)` returns; one that needs more width is not cut."""
        self.console.print("", make(self.console.width), "", sep="\n", crop=False)

    def written(self, path: Path) -> None:
        """Says where the output is."""
        self.console.print(f"[green]✓[/green] written to [bold]{escape(str(path))}[/bold]", soft_wrap=True)

    def stop(self, message: str | None = None) -> None:
        """Gives the terminal back, and prints a last line to stderr."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        if message is not None:
            self.errors.print(f"[red]{escape(message)}[/red]")


@contextlib.contextmanager
def _logged(note: Callable[[str], None]) -> Iterator[None]:
    """Passes on what the library logs."""
    log, handler = logging.getLogger("psa_jax"), logging.Handler()
    handler.emit = lambda record: note(record.getMessage())
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
