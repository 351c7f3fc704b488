"""Wrong arguments to every public function: refused by name, whatever was wrong with them."""

import functools
import inspect
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psa_jax as psa
from psa_jax.types import known

pd = pytest.importorskip("pandas")

KEY = jax.random.key(0)
N, K = 12, 3
T = jnp.arange(N) % K
X = jax.random.normal(KEY, (N, 4))
W = jnp.full(N, 1 / N)
MODEL = psa.linear(K)
QUICK = psa.Learner(MODEL, training=psa.Training(epochs=1), folds=3)


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
        "align": {"key": KEY, "data": data, "query": None, "valid": None, "a": QUICK, "b": QUICK, **seen},
        "align_many": {"key": KEY, "modalities": [data.a, data.b], "num_treatments": K, "reference": 0, **seen}
        | {"learners": QUICK, "names": None},
        "assignment": pair | {"cost": psa.euclidean},
        "batch_norm": {"train": True},
        "blockwise": {"matcher": psa.sinkhorn, "chunk": None},
        "by_treatment": {"values": X[:, 0], "t": T, "num_treatments": K},
        "calibrate": {name: logits[name] for name in ("logits", "t")},
        "calibrated_coupling": sweep | {"repeats": 1, "progress": False},
        "centre": {"logits": X},
        "chain": {"first": coupling, "second": coupling},
        "class_mean": pair,
        "class_weights": {"t": T, "num_treatments": K},
        "compose": {"augments": psa.smoothing},
        "conv": {"widths": [4], "num_treatments": K, "hidden": 4, "norm": None, "dropout": 0.0, "standardize": True},
        "cosine": point,
        "crossfit": {"key": KEY, "folds": 3, **{name: fit[name] for name in fit if name != "valid"}},
        "diagnose": {"key": KEY, "alignment": alignment, "repeats": 1, "draws": 1, "permutations": 2, **seen},
        "euclidean": point,
        "evaluate": {"key": KEY, "alignment": alignment, "truth": truth, "data": data},
        "expected_calibration_error": logits | {"bins": 3},
        "extend": {"coupling": coupling, "u": X, "t": np.asarray(T)},
        "fit": {"key": KEY, **fit},
        "fit_ensemble": {"keys": jax.random.split(KEY, 2), **fit},
        "fit_predictor": {"key": KEY, **predictor, "progress": False},
        "fit_predictor_ensemble": {"keys": jax.random.split(KEY, 2), **predictor, "progress": False},
        "foscttm": {"y_hat": X, "y": X, "t": T, "convention": "ours"},
        "from_linen": {"module": MODEL.init.module},
        "from_logits": {"logits": X, "temperature": 1.0, "log_prior": None, "transform": psa.centre}
        | {"treatments": None},
        "from_nnx": {"make": lambda rngs: None},
        "fused_gromov_wasserstein": pair
        | {"alpha": 0.5, "cost": psa.euclidean, "distances": psa.plain_distances, **loop},
        "gaussian_kl_divergence": sides | {"ridge": 0.1},
        "gaussian_noise": {"scale": 0.1},
        "geodesics": {"x": X, "real": W > 0, "k": 2, "hops": True, "cost": psa.euclidean},
        "gromov_wasserstein": sides | {"distances": psa.plain_distances, "rank": None, **loop},
        "group": {"t_a": np.asarray(T), "t_b": np.asarray(T), "num_treatments": K, "max_waste": 1.5, "max_buckets": 2},
        "group_batch": {"t_a": T, "t_b": T, "num_treatments": K, "capacity": 4},
        "held_out_agreement": {"key": KEY, "matcher": psa.sinkhorn, "u": X, "v": X, "groups": groups, "repeats": 1},
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
        "reliability": logits | {"bins": 3},
        "select_eps": sweep | {"relative": True, "repeats": 1, "draws": 1, "progress": False},
        "shrink": {"coupling": coupling, "weight": 0.5},
        "sinkhorn": pair
        | {"eps": 0.1, "tau_a": 1.0, "tau_b": 1.0, "cost": psa.euclidean, "tol": 0.1, "max_iters": 3, "memory": 10**6}
        | {"newton": 0, "absorb": True},
        "sliced_wasserstein1": {"key": KEY, **sides, "num_projections": 2},
        "smoothing": {"key": KEY, "x": X},
        "snn": pair | {"k": 1, "approximate": False},
        "split": {"key": KEY, "data": data, "fractions": (0.5, 0.5), "truth": None},
        "squared_euclidean": point,
        "trace": {"coupling": coupling, "truth": truth},
        "translation": {"std": 0.1},
        "validate": {"data": data},
        "wasserstein1": {name: sides[name] for name in sides},
    }


TABLE = pd.DataFrame({"gene": ["a", "b"], "name": ["c", "d"]})
RANKS = {"wrong rank": np.zeros((2, 2, 2, 2, 2), np.float32), "one number": np.float32(3)}
WRONG = {"None": None, "text": "text", "texts": ["a", "b"], "table": TABLE, **RANKS}
FUNCTIONS = [name for name in psa.__all__ if callable(getattr(psa, name)) and not inspect.isclass(getattr(psa, name))]
FREE = {  # what these may be is not for us to say: trees of parameters, or whatever the function they go to takes
    ("predict", "params"),
    ("propensity", "params"),
    ("class_mean", "u"),
    ("class_mean", "v"),
}


