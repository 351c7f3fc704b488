"""The commands and their options; how errors and Ctrl-C look to the user."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

import psa_jax
from psa_jax.cli import jobs
from psa_jax.cli.output import OutputFolder
from psa_jax.cli.show import Show

BAD_INPUT, INTERRUPTED = 2, 130

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


class Source(StrEnum):
    """Embedded data."""

    balls = "balls"
    digits = "digits"


class Matcher(StrEnum):
    """How samples are matched within a treatment."""

    sinkhorn = "sinkhorn"
    snn = "snn"
    nearest = "nearest"
    assignment = "assignment"


Force = Annotated[bool, typer.Option("--force", help="Replace an output folder that psa-jax made before.")]
Seed = Annotated[int, typer.Option(min=0, help="Of every random number.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"psa-jax {psa_jax.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Align unpaired multimodal data by propensity scores."""


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder to write.")] = Path("psa-jax-demo"),
    data: Annotated[
        Source, typer.Option(help="Two views of two balls with known positions, or halves of handwritten digits.")
    ] = Source.balls,
    seed: Seed = 0,
    num_samples: Annotated[
        int | None, typer.Option(min=24, help="Balls to train on; half as many are aligned. Default: 4000.")
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Passes over the data. Default: 15 for balls, 2000 steps for digits."),
    ] = None,
    force: Force = False,
) -> None:
    """Align embedded data whose pairs are known, and measure how well that went."""

    def job(folder: Path, show: Show) -> None:
        if data is Source.digits:
            if num_samples is not None:
                raise ValueError("--num-samples: the digits are 1797; it is an option of --data balls only")
            jobs.digits(folder, show, seed=seed, epochs=epochs)
        else:
            jobs.balls(folder, show, seed=seed, num_samples=num_samples or 4000, epochs=epochs or 15)

    _run(job, output, force)


@app.command()
def align(
    file: Annotated[Path, typer.Argument(help="An .h5ad (AnnData) or .h5mu (MuData) file.")],
    treatment: Annotated[str, typer.Option(help="Column of obs with the treatment of each cell.")],
    modalities: Annotated[
        tuple[str, str] | None,
        typer.Option(
            help="Two values of var['feature_types'], two names in obsm, or two modalities of a MuData; "
            "may be left out if there are just two.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder to write.")] = Path("psa-jax-align"),
    matcher: Annotated[Matcher, typer.Option(help="Within each treatment.")] = Matcher.sinkhorn,
    eps: Annotated[
        float | None, typer.Option(help="Of sinkhorn, in units of the distance of scores.", show_default=False)
    ] = None,
    relative_eps: Annotated[
        float | None, typer.Option(help="Of sinkhorn, in units of the spread of the distances. Default: 0.1.")
    ] = None,
    k: Annotated[int | None, typer.Option(min=1, help="Neighbours, of snn and nearest. Default: 1.")] = None,
    seed: Seed = 0,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="The most passes over the data. Default: as many as make 2000 steps.")
    ] = None,
    members: Annotated[int, typer.Option(min=1, help="Classifiers to average for each modality.")] = 1,
    num_components: Annotated[
        int, typer.Option(min=1, help="A modality with more features is reduced to its principal components.")
    ] = 50,
    drop_unlabelled: Annotated[
        bool, typer.Option("--drop-unlabelled", help="Leave cells without a treatment out (they are counted).")
    ] = False,
    force: Force = False,
) -> None:
    """Align two modalities of single cells, of the same cells or of different ones."""

    def job(folder: Path, show: Show) -> None:
        jobs.cells(
            folder,
            show,
            file=file,
            treatment=treatment,
            modalities=modalities,
            matcher=jobs.make_matcher(matcher.value, eps, relative_eps, k),
            matcher_name=matcher.value,
            settings={"eps": eps, "relative_eps": relative_eps, "k": k},
            seed=seed,
            epochs=epochs,
            members=members,
            num_components=num_components,
            drop_unlabelled=drop_unlabelled,
        )

    _run(job, output, force)


def _run(job: Callable[[Path, Show], None], output: Path, force: bool) -> None:
    """Runs a job into a folder that appears when it is complete; errors are one line, bad input exits with 2."""
    show = Show()
    worker = _Worker()
    try:
        with OutputFolder(output, force) as folder, _heeding_signals(worker.interrupted):
            worker.run(lambda: job(folder, show))
        show.written(output)
    except KeyboardInterrupt:
        show.stop("interrupted, nothing was written")
        if worker.alive:  # compiled code cannot be told to stop
            os._exit(INTERRUPTED)
        raise typer.Exit(INTERRUPTED) from None
    except (ValueError, OSError, ImportError) as error:
        show.stop(f"error: {' '.join(str(error).split())}")
        raise typer.Exit(BAD_INPUT) from None
    finally:
        show.stop()


@contextlib.contextmanager
def _heeding_signals(interrupted: threading.Event) -> Iterator[None]:
    """Ctrl-C and SIGTERM set a flag: an exception could be raised inside a callback of Python's, and be lost there."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = signal.SIGINT, signal.SIGTERM
    before = [signal.signal(number, lambda *_: interrupted.set()) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


class _Worker:
    """Runs a function in a thread, so that the main thread is free to hear Ctrl-C while compiled code runs."""

    def __init__(self) -> None:
        self._started, self._ended, self.interrupted = threading.Event(), threading.Event(), threading.Event()

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
            if self.interrupted.is_set():
                raise KeyboardInterrupt
        if raised:
            raise raised[0]
