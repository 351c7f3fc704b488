"""Broken archives to try the readers on: bytes flipped, files cut short, and archives wrong in one way each."""

import io
import json
import pathlib
import struct
import tempfile
import zipfile

import jax
import jax.numpy as jnp
import numpy as np

import psa_jax as psa

OLD = pathlib.Path(__file__).parents[1] / "tests" / "io" / "alignment_0_4_0.npz"
BOMB = 200 * 2**20
TREE = {"w": jnp.arange(12.0).reshape(3, 4), "half": jnp.ones(5, jnp.bfloat16), "key": jax.random.key(1), "n": 3}
ODD = (None, -1, 2.5, "x", 10**30, [], {}, [[]], True)


def sources():
    """A good file of each kind as bytes, and what reads it."""

    def alignment(path):
        return psa.io.load_alignment(path, model_a=psa.linear(3), model_b=psa.linear(3))

    u, v = (jax.random.normal(jax.random.key(seed), (n, 2)) for seed, n in ((0, 9), (1, 12)))
    law = psa.blockwise(psa.sinkhorn)(u, v, psa.group(np.arange(9) % 3, np.arange(12) % 4, 4))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "it.npz"
        psa.io.save(path, TREE)
        tree = path.read_bytes()
        psa.io.save_coupling(path, law, 3)
        coupling = path.read_bytes()
    return {
        "tree": (tree, lambda path: psa.io.load(path, TREE)),
        "coupling": (coupling, psa.io.load_coupling),
        "alignment": (OLD.read_bytes(), alignment),
    }


def flipped(content, rng):
    """One byte is another one."""
    place, found = int(rng.integers(len(content))), bytearray(content)
    found[place] ^= int(rng.integers(1, 256))
    return f"byte {place}: {content[place]} -> {found[place]}", bytes(found)


def cut(content, rng):
    """The end is missing."""
    length = int(rng.integers(len(content)))
    return f"cut at {length}", content[:length]


