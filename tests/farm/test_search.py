"""Cognates that ask: the answers of `any`, `all`, `next`, `list.count` and `filter`."""

from __future__ import annotations

import operator
import re
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secfarm import (
    NoKernelError,
    deftask,
    pcount,
    pcount_if,
    pcount_if_not,
    pevery,
    pfind,
    pfind_if,
    pfind_if_not,
    pnotany,
    pnotevery,
    premove,
    premove_if,
    premove_if_not,
    psome,
    set_kernel,
)
from tests.farm.farms import POLICY, WAIT_S, Daemon, gone
from tests.meeting import pass_gate

truths = [lambda x: x, operator.truth, "operator.truth", deftask(timeout_s=20)(lambda x: x)]


@pytest.fixture(autouse=True)
def _current(one_kernel) -> None:
    set_kernel(one_kernel)


@pytest.mark.parametrize("task", truths)
@pytest.mark.parametrize("items", [[], [0], [5], [0, 0, 0], [1, 2, 3], [0, 7, 0, 8], [0, None, "", []]])
def test_every_kind_of_predicate_answers_as_python_does(task, items) -> None:
    assert bool(psome(task, items)) is any(items)
    assert pevery(task, items) is all(items)
    assert pnotany(task, items) is (not any(items))
    assert pnotevery(task, items) is (not all(items))
    assert pfind_if(task, items) == next(filter(None, items), None)
    assert pcount_if(task, items) == sum(map(bool, items))
    assert pcount_if_not(task, items) == len(items) - sum(map(bool, items))
    assert premove_if(task, items) == [item for item in items if not item]
    assert premove_if_not(task, items) == [item for item in items if item]


@given(st.lists(st.integers(0, 5), max_size=12), st.integers(1, 5), st.integers(-3, 9), st.none() | st.integers(-3, 9))
@settings(max_examples=20)
def test_keys_bounds_and_parts_change_nothing_but_what_they_say(items, parts, start, end) -> None:
    odd, half = (lambda x: x % 2), (lambda x: x // 2)
    given = {"key": half, "start": start, "end": end, "parts": parts}
    part = items[start:end]
    found = [item for item in part if item // 2 % 2]
    assert pfind_if(odd, items, **given) == next(iter(found), None)
    assert pfind_if(odd, items, **given, from_end=True) == next(reversed(found), None)
    assert pfind_if_not(odd, items, **given) == next((item for item in part if item not in found), None)
    assert pcount_if(odd, items, **given) == len(found)
    assert pcount(1, items, **given) == sum(item // 2 == 1 for item in part)
    assert pfind(1, items, **given) == next((item for item in part if item // 2 == 1), None)
    first, last, _ = slice(start, end).indices(len(items))
    before, after = items[:first], items[max(first, last) :]
    assert premove_if(odd, items, **given) == [*before, *(item for item in part if item not in found), *after]
    assert premove(1, items, **given) == [*before, *(item for item in part if item // 2 != 1), *after]


@pytest.mark.parametrize("key", [None, abs, "abs", lambda x: x * x])
@pytest.mark.parametrize("task", [lambda x: x > 3, deftask(category="c")(lambda x: x > 3)])
def test_keys_of_every_kind_go_before_the_predicate(task, key) -> None:
    items = [1, -5, 3, 7]
    wanted = {None: 7, "abs": -5, abs: -5}.get(key, -5)
    assert pfind_if(task, items, key=key) == wanted


def test_psome_gives_the_first_true_value_in_order_and_stops_there() -> None:
    assert psome(lambda x: x > 2 and f"value {x}", range(10), parts=5) == "value 3"
    assert psome(lambda x, y: x > y, [1, 2, 3], [3, 2, 1, 0]) is True
    assert psome(lambda x: None, [1]) is False
    assert psome(lambda x: 10 // (2 - x), range(10)) == 5, "the error behind it does not count"
    assert psome("operator.floordiv", [0, 4, 6], [1, 2, 3]) == 2
    assert pfind_if(lambda x: 10 // (2 - x), [1, 2], parts=2) == 1


def test_an_error_before_the_first_find_is_raised() -> None:
    for parts in (1, 4):
        with pytest.raises(ZeroDivisionError):
            psome(lambda x: 10 // x > 100, [5, 0, 6, 7], parts=parts)
        with pytest.raises(ZeroDivisionError):
            pcount_if(lambda x: 10 // x, [5, 0, 6, 7], parts=parts)


def test_ragged_sequences_stop_at_the_shortest_and_size_cuts() -> None:
    assert pevery(lambda x, y: x < y, [1, 2, 9], [2, 3])
    assert pevery(lambda x: x < 3, [1, 2, 9], size=2)
    assert pnotany(lambda x, y: False, [], [1])


def test_one_no_is_enough_and_what_runs_is_killed(gate, other_gate) -> None:
    ways = {"held": gate.arguments("held"), "no": other_gate.arguments("")}
    answers = []
    ask = lambda: answers.append(pevery(lambda name: pass_gate(*ways[name]), ways, parts=2))
    thread = threading.Thread(target=ask)
    thread.start()
    pid = gate.next()
    other_gate.wait()
    other_gate.open()
    thread.join(WAIT_S)
    assert answers == [False]
    gone([pid])


def test_a_predicates_value_need_not_be_able_to_travel() -> None:
    assert pfind_if(lambda word: re.match("b", word), ["abc", "bcd"]) == "bcd"
    assert pcount_if(lambda word: re.match("b", word), ["abc", "bcd"]) == 1
    assert pevery(lambda word: re.match(".", word), ["abc", "bcd"])


def test_items_that_are_found_or_kept_are_the_callers_own() -> None:
    items = [[1], [2], [3]]
    assert pfind_if(lambda x: x == [2], items) is items[1]
    assert premove_if(lambda x: x == [2], items)[1] is items[2]
    assert pfind([3], items) is items[2]


@pytest.mark.parametrize("key", [None, "abs", abs, lambda x: abs(x)])
def test_pcount_pfind_and_premove_compare_with_the_item(key) -> None:
    items = [3, -3, 1, 3.0]
    threes = 2 if key is None else 3
    assert pcount(3, items, key=key) == threes
    assert premove(3, items, key=key) == ([-3, 1] if key is None else [1])
    assert pfind(1, items, key=key) == 1
    assert pfind(9, items, key=key) is None
    assert str(pfind(3, items, key=key, from_end=True)) == "3.0"


def test_equal_is_as_for_lists() -> None:
    nan = float("nan")
    assert (pcount(nan, [nan, float("nan")]), [nan, float("nan")].count(nan)) == (1, 1)


@pytest.mark.parametrize(
    "call",
    [
        lambda: psome(bool, []),
        lambda: pevery(bool, []),
        lambda: pcount(1, []),
        lambda: pfind(1, []),
        lambda: pfind_if(bool, []),
        lambda: premove(1, []),
        lambda: premove_if(bool, []),
    ],
)
def test_without_a_kernel_nothing_is_asked(call) -> None:
    set_kernel(None)
    with pytest.raises(NoKernelError):
        call()


def test_names_ask_under_a_policy_that_grants_no_source() -> None:
    policy = POLICY.replace('"run", ', "").replace('"*"]\n', '"operator.*", "builtins.*"]\n')
    with Daemon(policy=policy) as daemon, daemon.connect():
        assert psome("operator.lt", [3, 1], [2, 2]) is True
        assert pcount_if(operator.truth, [-1, 0], key=abs) == 1
        assert pfind_if("operator.truth", [0, -2], key="abs") == -2
        assert premove(1, [1, -1, 2], key=abs) == [2]
