"""Samples that are read when they are used: data larger than memory in the place of an array of features.

A `Source` is a pytree, as an array is a leaf: what is traced of it is its number and which rows are meant, so that a
program compiled for one serves all of its shape. Compiled code that asks it for rows calls back to the host, where they
are read (`psa_jax.data.reader`).
"""

import contextlib
import dataclasses
import itertools
import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from psa_jax.arguments import checked
from psa_jax.data.reader import BadRows, Reader
from psa_jax.devices import map_rows
from psa_jax.types import Array, Float, Int, PyTree, brief, pytree, static

HELD = 2**22  # numbers at once
T = TypeVar("T")
_READERS: "weakref.WeakValueDictionary[int, Reader]" = weakref.WeakValueDictionary()
_NUMBERS = itertools.count()


@pytree
class Source:
    """Features `[n, ...]` that are read some rows at a time; `psa.source` makes one.

    Attributes:
        number: `[]` which source of this process it is.
        ids: `[n]` the rows that are meant, or None for all.
        columns: `[rows, B]` what stands beside the features of each row, in memory, or None.
        rows: static; the shape of all that can be read.
        dtype: static; the type that is made of what is read.
    """

    number: Any
    ids: Int[Array, " n"] | None
    columns: Float[Array, "rows B"] | None
    rows: tuple[int, ...] = static()
    dtype: Any = static()
    reader: ClassVar[Any] = None  # of an instance that is not traced, which keeps it alive

    def __post_init__(self) -> None:
        number = self.number
        known = isinstance(number, np.ndarray | np.generic | jax.Array) and not isinstance(number, Tracer)
        object.__setattr__(self, "reader", _READERS.get(int(number)) if known and number.ndim == 0 else None)

    @property
    def shape(self) -> tuple[int, ...]:
        """`[n, ...]`."""
        n = self.rows[0] if self.ids is None else self.ids.shape[0]
        return (n, *self.rows[1:]) if self.columns is None else (n, self.rows[1] + self.columns.shape[1])

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.rows)

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """How much memory they would take."""
        return self.size * np.dtype(self.dtype).itemsize

    @property
    def few(self) -> int:
        """How many samples are held at once where it changes no result."""
        return max(1, HELD // max(1, math.prod(self.shape[1:])))

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        """One line."""
        return f"Source of {self.dtype}[{','.join(map(str, self.shape))}]"

    def __getitem__(self, ids: Any) -> Array:
        """Reads samples `[k, ...]`, by their numbers `[k]` or by a slice."""
        return self.read(np.arange(len(self), dtype=np.int32)[ids] if isinstance(ids, slice) else ids)

    def read(self, ids: Any, following: Any = None) -> Array:
        """The samples `[k, ...]` of these numbers; the `following` ones, -1 for none, are read ahead meanwhile."""
        own = self._own(jnp.asarray(ids))
        after = None if following is None else jnp.where(following >= 0, self._own(jnp.maximum(following, 0)), -1)
        if self.reader is None or isinstance(own, Tracer) or isinstance(after, Tracer):
            form = jax.ShapeDtypeStruct((*own.shape, *self.rows[1:]), self.dtype)
            out = jax.pure_callback(Rows(self.dtype), form, self.number, own, after, vmap_method="expand_dims")
        else:
            with reading(("source", self)):
                found = self.reader.read(np.asarray(own), None if after is None else np.asarray(after))
            out = jnp.asarray(found.astype(self.dtype, copy=False))
        return out if self.columns is None else jnp.concatenate([out, self.columns[own]], axis=1)

    def take(self, ids: Any) -> "Source":
        """A source of some of the samples, by their numbers `[k]`; nothing is read."""
        return Source(self.number, self._own(ids), self.columns, self.rows, self.dtype)

    def astype(self, dtype: Any) -> "Source":
        """A source of the same features in another type; nothing is read."""
        return Source(self.number, self.ids, self.columns, self.rows, jax.dtypes.canonicalize_dtype(dtype))

    def beside(self, columns: Float[Array, "n B"]) -> "Source":
        """A source of vectors with columns beside them; nothing is read."""
        if self.ids is not None:
            columns = jnp.zeros((self.rows[0], columns.shape[1]), self.dtype).at[self.ids].set(columns)
        return Source(self.number, self.ids, columns, self.rows, self.dtype)

    def _own(self, ids: Any) -> Any:
        """Numbers of rows of numbers of samples."""
        return ids if self.ids is None else self.ids[ids]


@checked
def source(rows: Any, *, each: bool = False) -> Source:
    """Features that are read when they are used, for data larger than memory: goes where features `[n, ...]` go.

    `psa.Modality(psa.source(rows), t)` and `psa.Unpaired.from_labels` take it, so `psa.align` does; `psa.fit`,
    `psa.fit_ensemble`, `psa.crossfit` and `psa.propensity` take it as `x`. The same key gives the same batches as the
    same data in memory, and the same results up to rounding. Training and scoring hold a few batches; batches are read
    while the one before is trained on.

    `rows` may be a memory-mapped array, a dataset of h5py or zarr, the matrix of an AnnData that is opened backed, or
    an object of yours: `len(rows)` is the number of samples, and `rows[ids]` are the features `[k, ...]` of those with
    the numbers `ids`, a NumPy array `[k]` that ascends without repetition; dense or sparse. All rows have one shape and
    type, and stay as they are. They are read in a thread, one reading at a time; compute them by NumPy, not by JAX,
    which that thread might wait for in vain.

    Args:
        rows: see above.
        each: whether `rows[i]` takes one number, as the datasets of grain and of PyTorch do, and gives `[...]`.

    Returns:
        A `Source`. `x.astype("float32")` makes others of images of bytes, `x[ids]` and `x[:5]` read rows into memory.

    Raises:
        ValueError: no length or no rows, a first row that is no array of numbers.

    Example:
        >>> x = source(np.arange(12.0).reshape(6, 2))
        >>> x, x[:2].tolist()
        (Source of float32[6,2], [[0.0, 1.0], [2.0, 3.0]])
    """
    if isinstance(rows, Source):
        return rows
    named = isinstance(rows, str | bytes | dict | set) or hasattr(rows, "iloc")
    if named or not (hasattr(rows, "__getitem__") and (getattr(rows, "shape", ()) or hasattr(rows, "__len__"))):
        raise ValueError(
            f"rows: expected something with len(rows) and rows[ids], such as a memory-mapped array, got {brief(rows)}"
        )
    try:
        reader = Reader(rows, each)
    except BadRows as error:
        raise ValueError(f"rows: expected {error} (of each=True, rows[i] takes one number)") from error
    except Exception as error:
        how = "rows[0]" if each else "rows[ids] of ids = np.array([0])"
        raise ValueError(
            f"rows: expected an array of {how}, got {type(error).__name__}: {error}"
            + ("" if each else " (give each=True where rows[i] takes one number)")
        ) from error
    if not (np.issubdtype(reader.dtype, np.number) or jnp.issubdtype(reader.dtype, jnp.number)):
        raise ValueError(f"rows: expected numbers [n, ...], got {reader.dtype} {list(reader.shape)}")
    number = next(_NUMBERS)
    _READERS[number] = reader
    dtype = jax.dtypes.canonicalize_dtype(reader.dtype.newbyteorder("="))
    return Source(np.asarray(number, np.int32), None, None, reader.shape, dtype)


@contextlib.contextmanager
def reading(*named: tuple[str, Any]) -> Iterator[Callable[[T], T]]:
    """Around whatever reads sources: gives a function that waits for results, and says by name what failed.

    Args:
        *named: names and sources; what is none, or traced, does not count.

    Raises:
        ValueError: rows that are not as the source said.
        RuntimeError: what the source itself raised.
    """
    readers = [(name, x.reader) for name, x in named if isinstance(x, Source) and x.reader is not None]
    begun = []
    try:
        for _, reader in readers:
            begun.append(reader)
            reader.start()
        yield jax.block_until_ready if readers else lambda result: result
    except Exception:
        failed = [(name, reader.failed) for name, reader in readers if reader.failed is not None]
        if not failed:
            raise
        _settle()
        (name, failure), *_ = failed
        raise failure.told(name) from failure.error
    finally:
        for reader in begun:
            reader.stop()


def _settle() -> None:
    """Waits for what still runs. JAX keeps the end of each device's last program with effects, and raises what that
    raised wherever effects are waited for: programs that do nothing take the place of those that failed."""
    for device in jax.local_devices():
        _nothing(jax.device_put(0, device))
    jax.effects_barrier()


@jax.jit
def _nothing(x: Array) -> Array:
    jax.debug.callback(lambda _: None, x)
    return x


def has_source(tree: PyTree) -> bool:
    """Whether some of it is to be read."""
    return any(isinstance(leaf, Source) for leaf in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, Source)))


