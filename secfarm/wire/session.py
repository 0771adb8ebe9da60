"""Session: one side of one connection, from hello to goodbye. Sans-I/O: bytes and messages in, bytes and messages out.

It runs the handshake (hellos, tokens of the mechanism, welcome), proves the peer's name, and lets messages pass only
in the order of state.py. Who dialled (end) and who asks (side) are two axes. Law: docs/PROTOCOL.md, sections 1 to 5.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from secfarm.auth.base import End, Side, transcript
from secfarm.errors import AuthError, ProtocolError, SecfarmError
from secfarm.limits import MAX_FRAME_BEFORE_AUTH_BYTES, MAX_FRAME_BYTES
from secfarm.wire.frames import FrameBuffer, encode_frame
from secfarm.wire.messages import (
    NONCE_BYTES,
    PROTOCOL_VERSION,
    AuthToken,
    Goodbye,
    Goodbyes,
    Hello,
    Welcome,
    decode_message,
    encode_message,
)
from secfarm.wire.state import Proven, State, Way, advance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from secfarm.auth.base import Auth, Mechanism, Peer, PeerCertificate
    from secfarm.wire.messages import Message

BINDING_LABEL: Final = "secfarm session v1"


@dataclass(frozen=True, slots=True)
class Established:
    """What the server's side hears when the client is proven; all that follows is the peer's."""

    peer: Peer


@dataclass(frozen=True, slots=True)
class Stepped:
    """What one step of a mechanism came to: a token to send, nothing to send, or an error."""

    mechanism: Mechanism
    reply: bytes | None
    error: SecfarmError | None = None


def session_binding(*, certificate: bytes, initiator_hello: bytes, acceptor_hello: bytes) -> bytes:
    """Return the 32 bytes that tie a session to its channel and to both ends' words.

    Args:
        certificate: the acceptor's, in DER. Its SHA-256 enters, which for our own certificates is the channel binding
            `tls-server-end-point`.
        initiator_hello: payload of that end's first frame, as it was on the wire.
        acceptor_hello: likewise.

    Source: RFC 5929, section 4.1.
    """
    digest = hashlib.sha256(certificate).digest()
    return hashlib.sha256(transcript(BINDING_LABEL, digest, initiator_hello, acceptor_hello)).digest()


class TurnedAwayError(AuthError):
    """The peer said that it does not believe us."""


class Session:
    """One side of one connection.

    Call `start`, write what `outgoing` gives after every call, feed `receive` with what arrives and call `receive_end`
    at the stream's end. When a method raises, the session is closed: write what is outgoing, then close the stream.

    Attributes:
        end: who dialled.
        side: who asks.
        state: see state.py.
        peer: who is on the line; None until it is proven.
        peer_hello: the peer's first message; None until it came. Only what `peer` says is proven by name.
        goodbye: the peer's last message; None until it came.
        peer_certificate: what TLS has verified of the peer; set before `start`, None where TLS verified nothing.
        defers: whether a step of a mechanism that may wait is left to the caller: while `deferred` is not None, run it
            wherever it may wait, then call `resume`.
        deferred: that step; it raises nothing.
    """

    def __init__(
        self,
        *,
        end: End,
        side: Side,
        auths: Mapping[str, Auth],
        nonce: bytes,
        certificate: bytes,
        address: str,
        name: str,
        python_version: str,
        clock: Callable[[], float],
        welcome: Welcome | None = None,
    ) -> None:
        """Make a session that has not said anything yet.

        Args:
            end: ours.
            side: ours.
            auths: by the mechanism's name; a client has exactly one, for nothing is negotiated.
            nonce: 32 random bytes, never used before.
            certificate: the acceptor's as DER: the one that this end showed or saw.
            address: normal form of the address dialled; "" at the acceptor.
            name: our own, for the peer's display and for a hub's `known_servers`.
            python_version: of our interpreter.
            clock: gives Unix seconds.
            welcome: the server's; without one the caller sends it when it hears `Established`.

        Raises:
            ValueError: the arguments do not fit together.
        """
        if not auths or (side is Side.CLIENT and len(auths) != 1):
            raise ValueError(f"a {side.value} cannot have {len(auths)} mechanisms: a client has one, a server some")
        if len(nonce) != NONCE_BYTES or not certificate:
            raise ValueError(f"a session needs a nonce of {NONCE_BYTES} bytes and the channel's certificate")
        if side is Side.CLIENT and welcome is not None:
            raise ValueError("a client does not welcome")
        self.end = end
        self.side = side
        self.state = State.NEW
        self.peer: Peer | None = None
        self.peer_hello: Hello | None = None
        self.goodbye: Goodbye | None = None
        self.peer_certificate: PeerCertificate | None = None
        self.defers = False
        self.deferred: Callable[[], Stepped] | None = None
        self._auths = dict(auths)
        self._certificate = certificate
        self._address = address
        self._clock = clock
        self._welcome = welcome
        self._hello = Hello(PROTOCOL_VERSION, nonce, side, tuple(sorted(auths)), name, python_version)
        self._binding: bytes | None = None
        self._mechanism: Mechanism | None = None
        self._frames = FrameBuffer()
        self._incoming: Iterator[bytes] = iter(())  # what is left of the last bytes, while a step is deferred
        self._held = bytearray()  # and what came since
        self._outgoing: list[bytes] = []

    @property
    def ready(self) -> bool:
        """Whether both names are proven and the application may speak."""
        return self.state is State.READY

    @property
    def closed(self) -> bool:
        """Whether a goodbye was said, by either end, or the session failed."""
        return self.state is State.CLOSED

    @property
    def session_id(self) -> str:
        """The binding in hex: the same on both ends, and never that of another session.

        Raises:
            ProtocolError: not both hellos are known.
        """
        if self._binding is None:
            raise ProtocolError("a session has no id before both hellos were said")
        return self._binding.hex()

    def start(self) -> None:
        """Say hello."""
        self._put(self._hello)

    def send(self, message: Message) -> None:
        """Queue a message of the application.

        Raises:
            ProtocolError: it may not be sent now, or is larger than a frame may be; nothing was queued and the
                session is as before.
        """
        if isinstance(message, Hello | AuthToken):
            raise ProtocolError(f"{type(message).__name__} is sent by the session itself")
        self._put(message)

    def close(self, code: Goodbyes, text: str = "") -> None:
        """Queue a goodbye and close; on a session that is closed or not yet started, only close."""
        if self.state not in {State.NEW, State.CLOSED}:
            self._put(Goodbye(code, text))
        self.state = State.CLOSED

    def outgoing(self) -> bytes:
        """Return what is to be written, and forget it."""
        queued, self._outgoing = self._outgoing, []
        return queued[0] if len(queued) == 1 else b"".join(queued)

    def receive(self, data: bytes) -> list[Message | Established]:
        """Take bytes of the stream and return what they hold for the application, in order.

        The handshake stays inside, but for the server's `Established` and the client's `Welcome`. After a goodbye
        nothing is looked at any more.

        Raises:
            ProtocolError: the bytes are not what the protocol allows here. What else came in this call is dropped.
            AuthError: one of the two would not believe the other.
        """
        if self.closed:
            return []
        if self.deferred is not None:
            self._hold(data)
            return []
        return self._take_all(self._frames.feed(data))

    def resume(self, stepped: Stepped) -> list[Message | Established]:
        """Go on with what the deferred step came to; return and raise as `receive`."""
        self.deferred = None
        if self.closed:
            return []
        incoming, self._incoming = self._incoming, iter(())
        held, self._held = bytes(self._held), bytearray()
        first: list[Message | Established] = []
        try:
            self._stepped(stepped, first)
        except Exception as error:  # whatever it is, this session is over
            self.close(_public_code(error))
            raise
        first += self._take_all(incoming)
        return first + self.receive(held)

    def _hold(self, data: bytes) -> None:
        """Keep what comes while a step is under way: the peer has nothing to say then but its last words."""
        self._held += data
        if len(self._held) > MAX_FRAME_BEFORE_AUTH_BYTES:
            self.close(Goodbyes.PROTOCOL)
            raise ProtocolError(f"the peer sent {len(self._held)} bytes out of turn")

    def _take_all(self, frames: Iterator[bytes]) -> list[Message | Established]:
        events: list[Message | Established] = []
        try:
            for frame in frames:
                self._take(frame, decode_message(frame), events)
                if self.closed:
                    break
                if self.deferred is not None:
                    self._incoming = frames
                    break
        except Exception as error:  # whatever it is, this session is over
            self.close(_public_code(error))
            raise
        return events

    def receive_end(self) -> None:
        """Note that the stream has ended; after a goodbye, by either end, that is as it should be.

        Raises:
            ProtocolError: it was cut.
        """
        if self.closed:
            return
        state, self.state = self.state, State.CLOSED
        raise ProtocolError(
            f"the peer closed the connection without a goodbye in state {state.value}, "
            f"{self._frames.pending_bytes} bytes into a frame"
            + (", while our own proof was still being made" if self.deferred is not None else "")
        )

    def _put(self, message: Message) -> None:
        after = advance(self.state, self.side, Way.SENT, type(message))
        payload = encode_message(message)
        if len(payload) > MAX_FRAME_BYTES:
            raise ProtocolError(f"{type(message).__name__} has {len(payload)} bytes, a frame at most {MAX_FRAME_BYTES}")
        self._outgoing.append(encode_frame(payload))
        self.state = after

    def _take(self, frame: bytes, message: Message, events: list[Message | Established]) -> None:
        before = self.state
        self.state = advance(before, self.side, Way.RECEIVED, type(message))
        match message:
            case Hello():
                self._meet(frame, message)
                if self.side is Side.CLIENT:
                    self._step(None, events)
            case AuthToken():
                self._step(message.token, events)
            case Goodbye():
                self.goodbye = message
                if before is not State.READY:
                    raise _turned_away(message, self.side)
                events.append(message)
            case _:
                events.append(message)

    def _meet(self, frame: bytes, hello: Hello) -> None:
        """Judge the peer's hello and begin the mechanism."""
        if hello.version != PROTOCOL_VERSION:
            raise ProtocolError(f"the peer speaks version {hello.version}, this side {PROTOCOL_VERSION}")
        if hello.side is self.side:
            raise ProtocolError(f"both ends are a {self.side.value}; one of them has dialled the wrong address")
        if hello.nonce == self._hello.nonce:
            raise ProtocolError("the peer's nonce is our own")
        ours = encode_message(self._hello)
        initiator, acceptor = (ours, frame) if self.end is End.INITIATOR else (frame, ours)
        self._binding = session_binding(
            certificate=self._certificate, initiator_hello=initiator, acceptor_hello=acceptor
        )
        self.peer_hello = hello
        self._mechanism = (
            _common(self._auths, hello, self.side)
            .over(self.peer_certificate)
            .begin(
                side=self.side,
                binding=self._binding,
                address=self._address if self.end is End.INITIATOR else hello.name,
                now_s=self._clock(),
            )
        )

    def _step(self, token: bytes | None, events: list[Message | Established]) -> None:
        if (mechanism := self._mechanism) is None:
            raise ProtocolError("a token came before the hello")
        if self.defers and mechanism.blocking:
            self.deferred = lambda: _step(mechanism, token)
        else:
            self._stepped(_step(mechanism, token), events)

    def _stepped(self, stepped: Stepped, events: list[Message | Established]) -> None:
        mechanism, reply = stepped.mechanism, stepped.reply
        if stepped.error is not None:
            raise stepped.error
        if reply is not None:
            self._put(AuthToken(reply))
        if mechanism.complete:
            self._establish(mechanism, events)
        elif reply is None:
            raise AuthError(f"the mechanism {mechanism.name} stopped before the peer was proven")

    def _establish(self, mechanism: Mechanism, events: list[Message | Established]) -> None:
        if (peer := mechanism.peer) is None:
            raise AuthError(f"the mechanism {mechanism.name} ended without a peer")
        self.state = advance(self.state, self.side, Way.INNER, Proven)
        self.peer = peer
        self._mechanism = None
        self._frames.max_bytes = MAX_FRAME_BYTES
        if self.side is Side.SERVER:
            events.append(Established(peer))
            if self._welcome is not None:
                self._put(self._welcome)


