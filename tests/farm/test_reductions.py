"""Cognates that reduce: `functools.reduce`, for every kind of task that is associative."""

from __future__ import annotations

import functools
import operator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secfarm import (
    InvalidTaskError,
    NoKernelError,
    TaskRefusedError,
    deftask,
    pmap_reduce,
    preduce,
    preduce_partial,
    premove_if,
    psome,
    set_kernel,
    task_from_source,
)
from tests.farm.farms import POLICY, Daemon

# Associative, not commutative: what comes in another order gives another text.
joins = [
    lambda a, b: a + b,
    deftask(lambda a, b: a + b),
    deftask(category="etl")(lambda a, b: a + b),
    deftask(timeout_s=20)(lambda a, b: a + b),
    task_from_source("def join(a, b): return a + b"),
    operator.add,
    "operator.add",
    "operator:add",
]
keys = [None, lambda text: f"<{text}>", str.upper, "builtins.repr", deftask(timeout_s=20)(lambda text: text * 2)]


@pytest.fixture(autouse=True)
def _current(one_kernel) -> None:
    set_kernel(one_kernel)


def key_here(key):
    return {None: lambda text: text, "builtins.repr": repr}.get(key, key)


@pytest.mark.parametrize("task", joins)
@pytest.mark.parametrize("key", keys)
@pytest.mark.parametrize("from_end", [False, True])
def test_preduce_is_reduce_for_every_kind_of_task_and_key(task, key, from_end) -> None:
    items = list("abcdefg")
    keyed = "".join(map(key_here(key), items))
    assert preduce(task, items, key=key, from_end=from_end, parts=3) == keyed
    wanted = f"{keyed}!" if from_end else f"!{keyed}"
    assert preduce(task, items, key=key, from_end=from_end, initial_value="!") == wanted


@given(
    st.sampled_from([joins[0], operator.add]),
    st.text("abc", max_size=12),
    st.booleans(),
    st.booleans(),
    st.integers(1, 5),
    st.integers(-3, 12),
    st.none() | st.integers(-3, 12),
)
@settings(max_examples=25)
def test_preduce_is_reduce_of_the_slice(task, text, has_initial, from_end, parts, start, end) -> None:
    given = {"initial_value": "!"} if has_initial else {}
    bounds = {"start": start, "end": end}
    rest = text[start:end]
    if not rest and not has_initial:
        with pytest.raises(TypeError, match="empty sequence with no initial value"):
            preduce(task, text, from_end=from_end, parts=parts, **bounds)
        with pytest.raises(ValueError, match="empty sequence"):
            preduce_partial(task, text, from_end=from_end, parts=parts, **bounds)
        return
    wanted = f"{rest}{'!' * has_initial}" if from_end else f"{'!' * has_initial}{rest}"
    assert preduce(task, text, from_end=from_end, parts=parts, **bounds, **given) == wanted
    if rest:
        partial = preduce_partial(task, text, from_end=from_end, parts=parts, **bounds, **given)
        assert (len(partial), "".join(partial)) == (min(parts, len(rest)), wanted)


def test_the_initial_value_enters_once_and_passes_no_key() -> None:
    assert preduce(lambda a, b: a + b, [1] * 100, initial_value=1000, parts=10) == 1100
    assert preduce(operator.add, [1] * 100, initial_value=1000, parts=10) == 1100
    assert preduce(lambda a, b: a + b, ["a"], key=len, initial_value=10) == 11


