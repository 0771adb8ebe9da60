"""Steps that may wait (a KDC, a disk, a hook that asks a directory) run in threads, never in the event loop.

Threads of their own and not the loop's executor: that one looks up host names too, and the interpreter waits for its
threads at the end, for which a KDC that does not answer is no reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Final, TypeVar

from secfarm.errors import AuthError

T = TypeVar("T")

MAX_THREADS: Final = 64  # at once in this process; as many connections may stand at a server's door
_room: Final = threading.BoundedSemaphore(MAX_THREADS)


def run_outside(function: Callable[[], T], then: Callable[[T], None]) -> None:
    """Run `function`, which raises nothing, in a thread, and call `then` with its result in the running event loop.

    Raises:
        AuthError: too many are under way; nothing was run.
    """
    loop = asyncio.get_running_loop()
    if not _room.acquire(blocking=False):
        raise AuthError(f"{MAX_THREADS} steps of authentications are under way already; this one was not begun")

    def run() -> None:
        try:
            result = function()
        finally:
            _room.release()
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(then, result)

    threading.Thread(target=run, name="secfarm authentication", daemon=True).start()
