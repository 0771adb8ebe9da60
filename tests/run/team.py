"""A pool of real worker processes in the test's own event loop, and calls that begin and end when the test says so."""

from __future__ import annotations

import asyncio
import functools
import inspect
import itertools
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from secfarm.run.crew import Crew, Work
from secfarm.run.pool import WorkerPool
from secfarm.task import codec
from secfarm.task.capture import capture
from secfarm.task.outcome import Done
from secfarm.task.program import NameProgram, Program, make_program
from tests.run.plain import PlainCradle

DEADLINE_S: Final = 60.0
_names: Final = itertools.count()

Reports = dict[Work, "asyncio.Future[Done]"]


def pooled(size: int = 1) -> Callable[[Callable[..., Awaitable[None]]], Callable[..., None]]:
    """Run an async test with a ready pool as its first argument; nothing of the pool outlives it."""

    def wrap(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(**fixtures: object) -> None:
            asyncio.run(_run(size, lambda pool: test(pool, **fixtures)))

        signature = inspect.signature(test)
        del run.__wrapped__
        run.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])
        return run

    return wrap


async def _run(size: int, test: Callable[[WorkerPool], Awaitable[None]]) -> None:
    loop = asyncio.get_running_loop()
    broken: list[dict[str, object]] = []
    loop.set_exception_handler(lambda _, context: broken.append(context))
    pool = WorkerPool(loop, size, PlainCradle(loop))
    try:
        async with asyncio.timeout(DEADLINE_S):
            await pool.ready()
            await test(pool)
    finally:
        pids = pool.pids()
        pool.close()
    assert broken == []
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()], "a worker outlived its pool"  # noqa: ASYNC240


def work(task: object, *args: object, **settings: object) -> tuple[Work, asyncio.Future[Done]]:
    """A call of `task`, and the future of its report; a second report is an error in the loop."""
    captured = capture(task)
    values = codec.encode(list(captured.values)) if captured.values else None
    return work_of(captured.program, codec.encode_call(args, {}), values, **settings)


def named(name: str, *args: object, **settings: object) -> tuple[Work, asyncio.Future[Done]]:
    """A call of a name, whatever the client's own checks would say to it."""
    return work_of(make_program(NameProgram(name)), codec.encode_call(args, {}), None, **settings)


def work_of(
    program: Program, arguments: bytes, values: bytes | None, **settings: object
) -> tuple[Work, asyncio.Future[Done]]:
    future: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
    return Work(program.key, program.wire, arguments, values, future.set_result, **settings), future


def submit(crew: Crew, task: object, *args: object, **settings: object) -> asyncio.Future[Done]:
    """Submit one call and pump."""
    one, future = work(task, *args, **settings)
    crew.submit(one)
    crew.pump()
    return future


async def run(crew: Crew, task: object, *args: object, **settings: object) -> object:
    """The result of one call; an error is an AssertionError."""
    done = await submit(crew, task, *args, **settings)
    assert done.error is None, done.error
    return codec.decode(done.value or b"")


def broadcast(crew: Crew, task: object, *args: object) -> asyncio.Future[list[Done]]:
    """Broadcast a call and pump."""
    one, _ = work(task, *args, broadcast=True)
    future: asyncio.Future[list[Done]] = asyncio.get_running_loop().create_future()
    crew.broadcast(one, future.set_result)
    crew.pump()
    return future


class Hold:
    """Calls of `hold` say when they begin and go on when `let_go` tells one of them to."""

    def __init__(self, folder: Path) -> None:
        number = next(_names)
        self.began, self.release = str(folder / f"began{number}"), str(folder / f"release{number}")
        for path in (self.began, self.release):
            os.mkfifo(path, 0o600)
        self._began = os.open(self.began, os.O_RDWR | os.O_NONBLOCK)
        self._release = os.open(self.release, os.O_RDWR)

    @property
    def args(self) -> tuple[str, str]:
        """What `hold` takes."""
        return self.began, self.release

    async def begins(self) -> int:
        """Wait until one more call has begun and return the process id of its worker."""
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(self._began, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(self._began)
        return self._read()

    def begins_now(self) -> int:
        """The same, for tests whose server runs in another thread or process."""
        import select

        readable, _, _ = select.select([self._began], [], [], DEADLINE_S)
        assert readable, "no call began"
        return self._read()

    def has_begun(self) -> bool:
        """Whether a call has begun that nobody waited for."""
        import select

        return bool(select.select([self._began], [], [], 0)[0])

    def _read(self) -> int:
        return int.from_bytes(os.read(self._began, 4), "big")

    def let_go(self, count: int = 1) -> None:
        """Let that many calls end."""
        os.write(self._release, b"." * count)

    def close(self) -> None:
        for fd in (self._began, self._release):
            os.close(fd)


def hold(began: str, release: str) -> int:
    """The task: says that it begins, waits, and returns its process id."""
    with open(began, "wb", buffering=0) as file:  # noqa: PTH123
        file.write(os.getpid().to_bytes(4, "big"))
    with open(release, "rb", buffering=0) as file:  # noqa: PTH123
        file.read(1)
    return os.getpid()
