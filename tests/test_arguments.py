"""Wrong arguments to every public function: refused by name, whatever was wrong with them."""

import inspect
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psa_jax as psa
from benchmarks.arguments import FREE, FUNCTIONS, KEY, MODEL, K, N, T, W, X, arguments, call, calls, made
from psa_jax.types import known

pd = pytest.importorskip("pandas")
TABLE = pd.DataFrame({"gene": ["a", "b"], "name": ["c", "d"]})
RANKS = {"wrong rank": np.zeros((2, 2, 2, 2, 2), np.float32), "one number": np.float32(3)}
WRONG = {"None": None, "text": "text", "texts": ["a", "b"], "table": TABLE, **RANKS}


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
        with pytest.raises((TypeError, ValueError)) as error:
            call(name, {**given, argument: wrong})
        assert re.search(rf"\b{argument}\b", str(error.value)), (what, str(error.value))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: psa.align(0, made()[0]), r"key: expected a typed key, got the number 0: give jax.random.key\(0\)"),
        (lambda: psa.align(KEY, (X, T)), r"data: expected psa_jax.Unpaired"),
        (lambda: psa.align(KEY, psa.Unpaired((X, T), (X, T), K)), r"modality a: expected psa_jax.Modality\(x, t\)"),
        (lambda: psa.align(KEY, made()[0], matcher="snn"), "matcher: expected a function.*give psa_jax.snn itself"),
        (lambda: psa.snn(X, X, "w", W), "a: expected numbers"),
        (lambda: psa.fit(jax.random.PRNGKey(0), MODEL, X, T), "key: expected a typed key.*wrap_key_data"),
    ],
)
def test_what_people_give_is_refused_with_the_line_to_write(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


@pytest.mark.parametrize("count", [300, pytest.param(3000, marks=pytest.mark.slow)])
def test_random_wrong_arguments_are_refused_by_name_or_taken(count):
    found = arguments(count, seed=1)
    assert not found["escaped"]
    assert found["clean"] > 0.8 * found["tried"]


def test_arrays_of_other_machines_and_masks_that_hide_nothing_are_taken():
    expected = psa.foscttm(X, X[::-1])
    foreign = np.asarray(X)[::-1].astype(">f4")
    assert np.array_equal(psa.foscttm(X, foreign), expected)
    assert np.array_equal(psa.foscttm(X, np.ma.masked_array(np.asarray(X)[::-1])), expected)
    with pytest.raises(ValueError, match=r"y: expected .*masked array with 48 missing: give y.filled"):
        psa.foscttm(X, np.ma.masked_array(np.asarray(X), mask=True))


def test_what_holds_numbers_is_taken_and_what_is_none_of_ours_is_refused():
    table = pd.DataFrame(np.asarray(X)).astype({0: "Float32"})  # some nullable columns, as pandas reads files
    expected = psa.foscttm(X, X[::-1])
    assert np.array_equal(psa.foscttm(table, X[::-1]), expected)
    assert np.array_equal(psa.foscttm(np.asarray(X, np.longdouble), X[::-1]), expected)
    table.iloc[1, 0] = pd.NA
    with pytest.raises(ValueError, match=r"y_hat: expected numbers .* with 1 missing"):
        psa.foscttm(table, X)
    for wrong in (np.asarray(X).astype(complex), np.asarray(X).astype("m8[s]")):
        with pytest.raises(ValueError, match=r"y_hat: expected numbers"):
            psa.foscttm(wrong, X)


@pytest.mark.parametrize(
    ("name", "argument", "wrong"),
    [("held_out_agreement", "repeats", -(2**63)), ("align_many", "num_treatments", 0), ("sinkhorn", "eps", 2**70)],
)
def test_numbers_far_out_of_range_are_refused_by_name(name, argument, wrong):
    with pytest.raises(ValueError, match=rf"^{argument}: expected"):
        call(name, {**calls()[name], argument: wrong})


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
