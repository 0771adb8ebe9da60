"""The gate: the process that reads the network. It ends TLS and passes clear bytes on; it knows no key and no name.

What a connection says is judged by the keeper, which tells the gate whom it believes: for penalties, and so that who
is silent does not stay.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import resource
import socket
from functools import partial
from typing import TYPE_CHECKING, Final

from secfarm.daemon.dialler import Dialler
from secfarm.daemon.passage import (
    GATE,
    Arrived,
    Connected,
    FromGate,
    Listen,
    Opened,
    Present,
    Proven,
    Refused,
    Shut,
    TurnedAway,
    decode_listen,
    decode_to_gate,
    encode,
)
from secfarm.net.certificates import listening
from secfarm.net.line import Line
from secfarm.net.listen import Door
from secfarm.net.relay import Relay, UnprovenError
from secfarm.net.tls import acceptor_context
from secfarm.wire.address import parse_address

if TYPE_CHECKING:
    from collections.abc import Callable

    from secfarm.auth.base import PeerCertificate
    from secfarm.wire.address import Address

_MARGIN_S: Final = 0.5
ROLE: Final = GATE


class Gate:
    """The state of this process."""

    def __init__(self, supervisor: socket.socket, keeper: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Event = asyncio.Event()
        self._numbers = itertools.count(1)
        self._unproven: dict[int, Relay] = {}
        self._diallers: list[Dialler] = []
        self._door: Door | None = None
        self._keeper = Line(self._loop, keeper, self._told, self.ended.set)
        self._supervisor = Line(self._loop, supervisor, self._listen, self.ended.set)
        self._present: Present | None = None
        self._listening: tuple[Listen, list[int]] | None = None

    def _listen(self, packet: bytes, descriptors: list[int]) -> None:
        self._listening = decode_listen(packet), descriptors
        self._open()

    def _open(self) -> None:
        """Open the door once it is known where it is, and what is shown at it."""
        if self._listening is None or self._present is None or self._door is not None:
            return
        listen, descriptors = self._listening
        identity = self._present.identity
        context, certificate = acceptor_context() if identity is None else listening(identity)
        # The keeper's own deadline comes first: it has a word to say.
        self._door = Door(context, self._relay, self._turned_away, margin_s=_MARGIN_S)
        for fd in descriptors:
            sock = socket.socket(fileno=fd)
            sock.settimeout(0)
            self._door.open(sock)
        self._diallers = [
            Dialler(address, partial(self._relay, address), self._turned_away, self._tell_connected)
            for address in map(parse_address, listen.dial)
        ]
        self._tell(Opened(certificate))

    def _relay(self, dialled: Address | None = None) -> Relay:
        return Relay(partial(self._arrived, dialled))

    def _arrived(
        self,
        dialled: Address | None,
        relay: Relay,
        verified: PeerCertificate | None,
        certificate: bytes,
        stream: socket.socket,
    ) -> None:
        number = next(self._numbers)
        self._unproven[number] = relay
        relay.closed.add_done_callback(lambda _: self._unproven.pop(number, None))
        to = "" if dialled is None else str(dialled)
        self._tell(Arrived(number, to or relay.source, to, certificate, verified, relay.since_s), stream.detach())

    def _told(self, packet: bytes, descriptors: list[int]) -> None:
        for fd in descriptors:
            os.close(fd)
        match decode_to_gate(packet):
            case Proven(number):
                if (relay := self._unproven.pop(number, None)) is not None and not relay.ready.done():
                    relay.ready.set_result(None)
            case Refused(number):
                if (relay := self._unproven.pop(number, None)) is not None and not relay.ready.done():
                    relay.ready.set_exception(UnprovenError("the peer was not believed"))
            case Present() as present:
                self._present = present
                self._open()
            case Shut():
                if self._door is not None:
                    self._door.close()
                for dialler in self._diallers:
                    dialler.close()

    def _turned_away(self, source: str, error: Exception) -> None:
        if not isinstance(error, UnprovenError):
            self._tell(TurnedAway(source, str(error)))

    def _tell_connected(self) -> None:
        self._tell(Connected(tuple([str(dialler.address) for dialler in self._diallers if dialler.connected])))

    def _tell(self, message: FromGate, *descriptors: int) -> None:
        self._keeper.send(encode(message), descriptors)


async def _serve(supervisor: socket.socket, keeper: socket.socket) -> None:
    await Gate(supervisor, keeper).ended.wait()


def main(supervisor: int, keeper: int, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None) -> None:
    """Pass bytes until the supervisor or the keeper is gone."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # two descriptors a connection
    ends = [socket.socket(fileno=fd) for fd in (supervisor, keeper)]
    for end in ends:
        end.settimeout(0)
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(_serve(*ends))
