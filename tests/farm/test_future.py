"""The future is one of `concurrent.futures`: CPython's FutureTests, and what a task on a server adds to them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import queue
import threading

import pytest

from secfarm import Future, Kernel, KernelError, WorkerLostError
from tests.farm.farms import WAIT_S, gone, make_short, results, until
from tests.meeting import Gate, note, pass_gate


def fail():
    raise OSError("foo")


def test_states_of_a_task_that_succeeds(kernel, gate: Gate) -> None:
    future = gate.hold(kernel, 42)
    gate.wait()
    assert (future.running(), future.done(), future.cancelled()) == (True, False, False)
    assert "running" in repr(future)
    assert "pass_gate" in repr(future)
    gate.open()
    assert future.result(WAIT_S) == 42
    assert future.exception() is None
    assert (future.running(), future.done(), future.cancelled()) == (False, True, False)
    assert future.cancel() is False
    assert "finished" in repr(future)
    assert isinstance(future, Future)
    assert isinstance(future, concurrent.futures.Future)


def test_running_is_what_a_worker_can_have_begun(one_kernel, gate: Gate) -> None:
    """Tasks that are known to be short are sent ahead; those that wait at the server are not running."""
    first = gate.hold(one_kernel)
    gate.open()
    results([first])
    gate.wait()
    make_short(one_kernel, first)
    futures = [gate.hold(one_kernel, number) for number in range(6)]
    begun = {int(tag) for tag, _ in gate.wait(2)}
    until(lambda: sum(len(seat.held) for seat in one_kernel._dispatch._schedule.seats) > 2, "some are sent ahead")
    assert {number for number, future in enumerate(futures) if future.running()} == begun
    gate.open(6)
    assert results(futures) == list(range(6))
    assert not any(future.running() for future in futures)


def test_states_of_a_task_that_fails(one_kernel) -> None:
    future = one_kernel.submit(fail)
    assert isinstance(future.exception(WAIT_S), OSError)
    for _ in range(2):
        with pytest.raises(OSError, match="foo"):
            future.result()
    assert (future.done(), future.cancelled(), future.running()) == (True, False, False)


def test_each_task_has_an_id_of_its_own(one_kernel) -> None:
    futures = [one_kernel.submit(len, "a") for _ in range(100)]
    assert len({future.task_id for future in futures}) == 100
    before = futures[0].task_id
    results(futures)
    assert futures[0].task_id == before
    int(before, 16)


def test_output_is_what_the_task_printed(kernel) -> None:
    def speak(n):
        import sys

        print("said", n)
        print("shouted", n, file=sys.stderr)
        return n

    futures = [kernel.submit(speak, n) for n in range(20)]
    assert results(futures) == list(range(20))
    assert [future.output for future in futures] == [f"said {n}\nshouted {n}\n" for n in range(20)]
    silent = kernel.submit(len, "abc")
    assert (silent.result(WAIT_S), silent.output) == (3, "")

    def speak_and_fail():
        print("last words")
        raise ValueError

    failed = kernel.submit(speak_and_fail)
    assert isinstance(failed.exception(WAIT_S), ValueError)
    assert failed.output == "last words\n"


# --- callbacks ------------------------------------------------------------------------------------------------------


def test_callbacks_are_called_once_with_the_future_before_and_after_it_is_done(one_kernel, gate: Gate) -> None:
    called: list[object] = []
    both = threading.Barrier(2)
    future = gate.hold(one_kernel, 5)
    future.add_done_callback(lambda f: called.append(f.result()))
    future.add_done_callback(lambda _: both.wait(WAIT_S))
    gate.open()
    both.wait(WAIT_S)
    assert called == [5]
    future.add_done_callback(called.append)
    assert called == [5, future]


def test_a_callback_of_a_failed_and_of_a_cancelled_future(one_kernel, gate: Gate) -> None:
    heard = []
    failed = one_kernel.submit(fail)
    failed.exception(WAIT_S)
    failed.add_done_callback(lambda f: heard.append(str(f.exception())))
    held = [gate.hold(one_kernel) for _ in range(2)]
    gate.wait(2)
    waiting = one_kernel.submit(len, "a")
    waiting.add_done_callback(lambda f: heard.append(f.cancelled()))
    assert waiting.cancel()
    assert len(heard) == 2
    assert "foo" in heard[0]
    assert heard[1] is True
    gate.open(2)
    results(held)


def test_a_callback_that_raises_is_logged_and_the_others_are_called(
    one_kernel, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    done = threading.Event()
    future = gate.hold(one_kernel)
    future.add_done_callback(lambda _: 1 / 0)
    future.add_done_callback(lambda _: done.set())
    with caplog.at_level(logging.ERROR, logger="concurrent.futures"):
        gate.open()
        assert done.wait(WAIT_S)
    assert "ZeroDivisionError" in caplog.text
    assert one_kernel.run(len, "abc") == 3


def test_a_callback_may_submit_and_may_not_wait_for_a_cancel(one_kernel, gate: Gate) -> None:
    """Callbacks run in the kernel's own thread: `cancel` says False there instead of waiting for itself."""
    got: list[object] = []
    done = threading.Event()
    first, other = gate.hold(one_kernel, 1), gate.hold(one_kernel, 2)
    gate.wait(2)

    def again(_: object) -> None:
        got.append(other.cancel())
        one_kernel.submit(len, "abc").add_done_callback(lambda f: (got.append(f.result()), done.set()))

    first.add_done_callback(again)
    gate.open(1)
    second_open = threading.Thread(target=gate.open)
    second_open.start()
    assert done.wait(WAIT_S)
    second_open.join()
    assert got == [False, 3]


