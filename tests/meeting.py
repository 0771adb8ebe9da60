"""Where tests and confined tasks meet: on loopback, for nobody sees a task's files. Nothing waits for time to pass.

The policy must open the network to such tasks. Each is process 1 of a namespace, so it tells which process it is by a
name that is seen from outside.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from secfarm import Future, Kernel

MEET_S: Final = 60.0  # a bound for what should take milliseconds
NETWORK: Final = "[grant.confine]\nnetwork = true\n"  # for the last grant of a policy
_BARRIER: Final = "="


class _Listener:
    """Hears lines, those of one connection in their order."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self._changed = threading.Condition()
        self._silent: set[socket.socket] = set()  # that have said nothing yet
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name=type(self).__name__, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.getsockname()[1])

    def _serve(self) -> None:
        with self._selector:
            with contextlib.suppress(OSError):  # the server's socket is shut down
                while True:
                    self._take(None)
            for key in list(self._selector.get_map().values()):
                if isinstance(key.fileobj, socket.socket):
                    key.fileobj.close()

    def _take(self, within_s: float | None) -> bool:
        """Hear what there is; return whether there was something."""
        ready = self._selector.select(within_s)
        for key, _ in ready:
            if key.fileobj is self._server:
                line, _ = self._server.accept()
                self._silent.add(line)
                self._selector.register(line, selectors.EVENT_READ, bytearray())
            elif isinstance(key.fileobj, socket.socket):
                self._hear(key.fileobj, key.data)
        return bool(ready)

    def _hear(self, line: socket.socket, text: bytearray) -> None:
        if line.fileno() < 0:
            return  # a barrier has heard it out meanwhile
        piece = b""
        try:
            piece = line.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return  # the same
        except OSError:  # the task was killed
            pass
        text += piece
        if not piece:
            self._selector.unregister(line)
            line.close()
        elif text.endswith(b"\n"):
            self._silent.discard(line)
            said = text.decode().removesuffix("\n")
            text.clear()
            self._heard(said, line)

    def _heard(self, text: str, line: socket.socket) -> None:
        raise NotImplementedError

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join(MEET_S)


# --- gates: tasks that stop until they are let through ------------------------------------------------------------


def pass_gate(host: str, port: int, tag: object) -> object:
    """Say that we run, as which process, and go on when we may. A task."""
    import ctypes
    import os
    import socket

    name = os.urandom(7).hex()
    ctypes.CDLL(None).prctl(15, name.encode(), 0, 0, 0)  # PR_SET_NAME
    with socket.create_connection((host, port)) as line:
        line.sendall(f"{name} {tag}\n".encode())
        line.recv(1)
    return tag


class Gate(_Listener):
    """A place where tasks wait for the test."""

    def __init__(self) -> None:
        self._came: deque[tuple[str, int]] = deque()
        self._standing: deque[socket.socket] = deque()
        self._permits = 0
        super().__init__()

    def arguments(self, tag: object) -> tuple[str, int, object]:
        """What `pass_gate` wants."""
        return "127.0.0.1", self.port, tag

    def hold(self, kernel: Kernel, tag: object = 0) -> Future[object]:
        """Submit a task that stops at the gate; its result is `tag`."""
        return kernel.submit(pass_gate, *self.arguments(tag))

    def _heard(self, text: str, line: socket.socket) -> None:
        self._selector.unregister(line)
        name, _, tag = text.partition(" ")
        pid = _process_named(name)
        with self._changed:
            self._came.append((tag, pid))
            self._standing.append(line)
            self._let_through()
            self._changed.notify_all()

    def wait(self, count: int = 1) -> list[tuple[str, int]]:
        """Wait until `count` more tasks stand at the gate; return the tag and the process id of each."""
        with self._changed:
            came = self._changed.wait_for(lambda: len(self._came) >= count, MEET_S)
            assert came, f"{len(self._came)} of {count} tasks came to the gate"
            return [self._came.popleft() for _ in range(count)]

    def next(self) -> int:
        """Wait until one more task stands at the gate; return its process id."""
        return self.wait()[0][1]

    def has_come(self) -> bool:
        """Whether a task has come that nobody waited for."""
        return bool(self._came)

    def open(self, count: int = 1) -> None:
        """Let `count` tasks through, those that come later included."""
        with self._changed:
            self._permits += count
            self._let_through()

    def _let_through(self) -> None:
        while self._permits and self._standing:
            with self._standing.popleft() as line:
                if not _is_over(line):
                    self._permits -= 1
                    line.sendall(b".")

    def close(self) -> None:
        """Let everybody through and forget the gate."""
        self.open(1000)
        super().close()


def mark_process() -> str:
    """Return what this worker answers each time, and no other. A task."""
    import os
    import sys

    return vars(sys).setdefault("mark", os.urandom(8).hex())  # type: ignore[no-any-return]


def _is_over(line: socket.socket) -> bool:
    """Whether the task was killed."""
    try:
        return line.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _process_named(name: str) -> int:
    """Return the process id of the process that gave itself this name; 0: it is gone."""
    for path in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if path.read_text().rstrip("\n") == name:
                return int(path.parent.name)
    return 0


def is_heard(port: int) -> bool:
    """Whether anybody listens there: the gate is not closed. A task."""
    import socket

    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


# --- counting -----------------------------------------------------------------------------------------------------


def note(port: int, line: object) -> object:
    """Leave a line with the test, and return it. It is there even if we are killed at once: loopback does not wait."""
    import socket
    import sys

    lines = vars(sys).setdefault("lines", {})  # a connection for each task would take longer than all else
    if port in lines:
        try:
            lines[port].recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            del lines[port]  # it was another test's, which is over
        except BlockingIOError:
            pass
    if port not in lines:
        lines[port] = socket.create_connection(("127.0.0.1", port))
    lines[port].sendall(f"{line}\n".encode())
    return line


class Notes(_Listener):
    """What tasks leave with `note(notes.port, line)`: nothing is missing that one said before it was killed."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        super().__init__()

    def _heard(self, text: str, line: socket.socket) -> None:
        if text == _BARRIER:
            while self._take(0):  # what others said before
                pass
            line.sendall(b".")
        else:
            self._lines += text.split("\n")

    def lines(self) -> list[str]:
        """In the order in which they came; an empty one is of somebody who came and said nothing."""
        with socket.create_connection(("127.0.0.1", self.port)) as line:
            line.sendall(f"{_BARRIER}\n".encode())
            line.recv(1)
        return [*self._lines, *[""] * len(self._silent)]

    def numbers(self) -> list[int]:
        """In the order in which they came."""
        return [int(line) for line in self.lines() if line]
