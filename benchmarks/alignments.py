"""Representation by aligner: the couplings of one problem and how good they are, for `python -m benchmarks.paper`."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np

import psa_jax as psa
from psa_jax import baselines
from psa_jax.match import class_mean, known_pairs
from psa_jax.metrics.pairs import project
from psa_jax.propensity.nets import default_model

MEMBERS, LARGE_MEMBERS = {"balls": 2}, 3  # one of each smoothing, of which labels choose
BIG = 30
PAPER_OT = functools.partial(psa.sinkhorn, eps=0.05)
SHARP_OT = functools.partial(psa.sinkhorn, eps=psa.relative(0.02))  # for sampled pairs, not for projections
GW_LIMIT = 2000


def identity(logits):
    return logits


def quietly(function, *args, **options):
    """Calls without warnings, about alignments or treatments that are too small: the figures show them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return function(*args, **options)


def published(key, problem):
    """The paper's scores: raw logits of one classifier a modality, without smoothing, calibration or centring."""
    shared = np.intersect1d(problem.train.a.t, problem.train.b.t)
    scores = []
    for side, k in zip("ab", jax.random.split(key), strict=True):
        data = getattr(problem.train, side)
        model = problem.model or default_model(side, data.x, problem.train.num_treatments)
        training = psa.Training(epochs=problem.epochs).resolved(data.t.size, judged=True)
        if problem.query is None:
            logits = psa.crossfit(k, model, data.x, data.t, training=training).logits
        else:
            key_split, key_fit = jax.random.split(k)
            train, valid = psa.Unpaired(data, data, problem.train.num_treatments), problem.valid
            if valid is None:
                train, valid = psa.split(key_split, train, (0.8, 0.2))
            else:
                valid = psa.Unpaired(getattr(valid, side), getattr(valid, side), valid.num_treatments)
            fitted = psa.fit(key_fit, model, train.a.x, train.a.t, training=training, valid=(valid.a.x, valid.a.t))
            logits = psa.propensity(model, fitted.params, getattr(problem.query, side).x, transform=identity)
        scores.append(logits[:, shared])
    return tuple(scores)


def large_couplings(key, problem):
    """`couplings` at the paper's scale: what its table has."""
    keys = iter(jax.random.split(key, 3))
    data, learner = problem.aligned, problem.learner(LARGE_MEMBERS)
    groups = psa.group(data.a.t, data.b.t, data.num_treatments)
    out = quietly(psa.align, next(keys), problem.train, valid=problem.valid, query=problem.query, a=learner, b=learner)
    u, v = out.scores_a, out.scores_b
    yield "none", "class mean", psa.blockwise(class_mean)(u, v, groups)
    yield "none", "true pairs", known_pairs(problem.truth.pair, data.b.t.size)
    yield "PS", "OT", out.coupling
    yield "PS", "OT, sharp", psa.blockwise(SHARP_OT)(u, v, groups)
    yield "PS", "OT, calibrated", out.projection.law
    yield "PS", "SNN", psa.blockwise(psa.snn)(u, v, groups)
    yield "PS", "SNN, k 20", psa.blockwise(functools.partial(psa.snn, k=20))(u, v, groups)
    u, v = published(next(keys), problem)
    yield "PS as published", "OT, eps 0.05", psa.blockwise(PAPER_OT)(u, v, groups)
    yield "PS as published", "SNN", psa.blockwise(psa.snn)(u, v, groups)
    u, v = baselines.vae(next(keys), problem.train, query=problem.query)
    yield "VAE", "OT", psa.blockwise(psa.sinkhorn)(u, v, groups)
    yield "VAE", "SNN", psa.blockwise(psa.snn)(u, v, groups)


