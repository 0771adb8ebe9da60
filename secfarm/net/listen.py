"""Listening: accept sockets and unix sockets, with a bound on who may stand at the door.

A connection has `HANDSHAKE_TIMEOUT_S` from accept to a proven name, however slowly bytes trickle in; each waits on its
own, so a silent client keeps nobody else waiting. Who fills the door is turned away before TLS costs anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import stat
import struct
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from secfarm.errors import AuthError, ConfigError, ProtocolError
from secfarm.limits import HANDSHAKE_TIMEOUT_S, MAX_UNAUTHENTICATED, MAX_UNAUTHENTICATED_PER_SOURCE
from secfarm.net.penalty import Penalties
from secfarm.wire.address import Address, SshAddress, TcpAddress, UnixAddress, parse_address
from secfarm.wire.messages import Goodbyes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from secfarm.net.stream import Stream


def open_sockets(addresses: Iterable[Address]) -> list[socket.socket]:
    """Return a listening socket on each address: all of them, or none.

    Raises:
        ConfigError: one is taken, or not ours.
    """
    sockets: list[socket.socket] = []
    try:
        for address in addresses:
            sockets.append(open_socket(address))  # noqa: PERF401 - those opened so far are closed when one fails
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def open_socket(address: Address) -> socket.socket:
    """Return a listening socket on `address`.

    Raises:
        ConfigError: it is taken, not ours, or an address of ssh.
    """
    if isinstance(address, SshAddress):
        raise ConfigError(f"cannot listen on {address}: ssh itself starts `secfarm serve --stdio` there")
    try:
        return _open_unix(address.path) if isinstance(address, UnixAddress) else _open_tcp(address)
    except OSError as error:
        message = f"cannot listen on {address}: {error.strerror or error}; nothing was started"
        raise ConfigError(message) from error


def _open_tcp(address: TcpAddress) -> socket.socket:
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, where = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
        sock.listen(128)
    except OSError:
        sock.close()
        raise
    sock.settimeout(0)
    return sock


def _open_unix(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if stat.S_ISSOCK(Path(path).lstat().st_mode) and sock.connect_ex(path) == errno.ECONNREFUSED:
            Path(path).unlink()  # left by a server that is gone
            sock.close()
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except FileNotFoundError:
        pass
    try:
        before = os.umask(0o177)
        try:
            sock.bind(path)
        finally:
            os.umask(before)
        sock.listen(128)
    except OSError:
        sock.close()
        raise
    sock.settimeout(0)
    return sock


def local_address(sock: socket.socket) -> Address:
    """Return the address that `sock` listens on, with the port that the system chose."""
    where = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return UnixAddress(where)
    host = f"[{where[0]}]" if sock.family == socket.AF_INET6 else where[0]
    return parse_address(f"{host}:{where[1]}")


class Door:
    """Accepts on several sockets and hands each connection over once its session is ready."""

    def __init__(
        self,
        context: ssl.SSLContext,
        make: Callable[[], Stream],
        log: Callable[[str, Exception], None],
        *,
        margin_s: float = 0.0,
        removes: bool = True,
    ) -> None:
        """Prepare; `open` starts.

        Args:
            context: TLS, acceptor's.
            make: returns the protocol object for one new connection.
            log: told where a connection came from and why it did not become a session.
            removes: the files of unix sockets when it closes; else they are somebody else's to remove.
            margin_s: what a connection may stay longer, because somebody else turns it away at the usual time.
        """
        self._context = context
        self._margin_s = margin_s
        self._removes = removes
        self._make = make
        self._log = log
        self._sockets: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: Counter[str] = Counter()
        self._penalties = Penalties()
        self._accepting: list[asyncio.Task[None]] = []

    def open(self, sock: socket.socket) -> None:
        """Accept connections on `sock` from now on."""
        self._sockets.append(sock)
        self._accepting.append(asyncio.get_running_loop().create_task(self._accept(sock)))

    async def take(self, peer: socket.socket) -> None:
        """Let in one connection that came otherwise; return once it is a session, or was turned away."""
        source = source_of(peer)
        self._waiting[source] += 1
        await self._take(peer, source)

    def close(self) -> None:
        """Accept no more; connections that stand at the door are turned away, sessions live on."""
        for task in (*self._accepting, *self._tasks):
            task.cancel()
        for sock in self._sockets:
            if self._removes and sock.family == socket.AF_UNIX:
                with contextlib.suppress(OSError):
                    Path(sock.getsockname()).unlink(missing_ok=True)
            sock.close()
        self._sockets.clear()

    async def _accept(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                peer, _ = await loop.sock_accept(sock)
            except OSError as error:  # out of descriptors, or the peer is gone already
                self._log("accept", error)
                await asyncio.sleep(0.05)
                continue
            source = source_of(peer)
            if not self._penalties.is_open(source, loop.time()):
                peer.close()
                continue
            if self._waiting.total() >= MAX_UNAUTHENTICATED or self._waiting[source] >= MAX_UNAUTHENTICATED_PER_SOURCE:
                self._failed(source, AuthError("too many connections wait to be authenticated; this one was closed"))
                peer.close()
                continue
            self._waiting[source] += 1
            task = loop.create_task(self._take(peer, source))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _failed(self, source: str, error: Exception) -> None:
        """Log a connection that did not become a session, and hold it against its source: so the log is bounded too."""
        self._penalties.failed(source, asyncio.get_running_loop().time())
        self._log(source, error)

    async def _take(self, peer: socket.socket, source: str) -> None:
        connection = self._make()
        try:
            _check_uid(peer)
            if peer.family != socket.AF_UNIX:
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S + self._margin_s):
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: connection, peer, ssl=self._context, ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S
                )
                await asyncio.shield(connection.ready)
        except TimeoutError:
            error = ProtocolError(f"no proof within {HANDSHAKE_TIMEOUT_S:g} s; the connection was closed")
            self._failed(source, error)
            connection.fail(error)
            connection.abort_soon()
        except asyncio.CancelledError:  # the door closes
            connection.close(Goodbyes.SHUTDOWN)
            connection.abort_soon()
            raise
        except (OSError, AuthError, ProtocolError, ConfigError) as error:
            self._failed(source, _in_words(error))
            connection.abort_soon()
        finally:
            self._waiting[source] -= 1
            if not self._waiting[source]:
                del self._waiting[source]


def _in_words(error: Exception) -> Exception:
    if isinstance(error, ssl.SSLCertVerificationError):
        return AuthError(f"its certificate was not believed ({error.verify_message}); it was not let in")
    return error


def source_of(peer: socket.socket) -> str:
    """The name under which connections from one place are counted."""
    if peer.family == socket.AF_UNIX:
        return f"uid {_peer_uid(peer)}"
    try:
        return str(peer.getpeername()[0])
    except OSError:
        return "gone"


def _peer_uid(peer: socket.socket) -> int:
    _, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return int(uid)


def _check_uid(peer: socket.socket) -> None:
    if peer.family == socket.AF_UNIX and (uid := _peer_uid(peer)) not in {0, os.geteuid()}:
        raise AuthError(f"a process of user {uid} connected to a unix socket of user {os.geteuid()}; it was closed")
