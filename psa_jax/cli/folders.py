"""The commands that go on with a folder that `psa-jax align` made, and their options."""

from pathlib import Path
from typing import Annotated

import typer

from psa_jax.cli import new
from psa_jax.cli.folder import open_folder
from psa_jax.cli.options import Batch, Column, Debug, FillMissing, Folder, Force, FromB, New, Seed, Within
from psa_jax.cli.output import OutputFile
from psa_jax.cli.reading import check_output
from psa_jax.cli.report import write_html
from psa_jax.cli.running import run
from psa_jax.cli.show import Show


def predict(
    folder: Folder,
    file: New,
    output: Annotated[Path, typer.Option(help="The .h5ad file to write.")] = Path("imputed_new.h5ad"),
    treatment: Column = None,
    within: Within = None,
    batch: Batch = None,
    fill_missing: FillMissing = False,
    from_b: FromB = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Impute the other modality's features for new cells, with a treatment or without."""
    check_output(output, ".h5ad")

    def job(place: Path, show: Show) -> None:
        new.predict(
            place,
            show,
            open_folder(folder, "b" if from_b else "a"),
            file,
            new.Labels(treatment, within, batch),
            fill_missing,
        )

    run(job, output, force, OutputFile)


def score(
    folder: Folder,
    file: New,
    output: Annotated[Path, typer.Option(help="The .h5ad file to write.")] = Path("scored.h5ad"),
    batch: Batch = None,
    fill_missing: FillMissing = False,
    from_b: FromB = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Score new cells: how probable each treatment is, and where they stand among the cells that were aligned."""
    check_output(output, ".h5ad")

    def job(place: Path, show: Show) -> None:
        new.score(place, show, open_folder(folder, "b" if from_b else "a"), file, new.Labels(batch=batch), fill_missing)

    run(job, output, force, OutputFile)


def match(
    folder: Folder,
    file: New,
    output: Annotated[Path, typer.Option(help="The .csv file to write.")] = Path("matches.csv"),
    treatment: Column = None,
    within: Within = None,
    batch: Batch = None,
    fill_missing: FillMissing = False,
    from_b: FromB = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Find the best partners of new cells among the other modality's cells that were aligned."""
    check_output(output, ".csv")

    def job(place: Path, show: Show) -> None:
        new.match(
            place,
            show,
            open_folder(folder, "b" if from_b else "a"),
            file,
            new.Labels(treatment, within, batch),
            fill_missing,
        )

    run(job, output, force, OutputFile)


def report(
    folder: Folder,
    output: Annotated[
        Path | None, typer.Option(help="The .html file to write. Default: report.html of the folder, again.")
    ] = None,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Write report.html again from what a folder holds."""
    place = folder / "report.html" if output is None else output
    check_output(place, ".html")

    def job(path: Path, show: Show) -> None:
        with show.stage("report", "report.html"), show.noting():
            write_html(path, show, open_folder(folder), str(folder))
        show.print_notes()

    run(job, place, force or output is None, OutputFile)


def diagnose(folder: Folder, seed: Seed = 0, debug: Debug = False) -> None:
    """Say more of the evidence, by treatment, than the report does; nothing is written."""
    new.diagnose(Show(), open_folder(folder), seed)
