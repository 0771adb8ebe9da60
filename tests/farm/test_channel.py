"""Channels: results in order of completion, each given out once; capacity bounds what is outstanding."""

# ruff: noqa: PERF401 - tasks are written as users write them

from __future__ import annotations

import math
import threading
import time

import pytest

from secfarm import (
    InvalidTaskError,
    KernelError,
    NoKernelError,
    end_kernel,
    make_channel,
    receive_result,
    submit_task,
    try_receive_result,
    use_kernel,
)
from secfarm.farm.channel import Channel, do_fast_receives
from tests.farm.farms import WAIT_S
from tests.meeting import Gate, pass_gate


def square(x):
    return x * x


def fail():
    raise ZeroDivisionError


def test_results_come_in_order_of_completion(kernel, gate: Gate) -> None:
    channel = kernel.channel()
    channel.submit(pass_gate, *gate.arguments("first in, last out"))
    gate.wait()
    channel.submit(square, 3)
    assert channel.receive() == 9
    gate.open()
    assert channel.receive() == "first in, last out"


def test_the_functions_of_lparallel_do_the_same(kernel) -> None:
    with use_kernel(kernel):
        channel = make_channel()
    for i in range(50):
        submit_task(channel, square, i)
    got = [receive_result(channel) for _ in range(20)]
    got += list(do_fast_receives(channel, 30))
    assert sorted(got) == sorted(i * i for i in range(50))


def test_a_channel_of_a_view_has_its_settings(one_kernel, gate: Gate) -> None:
    channel = one_kernel.options(category="blah").channel(fixed_capacity=1)
    channel.submit(pass_gate, *gate.arguments("through"))
    gate.wait()
    assert one_kernel.kill("blah", dry_run=True) == 1
    assert one_kernel.categories_running().count("blah") == 1
    gate.open()
    assert channel.receive() == "through"
    assert channel.kernel is one_kernel


def test_a_channel_remembers_its_kernel(one_kernel) -> None:
    with pytest.raises(NoKernelError):
        make_channel()
    with use_kernel(one_kernel):
        channel = make_channel()
    assert channel.kernel is one_kernel
    submit_task(channel, square, 4)
    assert receive_result(channel) == 16


def test_try_receive_waits_as_long_as_it_is_told(one_kernel, gate: Gate) -> None:
    channel = one_kernel.channel()
    assert channel.try_receive() == (None, False)
    channel.submit(pass_gate, *gate.arguments(None))
    gate.wait()
    assert try_receive_result(channel) == (None, False)
    assert try_receive_result(channel, timeout_s=0.01) == (None, False)
    gate.open()
    assert try_receive_result(channel, timeout_s=math.inf) == (None, True)
    assert try_receive_result(channel, timeout_s=-1) == (None, False)
    assert try_receive_result(channel, timeout_s=0) == (None, False)


def test_an_error_is_raised_by_the_receive_that_takes_it_and_uses_it_up(one_kernel) -> None:
    channel = one_kernel.channel()
    channel.submit(fail)
    with pytest.raises(ZeroDivisionError):
        channel.receive()
    channel.submit(fail)
    with pytest.raises(ZeroDivisionError):
        try_receive_result(channel, timeout_s=WAIT_S)
    channel.submit(square, 5)
    assert channel.receive() == 25
    assert list(channel) == []


def test_iterating_yields_until_nothing_is_outstanding(one_kernel) -> None:
    channel = one_kernel.channel()
    for i in range(30):
        channel.submit(square, i)
    assert sorted(channel) == sorted(i * i for i in range(30))
    assert list(channel) == []
    channel.submit(square, 2)
    seen = []
    for value in channel:
        seen.append(value)
        if value < 1000:
            channel.submit(square, value)
    assert seen == [4, 16, 256, 65536]


def test_capacity_bounds_what_is_submitted_and_not_received(one_kernel) -> None:
    channel = one_kernel.channel(fixed_capacity=2)
    third = threading.Event()

    def submit() -> None:
        for i in range(3):
            channel.submit(square, i)
        third.set()

    thread = threading.Thread(target=submit)
    thread.start()
    first = channel.receive()  # both before it were let in, the third waits for this
    assert third.wait(WAIT_S)
    thread.join()
    assert sorted([first, channel.receive(), channel.receive()]) == [0, 1, 4]


def test_capacity_is_reached_before_anything_is_received(one_kernel) -> None:
    channel = one_kernel.channel(fixed_capacity=2)
    channel.submit(square, 1)
    channel.submit(square, 2)
    blocked = threading.Thread(target=channel.submit, args=(square, 3))
    blocked.start()
    blocked.join(0.05)
    assert blocked.is_alive()
    assert sorted([channel.receive(), channel.receive(), channel.receive()]) == [1, 4, 9]
    blocked.join()


@pytest.mark.parametrize(("capacity", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError)])
def test_a_capacity_is_a_whole_number_from_1_on(one_kernel, capacity, error: type[Exception]) -> None:
    with pytest.raises(error):
        one_kernel.channel(fixed_capacity=capacity)


def test_what_is_refused_at_submit_takes_no_room(one_kernel) -> None:
    channel = one_kernel.channel(fixed_capacity=1)
    for _ in range(3):
        with pytest.raises(InvalidTaskError):
            channel.submit(object())
    channel.submit(square, 6)
    assert channel.receive() == 36
    assert list(channel) == []
    for capacity in (0, -1):
        with pytest.raises(ValueError, match="fixed_capacity"):
            Channel(one_kernel, fixed_capacity=capacity)


def test_several_threads_share_a_channel_and_each_result_is_given_once(one_kernel) -> None:
    channel = one_kernel.channel()
    got: list[object] = []

    def take() -> None:
        for _ in range(50):
            got.append(channel.receive())

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for i in range(200):
        channel.submit(square, i)
    for thread in threads:
        thread.join()
    assert sorted(got) == [i * i for i in range(200)]


def test_after_end_kernel_a_submit_is_a_kernel_error_and_results_are_still_there(one_daemon) -> None:
    kernel = one_daemon.connect()
    with use_kernel(kernel):
        channel = make_channel()
        channel.submit(square, 7)
        end_kernel(wait=True)
    with pytest.raises(KernelError):
        channel.submit(square, 8)
    assert channel.receive() == 49
    assert "0 outstanding" in repr(channel)


def test_a_cancelled_task_is_out_of_a_channel_too(one_daemon, gate: Gate) -> None:
    """Shutdown with cancel_futures: whoever iterates does not wait for ever."""
    import concurrent.futures

    kernel = one_daemon.connect()
    channel = kernel.channel()
    for i in range(kernel.worker_count):
        channel.submit(pass_gate, *gate.arguments(i))
    gate.wait(kernel.worker_count)
    channel.submit(time.sleep, 0)
    kernel.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(concurrent.futures.CancelledError):
        channel.receive()
    gate.open(2)
    assert sorted(channel) == [0, 1]
