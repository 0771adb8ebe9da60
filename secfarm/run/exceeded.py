"""Which bound of its confinement a task ran into, judged by the error that the kernel gave it."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from secfarm.task.outcome import ErrorRecord

if TYPE_CHECKING:
    from secfarm.run.profile import Bounds

_NO_THREAD: Final = "can't start new thread"  # Modules/_threadmodule.c
_SPAWNS: Final = frozenset({"_execute_child", "_fork_exec"})  # of subprocess.py


def exceeded(cause: BaseException, function: str, bounds: Bounds) -> ErrorRecord | None:
    """Return what the client is to hear of `cause`, or None if it is no matter of bounds.

    Args:
        cause: raised by Python or the kernel, not by the task's own text.
        function: in which it was raised.
    """
    kind = _kind(cause, function)
    if kind is None:
        return None
    limit: int = getattr(bounds, kind)
    return ErrorRecord("resource", f"the task wanted more than its {limit} {_WORDS[kind]}", kind=kind, limit=limit)


_WORDS: Final = {
    "processes": "threads and processes",
    "files": "open files",
    "scratch_bytes": "bytes of scratch",
    "scratch_files": "files of scratch",
}


def _kind(cause: BaseException, function: str) -> str | None:
    if isinstance(cause, RuntimeError) and str(cause) == _NO_THREAD:
        return "processes"
    if not isinstance(cause, OSError):
        return None
    if cause.errno == errno.EAGAIN and function in _SPAWNS:
        return "processes"
    if cause.errno == errno.EMFILE:
        return "files"
    if cause.errno == errno.ENOSPC:
        return "scratch_bytes" if os.statvfs(".").f_favail else "scratch_files"
    return "scratch_bytes" if cause.errno == errno.EFBIG else None
