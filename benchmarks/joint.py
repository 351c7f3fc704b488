"""Two encoders trained jointly through the coupling: `python -m benchmarks.joint [--steps 1000]`.

It starts from the two-stage result (each encoder trained to classify the treatment, then matched) and goes on with a
joint objective: classification, plus the squared error with which each modality's scores are predicted from the other's
through the coupling of the mini-batch. The scores predicted are held out of the match: in every step half of the
columns are matched and the other half predicted. Gradients reach both encoders through the potentials, implicitly.

The objective has a trivial end: whatever has the same distribution in both modalities can be matched by rank, be it the
shared state or not, and then predicts itself. Classification holds against that, for a while and for a small weight;
which is why the parameters are chosen on held-out scenes, and why the held-out agreement, trained for here, no longer
tells anything.

The parameters kept are those with the lowest objective on held-out training scenes. Beside it, as long a training on
classification alone, kept by the same rule: what joint training adds is the difference of the two. Figures
that only the truth can give are of test scenes. Also measured: the time of a step, compilations and memory.
"""

import argparse
import functools
import json
import resource
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax

import psa_jax as psa
from benchmarks.tables import HERE, save
from psa_jax.judge.agreement import halves, held_out_agreement, hold, keep
from psa_jax.match import class_mean

ROWS_A_TREATMENT = 24
WEIGHTS = (1.0, 0.0)
HALVES = 4
EVERY = 50


def deviations(y, t, num_treatments):
    """What is left of `y` after subtracting the mean of its treatment in the batch."""
    one_hot = jax.nn.one_hot(t, num_treatments, dtype=y.dtype)
    return y - one_hot @ ((one_hot.T @ y) / jnp.maximum(one_hot.sum(0), 1)[:, None])


def prediction_error(key, u, v, t_a, t_b, num_treatments, capacity, matcher=psa.sinkhorn):
    """Share of the held-out scores' variation within treatments that the coupling of the others leaves unexplained."""
    used = halves(key, u.shape[1], 1)[0]
    coupling = psa.match_batch(
        keep(u, used), keep(v, used), t_a, t_b, num_treatments=num_treatments, capacity=capacity, matcher=matcher
    )
    errors = []
    for law, own, other, t in ((coupling, u, v, t_a), (coupling.T, v, u, t_b)):
        true = deviations(hold(own, ~used), t, num_treatments)
        guess = deviations(law.apply(hold(other, ~used)), t, num_treatments)
        errors.append(jnp.sum((true - guess) ** 2) / jnp.sum(true**2))
    return sum(errors) / 2


def objective(params, key, batch, models, augment, num_treatments, capacity, weight):
    """Classification of both modalities, and `weight` times the prediction error; params carry running statistics."""
    x_a, t_a, x_b, t_b = batch
    key_a, key_b, key_half = jax.random.split(key, 3)
    loss, scores, after = jnp.zeros(()), [], {}
    for side, k, x, t in (("a", key_a, x_a, t_a), ("b", key_b, x_b, t_b)):
        key_augment, key_apply = jax.random.split(k)
        seen = x if augment is None else augment(key_augment, x)
        logits, after[side] = models[side].apply(params[side], seen, train=True, key=key_apply)
        loss += optax.softmax_cross_entropy_with_integer_labels(logits, t).mean()
        scores.append(psa.centre(logits))
    if weight:
        loss += weight * prediction_error(key_half, *scores, t_a, t_b, num_treatments, capacity)
    return loss, after


