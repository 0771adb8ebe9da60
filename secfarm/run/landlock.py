"""Landlock: which files a process may read and write, by path, whoever owns them; and no TCP, no foreign signals.

Each version of the kernel's interface (ABI) knows more rights. All that the running one knows are denied, then the
few that a worker needs are given back. Source: the kernel's Documentation/userspace-api/landlock.rst.
"""

from __future__ import annotations

import ctypes
import os
import stat
from typing import Final

from secfarm.run.libc import syscall

_VERSION: Final = 1  # LANDLOCK_CREATE_RULESET_VERSION
_PATH_BENEATH: Final = 1

EXECUTE: Final = 1 << 0
WRITE_FILE: Final = 1 << 1
READ_FILE: Final = 1 << 2
READ_DIR: Final = 1 << 3
_REMOVE: Final = 1 << 4 | 1 << 5  # directory, file
_MAKE_DIR: Final = 1 << 7
_MAKE_REG: Final = 1 << 8
_REFER: Final = 1 << 13
_TRUNCATE: Final = 1 << 14
_IOCTL_DEV: Final = 1 << 15

READ: Final = READ_FILE | READ_DIR
# Directories and plain files: no links, sockets, pipes and devices, which somebody outside might follow or open.
WRITE: Final = READ | WRITE_FILE | _REMOVE | _MAKE_DIR | _MAKE_REG | _REFER | _TRUNCATE
_OF_FILES: Final = EXECUTE | WRITE_FILE | READ_FILE | _TRUNCATE | _IOCTL_DEV

# The first ABI that knows a right, and all file rights up to there.
_FILE_RIGHTS: Final = ((5, 0xFFFF), (3, 0x7FFF), (2, 0x3FFF), (1, 0x1FFF))
_NET_ABI: Final = 4
TCP_BIND: Final = 1 << 0
TCP_CONNECT: Final = 1 << 1
TCP: Final = TCP_BIND | TCP_CONNECT
SCOPE_ABI: Final = 6
_SCOPES: Final = 0b11  # abstract unix sockets and signals stay inside
MIN_ABI: Final = 3  # before, files could be truncated that may only be read


class _Ruleset(ctypes.Structure):
    """struct landlock_ruleset_attr."""

    _fields_ = (("files", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    """struct landlock_path_beneath_attr."""

    _pack_ = 1
    _fields_ = (("access", ctypes.c_uint64), ("parent", ctypes.c_int32))


def abi() -> int:
    """Return the kernel's version of the interface.

    Raises:
        OSError: there is none (before Linux 5.13, or it is not among the kernel's `lsm=`).
    """
    return syscall("landlock_create_ruleset", None, 0, _VERSION)


def engage(version: int, rules: list[tuple[str, int]], *, tcp: int = 0) -> None:
    """Confine this process to the paths in `rules`, for good; no new privileges must be set before.

    Args:
        version: what `abi` returned.
        rules: a file or directory with all below it, and rights.
        tcp: what is left alone of `TCP`.

    Raises:
        OSError: a path is not there, or the kernel refused.
    """
    known = next(rights for first, rights in _FILE_RIGHTS if version >= first)
    # A kernel takes only the fields that it knows.
    size = 24 if version >= SCOPE_ABI else 16 if version >= _NET_ABI else 8
    net = TCP & ~tcp if version >= _NET_ABI else 0
    attr = _Ruleset(known, net, _SCOPES if version >= SCOPE_ABI else 0)
    ruleset = syscall("landlock_create_ruleset", attr, size, 0)
    try:
        for path, rights in rules:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                own = known if stat.S_ISDIR(os.fstat(fd).st_mode) else known & _OF_FILES
                syscall("landlock_add_rule", ruleset, _PATH_BENEATH, _Beneath(rights & own, fd), 0)
            finally:
                os.close(fd)
        syscall("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)
