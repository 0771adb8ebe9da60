"""The one background event loop of a client process: a daemon thread that all kernels share."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING, Final, cast

from secfarm.errors import KernelError

if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import Coroutine
    from typing import TypeVar

    T = TypeVar("T")

NO_WAITING: Final = (
    "a done callback cannot wait for an answer, which would come in the callback's own thread. Wait in another thread, "
    "or add a done callback to the other future too"
)

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_pid = 0


def background_loop() -> asyncio.AbstractEventLoop:
    """Return the loop, started at the first call; a forked child gets one of its own."""
    global _loop, _pid
    with _lock:
        if _loop is None or _pid != os.getpid():
            _loop, _pid = _new_loop(), os.getpid()
            threading.Thread(target=_loop.run_forever, name="secfarm", daemon=True).start()
        return _loop


def in_background() -> bool:
    """Whether the calling thread is the loop's own, in which nothing may block."""
    try:
        return asyncio.get_running_loop() is _loop
    except RuntimeError:
        return False


def run_in_background(coroutine: Coroutine[object, object, T]) -> T:
    """Run `coroutine` in the loop and wait for its result; a KeyboardInterrupt cancels it.

    Raises:
        KernelError: this is the loop's own thread, a done callback, where it would wait for ever.
    """
    if in_background():
        coroutine.close()
        raise KernelError(NO_WAITING)
    return wait_for(asyncio.run_coroutine_threadsafe(coroutine, background_loop()))


def wait_for(future: concurrent.futures.Future[T]) -> T:
    """Wait for what runs in the loop; a KeyboardInterrupt cancels it."""
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return cast("asyncio.AbstractEventLoop", uvloop.new_event_loop())
