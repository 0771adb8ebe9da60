"""Authentication's contract: sides, ends, the proven peer, and the step machine that every mechanism is.

Sans-I/O: tokens in, tokens out. A mechanism proves both names over a *binding*, 32 bytes that both ends compute
from the channel's certificate and both hellos; so a proof is worth nothing on any other channel.
Law: docs/PROTOCOL.md, section 3.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from secfarm.sign.keys import Signer, Verifier


class Side(Enum):
    """Who asks and who runs; independent of who dialled. The value is the one of the wire."""

    CLIENT = "client"
    SERVER = "server"

    @property
    def other(self) -> Side:
        """The peer's."""
        return Side.SERVER if self is Side.CLIENT else Side.CLIENT


class End(Enum):
    """Who dialled. The acceptor's certificate is the channel's."""

    INITIATOR = "initiator"
    ACCEPTOR = "acceptor"


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is on the line, as proven.

    Attributes:
        principal: the name that *our* trust files give to the key that was proven.
        mechanism: how it was proven.
        key_id: of the key or secret that was proven; "" where the mechanism has none.
        verifier: checks what this peer signs, where the mechanism gives such a key.
        session_signer: at the client, where the mechanism makes a key for this session only: signs its batches when it
            has no key of its own. No trust file knows that key, and it dies with the session.
        session_verifier: at the server, the other half.
        expires_s: Unix seconds by our clock at which the proof, and with it the session, ends; None: it does not.
    """

    principal: str
    mechanism: str
    key_id: str = ""
    verifier: Verifier | None = field(default=None, repr=False, compare=False)
    session_signer: Signer | None = field(default=None, repr=False, compare=False)
    session_verifier: Verifier | None = field(default=None, repr=False, compare=False)
    expires_s: float | None = None


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """The peer's certificate as TLS itself has verified it, against an authority that we named.

    Attributes:
        names: its subject alternative names as (kind, value), in its order; kinds are `email`, `URI`, `DNS`, ...
        fingerprint: hex SHA-256 of its DER bytes.
        expires_s: Unix seconds at which it ends.
    """

    names: tuple[tuple[str, str], ...]
    fingerprint: str
    expires_s: float


class Mechanism(ABC):
    """One run of an authentication, on one side of one session.

    The client's first call is `step(None)`, the server's is `step(token)` with the client's first token; from then
    on each side steps with each token that it gets. A step returns the token to send, or None when there is none.
    A side that is not `complete` after a step must have returned a token.

    Attributes:
        name: on the wire.
        blocking: whether a step may wait, for a disk or for another server; whoever drives the session then takes its
            steps outside of the event loop.
        peer: set once complete.
    """

    name: ClassVar[str]
    blocking: ClassVar[bool] = False
    peer: Peer | None = None

    @property
    @abstractmethod
    def complete(self) -> bool:
        """Whether the peer is proven and this side has given its own proof; `peer` is set from then on."""

    @abstractmethod
    def step(self, token: bytes | None) -> bytes | None:
        """Take the peer's token and return ours.

        Raises:
            AuthError: the peer did not prove a name that we trust. The message is for our own log.
        """


class Auth(ABC):
    """What a user configures: makes a mechanism for each session."""

    mechanism: ClassVar[str]  # its name on the wire

    def over(self, certificate: PeerCertificate | None) -> Auth:  # noqa: ARG002 - for those that want to know
        """Return the auth for a session over a channel whose TLS has proven `certificate`, or nothing (None)."""
        return self

    def at_hub(self) -> Auth:
        """Return the auth for sessions with servers that dial in, of which we know the name that they claim.

        Raises:
            ConfigError: it does not say which servers those may be, or cannot prove them.
        """
        return self

    @abstractmethod
    def begin(self, *, side: Side, binding: bytes, address: str, now_s: float) -> Mechanism:
        """Return the mechanism for one session.

        Args:
            side: ours.
            binding: 32 bytes, the same on both ends of one channel and of no other.
            address: normal form of the address that was dialled; for a server that dialled in to us, its name.
            now_s: Unix seconds by our clock.

        Raises:
            ConfigError: it names files that were not loaded, or cannot serve this side.
        """


def transcript(label: str, *fields: bytes) -> bytes:
    """Return `label` and `fields` as bytes that no other label and fields give.

    Each part is preceded by its length as four bytes, big-endian.
    """
    parts = (label.encode("ascii"), *fields)
    return b"".join(piece for part in parts for piece in (len(part).to_bytes(4, "big"), part))
