"""Keys, secrets and trust files of the people whom the tests of auth and wire know."""

from __future__ import annotations

from typing import Final

from secfarm.sign.keys import SharedSecret, SigningKey
from secfarm.trust.store import KnownServers, TrustStore, parse_allowed_signers, parse_known_servers

NOW_S: Final = 1_800_000_000.0
ADDRESS: Final = "127.0.0.1:7419"
SERVER_NAME: Final = "node1"  # of a server that dials in

ADA: Final = SigningKey.from_seed(bytes([1]) * 32)
EVE: Final = SigningKey.from_seed(bytes([2]) * 32)
SERVER: Final = SigningKey.from_seed(bytes([3]) * 32)
OLD: Final = SigningKey.from_seed(bytes([4]) * 32)
FILE_SIGNER: Final = SigningKey.from_seed(bytes([5]) * 32)
REVOKED: Final = SigningKey.from_seed(bytes([6]) * 32)

ADA_SECRET: Final = SharedSecret("ada", bytes(range(32)))
BOB_SECRET: Final = SharedSecret("bob", bytes(range(1, 33)))
EVE_SECRET: Final = SharedSecret("eve", bytes(range(2, 34)))


def store() -> TrustStore:
    """Ada may, Old could until 2001, FileSigner only signs files, Revoked lost its key, Eve is nobody."""
    text = "\n".join(
        [
            f'ada namespaces="task@secfarm" {ADA.public.openssh()}',
            f'old valid-before="20010101" {OLD.public.openssh()}',
            f'files namespaces="file" {FILE_SIGNER.public.openssh()}',
            f"revoked {REVOKED.public.openssh()}",
        ]
    )
    return TrustStore(parse_allowed_signers(text, file="allowed_signers"), revoked=[REVOKED.key_id])


def known_servers() -> KnownServers:
    """The server at its address and, as a server that dials in, by its name."""
    return parse_known_servers(f"{ADDRESS},{SERVER_NAME} {SERVER.public.openssh()}", file="known_servers")
