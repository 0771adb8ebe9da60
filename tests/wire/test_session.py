from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfarm.auth import Auth, Ed25519AuthClient, Ed25519AuthServer, End, Mechanism, Peer, SharedSecretAuth, Side
from secfarm.errors import AuthError, ProtocolError, SecfarmError
from secfarm.limits import MAX_FRAME_BYTES
from secfarm.wire.frames import FrameBuffer, encode_frame
from secfarm.wire.messages import (
    AuthToken,
    Goodbye,
    Goodbyes,
    Hello,
    Message,
    OrderResult,
    Outcome,
    Output,
    Ping,
    Pong,
    Received,
    Results,
    Submit,
    Welcome,
    Workers,
    decode_message,
    encode_message,
)
from secfarm.wire.session import Established, Session, session_binding
from secfarm.wire.state import State
from tests.auth.people import (
    ADA,
    ADA_SECRET,
    ADDRESS,
    EVE,
    EVE_SECRET,
    SERVER,
    SERVER_NAME,
    known_servers,
    store,
)
from tests.wire.link import (
    MECHANISMS,
    SERVER_AUTHS,
    WELCOME,
    Link,
    Party,
    client_session,
    ends,
    link,
    ready_pair,
    server_session,
    session,
)
from tests.wire.test_messages import EXAMPLES, names

every_mechanism = pytest.mark.parametrize("mechanism", MECHANISMS)
every_dialler = pytest.mark.parametrize("dialled_by", Side)
every_side = pytest.mark.parametrize("side", Side)


def fresh(mechanism: str, dialled_by: Side, *, flip: tuple[Side, int, int] | None = None, step: int = 1 << 20) -> Link:
    client_end, server_end = ends(dialled_by)
    return link(client_session(mechanism, client_end), server_session(server_end), flip=flip, step=step)


def messages_of(stream: bytes) -> list[Message]:
    return [decode_message(frame) for frame in FrameBuffer(MAX_FRAME_BYTES).feed(stream)]


def handshake_prefixes(mechanism: str, side: Side) -> Iterator[Session]:
    """A session of `side` in each state that it goes through, from hello to ready."""
    whole = fresh(mechanism, Side.CLIENT).pump()
    sent = (whole.server if side is Side.CLIENT else whole.client).sent
    frames = [encode_frame(encode_message(message)) for message in messages_of(sent)]
    for count in range(len(frames) + 1):
        one = fresh(mechanism, Side.CLIENT)
        ours = (one.client if side is Side.CLIENT else one.server).session
        ours.outgoing()
        for frame in frames[:count]:
            ours.receive(frame)
        ours.outgoing()
        yield ours


# --- what must work ---


@every_mechanism
@every_dialler
def test_both_ends_are_proven_and_agree_on_the_session(mechanism: str, dialled_by: Side) -> None:
    done = fresh(mechanism, dialled_by).pump()
    client, server = done.client.session, done.server.session
    assert client.ready
    assert server.ready
    assert client.session_id == server.session_id
    assert len(client.session_id) == 64
    assert done.client.events == [WELCOME]
    assert server.peer is not None
    assert client.peer is not None
    assert done.server.events == [Established(server.peer)]
    assert (server.peer.principal, server.peer.mechanism) == ("ada", mechanism)
    key_ids = {"ed25519": (SERVER.key_id, ADA.key_id), "shared-secret": (ADA_SECRET.key_id, ADA_SECRET.key_id)}
    assert (client.peer.key_id, server.peer.key_id) == key_ids[mechanism]
    assert client.peer_hello is not None
    assert client.peer_hello.name == SERVER_NAME


@every_mechanism
@every_dialler
@pytest.mark.parametrize("step", [1, 2, 3, 7, 64])
def test_any_chunking_makes_the_same_session(mechanism: str, dialled_by: Side, step: int) -> None:
    whole, pieces = fresh(mechanism, dialled_by).pump(), fresh(mechanism, dialled_by, step=step).pump()
    assert pieces.client.events == whole.client.events
    assert pieces.server.events == whole.server.events
    assert pieces.client.session.session_id == whole.client.session.session_id


