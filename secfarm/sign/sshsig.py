"""OpenSSH's forms: public key blobs and text, fingerprints, and SSHSIG signatures, for Ed25519 only.

There is no parser: a form is checked by writing the one spelling that it may have and comparing the whole. So
`ssh-keygen -Y verify` checks what secfarm signed, and nothing malleable rides along.
Source: OpenSSH PROTOCOL.sshsig; RFC 4253, section 6.6; RFC 8709, section 4.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Final

from secfarm.errors import BadSignatureError, KeyFileError
from secfarm.sign.primitives import PUBLIC_KEY_BYTES, SIGNATURE_BYTES

KEY_TYPE: Final = "ssh-ed25519"
TASK_NAMESPACE: Final = "task@secfarm"

_MAGIC: Final = b"SSHSIG"
_VERSION: Final = (1).to_bytes(4, "big")
_HASH: Final = b"sha512"
_ARMOR_BEGIN: Final = "-----BEGIN SSH SIGNATURE-----"
_ARMOR_END: Final = "-----END SSH SIGNATURE-----"
_ARMOR_COLUMNS: Final = 70  # as ssh-keygen writes it


def _string(value: bytes) -> bytes:
    return len(value).to_bytes(4, "big") + value


_TYPE_STRING: Final = _string(KEY_TYPE.encode())


def public_blob(raw: bytes) -> bytes:
    """Return the SSH wire form of a raw public key; what `authorized_keys` holds in Base64."""
    return _TYPE_STRING + _string(raw)


def fingerprint(raw: bytes) -> str:
    """Return the `SHA256:...` fingerprint that `ssh-keygen -l` prints."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(public_blob(raw)).digest()).decode().rstrip("=")


def parse_public(key_type: str, encoded: str) -> bytes:
    """Return the raw public key of the two words `ssh-ed25519 AAAA...`.

    Raises:
        KeyFileError: another type, bad Base64, or not exactly a key of that type.
    """
    if key_type != KEY_TYPE:
        raise KeyFileError(f"key type {key_type!r} is not supported, only {KEY_TYPE} is; the key was not read")
    try:
        blob = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise KeyFileError(f"the key's Base64 is damaged ({error}); copy the whole line of the .pub file") from error
    raw = blob[-PUBLIC_KEY_BYTES:]
    if blob != public_blob(raw) or base64.b64encode(blob).decode() != encoded:
        raise KeyFileError(f"the key is not a well-formed {KEY_TYPE} key; copy the whole line of the .pub file")
    return raw


def signed_bytes(namespace: str, message: bytes) -> bytes:
    """Return what the raw signature covers: the namespace and SHA-512 of the message, framed."""
    digest = hashlib.sha512(message).digest()
    return _MAGIC + _string(namespace.encode()) + _string(b"") + _string(_HASH) + _string(digest)


def signature_blob(raw_public: bytes, namespace: str, signature: bytes) -> bytes:
    """Return the SSHSIG blob around a raw 64-byte signature."""
    inner = _TYPE_STRING + _string(signature)
    fields = (public_blob(raw_public), namespace.encode(), b"", _HASH, inner)
    return _MAGIC + _VERSION + b"".join(map(_string, fields))


def raw_signature(raw_public: bytes, namespace: str, blob: bytes) -> bytes:
    """Return the raw signature inside `blob`, which must be the one blob of this key, namespace and signature.

    Raises:
        BadSignatureError: any other byte is different; the signature itself is not checked here.
    """
    signature = blob[-SIGNATURE_BYTES:]
    if blob != signature_blob(raw_public, namespace, signature):
        raise BadSignatureError(
            f"not an SSHSIG signature of key {fingerprint(raw_public)} in namespace {namespace!r}; nothing was believed"
        )
    return signature


def armor(blob: bytes) -> str:
    """Return the text form of an SSHSIG blob, as `ssh-keygen -Y sign` writes it."""
    text = base64.b64encode(blob).decode()
    lines = [text[start : start + _ARMOR_COLUMNS] for start in range(0, len(text), _ARMOR_COLUMNS)]
    return "\n".join([_ARMOR_BEGIN, *lines, _ARMOR_END, ""])


def dearmor(text: str) -> bytes:
    """Return the blob of an armored signature; its content is judged by `raw_signature`.

    Raises:
        BadSignatureError: the lines are not an armored signature.
    """
    lines = text.split()
    begin, end = _ARMOR_BEGIN.split(), _ARMOR_END.split()
    if lines[: len(begin)] != begin or lines[-len(end) :] != end:
        raise BadSignatureError(f"no {_ARMOR_BEGIN!r} ... {_ARMOR_END!r} around the signature; nothing was believed")
    try:
        return base64.b64decode("".join(lines[len(begin) : -len(end)]), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadSignatureError(f"the armored signature's Base64 is damaged ({error}); nothing was believed") from error
