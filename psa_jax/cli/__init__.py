"""The command line, `psa-jax`; needs `pip install psa-jax[cli]`."""

import sys


def main() -> None:
    """The entry point of `psa-jax`."""
    try:
        from psa_jax.cli.app import app
    except ImportError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit("psa-jax needs typer and rich: pip install psa-jax[cli]")
    app()