def make_step(models, augment, num_treatments, capacity, weight, optimizer):
    """One compiled step of `objective`, and the initial state of its optimiser."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, key, batch):
        (loss, after), grads = jax.value_and_grad(objective, has_aux=True)(
            params, key, batch, models, augment, num_treatments, capacity, weight
        )
        updates, state = optimizer.update(grads, state, params)
        moved = optax.apply_updates(params, updates)
        kept = {side: models[side].trainable(params[side]) for side in params}
        params = jax.tree.map(lambda new, old, trained: new if trained else old, moved, after, kept)
        return params, state, loss

    return step


def validation(key, models, data, weight):
    """The objective on held-out samples without augmentation, mean over random halves: a function of the params."""
    capacity = max(int(np.bincount(np.asarray(side.t)).max()) for side in (data.a, data.b))

    @jax.jit
    def value(params):
        sides = [("a", data.a), ("b", data.b)]
        logits = [models[name].apply(params[name], side.x, train=False, key=None)[0] for name, side in sides]
        loss = sum(
            optax.softmax_cross_entropy_with_integer_labels(out, side.t).mean()
            for out, (_, side) in zip(logits, sides, strict=True)
        )
        if not weight:
            return loss
        error = functools.partial(
            prediction_error,
            u=psa.centre(logits[0]),
            v=psa.centre(logits[1]),
            t_a=data.a.t,
            t_b=data.b.t,
            num_treatments=data.num_treatments,
            capacity=capacity,
        )
        return loss + weight * jax.lax.map(error, jax.random.split(key, HALVES)).mean()

    return value


def train(key, models, params, data, *, steps, rows, weight, valid=None, augment=None, rate=3e-4, report=None):
    """Trains for `steps` steps on random mini-batches of `rows` samples of each modality; the labels' mix varies.

    With `valid` data the parameters with the lowest objective on them, looked at every 50 steps, are returned.
    """
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
    capacity = rows  # never short, whatever the mix
    if data.num_treatments > 2:
        capacity = min(rows, 2 * -(-rows // data.num_treatments))
    step = make_step(models, augment, data.num_treatments, capacity, weight, optimizer)
    params = jax.tree.map(jnp.copy, params)  # a step takes its arguments' memory
    state, losses = optimizer.init(params), []
    judged = None if valid is None else validation(jax.random.fold_in(key, steps), models, valid, weight)
    best, chosen = (np.inf, params) if judged is None else (float(judged(params)), jax.tree.map(jnp.copy, params)), 0
    for number in range(steps):
        key_step, key_a, key_b = jax.random.split(jax.random.fold_in(key, number), 3)
        ids_a, ids_b = (
            jax.random.choice(k, side.t.size, (rows,), replace=False) for k, side in ((key_a, data.a), (key_b, data.b))
        )
        batch = data.a.x[ids_a], data.a.t[ids_a], data.b.x[ids_b], data.b.t[ids_b]
        params, state, loss = step(params, state, key_step, batch)
        losses.append(loss)
        if report is not None:
            report(number, params, loss, step)
        if judged is not None and number % EVERY == EVERY - 1 and (found := float(judged(params))) < best[0]:
            best, chosen = (found, jax.tree.map(jnp.copy, params)), number + 1
    return params if judged is None else best[1], np.asarray(jnp.stack(losses)), step._cache_size(), chosen


def judge(models, params, valid, test, truth):
    """Latent MSE and trace of the test scenes, and the label-only criterion; temperatures from validation scenes."""
    scores = []
    for side in "ab":
        logits = functools.partial(psa.propensity, models[side], params[side], transform=lambda out: out)
        held, new = getattr(valid, side), getattr(test, side)
        scores.append(psa.from_logits(logits(new.x), temperature=psa.calibrate(logits(held.x), held.t)))
    groups = psa.group(test.a.t, test.b.t, test.num_treatments)
    coupling = psa.blockwise(psa.sinkhorn)(*scores, groups)
    blind = psa.blockwise(class_mean)(*scores, groups)
    return {
        "latent MSE": float(psa.latent_mse(coupling, truth).mean()),
        "class mean": float(psa.latent_mse(blind, truth).mean()),
        "trace": float(psa.trace(coupling, truth).mean()),
        "held-out agreement": float(held_out_agreement(jax.random.key(0), psa.sinkhorn, *scores, groups).mean()),
    }


def peak():
    """The most memory this process has had, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def compare(args, seed):
    """Rows of one seed: the two-stage result, and what each weight makes of it."""
    key_train, key_test, key_split, key_align, key_joint = jax.random.split(jax.random.key(seed), 5)
    data, _ = psa.datasets.balls(key_train, num_samples=args.num_train, image_size=32)
    test, truth = psa.datasets.balls(key_test, num_samples=args.num_test, image_size=32)
    train_data, valid = psa.split(key_split, data, (0.8, 0.2))
    model, augment = psa.conv((32, 64, 128), 12), psa.translation(0.08)
    models = {"a": model, "b": model}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", psa.AlignmentWarning)
        learner = psa.Learner(model, training=psa.Training(epochs=args.epochs), members=1)
        first = psa.align(key_align, train_data, query=test, valid=valid, a=learner, b=learner)
    fitted = {"a": first.fitted_a.params, "b": first.fitted_b.params}
    params = jax.tree.map(lambda leaf: leaf[0], fitted)
    rows = [{"seed": seed, "training": "two stages", "steps": 0, **judge(models, params, valid, test, truth)}]
    print(rows[-1], flush=True)
    size = ROWS_A_TREATMENT * 12
    for weight in args.weights:
        name = f"joint, weight {weight:g}" if weight else "classification only"
        seen, start = {}, time.perf_counter()

        def report(number, params, loss, step, seen=seen, start=start):
            if number in (0, 49, args.steps - 1):
                jax.block_until_ready(params)
                seen[number] = (time.perf_counter() - start, peak(), step._cache_size())

        out, losses, programs, chosen = train(
            key_joint,
            models,
            params,
            train_data,
            steps=args.steps,
            rows=size,
            weight=weight,
            valid=valid,
            augment=augment,
            report=report,
        )
        assert np.isfinite(losses).all(), "a loss that is not finite"
        early, late = seen[min(49, args.steps - 1)], seen[args.steps - 1]
        rows.append(
            {
                "seed": seed,
                "training": name,
                "steps": args.steps,
                "best step": chosen,
                **judge(models, out, valid, test, truth),
                "seconds a step": late[0] / args.steps,
                "programs": programs,
                "peak GiB at step 50": early[1],
                "peak GiB at the end": late[1],
            }
        )
        print(rows[-1], flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-train", type=int, default=4000)
    parser.add_argument("--num-test", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--weights", type=float, nargs="+", default=WEIGHTS, help="0 is classification only")
    told = "of scenes and training; others keep their rows, where all else was the same"
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help=told)
    args = parser.parse_args()
    path = HERE / "results" / "joint.json"
    before = json.loads(path.read_text()) if path.exists() else {"settings": {}, "rows": []}
    settings = vars(args) | {"weights": list(args.weights)}
    same = before["settings"] | {"seeds": args.seeds} == settings
    rows = before["rows"] if same else []
    for seed in args.seeds:  # written after each, so that a run cut short is not lost
        rows = [row for row in rows if row["seed"] != seed] + compare(args, seed)
        columns = {name: None for row in rows for name in row}
        rows = sorted(({**columns, **row} for row in rows), key=lambda row: row["seed"])
        save("joint", settings | {"seeds": sorted({row["seed"] for row in rows})}, rows)


if __name__ == "__main__":
    main()
