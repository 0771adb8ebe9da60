"""Two sessions and the stream between them, as the tests of wire need it: every mechanism, both dialling directions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from secfarm.auth import Auth, Ed25519AuthClient, Ed25519AuthServer, End, SharedSecretAuth, Side
from secfarm.errors import SecfarmError
from secfarm.wire.messages import Message, Welcome
from secfarm.wire.session import Established, Session
from tests.auth.people import ADA, ADA_SECRET, ADDRESS, BOB_SECRET, NOW_S, SERVER, SERVER_NAME, known_servers, store

CERTIFICATE: Final = b"certificate of the acceptor"
WELCOME: Final = Welcome(SERVER_NAME, "3.11.2", 4, 1000)
MECHANISMS: Final = ("shared-secret", "ed25519")

ADA_AUTHS: Final[dict[str, Auth]] = {
    "shared-secret": SharedSecretAuth(ADA_SECRET),
    "ed25519": Ed25519AuthClient(ADA, known_servers()),
}
SERVER_AUTHS: Final[dict[str, Auth]] = {
    "shared-secret": SharedSecretAuth(BOB_SECRET, ADA_SECRET),
    "ed25519": Ed25519AuthServer(SERVER, store()),
}


def session(
    side: Side,
    end: End,
    auths: dict[str, Auth],
    *,
    certificate: bytes = CERTIFICATE,
    nonce: bytes | None = None,
    welcome: Welcome | None = WELCOME,
    name: str = SERVER_NAME,
) -> Session:
    """A session with the tests' usual facts."""
    return Session(
        end=end,
        side=side,
        auths=auths,
        nonce=nonce or (b"c" if side is Side.CLIENT else b"s") * 32,
        certificate=certificate,
        address=ADDRESS if end is End.INITIATOR else "",
        name=name if side is Side.SERVER else "ada's laptop",
        python_version="3.11.2",
        clock=lambda: NOW_S,
        welcome=welcome if side is Side.SERVER else None,
    )


def client_session(mechanism: str, end: End, *, auth: Auth | None = None, certificate: bytes = CERTIFICATE) -> Session:
    """Ada's."""
    return session(Side.CLIENT, end, {mechanism: auth or ADA_AUTHS[mechanism]}, certificate=certificate)


def server_session(
    end: End,
    auths: dict[str, Auth] | None = None,
    *,
    certificate: bytes = CERTIFICATE,
    welcome: Welcome | None = WELCOME,
) -> Session:
    """The server's, which takes every mechanism."""
    return session(Side.SERVER, end, auths or SERVER_AUTHS, certificate=certificate, welcome=welcome)


@dataclass
class Party:
    """A session and what it came to."""

    session: Session
    events: list[Message | Established] = field(default_factory=list)
    error: SecfarmError | None = None
    sent: bytes = b""

    def take(self, data: bytes, step: int) -> None:
        """Feed `data` in pieces of `step` bytes until the session fails."""
        for start in range(0, len(data), step):
            if self.error is None:
                try:
                    self.events += self.session.receive(data[start : start + step])
                except SecfarmError as error:
                    self.error = error

    def drain(self) -> bytes:
        """What it wants to send."""
        queued = self.session.outgoing()
        self.sent += queued
        return queued

    def cut(self) -> None:
        """The stream ends."""
        if self.error is None:
            try:
                self.session.receive_end()
            except SecfarmError as error:
                self.error = error


@dataclass
class Link:
    """A client, a server, and an optional attacker: `flips` is (side that sends, byte of its stream, mask)."""

    client: Party
    server: Party
    flip: tuple[Side, int, int] | None = None
    step: int = 1 << 20

    def pump(self) -> Link:
        """Carry bytes until nobody has more to say."""
        while True:
            to_server, to_client = self._from(self.client), self._from(self.server)
            if not to_server and not to_client:
                return self
            self.server.take(to_server, self.step)
            self.client.take(to_client, self.step)

    def _from(self, party: Party) -> bytes:
        start = len(party.sent)
        data = bytearray(party.drain())
        if self.flip is not None and self.flip[0] is party.session.side and 0 <= self.flip[1] - start < len(data):
            data[self.flip[1] - start] ^= self.flip[2]
        return bytes(data)


def link(client: Session, server: Session, *, flip: tuple[Side, int, int] | None = None, step: int = 1 << 20) -> Link:
    """Start both."""
    client.start()
    server.start()
    return Link(Party(client), Party(server), flip, step)


def ends(dialled_by: Side) -> tuple[End, End]:
    """The client's end and the server's."""
    return (End.INITIATOR, End.ACCEPTOR) if dialled_by is Side.CLIENT else (End.ACCEPTOR, End.INITIATOR)


def ready_pair(mechanism: str = "shared-secret", dialled_by: Side = Side.CLIENT) -> tuple[Session, Session]:
    """A client and a server that have proven each other and have nothing left to send."""
    client_end, server_end = ends(dialled_by)
    done = link(client_session(mechanism, client_end), server_session(server_end)).pump()
    return done.client.session, done.server.session
