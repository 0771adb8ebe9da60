"""Channels: submit tasks, receive their results in order of completion. lparallel's submit-task and receive-result."""

from __future__ import annotations

import operator
import threading
from collections import deque
from typing import TYPE_CHECKING, TypeVar, cast

from secfarm.farm.current import check_kernel
from secfarm.farm.shown import html_table

if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import Callable, Iterator

    from secfarm.farm.kernel import Kernel
    from secfarm.farm.view import KernelView

T = TypeVar("T")


class Channel:
    """A stream of results, each given out once, to whoever asks first. Safe for several threads."""

    def __init__(self, kernel: Kernel, *, fixed_capacity: int | None = None, view: KernelView | None = None) -> None:
        """Make a channel on `kernel`.

        Args:
            fixed_capacity: how many tasks may be submitted and not yet received; `submit` blocks beyond it.
            view: of this kernel, whose settings the tasks have.
        """
        if fixed_capacity is not None and operator.index(fixed_capacity) < 1:
            raise ValueError(f"fixed_capacity is at least 1, not {fixed_capacity}")
        self.kernel = kernel
        self._view = view or kernel
        self._done: deque[concurrent.futures.Future[object]] = deque()
        self._room = None if fixed_capacity is None else threading.Semaphore(fixed_capacity)
        self._changed = threading.Condition()
        self._outstanding = 0

    def submit(self, task: Callable[..., object] | str, /, *args: object, **kwargs: object) -> None:
        """Send a task; its result comes out of `receive` when it is done."""
        self.expect(lambda: self._view.submit(task, *args, **kwargs))

    def expect(self, begin: Callable[[], concurrent.futures.Future[T]]) -> concurrent.futures.Future[T]:
        """Call `begin` when there is room, and let what its future holds come out of `receive` when it is done."""
        if self._room is not None:
            self._room.acquire()
        try:
            future = begin()
        except BaseException:
            if self._room is not None:
                self._room.release()
            raise
        with self._changed:
            self._outstanding += 1
        future.add_done_callback(self._put)
        return future

    def _put(self, future: concurrent.futures.Future[T]) -> None:
        with self._changed:
            self._done.append(cast("concurrent.futures.Future[object]", future))
            self._changed.notify()

    def receive(self) -> object:
        """Wait for the next result and return it; a task that failed raises here."""
        return cast("concurrent.futures.Future[object]", self._take(lambda: False)).result()

    def try_receive(self, *, timeout_s: float | None = None) -> tuple[object, bool]:
        """Return (result, True), or (None, False) when there is none within `timeout_s`; None: none at once."""
        future = self._take(lambda: False, timeout_s or 0.0)
        return (None, False) if future is None else (future.result(), True)

    def _take(
        self, is_over: Callable[[], bool], timeout_s: float | None = None
    ) -> concurrent.futures.Future[object] | None:
        """Return the next task that is done; None when there is none in time, or none is to be waited for."""
        with self._changed:
            # Longer than the system can count (`math.inf`) is for ever.
            limit_s = None if timeout_s is None or timeout_s > threading.TIMEOUT_MAX else timeout_s
            self._changed.wait_for(lambda: self._done or is_over(), limit_s)
            if not self._done:
                return None
            future = self._done.popleft()
            self._outstanding -= 1
            if not self._outstanding:
                self._changed.notify_all()  # others may iterate too
        if self._room is not None:
            self._room.release()
        return future

    def __iter__(self) -> Iterator[object]:
        """Yield results until nothing that was submitted is outstanding, taken by others included."""
        while (future := self._take(lambda: not self._outstanding)) is not None:
            yield future.result()

    def __repr__(self) -> str:
        return f"<secfarm.Channel on {self.kernel.name!r}: {self._outstanding} outstanding>"

    def __rich_repr__(self) -> Iterator[tuple[str, object]]:
        """What rich shows (rich.pretty)."""
        yield from self._shown()

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return html_table("secfarm.Channel", ("", ""), self._shown())

    def _shown(self) -> list[tuple[str, object]]:
        return [("kernel", self.kernel.name), ("outstanding", self._outstanding), ("ready", len(self._done))]


def make_channel(*, fixed_capacity: int | None = None) -> Channel:
    """Return a channel on the current kernel, which it remembers."""
    return Channel(check_kernel(), fixed_capacity=fixed_capacity)


def submit_task(channel: Channel, task: Callable[..., object] | str, /, *args: object, **kwargs: object) -> None:
    """Submit a task on `channel`."""
    channel.submit(task, *args, **kwargs)


def receive_result(channel: Channel) -> object:
    """Wait for the next result of `channel`."""
    return channel.receive()


def try_receive_result(channel: Channel, *, timeout_s: float | None = None) -> tuple[object, bool]:
    """Return (result, True) or (None, False); see `Channel.try_receive`."""
    return channel.try_receive(timeout_s=timeout_s)


def do_fast_receives(channel: Channel, count: int) -> Iterator[object]:
    """Yield the next `count` results of `channel`."""
    for _ in range(count):
        yield channel.receive()
