"""The system calls that confinement needs and Python does not offer, by number through libc's `syscall`.

Each raises OSError with the call's name. Constants are those of the kernel's headers, which are its ABI and fixed.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

from secfarm.run.syscalls import this_machine

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
MNT_DETACH: Final = 2

MOUNT_ATTR_RDONLY: Final = 1
MOUNT_ATTR_NOSUID: Final = 2
MOUNT_ATTR_NODEV: Final = 4
MOUNT_ATTR_NOEXEC: Final = 8
_AT_FDCWD: Final = -100
_AT_RECURSIVE: Final = 0x8000

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_CAPBSET_DROP: Final = 24
PR_SET_SECUREBITS: Final = 28
PR_SET_CHILD_SUBREAPER: Final = 36
PR_SET_NO_NEW_PRIVS: Final = 38
PR_SET_MDWE: Final = 65
PR_MDWE_REFUSE_EXEC_GAIN: Final = 1
# NOROOT, its lock, the locks of NO_SETUID_FIXUP and KEEP_CAPS, and NO_CAP_AMBIENT_RAISE with its lock.
SECUREBITS: Final = 0x01 | 0x02 | 0x08 | 0x20 | 0x40 | 0x80
_LAST_CAP: Final = 40  # CAP_CHECKPOINT_RESTORE; a newer one is noticed by EINVAL being late
_CAPABILITY_VERSION_3: Final = 0x20080522

_libc: Final = ctypes.CDLL(None, use_errno=True)
_syscall: Final = _libc.syscall
_syscall.restype = ctypes.c_long
_numbers: Final = this_machine().numbers


class MountAttr(ctypes.Structure):
    """struct mount_attr of mount_setattr(2)."""

    _fields_ = (
        ("set", ctypes.c_uint64),
        ("clear", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def syscall(name: str, *args: int | bytes | ctypes.Structure | ctypes.Array[ctypes.c_uint32] | None) -> int:
    """Make a system call and return what it returns.

    Raises:
        OSError: it failed; `filename` is the call's name.
    """
    given = [_argument(one) for one in args]
    result: int = _syscall(ctypes.c_long(_numbers[name]), *given)
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), name)
    return result


def _argument(value: int | bytes | ctypes.Structure | ctypes.Array[ctypes.c_uint32] | None) -> object:
    if isinstance(value, int):
        return ctypes.c_long(value)
    if isinstance(value, ctypes.Structure | ctypes.Array):
        return ctypes.byref(value)
    return ctypes.c_char_p(value)


def prctl(option: int, value: int = 0) -> int:
    """Set or ask an option of this thread; unused arguments are zero, as newer options demand."""
    return syscall("prctl", option, value, 0, 0, 0)


def mount(source: str, target: str, kind: str | None = None, flags: int = 0, options: str | None = None) -> None:
    """Mount a file system, or a directory a second time."""
    texts = [None if one is None else os.fsencode(one) for one in (source, target, kind, options)]
    syscall("mount", texts[0], texts[1], texts[2], flags, texts[3])


def restrict_mount(target: str, attributes: int, *, recursive: bool) -> None:
    """Add attributes such as MOUNT_ATTR_RDONLY to a mount, and to those below it. Linux 5.12."""
    attr = MountAttr(attributes, 0, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    syscall("mount_setattr", _AT_FDCWD, os.fsencode(target), flags, attr, ctypes.sizeof(attr))


def drop_bounding_set() -> None:
    """Take every capability out of the bounding set: no program that is executed can gain one."""
    for capability in range(_LAST_CAP + 1):
        prctl(PR_CAPBSET_DROP, capability)


def drop_capabilities() -> None:
    """Empty the effective, permitted and inheritable sets of this thread."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    syscall("capset", header, (ctypes.c_uint32 * 6)())
