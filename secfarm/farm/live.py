"""What a task tells its submitter while it runs: the callbacks, and the thread that calls them.

A kernel calls all of its callbacks in one thread of their own, in order, and a future is resolved behind the last
callback of its task. A callback that is slow holds up what comes behind it, and nothing else.
"""

from __future__ import annotations

import logging
import queue
import threading
from typing import TYPE_CHECKING, Final

from secfarm.errors import ProtocolError
from secfarm.farm.future import LiveFuture, in_callback
from secfarm.limits import MAX_LIVE_CHARS
from secfarm.wire.messages import Output, Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from secfarm.farm.future import Submission

_log: Final = logging.getLogger("secfarm")


class Callbacks:
    """The thread of one kernel's callbacks; there is none before the first call."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[..., object], tuple[object, ...]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def call(self, callback: Callable[..., object], *args: object) -> None:
        """Let the thread call `callback` behind what it has to call already."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="secfarm callbacks", daemon=True)
            self._thread.start()
        self._calls.put((callback, args))

    def close(self) -> None:
        """Let the thread end behind the last call."""
        if self._thread is not None:
            self._calls.put(None)

    def _run(self) -> None:
        in_callback.here = True
        while (call := self._calls.get()) is not None:
            callback, args = call
            try:
                callback(*args)
            except BaseException:  # noqa: BLE001 - it is the user's, and harms nobody but itself
                _log.exception("the callback %r raised; the task and its other callbacks go on", callback)


def hear(callbacks: Callbacks, submission: Submission, message: Output | Progress) -> None:
    """Pass on what a server tells of a running task.

    Raises:
        ProtocolError: nobody asked for it, or it is more than a server lets a task print.
    """
    future, options = submission.future, submission.options
    if isinstance(message, Output) and isinstance(future, LiveFuture) and options.on_output is not None:
        future.heard.append(message.text)
        future.heard_chars += len(message.text)
        if future.heard_chars > MAX_LIVE_CHARS:
            raise ProtocolError(f"a task printed more than {MAX_LIVE_CHARS} characters; a server lets none do so")
        callbacks.call(options.on_output, message.stream.value, message.text)
    elif isinstance(message, Progress) and options.on_progress is not None:
        future.progress = (message.done, message.total, message.message)
        callbacks.call(options.on_progress, *future.progress)
    else:
        raise ProtocolError("the server tells what a task does while it runs, for which it was not asked")
