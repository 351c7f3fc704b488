"""Progress of long work: what runs now, drawn as a bar by rich or told to a function of the caller's own."""

import contextlib
import dataclasses
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Step:
    """Where long work stands; a function given as `progress` is called with one whenever something was done.

    Attributes:
        stage: "classifiers", "refinement", "matching", "projection", "sweep", "evidence" or "predictor".
        done: how much of the stage is done.
        total: of how much; training that stops early ends before.
        modality: its name, where the stage has one.
        member: the number of the member (of an ensemble) at work.
        fold: the number of the fold at work.
        loss: the latest loss on held-out samples, else on those trained on.
    """

    stage: str
    done: int
    total: int
    modality: str | None = None
    member: int | None = None
    fold: int | None = None
    loss: float | None = None

    def __str__(self) -> str:
        """In words: "classifiers, modality a, member 0, fold 3"."""
        names = ((name, getattr(self, name)) for name in ("modality", "member", "fold"))
        return ", ".join([self.stage, *(f"{name} {value}" for name, value in names if value is not None)])


Progress = bool | Callable[[Step], None]


class Watch:
    """What a function with an argument `progress` tells of its work; it tells nothing if nobody listens."""

    def __init__(self, listener: Callable[[Step], None] | None) -> None:
        self._listener = listener
        self._step = Step("", 0, 0)
        self._epochs = self._started = 0
        self._together = 1
        self._lock = threading.Lock()

    @property
    def on_epoch(self) -> Callable[..., None] | None:
        """For `fit` and its like: None without a listener, so that compiled programs do not call back in vain.

        It is the same function every time, so that a program with progress is compiled once, too.
        """
        return None if self._listener is None else tell

    def begin(self, stage: str, total: int, *, modality: str | None = None, epochs: int = 0, together: int = 1) -> None:
        """A stage of `total` parts, or of epochs, so many a run, of which at most `together` are at work at once."""
        self._flush()
        self._step, self._epochs, self._started = Step(stage, 0, total, modality), epochs, 0
        self._together = together
        self._tell()

    def run(self, **names: Any) -> None:
        """The run that comes next, by names that compiled code does not know."""
        self._flush()
        self._step = dataclasses.replace(self._step, **names)

    def advance(self, **names: Any) -> None:
        """One part more is done."""
        with self._lock:
            self._step = dataclasses.replace(self._step, done=self._step.done + 1, **names)
        self._tell()

    def epoch(self, epoch: int, loss: float, **names: Any) -> None:
        """One epoch more is done; where a run starts, all before it have ended but those at work beside it.

        So what they left out by stopping early counts as done.
        """
        with self._lock:
            self._started += epoch == 0
            ended = self._started - self._together
            done = max(self._step.done, ended * self._epochs if epoch == 0 else 0)
            self._step = dataclasses.replace(self._step, done=min(done + 1, self._step.total), loss=loss, **names)
        self._tell()

    def _tell(self) -> None:
        if self._listener is not None:
            self._listener(self._step)

    def _flush(self) -> None:
        """Waits for what compiled code has still to tell of the stage before."""
        if self._listener is not None:
            jax.effects_barrier()


_open: list[Watch] = []  # compiled code calls back from threads of its own: the last one opened is the one that works


@contextlib.contextmanager
def watching(progress: Progress) -> Iterator[Watch]:
    """Opens a watch: of nobody (False), of a bar on the terminal (True), or of a function that gets every `Step`."""
    if progress is False:
        yield Watch(None)
        return
    with Bar() if progress is True else contextlib.nullcontext(progress) as listener:
        watch = Watch(listener)
        _open.append(watch)
        try:
            yield watch
        finally:
            jax.effects_barrier()
            _open.remove(watch)


def tell(epoch: Any, train_loss: Any, valid_loss: Any, *, member: Any = None, fold: Any = None) -> None:
    """The `on_epoch` of whatever trains while a watch is open."""
    if _open:
        loss = float(valid_loss) if math.isfinite(valid_loss) else float(train_loss)
        names = {name: int(value) for name, value in (("member", member), ("fold", fold)) if value is not None}
        _open[-1].epoch(int(epoch), loss, **names)


def tell_part() -> None:
    """Called back from compiled code: one part of the stage is done."""
    if _open:
        _open[-1].advance()


class Bar:
    """A listener that draws: one bar on the terminal, which goes when the work is done. Needs rich."""

    def __init__(self, console: Any = None) -> None:
        try:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                SpinnerColumn,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )
            from rich.progress import Progress as Rich
        except ImportError as error:
            raise ImportError("progress=True needs rich: pip install rich (or give a function of a Step)") from error
        console = console or Console(stderr=True)
        self._rich = Rich(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
            console=console,
            transient=True,
            disable=not (console.is_terminal or console.is_jupyter),
        )
        self._task = self._rich.add_task("", total=None, loss="")

    def __enter__(self) -> "Bar":
        self._rich.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()

    def stop(self) -> None:
        """Gives the terminal back."""
        self._rich.stop()

    def __call__(self, step: Step) -> None:
        """Draws where the work stands."""
        loss = "" if step.loss is None else f"[dim]loss {step.loss:.3f}[/dim]"
        self._rich.update(self._task, description=str(step), completed=step.done, total=step.total, loss=loss)
