"""Cognates that map: the values of `map`, in a few parts; the first known error, and nothing left running."""

from __future__ import annotations

import array
import itertools
import operator
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secfarm import (
    InvalidTaskError,
    NoKernelError,
    TaskRefusedError,
    ValueTransferError,
    deftask,
    pand,
    pdotimes,
    pfuncall,
    pmap,
    pmap_into,
    pmapc,
    pmapcan,
    pmapcar,
    pmapcon,
    pmapl,
    pmaplist,
    pmaplist_into,
    por,
    set_kernel,
    task_from_source,
)
from tests.farm.farms import POLICY, WAIT_S, Daemon, gone, until
from tests.meeting import note, pass_gate


@deftask
def add(*numbers):
    return sum(numbers)


@deftask(timeout_s=20)
def limited(x):
    return -x


@pytest.fixture(autouse=True)
def _current(one_kernel) -> None:
    set_kernel(one_kernel)


def sent(one_kernel, monkeypatch) -> list[int]:
    """How many tasks are sent by what follows, as a list that grows by one each."""
    numbers: list[int] = []
    submit = one_kernel._dispatch.submit
    monkeypatch.setattr(one_kernel._dispatch, "submit", lambda one: (numbers.append(1), submit(one))[1])
    return numbers


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "task", [add, lambda *numbers: sum(numbers), "operator.add", operator.add, task_from_source("lambda x, y: x + y")]
)
def test_every_kind_of_task_maps(task) -> None:
    assert pmapcar(task, range(50), range(50)) == [2 * i for i in range(50)]


@given(st.lists(st.integers(), max_size=20), st.integers(0, 25), st.integers(1, 9))
@settings(max_examples=20)
def test_pmapcar_is_map_whatever_size_and_parts(items: list[int], size: int, parts: int) -> None:
    assert pmapcar(add, items, itertools.count(), size=size, parts=parts) == list(map(add, items, range(size)))


def test_pmap_makes_the_type_that_was_asked_for() -> None:
    assert pmap(list, add, [1, 2], (3, 4)) == [4, 6]
    assert pmap(tuple, add, "") == ()
    assert pmap(tuple, lambda c: c * 2, "ab") == ("aa", "bb")
    assert pmap("d", add, [1, 2]) == array.array("d", [1.0, 2.0])
    assert pmap(None, add, [1, 2]) is None


def test_a_result_type_that_does_not_exist_is_refused_before_anything_is_sent(one_kernel, monkeypatch) -> None:
    numbers = sent(one_kernel, monkeypatch)
    with pytest.raises(TypeError, match="list, tuple"):
        pmap(set, add, [1])
    with pytest.raises(ValueError, match="typecode"):
        pmap("x", add, [1])
    with pytest.raises(TypeError, match="character"):
        pmap("vector", add, [1])
    assert numbers == []


@pytest.mark.parametrize("sequence", [[], (), "", range(0), iter(())])
def test_nothing_maps_to_nothing(sequence) -> None:
    assert pmapcar(add, sequence) == []
    assert pmapcar(add, [1, 2, 3], sequence) == []
    assert pmapcar(add, [1, 2, 3], size=0) == []


def test_ragged_sequences_stop_at_the_shortest() -> None:
    assert pmapcar(add, [1, 2, 3], (10, 20), itertools.count(100)) == [111, 123]


def test_generators_are_lists_and_coroutines_are_awaited() -> None:
    def numbers(n):
        yield from range(n)

    async def later(n):
        return n

    assert pmapcar(numbers, [0, 2]) == [[], [0, 1]]
    assert pmapcar(later, [1, 2]) == [1, 2]


def test_each_row_has_fresh_state() -> None:
    seen: list[int] = []
    assert pmapcar(lambda x: (seen.append(x), len(seen))[1], range(10), parts=1) == [1] * 10
    assert seen == []


def test_a_time_limit_is_meant_for_one_row(one_kernel, monkeypatch) -> None:
    numbers = sent(one_kernel, monkeypatch)
    assert pmapcar(limited, range(5)) == [0, -1, -2, -3, -4]
    assert len(numbers) == 5