def couplings(key, problem):
    """Yields `(representation, match, coupling)`; every setting is chosen with labels only."""
    if problem.large:
        yield from large_couplings(key, problem)
        return
    keys = iter(jax.random.split(key, 8))
    data = problem.aligned
    groups = psa.group(data.a.t, data.b.t, data.num_treatments)
    learner, several = problem.learner(), problem.learner(MEMBERS.get(problem.name, 5))
    align = functools.partial(quietly, psa.align, query=problem.query)
    ours = align(next(keys), problem.train, a=several, b=several)
    yield "none", "class mean", psa.blockwise(class_mean)(ours.scores_a, ours.scores_b, groups)
    yield "none", "true pairs", known_pairs(problem.truth.pair, data.b.t.size)
    yield "PS", "OT", ours.coupling
    yield "PS", "OT, sharp", psa.blockwise(SHARP_OT)(ours.scores_a, ours.scores_b, groups)
    features = data.b.x.reshape(data.b.t.size, -1)
    shown = features if features.shape[1] <= BIG * 10 else None
    yield (
        "PS",
        "OT, calibrated",
        psa.calibrated_coupling(next(keys), ours.member_scores_a, ours.member_scores_b, groups, y=shown)[0],
    )
    yield "PS", "SNN", psa.blockwise(psa.snn)(ours.scores_a, ours.scores_b, groups)
    u, v = published(next(keys), problem)
    yield "PS as published", "OT, eps 0.05", psa.blockwise(PAPER_OT)(u, v, groups)
    yield "PS as published", "SNN", psa.blockwise(psa.snn)(u, v, groups)
    control = align(next(keys), psa.permute_treatments(next(keys), problem.train), a=learner, b=learner)
    yield "PS, permuted labels", "OT", psa.blockwise(psa.sinkhorn)(control.scores_a, control.scores_b, groups)
    for name, embed in (("VAE", baselines.vae), ("contrastive", baselines.contrastive)):
        u, v = embed(next(keys), problem.train, query=problem.query)
        yield name, "OT", psa.blockwise(psa.sinkhorn)(u, v, groups)
        yield name, "SNN", psa.blockwise(psa.snn)(u, v, groups)
    if problem.train.a.x.ndim == 2:
        u, v = baselines.cca(problem.train, query=problem.query)
        yield "CCA", "OT", psa.blockwise(psa.sinkhorn)(u, v, groups)
        if int(np.max(groups.sizes_a)) <= GW_LIMIT:
            u, v = baselines.raw(problem.train, query=problem.query)
            yield "raw features", "GW (SCOT)", psa.blockwise(psa.gromov_wasserstein)(u, v, groups)


def figures(key, coupling, problem):
    """What the truth says of a coupling; see `RESULTS.md` for what each figure means. The key draws partners."""
    data, truth = problem.aligned, problem.truth
    groups = psa.group(data.a.t, data.b.t, data.num_treatments)
    t, known = data.a.t, truth.pair >= 0
    seen = known & (groups.sizes_b[t] > 0)
    unseen = seen & jnp.isin(t, jnp.asarray(problem.unseen, jnp.int32)) if problem.unseen else None
    trace = jnp.where(seen, psa.trace(coupling, truth), jnp.nan)
    big = seen & (groups.sizes_a[t] >= BIG) & (groups.sizes_b[t] >= BIG)
    big = jnp.where(big.any(), big, seen)
    lift = trace * groups.sizes_b[t]
    y = truth.z_b if truth.z_b is not None else data.b.x.reshape(data.b.t.size, -1)
    y, uniform = jnp.asarray(y, jnp.float32), psa.blockwise(class_mean)(data.a.t, data.b.t, groups)
    true, projected, blind = _true(y, truth), project(coupling, y), project(uniform, y)
    wrong, level = (jnp.sum((guess - true) ** 2, axis=1) for guess in (projected, blind))
    counted = seen & jnp.isfinite(wrong)
    out = {
        "trace": _mean(trace, seen),
        "lift": _mean(lift, big),
        "FOSCTTM": _mean(psa.foscttm(projected, true, t=t), seen),
        "error / class mean": _mean(wrong, counted) / _mean(level, counted),
        "latent MSE": _mean(wrong, counted) / y.shape[1] if truth.z_b is not None else None,
    }
    if unseen is not None:
        out["lift, unseen treatments"] = _mean(lift, unseen)
        out["error, unseen"] = _mean(wrong, unseen) / _mean(level, unseen)
    return out | ({} if truth.z_b is not None else published_figures(key, coupling, y, true, t, trace))


def published_figures(key, coupling, y, true, t, trace):
    """Trace and FOSCTTM by the paper's conventions: treatments count alike, one drawn partner, ties count for it."""
    drawn = coupling.sample(key)
    rank = psa.foscttm(jnp.where((drawn >= 0)[:, None], y[drawn], jnp.nan), true, t=t, convention="paper")
    number = int(t.max()) + 1
    trace, rank = (float(psa.by_treatment(values, t, number).macro) for values in (trace, rank))
    return {"trace (paper's way)": trace, "FOSCTTM (paper's way)": rank}


def _true(y, truth):
    return jnp.where((truth.pair >= 0)[:, None], y[truth.pair], jnp.nan)


def _mean(values, where):
    return float(jnp.mean(values, where=where & jnp.isfinite(values)))