@given(
    st.lists(st.sampled_from([Submit(b"envelope" * 9), Received(3), Ping(1), EXAMPLES[5]]), max_size=9),
    st.lists(st.sampled_from([Results((Outcome(bytes(16), b"v" * 99),)), Workers(2), Pong(1)]), max_size=9),
    st.integers(1, 50),
)
def test_messages_arrive_as_they_were_sent_however_the_stream_is_cut(
    asked: list[Message], answered: list[Message], step: int
) -> None:
    client, server = ready_pair()
    for speaker, hearer, said in ((client, server, asked), (server, client, answered)):
        for message in said:
            speaker.send(message)
        party = Party(hearer)
        party.take(speaker.outgoing(), step)
        assert party.error is None
        assert party.events == said


@every_mechanism
@pytest.mark.parametrize("step", [1, 1000, 1 << 20])
def test_a_large_frame_right_behind_the_proof_is_taken(mechanism: str, step: int) -> None:
    """The server may have results of an earlier session to deliver at once; the small limit ends with the proof."""
    one = fresh(mechanism, Side.CLIENT)
    results = Results((Outcome(bytes(16), bytes(60_000)),))
    while not one.server.session.ready:
        to_server, to_client = one.client.drain(), one.server.drain()
        one.server.take(to_server, step)
        one.client.take(to_client, step)
    one.server.session.send(results)
    one.client.take(one.server.drain(), step)
    assert one.client.error is None
    assert one.client.events == [WELCOME, results]


@every_mechanism
def test_two_sessions_never_have_one_id(mechanism: str) -> None:
    ids = set()
    for nonce in (bytes(32), b"n" * 32):
        client = client_session(mechanism, End.INITIATOR)
        link(client, session(Side.SERVER, End.ACCEPTOR, SERVER_AUTHS, nonce=nonce)).pump()
        assert client.ready
        ids.add(client.session_id)
    assert len(ids) == 2


def test_the_binding_is_what_the_protocol_says() -> None:
    fields = {"certificate": b"c", "initiator_hello": b"i", "acceptor_hello": b"a"}
    # sha256 of: 18 "secfarm session v1", 32 sha256("c"), 1 "i", 1 "a", each length as four bytes
    assert session_binding(**fields).hex() == "bf1b86dd3d5313a705ccd542f22bf1b144ba2876305f12597bc1fe27d7009ca5"
    assert len({session_binding(**{**fields, name: b"x"}) for name in fields} | {session_binding(**fields)}) == 4


def test_without_a_welcome_the_server_welcomes_when_it_likes() -> None:
    one = link(client_session("ed25519", End.INITIATOR), server_session(End.ACCEPTOR, welcome=None)).pump()
    server = one.server.session
    assert (server.state, one.client.session.state) == (State.WELCOME, State.WELCOME)
    server.send(WELCOME)
    one.pump()
    assert one.client.events == [WELCOME]
    assert one.client.session.ready
    assert server.ready


# --- who is not believed ---


def refused(one: Link) -> Link:
    """Pump to the end: neither is ready, both know that it failed, and nobody heard more than one word."""
    one.pump()
    for party in (one.client, one.server):
        assert isinstance(party.error, AuthError)
        assert party.session.closed
    said = [message for party in (one.client, one.server) for message in messages_of(party.sent)]
    goodbyes = [message for message in said if isinstance(message, Goodbye)]
    assert goodbyes
    assert set(goodbyes) == {Goodbye(Goodbyes.REFUSED, "")}
    return one


