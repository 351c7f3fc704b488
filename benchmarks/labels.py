"""The same labels, stored differently in two modalities: are they the same treatments?"""

import collections
import random
import re

import jax.numpy as jnp
import numpy as np
import pandas as pd

from psa_jax.data.labels import encode

WORDS = ["ctrl", "drug 2", "drug 10", "Drug 10", "nontargeting", "x", "TP53", "é", "a b", "10x", "nano", "none of it"]
POOLS = {
    "integers": [0, 1, 2, 3, 7, 10, 11, 100, 127],
    "large integers": [2**53 - 1, 2**53 - 3, 2**40, 5, -(2**40)],
    "decimals": [0.1, 0.5, 2.5, 3.0, 10.25, 100.0, -0.3],
    "truths": [False, True],
    "texts": WORDS,
}
# Ways to store a list of labels that are the same labels afterwards.
PLAIN = {
    "list": list,
    "tuple": tuple,
    "objects": lambda values: np.array([*values, None], dtype=object)[:-1],
    "series": pd.Series,
    "odd index": lambda values: pd.Series(values, index=[f"cell {i % 3}" for i in range(len(values))]),
    "category": lambda values: pd.Series(values, dtype="category"),
    "categorical": pd.Categorical,
    "index": pd.Index,
}
NUMBERS = {f"float{bits}": lambda values, bits=bits: np.array(values, f"float{bits}") for bits in (16, 32, 64)}
NUMBERS |= {"floats as objects": lambda values: np.array([float(v) for v in values], dtype=object)}
WAYS = {
    "integers": PLAIN
    | NUMBERS
    | {kind: lambda values, kind=kind: np.array(values, kind) for kind in ("int8", "uint8", "int64", ">i4", ">f8")}
    | {
        "jax": lambda values: jnp.array(values),
        "Int64": lambda values: pd.array(values, dtype="Int64"),
        "every other a float": lambda values: [float(v) if i % 2 else v for i, v in enumerate(values)],
        "float category": lambda values: pd.Series([float(v) for v in values], dtype="category"),
    },
    "large integers": PLAIN
    | {"int64": lambda values: np.array(values, "int64"), "float64": lambda values: np.array(values, "float64")}
    | {"Int64": lambda values: pd.array(values, dtype="Int64")},
    "decimals": PLAIN | NUMBERS | {"Float64": lambda values: pd.array(values, dtype="Float64")},
    "truths": PLAIN
    | {kind: lambda values, kind=kind: np.array(values, kind) for kind in ("bool", "int8", "float32")}
    | {"boolean": lambda values: pd.array(values, dtype="boolean")},
    "texts": PLAIN
    | {
        "U": lambda values: np.array(values, "U"),
        "bytes": lambda values: [v.encode() for v in values],
        "S": lambda values: np.array([v.encode() for v in values]),
        "string": lambda values: pd.Series(values, dtype="string"),
    },
}
MISSING = [None, float("nan"), pd.NA, pd.NaT, "", "nan", "NA", "None", " N/A ", "<NA>"]


def labels(count=2000, seed=0):
    """Codes random labels stored in two random ways, `count` times; in a fifth of them some are missing."""
    rng, found, escaped = random.Random(seed), collections.Counter(), []
    for _ in range(count):
        pool = rng.choice(sorted(POOLS))
        sides = [[rng.choice(POOLS[pool]) for _ in range(rng.randrange(1, 30))] for _ in "ab"]
        ways = [rng.choice(sorted(WAYS[pool])) for _ in "ab"]
        missing = rng.random() < 0.2
        stored = [WAYS[pool][way](side) for way, side in zip(ways, sides, strict=True)]
        if missing:
            gaps = rng.choices(MISSING, k=rng.randrange(1, 4))
            stored[0] = np.array([*sides[0], *gaps, 0], dtype=object)[:-1]
        outcome = _missing(stored, len(gaps)) if missing else _coded(stored, sides)
        found[outcome.partition(":")[0]] += 1
        if outcome.startswith("ESCAPED"):
            escaped.append(f"{pool}, {ways}: {outcome[9:]} ({sides})")
    return {"tried": found.total(), "clean": found["clean"], "unchanged": found["unchanged"], "escaped": escaped}


def _coded(stored, sides):
    try:
        *codes, names = encode(*stored)
    except Exception as error:
        if "at least one label that both have" in str(error) and not set(sides[0]) & set(sides[1]):
            return "clean"
        return f"ESCAPED: {type(error).__name__}: {error}"
    if not set(sides[0]) & set(sides[1]):
        return f"ESCAPED: no label in common, but {names}"
    values, t = sides[0] + sides[1], np.concatenate(codes)
    same = np.array([[one == other for other in values] for one in values])
    if not np.array_equal(same, t[:, None] == t[None]):
        return "ESCAPED: other labels are the same treatment"
    if len(names) != len(set(names)) or len(names) != len(set(values)):
        return f"ESCAPED: {len(set(values))} treatments are named {names}"
    order = list(dict.fromkeys(value for _, value in sorted(zip(t.tolist(), values, strict=True), key=lambda x: x[0])))
    if not isinstance(values[0], str) and order != sorted(order):
        return f"ESCAPED: numbers in the order {order}"
    return "unchanged"


def _missing(stored, count):
    try:
        encode(*stored)
    except ValueError as error:
        told = re.search(rf"labels_a: .*got {count} of \d+ that are missing", str(error))
        return "clean" if told else f"ESCAPED: ValueError without their number {count}: {error}"
    except Exception as error:
        return f"ESCAPED: {type(error).__name__}: {error}"
    return "ESCAPED: missing labels were taken"
