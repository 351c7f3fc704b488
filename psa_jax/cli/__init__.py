"""The command line, `psa-jax`; needs typer and rich."""

from psa_jax.cli.start import main

__all__ = ["main"]
