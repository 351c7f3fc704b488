"""How `psa-jax` begins: it hears signals while all else is still imported, so nothing of psa_jax is imported above."""

import os
import signal
import sys
from types import FrameType

ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def main() -> None:
    """The entry point of `psa-jax`."""
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as of nohup, which asks to go on
            signal.signal(number, _leave)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # terminals that have no ✓
    try:
        from psa_jax.cli.app import app
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        if isinstance(error, ImportError) and error.name in ("typer", "rich"):
            sys.exit("error: psa-jax needs typer and rich: pip install typer rich")
        sys.exit(f"error: {type(error).__name__}: {' '.join(str(error).split())} (--debug shows where)")
    app()


def _leave(number: int, _: FrameType | None) -> None:
    """Ends at once: while psa-jax starts or ends there is nothing to tidy up, and exceptions get lost in imports."""
    os.write(2, b"interrupted\n")
    os._exit(128 + number)


if __name__ == "__main__":
    main()