def admits(name, parameter, given, wrong):
    """Whether the value is not wrong for this parameter: None where it may be left out, any rank where any will do."""
    annotation = str(parameter.annotation)
    if wrong is None:
        return parameter.default is None or "None" in annotation
    if isinstance(wrong, str):
        return False
    ranked = isinstance(given, list | tuple) or (known(given) and np.ndim(given) > 0)
    if wrong is RANKS["wrong rank"]:
        return "..." in annotation or "*" in annotation or (ranked and name in ("fused_gromov_wasserstein",))
    if wrong is RANKS["one number"]:
        return not ranked
    return False


def cases():
    for name in FUNCTIONS:
        for parameter in inspect.signature(getattr(psa, name)).parameters.values():
            if (name, parameter.name) not in FREE:
                yield name, parameter.name


def test_every_public_function_has_a_call():
    found = calls()
    assert set(found) == set(FUNCTIONS)
    for name, given in found.items():
        assert set(given) == set(inspect.signature(getattr(psa, name)).parameters), name


@pytest.mark.parametrize(("name", "argument"), list(cases()))
def test_wrong_arguments_are_refused_by_name(name, argument):
    given = calls()[name]
    function = getattr(psa, name)
    parameter = inspect.signature(function).parameters[argument]
    for what, wrong in WRONG.items():
        if admits(name, parameter, given[argument], wrong):
            continue
        call = {**given, argument: wrong}
        kinds = inspect.signature(function).parameters.items()
        positional = [call.pop(k) for k, p in kinds if p.kind in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL)]
        with pytest.raises((TypeError, ValueError)) as error:
            function(*positional, **call)
        assert re.search(rf"\b{argument}\b", str(error.value)), (what, str(error.value))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: psa.align(0, made()[0]), r"key: expected a typed key, got the number 0: give jax.random.key\(0\)"),
        (lambda: psa.align(KEY, (X, T)), r"data: expected psa_jax.Unpaired"),
        (lambda: psa.align(KEY, psa.Unpaired((X, T), (X, T), K)), r"modality a: expected psa_jax.Modality\(x, t\)"),
        (lambda: psa.align(KEY, made()[0], matcher="snn"), "matcher: expected a function.*give psa_jax.snn itself"),
        (lambda: psa.snn(X, X, "w", W), "a: expected numbers"),
        (lambda: psa.fit(jax.random.PRNGKey(0), MODEL, X, T), "key: expected a typed key.*wrap_key_data"),
    ],
)
def test_what_people_give_is_refused_with_the_line_to_write(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_lists_and_tables_of_numbers_are_taken():
    table = pd.DataFrame(np.asarray(X))
    expected = psa.foscttm(X, X[::-1])
    assert np.array_equal(psa.foscttm(table, np.asarray(X)[::-1].tolist()), expected)
    assert float(psa.sinkhorn(table, X.tolist(), W.tolist(), W).info.marginal_error) < 1e-3


def test_sparse_arrays_and_images_of_bytes_name_the_line_to_write():
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(ValueError, match=r"u: .*give u.toarray\(\)"):
        psa.sinkhorn(sparse.csr_array(np.asarray(X)), X, W, W)
    with pytest.raises(ValueError, match=r"modality a: x: .*toarray"):
        psa.validate(psa.Unpaired(psa.Modality(sparse.csr_array(np.asarray(X)), T), made()[0].b, K))
    images = psa.Modality(np.zeros((N, 8, 8, 1), np.uint8), T)
    with pytest.raises(ValueError, match=r"uint8: give x.astype\('float32'\)"):
        psa.validate(psa.Unpaired(images, images, K))


def test_directories_list_public_names_only():
    for module in (psa, psa.match, psa.io, psa.datasets, psa.baselines, psa.plot):
        assert dir(module) == sorted(module.__all__)
    assert pathlib.Path(psa.__file__).name == "__init__.py"


def test_what_is_known_stays_known_under_jit():
    codes = np.array([0, 1, -1])
    with pytest.raises(ValueError, match=r"t: expected codes in \[0, 2\), got -1 to 1"):
        jax.jit(lambda v: psa.by_treatment(v, codes, 2).mean)(jnp.arange(3.0))
    coupling = psa.match_batch(X, X, T, T, num_treatments=K, capacity=[4, 4])
    found = jax.jit(lambda c: psa.label_transfer(c, np.asarray(T), np.asarray(T)))(coupling)
    np.testing.assert_allclose(found, 1, rtol=1e-5)


def test_labels_beyond_the_type_are_refused():
    with pytest.raises(ValueError, match=r"t: expected integers .* that fit into int32, got 0 to 4294967297"):
        psa.log_prior(np.array([0, 2**32 + 1, 1]), 2)


def test_a_module_that_is_no_model_names_what_makes_it_one():
    with pytest.raises(ValueError, match=r"model: expected psa_jax.Model.*from_linen"):
        psa.Learner(MODEL.init.module)
