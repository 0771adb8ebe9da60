"""Keys as objects: Ed25519 signing and public keys, shared secrets, and the two protocols that envelopes know.

The type of a key fixes its algorithm; no message can choose one. Secret bytes are in no `repr`, no comparison and no
pickle. A key id is a name for looking keys up, never a proof. Reading and writing files: secfarm/disk/keyfile.py.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import ClassVar, Final, NoReturn, Protocol

from secfarm.errors import KeyFileError
from secfarm.sign import sshsig
from secfarm.sign.primitives import (
    PUBLIC_KEY_BYTES,
    ed25519_expand,
    ed25519_sign,
    ed25519_verify,
    hmac_sha256,
    hmac_sha256_verify,
)
from secfarm.sign.sshsig import TASK_NAMESPACE

MIN_SECRET_BYTES: Final = 32  # as long as the tag; a shorter key weakens HMAC-SHA256 (RFC 2104, section 3)
MAX_SECRET_BYTES: Final = 1024  # more adds nothing: HMAC hashes it down
_KEY_ID_LABEL: Final = b"secfarm key id of a shared secret, v1"
_NOT_SECRETS: Final = (b"ssh-", b"\x00\x00\x00\x0bssh-ed25519", b"-----BEGIN", b"secfarm-secret-v1")


class Signer(Protocol):
    """What `envelope.seal` asks of a key."""

    @property
    def key_id(self) -> str:
        """Name of the key, for the receiver's look-up."""

    @property
    def algorithm(self) -> str:
        """Name of the algorithm, for people."""

    def sign(self, message: bytes) -> bytes:
        """Return the signature of `message`."""


class Verifier(Protocol):
    """What a check of an envelope asks of a key."""

    @property
    def key_id(self) -> str:
        """Name of the key."""

    @property
    def algorithm(self) -> str:
        """Name of the algorithm, for people."""

    def verify(self, message: bytes, signature: bytes, /) -> bytes:
        """Return `message` if the signature over it is this key's, else raise `BadSignatureError`."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """An Ed25519 public key, with the id that OpenSSH gives it."""

    raw: bytes
    key_id: str = field(init=False, compare=False)
    algorithm: ClassVar[str] = sshsig.KEY_TYPE

    def __post_init__(self) -> None:
        if len(self.raw) != PUBLIC_KEY_BYTES:
            raise KeyFileError(f"an Ed25519 public key has {PUBLIC_KEY_BYTES} bytes, this one {len(self.raw)}")
        object.__setattr__(self, "key_id", sshsig.fingerprint(self.raw))

    @classmethod
    def from_openssh(cls, text: str) -> PublicKey:
        """Return the key of one line `ssh-ed25519 AAAA... [comment]`.

        Raises:
            KeyFileError: the line is not that.
        """
        match text.split(maxsplit=2):
            case [key_type, encoded, *_]:
                return cls(sshsig.parse_public(key_type, encoded))
            case _:
                raise KeyFileError("a public key is a line `ssh-ed25519 AAAA... [comment]`; this is not one")

    def openssh(self, comment: str = "") -> str:
        """Return the one-line text form, without a newline."""
        if not comment.isprintable():
            raise KeyFileError(f"the comment {comment!r} of a key must be one printable line; nothing was written")
        encoded = base64.b64encode(sshsig.public_blob(self.raw)).decode()
        return f"{sshsig.KEY_TYPE} {encoded} {comment}".rstrip()

    def verify(self, message: bytes, signature: bytes, /, *, namespace: str = TASK_NAMESPACE) -> bytes:
        """Return `message` if `signature` is this key's SSHSIG blob over it in `namespace`, else raise.

        Raises:
            BadSignatureError: another key, namespace or hash, a damaged blob, or other bytes were signed.
        """
        raw = sshsig.raw_signature(self.raw, namespace, signature)
        ed25519_verify(self.raw, sshsig.signed_bytes(namespace, message), raw)
        return message


class _Unpicklable:
    """Base of what holds secret bytes: pickling and copying are errors, so that no copy is made by accident."""

    __slots__ = ()

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} holds a secret and is not pickled or copied; pass its file's path")


class SigningKey(_Unpicklable):
    """An Ed25519 key pair. Signs in SSHSIG form, in secfarm's namespace unless another is named."""

    __slots__ = ("_expanded", "public")

    algorithm: ClassVar[str] = sshsig.KEY_TYPE
    public: PublicKey
    _expanded: bytes

    def __init__(self, seed: bytes) -> None:
        raw, expanded = ed25519_expand(seed)
        self.public = PublicKey(raw)
        self._expanded = expanded

    @classmethod
    def from_seed(cls, seed: bytes) -> SigningKey:
        """Return the key of 32 random bytes.

        Raises:
            KeyFileError: there are not 32.
        """
        return cls(seed)

    @property
    def key_id(self) -> str:
        """The public key's."""
        return self.public.key_id

    def sign(self, message: bytes) -> bytes:
        """Return the SSHSIG blob of `message` in namespace `task@secfarm`."""
        return self.sign_in(TASK_NAMESPACE, message)

    def sign_in(self, namespace: str, message: bytes) -> bytes:
        """Return the SSHSIG blob of `message` in `namespace`; a signature of one never passes in another."""
        signature = ed25519_sign(self._expanded, sshsig.signed_bytes(namespace, message))
        return sshsig.signature_blob(self.public.raw, namespace, signature)

    def reveal_seed(self) -> bytes:
        """Return the secret 32 bytes, to write them to a key file and nowhere else."""
        return self._expanded[: -len(self.public.raw)]  # libsodium's expanded form is seed, then public key

    def __repr__(self) -> str:
        return f"SigningKey({self.key_id})"


class SharedSecret(_Unpicklable):
    """A secret of one client and its server. Either could have made a tag: it proves nothing to a third party."""

    __slots__ = ("_secret", "key_id", "principal")

    algorithm: ClassVar[str] = "hmac-sha256"
    principal: str
    key_id: str
    _secret: bytes

    def __init__(self, principal: str, secret: bytes) -> None:
        """Take `secret`, at least 32 random bytes, as that of `principal`.

        Raises:
            KeyFileError: it is shorter, or is the text or blob of a key, which others may know.
        """
        if not MIN_SECRET_BYTES <= len(secret) <= MAX_SECRET_BYTES:
            raise KeyFileError(
                f"a shared secret has {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} random bytes, this one {len(secret)}; "
                "make one with `secfarm keygen --secret`"
            )
        if secret.startswith(_NOT_SECRETS):
            raise KeyFileError("this is the text of a key, not a secret; make one with `secfarm keygen --secret`")
        if not principal or not principal.isprintable() or any(map(str.isspace, principal)):
            raise KeyFileError(f"the principal {principal!r} of a secret must be one printable word")
        self.principal = principal
        self._secret = bytes(secret)
        self.key_id = "HMAC:" + base64.b64encode(hmac_sha256(self._secret, _KEY_ID_LABEL)).decode().rstrip("=")

    def sign(self, message: bytes) -> bytes:
        """Return the 32-byte HMAC-SHA256 of `message`."""
        return hmac_sha256(self._secret, message)

    def verify(self, message: bytes, signature: bytes, /) -> bytes:
        """Return `message` if `signature` is its tag, else raise.

        Raises:
            BadSignatureError: it is not.
        """
        return hmac_sha256_verify(self._secret, message, signature)

    def reveal_secret(self) -> bytes:
        """Return the secret bytes, to write them to a secret file and nowhere else."""
        return self._secret

    def __repr__(self) -> str:
        return f"SharedSecret({self.principal!r}, {self.key_id})"
