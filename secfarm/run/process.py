"""One worker process as its pool sees it: the pipes, the queue in them, and how it ends.

Sends calls, reads reports, takes calls back, kills. Knows nothing of sessions or of whose the calls are.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections import deque
from dataclasses import dataclass
from fcntl import F_SETPIPE_SZ, fcntl
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from secfarm.errors import ProtocolError
from secfarm.limits import MAX_VALUE_BYTES
from secfarm.run.pipe import LENGTH, PACKET_BYTES, decode_report, decode_run, encode_run

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

    from secfarm.run.pipe import Run
    from secfarm.task.outcome import Report

_PIPE_BYTES: Final = 1 << 20  # /proc/sys/fs/pipe-max-size for ordinary users: 256 packets
_HOLD_S: Final = 0.1  # stopping takes some microseconds; on a busy machine the process must get its turn first
_MAX_REPORT_BYTES: Final = MAX_VALUE_BYTES + (64 << 20)  # a result, and what was printed
_READ_BYTES: Final = 1 << 20
_STOPPED_WITHIN_S: Final = 1.0

# The directories that hold secfarm and msgspec: `python -I` sees no PYTHONPATH, no user site and no current directory,
# so a package that was found through one of those is named to the worker, and nothing else is.
_PATHS: Final = sorted({str(Path(__file__).parents[2]), str(Path(str(msgspec.__file__)).parents[1])})
_BOOT: Final = (
    "import os, sys; paths = sys.argv[3:]; sys.path[:0] = paths;"
    "from secfarm.run.worker import main;"  # this tree's, whatever else is installed
    "sys.path[:] = [*sys.path[len(paths):], *(p for p in paths if p not in sys.path[len(paths):])];"
    "main(int(sys.argv[1]), int(sys.argv[2]), os.open('/proc/self/statm', os.O_RDONLY | os.O_CLOEXEC))"
)


@dataclass(slots=True)
class Exit:
    """How a worker process ended: by a signal, or by itself with a status."""

    signal: int | None
    status: int | None

    def __str__(self) -> str:
        if self.signal is None:
            return f"it exited with status {self.status}"
        try:
            return f"it was ended by {signal.Signals(self.signal).name}"
        except ValueError:
            return f"it was ended by signal {self.signal}"


class WorkerProcess:
    """A worker: `send` calls to it, get `on_report` for each report and `on_exit` once when it is gone.

    `take_back` may still be called from within `on_exit`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_report: Callable[[WorkerProcess, Report], None],
        on_exit: Callable[[WorkerProcess, Exit], None],
    ) -> None:
        """Start the process; returns before it is warm, calls may be sent at once."""
        self._loop = loop
        self._on_report = on_report
        self._on_exit = on_exit
        requests_read, self._requests_write = os.pipe2(os.O_DIRECT | os.O_CLOEXEC)
        self._results_read, results_write = os.pipe2(os.O_CLOEXEC)
        # A description of its own, so that O_NONBLOCK is this end's and not the worker's too.
        self._requests_back = os.open(f"/proc/self/fd/{requests_read}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        for fd in (self._requests_write, self._results_read):
            with contextlib.suppress(PermissionError):  # over the user's pipe-user-pages-soft: smaller, so slower
                fcntl(fd, F_SETPIPE_SZ, _PIPE_BYTES)
            os.set_blocking(fd, False)
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", _BOOT, str(requests_read), str(results_write), *_PATHS],
            env={},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            pass_fds=(requests_read, results_write),
            start_new_session=True,  # a Ctrl-C on the server's terminal is the server's, not the task's
        )
        os.close(requests_read)
        os.close(results_write)
        self._unsent: deque[memoryview] = deque()
        self._received = bytearray()
        self._open = True
        # The end of the results pipe is not enough: a process that the task forked may hold it open.
        self._pidfd = os.pidfd_open(self._process.pid)
        loop.add_reader(self._pidfd, self._gone)
        loop.add_reader(self._results_read, self._readable)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def send(self, run: Run) -> bool:
        """Send a call; return whether it fits one packet, so that others may be queued behind it."""
        data = encode_run(run)
        if not self._unsent:
            try:
                sent = os.write(self._requests_write, data)
            except BlockingIOError:
                sent = 0
            if sent == len(data):
                return sent <= PACKET_BYTES
            self._loop.add_writer(self._requests_write, self._writable)
            self._unsent.append(memoryview(data)[sent:])
        else:
            self._unsent.append(memoryview(data))
        return False

    def _writable(self) -> None:
        while self._unsent:
            view = self._unsent[0]
            try:
                sent = os.write(self._requests_write, view)
            except BlockingIOError:
                return
            if sent < len(view):
                self._unsent[0] = view[sent:]
                return
            self._unsent.popleft()
        self._loop.remove_writer(self._requests_write)

    def take_back(self) -> set[int]:
        """Return the numbers of the calls that the worker had not read, one a packet: it will never see them.

        It may read one in the middle of this, so these need not be the last that were sent.
        """
        taken: set[int] = set()
        with contextlib.suppress(BlockingIOError):
            while packet := os.read(self._requests_back, PACKET_BYTES):
                taken.add(decode_run(packet[LENGTH.size :]).number)
        return taken

    def _readable(self) -> bool:
        """Take what is in the results pipe; return whether there was something."""
        try:
            data = os.read(self._results_read, _READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self.end()
            return False
        self._received += data
        try:
            for report in self._reports():
                self._on_report(self, report)
        except ProtocolError:
            self.end()
        return True

    def _gone(self) -> None:
        """The process has exited: its last reports are read, then it is over."""
        self._drain()
        self.end()

    def _drain(self) -> None:
        while self._open and self._readable():
            pass

    def _reports(self) -> Iterator[Report]:
        received, start = self._received, 0
        try:
            while len(received) - start >= LENGTH.size:
                (size,) = LENGTH.unpack_from(received, start)
                if size > _MAX_REPORT_BYTES:
                    raise ProtocolError(f"a worker announced a report of {size} bytes; the worker is ended")
                end = start + LENGTH.size + size
                if len(received) < end:
                    return
                body = bytes(received[start + LENGTH.size : end])
                start = end
                yield decode_report(body)
        finally:
            del received[:start]

    def hold(self) -> bool:
        """Stop the process where it stands and take its last reports; return whether it stands still.

        What it has read and not reported is then known for certain, until `release` or `kill`.
        """
        if not self._open:
            return False
        os.kill(self._process.pid, signal.SIGSTOP)
        deadline_s = self._loop.time() + _HOLD_S
        while os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            if self._loop.time() > deadline_s:
                return False  # in an uninterruptible sleep of the kernel
            os.sched_yield()
        self._drain()
        return self._open

    def release(self) -> None:
        """Let a process that was held go on."""
        if self._open:
            os.kill(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End the process, and what it forked into its process group, now; `on_exit` follows after its last reports."""
        if self._open:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def end(self) -> None:
        """End the process now, whatever it still wanted to report, and tell `on_exit`."""
        if not self._open:
            return
        self.kill()
        self._open = False
        for fd in (self._results_read, self._pidfd):
            self._loop.remove_reader(fd)
        self._loop.remove_writer(self._requests_write)
        status = self._process.wait()
        self._on_exit(self, Exit(-status, None) if status < 0 else Exit(None, status))
        for fd in (self._requests_write, self._requests_back, self._results_read, self._pidfd):
            os.close(fd)