def test_few_tasks_are_sent_for_many_rows(one_kernel, monkeypatch) -> None:
    numbers = sent(one_kernel, monkeypatch)
    assert len(pmapcar(add, range(1000))) == 1000
    assert len(numbers) == 8, "4 for each of 2 workers"


@pytest.mark.parametrize(("parts", "tasks"), [(1, 1), (3, 3), (10, 10), (11, 10), (1000, 10)])
def test_parts_says_how_many_pieces(one_kernel, monkeypatch, parts, tasks) -> None:
    numbers = sent(one_kernel, monkeypatch)
    assert pmapcar(add, range(10), parts=parts) == list(range(10))
    assert len(numbers) == tasks


@pytest.mark.parametrize("number", [{"parts": 0}, {"parts": -1}, {"size": -1}])
def test_numbers_out_of_range_are_refused(number) -> None:
    with pytest.raises(ValueError, match="at least"):
        pmapcar(add, [1, 2], **number)
    with pytest.raises(TypeError):
        pmapcar(add, [1, 2], **dict.fromkeys(number, 1.5))


# --- into -------------------------------------------------------------------------------------------------------------


def test_pmap_into_changes_the_front_of_its_result_and_returns_it() -> None:
    result = [0] * 5
    assert pmap_into(result, add, [1, 2, 3], [10, 20, 30]) is result
    assert result == [11, 22, 33, 0, 0]
    assert pmap_into([0, 0], add, [1, 2, 3]) == [1, 2]
    assert pmap_into([9] * 3, add, [1, 2, 3], size=1) == [1, 9, 9]
    assert pmap_into([], add, [1, 2, 3]) == []
    assert pmap_into(array.array("l", [0, 0]), add, [1, 2]) == array.array("l", [1, 2])
    assert pmap_into([0, 0], lambda: 7) == [7, 7]


def test_pmap_into_may_read_what_it_replaces() -> None:
    numbers = [1, 2, 3]
    assert pmap_into(numbers, add, numbers, numbers) == [2, 4, 6]


def test_pmap_into_changes_nothing_when_a_part_fails() -> None:
    result = [7, 7, 7]
    with pytest.raises(ZeroDivisionError):
        pmap_into(result, lambda x: 1 // x, [1, 1, 0], parts=3)
    assert result == [7, 7, 7]


# --- the others -------------------------------------------------------------------------------------------------------


def test_pmapc_and_pmapl_return_the_first_sequence(ran) -> None:
    first = (1, 2, 3)
    assert pmapc(note, [ran.port] * 3, first) == [ran.port] * 3
    assert sorted(ran.numbers()) == [1, 2, 3]
    assert pmapc(add, first, [4]) is first
    assert pmapl(add, first, size=0) is first
    assert pmapl(len, first) is first


def test_pmaplist_maps_over_tails() -> None:
    assert pmaplist(lambda tail: tail, [1, 2, 3]) == [[1, 2, 3], [2, 3], [3]]
    assert pmaplist(lambda a, b: (a, b), (1, 2), "xyz") == [((1, 2), "xyz"), ((2,), "yz")]
    assert pmaplist(len, iter(range(4)), size=2) == [4, 3]
    assert pmaplist(len, range(3)) == [3, 2, 1]
    assert pmaplist(len, []) == []


def test_pmaplist_into_is_both() -> None:
    result = [0, 0, 9]
    assert pmaplist_into(result, len, "ab") is result
    assert result == [2, 1, 9]
    assert pmaplist_into([0], len, "abc") == [3]
    assert pmaplist_into([0, 0], len, "abc", size=1) == [3, 0]


def test_pmapcan_and_pmapcon_join_the_results() -> None:
    assert pmapcan(lambda x, y: [x] * y, "abc", [2, 0, 1]) == ["a", "a", "c"]
    assert pmapcon(lambda tail: tail, [1, 2, 3]) == [1, 2, 3, 2, 3, 3]


def test_pdotimes_counts(ran) -> None:
    file = ran.port
    assert pdotimes(20, lambda i: note(file, i)) is None
    assert sorted(ran.numbers()) == list(range(20))
    assert pdotimes(0, add) is None
    assert pdotimes(-1, add) is None


def test_pfuncall_computes_the_arguments_in_parallel_and_calls_there() -> None:
    assert pfuncall(add, lambda: 1, lambda: 2, task_from_source("lambda: 3")) == 6
    assert pfuncall("operator.sub", lambda: 5, lambda: 3) == 2
    assert pfuncall(add) == 0


def test_pand_and_por_are_and_and_or() -> None:
    assert pand() is True
    assert por() is False
    assert pand(lambda: 3, lambda: 4, lambda: 5) == 5
    assert pand(lambda: 3, lambda: None, lambda: 5) is None
    assert por(lambda: None, lambda: 0) == 0
    assert por(lambda: None, lambda: 4, list) == 4


@pytest.mark.parametrize(("either", "value"), [(pand, 0), (por, 1)])
def test_pand_and_por_wait_for_nobody_once_they_know_and_kill_the_rest(gate, other_gate, either, value) -> None:
    held, decides = gate.arguments(not value), other_gate.arguments(value)
    answered = []
    ask = lambda: answered.append(either(lambda: pass_gate(*held), lambda: pass_gate(*decides)))
    thread = threading.Thread(target=ask)
    thread.start()
    pid = gate.next()
    other_gate.wait()
    other_gate.open()
    thread.join(WAIT_S)
    assert answered == [value]
    gone([pid])


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda: pmapcar(add, [1]),
        lambda: pmapcar(add, []),
        lambda: pmap_into([], add),
        lambda: pmapl(add, []),
        lambda: pdotimes(0, add),
        pand,
        lambda: pfuncall(add),
    ],
)
def test_without_a_kernel_nothing_is_done(call) -> None:
    set_kernel(None)
    with pytest.raises(NoKernelError, match="no current kernel"):
        call()