@every_mechanism
@every_dialler
def test_a_relay_with_another_certificate_is_refused(mechanism: str, dialled_by: Side) -> None:
    client_end, server_end = ends(dialled_by)
    relayed = link(
        client_session(mechanism, client_end, certificate=b"the relay's"),
        server_session(server_end, certificate=b"the server's"),
    )
    one = refused(relayed)
    assert one.client.session.peer is None
    assert one.server.session.peer is None


@every_dialler
def test_a_wrong_secret_is_refused(dialled_by: Side) -> None:
    client_end, server_end = ends(dialled_by)
    eve = client_session("shared-secret", client_end, auth=SharedSecretAuth(EVE_SECRET))
    refused(link(eve, server_session(server_end)))


@every_dialler
def test_an_unknown_key_is_refused(dialled_by: Side) -> None:
    client_end, server_end = ends(dialled_by)
    eve = client_session("ed25519", client_end, auth=Ed25519AuthClient(EVE, known_servers()))
    refused(link(eve, server_session(server_end)))


@every_dialler
def test_a_server_with_a_wrong_key_is_refused(dialled_by: Side) -> None:
    client_end, server_end = ends(dialled_by)
    false: dict[str, Auth] = {"ed25519": Ed25519AuthServer(EVE, store())}
    refused(link(client_session("ed25519", client_end), server_session(server_end, false)))


def test_a_server_that_dials_in_is_looked_up_by_its_name() -> None:
    server = session(Side.SERVER, End.INITIATOR, SERVER_AUTHS, name="node2")  # known_servers has node1
    one = refused(link(client_session("ed25519", End.ACCEPTOR), server))
    assert "node2" in str(one.client.error)


@every_mechanism
def test_mechanisms_that_do_not_meet_are_refused_and_each_side_says_why(mechanism: str) -> None:
    other = next(name for name in MECHANISMS if name != mechanism)
    one = refused(
        link(client_session(mechanism, End.INITIATOR), server_session(End.ACCEPTOR, {other: SERVER_AUTHS[other]}))
    )
    for party in (one.client, one.server):
        assert mechanism in str(party.error)
        assert other in str(party.error)


@every_mechanism
def test_a_clients_own_words_sent_back_are_refused(mechanism: str) -> None:
    client = client_session(mechanism, End.INITIATOR)
    client.start()
    with pytest.raises(ProtocolError):
        client.receive(client.outgoing())


@every_mechanism
def test_a_clients_own_token_sent_back_is_refused(mechanism: str) -> None:
    one = fresh(mechanism, Side.CLIENT)
    one.client.take(one.server.drain(), 1 << 20)
    token = messages_of(one.client.drain())[-1]
    assert isinstance(token, AuthToken)
    with pytest.raises(AuthError):
        one.client.session.receive(encode_frame(encode_message(token)))


@every_mechanism
@every_dialler
def test_a_recorded_session_played_again_is_refused(mechanism: str, dialled_by: Side) -> None:
    recorded = fresh(mechanism, dialled_by).pump()
    _, server_end = ends(dialled_by)
    server = session(Side.SERVER, server_end, SERVER_AUTHS, nonce=b"new nonce".ljust(32))
    server.start()
    with pytest.raises(AuthError):
        server.receive(recorded.client.sent)
    client_end, _ = ends(dialled_by)
    client = session(Side.CLIENT, client_end, client_session(mechanism, client_end)._auths, nonce=b"new".ljust(32))
    client.start()
    with pytest.raises(AuthError):
        client.receive(recorded.server.sent)


# --- what the network may do ---


@every_mechanism
@every_dialler
@every_side
def test_a_flipped_byte_anywhere_before_the_welcome_ends_in_an_error(
    mechanism: str, dialled_by: Side, side: Side
) -> None:
    """No flip gives a wrong peer, and none goes unnoticed by both."""
    honest = fresh(mechanism, dialled_by).pump()
    sender = honest.client if side is Side.CLIENT else honest.server
    welcome_bytes = len(encode_frame(encode_message(WELCOME))) if side is Side.SERVER else 0
    for place in range(len(sender.sent) - welcome_bytes):
        one = fresh(mechanism, dialled_by, flip=(side, place, 1 << place % 8)).pump()
        for party in (one.client, one.server):
            party.cut()
        assert one.client.error or one.server.error
        assert not (one.client.session.ready and one.server.session.ready)
        assert one.client.session.peer in {None, honest.client.session.peer}
        assert one.server.session.peer in {None, honest.server.session.peer}


