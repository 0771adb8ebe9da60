"""Steps that may wait are left to the caller: what comes meanwhile is held, bounded, and in its order afterwards."""

from __future__ import annotations

import pytest

from secfarm.auth import Auth, Mechanism, Peer, Side
from secfarm.auth.base import End
from secfarm.errors import AuthError, ProtocolError
from secfarm.limits import MAX_FRAME_BEFORE_AUTH_BYTES
from secfarm.wire.frames import encode_frame
from secfarm.wire.messages import Ping, Welcome, encode_message
from secfarm.wire.session import Established, Session
from tests.wire.link import session


class _Waiting(Mechanism):
    """One token each way; `fails` says what its step raises."""

    name = "waiting"
    blocking = True

    def __init__(self, side: Side, fails: Exception | None = None) -> None:
        self.side, self.fails = side, fails
        self.steps = 0

    @property
    def complete(self) -> bool:
        return self.peer is not None

    def step(self, token: bytes | None) -> bytes | None:
        self.steps += 1
        if self.fails is not None:
            raise self.fails
        if token is None:
            return b"hello"
        self.peer = Peer("somebody", "waiting")
        return b"welcome" if self.side is Side.SERVER else None


class Waiting(Auth):
    mechanism = "waiting"

    def __init__(self, fails: Exception | None = None) -> None:
        self.fails = fails
        self.made: list[_Waiting] = []

    def begin(self, *, side: Side, binding: bytes, address: str, now_s: float) -> Mechanism:
        self.made.append(_Waiting(side, self.fails))
        return self.made[-1]


def pair(server_auth: Auth | None = None, welcome: Welcome | None = None) -> tuple[Session, Session]:
    client = session(Side.CLIENT, End.INITIATOR, {"waiting": Waiting()})
    server = session(Side.SERVER, End.ACCEPTOR, {"waiting": server_auth or Waiting()}, welcome=welcome)
    for one in (client, server):
        one.defers = True
        one.start()
    return client, server


def carry(sender: Session, receiver: Session) -> list[object]:
    return receiver.receive(sender.outgoing())


def step(one: Session) -> list[object]:
    assert one.deferred is not None
    return one.resume(one.deferred())


def test_a_session_whose_steps_are_taken_elsewhere_becomes_ready() -> None:
    client, server = pair(welcome=Welcome("node1", "3.11.2", 1, 1))
    carry(client, server)
    assert carry(server, client) == []
    assert step(client) == []
    assert carry(client, server) == []
    assert [type(event) for event in step(server)] == [Established]
    assert carry(server, client) == []  # token and welcome; the step comes first
    assert not client.ready
    assert [type(event) for event in step(client)] == [Welcome]
    assert client.ready
    assert server.ready


def test_no_step_is_taken_before_the_caller_takes_it_and_none_twice() -> None:
    auth = Waiting()
    client, server = pair(auth)
    carry(client, server)
    carry(server, client)
    step(client)
    data = client.outgoing()
    for byte in data:
        server.receive(bytes([byte]))
    (mechanism,) = auth.made
    assert mechanism.steps == 0
    step(server)
    assert mechanism.steps == 1
    assert server.deferred is None


def test_what_a_peer_says_while_a_step_is_under_way_is_judged_behind_it() -> None:
    """A client that speaks before it was welcomed breaks the rules, deferred or not."""
    client, server = pair()
    carry(client, server)
    carry(server, client)
    step(client)
    carry(client, server)
    assert server.receive(encode_frame(encode_message(Ping(1)))) == []
    with pytest.raises(ProtocolError):
        step(server)
    assert server.closed


def test_what_is_held_is_bounded() -> None:
    client, server = pair()
    carry(client, server)
    carry(server, client)
    step(client)
    carry(client, server)
    server.receive(bytes(MAX_FRAME_BEFORE_AUTH_BYTES))
    with pytest.raises(ProtocolError, match="out of turn"):
        server.receive(b"x")
    assert server.closed
    assert server.resume(server.deferred()) == []


@pytest.mark.parametrize("error", [AuthError("no"), ValueError("odd"), RecursionError()])
def test_a_step_that_fails_ends_the_session_as_any_other_does(error: Exception) -> None:
    client, server = pair(Waiting(error))
    carry(client, server)
    carry(server, client)
    step(client)
    carry(client, server)
    stepped = server.deferred()  # raises nothing itself
    with pytest.raises(AuthError):
        server.resume(stepped)
    assert server.closed
    with pytest.raises(AuthError, match="refused us"):
        carry(server, client)


def test_a_connection_that_ends_meanwhile_says_so() -> None:
    client, server = pair()
    carry(client, server)
    carry(server, client)
    stepped = client.deferred()
    with pytest.raises(ProtocolError, match="while our own proof"):
        client.receive_end()
    assert client.resume(stepped) == []
