"""Gradients of sharp problems in single precision: are they finite, and those of double precision?"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import psa_jax as psa

SIZE, DIM = 64, 3
SETTINGS = {
    "stored": {},
    "tiled": {"memory": 2**13},
    "kept": {"memory": 2**14},
    "unbalanced": {"tau_a": 0.9, "tau_b": 0.95},
    "newton": {"newton": 5},
    "bfloat16 scores": {},
}
EXACT = {"tol": 1e-11, "newton": 20, "max_iters": 20000}
FREEDOM = (1e-2, 1e-3, 1e-4, 1e-6)


def problems(rng, count):
    """Problems of 2 to 64 samples a side, padded to 64 by numbers that must not matter; half of them are of pairs."""
    u, v = rng.normal(size=(count, SIZE, DIM)), rng.normal(size=(count, SIZE, DIM))
    paired = rng.random(count) < 0.5
    v = np.where(paired[:, None, None], u + 0.02 * v, v)
    n = rng.integers(2, SIZE + 1, count)
    m = np.where(paired, n, rng.integers(2, SIZE + 1, count))
    a, b = ((np.arange(SIZE) < k[:, None]) / k[:, None].astype(float) for k in (n, m))
    eps = np.exp(rng.uniform(np.log(0.003), np.log(0.3), count))
    return u, v, a, b, rng.normal(size=(count, SIZE, 2)), rng.normal(size=(count, SIZE, 2)), eps


@functools.partial(jax.jit, static_argnames="settings")
def solved(problems, settings):
    """Gradients in both sides' scores, the mass that the plan leaves to others than the likeliest, and convergence."""

    def one(problem):
        u, v, a, b, y, w, eps = problem

        def loss(u, v):
            coupling = psa.sinkhorn(u, v, a, b, eps=psa.relative(eps), **dict(settings))
            return jnp.sum(w * coupling.apply(y).astype(w.dtype)), coupling

        gradients, coupling = jax.grad(loss, (0, 1), has_aux=True)(u, v)
        return gradients, jnp.sum(a * (1 - coupling.top_k(1)[0][:, 0])), coupling.info.converged

    return jax.lax.map(one, problems)


def gradients(count=5000, seed=0):
    """How many gradients are not finite, and how far they are from those of float64 by what freedom the plan leaves."""
    rng, found = np.random.default_rng(seed), {}
    for name, settings in SETTINGS.items():
        drawn = problems(rng, count // len(SETTINGS))
        stored = jnp.bfloat16 if name.startswith("bfloat16") else jnp.float32
        kinds = (stored, stored, *(jnp.float32,) * 5)
        single = [jnp.asarray(x, kind) for x, kind in zip(drawn, kinds, strict=True)]
        ours = solved(single, tuple({"tol": 1e-5, "max_iters": 5000, **settings}.items()))[0]
        ours = [np.asarray(side.astype(jnp.float32), np.float64) for side in ours]
        with jax.enable_x64(True):
            exact = {"tau_a": settings.get("tau_a", 1.0), "tau_b": settings.get("tau_b", 1.0), **EXACT}
            double = [jnp.asarray(np.asarray(x.astype(jnp.float32)), jnp.float64) for x in single]
            theirs, freedom, converged = (jax.tree.map(np.asarray, x) for x in solved(double, tuple(exact.items())))
        finite = np.all([np.isfinite(side).all((1, 2)) for side in ours], axis=0)
        apart, size = (
            np.sqrt(sum(np.square(side).sum((1, 2)) for side in sides))
            for sides in ([p - q for p, q in zip(ours, theirs, strict=True)], theirs)
        )
        error = apart / np.maximum(size, 1e-300)
        found[name] = {"tried": len(finite), "not finite": int((~finite).sum())}
        for least in FREEDOM:
            free = (freedom > least) & converged
            apart = error[free]
            found[name][f"freedom > {least:g}"] = apart.size, np.median(apart), np.mean(apart > 1e-2), apart.max()
    return found


def told(found):
    """A few lines for each setting."""
    lines = []
    for name, row in found.items():
        lines.append(f"gradients, {name}: {row['tried']} tried, {row['not finite']} NOT FINITE")
        lines += [
            f"  {label}: {many} beside float64, median error {median:.1e}, {share:.2%} beyond 1e-2, worst {worst:.1e}"
            for label, (many, median, share, worst) in list(row.items())[2:]
        ]
    return "\n".join(lines)
