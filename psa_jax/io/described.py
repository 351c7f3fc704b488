"""Functions and settings in words, the same in every process: what a file says of them."""

import dataclasses
import functools
import re
from typing import Any

import jax

MOVED = {  # modules of version 0.4 that stood at the package's root
    "augment": "propensity.augment",
    "blocked": "coupling.blocked",
    "chain": "coupling.chain",
    "coupling": "coupling.coupling",
    "model": "propensity.model",
    "nets": "propensity.nets",
    "score": "propensity.scores",
    "shrink": "coupling.shrink",
}


def today(described: str) -> str:
    """What a file says of a function, with the modules of version 0.4 by the names that they have now."""
    described = re.sub(r"\bpsa_jax\.(\w+)\.", lambda m: f"psa_jax.{MOVED.get(m[1], m[1])}.", described)
    return re.sub(r"\bpsa_jax\.match\.(low_rank\.factored|gw\.stored)\b", _in_kernels, described)


def _in_kernels(found: re.Match[str]) -> str:
    return "psa_jax.match.kernels." + found[1].rpartition(".")[2]


def describe(value: Any) -> str:
    """What a static part of an alignment is, the same in every process: names of functions, settings of classes."""
    if isinstance(value, functools.partial | jax.tree_util.Partial):
        settings = [*map(describe, value.args), *(f"{k}={describe(v)}" for k, v in sorted(value.keywords.items()))]
        return f"{describe(value.func)}({', '.join(settings)})"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [f for f in dataclasses.fields(value) if f.name not in ("parent", "name")]  # of flax linen modules
        settings = [f"{field.name}={describe(getattr(value, field.name, None))}" for field in fields]
        return f"{type(value).__qualname__}({', '.join(settings)})"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(describe, value))})"
    if isinstance(value, bool | int | float | str | None):
        return repr(value)
    kind = value if callable(value) and hasattr(value, "__qualname__") else type(value)
    return f"{kind.__module__}.{kind.__qualname__}"
