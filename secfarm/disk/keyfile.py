"""Key files: OpenSSH Ed25519 keys (`cryptography` reads and writes the format) and shared secrets of one line.

`ssh-keygen -y`, `ssh-add` and ssh-agent take what is written here, and what they made is read. Format of a secret
file: docs/operations.md, "Keys".
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from secfarm.disk.guard import read_guarded, read_guarded_text, write_new
from secfarm.errors import KeyFileError
from secfarm.sign.keys import MIN_SECRET_BYTES, PublicKey, SharedSecret, SigningKey
from secfarm.sign.primitives import SEED_BYTES
from secfarm.sign.sshsig import KEY_TYPE

_FIRST_WORD: Final = "secfarm-secret-v1"
_PRIVATE: Final = 0o600
_PUBLIC: Final = 0o644


def read_signing_key(path: str | os.PathLike[str], *, passphrase: Callable[[], bytes] | None = None) -> SigningKey:
    """Return the Ed25519 key of an OpenSSH private key file.

    Args:
        passphrase: called only if the file is encrypted.

    Raises:
        KeyFileError: missing, open to others, malformed, of another type, or the passphrase is not right.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    path = Path(path)
    content = read_guarded(path, secret=True, error=KeyFileError)
    try:
        try:
            key = load_ssh_private_key(content, None)
        except TypeError:  # how cryptography says that a passphrase is needed
            if passphrase is None:
                raise KeyFileError(f"{path}: encrypted, and nobody was there to give its passphrase") from None
            key = load_ssh_private_key(content, passphrase())
    except (ValueError, TypeError) as error:
        raise KeyFileError(f"{path}: no OpenSSH private key, or not its passphrase ({error})") from error
    except UnsupportedAlgorithm as error:
        raise KeyFileError(f"{path}: this installation cannot read it ({error}); try: pip install bcrypt") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{path}: not an {KEY_TYPE} key; make one with `secfarm keygen`")
    return SigningKey.from_seed(key.private_bytes_raw())


def write_signing_key(
    path: str | os.PathLike[str], key: SigningKey, *, comment: str = "", passphrase: bytes | None = None
) -> None:
    """Write `key` to `path` (mode 0600) and its public half to `path`.pub; neither may exist.

    Args:
        passphrase: encrypts the private file; None leaves it plain.

    Raises:
        KeyFileError: one exists or cannot be written.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    path = Path(path)
    public = public_path(path)
    if os.path.lexists(public):
        raise KeyFileError(f"{public}: exists already and was not overwritten; choose another name or move it")
    line = key.public.openssh(comment).encode() + b"\n"
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        encryption = serialization.BestAvailableEncryption(passphrase)
    try:
        content = Ed25519PrivateKey.from_private_bytes(key.reveal_seed()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, encryption
        )
    except UnsupportedAlgorithm as error:
        raise KeyFileError(f"{path}: cannot be encrypted here ({error}); try: pip install bcrypt") from error
    write_new(path, content, mode=_PRIVATE, error=KeyFileError)
    write_new(public, line, mode=_PUBLIC, error=KeyFileError)


def create_signing_key(
    path: str | os.PathLike[str], *, comment: str = "", passphrase: bytes | None = None
) -> SigningKey:
    """Make a new key, write it as `write_signing_key` does, and return it."""
    key = SigningKey.from_seed(os.urandom(SEED_BYTES))
    write_signing_key(path, key, comment=comment, passphrase=passphrase)
    return key


def public_path(path: Path) -> Path:
    """Return where the public half of the key file `path` is."""
    return path.with_name(path.name + ".pub")


def read_public_key(path: str | os.PathLike[str]) -> PublicKey:
    """Return the key of a .pub file: one line `ssh-ed25519 AAAA... [comment]`.

    Raises:
        KeyFileError: missing, writable by others, or not that.
    """
    path = Path(path)
    text = read_guarded_text(path, secret=False, error=KeyFileError)
    try:
        return PublicKey.from_openssh(_only_line(text, path))
    except KeyFileError as error:
        raise KeyFileError(f"{path}: {error}") from error


def read_secret(path: str | os.PathLike[str]) -> SharedSecret:
    """Return the secret of a file `secfarm-secret-v1 PRINCIPAL BASE64`.

    Raises:
        KeyFileError: missing, open to others, malformed or too short. The message never shows the content.
    """
    path = Path(path)
    words = _only_line(read_guarded_text(path, secret=True, error=KeyFileError), path).split()
    match words:
        case [word, principal, encoded] if word == _FIRST_WORD:
            try:
                secret = base64.b64decode(encoded, validate=True)
            except (binascii.Error, ValueError):
                # Without its cause: a traceback would show the frame that holds the secret's text.
                raise KeyFileError(f"{path}: the secret's Base64 is damaged; it was not used") from None
            try:
                return SharedSecret(principal, secret)
            except KeyFileError as error:
                raise KeyFileError(f"{path}: {error}") from error
        case _:
            raise KeyFileError(
                f"{path}: not a line `{_FIRST_WORD} PRINCIPAL BASE64`; make one with `secfarm keygen --secret`"
            )


def write_secret(path: str | os.PathLike[str], secret: SharedSecret) -> None:
    """Write a secret file (mode 0600) that did not exist.

    Raises:
        KeyFileError: it exists or cannot be written.
    """
    encoded = base64.b64encode(secret.reveal_secret()).decode()
    write_new(Path(path), f"{_FIRST_WORD} {secret.principal} {encoded}\n".encode(), mode=_PRIVATE, error=KeyFileError)


def create_secret(path: str | os.PathLike[str], principal: str) -> SharedSecret:
    """Make a new secret of `principal`, write it as `write_secret` does, and return it."""
    secret = SharedSecret(principal, os.urandom(MIN_SECRET_BYTES))
    write_secret(path, secret)
    return secret


def _only_line(text: str, path: Path) -> str:
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) != 1:
        raise KeyFileError(f"{path}: expected one line, found {len(lines)}; it was not used")
    return lines[0]
