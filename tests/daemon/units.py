"""`secfarm serve` as contrib/systemd starts it, without systemd: its socket, credentials, notifications and filters."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self

from secfarm import Kernel
from secfarm.run import libc, seccomp
from secfarm.run.syscalls import this_machine
from tests.daemon.site import ADA, DEADLINE_S, ROOT, Site
from tests.disk.access_list import credential, listed
from tests.run import nobody

SERVICE: Final = ROOT / "contrib/systemd/secfarm.service"
SOCKET: Final = ROOT / "contrib/systemd/secfarm.socket"
NAMES: Final = {"server": "key", "cy": "cy.secret"}  # of credentials -> of the site's files
_HIGH: Final = 300  # a descriptor that nobody has
_AS_ROOT: Final = os.geteuid() == 0


def analyze(*words: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", "--no-pager", *words],
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def directives(unit: Path) -> list[tuple[str, str]]:
    """What a unit says, in its order."""
    lines = [line for line in unit.read_text("utf-8").splitlines() if "=" in line and not line.startswith("#")]
    return [(name, value) for name, _, value in (line.partition("=") for line in lines)]


@functools.cache
def _calls(word: str) -> frozenset[str]:
    if not word.startswith("@"):
        return frozenset({word})
    done = analyze("syscall-filter", word)
    assert done.returncode == 0, done.stderr
    members = re.findall(r"^    ([@\w-]+)$", done.stdout, re.MULTILINE)
    return frozenset().union(*map(_calls, members))


def calls_of_unit() -> frozenset[str]:
    """The system calls that the unit allows."""
    allowed = _calls("@default")
    for words in [value for name, value in directives(SERVICE) if name == "SystemCallFilter"]:
        called = frozenset().union(*map(_calls, words.removeprefix("~").split()))
        allowed = allowed - called if words.startswith("~") else allowed | called
    return allowed


def filter_of(allowed: frozenset[str]) -> bytes:
    machine = this_machine()
    return seccomp.build(seccomp.Rules(allowed, {}, frozenset(machine.numbers) - allowed), machine)


def no_privileges(program: bytes) -> None:
    """Between fork and exec: an ordinary user without capabilities, under a filter."""
    if _AS_ROOT:
        libc.drop_bounding_set()
        nobody.become()
    libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
    libc.prctl(libc.PR_SET_MDWE, libc.PR_MDWE_REFUSE_EXEC_GAIN)
    seccomp.engage(program)


def grant_by_list(path: Path, mode: int) -> None:
    """Let nobody read a file of root's, as systemd does it."""
    path.chmod(mode)
    listed(path, credential(nobody.NOBODY, mode))


def grant_by_owner(path: Path, mode: int) -> None:
    """The same where the file system has no access lists."""
    path.chmod(mode)
    if _AS_ROOT:
        os.chown(path, nobody.NOBODY, 0)


class Unit:
    """A running service. A context manager."""

    def __init__(self, folder: Path, listening: socket.socket, grant: Callable[[Path, int], None]) -> None:
        self.site = Site(folder)
        self.address = f"unix:{name}" if isinstance(name := listening.getsockname(), str) else f"127.0.0.1:{name[1]}"
        self.stderr = folder / "stderr"
        self.credentials = folder / "credentials"
        self.credentials.mkdir()
        for name, file in NAMES.items():
            (folder / file).rename(self.credentials / name)
            grant(self.credentials / name, 0o400)
        grant(self.credentials, 0o500)
        (folder / "state").mkdir(mode=0o700)
        if _AS_ROOT:
            os.chown(folder / "state", nobody.NOBODY, nobody.NOBODY)
        self.site.config(
            listen=["127.0.0.1:1"],  # where nobody may listen
            key="credential:server",
            secrets=["credential:cy"],
            audit="state/audit.jsonl",
        )
        for name in ("config.toml", "policy.toml", "allowed_signers"):
            (folder / name).chmod(0o644)
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.manager.bind(f"{folder}/notify")
        self.manager.settimeout(DEADLINE_S)
        (folder / "notify").chmod(0o666)
        self.process = self._start(listening)

    def _start(self, listening: socket.socket) -> subprocess.Popen[bytes]:
        given = fcntl.fcntl(listening, fcntl.F_DUPFD, _HIGH)
        # As systemd: descriptor 3, and its reader's process id, which is known once it is there.
        activated = f'exec 3<&{given} {given}<&-; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=x exec "$@"'
        serve = [sys.executable, "-m", "secfarm", "serve", "-c", self.site.folder / "config.toml"]
        program = filter_of(calls_of_unit())
        try:
            with self.stderr.open("wb") as stderr:
                return subprocess.Popen(
                    ["bash", "-c", activated, "-", *serve],
                    cwd=ROOT,
                    env={
                        "PYTHONPATH": str(ROOT),
                        "PYTHONDONTWRITEBYTECODE": "1",
                        "CREDENTIALS_DIRECTORY": str(self.credentials),
                        "NOTIFY_SOCKET": f"{self.site.folder}/notify",
                    },
                    preexec_fn=lambda: no_privileges(program),  # noqa: PLW1509 the tests have one thread
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    pass_fds=(given,),
                )
        finally:
            os.close(given)

    def heard(self) -> str:
        """What the service tells next, in one line."""
        try:
            return self.manager.recv(4096).decode("ascii").replace("\n", "; ")
        except TimeoutError:
            raise AssertionError(f"it said nothing; {self.stderr.read_text()}") from None

    def log(self) -> list[dict[str, str]]:
        """The records so far; every line is one."""
        return [json.loads(line) for line in self.stderr.read_text("ascii").splitlines()]

    def kernel(self, **settings: Any) -> Kernel:
        return Kernel([self.address], auth=self.site.auth(), key=ADA, **settings)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
