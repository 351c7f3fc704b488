"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

MOST = 2**31 - 1  # of 32 bits

Force = Annotated[bool, typer.Option("--force", help="Replace an output that psa-jax made before.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of every random number.")]  # jax wraps larger ones
Debug = Annotated[bool, typer.Option("--debug", help="Show where an error came from.")]
Folder = Annotated[Path, typer.Argument(help="A folder that psa-jax align made.")]
New = Annotated[Path, typer.Argument(help="An .h5ad, .zarr or .h5mu file of new cells of the first modality.")]
Column = Annotated[
    str | None,
    typer.Option(help="Column of obs with their treatments. Default: as in training, if it is there.", metavar="NAME"),
]
Within = Annotated[
    str | None,
    typer.Option(help="Column of obs with what training matched within. Default: as in training.", metavar="NAME"),
]
Batch = Annotated[
    str | None,
    typer.Option(help="Column of obs with what they came in. Default: as in training, if it is there.", metavar="NAME"),
]
FillMissing = Annotated[
    bool, typer.Option("--fill-missing", help="Features that are missing take their training means (they are counted).")
]
FromB = Annotated[bool, typer.Option("--from-b", help="The new cells are of the second modality.")]
