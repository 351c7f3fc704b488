import functools
import gc
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import ragged

import psa_jax as psa
from psa_jax.match.same import same

PROGRAMS = sys.modules["psa_jax.match.blockwise"]._match
POWER = 2


class Settings:
    power = 2


def raised(x):
    return x**POWER


def adder(value):
    return lambda x: x + value


@pytest.mark.parametrize(
    "value", [1, 1.5, "a", None, (1, (2.0, "b")), jnp.float32, np.float32(2), psa, psa.snn, adder, len]
)
def test_values_that_cannot_change_are_compared(value):
    one, again, other = adder(value), adder(value), adder("another")
    assert one != again
    assert same(one) == same(again)
    assert hash(same(one)) == hash(same(again))
    assert same(one) != same(other)
    assert same(one) != same(lambda x: x + value)  # of another place


@pytest.mark.parametrize(("first", "second"), [(0.0, -0.0), (1, True), (1, 1.0), ((1,), (1.0,))])
def test_values_that_only_look_equal_are_told_apart(first, second):
    assert same(adder(first)) != same(adder(second))


@pytest.mark.parametrize("value", [[1], {"a": 1}, np.ones(2), Settings(), Settings, pytest, {1}, iter([1])])
def test_what_sees_something_that_may_change_is_left_alone(value):
    function = adder(value)
    assert same(function) is function


def test_arrays_are_compared_by_identity_and_traced_ones_not_at_all():
    array, equal = jnp.ones(2), jnp.ones(2)
    assert same(adder(array)) == same(adder(array))
    assert same(adder(array)) != same(adder(equal))

    @jax.jit
    def traced(x):
        function = adder(x)
        assert same(function) is function
        return x

    traced(array)


def test_globals_are_seen(monkeypatch):
    def make():
        return lambda x: [y**POWER for y in x]

    def nested():
        return lambda x: (lambda y: y**POWER)(x)

    def through_another():
        return lambda x: raised(x)

    for kind in (make, nested, through_another):
        before = same(kind())
        assert before == same(kind())
        monkeypatch.setattr(f"{__name__}.POWER", 3)
        assert before != same(kind())
        monkeypatch.undo()
    assert same(adder) is adder


def test_a_loop_of_lambdas_is_one_program_and_a_loop_of_other_lambdas_is_none():
    u, v, y, *_, groups = ragged()
    traced = []

    def matched(eps):
        def note():
            traced.append(eps)

        return psa.blockwise(lambda u, v, a, b: (note(), psa.sinkhorn(u, v, a, b, eps=eps))[1])(u, v, groups).apply(y)

    def plain(eps):
        return psa.blockwise(lambda u, v, a, b: psa.sinkhorn(u, v, a, b, eps=eps))

    for eps in (0.1, 0.5, 0.1):
        expected = psa.blockwise(functools.partial(psa.sinkhorn, eps=eps))(u, v, groups).apply(y)
        np.testing.assert_allclose(matched(eps), expected, rtol=1e-5)  # sees a list: compiled anew
        np.testing.assert_allclose(plain(eps)(u, v, groups).apply(y), expected, rtol=1e-5)
    assert set(traced) == {0.1, 0.5}
    size = PROGRAMS._cache_size()
    for _ in range(3):
        plain(0.1)(u, v, groups)
        psa.blockwise(functools.partial(psa.sinkhorn, eps=0.1, cost=lambda x, y: jnp.abs(x - y).sum()))(u, v, groups)
    assert PROGRAMS._cache_size() <= size + 1


@pytest.mark.slow
def test_three_hundred_lambdas_leave_memory_maps_level():
    u, v, y, *_, groups = ragged()

    def call():
        cost = lambda x, y: jnp.abs(x - y).sum()  # noqa: E731
        law = psa.blockwise(lambda u, v, a, b: psa.sinkhorn(u, v, a, b, cost=cost, max_iters=20))(u, v, groups)
        law.apply(y), law.T.apply(u), law.sample(jax.random.key(0)), law.top_k(2), law.row_marginal()

    def maps():
        gc.collect()
        with open("/proc/self/maps") as file:
            return sum(1 for _ in file)

    call()
    before = maps()
    for _ in range(300):
        call()
    assert maps() < before + 50
