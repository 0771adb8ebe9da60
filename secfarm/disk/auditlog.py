"""The audit log on disk: a file of chained records that only grows, and an archive of sources by their digest.

One process writes a log (it holds a lock). A log whose chain is broken is not continued: that would bury the break.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO, Self

from secfarm.disk.guard import check_owner_and_mode, sync_directory, write_all
from secfarm.errors import ConfigError, TrustFileError, VerifyError
from secfarm.limits import MAX_SESSIONS
from secfarm.trust.audit import AuditChain, AuditSummary, AuditValue, verify_chain


class AuditLog:
    """An open log. A context manager."""

    def __init__(self, path: str | os.PathLike[str], *, sync: bool = False) -> None:
        """Open or make the log at `path` and check the chain in it.

        Args:
            sync: force each append down to the disk (some milliseconds). Without it a record outlasts the end of
                this process, not that of the machine.

        Raises:
            VerifyError: the chain in it is broken.
            TrustFileError: others may read or write it, or it cannot be opened.
            ConfigError: another process writes it.
        """
        self._path = Path(path)
        self._sync = sync
        self._descriptor = _open(self._path)
        try:
            _lock(self._path, self._descriptor)
            with os.fdopen(os.dup(self._descriptor), "rb") as file:
                file.seek(0)
                self._chain = AuditChain(_read_chain(self._path, file))
            self._size_bytes = os.fstat(self._descriptor).st_size  # of whole records; nobody else writes it
        except BaseException:
            os.close(self._descriptor)
            raise

    @property
    def head(self) -> str:
        """Hash of the last record."""
        return self._chain.head

    def append(self, record: Mapping[str, AuditValue], now_s: float) -> None:
        """Write one record; see `append_all`."""
        self.append_all([record], now_s)

    def append_all(self, records: Iterable[Mapping[str, AuditValue]], now_s: float) -> None:
        """Write the records in one go; they are with the system when this returns.

        Raises:
            OSError: they could not be written. The log is closed then: what goes unrecorded must not go on. Half a line
                that is in it by then (a full disk) is taken out again, so that the chain is whole.
        """
        lines = b"".join([self._chain.append(record, now_s) for record in records])
        try:
            write_all(self._descriptor, lines)
            if self._sync:
                os.fsync(self._descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._size_bytes)
            self.close()
            raise
        self._size_bytes += len(lines)

    def close(self) -> None:
        """Close the file; closing twice is no error, appending afterwards is an OSError."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def open_free_log(path: Path) -> AuditLog:
    """Return the first of the logs `NAME-1`, `NAME-2`, ... beside `path` that no other process writes.

    Raises:
        VerifyError, TrustFileError: as `AuditLog`.
        ConfigError: all are being written.
    """
    for number in range(1, MAX_SESSIONS + 1):
        with contextlib.suppress(ConfigError):
            return AuditLog(path.with_stem(f"{path.stem}-{number}"))
    raise ConfigError(f"{path}: {MAX_SESSIONS} servers write audit logs beside it; nothing was started")


def verify_log(path: str | os.PathLike[str]) -> AuditSummary:
    """Return what the chain in the file is.

    Raises:
        VerifyError: it is broken; the message names file and line.
        TrustFileError: it cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return _read_chain(Path(path), file)
    except OSError as problem:
        raise TrustFileError(f"{path}: cannot be read ({problem.strerror})") from problem


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, flags, 0o600)
    except (OSError, ValueError) as problem:
        raise TrustFileError(f"{path}: the audit log cannot be opened ({problem}); nothing was started") from problem
    try:
        check_owner_and_mode(path, descriptor, secret=True, error=TrustFileError)
    except TrustFileError:
        os.close(descriptor)
        raise
    return descriptor


def _lock(path: Path, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        raise ConfigError(f"{path}: another server writes this audit log; give each its own `audit`") from problem


def _read_chain(path: Path, file: BinaryIO) -> AuditSummary:
    try:
        summary = verify_chain(file)
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                raise VerifyError("its last line is cut off")
    except VerifyError as error:
        raise VerifyError(f"{path}: {error}. Keep the file as evidence, move it away and a new log begins") from error
    return summary


class SourceArchive:
    """What ran, by digest: one file of each program's text, mode 0600, never overwritten."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        """Use `directory`, which is made (mode 0700) if it is not there.

        Raises:
            TrustFileError: it cannot be made.
        """
        self._directory = Path(directory)
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as problem:
            raise TrustFileError(
                f"{directory}: the source archive cannot be made ({problem}); nothing was started"
            ) from problem

    def keep(self, text: bytes) -> str:
        """Keep `text` and return its digest, hex SHA-256. What is there already is not written again.

        Raises:
            OSError: it cannot be written.
        """
        digest = hashlib.sha256(text).hexdigest()
        path = self.path(digest)
        if path.exists():
            return digest
        # Written beside and then linked: a name here always leads to a whole text, whenever the power fails.
        unfinished = self._directory / f".{digest}.{os.getpid()}"
        unfinished.unlink(missing_ok=True)
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                write_all(descriptor, text)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            try:
                os.link(unfinished, path)
            except FileExistsError:
                return digest
            sync_directory(self._directory)
        finally:
            unfinished.unlink(missing_ok=True)
        return digest

    def path(self, digest: str) -> Path:
        """Return where the text of that digest is, or would be."""
        if len(digest) != 2 * hashlib.sha256().digest_size or not set(digest) <= set("0123456789abcdef"):
            raise ValueError(f"{digest!r} is no digest")
        return self._directory / digest
