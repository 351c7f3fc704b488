"""Files appear whole, whoever writes at the same time, and keep what they are: a mode, a link."""

import os
import stat
import threading
import time

import numpy as np
import pytest

from psa_jax import io

posix = pytest.mark.skipif(os.name != "posix", reason="modes and links of POSIX")


def write(path, content):
    io.write_atomically(path, lambda file: file.write(content))


def test_what_threads_publish_is_always_whole(tmp_path):
    path, problems, done = tmp_path / "it.npz", [], threading.Event()
    trees = [{"w": np.full(3000 + seed, seed, np.float32)} for seed in range(4)]
    io.save(path, trees[0])

    def save(tree):
        try:
            for _ in range(15):
                io.save(path, tree)
        except Exception as error:
            problems.append(error)

    def read():
        while not done.is_set():
            try:
                with np.load(path) as file:
                    w = file["['w']"]
                assert (w == w[0]).all()
                assert w.size == 3000 + w[0]
            except Exception as error:
                problems.append(error)

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=save, args=(tree,)) for tree in trees]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert not problems
    assert [found.name for found in tmp_path.iterdir()] == ["it.npz"]


def test_writers_have_partial_files_of_their_own(tmp_path):
    """One that begins while another writes does not take its file: the last to finish wins."""
    path = tmp_path / "it"

    def outer(file):
        file.write(b"outer, ")
        write(path, b"inner")
        assert path.read_bytes() == b"inner"
        file.write(b"whole")

    io.write_atomically(path, outer)
    assert path.read_bytes() == b"outer, whole"
    assert [found.name for found in tmp_path.iterdir()] == ["it"]


@posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o444])
def test_a_file_keeps_its_mode(tmp_path, mode):
    path = tmp_path / "it"
    path.write_bytes(b"old")
    path.chmod(mode)
    seen = []

    def fill(file):
        seen.append(stat.S_IMODE(os.fstat(file.fileno()).st_mode))
        file.write(b"new")

    io.write_atomically(path, fill)
    assert path.read_bytes() == b"new"
    assert [stat.S_IMODE(path.stat().st_mode), *seen] == [mode, mode]


@posix
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_new_file_gets_the_mode_of_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        write(tmp_path / "it", b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "it").stat().st_mode) == 0o666 & ~umask


@posix
@pytest.mark.parametrize("exists", [True, False])
def test_a_link_is_followed(tmp_path, exists):
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "it", tmp_path / "link"
    if exists:
        target.write_bytes(b"old")
    link.symlink_to(target)
    write(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert [found.name for found in target.parent.iterdir()] == ["it"]


def test_only_stale_partial_files_of_the_same_file_are_removed(tmp_path):
    names = {
        ".it.npz.4711.partial": True,  # of version 0.5
        ".it.npz.0123456789abcdef.partial": True,
        ".it.npz.fedcba.partial": False,  # young
        ".it.0123456789abcdef.partial": True,  # of another file, as the next
        ".other.it.npz.0123456789abcdef.partial": True,
        "it.npz.0123.partial": True,
    }
    for name, old in names.items():
        (tmp_path / name).write_bytes(b"x")
        if old:
            os.utime(tmp_path / name, (time.time() - 2 * 24 * 3600,) * 2)
    write(tmp_path / "it.npz", b"new")
    left = {found.name for found in tmp_path.iterdir()} - {"it.npz"}
    assert left == set(names) - {".it.npz.4711.partial", ".it.npz.0123456789abcdef.partial"}


def test_places_that_are_none_are_refused_by_name(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="folder: expected the place of a file"):
        write(tmp_path / "folder", b"x")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        write(tmp_path / "nowhere" / "it", b"x")
    assert [found.name for found in tmp_path.iterdir()] == ["folder"]
