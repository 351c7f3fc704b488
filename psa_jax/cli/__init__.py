"""The command line, `psa-jax`; needs typer and rich."""

import sys


def main() -> None:
    """The entry point of `psa-jax`."""
    try:
        from psa_jax.cli.app import app
    except ImportError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit("psa-jax needs typer and rich: pip install typer rich")
    app()
