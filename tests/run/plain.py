"""Workers without confinement, for tests of the pool itself: it makes no difference to it what starts them.

Each is a fresh `python -I` with an empty environment. No server has this.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import msgspec

from secfarm.run.cradle import Exit, Terms
from secfarm.run.profile import Openings

_HOLD_S: Final = 0.1  # stopping takes some microseconds; on a busy machine the process must get its turn first

# The directories that hold secfarm and msgspec: `python -I` sees no PYTHONPATH, no user site and no current directory,
# so a package that was found through one of those is named to the worker, and nothing else is.
_PATHS: Final = sorted({str(Path(__file__).parents[2]), str(Path(str(msgspec.__file__)).parents[1])})
_BOOT: Final = (
    "import os, sys; paths = sys.argv[3:]; sys.path[:0] = paths;"
    "from secfarm.run.worker import main;"  # this tree's, whatever else is installed
    "from secfarm.run.profile import Bounds;"
    "sys.path[:] = [*sys.path[len(paths):], *(p for p in paths if p not in sys.path[len(paths):])];"
    "main(int(sys.argv[1]), int(sys.argv[2]), os.open('/proc/self/statm', os.O_RDONLY | os.O_CLOEXEC), Bounds())"
)


class PlainCradle:
    """Starts each worker as a fresh `python -I` with an empty environment; not confined, whatever the terms say."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.confinement = "none"
        self._loop = loop
        self._children: set[PlainChild] = set()

    def expect(self, openings: Iterable[Openings]) -> None:
        """Nothing needs making ready."""

    async def ready(self) -> None:
        """Return at once."""

    def start(
        self, requests_read: int, results_write: int, terms: Terms, on_exit: Callable[[Exit], None]
    ) -> PlainChild:
        """Start a worker (see `Cradle`); the terms are not for workers that nothing confines."""
        del terms
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-c", _BOOT, str(requests_read), str(results_write), *_PATHS],
                env={},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                pass_fds=(requests_read, results_write),
                start_new_session=True,  # a Ctrl-C on the server's terminal is the server's, not the task's
            )
        finally:
            os.close(requests_read)
            os.close(results_write)

        def gone(how: Exit) -> None:
            self._children.discard(child)
            on_exit(how)

        child = PlainChild(self._loop, process, gone)
        self._children.add(child)
        return child

    def close(self) -> None:
        """End all workers."""
        for child in list(self._children):
            child.end()


class PlainChild:
    """A worker that is a child of this process, in a process group of its own."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, process: subprocess.Popen[bytes], on_exit: Callable[[Exit], None]
    ) -> None:
        self._loop = loop
        self._process = process
        self._on_exit = on_exit
        self._is_there = True
        # The end of the results pipe is not enough: a process that the task forked may hold it open.
        self._pidfd = os.pidfd_open(process.pid)
        loop.add_reader(self._pidfd, self.end)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def cpu_s(self) -> float:
        """Processor time of the worker and its threads."""
        with contextlib.suppress(OSError):
            return time.clock_gettime((~self.pid << 3) | 2)  # CPUCLOCK_SCHED, as in run/sealed.py
        return 0.0

    def stop(self) -> bool:
        """Stop it (see `Child`)."""
        if not self._is_there:
            return False
        os.kill(self.pid, signal.SIGSTOP)
        deadline_s = time.monotonic() + _HOLD_S
        while os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            if time.monotonic() > deadline_s:
                return False  # in an uninterruptible sleep of the kernel
            os.sched_yield()
        return True

    def go(self) -> None:
        """Let it go on."""
        if self._is_there:
            os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Kill the process and what it forked into its process group."""
        if self._is_there:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill it, wait for its end and tell of that."""
        if not self._is_there:
            return
        self.kill()
        self._is_there = False
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        status = self._process.wait()
        self._on_exit(Exit(-status, None) if status < 0 else Exit(None, status))
