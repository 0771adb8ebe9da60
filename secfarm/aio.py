"""secfarm for asyncio: await tasks, iterate over results as they come. Nothing here blocks the event loop.

Kernels, tasks, values and errors are those of `secfarm`; only the waiting is different. To cancel what waits for a task
takes the task back, and kills it where it runs. Documented in docs/farm.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import TYPE_CHECKING, ParamSpec, TypeVar, cast

from secfarm.farm.current import check_kernel, use_kernel
from secfarm.farm.future import Future
from secfarm.farm.kernel import Kernel as _Kernel
from secfarm.farm.launcher import local_kernel as _local_kernel
from secfarm.farm.loop import background_loop

if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from secfarm.farm.hub import Hub

P = ParamSpec("P")
T = TypeVar("T")


class Kernel:
    """A `secfarm.Kernel` whose waiting is asyncio's. An async context manager: current inside, shut down at its end.

    >>> async def main() -> None:
    ...     async with local_kernel(workers=1) as kernel:
    ...         print(await kernel.submit(divmod, 7, 2), [value async for value in kernel.map(abs, [-1, 2])])
    >>> asyncio.run(main())
    (3, 1) [1, 2]
    """

    def __init__(
        self, addresses: str | tuple[str, int] | Iterable[str | tuple[str, int]] = (), **settings: object
    ) -> None:
        """Note what `secfarm.Kernel` takes; nothing is dialled before the block is entered."""
        self._opening = _Opening()
        self._make: Callable[[], _Kernel] = lambda: _OpeningKernel(self._opening, addresses, settings)

    async def __aenter__(self) -> Self:
        made = asyncio.get_running_loop().run_in_executor(None, self._make)
        try:
            self.kernel = await asyncio.shield(made)
        except asyncio.CancelledError:
            self._opening.give_up()
            await asyncio.wait([made])
            if made.exception() is None:
                made.result().shutdown(wait=False)
            raise
        self._current = use_kernel(self.kernel)
        self._current.__enter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        with contextlib.suppress(ValueError):  # left by another asyncio task than entered it: not current there
            self._current.__exit__(None, None, None)
        await asyncio.to_thread(self.kernel.shutdown)

    def submit(self, task: Callable[P, T] | str, /, *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """Send a task and return its result as an awaitable; errors as `secfarm.Kernel.submit`."""
        return wrap(self.kernel.submit(task, *args, **kwargs))

    async def run(
        self, task: Callable[..., T] | str, /, *args: object, timeout_s: float | None = None, **kwargs: object
    ) -> T:
        """Submit and await; `timeout_s` is the task's limit, after which it is killed."""
        sent = self.kernel if timeout_s is None else self.kernel.options(timeout_s=timeout_s)
        return await wrap(sent.submit(cast("Callable[..., T]", task), *args, **kwargs))

    def map(
        self, task: Callable[..., T] | str, *iterables: Iterable[object], chunksize: int | None = None
    ) -> AsyncGenerator[T, None]:
        """Send `task` over `zip(*iterables)` at once, and yield the results in order.

        When one fails, or the reader stops (`aclose`, a cancel), what is not done is taken back.
        """
        return _in_order(self.kernel._send_chunks(task, iterables, chunksize, None))  # noqa: SLF001

    async def broadcast(self, task: Callable[..., T] | str, /, *args: object, **kwargs: object) -> list[T]:
        """As `secfarm.Kernel.broadcast`."""
        return await asyncio.to_thread(self.kernel.broadcast, task, *args, **kwargs)

    def channel(self, *, fixed_capacity: int | None = None) -> Channel:
        """Return a channel whose tasks run on this kernel."""
        return Channel(self.kernel, fixed_capacity=fixed_capacity)

    @property
    def worker_count(self) -> int:
        """Workers of all servers that are connected now."""
        return self.kernel.worker_count


def local_kernel(
    workers: int | None = None, *, confine: Mapping[str, object] | None = None, confinement: str = "full"
) -> Kernel:
    """As `secfarm.local_kernel`, for `async with`."""
    kernel = Kernel()
    kernel._make = lambda: _local_kernel(workers, confine=confine, confinement=confinement)
    return kernel


class _Opening:
    """The first dialling of a kernel, which ends when nobody waits for it any more."""

    def __init__(self) -> None:
        self._running: concurrent.futures.Future[Hub | None] | None = None
        self._given_up = False

    def result(self, opening: Coroutine[object, object, Hub | None]) -> Hub | None:
        """Dial in the background loop, and wait for the end of that in a thread."""
        self._running = asyncio.run_coroutine_threadsafe(opening, background_loop())
        if self._given_up:
            self._running.cancel()
        return self._running.result()

    def give_up(self) -> None:
        """End it, now or as soon as it begins."""
        self._given_up = True
        if self._running is not None:
            self._running.cancel()


