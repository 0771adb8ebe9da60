"""What passes between the roles of a server: one message a packet, descriptors beside it. Structs; no I/O here.

All roles are of one tree and one user and believe each other; what a gate passes on of a peer is a peer's.
"""

from __future__ import annotations

from typing import Final

import msgspec

from secfarm.auth.base import PeerCertificate
from secfarm.auth.tls import TlsIdentity
from secfarm.daemon.log import Log


class Opened(msgspec.Struct, array_like=True, frozen=True, tag=0):
    """Gate to keeper: connections are accepted; `certificate` (DER) is what they are shown."""

    certificate: bytes


class Arrived(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """Gate to keeper: TLS stands; beside it the stream of its bytes.

    Attributes:
        number: of the connection, this gate's.
        source: where it came from, as penalties count it.
        dialled: the hub's address, if we dialled; else "".
        certificate: the peer's (DER); empty where it showed none.
        verified: what TLS has verified of it, against the site's authority. Only of this is the gate believed.
        since_s: when the connection was made, by the monotonic clock.
    """

    number: int
    source: str
    dialled: str
    certificate: bytes
    verified: PeerCertificate | None
    since_s: float


class TurnedAway(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """Gate to keeper: a connection that did not come as far as that."""

    source: str
    reason: str


class Connected(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """Gate to keeper: the hubs that there is a session with."""

    addresses: tuple[str, ...]


class Proven(msgspec.Struct, array_like=True, frozen=True, tag=0):
    """Keeper to gate: the peer of that connection is proven."""

    number: int


class Refused(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """Keeper to gate: it is not."""

    number: int


class Shut(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """Keeper to gate: accept and dial no more; what is connected lives on."""


class Present(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """Keeper to gate, the first message: what to show whoever connects; None: a certificate made for the occasion."""

    identity: TlsIdentity | None


class Listen(msgspec.Struct, array_like=True, frozen=True, tag=0):
    """Supervisor to gate: the hubs to dial; beside it the listening sockets."""

    dial: tuple[str, ...]
    log: Log


class Keep(msgspec.Struct, array_like=True, frozen=True, tag=0):
    """Supervisor to keeper, the first order: serve with this configuration.

    Attributes:
        file: the configuration's, absolute.
        state: the directory for what has to outlive the process.
        listen: the addresses, for the audit record.
        dial: the hubs.
        keytab: instead of the configuration's; "" where none is given.
        environ: variables by which Kerberos, and credentials of systemd, are found; names of files, no secret.
    """

    file: str
    state: str
    listen: tuple[str, ...]
    dial: tuple[str, ...]
    log: Log
    keytab: str
    environ: dict[str, str]


class Gate(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """Supervisor to keeper: a gate was started; beside it the end of the line to it."""


class Drain(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """Supervisor to keeper: let what was accepted finish, then end."""


class Halt(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """Supervisor to keeper: end now."""


class Reload(msgspec.Struct, array_like=True, frozen=True, tag=4):
    """Supervisor to keeper: read trust files, policy and keys again."""


class Up(msgspec.Struct, array_like=True, frozen=True, tag=0):
    """Keeper to supervisor: workers are ready and connections are accepted."""


class Down(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """Keeper to supervisor: it could not start, or cannot go on, and why (see errors.py)."""

    code: str
    text: str


class Zygote(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """Keeper to supervisor: start a zygote; beside it its end of the line to us."""


class Reloaded(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """Keeper to supervisor: files were read again; `problem`: why what they say is not in force, or ""."""

    problem: str


FromGate = Opened | Arrived | TurnedAway | Connected
ToGate = Proven | Refused | Shut | Present
ToKeeper = Keep | Gate | Drain | Halt | Reload
FromKeeper = Up | Down | Zygote | Reloaded

encode: Final = msgspec.msgpack.Encoder().encode
decode_from_gate: Final = msgspec.msgpack.Decoder(FromGate).decode
decode_to_gate: Final = msgspec.msgpack.Decoder(ToGate).decode
decode_listen: Final = msgspec.msgpack.Decoder(Listen).decode
decode_to_keeper: Final = msgspec.msgpack.Decoder(ToKeeper).decode
decode_from_keeper: Final = msgspec.msgpack.Decoder(FromKeeper).decode