@given(
    st.sampled_from(MECHANISMS), st.sampled_from(Side), st.sampled_from(Side), st.integers(0, 400), st.integers(1, 255)
)
def test_no_flip_ever_makes_another_peer(mechanism: str, dialled_by: Side, side: Side, place: int, mask: int) -> None:
    one = fresh(mechanism, dialled_by, flip=(side, place, mask)).pump()
    assert one.server.session.peer is None or one.server.session.peer.principal == "ada"
    assert one.client.session.peer is None or one.client.session.peer.principal in {"ada", ADDRESS}


@every_mechanism
@every_side
def test_a_stream_cut_anywhere_is_an_error(mechanism: str, side: Side) -> None:
    whole = fresh(mechanism, Side.CLIENT).pump()
    sent = (whole.server if side is Side.CLIENT else whole.client).sent
    for length in range(len(sent)):
        one = fresh(mechanism, Side.CLIENT)
        victim = one.client if side is Side.CLIENT else one.server
        victim.take(sent[:length], 1 << 20)
        assert victim.error is None
        assert not victim.session.ready
        victim.cut()
        assert isinstance(victim.error, ProtocolError)


@every_mechanism
@every_side
@pytest.mark.parametrize(
    "hostile",
    [
        b"\xff\xff\xff\xff",
        b"\0\0\0\0",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0\0\0\5hello",
        encode_frame(msgspec.msgpack.encode([14, "unknown tag"])),
        (MAX_FRAME_BYTES + 1).to_bytes(4, "big"),
    ],
    ids=["4 GiB", "empty", "http", "garbage", "unknown tag", "oversized"],
)
def test_hostile_bytes_end_the_session_in_every_state(mechanism: str, side: Side, hostile: bytes) -> None:
    states = []
    for ours in handshake_prefixes(mechanism, side):
        states.append(ours.state)
        with pytest.raises(ProtocolError):
            ours.receive(hostile)
        assert messages_of(ours.outgoing()) == [Goodbye(Goodbyes.PROTOCOL, "")]
        assert ours.state is State.CLOSED
        assert ours._frames.pending_bytes <= 4
        assert ours.receive(b"more") == []
        assert ours.outgoing() == b""
    assert states[0] is State.HELLO
    assert states[-1] is State.READY


@every_mechanism
@every_side
def test_before_the_proof_frames_are_small(mechanism: str, side: Side) -> None:
    for ours in handshake_prefixes(mechanism, side):
        frame = encode_frame(encode_message(Submit(bytes(100_000))))
        allowed = ours.ready and side is Side.SERVER
        if allowed:
            assert len(ours.receive(frame)) == 1
        else:
            with pytest.raises(ProtocolError):
                ours.receive(frame)


OUT_OF_PLACE = [message for message in EXAMPLES if not isinstance(message, Goodbye)]


@every_mechanism
@every_side
@pytest.mark.parametrize("message", OUT_OF_PLACE, ids=names(OUT_OF_PLACE))
def test_a_message_that_is_out_of_order_ends_the_session(mechanism: str, side: Side, message: Message) -> None:
    handshake: dict[State, set[type[Message]]] = {
        State.HELLO: {Hello},
        State.PEER_TOKEN: {AuthToken},
        State.WELCOME: {Welcome},
    }
    ours_only = {Submit, Received} if side is Side.CLIENT else {Results, Output, Workers, OrderResult}
    ready = set(map(type, EXAMPLES)) - {Hello, AuthToken, Welcome} - ours_only
    for ours in handshake_prefixes(mechanism, side):
        if type(message) in handshake.get(ours.state, ready):
            continue
        with pytest.raises(ProtocolError, match="may not be received"):
            ours.receive(encode_frame(encode_message(message)))
        assert messages_of(ours.outgoing()) == [Goodbye(Goodbyes.PROTOCOL, "")]


