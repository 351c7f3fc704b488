"""Files that the command line is given: which options fit them, and what is read from them."""

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import typer

from psa_jax import io
from psa_jax.io.stored import is_large, open_stored

KINDS = (".h5ad", ".h5mu", ".zarr")
MANY = 2000  # features: more are imputed only if they are asked for


@dataclasses.dataclass(frozen=True)
class Source:
    """Files and how to read them.

    Attributes:
        files: one of both modalities, or one of each.
        treatment: the column of obs, or its name in each of two files.
        modalities: their names.
        layer: the layer instead of `X`.
        num_components: more features than these are reduced.
        drop_unlabelled: leave cells without a treatment out.
        as_is: take counts as they are.
        treatments: use only these.
        min_cells: leave treatments with fewer cells out.
        obsm: the array of `obsm` instead of `X`, of those of two files that have it.
        pairs: whether cells of the same name are one cell; None for a note.
        within: the column of a further label to match within, or its name in each of two files; none for none.
        batch: the column of what cells came in, or its name in each of two files; none for none.
    """

    files: tuple[Path, ...]
    treatment: tuple[str, ...]
    modalities: tuple[str, str] | None = None
    layer: str | None = None
    num_components: int = 50
    drop_unlabelled: bool = False
    as_is: bool = False
    treatments: tuple[str, ...] | None = None
    min_cells: int = 1
    obsm: str | None = None
    pairs: bool | None = None
    within: tuple[str, ...] = ()
    batch: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuses what contradicts itself, before any work."""
        words, treatment = self.files, self.treatment
        if len(words) > 2:
            refuse("FILES", f"expected one file, or one of each modality, got {len(words)}")
        if len(treatment) > len(words):
            refuse("--treatment", f"expected one column for one file, got {' '.join(treatment)}")
        if len(treatment) > 2:
            refuse("--treatment", f"expected one column, or one for each of two files, got {' '.join(treatment)}")
        for option, names in (("--within", self.within), ("--batch", self.batch)):
            if len(names) > len(words):
                refuse(option, f"expected one column for each file at most, got {' '.join(names)}")
        if len(words) == 2:
            for word in words:
                if word.suffix == ".h5mu":
                    refuse("FILES", f"expected two files of one modality each, got {word} (an .h5mu has both)")
        elif self.obsm is not None:
            refuse("--obsm", "an option of two files only (--modalities takes names in obsm)")
        if self.treatments is not None and len(set(self.treatments)) < 2:
            refuse("--treatments", f"expected two or more, separated by commas, got {', '.join(self.treatments)}")

    @property
    def shared(self) -> dict[str, Any]:
        """The arguments that every reader of `psa_jax.io` takes."""
        names = "layer", "num_components", "drop_unlabelled", "as_is", "treatments", "min_cells"
        return {name: getattr(self, name) for name in names} | {"columns": self.columns}

    @property
    def columns(self) -> io.Columns:
        """What else is read of obs."""
        return io.Columns(_one_or_two(self.within), _one_or_two(self.batch))


def _one_or_two(names: tuple[str, ...]) -> str | tuple[str, ...] | None:
    return None if not names else names[0] if len(names) == 1 else names


def words_of(files: list[Path], treatment: list[str]) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Files and columns: a last word that is no file (`--treatment guide perturbation`) is the second file's column."""
    if len(files) > 2 and files[-1].suffix not in KINDS and len(treatment) == 1:
        return tuple(files[:-1]), (*treatment, str(files[-1]))
    return tuple(files), tuple(treatment)


@dataclasses.dataclass(frozen=True)
class Read:
    """What was read: the data, and the AnnData of each modality."""

    loaded: io.Loaded
    a: Any
    b: Any


