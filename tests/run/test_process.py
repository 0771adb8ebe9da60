"""One worker process as the pool sees it: what goes in, what comes out, how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from secfarm.run.cradle import DEFAULT, Exit
from secfarm.run.pipe import Run
from secfarm.run.process import WorkerProcess
from secfarm.task import codec
from secfarm.task.capture import capture
from secfarm.task.outcome import Done
from tests.run.plain import PlainCradle
from tests.run.team import DEADLINE_S, Hold, hold


class Seen:
    """What a process told, as something to wait for."""

    def __init__(self) -> None:
        self.dones: asyncio.Queue[Done] = asyncio.Queue()
        self.exits: list[Exit] = []
        self.gone = asyncio.Event()
        loop = asyncio.get_running_loop()
        self.process = WorkerProcess(
            loop, PlainCradle(loop), DEFAULT, lambda _, done: self.dones.put_nowait(done), self.on_exit
        )

    def on_exit(self, process: WorkerProcess, how: Exit) -> None:
        self.exits.append(how)
        self.gone.set()


def with_process(test: Callable[[Seen], Awaitable[None]]) -> None:
    async def main() -> None:
        seen = Seen()
        try:
            async with asyncio.timeout(DEADLINE_S):
                assert (await seen.dones.get()).number == 0  # it says that it is ready
                await test(seen)
        finally:
            seen.process.end()
        assert len(seen.exits) == 1

    asyncio.run(main())


def call(number: int, task: object, *args: object) -> Run:
    program = capture(task).program
    return Run(number, program.key, codec.encode_call(args, {}), None, program.wire)


def test_calls_are_answered_in_their_order() -> None:
    async def test(seen: Seen) -> None:
        for number in range(1, 101):
            assert seen.process.send(call(number, abs, -number))
        for number in range(1, 101):
            done = await seen.dones.get()
            assert (done.number, codec.decode(done.value)) == (number, number)

    with_process(test)


def test_a_call_of_many_packets_arrives_whole_however_slowly_it_is_read() -> None:
    async def test(seen: Seen) -> None:
        data = os.urandom(5_000_000)
        assert not seen.process.send(call(1, len, data))
        assert codec.decode((await seen.dones.get()).value) == len(data)

    with_process(test)


def test_what_is_taken_back_is_never_run(tmp_path: Path) -> None:
    async def test(seen: Seen) -> None:
        held = Hold(tmp_path)
        seen.process.send(call(1, hold, *held.args))
        await held.begins()
        for number in range(2, 12):
            seen.process.send(call(number, abs, -number))
        assert len(seen.process.take_back()) == 10
        assert not seen.process.take_back()
        held.let_go()
        assert (await seen.dones.get()).number == 1
        seen.process.send(call(20, abs, -1))
        assert (await seen.dones.get()).number == 20
        held.close()

    with_process(test)


def test_what_was_reported_before_a_kill_still_counts() -> None:
    async def test(seen: Seen) -> None:
        seen.process.send(call(1, abs, -1))
        seen.process.send(call(2, lambda: __import__("os").kill(__import__("os").getpid(), 9)))
        await seen.gone.wait()
        assert seen.dones.get_nowait().number == 1
        assert seen.exits == [Exit(signal.SIGKILL, None)]

    with_process(test)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (Exit(None, 3), "it exited with status 3"),
        (Exit(9, None), "it was ended by SIGKILL"),
        (Exit(63, None), "it was ended by signal 63"),
    ],
)
def test_an_exit_says_how_in_words(how: Exit, words: str) -> None:
    assert str(how) == words


def test_ending_twice_is_no_error_and_leaves_no_descriptor_and_no_process() -> None:
    async def main() -> None:
        before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208
        seen = Seen()
        pid = seen.process.pid
        seen.process.end()
        seen.process.end()
        seen.process.kill()
        assert len(seen.exits) == 1
        assert not Path(f"/proc/{pid}").exists()  # noqa: ASYNC240
        assert set(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208 - others may close theirs meanwhile

    asyncio.run(main())


def test_a_worker_ends_when_the_daemon_is_gone() -> None:
    """Nobody kills it then: it reads the end of its pipe."""

    async def test(seen: Seen) -> None:
        os.close(os.dup(seen.process._requests_write))
        os.dup2(os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC), seen.process._requests_write, inheritable=False)
        await seen.gone.wait()
        assert seen.exits == [Exit(None, 0)]

    with_process(test)
