"""Escapes that a worker tries from within its confinement, by order of its server. See probe.py.

Runs where tasks run, as tasks do. Each attempt returns what it got, or raises OSError; nothing here does harm.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

_ANY_PORT: Final = 9
_EXPECTED_DESCRIPTORS: Final = 6  # 0, 1, 2, both pipes, and the worker's own statm
_PTRACE_SEIZE: Final = 0x4206
_PR_GET_DUMPABLE: Final = 3
_PR_GET_NO_NEW_PRIVS: Final = 39
_CLONE_NEWUSER: Final = 0x10000000
_CAPABILITY_VERSION_3: Final = 0x20080522

_libc: Final = ctypes.CDLL(None, use_errno=True)


class Target(NamedTuple):
    """What there is to get."""

    canary: str
    server: int


def attempt(name: str, canary: str, server: int) -> str | None:
    """Try one escape; return what it got hold of, or None.

    Args:
        canary: path of a file that the server's user may read and write.
        server: the server's process id.
    """
    try:
        return ATTEMPTS[name](Target(canary, server))
    except OSError:
        return None


def _read(at: Target) -> str | None:
    return Path(at.canary).read_text("utf-8")


def _read_through_proc(at: Target) -> str | None:
    return Path(f"/proc/{at.server}/root{at.canary}").read_text("utf-8")


def _write(at: Target) -> str | None:
    with Path(at.canary).open("a", encoding="utf-8") as file:
        file.write("written by a probe")
    return at.canary


def _network(_at: Target) -> str | None:
    import _socket

    # Of datagrams: it succeeds where there is a route, whoever listens, and Landlock knows nothing of it.
    _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM).connect(("127.0.0.1", _ANY_PORT))
    return "127.0.0.1"


def _fork(_at: Target) -> str | None:
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return f"process {pid}"


def _memory(at: Target) -> str | None:
    with Path(f"/proc/{at.server}/mem").open("rb"):
        return f"/proc/{at.server}/mem"


def _trace(at: Target) -> str | None:
    return f"process {at.server}" if _libc.ptrace(_PTRACE_SEIZE, at.server, None, None) == 0 else None


def _signal(at: Target) -> str | None:
    if at.server == os.getpid():
        return None  # both are process 1, each of its own namespace
    os.kill(at.server, 0)
    return f"process {at.server}"


def _namespace(_at: Target) -> str | None:
    return "a user namespace" if _libc.unshare(_CLONE_NEWUSER) == 0 else None


def _code(_at: Target) -> str | None:
    mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()
    return "a page"


def _descriptors(_at: Target) -> str | None:
    held = []
    for fd in range(_EXPECTED_DESCRIPTORS, 1024):
        try:
            os.fstat(fd)
        except OSError:
            continue
        held.append(str(fd))
    return f"descriptors {', '.join(held)}" if held else None


def _capabilities(_at: Target) -> str | None:
    header, sets = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    if _libc.capget(header, sets) != 0 or any(sets):
        return " ".join(f"{one:08x}" for one in sets)
    return None


def _privileges(_at: Target) -> str | None:
    gainable = _libc.prctl(_PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1
    return "privileges of a program" if gainable else None


def _dumpable(_at: Target) -> str | None:
    return "being traced" if _libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0) != 0 else None


def _limits(_at: Target) -> str | None:
    kinds = {"memory": resource.RLIMIT_AS, "threads": resource.RLIMIT_NPROC, "files": resource.RLIMIT_NOFILE}
    free = [name for name, kind in kinds.items() if resource.getrlimit(kind)[1] == resource.RLIM_INFINITY]
    return ", ".join(free) or None


ATTEMPTS: Final[dict[str, Callable[[Target], str | None]]] = {
    "read a file of the server": _read,
    "read a file of the server through /proc": _read_through_proc,
    "write a file of the server": _write,
    "reach the network of the server": _network,
    "fork": _fork,
    "open the memory of the server": _memory,
    "trace the server": _trace,
    "signal the server": _signal,
    "enter a namespace": _namespace,
    "make memory for code of its own": _code,
    "inherit descriptors": _descriptors,
    "hold capabilities": _capabilities,
    "gain privileges": _privileges,
    "be dumped": _dumpable,
    "use without a limit": _limits,
}
