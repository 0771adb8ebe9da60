"""What code that took over a gate or a keeper would try, from within the very lists that bind them; and a control.

A script: `breaking_out.py ROLE FOLDER` prints a JSON object, attack -> what it got, or null. ROLE `none` is not bound.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from secfarm.daemon.roles import DIALLING_GATE, GATE, KEEPER, keeper_files
from secfarm.disk.config import load_server_config
from secfarm.run import libc
from secfarm.run.lists import begin

PTRACE_SEIZE: Final = 0x4206
ROLES: Final = {"gate": GATE, "dialling gate": DIALLING_GATE, "keeper": KEEPER}
_libc: Final = ctypes.CDLL(None, use_errno=True)


class World(NamedTuple):
    """What there is to get."""

    folder: Path
    port: int
    victim: int
    abstract: str


def _checked(result: int, got: str) -> str:
    if result == -1:
        raise OSError(ctypes.get_errno(), got)
    return got


def shell(_: World) -> str:
    return subprocess.run(["/bin/sh", "-c", "echo shell"], capture_output=True, text=True, check=True).stdout


def fork(_: World) -> str:
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return "a process"


def passwd(_: World) -> str:
    return Path("/etc/passwd").read_text()[:4]


def key(at: World) -> str:
    return (at.folder / "key").read_text()[:4]


def policy(at: World) -> str:
    with (at.folder / "policy.toml").open("a") as file:
        file.write("\n")
    return "written"


def other_file(at: World) -> str:
    (at.folder.parent / "other").write_text("")
    return "written"


def connect(at: World) -> str:
    socket.create_connection(("127.0.0.1", at.port), 5).close()
    return "connected"


def connect_abstract(at: World) -> str:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(at.abstract)
    return "connected"


def listen(_: World) -> str:
    socket.create_server(("127.0.0.1", 0)).close()
    return "a socket"


def datagram(at: World) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return str(sock.sendto(b"told", ("127.0.0.1", at.port)))


def trace(at: World) -> str:
    return _checked(_libc.ptrace(PTRACE_SEIZE, at.victim, None, None), "traced")


def signal(at: World) -> str:
    os.kill(at.victim, 0)
    return "signalled"


def memory(at: World) -> str:
    with Path(f"/proc/{at.victim}/mem").open("rb"):
        return "opened"


def environment(at: World) -> str:
    return str(Path(f"/proc/{at.victim}/environ").read_bytes())


def code(_: World) -> str:
    mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()
    return "a page"


def ring(_: World) -> str:
    return f"descriptor {libc.syscall('io_uring_setup', 1, (ctypes.c_uint32 * 30)())}"


ATTACKS: Final[dict[str, Callable[[World], str]]] = {
    attack.__name__: attack
    for attack in (shell, fork, passwd, key, policy, other_file, connect, connect_abstract, listen, datagram)
} | {attack.__name__: attack for attack in (signal, memory, environment, code, ring, trace)}


def main(name: str, folder: str) -> None:
    """Bind this process as the role is bound, then try everything."""
    site = Path(folder)
    abstract = f"\0secfarm-{os.getpid()}"
    with (
        subprocess.Popen(["/bin/sleep", "60"], env={}) as victim,
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as hidden,
    ):
        hidden.bind(abstract)
        hidden.listen()
        # Ended from outside, which the lists do not let us do.
        end, told = os.pipe()
        killer = subprocess.Popen(
            [sys.executable, "-c", f"import os, sys; sys.stdin.read(); os.kill({victim.pid}, 9)"], stdin=end
        )
        os.close(end)
        if name != "none":
            config = load_server_config(site / "config.toml", {})
            (site / "state").mkdir(exist_ok=True)
            begin()
            ROLES[name].settle(keeper_files(config, site / "state", {}) if name == "keeper" else ())
        world = World(site, server.getsockname()[1], victim.pid, abstract)
        print(json.dumps({attack: _got(ATTACKS[attack], world) for attack in ATTACKS}))
        os.close(told)
        killer.wait()


def _got(attack: Callable[[World], str], world: World) -> str | None:
    try:
        return attack(world)
    except OSError:
        return None


if __name__ == "__main__":
    main(*sys.argv[1:])
