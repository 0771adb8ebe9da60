"""Who is on the line: mechanisms that prove both ends' names over the channel that carries the session.

Both ends are always proven; nothing is negotiated and nothing falls back. Law: docs/PROTOCOL.md, section 3.
"""

from secfarm.auth.base import Auth, End, Mechanism, Peer, Side
from secfarm.auth.ed25519 import Ed25519AuthClient, Ed25519AuthServer
from secfarm.auth.shared_secret import SharedSecretAuth

__all__ = [
    "Auth",
    "Ed25519AuthClient",
    "Ed25519AuthServer",
    "End",
    "Mechanism",
    "Peer",
    "SharedSecretAuth",
    "Side",
]
