"""Trust files: `allowed_signers`, `known_servers` and the policy, read only where others cannot have written them."""

from __future__ import annotations

import os
from pathlib import Path

from secfarm.disk.guard import check_owner_and_mode, read_guarded_text, write_all
from secfarm.errors import TrustFileError
from secfarm.sign.keys import PublicKey
from secfarm.trust.policy import Policy
from secfarm.trust.store import AllowedSigner, KnownServers, parse_allowed_signers, parse_known_servers


def read_allowed_signers(path: str | os.PathLike[str]) -> tuple[AllowedSigner, ...]:
    """Return the entries of the file.

    Raises:
        TrustFileError: it is missing, writable by others, or a line of it is not understood.
    """
    return parse_allowed_signers(_read(path), file=os.fspath(path))


def read_known_servers(path: str | os.PathLike[str]) -> KnownServers:
    """Return the entries of the file.

    Raises:
        TrustFileError: as `read_allowed_signers`.
    """
    return parse_known_servers(_read(path), file=os.fspath(path))


def read_policy(path: str | os.PathLike[str]) -> Policy:
    """Return the policy in the file.

    Raises:
        TrustFileError: as `read_allowed_signers`.
    """
    return Policy.parse(_read(path), file=os.fspath(path))


def add_known_server(path: str | os.PathLike[str], pattern: str, key: PublicKey, *, comment: str = "") -> None:
    """Add a line to the file, which is made (mode 0600) if it is not there.

    Raises:
        TrustFileError: the line would not be read back as it is meant, or the file is not ours to write.
    """
    path = Path(path)
    line = f"{pattern} {key.openssh(comment)}\n"
    written = parse_known_servers(line, file="the line to add").entries
    if len(written) != 1 or written[0].key != key or ",".join(written[0].patterns) != pattern:
        raise TrustFileError(f"{pattern!r} is no pattern of one word; nothing was written to {path}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    except (OSError, ValueError) as problem:
        raise TrustFileError(f"{path}: cannot be opened to add a line ({problem}); nothing was written") from problem
    try:
        check_owner_and_mode(path, descriptor, secret=False, error=TrustFileError)
        size_bytes = os.fstat(descriptor).st_size
        ends_open = size_bytes > 0 and os.pread(descriptor, 1, size_bytes - 1) != b"\n"
        write_all(descriptor, (b"\n" if ends_open else b"") + line.encode())
        os.fsync(descriptor)
    except OSError as problem:
        raise TrustFileError(f"{path}: cannot be written ({problem})") from problem
    finally:
        os.close(descriptor)


def _read(path: str | os.PathLike[str]) -> str:
    return read_guarded_text(Path(path), secret=False, error=TrustFileError)
