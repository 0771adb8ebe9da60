"""What systemd gives a service and hears of it: listening sockets (sd_listen_fds(3)) and states (sd_notify(3)).

Both are found by variables, which are taken out of the environment: what is started later must not believe that they
are meant for it.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import time
from typing import TYPE_CHECKING, Final

from secfarm.errors import ConfigError
from secfarm.wire.address import parse_address

if TYPE_CHECKING:
    from collections.abc import MutableMapping

_FIRST: Final = 3  # SD_LISTEN_FDS_START
_MAX_SOCKETS: Final = 32  # that fit beside one packet of a line
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,9}")
_FAMILIES: Final = frozenset({socket.AF_INET, socket.AF_INET6, socket.AF_UNIX})
_TELL_WITHIN_S: Final = 1.0
_MAX_STATUS_CHARS: Final = 500
_log: Final = logging.getLogger("secfarm")


def given_sockets(environ: MutableMapping[str, str], pid: int) -> list[socket.socket]:
    """Return the sockets that were opened for us, in their order; where nothing was said, or to somebody else, none.

    Args:
        pid: ours.

    Raises:
        ConfigError: what was given is not what was said, or no listening socket of TCP or a unix path.
    """
    whose, many = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    for name in ("LISTEN_FDNAMES", "LISTEN_PIDFDID"):
        environ.pop(name, None)
    if not whose or not many:
        return []
    if _number("LISTEN_PID", whose) != pid:
        return []  # a process before us that did not clean up
    count = _number("LISTEN_FDS", many)
    if count > _MAX_SOCKETS:
        raise ConfigError(f"LISTEN_FDS={count}: at most {_MAX_SOCKETS} sockets are served; nothing was started")
    taken: list[socket.socket] = []
    try:
        for fd in range(_FIRST, _FIRST + count):
            taken.append(_taken(fd))
            _check(fd, taken[-1])
    except ConfigError:
        for sock in taken:
            sock.close()
        raise
    return taken


def _number(name: str, text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise ConfigError(f"{name}={text[:80]!r} is no such number; nothing was started. Unset it")
    return int(text)


def _taken(fd: int) -> socket.socket:
    """Return descriptor `fd` as a socket that is not inherited and does not block."""
    try:
        os.set_inheritable(fd, False)  # noqa: FBT003 the call has no names
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise _refused(fd, f"no socket ({error.strerror})") from error
    sock.settimeout(0)
    return sock


def _check(fd: int, sock: socket.socket) -> None:
    if sock.family not in _FAMILIES or sock.type != socket.SOCK_STREAM or sock.proto not in {0, socket.IPPROTO_TCP}:
        raise _refused(fd, "not of TCP or a unix stream")
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise _refused(fd, "not listening: the socket unit must say Accept=no")
    if sock.family == socket.AF_UNIX:
        try:
            parse_address(f"unix:{sock.getsockname()}", listening=True)
        except ValueError as error:
            raise _refused(fd, "a unix socket without an absolute path in printable letters") from error


def _refused(fd: int, what: str) -> ConfigError:
    return ConfigError(f"descriptor {fd}, given by LISTEN_FDS, is {what}; nothing was started")


class Notifier:
    """Tells the service manager how the service is, if there is one. What cannot be told is logged, and harms nothing.

    Source of the words: sd_notify(3). The kernel says who sends, so nobody else can speak for us.
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        """Take the address, which begins with / or, in the abstract space, with @."""
        self._address = environ.pop("NOTIFY_SOCKET", "")
        self._stopping = False

    def ready(self, status: str) -> None:
        """What was started, or read again, is in force."""
        if not self._stopping:
            self._tell("READY=1", status)

    def reloading(self) -> None:
        """Files are being read again; `ready` follows."""
        if not self._stopping:
            self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}", "reading files again")

    def stopping(self, status: str) -> None:
        """The end has begun; nothing else is told any more."""
        if not self._stopping:
            self._stopping = True
            self._tell("STOPPING=1", status)

    def _tell(self, state: str, status: str) -> None:
        if not self._address:
            return
        # A line end would begin another word, MAINPID for one.
        words = f"{state}\nSTATUS={ascii(status)[1:-1][:_MAX_STATUS_CHARS]}"
        try:
            if self._address[0] not in "/@":
                raise ValueError(f"NOTIFY_SOCKET={self._address[:80]!r} is neither a path nor an abstract name")
            where = os.fsencode(self._address)
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(_TELL_WITHIN_S)
                sock.sendto(words.encode(), b"\0" + where[1:] if where.startswith(b"@") else where)
        except (OSError, ValueError) as error:
            _log.warning("the service manager did not hear %r: %s", words, error)
