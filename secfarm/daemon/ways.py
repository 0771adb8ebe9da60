"""The ways into a server: a door and the hubs it dials, in this process or in a gate of its own.

In a gate (daemon/gate.py) TLS ends, and the clear bytes of each connection come here on a socket of their own; who is
at its other end is proven here, over the certificate that the gate showed or saw.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from functools import partial
from typing import TYPE_CHECKING, Protocol

from secfarm.daemon.dialler import Dialler
from secfarm.daemon.passage import (
    Arrived,
    Connected,
    Opened,
    Present,
    Proven,
    Refused,
    Shut,
    TurnedAway,
    decode_from_gate,
    encode,
)
from secfarm.errors import ProtocolError
from secfarm.limits import HANDSHAKE_TIMEOUT_S
from secfarm.net.certificates import listening
from secfarm.net.line import Line
from secfarm.net.listen import Door
from secfarm.net.tls import acceptor_context
from secfarm.wire.address import parse_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from secfarm.auth.base import PeerCertificate
    from secfarm.auth.tls import TlsIdentity
    from secfarm.net.pump import Connection
    from secfarm.wire.address import Address


class Host(Protocol):
    """What a way in needs of its server."""

    identity: TlsIdentity | None  # the site's certificate; None: one made for the occasion

    def connection(
        self,
        certificate: bytes,
        dialled: Address | None,
        channel: bytes | None = None,
        verified: PeerCertificate | None = None,
    ) -> Connection:
        """Return the protocol object for one connection (see `Server.connection`)."""

    def turned_away(self, source: str, error: Exception) -> None:
        """Write down who did not get in."""


class Ways(Protocol):
    """All ways into one server."""

    def close(self) -> None:
        """Accept and dial no more; sessions live on."""

    def connected(self) -> list[str]:
        """The hubs that there is a session with."""


class OwnWays:
    """Ways in this process."""

    def __init__(self, host: Host, sockets: Iterable[socket.socket], dial: Iterable[Address]) -> None:
        """Accept and dial from now on."""
        identity = host.identity
        context, certificate = acceptor_context() if identity is None else listening(identity)
        self._door = Door(context, partial(host.connection, certificate, None), host.turned_away)
        for sock in sockets:
            self._door.open(sock)
        self.take = self._door.take
        self._diallers = [
            Dialler(address, partial(host.connection, b"", address), host.turned_away)
            for address in dict.fromkeys(dial)
        ]

    def close(self) -> None:
        """Accept and dial no more; sessions live on."""
        self._door.close()
        for dialler in self._diallers:
            dialler.close()

    def connected(self) -> list[str]:
        """The hubs that there is a session with."""
        return [str(dialler.address) for dialler in self._diallers if dialler.connected]


class GateWays:
    """Ways through a gate, which may end and be replaced: `attach` is told of the new one."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._line: Line | None = None
        self._certificate = b""
        self._connected: list[str] = []
        self._closed = False
        self._joining: set[asyncio.Task[None]] = set()
        self._reasons: dict[str, str] = {}  # hub -> why the last attempt to dial in failed

    def attach(self, end: socket.socket, on_open: Callable[[], None]) -> None:
        """Serve what comes through the gate at the other end of this line."""
        self._detach()
        self._line = Line(self._loop, end, partial(self._packet, on_open), self._detach)
        self._line.send(encode(Present(self._host.identity)))

    def close(self) -> None:
        """Let the gate accept and dial no more; sessions live on."""
        self._closed = True
        if self._line is not None:
            self._line.send(encode(Shut()))

    def connected(self) -> list[str]:
        """The hubs that there is a session with."""
        return list(self._connected)

    def _detach(self) -> None:
        if self._line is not None:
            self._line.close()
        self._line = None
        self._connected = []

    def _packet(self, on_open: Callable[[], None], packet: bytes, descriptors: list[int]) -> None:
        match decode_from_gate(packet):
            case Opened(certificate):
                self._certificate = certificate
                on_open()
                if self._closed:
                    self.close()
            case Arrived() as arrived if len(descriptors) == 1:
                stream = socket.socket(fileno=descriptors.pop())
                task = self._loop.create_task(self._join(arrived, stream))
                self._joining.add(task)
                task.add_done_callback(self._joining.discard)
            case TurnedAway(source, reason):
                self._host.turned_away(source, ProtocolError(reason))
            case Connected(addresses):
                self._connected = list(addresses)
            case _:
                pass
        for fd in descriptors:
            os.close(fd)

    async def _join(self, arrived: Arrived, stream: socket.socket) -> None:
        dialled = parse_address(arrived.dialled) if arrived.dialled else None
        connection = self._host.connection(self._certificate, dialled, arrived.certificate, arrived.verified)
        line = self._line
        stream.settimeout(0)
        await self._loop.create_connection(lambda: connection, sock=stream)
        answer: Proven | Refused = Refused(arrived.number)
        try:
            async with asyncio.timeout(arrived.since_s + HANDSHAKE_TIMEOUT_S - time.monotonic()):
                await asyncio.shield(connection.ready)
            answer = Proven(arrived.number)
            self._reasons.pop(arrived.dialled, None)
        except TimeoutError:
            error = ProtocolError(f"no proof within {HANDSHAKE_TIMEOUT_S:g} s; the connection was closed")
            self._turn_away(arrived, error)
            connection.fail(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the peer was not proven
            self._turn_away(arrived, error)
            connection.abort_soon()
        finally:
            if line is not None and line is self._line:
                line.send(encode(answer))

    def _turn_away(self, arrived: Arrived, error: Exception) -> None:
        """Write it down; of a hub only what is new, for we dial it for ever."""
        if arrived.dialled and self._reasons.get(arrived.dialled) == str(error):
            return
        if arrived.dialled:
            self._reasons[arrived.dialled] = str(error)
        self._host.turned_away(arrived.source, error)
