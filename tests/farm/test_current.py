"""The current kernel: of the process, of a context, none; and the functions that use it."""

from __future__ import annotations

import asyncio
import contextvars
import threading

import pytest

import secfarm
from secfarm import (
    NoKernelError,
    broadcast_task,
    check_kernel,
    current_kernel,
    deftask,
    end_kernel,
    kernel_name,
    kernel_worker_count,
    make_channel,
    set_kernel,
    use_kernel,
)
from secfarm.farm.current import task_category, task_priority, task_settings
from secfarm.task.payload import Priority
from tests.farm.farms import WAIT_S


@deftask
def add(x, y):
    return x + y


def in_new_thread(function):
    """What `function` returns there."""
    got = []
    thread = threading.Thread(target=lambda: got.append(function()))
    thread.start()
    thread.join()
    return got[0]


@pytest.mark.parametrize(
    "use",
    [
        check_kernel,
        kernel_name,
        kernel_worker_count,
        make_channel,
        lambda: add.submit(1, 2),
        lambda: broadcast_task(add, 1, 2),
    ],
)
def test_without_a_kernel_the_error_says_how_to_make_one(use) -> None:
    assert current_kernel() is None
    with pytest.raises(NoKernelError) as caught:
        use()
    for word in ("local_kernel", "secfarm.Kernel(", "set_kernel", "nothing was sent"):
        assert word in str(caught.value)


def test_set_kernel_is_for_the_whole_process(one_kernel) -> None:
    set_kernel(one_kernel)
    assert current_kernel() is check_kernel() is one_kernel
    assert in_new_thread(current_kernel) is one_kernel
    assert (kernel_name(), kernel_worker_count()) == (one_kernel.name, 2)
    assert add.submit(3, 4).result(WAIT_S) == 7
    assert broadcast_task(add, 1, 1) == [2, 2]
    set_kernel(None)
    assert current_kernel() is None
    assert one_kernel.run(add, 1, 1) == 2, "nothing was ended"


def test_use_kernel_is_for_this_context_only(kernel_of) -> None:
    outer, inner = kernel_of("tcp-ed25519"), kernel_of("unix-ed25519")
    set_kernel(outer)
    with use_kernel(inner) as used:
        assert used is inner
        assert current_kernel() is inner
        assert in_new_thread(current_kernel) is outer, "new threads see the process's"
        assert contextvars.copy_context().run(current_kernel) is inner
        with use_kernel(outer):
            assert current_kernel() is outer
        assert current_kernel() is inner
    assert current_kernel() is outer


def test_a_context_may_have_no_kernel_where_the_process_has_one(one_kernel) -> None:
    set_kernel(one_kernel)
    with use_kernel(None):
        assert current_kernel() is None
        with pytest.raises(NoKernelError):
            check_kernel()
        with use_kernel(one_kernel):
            assert current_kernel() is one_kernel
        assert current_kernel() is None
    assert current_kernel() is one_kernel


def test_use_kernel_is_undone_by_an_error(one_kernel) -> None:
    with pytest.raises(KeyError), use_kernel(one_kernel):
        raise KeyError
    assert current_kernel() is None


def test_each_asyncio_task_has_its_own(kernel_of) -> None:
    kernels = [kernel_of("tcp-ed25519"), kernel_of("unix-ed25519")]

    async def one(kernel, here: asyncio.Barrier):
        with use_kernel(kernel):
            await here.wait()
            assert current_kernel() is kernel
            value = await asyncio.wrap_future(add.submit(1, 2))
            assert current_kernel() is kernel
            return value

    async def both():
        here = asyncio.Barrier(2)
        values = await asyncio.gather(*(one(kernel, here) for kernel in kernels))
        assert current_kernel() is None
        return values

    assert asyncio.run(both()) == [3, 3]


def test_a_kernel_is_current_inside_its_block(one_daemon, one_kernel) -> None:
    set_kernel(one_kernel)
    with one_daemon.connect() as kernel:
        assert current_kernel() is kernel
        assert add.submit(1, 2).result(WAIT_S) == 3
    assert current_kernel() is one_kernel
    assert kernel.closed


def test_end_kernel_twice_is_no_error(one_daemon) -> None:
    end_kernel()
    kernel = one_daemon.connect()
    set_kernel(kernel)
    end_kernel(wait=True)
    assert (kernel.closed, current_kernel()) == (True, None)
    end_kernel()
    end_kernel(wait=True)


def test_end_kernel_inside_a_block_ends_that_kernel_and_no_other(one_daemon, one_kernel) -> None:
    set_kernel(one_kernel)
    with one_daemon.connect() as kernel:
        end_kernel()
        assert kernel.closed
        assert current_kernel() is None
        end_kernel()
        assert current_kernel() is None
    assert current_kernel() is one_kernel
    assert not one_kernel.closed


def test_a_closed_kernel_is_current_nowhere(one_daemon) -> None:
    kernel = one_daemon.connect()
    set_kernel(kernel)
    kernel.shutdown()
    assert current_kernel() is None
    with pytest.raises(NoKernelError), use_kernel(kernel):
        check_kernel()


def test_categories_and_priorities_go_by_context_and_deftask() -> None:
    @deftask(category="own", priority="low", timeout_s=5)
    def task():
        return 1

    assert task_settings(task, None).category == "own"
    assert task_settings(len, None).category == "default"
    with task_category("etl"), task_priority("default"):
        assert task_settings(task, None).category == "etl"
        assert task_settings(task, None).priority is Priority.DEFAULT
        assert task_settings(task, None).timeout_s == 5
        assert task_settings(len, None).category == "etl"
    with task_priority("low"):
        assert task_settings(len, None).priority is Priority.LOW
    assert task_settings(task, None).priority is Priority.LOW
    assert task_settings(len, None).priority is Priority.DEFAULT


def test_what_is_public_is_there() -> None:
    assert all(hasattr(secfarm, name) for name in secfarm.__all__)