def read(source: Source) -> Read:
    """Reads the files."""
    kinds = [check_suffix(file) for file in source.files]
    with quietly():
        if len(kinds) == 2:
            one, other = (open_file(file, stay=True) for file in source.files)
            stems = (source.files[0].stem, source.files[1].stem)
            names = source.modalities or (stems if stems[0] != stems[1] else None)
            obsm = None
            if source.obsm is not None:
                obsm = tuple(source.obsm if source.obsm in adata.obsm else None for adata in (one, other))
                if obsm == (None, None):
                    raise ValueError(f"--obsm: expected an array in obsm of one of the files, got {source.obsm!r}")
            treatment = source.treatment if len(source.treatment) == 2 else source.treatment[0]
            loaded = io.from_anndata(
                one, other, treatment=treatment, modalities=names, obsm=obsm, pairs=source.pairs, **source.shared
            )
            return Read(loaded, one, other)
        if kinds[0] == ".h5mu":
            found = open_file(source.files[0], stay=True)
            loaded = io.from_mudata(
                found, treatment=source.treatment[0], modalities=source.modalities, pairs=source.pairs, **source.shared
            )
            a, b = (found.mod[name] for name in loaded.modalities)
            return Read(loaded, a, b)
        if source.pairs is not None:
            raise ValueError(
                "--pairs, --no-pairs: for an .h5mu file only, or two files; the cells of one file have both modalities"
            )
        found = open_file(source.files[0], stay=True)
        loaded = io.from_anndata(found, treatment=source.treatment[0], modalities=source.modalities, **source.shared)
        return Read(loaded, found, found)


def check_features(wanted: str | None) -> Any:
    """What `--features` asks for: "all", a number of the most variable, names, or None."""
    if wanted is None or wanted == "all":
        return wanted
    if wanted.startswith("hvg:"):
        number = wanted.removeprefix("hvg:")
        if not number.isdecimal() or int(number) < 1:
            refuse("--features", f"expected a number from 1 up after hvg:, got {number!r}")
        return int(number)
    path = Path(wanted)
    if not path.is_file():
        refuse("--features", f"expected all, hvg:NUMBER or a file of names, one a line, got {wanted}")
    names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not names:
        refuse("--features", f"expected names, one a line, got none in {wanted}")
    return names


def chosen_features(wanted: Any, number: int) -> Any:
    """What is imputed of so many features: what is asked for, else all unless they are many."""
    return wanted if wanted is not None else "all" if number <= MANY else MANY


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """While files are read or written: what packages say about each other is left out."""
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        yield


def check_suffix(file: Path) -> str:
    """The kind of a file."""
    if file.suffix not in KINDS:
        raise ValueError(f"{file}: expected a file that ends in .h5ad or .zarr (AnnData) or .h5mu (MuData)")
    return file.suffix


def open_file(file: Path, *, stay: bool = False) -> Any:
    """Reads an `.h5ad`, `.zarr` or `.h5mu` file; matrices of a large one may `stay` in it."""
    kind = check_suffix(file)
    if not (file.is_dir() if kind == ".zarr" else file.is_file()):
        wanted = "a folder" if kind == ".zarr" else "a file"
        raise ValueError(f"{file}: expected {wanted}, got {'a folder' if file.is_dir() else 'no such file'}")
    try:
        import anndata
        import mudata
    except ImportError as error:
        raise ImportError(f"{kind} files need anndata and mudata: pip install anndata mudata") from error
    readers = {".h5ad": anndata.read_h5ad, ".zarr": anndata.read_zarr, ".h5mu": mudata.read_h5mu}
    in_place = {".h5ad": open_stored, ".zarr": open_stored, ".h5mu": functools.partial(mudata.read_h5mu, backed="r")}
    try:
        return (in_place if stay and is_large(file) else readers)[kind](file)
    except Exception as error:
        raise ValueError(f"{file}: could not be read as {kind} ({type(error).__name__}: {error})") from error


def check_output(path: Path, suffix: str) -> None:
    """Refuses the name of an output of another kind."""
    if path.suffix != suffix:
        refuse("--output", f"expected a name that ends in {suffix}, got {path}")


def refuse(option: str, text: str) -> NoReturn:
    """A wrong use of the command line."""
    raise typer.BadParameter(text, param_hint=option)
