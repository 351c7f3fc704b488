"""New samples against a coupling that is solved: the entropic map."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from psa_jax.arguments import checked
from psa_jax.coupling.blocked import Block, Blocked
from psa_jax.coupling.coupling import Coupling, log_row_mass
from psa_jax.coupling.kernel import Masked
from psa_jax.coupling.shrink import Shrunk, mix
from psa_jax.data.codes import codes
from psa_jax.match.entropic import Gibbs
from psa_jax.match.eot import MAX_ROUNDING
from psa_jax.types import Array, Float, take


@checked
def extend(coupling: Blocked, u: Float[Array, "k d"], t: Any) -> Blocked:
    r"""The law of the columns for new rows: one formula with the potentials that are there, no new solve.

    Entropic transport defines `P(j | u) ∝ b_j exp((g_j - c(u, v_j)) / eps)` for every score u, not only for those that
    were matched; its projection is the entropic map. Treatment, eps and shrinkage are those of the coupling. The new
    rows have equal mass within their treatment, so that `T` makes sense: it is what the reference's columns know of
    the new rows. For new columns: `extend(coupling.T, v, t).T`.

    Args:
        coupling: of `blockwise(sinkhorn)`, balanced or not, as it is, transposed, or shrunk. (An unbalanced one that
            was shrunk in the other direction is extended as if it were balanced.)
        u: new scores `[k, d]`, from the same scorer: `alignment.score_a(x)`.
        t: `[k]` their treatments, on the host.

    Returns:
        A coupling of shape `(k, m)`. New rows whose treatment was not matched, or whose scores are not finite, have no
        partner and are counted in `unmatched_rows`; so are those so far away that rounding of their costs hides which
        columns are nearer, and `info`, else that of the coupling, calls their treatments not converged. Differentiable
        in `u` and in the coupling; under `jit` close over the coupling and `t`, whose treatments decide shapes.

    Raises:
        ValueError: a coupling that is not a blocked one of `sinkhorn` (it has no potentials), or a traced one, scores
            of other columns, labels that are not `[k]` integers below the number of treatments.

    Example:
        >>> from psa_jax.data.groups import group
        >>> from psa_jax.match import sinkhorn
        >>> from psa_jax.match.blockwise import blockwise
        >>> u, t = jnp.array([[0.0], [1.0], [5.0]]), jnp.array([0, 0, 1])
        >>> C = blockwise(sinkhorn)(u, u, group(t, t, 2))
        >>> extend(C, jnp.array([[0.1], [5.1]]), jnp.array([0, 1])).apply(u).round(1).tolist()
        [[0.0], [5.0]]

    References:
        Pooladian and Niles-Weed, Entropic estimation of optimal transport maps, 2021 (arXiv 2109.12004).
    """
    if not isinstance(coupling, Blocked):
        raise ValueError(f"coupling: expected a blocked one, as `align` makes it, got {type(coupling).__name__}")
    plain = [_plain(block.coupling) for block in coupling.blocks]
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((coupling.blocks, t))):
        raise ValueError("coupling, t: expected values known on the host, got traced ones (close over them under jit)")
    u = jnp.asarray(u)
    columns = _rows_of(plain[0])[0].shape[-1]
    if u.ndim != 2 or u.shape[1] != columns or not jnp.issubdtype(u.dtype, jnp.floating):
        raise ValueError(f"u: expected float scores [k, {columns}], got {u.dtype} {u.shape}")
    num_treatments = coupling.info.converged.shape[0]
    t = codes("t", t, num_treatments) if np.size(t) else np.zeros(0, int)
    if t.size != u.shape[0]:
        raise ValueError(f"t: expected {u.shape[0]} labels, one for each row of u, got {t.size}")
    sizes = np.bincount(t, minlength=num_treatments)
    ids, reachable = [], np.zeros(num_treatments, int)  # columns of each treatment, as far as the coupling has them
    for block, one in zip(coupling.blocks, plain, strict=True):
        treatments = np.asarray(block.treatment)
        reachable[treatments] = np.asarray(_columns_of(one)).sum(-1)
        rows = np.full((treatments.size, max(1, sizes[treatments].max())), t.size)
        for place, treatment in enumerate(treatments):
            rows[place, : sizes[treatment]] = np.flatnonzero(t == treatment)
        ids.append(jnp.asarray(rows, jnp.int32))
    return _extend(coupling, u, jnp.asarray(t, jnp.int32), tuple(ids), jnp.asarray(reachable, jnp.int32))


@jax.jit
def _extend(coupling: Blocked, u: Array, t: Array, ids: tuple[Array, ...], reachable: Array) -> Blocked:
    k = u.shape[0]
    finite = jnp.isfinite(u).all(1)
    padded = jnp.concatenate([jnp.where(finite[:, None], u, 0), jnp.zeros((1, u.shape[1]), u.dtype)])
    real = jnp.append(finite, False)
    asked = real[:-1] & (reachable[t] > 0)

    def one(args: Any) -> Coupling:
        block, rows = args
        return _rows(block, take(padded, rows), real[rows])

    number = jnp.zeros(reachable.shape, jnp.int32)
    found = [jax.lax.map(one, (block.coupling, rows)) for block, rows in zip(coupling.blocks, ids, strict=True)]
    matched = jnp.zeros(k + 1, bool)
    for law, rows in zip(found, ids, strict=True):
        matched = matched.at[rows].set(jax.lax.map(lambda one: one.row_marginal() > 0, law))
    matched = matched[:-1] & asked
    counts = number.at[t].add(matched.astype(jnp.int32))
    lost = number.at[t].add((asked & ~matched).astype(jnp.int32))
    share = counts.astype(dtype := coupling.blocks[0].weight.dtype) / jnp.maximum(matched.sum(), 1).astype(dtype)
    blocks = tuple(
        Block(law, rows, block.cols, share[block.treatment], block.treatment)
        for block, law, rows in zip(coupling.blocks, found, ids, strict=True)
    )
    details = {**coupling.info.details, "lost": coupling.info.details.get("lost", number) + lost}
    info = dataclasses.replace(coupling.info, converged=coupling.info.converged & (lost == 0), details=details)
    reached = jnp.where(counts > 0, reachable, 0).sum()
    return Blocked(blocks, info, (~matched).sum(dtype=jnp.int32), coupling.shape[1] - reached, (k, coupling.shape[1]))


def _rows(coupling: Coupling, u: Array, real: Array) -> Coupling:
    """One treatment's coupling with other rows: first without potentials, then with those that give them equal mass."""
    if isinstance(coupling.kernel, Shrunk):
        inner = dataclasses.replace(_rows(_inner(coupling), u, real), flipped=coupling.kernel.flipped)
        mixed = mix(inner, coupling.args[1], jnp.ones(inner.shape[1], bool))
        return dataclasses.replace(mixed, flipped=coupling.flipped)
    eps = coupling.args
    u = u.astype(eps.dtype)
    free = _with_rows(coupling, u, jnp.zeros(u.shape[0], eps.dtype), real)
    log_mass = log_row_mass(free)
    some = log_mass != -jnp.inf
    log_a = -jnp.log(jnp.maximum(real.sum(), 1).astype(eps.dtype))
    f = eps * jnp.where(some, log_a - jnp.where(some, log_mass, 0), 0)
    # The log mass is about the least cost over eps. Where its last digit is as large as a share of one, rounding of the
    # costs hides which columns are nearer.
    rounding = jnp.finfo(eps.dtype).eps * jnp.abs(jnp.where(some, log_mass, 0))
    return _with_rows(coupling, u, f, real & some & (rounding < MAX_ROUNDING))


