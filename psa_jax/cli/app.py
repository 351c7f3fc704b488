"""The commands and their options."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

import psa_jax
from psa_jax.cli import jobs
from psa_jax.cli.errors import Commands
from psa_jax.cli.running import run
from psa_jax.cli.show import Show
from psa_jax.propensity import Learner

MOST = 2**31 - 1  # of 32 bits

app = typer.Typer(name="psa-jax", cls=Commands, add_completion=False, pretty_exceptions_enable=False)


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
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of every random number.")]  # jax wraps larger ones
Debug = Annotated[bool, typer.Option("--debug", help="Show where an error came from.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"psa-jax {psa_jax.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Debug = False,
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
        int | None, typer.Option(min=24, max=MOST, help="Balls to train on; half as many are aligned. Default: 4000.")
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, max=MOST, help="Passes over the data. Default: 15 for balls, 800 steps for digits."),
    ] = None,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Align embedded data whose pairs are known, and measure how well that went."""

    if data is Source.digits and num_samples is not None:
        raise typer.BadParameter("an option of --data balls only, the digits are 1797", param_hint="--num-samples")

    def job(folder: Path, show: Show) -> None:
        if data is Source.digits:
            jobs.digits(folder, show, seed=seed, epochs=epochs)
        else:
            jobs.balls(folder, show, seed=seed, num_samples=num_samples or 4000, epochs=epochs or 15)

    run(job, output, force)


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
    layer: Annotated[
        str | None,
        typer.Option(help="Layer with the features, instead of X; not for names in obsm.", show_default=False),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder to write.")] = Path("psa-jax-align"),
    matcher: Annotated[Matcher, typer.Option(help="Within each treatment.")] = Matcher.sinkhorn,
    eps: Annotated[
        float | None, typer.Option(help="Of sinkhorn, in units of the distance of scores.", show_default=False)
    ] = None,
    relative_eps: Annotated[
        float | None, typer.Option(help="Of sinkhorn, in units of the spread of the distances. Default: 0.1.")
    ] = None,
    k: Annotated[int | None, typer.Option(min=1, max=MOST, help="Neighbours, of snn and nearest. Default: 1.")] = None,
    seed: Seed = 0,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, max=MOST, help="The most passes over the data. Default: as many as make 800 steps."),
    ] = None,
    members: Annotated[
        int, typer.Option(min=1, max=MOST, help="Classifiers to average for each modality.")
    ] = Learner.members,
    folds: Annotated[
        int, typer.Option(min=3, max=MOST, help="Of cross-fitting, at most as many as there are cells.")
    ] = 5,
    num_components: Annotated[
        int, typer.Option(min=1, max=MOST, help="A modality with more features is reduced to its principal components.")
    ] = 50,
    drop_unlabelled: Annotated[
        bool, typer.Option("--drop-unlabelled", help="Leave cells without a treatment out (they are counted).")
    ] = False,
    pairs: Annotated[
        bool | None,
        typer.Option(
            "--pairs/--no-pairs",
            help="Of a MuData: whether cells of the same name are one cell. Default: they are, noted where all names "
            "are plain numbers.",
        ),
    ] = None,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Align two modalities of single cells, of the same cells or of different ones."""
    chosen = jobs.make_matcher(matcher.value, eps, relative_eps, k)

    def job(folder: Path, show: Show) -> None:
        jobs.cells(
            folder,
            show,
            file=file,
            treatment=treatment,
            modalities=modalities,
            layer=layer,
            matcher=chosen,
            matcher_name=matcher.value,
            settings={"eps": eps, "relative_eps": relative_eps, "k": k},
            seed=seed,
            epochs=epochs,
            members=members,
            folds=folds,
            num_components=num_components,
            drop_unlabelled=drop_unlabelled,
            pairs=pairs,
        )

    run(job, output, force)
