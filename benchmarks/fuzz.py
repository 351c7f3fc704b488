"""What the library makes of random input: `python -m benchmarks.fuzz bytes`, `arguments`, `labels`, `gradients`.

`bytes` prints how many broken files were tried, how many of them gave a clean error (one that names what is wrong), how
many were taken for what they are, and how many ESCAPED, with examples; `gradients` how many are not finite, and how far
they are from those of float64.
"""

import argparse
import collections
import itertools
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import archives, gradients
from benchmarks.arguments import arguments
from benchmarks.labels import labels


def files(count=1200, seed=0, kinds=("tree", "coupling", "alignment"), every=1):
    """Reads broken files: `count` with one byte flipped, a quarter cut short, each `every`th of the crafted ones."""
    rng, found = np.random.default_rng(seed), collections.Counter()
    escaped = []
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "it.npz"
        for kind, (content, read) in archives.sources().items():
            if kind not in kinds:
                continue
            path.write_bytes(content)
            expected = _bits(read(path))
            share = count // len(kinds)
            cases = [archives.flipped(content, rng) for _ in range(share)]
            cases += [archives.cut(content, rng) for _ in range(share // 4)]
            for what, broken in (*cases, *itertools.islice(archives.crafted(kind, content), 0, None, every)):
                path.write_bytes(broken)
                outcome = _outcome(read, path, expected)
                found[outcome.partition(":")[0]] += 1
                if outcome.startswith("ESCAPED"):
                    escaped.append(f"{kind}, {what}: {outcome}")
    return {"tried": found.total(), **{name: found[name] for name in ("clean", "unchanged")}, "escaped": escaped}


def _outcome(read, path, expected):
    try:
        got = read(path)
    except ValueError as error:
        return "clean" if str(path) in str(error) else f"ESCAPED: ValueError without the file's name: {error}"
    except Exception as error:
        return f"ESCAPED: {type(error).__name__}: {error}"
    return "unchanged" if _bits(got) == expected else "ESCAPED: taken for something else"


def _bits(tree):
    """What a tree holds, to be compared."""
    leaves = [jax.random.key_data(x) if _is_key(x) else np.asarray(x) for x in jax.tree.leaves(tree)]
    return str(jax.tree.structure(tree)), [(str(x.dtype), x.shape, np.asarray(x).tobytes()) for x in leaves]


def _is_key(leaf):
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def told(name, found, most=12):
    """One line of figures, and the first of what escaped."""
    escaped = found["escaped"]
    figures = f"{found['tried']} tried, {found['clean']} clean errors, {found['unchanged']} accepted unchanged"
    return "\n  ".join([f"{name}: {figures}, {len(escaped)} ESCAPED", *(text[:200] for text in escaped[:most])])


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("bytes", help="broken files")
    command.add_argument("--count", type=int, default=1200)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--examples", type=int, default=12)
    command = commands.add_parser("arguments", help="values of another kind in the place of an argument")
    command.add_argument("--count", type=int, default=6000)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--examples", type=int, default=12)
    command = commands.add_parser("labels", help="the same labels, stored differently")
    command.add_argument("--count", type=int, default=20000)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--examples", type=int, default=12)
    command = commands.add_parser("gradients", help="sharp problems in float32, beside float64")
    command.add_argument("--count", type=int, default=5000)
    command.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.command == "bytes":
        print(told("bytes", files(args.count, args.seed), args.examples))
    elif args.command == "arguments":
        print(told("arguments", arguments(args.count, args.seed), args.examples))
    elif args.command == "labels":
        print(told("labels", labels(args.count, args.seed), args.examples))
    else:
        print(gradients.told(gradients.gradients(args.count, args.seed)))


if __name__ == "__main__":
    main()
