"""A line between two processes of one server: packets of a unix socket, with descriptors beside them."""

from __future__ import annotations

import os
import socket
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

_PACKET_BYTES: Final = 64 << 10
_MAX_DESCRIPTORS: Final = 32


def line_ends() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a new line."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (near, far):
        end.settimeout(0)
    return near, far


class Line:
    """One end, in an event loop. What is sent arrives whole and in order, or the line is lost."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        end: socket.socket,
        on_packet: Callable[[bytes, list[int]], None],
        on_lost: Callable[[], None],
    ) -> None:
        """Begin to listen.

        Args:
            end: ours, non-blocking; closed by `close`.
            on_packet: given each packet and its descriptors, which are then the callee's to close.
            on_lost: called once, when the other end is gone.
        """
        self._loop = loop
        self._end = end
        self._on_packet = on_packet
        self._on_lost = on_lost
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        loop.add_reader(end.fileno(), self._readable)

    def send(self, packet: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send a packet; the descriptors are given away: closed here once they are on their way."""
        self._unsent.append((packet, list(descriptors)))
        if len(self._unsent) == 1:
            self._write()

    def close(self) -> None:
        """Hang up."""
        if self._end.fileno() < 0:
            return
        self._loop.remove_reader(self._end.fileno())
        self._loop.remove_writer(self._end.fileno())
        self._end.close()
        for _, descriptors in self._unsent:
            _close_all(descriptors)
        self._unsent.clear()

    def _write(self) -> None:
        while self._unsent:
            packet, descriptors = self._unsent[0]
            try:
                socket.send_fds(self._end, [packet], descriptors)
            except BlockingIOError:
                self._loop.add_writer(self._end.fileno(), self._writable)
                return
            except OSError:
                return  # the reader is told
            self._unsent.popleft()
            _close_all(descriptors)

    def _writable(self) -> None:
        self._loop.remove_writer(self._end.fileno())
        self._write()

    def _readable(self) -> None:
        while self._end.fileno() >= 0:
            try:
                packet, descriptors, flags, _ = socket.recv_fds(
                    self._end, _PACKET_BYTES, _MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            except OSError:
                packet, descriptors, flags = b"", [], 0
            if not packet or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                _close_all(descriptors)
                self.close()
                self._on_lost()
                return
            self._on_packet(packet, descriptors)


def _close_all(descriptors: Sequence[int]) -> None:
    for fd in descriptors:
        os.close(fd)
