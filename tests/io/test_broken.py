"""Broken files: each one is a `ValueError` that names it, before anything is allocated."""

import itertools
import json
import tracemalloc
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from problems import slow

import psa_jax as psa
from benchmarks import archives, fuzz
from psa_jax import io


@pytest.fixture(scope="module")
def sources():
    return archives.sources()


@pytest.mark.parametrize(
    ("kind", "count", "every"),
    [
        ("tree", 150, 1),
        ("coupling", 150, 1),
        *slow(("alignment", 20, 12), ("alignment", 400, 1)),
    ],
)
def test_broken_files_are_refused_by_name_or_taken_for_what_they_are(kind, count, every):
    found = fuzz.files(count, seed=1, kinds=(kind,), every=every)
    assert not found["escaped"]
    assert found["clean"] > found["tried"] / 2


GREEDY = ("zeros without end", "declared", "giant", "overflowing", "beyond", "empty texts", "nested")


@pytest.mark.parametrize("kind", ["tree", "coupling"])
def test_what_a_small_file_declares_is_not_allocated(sources, kind, tmp_path):
    content, read = sources[kind]
    greedy = [case for case in archives.crafted(kind, content) if any(word in case[0] for word in GREEDY)]
    assert len(greedy) >= 8
    for what, broken in greedy:
        path = tmp_path / "it.npz"
        path.write_bytes(broken)
        tracemalloc.start()
        with pytest.raises(ValueError, match=r"it\.npz"):
            read(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**24, what


def test_what_compresses_too_well_is_stored_as_it_is(tmp_path):
    """A reader need not take a small file for a giant one: everything that `save` writes, `load` reads."""
    zeros = np.zeros(2**27 // 8 + 1)
    io.save(tmp_path / "zeros.npz", zeros)
    np.testing.assert_array_equal(io.load(tmp_path / "zeros.npz", zeros), zeros)


def test_what_is_said_of_many_arrays_of_nothing_is_read_again(tmp_path):
    """The same for names: they compress well too."""
    tree = {"x" * 200 + f"{i}": np.zeros(0) for i in range(3000)}
    io.save(tmp_path / "names.npz", tree)
    assert io.load(tmp_path / "names.npz", tree).keys() == tree.keys()


def test_members_that_share_their_bytes_are_refused(tmp_path):
    path = tmp_path / "it.npz"
    io.save(path, {"w": np.random.default_rng(0).normal(size=1000)})
    with zipfile.ZipFile(path, "a") as archive:
        entry = archive.getinfo("['w'].npy")
        for i in range(3):
            twin = zipfile.ZipInfo(f"twin{i}.npy")
            for name in ("CRC", "compress_size", "file_size", "header_offset", "compress_type", "create_version"):
                setattr(twin, name, getattr(entry, name))
            archive.filelist.append(twin)
            archive.NameToInfo[twin.filename] = twin
        archive._didModify = True
    with pytest.raises(ValueError, match=r"it\.npz: .*the size of the file"):
        io.load(path, 0)


LAWS = list(archives.laws())


@pytest.mark.parametrize("what", LAWS)
def test_a_law_that_is_none_is_refused_by_the_name_of_its_array(sources, what, tmp_path):
    """Not only its file: the error says which array it is."""
    path = tmp_path / "it.npz"
    crafted = dict(archives.crafted("coupling", sources["coupling"][0]))
    path.write_bytes(crafted[f"law: {what}"])
    with pytest.raises(ValueError, match=r"it\.npz: .*(columns|probabilities|kept|row_marginal|shape): "):
        io.load_coupling(path)


def total(left, right, args):
    return left[:, None] + right[None]


def test_a_coupling_that_is_no_law_is_not_written(tmp_path):
    law = psa.Coupling(left=jnp.array([0.0, jnp.nan]), right=jnp.zeros(3), kernel=total)
    with pytest.raises(ValueError, match=r"coupling: .*: expected finite numbers, got NaN"):
        io.save_coupling(tmp_path / "it.npz", law)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("kind", "field"), [*itertools.product(["tree", "coupling", "alignment"], ["format", "own"])])
def test_files_of_the_future_are_refused(sources, kind, field, tmp_path):
    content, read = sources[kind]
    path = tmp_path / "it.npz"
    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    about = json.loads(members["about.json"])
    if field == "format" or kind == "tree":
        about["format"] = 99
    else:
        (about if kind == "coupling" else about["alignment"])["version"] = 99
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {**members, "about.json": json.dumps(about).encode()}.items():
            archive.writestr(name, data)
    with pytest.raises(ValueError, match=r"it\.npz: .*or before, got 99: a newer psa_jax made it"):
        read(path)
