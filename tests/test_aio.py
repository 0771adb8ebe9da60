"""`secfarm.aio`: awaiting, iterating, cancelling, and an event loop that goes on meanwhile."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator

import pytest

from secfarm import (
    InvalidTaskError,
    Kernel,
    KernelCreationError,
    KernelError,
    NoKernelError,
    TaskTimeoutError,
    aio,
    current_kernel,
    use_kernel,
)
from tests.farm.farms import WAIT_S, Daemon, gone
from tests.meeting import Gate, pass_gate


def square(x):
    return x * x


def fail(x=None):
    raise ZeroDivisionError("this task fails")


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon("unix-ed25519") as daemon:
        yield daemon


@pytest.fixture(scope="module")
def kernel(daemon: Daemon) -> Iterator[Kernel]:
    kernel = daemon.connect()
    yield kernel
    kernel.shutdown()


def runs(main: Callable[..., Coroutine[object, object, None]], *args: object) -> None:
    """Run `main` and see that its loop was told of no error that nobody looked at."""

    async def watched() -> None:
        told: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        await asyncio.wait_for(main(*args), WAIT_S)
        gc.collect()
        assert told == []

    asyncio.run(watched())


def test_a_block_opens_runs_and_shuts_down(daemon: Daemon) -> None:
    async def main() -> None:
        async with aio.Kernel([daemon.address], auth=daemon.auth, name="async") as kernel:
            assert current_kernel() is kernel.kernel
            assert (kernel.kernel.name, kernel.worker_count) == ("async", 2)
            assert await kernel.submit(square, 3) == 9
            assert await kernel.run(divmod, 7, 2) == (3, 1)
            assert len(await kernel.broadcast(lambda: 1)) == 2
            assert await aio.submit("operator.add", 1, 2) == 3
            sent = kernel.kernel.submit(square, 4)
        assert sent.done()
        assert current_kernel() is None
        with pytest.raises(KernelError):
            kernel.submit(square, 3)

    runs(main)


def test_a_kernel_of_its_own() -> None:
    async def main() -> None:
        async with aio.local_kernel(workers=1) as kernel:
            assert await kernel.submit(square, 5) == 25

    runs(main)


def test_errors_are_raised_where_they_are_awaited(kernel: Kernel) -> None:
    async def main() -> None:
        with use_kernel(kernel):
            with pytest.raises(ZeroDivisionError, match="this task fails"):
                await aio.submit(fail)
            with pytest.raises(InvalidTaskError):
                aio.submit(3)
        with pytest.raises(NoKernelError):
            aio.submit(square, 1)

    runs(main)


def test_run_limits_its_task(daemon: Daemon, gate: Gate) -> None:
    async def main() -> None:
        async with aio.Kernel(daemon.address, auth=daemon.auth) as kernel:
            with pytest.raises(TaskTimeoutError):
                await kernel.run(pass_gate, *gate.arguments(0), timeout_s=0.1)

    runs(main)


def test_gather_and_wait_for_are_asyncio_s(kernel: Kernel, gate: Gate) -> None:
    async def main() -> None:
        with use_kernel(kernel):
            assert await asyncio.gather(*(aio.submit(square, i) for i in range(200))) == [i * i for i in range(200)]
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(aio.submit(pass_gate, *gate.arguments(0)), 0.05)

    runs(main)


def test_a_cancel_takes_the_task_back_and_does_not_wait(kernel: Kernel, gate: Gate) -> None:
    """The line of the server is held by nobody here; the point is that the loop turns while the server is asked."""

    async def main() -> None:
        held = kernel.submit(pass_gate, *gate.arguments(0))
        [(_, pid)] = await asyncio.to_thread(gate.wait)
        waiting = asyncio.ensure_future(aio.wrap(held))
        turned = asyncio.Event()
        asyncio.get_running_loop().call_soon(turned.set)
        waiting.cancel()
        await turned.wait()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        done = asyncio.Event()
        loop = asyncio.get_running_loop()
        held.add_done_callback(lambda _: loop.call_soon_threadsafe(done.set))
        await done.wait()
        assert held.cancelled()
        await asyncio.to_thread(gone, [pid])

    runs(main)


def test_cancelling_who_awaits_cancels_what_waits_its_turn(kernel: Kernel, gate: Gate) -> None:
    async def main() -> None:
        held = [gate.hold(kernel, i) for i in range(2)]
        await asyncio.to_thread(gate.wait, 2)
        sent = kernel.submit(square, 3)

        async def wait() -> int:
            return await aio.wrap(sent)

        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.to_thread(until_cancelled, sent)
        gate.open(2)
        assert await asyncio.gather(*map(aio.wrap, held)) == [0, 1]

    runs(main)


def until_cancelled(future) -> None:
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    assert done.wait(WAIT_S)
    assert future.cancelled()


def test_a_future_that_is_cancelled_elsewhere_is_cancelled_here(kernel: Kernel, gate: Gate) -> None:
    async def main() -> None:
        held = gate.hold(kernel)
        waiting = aio.wrap(held)
        await asyncio.to_thread(held.cancel)
        with pytest.raises(asyncio.CancelledError):
            await waiting

    runs(main)


def test_as_completed_yields_values_in_order_of_completion(kernel: Kernel, gate: Gate) -> None:
    async def main() -> None:
        held = gate.hold(kernel, "last")
        await asyncio.to_thread(gate.wait)
        with use_kernel(kernel):
            futures = [held, aio.submit(square, 2), kernel.submit(square, 2), held]
        came = []
        async for value in aio.as_completed(futures):
            came.append(value)
            if len(came) == 2:
                gate.open()
        assert came == [4, 4, "last"]
        with pytest.raises(ZeroDivisionError):
            _ = [value async for value in aio.as_completed([kernel.submit(fail)])]
        assert [value async for value in aio.as_completed([])] == []

    runs(main)


@pytest.mark.parametrize("chunksize", [None, 1, 7])
def test_map_yields_in_order_and_raises_in_its_place(daemon: Daemon, chunksize) -> None:
    async def main() -> None:
        async with aio.Kernel(daemon.address, auth=daemon.auth) as kernel:
            got = [value async for value in kernel.map(pow, range(50), [2] * 60, chunksize=chunksize)]
            assert got == [i * i for i in range(50)]
            values = kernel.map(divmod, [8, 9, 1, 8], [2, 3, 0, 4], chunksize=chunksize)
            assert [await anext(values), await anext(values)] == [(4, 0), (3, 0)]
            with pytest.raises(ZeroDivisionError):
                await anext(values)
            with pytest.raises(ValueError, match="chunksize"):
                kernel.map(abs, [1], chunksize=0)

    runs(main)


def test_a_map_that_nobody_reads_on_is_taken_back(daemon: Daemon, gate: Gate) -> None:
    async def main() -> None:
        async with aio.Kernel(daemon.address, auth=daemon.auth) as kernel:
            rows = zip(*(gate.arguments(i) for i in range(4)), strict=True)
            values = kernel.map(pass_gate, *rows, chunksize=1)
            first = asyncio.create_task(anext(values))
            pids = [pid for _, pid in await asyncio.to_thread(gate.wait, 2)]
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            await asyncio.to_thread(gone, pids)

    runs(main)


def test_a_channel_gives_results_as_they_come(daemon: Daemon, gate: Gate) -> None:
    async def main() -> None:
        async with aio.Kernel(daemon.address, auth=daemon.auth) as kernel:
            channel = kernel.channel()
            await channel.submit(pass_gate, *gate.arguments("last"))
            await asyncio.to_thread(gate.wait)
            await channel.submit(square, 3)
            assert await channel.receive() == 9
            await channel.submit(fail)
            with pytest.raises(ZeroDivisionError):
                await channel.receive()
            gate.open()
            assert [value async for value in channel] == ["last"]
            assert [value async for value in aio.Channel()] == []

    runs(main)


def test_those_who_iterate_over_one_channel_share_its_results_and_all_end(daemon: Daemon) -> None:
    async def main() -> None:
        async with aio.Kernel(daemon.address, auth=daemon.auth) as kernel:
            channel = kernel.channel()
            for i in range(20):
                await channel.submit(square, i)

            async def take() -> list[object]:
                return [value async for value in channel]

            taken = await asyncio.gather(take(), take(), take())
            assert sorted(value for values in taken for value in values) == [i * i for i in range(20)]

    runs(main)


def test_a_full_channel_lets_others_run(daemon: Daemon, gate: Gate) -> None:
    async def main() -> None:
        async with aio.Kernel(daemon.address, auth=daemon.auth) as kernel:
            channel = kernel.channel(fixed_capacity=1)
            with pytest.raises(InvalidTaskError):
                await channel.submit(3)  # takes no room
            await channel.submit(square, 1)
            second = asyncio.create_task(channel.submit(square, 2))
            await asyncio.sleep(0)
            assert not second.done()
            assert await channel.receive() == 1
            await second
            assert await channel.receive() == 4
            with pytest.raises(ValueError, match="at least 1"):
                kernel.channel(fixed_capacity=0)

    runs(main)


def test_the_loop_turns_while_a_kernel_waits_for_its_server_and_a_cancel_ends_that(daemon: Daemon) -> None:
    """A kernel without a time limit dials for ever; giving up leaves no thread behind, or the loop would not end."""

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            address = f"127.0.0.1:{silent.getsockname()[1]}"
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(aio.Kernel(address, auth=daemon.auth).__aenter__(), 0.1)
            with pytest.raises(KernelCreationError):
                await aio.Kernel(address, auth=daemon.auth, connect_timeout_s=0.1).__aenter__()

    runs(main)
    assert current_kernel() is None


def test_a_result_that_comes_after_the_loop_has_ended_harms_nobody(kernel: Kernel, gate: Gate, caplog) -> None:
    async def main() -> None:
        aio.wrap(held)

    held = gate.hold(kernel, 7)
    asyncio.run(main())
    gate.open()
    assert held.result(WAIT_S) == 7
    assert caplog.text == ""
