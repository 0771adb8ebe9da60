"""Who is on the line: mechanisms that prove both ends' names over the channel that carries the session.

Both ends are always proven; nothing is negotiated and nothing falls back. Law: docs/PROTOCOL.md, section 3.
"""

from secfarm.auth.base import Auth, End, Mechanism, Peer, Side
from secfarm.auth.ed25519 import Ed25519AuthClient, Ed25519AuthServer
from secfarm.auth.gss import GssAuthClient, GssAuthServer
from secfarm.auth.shared_secret import SharedSecretAuth
from secfarm.auth.tls import TlsAuthClient, TlsAuthServer

__all__ = [
    "Auth",
    "Ed25519AuthClient",
    "Ed25519AuthServer",
    "End",
    "GssAuthClient",
    "GssAuthServer",
    "Mechanism",
    "Peer",
    "SharedSecretAuth",
    "Side",
    "TlsAuthClient",
    "TlsAuthServer",
]
