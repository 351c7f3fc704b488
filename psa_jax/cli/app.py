"""The commands and their options."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

import psa_jax
from psa_jax.align.processes import join
from psa_jax.cli import folders, jobs
from psa_jax.cli.cells import QUICK, Fit, Wanted, cells
from psa_jax.cli.errors import Commands
from psa_jax.cli.jobs import make_matcher
from psa_jax.cli.options import MOST, Debug, Force, Seed
from psa_jax.cli.reading import Source, check_features, refuse, words_of
from psa_jax.cli.running import run
from psa_jax.cli.show import Show
from psa_jax.propensity import Learner

app = typer.Typer(name="psa-jax", cls=Commands, add_completion=False, pretty_exceptions_enable=False)


class Embedded(StrEnum):
    """Embedded data."""

    balls = "balls"
    digits = "digits"


class Matcher(StrEnum):
    """How samples are matched within a treatment."""

    sinkhorn = "sinkhorn"
    snn = "snn"
    nearest = "nearest"
    assignment = "assignment"
    hierarchical = "hierarchical"


def _folder(name: str) -> Path:
    if not name:
        raise typer.BadParameter("expected a folder, got no name")
    return Path(name)


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
        Embedded, typer.Option(help="Two views of two balls with known positions, or halves of handwritten digits.")
    ] = Embedded.balls,
    seed: Seed = 0,
    num_samples: Annotated[
        int | None, typer.Option(min=24, max=MOST, help="Balls to train on; half as many are aligned. Default: 4000.")
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, max=MOST, help="Passes over the data. Default: 15 for balls, 550 steps for digits."),
    ] = None,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Align embedded data whose pairs are known, and measure how well that went."""

    if data is Embedded.digits and num_samples is not None:
        raise typer.BadParameter("an option of --data balls only, the digits are 1797", param_hint="--num-samples")

    def job(folder: Path, show: Show) -> None:
        if data is Embedded.digits:
            jobs.digits(folder, show, seed=seed, epochs=epochs)
        else:
            jobs.balls(folder, show, seed=seed, num_samples=num_samples or 4000, epochs=epochs or 15)

    run(job, output, force)


@app.command()
def align(
    files: Annotated[
        list[Path],
        typer.Argument(help="One .h5ad, .zarr (AnnData) or .h5mu (MuData) file, or one AnnData file of each modality."),
    ],
    treatment: Annotated[
        list[str],
        typer.Option(
            help="Column of obs with the treatment of each cell; two names if the files differ.", metavar="NAME"
        ),
    ],
    within: Annotated[
        list[str] | None,
        typer.Option(
            help="Match cells only with those that share this column of obs too, such as their plate; "
            "given twice if the files differ.",
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[
        list[str] | None,
        typer.Option(
            help="Column of obs with what cells came in, such as a donor, which classifiers see; given twice if the "
            "files differ.",
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
    modalities: Annotated[
        tuple[str, str] | None,
        typer.Option(
            help="Two values of var['feature_types'], two names in obsm, or two modalities of a MuData; "
            "may be left out if there are just two. Of two files: what to call them, else their own names.",
            show_default=False,
        ),
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(help="Layer with the features, instead of X; not for names in obsm.", show_default=False),
    ] = None,
    obsm: Annotated[
        str | None,
        typer.Option(help="Array of obsm instead of X, of those of two files that have it.", show_default=False),
    ] = None,
    treatments: Annotated[
        str | None, typer.Option(help="Use only these, separated by commas.", show_default=False)
    ] = None,
    min_cells: Annotated[
        int, typer.Option(min=1, max=MOST, help="Leave treatments with fewer cells in a modality out.")
    ] = 1,
    control: Annotated[
        str | None,
        typer.Option(help="The treatment that is none: told apart, others by their distance.", show_default=False),
    ] = None,
    relative_to_control: Annotated[
        bool, typer.Option("--relative-to-control", help="Scores tell how cells differ from those of the control.")
    ] = False,
    as_is: Annotated[bool, typer.Option("--as-is", help="Take counts as they are (else: total, log).")] = False,
    output: Annotated[Path, typer.Option(help="Folder to write.")] = Path("psa-jax-align"),
    features: Annotated[
        str | None,
        typer.Option(
            help="To impute: all, hvg:NUMBER (those that vary most) or a file of names. Default: all, at most 2000.",
            show_default=False,
        ),
    ] = None,
    impute_b: Annotated[bool, typer.Option("--impute-b", help="Impute features of a for cells of b, too.")] = False,
    matcher: Annotated[Matcher, typer.Option(help="Within each treatment.")] = Matcher.sinkhorn,
    eps: Annotated[
        float | None, typer.Option(help="Of sinkhorn, in units of the distance of scores.", show_default=False)
    ] = None,
    relative_eps: Annotated[
        float | None, typer.Option(help="Of sinkhorn, in units of the spread of the distances. Default: 0.1.")
    ] = None,
    k: Annotated[int | None, typer.Option(min=1, max=MOST, help="Neighbours, of snn and nearest. Default: 1.")] = None,
    seed: Seed = 0,
    tune: Annotated[bool, typer.Option("--tune", help="Choose the smoothing by labels first; twice the time.")] = False,
    mesh: Annotated[
        bool,
        typer.Option(
            "--mesh", help="Use all devices: of this machine, or of all that Slurm, Open MPI or their like started."
        ),
    ] = False,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            parser=_folder,
            help="Keep finished classifiers and matched treatments here, for a run that is started again.",
            show_default=False,
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="For a first look: one classifier, three folds.")] = False,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, max=MOST, help="The most passes over the data. Default: as many as make 550 steps."),
    ] = None,
    members: Annotated[
        int | None,
        typer.Option(min=1, max=MOST, help=f"Classifiers to average for each modality. Default: {Learner.members}."),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(min=3, max=MOST, help=f"Of cross-fitting, at most as many as cells. Default: {Learner.folds}."),
    ] = None,
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
            help="Of a MuData or two files: whether cells of the same name are one cell. Default: they are, noted.",
        ),
    ] = None,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Align two modalities of single cells, of the same cells or of different ones, and impute one from the other."""
    make_matcher(matcher.value, eps, relative_eps, k)
    words, columns = words_of(files, treatment)
    chosen = None if treatments is None else tuple(name.strip() for name in treatments.split(",") if name.strip())
    source = Source(
        words,
        columns,
        modalities,
        layer,
        num_components,
        drop_unlabelled,
        as_is,
        chosen,
        min_cells,
        obsm,
        pairs,
        tuple(within or ()),
        tuple(batch or ()),
    )
    if quick and tune:
        refuse("--quick, --tune", "the one asks for little time and the other for more: expected one of them")
    if quick and (members is not None or folds is not None):
        refuse("--quick", "it is one member and three folds: expected no --members and no --folds beside it")
    if relative_to_control and control is None:
        refuse("--relative-to-control", "expected --control beside it, which names the control")
    if control is not None and chosen is not None and control not in chosen:
        refuse("--control", f"expected one of --treatments {treatments}, got {control}")
    members = (QUICK["members"] if quick else Learner.members) if members is None else members
    folds = (QUICK["folds"] if quick else Learner.folds) if folds is None else folds
    fit = Fit(matcher.value, eps, relative_eps, k, seed, epochs, members, folds, tune, relative_to_control, mesh)
    if mesh:
        join()
    wanted = Wanted(control, check_features(features), impute_b)
    run(lambda folder, show: cells(folder, show, source, fit, wanted, str(output), resume), output, force)


for command in (folders.predict, folders.score, folders.match, folders.report, folders.diagnose):
    app.command()(command)
