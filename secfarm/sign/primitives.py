"""The two signature algorithms, as functions over raw bytes: Ed25519 (RFC 8032) and HMAC-SHA256 (RFC 2104).

Knows no formats, no names, no trust. A check returns the message or raises; lengths are checked here because
PyNaCl's bindings hand any pointer to C.
"""

from __future__ import annotations

import hmac
from typing import Final

from nacl import bindings
from nacl.exceptions import CryptoError

from secfarm.errors import BadSignatureError, KeyFileError

SEED_BYTES: Final = 32
PUBLIC_KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64


def ed25519_expand(seed: bytes) -> tuple[bytes, bytes]:
    """Return (public key, expanded secret key) of a 32-byte seed.

    Raises:
        KeyFileError: the seed has another length.
    """
    if len(seed) != SEED_BYTES:
        raise KeyFileError(f"an Ed25519 seed has {SEED_BYTES} bytes, this one {len(seed)}; no key was made")
    return bindings.crypto_sign_seed_keypair(bytes(seed))


def ed25519_sign(expanded: bytes, message: bytes) -> bytes:
    """Return the 64-byte signature of `message` under an expanded key from `ed25519_expand`."""
    return bindings.crypto_sign(message, expanded)[:SIGNATURE_BYTES]


def ed25519_verify(public: bytes, message: bytes, signature: bytes) -> bytes:
    """Return `message` if `signature` over it is by `public`, else raise.

    libsodium refuses small-order keys and points and a non-canonical S, so a signature has one spelling.

    Raises:
        BadSignatureError: it is not, or a length is wrong.
    """
    if len(public) != PUBLIC_KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        raise BadSignatureError(
            f"an Ed25519 key has {PUBLIC_KEY_BYTES} bytes and a signature {SIGNATURE_BYTES}, "
            f"these have {len(public)} and {len(signature)}; nothing was believed"
        )
    try:
        bindings.crypto_sign_open(bytes(signature) + message, bytes(public))
    except CryptoError as error:
        raise BadSignatureError("the Ed25519 signature does not fit bytes and key; nothing was believed") from error
    return message


def hmac_sha256(secret: bytes, message: bytes) -> bytes:
    """Return the 32-byte tag of `message`."""
    return hmac.digest(secret, message, "sha256")


def hmac_sha256_verify(secret: bytes, message: bytes, tag: bytes) -> bytes:
    """Return `message` if `tag` is its whole HMAC-SHA256 under `secret`, else raise; constant time in the tag.

    Raises:
        BadSignatureError: it is not; a truncated tag never is.
    """
    if not hmac.compare_digest(hmac_sha256(secret, message), tag):
        raise BadSignatureError("the HMAC-SHA256 tag does not fit bytes and secret; nothing was believed")
    return message