def test_what_came_with_a_violation_is_dropped_and_nothing_follows() -> None:
    _, server = ready_pair()
    stream = encode_frame(encode_message(Ping(1))) + encode_frame(b"\xc1") + encode_frame(encode_message(Ping(2)))
    with pytest.raises(ProtocolError):
        server.receive(stream)
    assert server.receive(encode_frame(encode_message(Ping(3)))) == []


# --- hellos ---


def hello(**changes: object) -> bytes:
    fields: dict[str, object] = {
        "version": 1,
        "nonce": b"x" * 32,
        "side": "client",
        "mechanisms": ("shared-secret",),
        "name": "n",
        "python_version": "3.11",
    }
    return encode_frame(msgspec.msgpack.encode([1, *{**fields, **changes}.values()]))


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"version": 2}, ProtocolError, "version 2"),
        ({"side": "server"}, ProtocolError, "both ends are a server"),
        ({"nonce": b"s" * 32}, ProtocolError, "nonce"),
        ({"mechanisms": ("anonymous",)}, AuthError, "anonymous"),
        ({"mechanisms": ("shared-secret", "ed25519")}, AuthError, "asks for"),
    ],
    ids=["version", "side", "nonce", "mechanism", "two mechanisms"],
)
def test_hellos_that_cannot_be_answered_are_refused(
    changes: dict[str, object], error: type[SecfarmError], says: str
) -> None:
    server = server_session(End.ACCEPTOR)
    server.start()
    with pytest.raises(error, match=says):
        server.receive(hello(**changes))
    assert server.peer is None


def test_a_peers_text_reaches_no_error_unescaped() -> None:
    server = server_session(End.ACCEPTOR)
    server.start()
    with pytest.raises(AuthError) as refused_:
        server.receive(hello(mechanisms=("\x1b[2J\u202e",)))
    assert str(refused_.value).isascii()
    assert str(refused_.value).isprintable()


# --- goodbyes and the end ---


def test_a_refusal_before_ready_is_an_auth_error_and_anything_else_a_protocol_error() -> None:
    for code, error in ((Goodbyes.REFUSED, AuthError), (Goodbyes.BUSY, ProtocolError)):
        client = client_session("ed25519", End.INITIATOR)
        client.start()
        client.outgoing()
        with pytest.raises(error, match=code):
            client.receive(encode_frame(encode_message(Goodbye(code, "\x1b[2J"))))
        assert client.goodbye == Goodbye(code, "\x1b[2J")
        assert client.outgoing() == b""


def test_a_goodbye_when_ready_is_told_and_ends_everything() -> None:
    client, server = ready_pair()
    server.send(Workers(3))
    server.close(Goodbyes.SHUTDOWN, "maintenance")
    server.close(Goodbyes.DONE)
    last = server.outgoing()
    assert client.receive(last + encode_frame(b"\xc1")) == [Workers(3), Goodbye(Goodbyes.SHUTDOWN, "maintenance")]
    assert client.closed
    client.receive_end()
    server.receive_end()
    with pytest.raises(ProtocolError):
        client.send(Ping(1))


def test_the_end_of_the_stream_without_a_goodbye_is_an_error_once() -> None:
    client, server = ready_pair()
    server.send(Ping(1))
    assert client.receive(server.outgoing()[:-1]) == []
    with pytest.raises(ProtocolError, match="without a goodbye"):
        client.receive_end()
    assert client.closed
    client.receive_end()


def test_closing_before_hello_says_nothing() -> None:
    client = client_session("ed25519", End.INITIATOR)
    client.close(Goodbyes.DONE)
    assert client.outgoing() == b""
    assert client.closed


