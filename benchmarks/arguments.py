"""Wrong arguments to every public function: is each refused by its name, or does it come out as something else?"""

import collections
import functools
import inspect
import random
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import scipy.sparse

import psa_jax as psa

KEY = jax.random.key(0)
N, K = 12, 3
T = jnp.arange(N) % K
X = jax.random.normal(KEY, (N, 4))
W = jnp.full(N, 1 / N)
MODEL = psa.linear(K)
QUICK = psa.Learner(MODEL, training=psa.Training(epochs=1), folds=3, members=2)


@functools.cache
def made():
    """What many of the functions take, made once."""
    data = psa.Unpaired(*2 * [psa.Modality(X, T)], K)
    groups = psa.group(T, T, K)
    coupling = psa.blockwise(psa.sinkhorn)(X, X, groups)
    alignment = psa.Alignment(coupling, groups, X, X, *6 * [None])
    return data, groups, coupling, alignment, psa.Truth(jnp.arange(N), X, X)


def calls():
    """Arguments that every function takes; what is left out has a default that is left alone, too."""
    data, groups, coupling, alignment, truth = made()
    pair = {"u": X, "v": X, "a": W, "b": W}
    sides = {"x": X, "y": X, "a": W, "b": W}
    fit = {"model": MODEL, "x": X, "t": T, "training": psa.Training(epochs=1), "valid": None, "augment": None}
    fit |= {"class_weights": None, "on_epoch": None}
    sweep = {"key": KEY, "u": X, "v": X, "groups": groups, "eps": [0.1], "y": None, "matcher": psa.sinkhorn}
    predictor = {"model": psa.linear(4), "x_a": X, "x_b": X, "coupling": coupling, "loss": "sampled"}
    predictor |= {"training": psa.Training(epochs=1), "valid": None, "augment": None, "on_epoch": None}
    logits = {"logits": X[:, :K], "t": T, "temperature": 1.0}
    point = {"x": X[0], "y": X[0]}
    loop = {"eps": 0.1, "tol": 0.1, "max_iters": 3}
    seen = {"matcher": psa.sinkhorn, "progress": False}
    return {
        "align": {"key": KEY, "data": data, "query": None, "valid": None, "a": QUICK, "b": QUICK, **seen}
        | {"mesh": None, "resume": None},
        "align_many": {"key": KEY, "modalities": [data.a, data.b], "num_treatments": K, "reference": 0, **seen}
        | {"learners": QUICK, "names": None},
        "assignment": pair | {"cost": psa.euclidean},
        "batch_norm": {"train": True},
        "blockwise": {"matcher": psa.sinkhorn, "chunk": None, "mesh": None},
        "by_treatment": {"values": X[:, 0], "t": T, "num_treatments": K},
        "calibrate": {name: logits[name] for name in ("logits", "t")},
        "calibrated_coupling": sweep | {"repeats": 1, "most": 5, "progress": False},
        "centre": {"logits": X},
        "chain": {"first": coupling, "second": coupling},
        "class_mean": pair,
        "class_weights": {"t": T, "num_treatments": K},
        "compose": {"augments": psa.smoothing},
        "conv": {"widths": [4], "num_treatments": K, "hidden": 4, "norm": None, "dropout": 0.0, "standardize": True},
        "cosine": point,
        "crossfit": {"key": KEY, "folds": 3, **{name: fit[name] for name in fit if name != "valid"}},
        "diagnose": {
            "key": KEY,
            "alignment": alignment,
            "repeats": 1,
            "draws": 1,
            "permutations": 2,
            "most": 5,
            **seen,
        },
        "euclidean": point,
        "evaluate": {"key": KEY, "alignment": alignment, "truth": truth, "data": data, "queries": 5},
        "expected_calibration_error": logits | {"bins": 3},
        "extend": {"coupling": coupling, "u": X, "t": np.asarray(T)},
        "fit": {"key": KEY, **fit},
        "fit_ensemble": {"keys": jax.random.split(KEY, 2), "mesh": None, **fit},
        "fit_predictor": {"key": KEY, **predictor, "progress": False},
        "fit_predictor_ensemble": {"keys": jax.random.split(KEY, 2), **predictor, "progress": False},
        "foscttm": {"y_hat": X, "y": X, "t": T, "convention": "ours", "rows": jnp.arange(3)},
        "refine": {"key": KEY, "u": X, "v": X, "x": X, "y": X, "groups": groups, "mesh": None},
        "from_linen": {"module": MODEL.init.module},
        "tune": {"key": KEY, "data": data, "a": QUICK, "b": QUICK, "repeats": 2, "geometry": True, "progress": False},
        "tempered": {"temperature": 4.0},
        "from_logits": {"logits": X, "temperature": 1.0, "log_prior": None, "transform": psa.centre}
        | {"treatments": None},
        "from_nnx": {"make": lambda rngs: None},
        "fused_gromov_wasserstein": pair
        | {"alpha": 0.5, "cost": psa.euclidean, "distances": psa.plain_distances, **loop},
        "gaussian_kl_divergence": sides | {"ridge": 0.1},
        "gaussian_noise": {"scale": 0.1},
        "geodesics": {"x": X, "real": W > 0, "k": 2, "hops": True, "cost": psa.euclidean},
        "gradient_residual": {"key": KEY, "coupling": coupling},
        "gromov_wasserstein": sides | {"distances": psa.plain_distances, "rank": None, **loop},
        "group": {"t_a": np.asarray(T), "t_b": np.asarray(T), "num_treatments": K, "max_waste": 1.5, "max_buckets": 2},
        "group_batch": {"t_a": T, "t_b": T, "num_treatments": K, "capacity": 4},
        "held_out_agreement": {"key": KEY, "matcher": psa.sinkhorn, "u": X, "v": X, "groups": groups, "repeats": 1},
        "hierarchical": pair
        | {"leaf": 16, "rounds": 1, "eps": 0.1, "tol": 0.1, "max_iters": 3, "cost": psa.squared_euclidean},
        "ignore_nonfinite": {"x": X, "t": T},
        "independent": {"a": W, "b": W},
        "kl_divergence": sides | {"k": 1},
        "label_transfer": {"coupling": coupling, "labels_a": T, "labels_b": T, "num_labels": K},
        "latent_mse": {"coupling": coupling, "truth": truth},
        "layer_norm": {"train": True},
        "linear": {"num_treatments": K, "standardize": True},
        "log_prior": {"t": T, "num_treatments": K},
        "low_rank_sinkhorn": pair
        | {"rank": 2, "gamma": 1.0, "tol": 0.1, "max_iters": 3, "cost": psa.squared_euclidean},
        "match_batch": {"u": X, "v": X, "t_a": T, "t_b": T, "num_treatments": K, "capacity": 4}
        | {"matcher": psa.sinkhorn},
        "mlp": {"widths": [4], "num_treatments": K, "norm": None, "dropout": 0.0, "standardize": True},
        "nearest": pair | {"k": 1, "cost": psa.euclidean},
        "per_treatment": {"distance": psa.wasserstein1, "x": X, "t_x": np.asarray(T), "y": X, "t_y": np.asarray(T)}
        | {"num_treatments": K},
        "permute_treatments": {"key": KEY, "data": data},
        "plain_distances": {"x": X, "real": W > 0},
        "predict": {"model": MODEL, "params": MODEL.init(KEY, X), "x": X, "members": False, "chunk": 4},
        "propensity": {"model": MODEL, "params": MODEL.init(KEY, X), "x": X, "temperature": 1.0, "log_prior": None}
        | {"transform": psa.centre, "treatments": None, "chunk": 4},
        "r2": {"y_true": X, "y_pred": X, "center": None},
        "relative": {"scale": 0.1},
        "relative_to": {"code": 0},
        "reliability": logits | {"bins": 3},
        "select_eps": sweep | {"relative": True, "repeats": 1, "draws": 1, "most": 5, "progress": False},
        "shrink": {"coupling": coupling, "weight": 0.5},
        "sinkhorn": pair
        | {"eps": 0.1, "tau_a": 1.0, "tau_b": 1.0, "cost": psa.euclidean, "tol": 0.1, "max_iters": 3, "memory": 10**6}
        | {"newton": 0, "absorb": True},
        "sliced_wasserstein1": {"key": KEY, **sides, "num_projections": 2},
        "smoothing": {"key": KEY, "x": X},
        "snn": pair | {"k": 1, "approximate": False},
        "source": {"rows": np.asarray(X), "each": False},
        "split": {"key": KEY, "data": data, "fractions": (0.5, 0.5), "truth": None},
        "squared_euclidean": point,
        "trace": {"coupling": coupling, "truth": truth},
        "translation": {"std": 0.1},
        "validate": {"data": data},
        "wasserstein1": {name: sides[name] for name in sides},
    }


