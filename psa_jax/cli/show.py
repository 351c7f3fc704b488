"""What the user sees: stages, progress, notes and tables."""

import contextlib
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from psa_jax.alignment import AlignmentWarning

_T = TypeVar("_T")


class Show:
    """One command's terminal: stages with their times, a bar for epochs, notes, tables."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self.errors = Console(stderr=True, highlight=False, soft_wrap=True)
        self.timings: dict[str, float] = {}
        self.notes: list[str] = []
        self._live: Any = None

    @contextlib.contextmanager
    def stage(self, name: str, text: str) -> Iterator[None]:
        """Shows that a stage runs, and how long it took, compilation included."""
        self._live = self.console.status(f"{text} ...")
        self._live.start()
        start = time.perf_counter()
        try:
            yield
        finally:
            self._live.stop()
        self._finished(name, text, start)

    def training(self, runs: int, epochs: int, work: Callable[[Callable[[Any, Any, Any], None]], _T]) -> _T:
        """Shows a bar over the epochs of `runs` classifiers while `work(on_epoch)` runs.

        Its time is split in two: up to the last epoch, and the rest, which is matching.
        """
        text = "classifiers"
        progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epochs"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[loss]}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        bar = EpochBar(progress, runs, epochs)
        self._live = progress
        start = time.perf_counter()
        with progress:
            result = work(bar)
            jax.block_until_ready(result)
        end = time.perf_counter()
        middle = min(max(bar.last, start), end)
        self._line("classifiers", text, middle - start)
        self._line("scores_and_matching", "scores and matching", end - middle)
        return result

    def _finished(self, name: str, text: str, start: float) -> None:
        self._line(name, text, time.perf_counter() - start)

    def _line(self, name: str, text: str, seconds: float) -> None:
        self.timings[name] = round(seconds, 3)
        self.console.print(f"[green]✓[/green] {text} [dim]{seconds:.1f} s[/dim]")

    def note(self, text: str) -> None:
        """Keeps a note for the end and for the report."""
        self.notes.append(text)

    @contextlib.contextmanager
    def noting(self, names: Sequence[str]) -> Iterator[None]:
        """Turns alignment warnings into notes, with the names of treatments instead of their codes."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", AlignmentWarning)
            yield
        for warning in caught:
            if issubclass(warning.category, AlignmentWarning):
                self.note(with_names(str(warning.message), names))
            else:
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)

    def print_notes(self) -> None:
        """Prints the notes."""
        for text in self.notes:
            self.console.print(f"[yellow]note[/yellow] {escape(text)}")

    def say(self, text: str) -> None:
        """Prints a sentence."""
        self.console.print(escape(text))

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


class EpochBar:
    """The callback of `fit`: counts the epochs of several classifiers, whether they run in turn or side by side.

    A classifier that starts moves the bar to where it would be had those before not stopped early.
    """

    def __init__(self, progress: Progress, runs: int, epochs: int) -> None:
        self.last = 0.0
        self._progress, self._epochs = progress, epochs
        self._done, self._before = 0, -1
        self._lock = threading.Lock()
        self._task = progress.add_task("classifiers", total=runs * epochs, loss="compiling")

    def __call__(self, epoch: Any, train_loss: Any, valid_loss: Any) -> None:
        """Called on the host after every epoch of every classifier."""
        with self._lock:
            epoch = int(epoch)
            if epoch == 0 and self._before > 0:
                self._done = -(-self._done // self._epochs) * self._epochs
            self._before = epoch
            self._done += 1
            self.last = time.perf_counter()
            loss = f"[dim]held-out loss {float(valid_loss):.3f}[/dim]"
            self._progress.update(self._task, completed=self._done, loss=loss)


def with_names(text: str, names: Sequence[str]) -> str:
    """Replaces the codes in "treatments 0, 3" by names.

    Example:
        >>> with_names("did not converge within treatments 0, 2 (see info)", ["x", "y", "z"])
        'did not converge within treatments x, z (see info)'
    """

    def replace(found: re.Match[str]) -> str:
        return "treatments " + ", ".join(names[int(code)] for code in found[1].split(", "))

    return re.sub(r"treatments (\d+(?:, \d+)*)", replace, text)


def metrics_table(rows: dict[str, dict[str, float | None]]) -> Table:
    """A row for each way of matching, a column for each figure that any row has."""
    columns = {"trace": "trace ↑", "latent_mse": "latent MSE ↓", "foscttm": "FOSCTTM ↓"}
    columns = {
        name: title for name, title in columns.items() if any(row.get(name) is not None for row in rows.values())
    }
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("match")
    for title in columns.values():
        table.add_column(title, justify="right")
    for label, row in rows.items():
        table.add_row(escape(label), *(number(row.get(name), 4) for name in columns))
    return table


def treatments_table(rows: list[dict[str, Any]], names: tuple[str, str]) -> Table:
    """A row for each treatment: sizes, what became of it, and trace against chance where pairs are known."""
    known = any(row["trace"] is not None for row in rows)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("treatment", overflow="fold", vertical="bottom")
    for title in (*names, "status", "steps", "marginal\nerror", *(("trace", "chance") if known else ())):
        table.add_column(title, justify="left" if title == "status" else "right", no_wrap=True)
    for row in rows:
        good = row["status"] == "matched"
        status = row["status"] if good else f"[yellow]{row['status']}[/yellow]"
        figures = (number(row["trace"], 3), number(row["chance"], 3)) if known else ()
        table.add_row(
            escape(row["name"]),
            str(row["size_a"]),
            str(row["size_b"]),
            status,
            number(row["num_iters"], 0),
            "–" if row["marginal_error"] is None else f"{row['marginal_error']:.0e}",
            *figures,
        )
    return table


def number(value: float | None, digits: int) -> str:
    """The number with so many decimals, a dash for None."""
    return "–" if value is None else f"{value:.{digits}f}"
