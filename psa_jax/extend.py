"""New samples against a coupling that is solved: the entropic map."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psa_jax.blocked import Block, Blocked
from psa_jax.coupling import Coupling, Masked, log_row_mass
from psa_jax.data import codes
from psa_jax.match.eot import Gibbs
from psa_jax.shrink import Shrunk, mix
from psa_jax.types import Array, Float, take


def extend(coupling: Blocked, u: Float[Array, "k d"], t: Any) -> Blocked:
    r"""The law of the columns for new rows: one formula with the potentials that are there, no new solve.

    Entropic transport defines `P(j | u) ∝ b_j exp((g_j - c(u, v_j)) / eps)` for every score u, not only for those that
    were matched; its projection is the entropic map. Treatment, eps and shrinkage are those of the coupling. The new
    rows have equal mass within their treatment, so that `T` makes sense: it is what the reference's columns know of
    the new rows. For new columns: `extend(coupling.T, v, t).T`.

    Args:
        coupling: of `blockwise(sinkhorn)`, balanced or not, as it is, transposed, or shrunk.
        u: new scores `[k, d]`, from the same scorer: `alignment.score_a(x)`.
        t: `[k]` their treatments, on the host.

    Returns:
        A coupling of shape `(k, m)`. New rows whose treatment was not matched have no partner and are counted in
        `unmatched_rows`. `info` is that of the coupling. Differentiable in `u` and in the coupling.

    Raises:
        ValueError: a coupling that is not one of `sinkhorn` (it has no potentials), scores of other columns, labels
            that are not `[k]` integers below the number of treatments.

    Example:
        >>> from psa_jax.groups import group
        >>> from psa_jax.match import sinkhorn
        >>> from psa_jax.match.blockwise import blockwise
        >>> u, t = jnp.array([[0.0], [1.0], [5.0]]), jnp.array([0, 0, 1])
        >>> C = blockwise(sinkhorn)(u, u, group(t, t, 2))
        >>> extend(C, jnp.array([[0.1], [5.1]]), jnp.array([0, 1])).apply(u).round(1).tolist()
        [[0.0], [5.0]]

    References:
        Pooladian and Niles-Weed, Entropic estimation of optimal transport maps, 2021 (arXiv 2109.12004).
    """
    u = jnp.asarray(u)
    columns = [_scores(block.coupling).shape[-1] for block in coupling.blocks]
    if u.ndim != 2 or u.shape[1] != columns[0]:
        raise ValueError(f"u: expected scores [k, {columns[0]}], got shape {u.shape}")
    t = codes("t", t, coupling.info.converged.shape[0])
    if t.size != u.shape[0]:
        raise ValueError(f"t: expected {u.shape[0]} labels, one for each row of u, got {t.size}")
    sizes = np.bincount(t, minlength=coupling.info.converged.shape[0])
    rows, matched = [], np.zeros(sizes.size, bool)
    for block in coupling.blocks:
        treatments = np.asarray(block.treatment)
        matched[treatments] = np.asarray((block.cols < coupling.shape[1]).any(-1))
        ids = np.full((treatments.size, max(1, sizes[treatments].max())), t.size)
        for place, treatment in enumerate(treatments):
            ids[place, : sizes[treatment]] = np.flatnonzero(t == treatment)
        rows.append(jnp.asarray(ids, jnp.int32))
    lost = ~matched[t]
    reached = sum(
        int((np.asarray(b.cols)[sizes[np.asarray(b.treatment)] > 0] < coupling.shape[1]).sum()) for b in coupling.blocks
    )
    share = np.where(matched, sizes, 0) / max(1, (~lost).sum())
    return Blocked(
        _extend(coupling, u, tuple(rows), jnp.asarray(share, coupling.blocks[0].weight.dtype)),
        coupling.info,
        jnp.asarray(lost.sum(), jnp.int32),
        jnp.asarray(coupling.shape[1] - reached, jnp.int32),
        (t.size, coupling.shape[1]),
    )


@jax.jit
def _extend(coupling: Blocked, u: Array, rows: tuple[Array, ...], share: Array) -> tuple[Block, ...]:
    k = u.shape[0]
    padded = jnp.concatenate([u, jnp.zeros_like(u[:1])])

    def one(args: Any) -> Coupling:
        block, ids = args
        return _rows(block, take(padded, ids), ids < k)

    return tuple(
        Block(jax.lax.map(one, (block.coupling, ids)), ids, block.cols, share[block.treatment], block.treatment)
        for block, ids in zip(coupling.blocks, rows, strict=True)
    )


def _rows(coupling: Coupling, u: Array, real: Array) -> Coupling:
    """One treatment's coupling with other rows: first without potentials, then with those that give them equal mass."""
    if isinstance(coupling.kernel, Shrunk):
        return mix(_rows(_inner(coupling), u, real), coupling.args[1], jnp.ones(coupling.shape[1], bool))
    eps = coupling.args
    u = u.astype(eps.dtype)
    free = _with_rows(coupling, u, jnp.zeros(u.shape[0], eps.dtype), real)
    log_mass = log_row_mass(free)
    some = log_mass != -jnp.inf
    log_a = -jnp.log(jnp.maximum(real.sum(), 1).astype(eps.dtype))
    return _with_rows(coupling, u, eps * jnp.where(some, log_a - jnp.where(some, log_mass, 0), 0), real)


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


def _scores(coupling: Coupling) -> Array:
    """The scores of the rows; an error if the coupling has none."""
    while isinstance(coupling.kernel, Shrunk):
        coupling = _inner(coupling)
    kernel = coupling.kernel
    if not (isinstance(kernel, Masked) and isinstance(kernel.kernel, Gibbs)):
        raise ValueError(
            f"coupling: expected one of `sinkhorn`, whose potentials extend to new samples, got {type(kernel).__name__}"
            f"{f' of {kernel.kernel}' if isinstance(kernel, Masked) else ''}"
        )
    (scores, _), _ = coupling.right if coupling.flipped else coupling.left
    return scores
