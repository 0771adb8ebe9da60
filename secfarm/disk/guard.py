"""Reading files that only their owner may have written (or read), and writing new ones.

The file is opened once and judged by its descriptor; its directories are judged too, since who may rename a file may
replace it. Symbolic links are followed, as ssh follows them: what counts is the file that was opened.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from secfarm.errors import SecfarmError

MAX_GUARDED_BYTES: Final = 1 << 20  # a trust file of some ten thousand keys
_OTHERS: Final = 0o077
_OTHERS_WRITE: Final = 0o022
_ACCESS_LIST: Final = "system.posix_acl_access"


def read_guarded(path: Path, *, secret: bool, error: type[SecfarmError]) -> bytes:
    """Return the content of a file that belongs to us or to root and that nobody else can change.

    Args:
        secret: nobody else may read it either. The access list by which systemd lets its service read a credential
            shows as mode 0440 and opens it to nobody else.
        error: class of what is raised.

    Raises:
        error: it is missing, no regular file, too large, or its owner, mode or a directory of it is wrong; the
            message names the mode and the command that mends it.
    """
    try:
        # Not blocking: a FIFO put in the file's place must not stop the server.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as problem:
        raise error(f"{path}: cannot be opened ({_reason(problem)}); nothing was read") from problem
    try:
        check_owner_and_mode(path, descriptor, secret=secret, error=error)
        for directory in _directories(path):
            _check_directory(path, directory, error)
        content = _read_some(descriptor, MAX_GUARDED_BYTES + 1)
    except OSError as problem:
        raise error(f"{path}: cannot be read ({_reason(problem)})") from problem
    finally:
        os.close(descriptor)
    if len(content) > MAX_GUARDED_BYTES:
        raise error(f"{path}: over the limit of {MAX_GUARDED_BYTES} bytes; it was not used")
    return content


def read_guarded_text(path: Path, *, secret: bool, error: type[SecfarmError]) -> str:
    """Return the same as text.

    Raises:
        error: as `read_guarded`, or it is not UTF-8.
    """
    try:
        return read_guarded(path, secret=secret, error=error).decode()
    except UnicodeDecodeError as problem:
        raise error(f"{path}: not UTF-8 text (byte {problem.start}); it was not used") from problem


def _read_some(descriptor: int, size_bytes: int) -> bytes:
    """Return the first `size_bytes` of a file, fewer where it ends before."""
    pieces: list[bytes] = []
    while size_bytes > 0 and (piece := os.read(descriptor, size_bytes)):
        pieces.append(piece)
        size_bytes -= len(piece)
    return b"".join(pieces)


def write_new(path: Path, content: bytes, *, mode: int, error: type[SecfarmError]) -> None:
    """Write a file that did not exist, down to the disk. Missing directories are made, for us alone.

    Raises:
        error: it exists (an overwritten key is lost), or cannot be written; nothing is left behind then.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, flags, 0o600)
    except FileExistsError as problem:
        raise error(f"{path}: exists already and was not overwritten; choose another name or move it") from problem
    except (OSError, ValueError) as problem:
        raise error(f"{path}: cannot be made ({_reason(problem)})") from problem
    try:
        try:
            os.fchmod(descriptor, mode)
            write_all(descriptor, content)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sync_directory(path.parent)
    except OSError as problem:
        path.unlink(missing_ok=True)
        raise error(f"{path}: cannot be written ({_reason(problem)})") from problem


def write_all(descriptor: int, content: bytes) -> None:
    """Write all of `content`, in as many calls as the system needs."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def sync_directory(directory: Path) -> None:
    """Make a new name in `directory` outlast a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_owner_and_mode(path: Path, descriptor: int, *, secret: bool, error: type[SecfarmError]) -> None:
    """Judge an open regular file as `read_guarded` does; for files that are also written.

    Raises:
        error: as `read_guarded`.
    """
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise error(f"{path}: not a regular file; it was not used")
    _check_owner(path, status, error)
    mode = stat.S_IMODE(status.st_mode)
    if secret and mode & _OTHERS and not _is_ours_by_list(descriptor):
        raise error(f"{path}: its mode {mode:04o} opens it to others; it was not used. Run: chmod 600 {path}")
    if mode & _OTHERS_WRITE:
        raise error(f"{path}: its mode {mode:04o} lets others write it; it was not used. Run: chmod go-w {path}")


def _is_ours_by_list(descriptor: int) -> bool:
    """Whether exactly the owner and we may read the file, by the access list that systemd gives a credential.

    Source: systemd's write_credential (src/core/execute.c); form of the list: linux/posix_acl_xattr.h, version 2.
    """
    nobody = 0xFFFFFFFF
    # Tag, permission, whose: the owner reads, so do we; the owner's group and all others may do nothing.
    entries = [(0x01, 4, nobody), (0x02, 4, os.geteuid()), (0x04, 0, nobody), (0x10, 4, nobody), (0x20, 0, nobody)]
    wanted = struct.pack("<I", 2) + b"".join([struct.pack("<HHI", *entry) for entry in entries])
    try:
        return os.getxattr(descriptor, _ACCESS_LIST) == wanted
    except OSError:  # there is no list
        return False


def _check_owner(path: Path, status: os.stat_result, error: type[SecfarmError]) -> None:
    if status.st_uid not in {0, os.geteuid()}:
        raise error(
            f"{path}: belongs to user {status.st_uid}, not to us ({os.geteuid()}) or root; nothing there was used"
        )


def _directories(path: Path) -> Iterator[Path]:
    """The directories of the name as given and of the file it leads to, nearest first, each once."""
    return iter(dict.fromkeys((*path.resolve().parents, *path.absolute().parents)))


def _check_directory(path: Path, directory: Path, error: type[SecfarmError]) -> None:
    try:
        status = directory.stat()
    except OSError as problem:
        raise error(f"{directory}: cannot be examined ({_reason(problem)}); {path.name} was not used") from problem
    # Farther ones may belong to an owner that this user namespace does not show.
    if directory in {path.resolve().parent, path.absolute().parent}:
        _check_owner(directory, status, error)
    mode = stat.S_IMODE(status.st_mode)
    # Sticky, like /tmp: others can add files there and not replace ours.
    if mode & _OTHERS_WRITE and not mode & stat.S_ISVTX:
        raise error(
            f"{directory}: its mode {mode:04o} lets others replace {path.name}, which was not used. "
            f"Run: chmod go-w {directory}"
        )


def _reason(problem: OSError | ValueError) -> str:
    return (problem.strerror if isinstance(problem, OSError) else None) or str(problem)
