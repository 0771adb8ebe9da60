"""Gate and keeper as roles, each with its lists; and the files that a keeper may open once it is at work.

The lists name what the role does beyond computing. Reasons stand where an entry is more than that.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from secfarm.disk.keytab import find_keytab
from secfarm.run import landlock
from secfarm.run.lists import Lists
from secfarm.run.profile import Openings
from secfarm.run.role import Role
from secfarm.run.seccomp import Whole, Word
from secfarm.run.view import TOO_MUCH

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from secfarm.disk.config import ServerConfig

_UNIX, _IP, _IP6, _NETLINK = 1, 2, 10, 16
_STREAM, _DATAGRAM, _PACKETS = 1, 2, 5
_NO_FLAGS: Final = ~0x80800 & 0xFFFFFFFF  # SOCK_CLOEXEC and SOCK_NONBLOCK are free
_SET_PIPE_SIZE: Final = 1031
_FCNTLS: Final = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030)  # duplicates, flags, locks

# No socket of theirs takes an address where they may not make one: sendto is as harmless as write.
_LINES: Final = frozenset({"sendto", "sendmsg", "recvmsg", "setsockopt", "memfd_create"})

GATE: Final = Role(
    "gate",
    "secfarm.daemon.gate",
    ("supervisor", "keeper"),
    Lists(calls=_LINES | {"accept", "accept4"}),
)
# A gate that dials looks names up: the resolver's files, and sockets to ask name servers, nscd or systemd by.
DIALLING_GATE: Final = replace(
    GATE,
    name="dialling gate",
    lists=Lists(
        calls=_LINES | {"accept", "accept4", "connect", "sendmmsg", "recvmmsg"},
        checked={
            "socket": [
                [Word(0, (_UNIX, _IP, _IP6)), Word(1, (_STREAM, _DATAGRAM), _NO_FLAGS)],
                [Word(0, (_NETLINK,)), Whole(2, (0,))],  # which addresses this machine has
            ],
        },
        shown=Openings(network=True),
        tcp=landlock.TCP_CONNECT,
    ),
)
KEEPER: Final = Role(
    "keeper",
    "secfarm.daemon.keeper",
    ("supervisor",),
    Lists(
        calls=_LINES
        | {"open", "openat", "mkdir", "mkdirat", "rmdir", "unlink", "unlinkat", "link", "linkat"}
        | {"rename", "renameat", "renameat2"},
        checked={
            "socketpair": [[Word(0, (_UNIX,)), Word(1, (_STREAM, _PACKETS), _NO_FLAGS)]],
            "fcntl": [[Word(1, (*_FCNTLS, _SET_PIPE_SIZE))]],
        },
    ),
)


def keeper_files(config: ServerConfig, state: Path, environ: Mapping[str, str]) -> list[tuple[str, int]]:
    """Return paths and rights: what a keeper may open, beyond Python's files, when it reads its files again.

    Of each file that is named its directory, for a file that is replaced is another one; where that directory holds
    much else (`/etc`, `/tmp`) the file itself, and then a replaced one needs a restart. The state is written.
    """
    readable = sorted({place for path in _named(config, environ) for place in _places(path) if Path(place).exists()})
    # Its own entries of /proc, and its workers'; memory and environment of others Landlock's domain keeps closed.
    return [("/proc", landlock.READ), *[(path, landlock.READ) for path in readable], (str(state), landlock.WRITE)]


def _named(config: ServerConfig, environ: Mapping[str, str]) -> Iterator[Path]:
    tls = config.tls
    single = (config.file, config.policy, config.key, config.allowed_signers)
    of_tls = () if tls is None else (tls.certificate, tls.key, tls.ca)
    yield from (path for path in (*single, *config.secrets, *of_tls) if path is not None)
    if config.kerberos is not None:
        yield find_keytab(config.kerberos.keytab, environ)
        yield from map(Path, ("/etc/gss/mech", "/etc/gss/mech.d/any"))
        yield from _kerberos_files(environ.get("KRB5_CONFIG", "/etc/krb5.conf").split(":"))


def _kerberos_files(names: list[str]) -> Iterator[Path]:
    """The library reads its configuration at each step, with what it includes (krb5.conf(5))."""
    waiting, seen = list(map(Path, names)), set[Path]()
    while waiting:
        path = waiting.pop()
        yield path
        if path in seen or not path.is_file():
            continue
        seen.add(path)
        for line in path.read_text("utf-8", "replace").splitlines():
            match line.split():
                case ["include", name]:
                    waiting.append(Path(name))
                case ["includedir", name]:
                    yield Path(name, "any")
                    waiting += Path(name).glob("*")
                case _:
                    pass


def _places(path: Path) -> Iterator[str]:
    """Where the name is and where it leads to."""
    for one in {path.absolute(), path.resolve()}:
        directory = os.path.realpath(one.parent)
        yield str(path.resolve()) if directory in TOO_MUCH else directory
