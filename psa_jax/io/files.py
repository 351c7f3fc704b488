"""Files that appear at once or not at all, whoever else writes to the same place."""

import contextlib
import os
import re
import secrets
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from psa_jax.arguments import checked

STALE = 24 * 3600.0  # seconds: a partial file that nobody has written to for so long belongs to nobody


@checked
def write_atomically(path: str | os.PathLike[str], fill: Callable[[IO[bytes]], None]) -> None:
    """Lets `fill` write a file beside `path` and moves it there when complete; else nothing is left.

    Any number of threads, processes and machines may write to one path: each has a partial file of its own, and the
    last to finish wins. The content is on the disk before it gets its name. A link is followed, a file that is there
    keeps its mode. Partial files of this path that a crash left behind are removed when they are a day old.

    Args:
        path: the file; exactly this name is used.
        fill: takes the open binary file and writes into it.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a folder or a device is in the place of the file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(Path(folder) / "it", lambda file: print(file.write(b"text")))
        ...     (Path(folder) / "it").read_text()
        4
        'text'
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{path}: no such folder as {target.parent}")
    if target.exists() and not target.is_file():
        raise ValueError(f"{path}: expected the place of a file, got a folder or a device")
    _sweep(target)
    partial = target.with_name(f".{target.name}.{secrets.token_hex(8)}.partial")
    try:
        with open(partial, "xb") as file:  # never one of somebody else, and with the mode that the umask gives
            with contextlib.suppress(FileNotFoundError):
                os.chmod(partial, stat.S_IMODE(target.stat().st_mode))
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _keep_name(target.parent)


def _sweep(target: Path) -> None:
    """Removes partial files of `target` that nobody writes to any more."""
    ours = re.compile(re.escape(f".{target.name}.") + r"[0-9a-f]+\.partial")
    for found in target.parent.iterdir():
        if ours.fullmatch(found.name):
            with contextlib.suppress(OSError):  # another sweep was faster, or it is not ours to remove
                if time.time() - found.stat().st_mtime > STALE:
                    found.unlink()


def _keep_name(folder: Path) -> None:
    """Puts the new name on the disk too, where the system can do so for a folder."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
