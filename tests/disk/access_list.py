"""Access lists of files, as systemd gives them to credentials: see `write_credential` in its src/core/execute.c."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

NONE: Final = 0xFFFFFFFF  # in place of a user


def credential(uid: int, mode: int = 0o400) -> tuple[tuple[int, int, int], ...]:
    """Tag, permission, whose: the owner and `uid` may do what the owner may by `mode`, nobody else anything."""
    owner = mode >> 6
    return ((0x01, owner, NONE), (0x02, owner, uid), (0x04, 0, NONE), (0x10, owner, NONE), (0x20, 0, NONE))


def listed(path: Path, entries: Iterable[tuple[int, int, int]]) -> Path:
    """Give the file this access list."""
    content = struct.pack("<I", 2) + b"".join([struct.pack("<HHI", *entry) for entry in entries])
    os.setxattr(path, "system.posix_acl_access", content)
    return path