def crafted(kind, content):
    """Archives of one kind that are wrong in one way each: `(what is wrong, bytes)`."""
    members = _members(content)
    about = json.loads(members["about.json"])
    first = next(name for name in members if name != "about.json")
    yield "empty", b""
    yield "text", b"hello"
    yield "no members", _zip({})
    for name in members:
        yield f"without {name}", _zip({n: data for n, data in members.items() if n != name})
    yield "bzip2", _zip(members, zipfile.ZIP_BZIP2)
    yield "lzma", _zip(members, zipfile.ZIP_LZMA)
    for place, name in ((8, "encrypted"), (10, "unknown compression")):
        yield name, _patched(_zip(members), place, struct.pack("<H", 1 if place == 8 else 99))
    for size in (2**31, 2**32 - 2):
        yield f"size {size} declared", _patched(_zip(members), 24, struct.pack("<I", size))
        yield f"compressed size {size} declared", _patched(_zip(members), 20, struct.pack("<I", size))
    yield "zeros without end", _zip({**members, first: _npy(np.zeros(0, np.float32), (BOMB // 4,)) + bytes(BOMB)})
    yield "another member", _zip({**members, "more.npy": _npy(np.ones(2))})
    for what, header in _headers().items():
        yield f"npy: {what}", _zip({**members, first: header})
    for what, text in _texts(about).items():
        yield f"about: {what}", _zip({**members, "about.json": text})
    for name in list(members)[1:]:
        array = np.load(io.BytesIO(members[name]))
        for what, other in (("more rows", np.zeros((7, *array.shape[1:]), array.dtype)), ("rank", array[None, None])):
            yield f"{name}: {what}", _zip({**members, name: _npy(other)})
        yield f"{name}: text", _zip({**members, name: _npy(np.full(array.shape, "x"))})
    if kind == "coupling":
        for what, (name, change) in laws().items():
            array = np.load(io.BytesIO(members[f"{name}.npy"]))
            yield f"law: {what}", _zip({**members, f"{name}.npy": _npy(change(array.copy()))})
    if kind == "alignment":
        for field in about["alignment"]:
            for odd in ODD:
                changed = {**about, "alignment": {**about["alignment"], field: odd}}
                if field != "names" or odd is not None:
                    yield f"{field}: {odd!r}", _zip({**members, "about.json": json.dumps(changed).encode()})
        for name, change in _plans().items():
            array = np.load(io.BytesIO(members[f"{name}.npy"]))
            yield f"plan: {name}", _zip({**members, f"{name}.npy": _npy(change(array.copy()))})


def _members(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _zip(members, method=zipfile.ZIP_DEFLATED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def _patched(content, place, data):
    """With other bytes in the last entry of the central directory."""
    start = content.rindex(b"PK\x01\x02") + place
    return content[:start] + data + content[start + len(data) :]


def _npy(array, shape=None):
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue() if shape is None else _header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}")


def _header(text, magic=b"\x93NUMPY\x01\x00"):
    text = text.encode() + b"\n"
    return magic + struct.pack("<H", len(text)) + text


def _headers():
    """What may stand at the head of an array."""

    def of(descr, shape, order=False):
        return _header(str({"descr": descr, "fortran_order": order, "shape": shape}))

    return {
        "giant shape": of("<f4", (10**11,)),
        "overflowing shape": of("<f4", (2**40, 2**40)),
        "shape beyond integers": of("<f4", (10**30,)),
        "negative shape": of("<f4", (-1,)),
        "short": of("<f4", (5,)) + bytes(8),
        "longer": of("<f4", (5,)) + bytes(80),
        "objects": of("|O", (2,)) + bytes(16),
        "records": of([("a", "<f4")], (2,)) + bytes(8),
        "empty texts": of("<U0", (10**9,)),
        "dates": of("<M8[s]", (2,)) + bytes(16),
        "no type": of("<q99", (2,)) + bytes(16),
        "no mapping": _header("[1, 2]"),
        "no literal": _header("__import__('os')"),
        "nested": _header("(" * 4000),
        "not closed": _header("{'descr': '''"),
        "missing field": _header("{'descr': '<f4'}"),
        "shape of texts": of("<f4", ("a",)),
        "magic": _header("{}", b"\x93NUMPX\x01\x00"),
        "version": _header("{}", b"\x93NUMPY\x09\x00"),
        "no header": b"",
    }


def _texts(about):
    """What may stand in `about.json`."""
    name = next(iter(about))
    texts = {
        "no text": b"\xff\xfe\x00",
        "not closed": b"{",
        "nested lists": b"[" * 100_000 + b"]" * 100_000,
        "nested objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        "long number": b'{"a": ' + b"1" * 10_000 + b"}",
        "giant": b"[" + b"[]," * 2**20 + b"1]",
    }
    for odd in ODD:
        texts[f"{odd!r}"] = json.dumps(odd).encode()
        if isinstance(about[name], dict):
            texts[f"first {odd!r}"] = json.dumps({**about, name: odd}).encode()
            for field in about[name]:
                texts[f"first {field} {odd!r}"] = json.dumps({**about, name: {**about[name], field: odd}}).encode()
    for leaf in [leaf for leaf, entry in about.items() if isinstance(entry, dict) and "dtype" in entry][:4]:
        for kind in ("float64", "int8", "object", "str", "V4", "float99", "key", "bfloat16", "datetime64"):
            if about[leaf]["dtype"] != kind:
                texts[f"{leaf} as {kind}"] = json.dumps({**about, leaf: {**about[leaf], "dtype": kind}}).encode()
        if "impl" in about[leaf]:
            texts["generator"] = json.dumps({**about, leaf: {**about[leaf], "impl": "dice"}}).encode()
    if "version" in about:
        for odd in (2, 99, *ODD[:-1]):
            texts[f"version {odd!r}"] = json.dumps({**about, "version": odd}).encode()
    return texts


def laws():
    """Changes that make a law none: `(array, change)`."""

    def put(value, place=(0, 0)):
        def change(array):
            array[place if array.ndim == 2 else place[:1]] = value
            return array

        return change

    return {
        "column too large": ("columns", put(12)),
        "column below -1": ("columns", put(-2)),
        "column twice": ("columns", lambda x: np.repeat(x[:, :1], x.shape[1], 1)),
        "mass without a column": ("columns", put(-1)),
        "NaN": ("probabilities", put(np.nan)),
        "infinite": ("probabilities", put(np.inf)),
        "negative": ("probabilities", put(-0.5)),
        "above one": ("probabilities", put(1.5)),
        "rows above one": ("probabilities", lambda x: np.full_like(x, 0.9)),
        "kept is not the sum": ("kept", put(0.01)),
        "kept NaN": ("kept", put(np.nan)),
        "marginal NaN": ("row_marginal", put(np.nan)),
        "marginal negative": ("row_marginal", put(-1.0)),
        "marginal infinite": ("row_marginal", put(np.inf)),
        "columns as floats": ("columns", lambda x: x.astype(np.float32)),
        "probabilities as integers": ("probabilities", lambda x: x.astype(np.int32)),
        "giant shape": ("shape", put(10**12, (1, 0))),
        "negative shape": ("shape", put(-5, (1, 0))),
        "other rows": ("shape", put(4, (0, 0))),
        "too few columns": ("shape", put(2, (1, 0))),
        "shape as floats": ("shape", lambda x: x.astype(np.float64)),
    }


def _plans():
    """Changes that make the plan of an alignment none."""
    return {
        ".groups.buckets[0].rows": lambda x: x + 1000,
        ".groups.buckets[0].cols": lambda x: x - 1000,
        ".groups.buckets[0].treatment": lambda x: x + 1000,
        ".groups.sizes_a": lambda x: -x - 1,
        ".groups.sizes_b": lambda x: x * 1000,
    }