FUNCTIONS = [name for name in psa.__all__ if callable(getattr(psa, name)) and not inspect.isclass(getattr(psa, name))]

FREE = {  # what these may be is not for us to say: trees of parameters, whatever the function they go to takes
    ("predict", "params"),
    ("propensity", "params"),
    ("class_mean", "u"),
    ("class_mean", "v"),
    ("source", "rows"),
    ("align", "resume"),  # a folder of any name
}

CALLED = ("on_epoch", "progress", "augment")


def call(name, given):
    """The function on arguments by name."""
    function = getattr(psa, name)
    kinds = inspect.signature(function).parameters.items()
    positional = [given[k] for k, p in kinds if p.kind in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL)]
    return function(*positional, **{k: given[k] for k, p in kinds if p.kind is p.KEYWORD_ONLY or _by_name(p)})


def _by_name(parameter):
    return parameter.kind is parameter.POSITIONAL_OR_KEYWORD


def wrongs(rng):
    """Values that few parameters mean, by what they are."""
    shape = tuple(rng.choice([0, 1, 2, 3, 5, N]) for _ in range(rng.randrange(4)))
    drawn = np.random.default_rng(rng.randrange(2**32))
    numbers = drawn.normal(size=shape) * 10 ** drawn.uniform(-3, 9)
    dtype = rng.choice(["bool", "int8", "uint32", "int64", "float16", "float64", "complex64", "U3", "O", "M8[s]", "S2"])
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array = np.nan_to_num(np.clip(numbers, -100, 100)).astype("int64").astype(dtype)
    broken = np.asarray(numbers, np.float32)
    broken.ravel()[: 1 + broken.size // 3] = rng.choice([np.nan, np.inf, -np.inf])
    square = drawn.normal(size=(N, 4)).astype(np.float32)
    return {
        "None": None,
        "ellipsis": ...,
        "text": rng.choice(["", "a", "0.1", "sinkhorn", "data.h5ad"]),
        "bytes": b"a",
        "number": rng.choice([0, 1, -1, 7, 2**31, 2**70, -(2**63), 0.5, -0.5, 1e-40, 1e300, 1j]),
        "not finite": rng.choice([np.nan, np.inf, -np.inf]),
        "truth": rng.choice([True, False]),
        "scalar": np.asarray(rng.choice([np.nan, -1.0, 0.0, 3.0]), np.float32)[()],
        "list": rng.choice([[], [1], ["a", "b"], [None], [[1.0], [1.0, 2.0]], [np.zeros(2), "a"]]),
        "tuple": rng.choice([(), (0.5, 0.5), (square, T)]),
        "dict": rng.choice([{}, {"x": square}]),
        "set": {1, 2},
        "object": object(),
        "class": psa.Unpaired,
        "function": rng.choice([lambda: None, lambda *args: None, lambda x: x, lambda u, v, a, b: u, psa.snn, len]),
        "module": psa,
        "array": array,
        "jax array": jnp.asarray(numbers, jnp.float32),
        "array that is not finite": broken,
        "wrong byte order": square.astype(">f4"),
        "masked": np.ma.masked_array(square, square > 0),
        "table of texts": pd.DataFrame({"gene": ["a", "b"]}),
        "series": pd.Series(square[:, 0], index=list("abcdefghijkl")),
        "categorical": pd.Categorical(["a", None] * 6),
        "sparse": scipy.sparse.csr_array(square),
        "key": rng.choice([jax.random.PRNGKey(0), jax.random.split(KEY, 3)]),
        "shape": jax.ShapeDtypeStruct((N, 4), jnp.float32),
        "of the library": rng.choice(made()),
        "iterator": iter([1, 2]),
    }


def arguments(count=2000, seed=0):
    """Puts a value of another kind in the place of one argument of a random function, `count` times."""
    rng, found, escaped = random.Random(seed), collections.Counter(), []
    every = calls()
    for _ in range(count):
        name = rng.choice(FUNCTIONS)
        given = dict(every[name])
        if not given:
            continue
        argument, values = rng.choice(sorted(given)), wrongs(rng)
        if (name, argument) in FREE:
            continue
        if callable(given[argument]) or argument in CALLED:  # what a function of theirs raises is theirs
            del values["function"], values["class"]
        what = rng.choice(sorted(values))
        given[argument] = values[what]
        with warnings.catch_warnings(), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            warnings.simplefilter("ignore")  # as users have it, in the tests as well
            outcome = _outcome(name, argument, given)
        found[outcome.partition(":")[0]] += 1
        if outcome.startswith("ESCAPED"):
            escaped.append(f"{name}({argument}={what} {str(values[what])[:40]!r}): {outcome[9:]}")
    return {"tried": found.total(), "clean": found["clean"], "unchanged": found["accepted"], "escaped": escaped}


def _other(name, error):
    """Whether the error begins with another argument, which it then contradicts."""
    return (
        str(error).partition(":")[0].split(", ")[0].partition("[")[0]
        in inspect.signature(getattr(psa, name)).parameters
    )


def _outcome(name, argument, given):
    try:
        call(name, given)
    except (TypeError, ValueError) as error:
        named = re.search(rf"\b{argument}\b", str(error))
        return "clean" if named or _other(name, error) else f"ESCAPED: {type(error).__name__} without the name: {error}"
    except Exception as error:
        return f"ESCAPED: {type(error).__name__}: {error}"
    return "accepted"