def _step(mechanism: Mechanism, token: bytes | None) -> Stepped:
    try:
        return Stepped(mechanism, mechanism.step(token))
    except SecfarmError as error:
        return Stepped(mechanism, None, error)
    except Exception as error:  # noqa: BLE001 - whatever a mechanism raises, the peer was not proven
        problem = AuthError(f"the mechanism {mechanism.name} failed: {type(error).__name__}: {error}")
        problem.__cause__ = error
        return Stepped(mechanism, None, problem)


def _common(auths: Mapping[str, Auth], hello: Hello, side: Side) -> Auth:
    """Return the auth of the client's one mechanism, which both ends must have."""
    if side is Side.SERVER:
        if len(hello.mechanisms) == 1 and (auth := auths.get(hello.mechanisms[0])) is not None:
            return auth
        raise AuthError(f"the client asks for {_listed(hello.mechanisms)}, this server accepts {_listed(tuple(auths))}")
    ((name, auth),) = auths.items()
    if name in hello.mechanisms:
        return auth
    raise AuthError(f"the server accepts {_listed(hello.mechanisms)}; this client is set up for {name}")


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(ascii(name) for name in names)


def _turned_away(goodbye: Goodbye, side: Side) -> SecfarmError:
    peer, words = side.other.value, ascii(f"{goodbye.code} {goodbye.text}".strip())
    if goodbye.code == Goodbyes.REFUSED:
        return TurnedAwayError(f"the {peer} refused us ({words}); its log says why")
    return ProtocolError(f"the {peer} ended the session before it was ready ({words})")


def _public_code(error: Exception) -> Goodbyes:
    public = error.public if isinstance(error, SecfarmError) else ""
    return next((code for code in Goodbyes if code == public), Goodbyes.ERROR)