def some(x: Array | Source, ids: Any) -> Array | Source:
    """Some samples; of a source nothing is read."""
    return x.take(ids) if isinstance(x, Source) else x[ids]


def map_samples(fn: Callable[[Array], PyTree], x: Array | Source, chunk: int) -> PyTree:
    """`map_rows`, of features that may be a source; of wide ones fewer samples at a time are held."""
    if not isinstance(x, Source):
        return map_rows(fn, x, chunk)
    return map_parts(lambda ids, part: fn(part), x, min(chunk, x.few))


def map_parts(fn: Callable[[Array, Array], PyTree], x: Array | Source, chunk: int) -> PyTree:
    """`fn(ids, x[ids])` of at most `chunk` samples at a time, as `map_rows` would."""
    n = x.shape[0]
    if not isinstance(x, Source):
        return map_rows(lambda rows: fn(*rows), (jnp.arange(n), x), chunk)
    step = -(-n // -(-n // chunk))

    def part(rows: tuple[Array, Array]) -> PyTree:
        ids, following = rows
        return fn(ids, x.read(ids, following if n > chunk else None))

    ids = jnp.arange(n)
    return map_rows(part, (ids, jnp.where(ids + step < n, ids + step, -1)), chunk)


def fold_samples(fn: Callable[[T, Array, Array, Array], T], state: T, x: Source, chunk: int) -> T:
    """`state = fn(state, ids, x[ids], real)` over all samples in their order; `real` `[k]` is False for padding."""
    n = x.shape[0]
    steps = -(-n // min(chunk, x.few))
    step = -(-n // steps)
    ids = jnp.arange(steps * step).reshape(steps, step)

    def one(state: T, ids: Array) -> tuple[T, None]:
        own, following = jnp.minimum(ids, n - 1), jnp.where(ids + step < n, ids + step, -1)
        return fn(state, own, x.read(own, following), ids < n), None

    return jax.lax.scan(one, state, ids)[0]


@dataclasses.dataclass(frozen=True)
class Rows:
    """Reads rows for compiled code, in the type that it expects."""

    dtype: Any

    def __call__(self, number: Any, ids: Any, following: Any) -> np.ndarray:
        """The rows `ids` of the source of this number."""
        reader = _READERS.get(int(np.ravel(np.asarray(number))[0]))
        if reader is None:
            raise RuntimeError("a source that nothing holds any more was to be read")
        try:
            found = reader.read(np.asarray(ids), None if following is None else np.asarray(following))
        except Exception as error:  # which JAX logs at length; `reading` raises it
            raise RuntimeError(f"reading a source failed: {error}") from None
        return found.astype(self.dtype, copy=False)