def test_one_item_is_its_own_total_and_none_is_the_initial_value() -> None:
    assert preduce(lambda a, b: a // 0, [7]) == 7
    assert preduce(max, [7]) == 7
    marker = object()
    assert preduce(lambda a, b: a, [], initial_value=marker) is marker
    assert preduce(max, (), initial_value=None) is None


def test_the_last_two_are_combined_first_from_the_end() -> None:
    """With one part, what is not associative shows the order."""
    task = lambda a, b: f"({a} {b})"
    assert preduce(task, "abc", parts=1) == functools.reduce(task, "abc") == "((a b) c)"
    assert preduce(task, "abc", parts=1, from_end=True) == "(a (b c))"
    assert preduce(task, "abc", parts=1, from_end=True, initial_value="z") == "((a (b c)) z)"


@pytest.mark.parametrize("task", [lambda a, b: a + b, "operator.add"])
@pytest.mark.parametrize("from_end", [False, True])
@pytest.mark.parametrize(("parts", "wanted"), [(2, [12, 21]), (3, [7, 11, 15]), (6, [3, 4, 5, 6, 7, 8])])
def test_preduce_partial_gives_one_result_a_part_in_order(task, from_end, parts, wanted) -> None:
    assert preduce_partial(task, range(3, 9), parts=parts, from_end=from_end) == wanted


def test_preduce_partial_has_as_many_parts_as_workers_by_default() -> None:
    assert preduce_partial(lambda a, b: a + b, [1] * 10) == [5, 5]
    assert preduce_partial(lambda a, b: a + b, [1]) == [1]


def test_preduce_partial_of_nothing_is_an_error_whatever_the_initial_value() -> None:
    with pytest.raises(ValueError, match="empty sequence"):
        preduce_partial(max, [], initial_value=1)


@pytest.mark.parametrize("map_task", [len, "len", lambda word: len(word), deftask(lambda word: len(word))])
@pytest.mark.parametrize("reduce_task", [operator.add, "operator.add", lambda a, b: a + b])
def test_pmap_reduce_maps_then_reduces(map_task, reduce_task) -> None:
    assert pmap_reduce(map_task, reduce_task, ["a", "bb", "ccc"]) == 6
    assert pmap_reduce(map_task, reduce_task, ["a", "bb", "ccc"], start=1, initial_value=10) == 15


def test_generators_are_lists_and_coroutines_are_awaited_inside_of_parts_too() -> None:
    def letters(word):
        yield from word

    async def joined(a, b):
        return a + b

    assert pmap_reduce(letters, joined, ["ab", "c"], parts=1) == ["a", "b", "c"]


@pytest.mark.parametrize("task", [lambda a, b: a // b, operator.floordiv, deftask(category="x")(lambda a, b: a // b)])
@pytest.mark.parametrize("parts", [1, 3, None])
def test_the_error_of_a_part_is_raised(task, parts) -> None:
    with pytest.raises(ZeroDivisionError):
        preduce(task, [0] * 6, parts=parts)
    with pytest.raises(ZeroDivisionError):
        preduce_partial(task, [0] * 6, parts=parts and 2)


def test_a_stop_iteration_ends_no_part_in_silence() -> None:
    def stop(item):
        raise StopIteration

    with pytest.raises(Exception, match="StopIteration"):
        pmap_reduce(stop, operator.add, [1, 2, 3])


def test_without_a_kernel_nothing_is_reduced() -> None:
    set_kernel(None)
    for call in (preduce, preduce_partial):
        with pytest.raises(NoKernelError):
            call(operator.add, [], initial_value=1)


def test_parts_are_at_least_one() -> None:
    with pytest.raises(ValueError, match="parts"):
        preduce(operator.add, [1, 2], parts=0)


def test_names_reduce_under_a_policy_that_grants_no_source() -> None:
    policy = POLICY.replace('"run", ', "").replace('"*"]\n', '"operator.*", "builtins.*"]\n')
    with Daemon(policy=policy) as daemon, daemon.connect():
        assert preduce(operator.add, range(100)) == 4950
        assert preduce("operator.add", "abcde", from_end=True, initial_value="!") == "abcde!"
        assert preduce_partial(max, range(10), parts=2) == [4, 9]
        assert pmap_reduce(abs, max, [-5, 3]) == 5
        with pytest.raises(TaskRefusedError):
            preduce(lambda a, b: a + b, range(100))


@pytest.mark.parametrize(
    "call",
    [
        lambda: preduce(None, [1, 2]),
        lambda: preduce_partial(None, [1, 2]),
        lambda: pmap_reduce(None, max, [1, 2]),
        lambda: premove_if(None, [1]),
        lambda: psome(None, [1]),
    ],
)
def test_none_is_no_task(call) -> None:
    with pytest.raises(InvalidTaskError):
        call()
