"""Limits of a task over a real server: time that ends C code too, memory, processor time; each with its own error."""

from __future__ import annotations

import math
import signal
import time

import numpy as np
import pytest

from secfarm import Kernel, ResourceExceededError, TaskExecutionError, TaskTimeoutError
from tests.farm.farms import WAIT_S, Daemon
from tests.meeting import Notes

MEMORY_BYTES = 64_000_000
LIMITED = '[[grant]]\nprincipals = ["*"]\nmay = ["run", "call"]\nnames = ["*"]\n[grant.limits]\n'


# --- time ---------------------------------------------------------------------------------------------------------


def sum_in_c() -> int:
    return sum(range(10**13))


def backtrack() -> object:
    import re

    return re.match(r"(a+)+$", "a" * 60 + "b")


def deaf_sleep() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
    for one in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(one, signal.SIG_IGN)
    time.sleep(3600)


def never_let_go() -> None:
    while True:
        try:
            time.sleep(3600)
        except BaseException:  # noqa: BLE001, S112
            continue


@pytest.mark.parametrize("task", [sum_in_c, backtrack, deaf_sleep, never_let_go])
def test_a_time_limit_ends_whatever_the_task_is_stuck_in(one_kernel: Kernel, task) -> None:
    with pytest.raises(TaskTimeoutError, match=r"0\.2 s"):
        one_kernel.options(timeout_s=0.2).submit(task).result(WAIT_S)
    assert one_kernel.run(divmod, 7, 2) == (3, 1)


def test_time_in_the_queue_does_not_count(one_kernel: Kernel) -> None:
    view = one_kernel.options(timeout_s=5)
    futures = [view.submit(time.sleep, 0.2) for _ in range(2 * one_kernel.worker_count)]
    assert [future.result(WAIT_S) for future in futures] == [None] * len(futures)


# --- memory -------------------------------------------------------------------------------------------------------


def fill_bytes() -> int:
    return len(b"x" * 500_000_000)


def fill_bit_by_bit() -> int:
    kept = []
    while True:
        kept.append(b"x" * 100_000 + str(len(kept)).encode())


def fill_in_a_thread() -> int:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as threads:
        return threads.submit(lambda: len(b"x" * 500_000_000)).result()


def fill_and_raise_again() -> int:
    try:
        return len(b"x" * 500_000_000)
    except MemoryError as error:
        raise error from None


def fill_numpy() -> float:
    return float(np.ones(100_000_000).sum())


def fill_mapped() -> int:
    import mmap

    try:
        return len(mmap.mmap(-1, 10**12))
    except OSError:
        return len(b"x" * 500_000_000)


@pytest.mark.parametrize(
    "task", [fill_bytes, fill_bit_by_bit, fill_in_a_thread, fill_and_raise_again, fill_numpy, fill_mapped]
)
def test_too_much_memory_says_which_limit_it_was(one_kernel: Kernel, task) -> None:
    view = one_kernel.options(memory_bytes=MEMORY_BYTES)
    with pytest.raises(ResourceExceededError) as caught:
        view.submit(task).result(WAIT_S)
    assert (caught.value.kind, caught.value.limit) == ("memory", MEMORY_BYTES)
    assert str(MEMORY_BYTES) in str(caught.value)
    assert one_kernel.run(lambda: len(bytes(300_000_000))) == 300_000_000, "the limit was that task's"


def raise_deliberately(text: str) -> None:
    raise MemoryError(text) if text else MemoryError


@pytest.mark.parametrize("text", ["", "mine"])
def test_a_memory_error_that_the_task_itself_raises_is_its_own(one_kernel: Kernel, text: str) -> None:
    for view in (one_kernel.options(memory_bytes=MEMORY_BYTES), one_kernel.options()):
        with pytest.raises(TaskExecutionError) as caught:
            view.submit(raise_deliberately, text).result(WAIT_S)
        assert isinstance(caught.value, MemoryError)
        assert caught.value.remote_type == "MemoryError"


def test_a_task_within_its_memory_is_not_disturbed(one_kernel: Kernel) -> None:
    def task() -> int:
        import threading

        threads = [threading.Thread(target=bytes, args=(1_000_000,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(b"x" * 20_000_000)

    assert one_kernel.options(memory_bytes=MEMORY_BYTES).submit(task).result(WAIT_S) == 20_000_000


def test_arguments_and_results_are_no_part_of_the_limit(one_kernel: Kernel) -> None:
    """Encoding is ours, and ends badly where memory runs out."""
    view = one_kernel.options(memory_bytes=30_000_000)
    assert view.submit(len, b"x" * 40_000_000).result(WAIT_S) == 40_000_000
    assert view.submit(lambda: b"x" * 20_000_000).result(WAIT_S) == b"x" * 20_000_000


def test_the_policy_s_memory_is_the_limit_where_less_is_granted_than_asked() -> None:
    with Daemon(policy=f"{LIMITED}memory_bytes = {MEMORY_BYTES}\n") as daemon, daemon.connect() as kernel:
        for view in (kernel.options(), kernel.options(memory_bytes=10**12)):
            with pytest.raises(ResourceExceededError) as caught:
                view.submit(fill_bytes).result(WAIT_S)
            assert caught.value.limit == MEMORY_BYTES


# --- processor time -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [sum_in_c, backtrack])
def test_too_much_processor_time_says_which_limit_it_was(task) -> None:
    with Daemon(workers=1, policy=f"{LIMITED}cpu_s = 0.2\n") as daemon, daemon.connect() as kernel:
        with pytest.raises(ResourceExceededError) as caught:
            kernel.submit(task).result(WAIT_S)
        assert (caught.value.kind, caught.value.limit) == ("cpu", 0.2)
        assert kernel.run(time.sleep, 0.3) is None, "waiting is no processor time"


def test_a_limit_that_is_exceeded_ends_one_task_and_not_those_behind_it(one_kernel: Kernel, ran: Notes) -> None:
    from tests.meeting import note

    bad = [one_kernel.options(timeout_s=0.1).submit(sum_in_c) for _ in range(3)]
    good = [one_kernel.submit(note, ran.port, i) for i in range(200)]
    for future in bad:
        assert isinstance(future.exception(WAIT_S), TaskTimeoutError)
    assert [future.result(WAIT_S) for future in good] == list(range(200))
    assert sorted(ran.numbers()) == list(range(200))


@pytest.mark.parametrize("wrong", [{"timeout_s": 0}, {"timeout_s": math.nan}, {"memory_bytes": 0}, {"category": 3}])
def test_a_view_with_a_setting_that_is_none_is_refused(one_kernel, wrong: dict[str, object]) -> None:
    with pytest.raises((ValueError, TypeError)):
        one_kernel.options(**wrong)