def _with_rows(coupling: Coupling, u: Array, f: Array, real: Array) -> Coupling:
    side = "right" if coupling.flipped else "left"
    return dataclasses.replace(coupling, **{side: ((u, f), real)})


def _inner(coupling: Coupling) -> Coupling:
    """What was shrunk."""
    return dataclasses.replace(
        coupling,
        left=coupling.left[0],
        right=coupling.right[0],
        args=coupling.args[0],
        kernel=coupling.kernel.kernel,
    )


def _plain(coupling: Coupling) -> Coupling:
    """The transport under any shrinkage; an error if there is none."""
    while isinstance(coupling.kernel, Shrunk):
        coupling = _inner(coupling)
    kernel = coupling.kernel
    if not (isinstance(kernel, Masked) and isinstance(kernel.kernel, Gibbs)):
        raise ValueError(
            "coupling: expected one of `sinkhorn`, whose potentials extend to new samples, got "
            + (f"one of {type(kernel.kernel).__name__}" if isinstance(kernel, Masked) else type(kernel).__name__)
        )
    return coupling


def _rows_of(coupling: Coupling) -> tuple[Array, Array]:
    """Scores and potentials of the rows."""
    return (coupling.right if coupling.flipped else coupling.left)[0]


def _columns_of(coupling: Coupling) -> Array:
    """Which columns have mass."""
    return (coupling.left if coupling.flipped else coupling.right)[1]
