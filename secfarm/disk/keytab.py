"""Keytabs: judged as files before the Kerberos library is asked, for it has one message for all that may be wrong.

What was judged is what the library reads: it gets the content in a memfd, and a new one when the file has changed, so
new keys count without a restart. Format: MIT Kerberos, "Keytab file format", version 0x502.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from secfarm.disk.guard import read_guarded
from secfarm.errors import KeyFileError

_VERSION: Final = b"\x05\x02"
_HOW: Final = "Make it with `kadmin` (ktadd) or `ktutil`: docs/kerberos.md"


class KeytabError(KeyFileError):
    """A `KeyFileError` whose remedy is in docs/kerberos.md."""

    code = "keytab"


@dataclass(frozen=True, slots=True)
class KeytabEntry:
    """One key's name: whose, which version, of which kind. Never the key itself."""

    principal: str
    kvno: int
    enctype: int


def parse_keytab(content: bytes, *, file: str) -> tuple[KeytabEntry, ...]:
    """Return what the keytab holds keys for.

    Raises:
        KeytabError: it is empty or no keytab; it names `file`.
    """
    if not content:
        raise KeytabError(f"{file}: the keytab is empty; it was not used. {_HOW}")
    if not content.startswith(_VERSION):
        raise KeytabError(f"{file}: this is no keytab; it was not used. {_HOW}")
    entries = []
    at = len(_VERSION)
    try:
        while at < len(content):
            size = _Reader(content, at).signed()
            if size > 0:  # a negative one is a hole where a key was deleted
                entries.append(_entry(_Reader(content[: at + 4 + size], at + 4)))
            at += 4 + abs(size)
            if size == 0:
                break
    except (IndexError, UnicodeDecodeError) as error:
        raise KeytabError(f"{file}: the keytab is damaged at byte {at}; it was not used. {_HOW}") from error
    if not entries:
        raise KeytabError(f"{file}: the keytab holds no key; it was not used. {_HOW}")
    return tuple(entries)


class _Reader:
    """Reads big-endian fields; past the end is an IndexError."""

    def __init__(self, content: bytes, at: int) -> None:
        self._content, self._at = content, at

    def take(self, size: int) -> bytes:
        if self._at + size > len(self._content):
            raise IndexError(size)
        self._at += size
        return self._content[self._at - size : self._at]

    @property
    def left(self) -> int:
        return len(self._content) - self._at

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def signed(self) -> int:
        return int.from_bytes(self.take(4), "big", signed=True)

    def text(self) -> str:
        return self.take(self.number(2)).decode()


def _entry(reader: _Reader) -> KeytabEntry:
    components = reader.number(2)
    realm = reader.text()
    name = "/".join([reader.text() for _ in range(components)])
    reader.take(8)  # name type and time
    kvno = reader.number(1)
    enctype = reader.number(2)
    reader.take(reader.number(2))
    if reader.left >= 4 and (long := reader.number(4)):  # noqa: PLR2004 - of a 32-bit field, newer than the 8-bit one
        kvno = long
    return KeytabEntry(f"{name}@{realm}", kvno, enctype)


class KeytabFile:
    """A keytab in a file that belongs to us or to root and that nobody else reads. Safe for several threads."""

    def __init__(self, path: Path) -> None:
        """Read it for the first time.

        Raises:
            KeytabError: it is missing, unreadable, open to others, empty or no keytab; nothing was started.
        """
        self.path = path
        self._lock = threading.Lock()
        self._content: bytes | None = None
        self._descriptor = -1
        self.name()

    def name(self) -> str:
        """Return the name by which GSS finds the keytab as it is now.

        A process that has given up its privileges since may not read the file any more; it goes on with what it read.

        Raises:
            KeytabError: the file has been removed, opened to others, emptied or damaged since.
        """
        with self._lock:
            try:
                content = read_guarded(self.path, secret=True, error=KeytabError)
            except KeytabError as error:
                if not isinstance(error.__cause__, PermissionError):
                    raise
                if self._content is None:
                    raise KeytabError(
                        f"{error}; a keytab belongs to the user who uses it. Run: chown {os.geteuid()} {self.path}"
                    ) from error
                content = self._content
            if content != self._content:
                parse_keytab(content, file=str(self.path))
                self._replace(content)
            return f"FILE:/proc/self/fd/{self._descriptor}"

    def _replace(self, content: bytes) -> None:
        descriptor = os.memfd_create("keytab", os.MFD_CLOEXEC)
        os.write(descriptor, content)
        # In place: a thread that has the old name opens the new keys by it.
        if self._descriptor >= 0:
            os.dup2(descriptor, self._descriptor, inheritable=False)
            os.close(descriptor)
        else:
            self._descriptor = descriptor
        self._content = content

    def entries(self) -> tuple[KeytabEntry, ...]:
        """Return what it holds keys for, as last read."""
        return parse_keytab(self._content or b"", file=str(self.path))

    def close(self) -> None:
        """Forget the keys."""
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1
                self._content = None

    def __del__(self) -> None:
        self.close()


def find_keytab(path: str | os.PathLike[str] | None, environ: Mapping[str, str]) -> Path:
    """Return which keytab a server uses: the one given, that of KRB5_KTNAME, or systemd's credential `keytab`.

    Raises:
        KeytabError: none is named, or KRB5_KTNAME names something else than a file.
    """
    if path is not None:
        return Path(path)
    if named := environ.get("KRB5_KTNAME"):
        kind, colon, rest = named.partition(":")
        if colon and not kind.startswith("/"):
            if kind not in {"FILE", "WRFILE"}:
                raise KeytabError(f"KRB5_KTNAME={named}: only keytabs in files (FILE:) are used; nothing was started")
            named = rest
        return Path(named)
    if directory := environ.get("CREDENTIALS_DIRECTORY"):
        return Path(directory) / "keytab"
    raise KeytabError(
        "no keytab is named: neither --keytab nor keytab of [kerberos] is given, and KRB5_KTNAME is not set; nothing "
        "was started"
    )
