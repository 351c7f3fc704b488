"""Unpaired data: two modalities, and apart from them the truth."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from psa_jax.data.codes import check_batch, codes
from psa_jax.data.features import features
from psa_jax.data.labels import encode, listed
from psa_jax.data.source import Source, reading, some
from psa_jax.data.strata import Strata, stratified
from psa_jax.data.whole import not_finite
from psa_jax.types import Array, Float, Int, known, pytree, static

SHOWN = 8


@pytree
class Modality:
    """Samples of one kind of measurement.

    Attributes:
        x: features `[n, ...]`, float: an array, or a `psa.source` of what is larger than memory.
        t: treatment codes `[n]`, integers in `[0, num_treatments)`; of stratified data the codes of `Strata`.
        batch: `[n]` integers from 0 up, what each sample came in (donor, day), or None: classifiers see it beside the
            features, and what they have learnt of the treatment from it alone is divided out of the scores.
    """

    x: Any
    t: Int[Array, " n"]
    batch: Int[Array, " n"] | None = None

    def __repr__(self) -> str:
        """One line."""
        return f"Modality of {describe(self)}"

    def take(self, ids: Any) -> "Modality":
        """Some of the samples, by their numbers `[k]`."""
        return Modality(some(self.x, ids), self.t[ids], None if self.batch is None else self.batch[ids])


@pytree
class Unpaired:
    """Two modalities of one perturbed population; row i of `a` and row i of `b` have nothing to do with each other.

    Attributes:
        a: one modality.
        b: the other; sizes may differ.
        num_treatments: static; codes are in `[0, num_treatments)`.
        names: static; the name of each treatment code, or None. Whatever is made of these data says them.
        strata: static; what codes stand for where samples are matched within a further label, such as their plate, too;
            or None.
        batches: static; the name of each code of `Modality.batch`, or None.

    Example:
        >>> x, y = jnp.ones((3, 2)), jnp.ones((4, 5))
        >>> data = Unpaired(Modality(x, jnp.array([0, 0, 1])), Modality(y, jnp.array([0, 1, 1, 1])), 2)
        >>> data.num_treatments
        2
        >>> print(Unpaired.from_labels(x, ["DMSO", "DMSO", "drug"], y, ["drug", "drug", "DMSO", "DMSO"]))
        Unpaired of 2 treatments, 2 of them in both modalities
          a: 3 samples of 2 features, float32
          b: 4 samples of 5 features, float32
          treatments (a, b): DMSO (2, 2), drug (1, 2)
    """

    a: Modality
    b: Modality
    num_treatments: int = static()
    names: tuple[str, ...] | None = static(default=None)
    strata: Strata | None = static(default=None)
    batches: tuple[str, ...] | None = static(default=None)

    @staticmethod
    def from_labels(
        x_a: Any,
        labels_a: Any,
        x_b: Any,
        labels_b: Any,
        *,
        within_a: Any = None,
        within_b: Any = None,
        batch_a: Any = None,
        batch_b: Any = None,
    ) -> "Unpaired":
        """Unpaired data of samples whose treatments have labels of any kind; both modalities are coded together.

        Args:
            x_a: features `[n, ...]` of modality a, float, or a `psa.source`.
            labels_a: `[n]` labels: texts, numbers (compared as numbers: 1 and 1.0 are one), a pandas column.
            x_b: features `[m, ...]` of modality b.
            labels_b: `[m]` labels.
            within_a: `[n]` further labels of any kind, such as plates: samples are matched only with those that share
                this label too. Classifiers go on to predict the treatment.
            within_b: `[m]` those of modality b; to be given if `within_a` is.
            batch_a: `[n]` labels of any kind of what samples came in: see `Modality`. For vectors only.
            batch_b: `[m]` those of modality b; either may be left out.

        Returns:
            The data, with the names of the treatments; numbers in their order, then texts in theirs.

        Raises:
            ValueError: missing labels, labels of another number than the samples, no label that both have, and as
                `validate`.
        """
        t_a, t_b, names = encode(labels_a, labels_b)
        x_a, x_b = features("x_a", x_a), features("x_b", x_b)
        _check_length("labels", (x_a, x_b), (t_a, t_b))
        strata = None
        if (within_a is None) != (within_b is None):
            raise ValueError("within_a, within_b: expected labels of both modalities, got only one of them")
        if within_a is not None:
            s_a, s_b, places = encode(within_a, within_b, called="within")
            _check_length("within", (x_a, x_b), (s_a, s_b))
            (t_a, t_b), strata = stratified(names, places, (t_a, s_a), (t_b, s_b))
            names = strata.labels
        batch, batches = [None, None], None
        if given := [side for side in (batch_a, batch_b) if side is not None]:
            *found, batches = encode(given[0], given[-1], called="batch", shared=False)
            batch = [None if side is None else each for side, each in zip((batch_a, batch_b), found, strict=True)]
            for side, x, codes in zip("ab", (x_a, x_b), batch, strict=True):
                check_batch(f"batch_{side}", codes, x.shape[0], batches)
        a, b = (
            Modality(x, jnp.asarray(t), None if codes is None else jnp.asarray(codes))
            for x, t, codes in zip((x_a, x_b), (t_a, t_b), batch, strict=True)
        )
        return on_host(Unpaired(a, b, len(names), names, strata, batches))

    @property
    def taught(self) -> "Unpaired":
        """The same samples by what classifiers learn of them: the treatment alone, where the data are stratified."""
        if self.strata is None:
            return self
        of = jnp.asarray(self.strata.treatment, jnp.int32)
        a, b = (dataclasses.replace(side, t=of[side.t]) for side in (self.a, self.b))
        names = self.strata.treatments
        return dataclasses.replace(self, a=a, b=b, num_treatments=len(names), names=names, strata=None)

    def __repr__(self) -> str:
        """A few lines: sizes, and treatments by name."""
        shapes = [describe(side) for side in (self.a, self.b)]
        lines = [f"  {name}: {text}" for name, text in zip("ab", shapes, strict=True)]
        if isinstance(self.num_treatments, int) and known(self.a.t, self.b.t):
            counts = [
                np.bincount(t[(t >= 0) & (t < self.num_treatments)], minlength=self.num_treatments)
                for t in (np.asarray(self.a.t).astype(int), np.asarray(self.b.t).astype(int))
            ]
            both = int(((counts[0] > 0) & (counts[1] > 0)).sum())
            told = [
                f"{self.names[k] if self.names else k} ({counts[0][k]}, {counts[1][k]})"
                for k in range(min(self.num_treatments, SHOWN))
            ]
            more = self.num_treatments - len(told)
            lines.append("  treatments (a, b): " + ", ".join(told) + (f" and {more} more" if more else ""))
            shared = f", {both} of them in both modalities"
        else:
            shared = ""
        within = "" if self.strata is None else f" within {len(self.strata.names)} strata"
        return "\n".join([f"Unpaired of {self.num_treatments} treatments{within}{shared}", *lines])


@pytree
class Truth:
    """What only an evaluation may know; nothing that trains takes it.

    Attributes:
        pair: `[n_a]` integers, the true column (row of modality b) of every row of modality a, -1 where unknown.
        z_a: latents `[n_a, d]` of modality a, or None.
        z_b: latents `[n_b, d]` of modality b, or None.
    """

    pair: Int[Array, " n"]
    z_a: Float[Array, "n d"] | None = None
    z_b: Float[Array, "m d"] | None = None


def validate(data: Unpaired) -> None:
    """Raises a `ValueError` that names what is wrong with `data`, if anything is. Host only.

    Checked: ranks, lengths, empty modalities, label dtype and range, at least one shared treatment, and NaN or
    infinite features (with the modality, the number of rows and the first of them).
    """
    if not isinstance(data, Unpaired):
        raise ValueError(
            f"data: expected psa_jax.Unpaired(psa_jax.Modality(x_a, t_a), psa_jax.Modality(x_b, t_b), num_treatments), "
            f"got {type(data).__name__}"
        )
    if isinstance(data.num_treatments, bool) or not isinstance(data.num_treatments, int | np.integer):
        raise ValueError(f"num_treatments: expected an integer, got {data.num_treatments!r}")
    if data.names is not None and len(data.names) != data.num_treatments:
        raise ValueError(f"names: expected {data.num_treatments}, one for each treatment, got {len(data.names)}")
    if data.strata is not None:
        if not isinstance(data.strata, Strata):
            raise ValueError(f"strata: expected psa_jax.Strata, got {type(data.strata).__name__}")
        if len(data.strata.treatment) != data.num_treatments:
            raise ValueError(
                f"strata: expected {data.num_treatments} combinations, one for each code, got "
                f"{len(data.strata.treatment)}"
            )
    for name, modality in (("a", data.a), ("b", data.b)):
        if not isinstance(modality, Modality):
            raise ValueError(f"modality {name}: expected psa_jax.Modality(x, t), got {type(modality).__name__}")
        x = features(f"modality {name}: x", modality.x)
        x = x if isinstance(x, Source) else np.asarray(x)
        t = codes(f"modality {name}: t", modality.t, data.num_treatments)
        if x.ndim < 2:
            raise ValueError(f"modality {name}: x: expected rank 2 or more, [n, ...], got shape {x.shape}")
        if x.shape[0] != t.size:
            raise ValueError(
                f"modality {name}: expected as many labels as samples, got {t.size} labels and {x.shape[0]} samples"
            )
        check_batch(f"modality {name}: batch", modality.batch, x.shape[0], data.batches)
        if not np.issubdtype(x.dtype, np.floating) and not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"modality {name}: x: expected a float dtype, got {x.dtype}: give x.astype('float32')")
        if isinstance(x, Source):
            with reading((f"modality {name}: x", x)):
                bad = not_finite(x)
        else:
            bad = np.flatnonzero(~np.isfinite(x.reshape(x.shape[0], -1).astype(np.float64)).all(1))
        if bad.size:
            raise ValueError(
                f"modality {name}: x: expected finite features, got NaN or infinity in {bad.size} of "
                f"{x.shape[0]} rows, the first at row {bad[0]}"
            )
    if not np.intersect1d(np.asarray(data.a.t), np.asarray(data.b.t)).size:
        if data.strata is None:
            raise ValueError("data: expected at least one treatment that both modalities have, got none")
        found = (listed(np.unique(np.asarray(side.t)), data.names) for side in (data.a, data.b))
        told = " in a and ".join(f"[{names}]" for names in found)
        raise ValueError(
            f"within: expected at least one treatment within a stratum that both modalities have, got {told} in b"
        )


def on_host(data: Unpaired) -> Unpaired:
    """The same data, checked by `validate`, with labels as int32 arrays whatever they came as."""
    validate(data)
    a, b = (
        Modality(
            side.x if isinstance(side.x, Source) else jnp.asarray(features("x", side.x)),
            jnp.asarray(np.asarray(side.t), jnp.int32),
            None if side.batch is None else jnp.asarray(np.asarray(side.batch), jnp.int32),
        )
        for side in (data.a, data.b)
    )
    names = None if data.names is None else tuple(map(str, data.names))
    return dataclasses.replace(data, a=a, b=b, names=names)


def _check_length(name: str, x: tuple[Any, Any], labels: tuple[np.ndarray, np.ndarray]) -> None:
    for side, samples, found in zip("ab", x, labels, strict=True):
        if samples.shape[0] != found.size:
            raise ValueError(
                f"{name}_{side}: expected {samples.shape[0]} labels, one for each sample, got {found.size}"
            )


def check_like(name: str, other: Unpaired, data: Unpaired) -> None:
    """Raises a `ValueError` that says `name` unless `other` is valid and has what `data` has: features, codes. Host."""
    validate(other)
    if other.num_treatments != data.num_treatments:
        raise ValueError(
            f"{name}: expected num_treatments {data.num_treatments}, as in data, got {other.num_treatments}"
        )
    if other.names != data.names and None not in (other.names, data.names):
        raise ValueError(f"{name}: expected the names of treatments of data, {data.names}, got {other.names}")
    if other.strata != data.strata:
        raise ValueError(f"{name}: expected the strata of data, got {'none' if other.strata is None else 'others'}")
    if other.batches != data.batches and None not in (other.batches, data.batches):
        raise ValueError(f"{name}: expected the names of batches of data, {data.batches}, got {other.batches}")
    for side in ("a", "b"):
        ours, theirs = np.shape(getattr(data, side).x)[1:], np.shape(getattr(other, side).x)[1:]
        if ours != theirs:
            raise ValueError(f"{name}: modality {side}: expected features of shape {ours}, got {theirs}")
        if getattr(other, side).batch is not None and getattr(data, side).batch is None:
            raise ValueError(f"{name}: modality {side}: expected no batch, as data has none, got one")


def check_truth(truth: Truth, n: int, m: int, data: Unpaired | None = None) -> None:
    """Raises a `ValueError` unless `truth` fits `n` rows and `m` columns, and the treatments of `data`. Host only."""
    pair = np.asarray(truth.pair)
    if not np.issubdtype(pair.dtype, np.integer):
        raise ValueError(f"truth.pair: expected integers, got {pair.dtype}")
    if pair.shape != (n,):
        raise ValueError(f"truth.pair: expected shape ({n},), got {pair.shape}")
    if pair.size and (pair.min() < -1 or pair.max() >= m):
        raise ValueError(f"truth.pair: expected columns in [-1, {m}), got {pair.min()} to {pair.max()}")
    for name, z, rows in (("z_a", truth.z_a, n), ("z_b", truth.z_b, m)):
        if z is not None and (z.ndim != 2 or z.shape[0] != rows):
            raise ValueError(f"truth.{name}: expected shape [{rows}, d], got {z.shape}")
    if data is not None:
        t_a, t_b = np.asarray(data.a.t), np.asarray(data.b.t)
        rows = np.flatnonzero((pair >= 0) & (t_a != t_b[pair]))
        if rows.size:
            told = ", ".join(f"{i} with {pair[i]}" for i in rows[:SHOWN]) + (", ..." if rows.size > SHOWN else "")
            raise ValueError(
                f"truth.pair: expected pairs of one treatment each, got two treatments in {rows.size} of "
                f"{(pair >= 0).sum()} (rows {told}): these are no pairs, -1 says so"
            )


def describe(side: Modality) -> str:
    """The size of a modality in words."""
    shape = getattr(side.x, "shape", None)
    if shape is None or len(shape) < 2:
        return f"x: {side.x!r}"[:80]
    features = f"{shape[1]} features" if len(shape) == 2 else f"shape [{', '.join(map(str, shape[1:]))}]"
    return f"{shape[0]} samples of {features}, {side.x.dtype}"
