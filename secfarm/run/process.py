"""One worker process as its pool sees it: the pipes, the queue in them, and how it ends.

Sends calls, reads reports, takes calls back, kills. Knows nothing of sessions or of whose the calls are.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from fcntl import F_SETPIPE_SZ, fcntl
from typing import TYPE_CHECKING, Final

from secfarm.errors import ProtocolError
from secfarm.limits import MAX_VALUE_BYTES
from secfarm.run.pipe import LENGTH, PACKET_BYTES, decode_report, decode_run, encode_run

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

    from secfarm.run.cradle import Cradle, Exit, Terms
    from secfarm.run.pipe import Run
    from secfarm.task.outcome import Report

_PIPE_BYTES: Final = 1 << 20  # /proc/sys/fs/pipe-max-size for ordinary users: 256 packets
_MAX_REPORT_BYTES: Final = MAX_VALUE_BYTES + (64 << 20)  # a result, and what was printed
_READ_BYTES: Final = 1 << 20


class WorkerProcess:
    """A worker: `send` calls to it, get `on_report` for each report and `on_exit` once when it is gone.

    `take_back` may still be called from within `on_exit`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        cradle: Cradle,
        terms: Terms,
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
        self._unsent: deque[memoryview] = deque()
        self._received = bytearray()
        self._open = True
        self._child = cradle.start(requests_read, results_write, terms, self._gone)
        loop.add_reader(self._results_read, self._readable)

    @property
    def pid(self) -> int | None:
        """Process id, once there is one."""
        return self._child.pid

    def cpu_s(self) -> float:
        """Processor time that it has used; 0 once that cannot be known."""
        return self._child.cpu_s()

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

    def _gone(self, how: Exit) -> None:
        """The process has exited: its last reports are read, then it is over."""
        self._drain()
        self._deafen()
        self._on_exit(self, how)
        for fd in (self._requests_write, self._requests_back, self._results_read):
            os.close(fd)

    def _deafen(self) -> None:
        """Take no more reports and send nothing more."""
        self._open = False
        self._unsent.clear()
        self._loop.remove_reader(self._results_read)
        self._loop.remove_writer(self._requests_write)

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
                with memoryview(received)[start + LENGTH.size : end] as body:
                    report = decode_report(body)
                start = end
                yield report
        finally:
            del received[:start]

    def hold(self) -> None:
        """Stop the process where it stands, if that can be done at once, and take its last reports.

        What it has read and not reported is then known for certain, until `release` or `kill`.
        """
        if self._open:
            self._child.stop()
            self._drain()

    def hear(self) -> None:
        """Take the reports that have come."""
        self._drain()

    def release(self) -> None:
        """Let a process that was held, or is about to stop, go on."""
        if self._open:
            self._child.go()

    def kill(self) -> None:
        """End the process, and what it started, now; `on_exit` follows after its last reports."""
        self._child.kill()

    def end(self) -> None:
        """End the process now, whatever it still wanted to report; `on_exit` is called once it is gone."""
        if self._open:
            self._deafen()
            self._child.end()
