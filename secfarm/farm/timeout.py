"""Timeouts: results that come into a channel after some seconds, without a server. lparallel's submit-timeout."""

from __future__ import annotations

import concurrent.futures
import math
import threading
from typing import TYPE_CHECKING

from secfarm.errors import KernelError
from secfarm.farm.loop import background_loop

if TYPE_CHECKING:
    import asyncio

    from secfarm.farm.channel import Channel


class Timeout:
    """What `submit_timeout` returns; `cancel_timeout` ends it early."""

    def __init__(self, seconds: float, result: object) -> None:
        """Begin to count the seconds."""
        self.future: concurrent.futures.Future[object] = concurrent.futures.Future()
        self._lock = threading.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._loop = background_loop()
        due_s = self._loop.time() + seconds
        self._loop.call_soon_threadsafe(self._start, due_s, result)

    def _start(self, due_s: float, result: object) -> None:
        if not self.future.done():
            self._timer = self._loop.call_at(due_s, self.end, result)

    def end(self, result: object) -> bool:
        """Let `result` come now; return False, and do nothing, if one has come already."""
        with self._lock:
            if self.future.done():
                return False
            self.future.set_result(result)
        self._loop.call_soon_threadsafe(self._stop)
        return True

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def __repr__(self) -> str:
        return f"<secfarm.Timeout: {'over' if self.future.done() else 'pending'}>"


def submit_timeout(channel: Channel, seconds: float, result: object) -> Timeout:
    """Let `result` come out of `channel` after some seconds, as if a task had returned it then; no worker is used.

    Raises:
        ValueError: `seconds` is no finite number from 0 on.
        KernelError: the channel's kernel was shut down.
    """
    if not 0 <= seconds < math.inf:
        raise ValueError(f"a timeout has a finite number of seconds from 0 on, not {seconds!r}")
    if channel.kernel.closed:
        raise KernelError(f"kernel {channel.kernel.name!r} was shut down; the timeout was not submitted")
    timeouts: list[Timeout] = []

    def begin() -> concurrent.futures.Future[object]:
        timeouts.append(Timeout(seconds, result))
        return timeouts[0].future

    channel.expect(begin)
    return timeouts[0]


def cancel_timeout(timeout: Timeout, result: object) -> None:
    """Let `result` come out of the channel now, instead; no effect on a timeout that is over."""
    timeout.end(result)
