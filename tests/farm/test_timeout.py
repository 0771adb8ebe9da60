"""Timeouts are results that come by themselves: each once, ended early at most once. lparallel's submit-timeout."""

from __future__ import annotations

import threading
import time

import pytest

from secfarm import (
    Kernel,
    KernelError,
    cancel_timeout,
    receive_result,
    submit_task,
    submit_timeout,
    try_receive_result,
)
from tests.farm.farms import WAIT_S, Daemon
from tests.meeting import Gate


def test_the_result_comes_after_the_seconds(one_kernel: Kernel) -> None:
    channel = one_kernel.channel()
    start_s = time.monotonic()
    submit_timeout(channel, 0.05, "late")
    assert receive_result(channel) == "late"
    assert time.monotonic() - start_s >= 0.05


def test_it_wakes_who_waits_for_a_task_that_does_not_come(one_kernel: Kernel, gate: Gate) -> None:
    channel = one_kernel.channel()
    held = gate.hold(one_kernel)
    gate.wait()
    submit_timeout(channel, 0.01, None)
    assert receive_result(channel) is None
    gate.open()
    held.result(WAIT_S)


def test_a_timeout_that_is_cancelled_gives_the_other_result_at_once_and_only_once(one_kernel: Kernel) -> None:
    channel = one_kernel.channel()
    timeout = submit_timeout(channel, 3600, "never")
    assert "pending" in repr(timeout)
    cancel_timeout(timeout, "cancelled")
    cancel_timeout(timeout, "again")
    assert receive_result(channel) == "cancelled"
    assert try_receive_result(channel, timeout_s=0.01) == (None, False)
    assert "over" in repr(timeout)


def test_one_that_is_over_cannot_be_cancelled(one_kernel: Kernel) -> None:
    channel = one_kernel.channel()
    timeout = submit_timeout(channel, 0, "first")
    assert receive_result(channel) == "first"
    cancel_timeout(timeout, "second")
    assert try_receive_result(channel, timeout_s=0.01) == (None, False)


def test_many_that_cancel_at_once_give_one_result(one_kernel: Kernel) -> None:
    channel = one_kernel.channel()
    timeout = submit_timeout(channel, 0.005, -1)
    threads = [threading.Thread(target=cancel_timeout, args=(timeout, number)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert receive_result(channel) in range(-1, 8)
    assert try_receive_result(channel, timeout_s=0.05) == (None, False)


def test_it_counts_as_submitted(one_kernel: Kernel) -> None:
    """Iterating waits for it, and it takes one place of a bounded channel."""
    channel = one_kernel.channel(fixed_capacity=2)
    submit_task(channel, divmod, 7, 2)
    timeout, third, got = submit_timeout(channel, 3600, "never"), [], []
    blocked = threading.Thread(target=lambda: third.append(submit_timeout(channel, 3600, "never")))
    blocked.start()
    assert receive_result(channel) == (3, 1)
    blocked.join(WAIT_S)
    assert try_receive_result(channel) == (None, False)
    iterating = threading.Thread(target=lambda: got.extend(channel))
    iterating.start()
    cancel_timeout(timeout, "second")
    cancel_timeout(*third, "third")
    iterating.join(WAIT_S)
    assert got == ["second", "third"]


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_seconds_that_do_not_pass_are_refused(one_kernel: Kernel, seconds: float) -> None:
    channel = one_kernel.channel()
    with pytest.raises(ValueError, match="seconds"):
        submit_timeout(channel, seconds, None)
    assert list(channel) == []


def test_after_the_kernel_s_end_there_is_none(one_daemon: Daemon) -> None:
    with one_daemon.connect() as kernel:
        channel = kernel.channel()
    with pytest.raises(KernelError):
        submit_timeout(channel, 1, None)