def test_the_error_of_a_row_is_raised() -> None:
    for parts in (1, 4, None):
        with pytest.raises(ZeroDivisionError) as caught:
            pmapcar(lambda x: 1 // x, [1, 2, 0, 3], parts=parts)
        assert "1 // x" in caught.value.description


def test_of_errors_in_one_part_the_first_counts() -> None:
    with pytest.raises(KeyError, match="'first'"):
        pmapcar(lambda x: {}[x], ["first", "second"], parts=1)


def test_when_a_part_fails_the_others_are_taken_back_or_killed(one_kernel, gate, other_gate, ran) -> None:
    """One fails behind a gate of its own; those before another, and those that wait for a worker, never pass it."""
    (host, port, _), (_, failing, _) = gate.arguments(None), other_gate.arguments(None)
    notes = ran.port
    raised = []

    def row(i):
        if i == 1:
            raise LookupError(pass_gate(host, failing, i))
        pass_gate(host, port, i)
        return note(notes, i)

    def call() -> None:
        with pytest.raises(LookupError) as caught:
            pmapcar(row, range(10), parts=10)
        raised.append(caught.value.report)

    thread = threading.Thread(target=call)
    thread.start()
    pid = gate.next()
    other_gate.wait()
    other_gate.open()
    thread.join(WAIT_S)
    assert raised == ["LookupError: 1"]
    gone([pid])
    until(lambda: not one_kernel._dispatch._outstanding, "what was taken back is over")
    assert ran.numbers() == []


def test_what_cannot_travel_is_refused_and_nothing_is_left(one_kernel) -> None:
    with pytest.raises(ValueTransferError):
        pmapcar(add, [1, 2, threading.Lock()], parts=3)
    with pytest.raises(InvalidTaskError):
        pmapcar("no such!", [])
    with pytest.raises(InvalidTaskError):
        pfuncall(add, lambda: 1, 3)
    until(lambda: not one_kernel._dispatch._outstanding, "what was sent before is over")


@pytest.mark.parametrize("call", [pmapcar, pmapcan, pmaplist, pmapcon])
def test_a_sequence_is_needed(call) -> None:
    with pytest.raises(TypeError, match="sequence"):
        call(add)


def test_names_work_under_a_policy_that_grants_no_source() -> None:
    policy = POLICY.replace('"run", ', "").replace('"*"]\n', '"operator.*", "builtins.len"]\n')
    with Daemon(policy=policy) as daemon, daemon.connect():
        assert pmapcar("operator.neg", range(20)) == [-i for i in range(20)]
        assert pmaplist(len, "abc") == [3, 2, 1]
        with pytest.raises(TaskRefusedError):
            pmapcar(add, range(20))
