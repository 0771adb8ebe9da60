"""Standard input and output as one connection: what `secfarm serve --stdio` serves, started by sshd.

Two threads carry bytes between the descriptors, which may be pipes, and a socket, which TLS can be put on. Nothing else
of this process can write into the stream afterwards.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from typing import Final

from secfarm.disk.guard import write_all

_PIECE_BYTES: Final = 1 << 18
_LAST_WORDS_S: Final = 5.0


class StdioLine:
    """The connection over descriptors 0 and 1.

    Attributes:
        socket: for a transport to take over.
    """

    def __init__(self) -> None:
        """Take the descriptors over; 0 reads nothing and 1 is standard error from here on."""
        self.socket, self._far = socket.socketpair()
        self._in, self._out = os.dup(0), os.dup(1)
        for descriptor in (self._in, self._out):
            os.set_blocking(descriptor, True)
        nowhere = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nowhere, 0)
        os.close(nowhere)
        os.dup2(2, 1)
        self._sending = threading.Thread(target=self._send, name="stdout", daemon=True)
        self._sending.start()
        threading.Thread(target=self._receive, name="stdin", daemon=True).start()

    def _receive(self) -> None:
        with contextlib.suppress(OSError):
            while data := os.read(self._in, _PIECE_BYTES):
                self._far.sendall(data)
        with contextlib.suppress(OSError):
            self._far.shutdown(socket.SHUT_WR)

    def _send(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._far.recv(_PIECE_BYTES):
                write_all(self._out, data)
        os.close(self._out)
        with contextlib.suppress(OSError):
            self._far.shutdown(socket.SHUT_RD)

    def finish(self) -> None:
        """Return when what was said last has been written."""
        self.socket.close()
        self._sending.join(_LAST_WORDS_S)