# --- our own side's mistakes ---


def test_what_may_not_be_sent_is_refused_and_the_session_is_as_before() -> None:
    client, server = ready_pair()
    for message in (Workers(1), WELCOME, messages_of(hello())[0], AuthToken(b"x"), Submit(bytes(MAX_FRAME_BYTES))):
        with pytest.raises(ProtocolError):
            client.send(message)
    assert client.outgoing() == b""
    client.send(Ping(1))
    assert server.receive(client.outgoing()) == [Ping(1)]


def test_nothing_is_sent_or_known_before_the_handshake() -> None:
    client = client_session("ed25519", End.INITIATOR)
    with pytest.raises(ProtocolError):
        client.session_id  # noqa: B018 - the property raises
    with pytest.raises(ProtocolError, match="by the session itself"):
        client.send(messages_of(hello())[0])
    client.start()
    with pytest.raises(ProtocolError):
        client.send(Submit(b"early"))
    with pytest.raises(ProtocolError):
        client.start()


@pytest.mark.parametrize(
    ("side", "changes"),
    [
        (Side.CLIENT, {"auths": SERVER_AUTHS}),
        (Side.CLIENT, {"auths": {}}),
        (Side.SERVER, {"auths": {}}),
        (Side.CLIENT, {"welcome": WELCOME}),
        (Side.SERVER, {"nonce": b"short"}),
        (Side.SERVER, {"certificate": b""}),
    ],
)
def test_facts_that_do_not_fit_make_no_session(side: Side, changes: dict[str, object]) -> None:
    facts: dict[str, object] = {
        "end": End.INITIATOR,
        "side": side,
        "auths": {"shared-secret": SERVER_AUTHS["shared-secret"]},
        "nonce": bytes(32),
        "certificate": b"c",
        "address": ADDRESS,
        "name": "",
        "python_version": "",
        "clock": float,
        "welcome": None,
    }
    with pytest.raises(ValueError, match=r"client|server|nonce"):
        Session(**{**facts, **changes})  # type: ignore[arg-type]


# --- mechanisms that misbehave ---


class Odd(Mechanism, Auth):
    """A mechanism of somebody's own; `steps` is what its steps give or raise."""

    name = "odd"
    mechanism = "odd"

    def __init__(self, *steps: bytes | Exception | None, done: bool = False, peer: Peer | None = None) -> None:
        self._steps = iter(steps)
        self._done = done
        self.peer = peer

    @property
    def complete(self) -> bool:
        return self._done

    def begin(self, *, side: Side, binding: bytes, address: str, now_s: float) -> Mechanism:
        return self

    def step(self, token: bytes | None) -> bytes | None:
        given_ = next(self._steps)
        if isinstance(given_, Exception):
            raise given_
        return given_


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Odd(None), "stopped before"),
        (lambda: Odd(b"token", done=True), "without a peer"),
        (lambda: Odd(None, done=True), "without a peer"),
        (lambda: Odd(RuntimeError("bug")), "RuntimeError: bug"),
        (lambda: Odd(AuthError("no")), "no"),
        (lambda: Odd(None, peer=Peer("eve", "odd")), "stopped before"),
    ],
    ids=["stalls", "complete, no peer", "silent, no peer", "bug", "refuses", "peer, not complete"],
)
@every_side
def test_a_mechanism_that_does_not_prove_a_peer_gives_none(make: Callable[[], Odd], says: str, side: Side) -> None:
    ours = session(side, End.INITIATOR, {"odd": make()})
    theirs = session(side.other, End.ACCEPTOR, {"odd": Odd(b"t", b"t")})
    one = link(ours, theirs) if side is Side.CLIENT else link(theirs, ours)
    one.pump()
    party = one.client if side is Side.CLIENT else one.server
    assert isinstance(party.error, AuthError)
    assert says in str(party.error)
    assert ours.peer is None
    assert not party.events