# --- cancelling -----------------------------------------------------------------------------------------------------


def test_a_waiting_task_is_taken_back_and_never_runs(kernel, gate: Gate, ran) -> None:
    held = [gate.hold(kernel, i) for i in range(kernel.worker_count)]
    gate.wait(len(held))
    waiting = [kernel.submit(note, ran.port, i) for i in range(10)]
    assert [future.cancel() for future in waiting[::2]] == [True] * 5
    gate.open(len(held))
    assert results(waiting[1::2]) == [1, 3, 5, 7, 9]
    results(held)
    assert sorted(ran.numbers()) == [1, 3, 5, 7, 9]
    for future in waiting[::2]:
        assert future.cancelled()
        assert future.cancel() is True
        with pytest.raises(concurrent.futures.CancelledError):
            future.result(0)
        with pytest.raises(concurrent.futures.CancelledError):
            future.exception(0)


def test_a_running_task_is_killed_and_true_means_that_it_is_gone(kernel, gate: Gate) -> None:
    future = gate.hold(kernel)
    [(_, pid)] = gate.wait()
    assert future.cancel() is True
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert (future.cancelled(), future.running(), future.done()) == (True, False, True)
    assert "cancelled" in repr(future)
    assert kernel.run(len, "abc") == 3


def test_a_done_task_cannot_be_cancelled(kernel) -> None:
    future = kernel.submit(len, "abc")
    future.result(WAIT_S)
    assert future.cancel() is False
    assert future.result() == 3


def test_tasks_sent_ahead_are_taken_back_and_their_neighbours_run(one_kernel, ran) -> None:
    """Short tasks are sent by the hundred: cancelling some of them, at any moment, hits those and no others."""
    one_kernel.run(note, ran.port, -1)
    futures = [one_kernel.submit(note, ran.port, i) for i in range(300)]
    cancelled = {i for i in range(299, 0, -7) if futures[i].cancel()}
    for i, future in enumerate(futures):
        if i in cancelled:
            assert future.cancelled()
        else:
            assert future.result(WAIT_S) == i
    numbers = ran.numbers()
    assert len(set(numbers)) == len(numbers)
    assert set(range(300)) - cancelled <= set(numbers)


def test_several_threads_may_cancel_one_task(one_kernel, gate: Gate) -> None:
    for _ in range(5):
        future = gate.hold(one_kernel)
        gate.wait()
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = [answer.result(WAIT_S) for answer in [pool.submit(future.cancel) for _ in range(8)]]
        assert answers == [True] * 8


def test_a_task_whose_worker_died_is_not_cancelled(one_kernel) -> None:
    future = one_kernel.submit(lambda: __import__("os")._exit(1))
    assert isinstance(future.exception(WAIT_S), WorkerLostError)
    assert future.cancel() is False


# --- asyncio --------------------------------------------------------------------------------------------------------


def test_wrap_future_awaits_results_errors_and_many(kernel) -> None:
    async def main() -> None:
        assert await asyncio.wrap_future(kernel.submit(len, "abc")) == 3
        with pytest.raises(OSError, match="foo"):
            await asyncio.wrap_future(kernel.submit(fail))
        many = [asyncio.wrap_future(kernel.submit(divmod, i, 7)) for i in range(200)]
        assert await asyncio.gather(*many) == [divmod(i, 7) for i in range(200)]

    asyncio.run(main())


def test_cancelling_the_wrapped_future_cancels_the_task(one_kernel, gate: Gate) -> None:
    future = gate.hold(one_kernel)
    [(_, pid)] = gate.wait()

    async def main() -> None:
        wrapped = asyncio.wrap_future(future)
        wrapped.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wrapped

    asyncio.run(main())
    assert concurrent.futures.wait([future], WAIT_S).done
    assert future.cancelled()
    gone([pid])


def test_an_awaiting_program_may_time_out(one_kernel, gate: Gate) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(gate.hold(one_kernel)), 0.05)
        assert await asyncio.get_running_loop().run_in_executor(one_kernel, len, "abc") == 3

    asyncio.run(main())


def test_a_done_callback_that_would_wait_for_ever_is_told_so(one_kernel: Kernel, gate: Gate) -> None:
    """Done callbacks run in the thread that hears the servers."""
    told: queue.SimpleQueue[BaseException | int] = queue.SimpleQueue()

    def ask(_: object) -> None:
        for waiting in (lambda: one_kernel.run(abs, -1), lambda: one_kernel.broadcast(abs, -1), one_kernel.workers):
            try:
                waiting()
            except KernelError as error:
                told.put(error)
        one_kernel.submit(abs, -1).add_done_callback(lambda future: told.put(future.result()))

    future = one_kernel.submit(pass_gate, *gate.arguments(1))
    future.add_done_callback(ask)
    gate.wait()
    gate.open()
    answers = [told.get(timeout=WAIT_S) for _ in range(4)]
    assert ["callback cannot wait" in str(answer) for answer in answers] == [True, True, True, False]
    assert answers[-1] == 1
