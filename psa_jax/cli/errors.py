"""Errors as the user meets them: one line each, in the words of the command line."""

import re
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from psa_jax.align.processes import leave

FAILED, INTERRUPTED, LONGEST = 1, 130, 1000
OPTIONS = (
    "treatment|treatments|modalities|layer|obsm|num_components|drop_unlabelled|min_cells|folds|members|epochs|seed|eps|k|"
    "matcher|within|batch|resume"
)
PHRASES = (  # of the library, about what the command line says otherwise or does not have
    (r"\(blockwise matches scores of your own\)", ""),
    (r"\(is the augmentation or the learning rate too large\?\)", "(are there extreme values among the features?)"),
    (r"\(enable x64, or raise it\)", "(raise --eps or --relative-eps)"),
    (r"(?<=potentials extend to new samples)(?=, got)", " (a folder made with --matcher sinkhorn)"),
    (r"\(see coupling\.info\)", "(see report.json)"),
    (r"(?<=modality )(\w): x:", r"\1: features:"),
    (r"^data: ", ""),
    (rf"`({OPTIONS})`", r"--\1"),
    (rf"(?:(?<=^)|(?<=: ))({OPTIONS})(?=:)", r"--\1"),
    (rf"(?<![\w-])({OPTIONS})(?==)|(?<![\w-])(num_components|drop_unlabelled)\b", r"--\1\2"),
    (r"--drop_unlabelled(=True)?", "--drop-unlabelled"),
    (r"--min_cells", "--min-cells"),
    (r"\bfill_missing=True\b", "--fill-missing"),
    (r"\bas_is=True\b", "--as-is"),
    (r"\(`modalities` takes", "(--modalities takes"),
    (r"--num_components", "--num-components"),
    (r"^pairs: ", "--pairs: "),
    (r"\(leave pairs out\)", "(leave --pairs out)"),
    (r"\bpairs=False\b", "--no-pairs"),
    (r"\bpairs=True\b", "--pairs"),
)


class Commands(TyperGroup):
    """The commands; whatever goes wrong in them is told in one line, and with --debug by a traceback, too."""

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **settings: Any) -> Any:
        """Runs a command and exits: 0, 1 for errors, 2 for a wrong use, 130 for Ctrl-C."""
        arguments = list(sys.argv[1:] if args is None else args) or ["--help"]
        settings["standalone_mode"] = False  # or typer would tell of errors itself
        try:
            code = super().main(arguments, prog_name, **settings)
        except typer.Abort:
            code = INTERRUPTED
        except Exception as error:
            if "--debug" in arguments:
                traceback.print_exception(error)
            Console(stderr=True).print(Text(f"error: {told(error)}", style="red"), soft_wrap=True)
            code = getattr(error, "exit_code", FAILED)
            leave(code)
        sys.exit(code if isinstance(code, int) else 0)


def told(error: Exception) -> str:
    """What an error says, in one line and in the words of the command line."""
    name, text = type(error).__name__, rephrased(str(error))
    if hasattr(error, "format_message"):  # a wrong use of the command line
        context = getattr(error, "ctx", None)
        text = error.format_message()  # type: ignore[attr-defined]
        text += "" if context is None else f" ({context.command_path} --help lists what there is)"
    elif isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    elif isinstance(error, MemoryError):
        text = f"out of memory ({text})" if text else "out of memory"
    elif not isinstance(error, ValueError | OSError | ImportError) or not text:
        text = f"{name}: {text} (unexpected; --debug shows where)" if text else f"{name} (--debug shows where)"
    line = "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} … (--debug shows all of it)"


def rephrased(text: str) -> str:
    """A message of the library with options in place of arguments."""
    for pattern, words in PHRASES:
        text = re.sub(pattern, words, text)
    return " ".join(text.split())
