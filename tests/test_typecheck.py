"""The annotations of shapes and types hold: the pipeline runs under jaxtyping's import hook with beartype."""

import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
    import jaxtyping

    with jaxtyping.install_import_hook("psa_jax", "beartype.beartype"):
        import psa_jax as psa
        from psa_jax import baselines, datasets

    import functools
    import sys
    import jax
    import jax.numpy as jnp

    key = jax.random.key(0)
    t = jnp.arange(48) % 3
    x = jax.random.normal(key, (48, 4)) + t[:, None]
    data = psa.Unpaired(psa.Modality(x, t), psa.Modality(x[:40, :3], t[:40]), 3)
    truth = psa.Truth(jnp.where(jnp.arange(48) < 40, jnp.arange(48), -1), x, x[:40])
    a, b = (psa.Learner(model, training=psa.Training(epochs=2)) for model in (psa.mlp((8,), 3), psa.linear(3)))
    for matcher in (psa.sinkhorn, psa.snn, psa.nearest, psa.assignment, functools.partial(psa.sinkhorn, tau_a=0.9)):
        out = psa.align(key, data, matcher=matcher, a=a, b=b)
        psa.evaluate(key, out, truth, data)
        C = out.coupling
        C.log_prob(truth.pair), C.top_k(2), C.dense(), C.T.apply(x), C.row_marginal(), C.col_marginal()
        jax.grad(lambda u: psa.blockwise(psa.sinkhorn)(u, out.scores_b, out.groups).apply(x[:40]).sum())(out.scores_a)
    images, _ = psa.datasets.balls(key, num_samples=48, image_size=16)
    once = psa.Training(epochs=1)
    learner = psa.Learner(psa.conv((4,), 12), training=once, folds=3)
    psa.align(key, images, a=learner, b=learner)
    print(psa.Unpaired.from_labels(x, ['a', 'b'] * 24, x, 24 * ['b', 'c']), learner, out, file=sys.stderr)
    psa.split(key, data, (0.5, 0.5), truth)
    psa.label_transfer(C, t, t[:40])
    psa.r2(x, x + 1, center=x.mean(0)), psa.sliced_wasserstein1(key, x, x[:40], num_projections=2)
    for distance in (psa.wasserstein1, psa.kl_divergence, psa.gaussian_kl_divergence):
        psa.per_treatment(distance, x, t, x[:40], t[:40], 3), jax.jit(distance)(x, x[:40])
    psa.fit_ensemble(jax.random.split(key, 2), psa.linear(3), x, t, training=once)
    psa.held_out_agreement(key, psa.sinkhorn, out.scores_a, out.scores_b, out.groups, repeats=1)
    diagnosis = psa.diagnose(key, out, repeats=1, permutations=2)
    print(diagnosis, diagnosis.warnings, file=sys.stderr)
    C, sweep = psa.calibrated_coupling(key, out.member_scores_a, out.member_scores_b, out.groups, y=x[:40], repeats=1)
    for loss in ("barycentric", "sampled", "unbiased"):
        fitted = psa.fit_predictor(key, psa.linear(4), x, x[:40], C, loss=loss, training=once)
    psa.predict(None, fitted, x), psa.predict(psa.linear(4), fitted.params, x)
    psa.shrink(psa.match.known_pairs(truth.pair, 40), 0.5)
    baselines.cca(data), baselines.raw(data, query=data), baselines.noise(key, data)
    for embed, outputs in ((baselines.contrastive, 2), (baselines.vae, 4)):
        embed(key, data, dim=2, training=once, model_a=psa.linear(outputs), model_b=psa.linear(outputs))
    print("checked")
"""


@pytest.mark.slow
def test_annotations_hold():
    out = subprocess.run([sys.executable, "-c", textwrap.dedent(PROGRAM)], capture_output=True, text=True, check=False)
    assert out.stdout.strip() == "checked", out.stderr[-3000:]
