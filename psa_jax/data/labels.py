"""Labels of any kind as integer codes of two modalities together, and the names that those codes stand for."""

import re
import unicodedata
from typing import Any

import numpy as np

MISSING = frozenset({"", "nan", "na", "n/a", "<na>", "none", "null", "nat"})
SHOWN = 5


def encode(
    labels_a: Any, labels_b: Any, *, called: str = "labels", shared: bool = True
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Codes both modalities' labels jointly. Host only.

    Numbers are compared as numbers: 1, 1.0, numpy's and pandas' integers and floats of any width are one label, and
    float32's 0.1 is 0.1. Bytes are compared as text, True and False are 1 and 0. Numbers come in their order, texts
    after them in theirs ("2" before "10"); two pandas categoricals of the same categories keep the order of these.

    Args:
        labels_a: `[n]` labels of modality a: a list, an array, a pandas Series or Categorical.
        labels_b: `[m]` labels of modality b.
        called: what errors call them.
        shared: whether there must be a label that both have.

    Returns:
        Codes `[n]` and `[m]` int32, and the name of each code.

    Raises:
        ValueError: labels that are not one for each sample, missing ones (None, NaN and texts such as "nan" or ""), or
            no label that both have.

    Example:
        >>> encode(["10", "x"], ["x", "2"])[2]
        ('2', '10', 'x')
        >>> t_a, t_b, names = encode([10, 2], np.array([2.0, 10.0, 0.5]))
        >>> t_a.tolist(), t_b.tolist(), names
        ([2, 1], [1, 2, 0], ('0.5', '2', '10'))
    """
    sides = []
    for name, labels in ((f"{called}_a", labels_a), (f"{called}_b", labels_b)):
        keys = keys_of(name, labels)
        missing = np.array([is_missing(key) for key in keys])
        if missing.any():
            told = sorted(
                {"none" if key is None else repr(key) for key, gone in zip(keys, missing, strict=True) if gone}
            )
            raise ValueError(
                f"{name}: expected a label for every sample, got {int(missing.sum())} of {len(keys)} that are missing "
                f"({', '.join(told)}): leave these samples out, or give them a label of their own"
            )
        sides.append(keys)
    order = _common_order(labels_a, labels_b, sides)
    code = {key: place for place, key in enumerate(order)}
    if shared and not set(sides[0]) & set(sides[1]):
        raise ValueError(f"{called}_a, {called}_b: expected at least one label that both have, got {differing(*sides)}")
    t_a, t_b = (np.array([code[key] for key in keys], np.int32) for keys in sides)
    return t_a, t_b, names_of(order)


def keys_of(name: str, labels: Any) -> list[Any]:
    """Each label as something to compare by: a number, a text, a boolean, or None where there is none.

    Raises:
        ValueError: anything but one label for each sample; it says `name`.
    """
    if labels is None or isinstance(labels, str | bytes):
        raise ValueError(f"{name}: expected labels [n], one for each sample, got {labels!r}")
    if hasattr(labels, "columns"):
        raise ValueError(f"{name}: expected labels [n], got a table of columns {list(labels.columns)[:SHOWN]}")
    array = np.asarray(labels, dtype=object) if not hasattr(labels, "dtype") else np.asanyarray(labels)
    if array.ndim != 1:
        raise ValueError(f"{name}: expected labels [n], one for each sample, got shape {array.shape}")
    if not array.size:
        raise ValueError(f"{name}: expected at least one sample, got none")
    return [_key(name, label) for label in array]


def is_missing(key: Any) -> bool:
    """Whether a label is none, or a text that means so: "nan", "NA", "None", ""."""
    return key is None or (isinstance(key, str) and key.strip().lower() in MISSING)


def names_of(order: list[Any]) -> tuple[str, ...]:
    """A name for each label, made different where two of them read the same (the number 1 and the text "1")."""
    names = [str(key) for key in order]
    twice = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
    return tuple(
        f"{name} ({type(key).__name__})" if name in twice else name for name, key in zip(names, order, strict=True)
    )


def ordered(keys: Any) -> list[Any]:
    """The distinct labels: numbers in their order, then texts, digits within them as numbers ("2" before "10")."""

    def place(key: Any) -> tuple[bool, Any]:
        if not isinstance(key, str):
            return False, key
        return True, [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", key)]

    return sorted(set(keys), key=place)


def differing(first: Any, second: Any) -> str:
    """What each side has, and which labels differ by case or blanks alone."""
    texts = (
        ", ".join(map(repr, keys[:SHOWN])) + (", ..." if len(keys) > SHOWN else "")
        for keys in map(ordered, (first, second))
    )
    text = "{} in a and {} in b".format(*texts)
    alike = {_bare(key): key for key in first}
    near = [(alike[k], key) for key in ordered(second) if (k := _bare(key)) in alike and alike[k] != key]
    if near:
        text += "; these differ by case, blanks or type alone: " + ", ".join(
            f"{x!r} and {y!r}" for x, y in near[:SHOWN]
        )
    return text


def _bare(key: Any) -> str:
    """A label without what people do not see: case, blanks, how accents are coded, how a number is written."""
    text = unicodedata.normalize("NFC", str(key)).strip().lower()
    try:
        return f"{float(text):.6g}"
    except ValueError:
        return text


def listed(which: Any, names: tuple[str, ...] | None, most: int = 10) -> str:
    """Treatments in words: by name where there are names, else by code; the first few of many."""
    which = [int(code) for code in which]
    told = [str(code) if names is None else names[code] for code in which[:most]]
    return ", ".join(told) + (f" and {len(which) - most} more" if len(which) > most else "")


def _key(name: str, label: Any) -> Any:
    if label is None or label is np.ma.masked or type(label).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(label, bool | np.bool_):
        return bool(label)
    if isinstance(label, bytes):
        return label.decode(errors="replace")
    if isinstance(label, str):
        return unicodedata.normalize("NFC", label)  # an accent is the same however it is coded
    if isinstance(label, int | np.integer):
        return int(label)
    if isinstance(label, float | np.floating):
        if label != label:
            return None
        # the shortest decimal that reads back as this number in its own precision: float32's 0.1 is 0.1
        number = float(str(label)) if isinstance(label, np.floating) else label
        return int(number) if number.is_integer() and abs(number) < 2**53 else number
    if isinstance(label, np.datetime64 | np.timedelta64) and np.isnat(label):
        return None
    if isinstance(label, np.datetime64):
        return str(label.astype("datetime64[us]").item())  # days and nanoseconds are the same days
    if isinstance(label, tuple | list | dict | set | np.ndarray):
        raise ValueError(f"{name}: expected one label for each sample, got {label!r}")
    return str(label)


def _common_order(labels_a: Any, labels_b: Any, sides: list[list[Any]]) -> list[Any]:
    categories = [getattr(getattr(labels, "cat", labels), "categories", None) for labels in (labels_a, labels_b)]
    if categories[0] is not None and categories[1] is not None and list(categories[0]) == list(categories[1]):
        found = set(sides[0]) | set(sides[1])
        return [key for key in keys_of("labels", list(categories[0])) if key in found]
    return ordered([*sides[0], *sides[1]])