class _OpeningKernel(_Kernel):
    """A kernel whose constructor waits in a thread, and can be told to stop that."""

    def __init__(
        self,
        opening: _Opening,
        addresses: str | tuple[str, int] | Iterable[str | tuple[str, int]],
        settings: dict[str, object],
    ) -> None:
        self._opening = opening
        super().__init__(addresses, **settings)  # type: ignore[arg-type]

    def _opened(self, opening: Coroutine[object, object, Hub | None]) -> Hub | None:
        return self._opening.result(opening)


class Channel:
    """Results in order of completion, each given out once. Source: lparallel's channels."""

    def __init__(self, kernel: _Kernel | None = None, *, fixed_capacity: int | None = None) -> None:
        """Make a channel on `kernel`, by default the current one.

        Args:
            fixed_capacity: how many tasks may be submitted and not yet received; `submit` waits beyond it.
        """
        if fixed_capacity is not None and fixed_capacity < 1:
            raise ValueError(f"fixed_capacity is at least 1, not {fixed_capacity}")
        self._kernel = kernel or check_kernel()
        self._done: asyncio.Queue[Future[object]] = asyncio.Queue()
        self._room = None if fixed_capacity is None else asyncio.Semaphore(fixed_capacity)
        self._outstanding = 0
        self._waiting = 0  # receivers, each of whom one of those outstanding is for

    async def submit(self, task: Callable[..., object] | str, /, *args: object, **kwargs: object) -> None:
        """Send a task, as soon as there is room for it."""
        if self._room is not None:
            await self._room.acquire()
        try:
            sent = self._kernel.submit(task, *args, **kwargs)
        except BaseException:
            if self._room is not None:
                self._room.release()
            raise
        self._outstanding += 1
        _when_done(sent, lambda: self._done.put_nowait(sent))

    async def receive(self) -> object:
        """Wait for the next result and return it; a task that failed raises here."""
        self._waiting += 1
        try:
            done = await self._done.get()
        finally:
            self._waiting -= 1
        self._outstanding -= 1
        if self._room is not None:
            self._room.release()
        return done.result()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> object:
        """Yield results until nothing is outstanding that nobody waits for."""
        if self._outstanding <= self._waiting:
            raise StopAsyncIteration
        return await self.receive()


def submit(task: Callable[P, T] | str, /, *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
    """Submit a task to the current kernel, of `secfarm` or of this module, and return its result as an awaitable.

    Raises:
        NoKernelError: there is none.
    """
    return wrap(check_kernel().submit(task, *args, **kwargs))


def wrap(future: concurrent.futures.Future[T]) -> asyncio.Future[T]:
    """Return the result of a future as an awaitable of the running loop; to cancel that cancels the future.

    As `asyncio.wrap_future`, with which a cancel blocks until the server has answered.
    """
    awaited: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    def settle() -> None:
        if awaited.done():
            return
        if future.cancelled():
            awaited.cancel()
        elif (error := future.exception()) is not None:
            awaited.set_exception(error)
        else:
            awaited.set_result(future.result())

    def take_back(_: object) -> None:
        if awaited.cancelled() and not future.done():
            future.cancel_soon() if isinstance(future, Future) else future.cancel()

    _when_done(future, settle)
    awaited.add_done_callback(take_back)
    return awaited


def _when_done(future: concurrent.futures.Future[T], then: Callable[[], object]) -> None:
    """Call `then` in the running loop when the future is done."""
    loop = asyncio.get_running_loop()

    def done(_: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits
            loop.call_soon_threadsafe(then)

    future.add_done_callback(done)


async def as_completed(futures: Iterable[concurrent.futures.Future[T] | asyncio.Future[T]]) -> AsyncGenerator[T, None]:
    """Yield the results of futures, of either kind, as they are done; one that failed raises at its turn.

    Who stops reading takes nothing back.
    """
    done: asyncio.Queue[concurrent.futures.Future[T] | asyncio.Future[T]] = asyncio.Queue()
    distinct = set(futures)
    for future in distinct:
        if isinstance(future, asyncio.Future):
            future.add_done_callback(done.put_nowait)
        else:
            _when_done(future, functools.partial(done.put_nowait, future))
    for _ in distinct:
        yield (await done.get()).result()


async def _in_order(chunks: list[Future[object]]) -> AsyncGenerator[T, None]:
    chunks.reverse()
    try:
        while chunks:
            future, done = chunks[-1], asyncio.Event()
            _when_done(future, done.set)
            await done.wait()
            failed = future.cancelled() or future.exception() is not None
            for value in cast("Sequence[T]", future.before if failed else future.result()):
                yield value
            chunks.pop().result()
    finally:
        for future in chunks:
            future.cancel_soon()
