"""Work that can be interrupted at any moment, and leaves nothing half-written."""

import contextlib
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import typer

from psa_jax.cli.output import OutputFile, OutputFolder
from psa_jax.cli.show import Show

ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def run(
    job: Callable[[Path, Show], None],
    output: Path,
    force: bool,
    kind: type[OutputFolder] | type[OutputFile] = OutputFolder,
) -> None:
    """Runs a job into a folder or file that appears when it is complete; a signal ends it with 128 and its number.

    Of several processes each does the whole job, as its devices are needed; only the first one's output is kept.
    """
    other = jax.distributed.is_initialized() and jax.process_index() > 0
    show, worker = Show(quiet=other), _Worker()
    try:
        with _heeding_signals(worker.hear), _scratch(output, other) as kept, kind(kept, force) as place:
            worker.run(lambda: job(place, show))
        show.written(output)
        told = "interrupted, after all was written"
    except KeyboardInterrupt:
        worker.hear(worker.heard or signal.SIGINT)
        told = "interrupted, nothing was written"
    finally:
        show.stop()
    if worker.heard:
        show.stop(told)
        if worker.alive:  # compiled code cannot be told to stop
            sys.stdout.flush()
            os._exit(128 + worker.heard)
        raise typer.Exit(128 + worker.heard)


@contextlib.contextmanager
def _scratch(output: Path, wanted: bool) -> Iterator[Path]:
    """The output itself, or one of its name that is thrown away."""
    if not wanted:
        yield output
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / output.name


@contextlib.contextmanager
def _heeding_signals(hear: Callable[[int], None]) -> Iterator[None]:
    """Ctrl-C and its like are noted: an exception could be raised inside a callback of Python's, and be lost there."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in ENDING}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, lambda number, _: hear(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Worker:
    """Runs a function in a thread, so that the main thread is free to hear Ctrl-C while compiled code runs."""

    def __init__(self) -> None:
        self._started, self._ended = threading.Event(), threading.Event()
        self.heard = 0

    def hear(self, number: int) -> None:
        """Notes a signal."""
        self.heard = number

    @property
    def alive(self) -> bool:
        # not Thread.is_alive(), which an interrupted join() sets to False before Python 3.13
        return self._started.is_set() and not self._ended.is_set()

    def run(self, function: Callable[[], None]) -> None:
        raised: list[BaseException] = []

        def target() -> None:
            try:
                function()
            except BaseException as error:
                raised.append(error)
            finally:
                self._ended.set()

        self._started.set()
        threading.Thread(target=target, daemon=True).start()
        while not self._ended.wait(0.1):
            if self.heard:
                raise KeyboardInterrupt
        if raised:
            raise raised[0]
        if self.heard:
            raise KeyboardInterrupt
