"""Promises: given once, computed once, raised every time; and what is no promise passes through."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from secfarm import (
    Delay,
    NoKernelError,
    Promise,
    chain,
    deftask,
    delay,
    force,
    fulfill,
    fulfilledp,
    future,
    plet,
    plet_if,
    promise,
    set_kernel,
    speculate,
    task_from_source,
)
from secfarm.task.payload import Priority
from tests.farm.farms import WAIT_S
from tests.meeting import note, pass_gate


@deftask
def add(x, y):
    return x + y


@pytest.fixture(autouse=True)
def _current(one_kernel) -> None:
    set_kernel(one_kernel)


def in_threads(*functions) -> None:
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)


# --- futures and speculations -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("submit", [future, speculate])
@pytest.mark.parametrize("task", [add, lambda x, y: x + y, "operator.add", task_from_source("lambda x, y: x + y")])
def test_force_waits_for_a_future_of_any_kind_of_task(submit, task) -> None:
    made = submit(task, 3, 4)
    assert force(made) == 7
    assert force(made) == 7, "again and again"
    assert made.done()
    assert fulfilledp(made)


def test_a_future_takes_keywords() -> None:
    assert force(future(add, x=1, y=2)) == 3


def test_a_speculation_has_low_priority(one_kernel, monkeypatch) -> None:
    # A future that is over keeps no submission, so the priority is read when it is sent.
    priorities: list[Priority] = []
    submit = one_kernel._dispatch.submit
    monkeypatch.setattr(
        one_kernel._dispatch, "submit", lambda one: (priorities.append(one.options.priority), submit(one))[1]
    )
    assert force(speculate(add, 1, 2)) == force(future(add, 1, 2)) == 3
    assert priorities == [Priority.LOW, Priority.DEFAULT]


@pytest.mark.parametrize("submit", [future, speculate])
def test_the_error_of_a_future_is_raised_every_time(submit) -> None:
    made = submit(lambda: 1 // 0)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            force(made)
    assert fulfilledp(made)


@pytest.mark.parametrize("call", [future, speculate, plet])
def test_without_a_kernel_there_is_no_future(call) -> None:
    set_kernel(None)
    with pytest.raises(NoKernelError, match="nothing was sent"):
        call(lambda: 1)


def test_only_its_task_fulfils_a_future(one_kernel, gate) -> None:
    held = gate.hold(one_kernel, "value")
    gate.wait()
    assert not fulfilledp(held)
    assert not fulfill(held, "other")
    gate.open()
    assert force(held) == "value"
    assert not fulfill(held, "other")


# --- promises ---------------------------------------------------------------------------------------------------------


def test_a_promise_is_fulfilled_once() -> None:
    made = promise()
    assert isinstance(made, Promise)
    assert not fulfilledp(made)
    assert fulfill(made, 3)
    assert fulfilledp(made)
    assert not fulfill(made, 4)
    assert (force(made), force(made)) == (3, 3)


@pytest.mark.parametrize("value", [None, False, ValueError("a value like others")])
def test_a_promise_takes_any_value(value) -> None:
    made = promise()
    assert fulfill(made, value)
    assert force(made) is value


def test_who_forces_a_promise_waits_for_it() -> None:
    made, got = promise(), []
    in_threads(*[lambda: got.append(force(made))] * 3, lambda: fulfill(made, 7))
    assert got == [7, 7, 7]


def test_of_many_who_fulfil_a_promise_one_does() -> None:
    made, got = promise(), []
    in_threads(*(lambda i=i: got.append((fulfill(made, i), i)) for i in range(8)))
    assert [i for did, i in got if did] == [force(made)]


@pytest.mark.parametrize("value", [3, None, "text", [1], add])
def test_what_is_no_promise_is_its_own_value(value) -> None:
    assert force(value) is value
    assert fulfilledp(value)
    assert not fulfill(value, 1)


# --- delays -----------------------------------------------------------------------------------------------------------


def test_a_delay_is_computed_when_it_is_first_forced_and_once() -> None:
    calls = []
    made = delay(lambda: calls.append(1) or 9)
    assert isinstance(made, Delay)
    assert (calls, fulfilledp(made)) == ([], False)
    assert (force(made), force(made), calls) == (9, 9, [1])
    assert fulfilledp(made)


def test_a_delay_is_computed_once_for_all_threads() -> None:
    calls, got = [], []
    made = delay(lambda: calls.append(1) or len(calls))
    in_threads(*[lambda: got.append(force(made))] * 6)
    assert (calls, got) == ([1], [1] * 6)


def test_the_error_of_a_delay_is_raised_every_time_and_computed_once() -> None:
    calls = []
    made = delay(lambda: calls.append(1) or 1 // 0)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            force(made)
    assert calls == [1]
    assert fulfilledp(made)
    assert not fulfill(made, 1)


def test_a_delay_that_was_fulfilled_is_never_computed() -> None:
    made = delay(lambda: pytest.fail("computed"))
    assert fulfill(made, 3)
    assert not fulfill(made, 4)
    assert force(made) == 3


def test_a_delay_that_forces_itself_is_an_error_and_no_deadlock() -> None:
    made: Delay[object] = delay(lambda: force(made))
    with pytest.raises(RuntimeError, match="own computation"):
        force(made)


def test_a_delay_cannot_be_fulfilled_by_its_own_computation() -> None:
    made: Delay[object] = delay(lambda: fulfill(made, "other"))
    assert force(made) is False


def test_an_interrupt_is_no_result_of_a_delay() -> None:
    values = iter([KeyboardInterrupt, None])

    def compute():
        kind = next(values)
        if kind is not None:
            raise kind
        return "done"

    made = delay(compute)
    with pytest.raises(KeyboardInterrupt):
        force(made)
    assert not fulfilledp(made)
    assert force(made) == "done"


def test_a_delay_takes_a_function() -> None:
    with pytest.raises(TypeError, match="takes a function"):
        delay(3)


# --- chains -----------------------------------------------------------------------------------------------------------


def test_a_chain_relays_force_and_fulfilledp() -> None:
    made = promise()
    link = chain(made)
    assert not fulfilledp(link)
    assert fulfill(link, 3)
    assert fulfilledp(link)
    assert force(link) == force(made) == 3
    assert force(chain(5)) == 5


def test_a_chain_forces_what_it_yields() -> None:
    assert force(chain(delay(lambda: future(add, 1, 2)))) == 3
    assert force(chain(chain(delay(lambda: delay(lambda: 4))))) == 4


def test_a_promise_whose_value_is_a_chain_is_followed_and_a_plain_one_is_not() -> None:
    inner, outer, plain = promise(), promise(), promise()
    fulfill(outer, chain(inner))
    fulfill(plain, inner)
    assert not fulfilledp(outer)
    assert force(plain) is inner
    fulfill(inner, 4)
    assert fulfilledp(outer)
    assert force(outer) == 4
    assert force(delay(lambda: chain(delay(lambda: 3)))) == 3


def test_errors_come_through_a_chain_every_time() -> None:
    link = chain(future(lambda: 1 // 0))
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            force(link)
    assert fulfilledp(link)


# --- plet -------------------------------------------------------------------------------------------------------------


def test_plet_gives_a_tuple_or_a_namespace() -> None:
    x, y = plet(lambda: 3 + 4, "os.getpid")
    assert (x, type(y)) == (7, int)
    assert plet(x=lambda: 3, y=lambda: "four") == SimpleNamespace(x=3, y="four")
    assert plet() == ()


def test_plet_runs_its_tasks_in_parallel(gate) -> None:
    """Both stand at the gate at the same time."""
    got = []
    host, port, _ = gate.arguments(None)
    one, other = (lambda: pass_gate(host, port, "one")), (lambda: pass_gate(host, port, "other"))
    thread = threading.Thread(target=lambda: got.append(plet(one, other)))
    thread.start()
    assert {tag for tag, _ in gate.wait(2)} == {"one", "other"}
    gate.open(2)
    thread.join(WAIT_S)
    assert got == [("one", "other")]


def test_plet_has_either_names_or_none() -> None:
    with pytest.raises(TypeError, match="named"):
        plet(lambda: 1, x=lambda: 2)


def test_plet_raises_the_error_of_a_task() -> None:
    with pytest.raises(ZeroDivisionError):
        plet(lambda: 1, lambda: 1 // 0)


@pytest.mark.parametrize("predicate", [True, 1, lambda: True])
def test_plet_if_is_plet_when_the_predicate_holds(predicate) -> None:
    import os

    pids = plet_if(predicate, os.getpid, lambda: __import__("os").getpid())
    assert os.getpid() not in pids
    assert plet_if(predicate, x=lambda: 1).x == 1


@pytest.mark.parametrize("predicate", [False, None, lambda: False])
def test_plet_if_calls_here_and_in_order_when_it_does_not(predicate) -> None:
    set_kernel(None)
    calls: list[str] = []
    assert plet_if(predicate, lambda: calls.append("a"), lambda: calls.append("b") or 2) == (None, 2)
    assert calls == ["a", "b"]
    assert plet_if(predicate, sum=deftask(lambda: 5)).sum == 5


def test_plet_if_runs_there_what_cannot_be_called_here() -> None:
    def numbers():
        yield from (1, 2)

    async def later():
        return 3

    tasks = ["builtins.dict", task_from_source("lambda: 4"), numbers, deftask(later)]
    assert plet_if(False, *tasks) == ({}, 4, [1, 2], 3)


def test_a_future_runs_its_task_once(ran) -> None:
    made = future(note, ran.port, 1)
    assert [force(made) for _ in range(3)] == [1, 1, 1]
    assert ran.numbers() == [1]


def test_reprs_say_what_is_known() -> None:
    made, late = promise(), delay(lambda: 1)
    assert (repr(made), repr(late)) == ("<secfarm.Promise: open>", "<secfarm.Delay: open>")
    fulfill(made, 1)
    assert repr(made) == "<secfarm.Promise: fulfilled>"
    assert repr(chain(late)) == "<secfarm chain to <secfarm.Delay: open>>"
