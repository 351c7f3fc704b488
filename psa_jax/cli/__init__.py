"""The command line, `psa-jax`; needs typer and rich.

It begins in `start.py`, which an installation has as `psa_jax_start`, beside this package.
"""
