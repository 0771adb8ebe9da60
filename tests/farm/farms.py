"""Real servers for the tests of the client: processes that can be killed and started again, gates, counters.

Tasks and tests meet at named pipes and in files opened with O_APPEND: nothing here waits for time to pass.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, Self

from secfarm import Future, Kernel, SigningKey
from secfarm.auth import Ed25519AuthClient, SharedSecretAuth
from secfarm.auth.base import Auth
from secfarm.disk.keyfile import create_secret, create_signing_key
from secfarm.trust.store import KnownServer, KnownServers

ROOT: Final = Path(__file__).parents[2]
WAIT_S: Final = 30.0  # a bound for what should take milliseconds, on a machine that does other things too
WAYS: Final = ("tcp-ed25519", "unix-ed25519", "tcp-secret", "unix-secret")
PRINCIPAL: Final = "tester"
POLICY: Final = f"""\
[[grant]]
principals = ["{PRINCIPAL}"]
may = ["run", "call", "broadcast", "kill", "admin"]
names = ["*"]
"""


class Daemon:
    """A server process with a folder, keys and an address that outlive it. A context manager."""

    def __init__(self, way: str = "tcp-ed25519", *, workers: int = 2, policy: str = POLICY, name: str = "node") -> None:
        """Start it; `way` says over what it listens and how its clients prove themselves."""
        transport, mechanism = way.split("-")
        self.folder = Path(tempfile.mkdtemp(prefix="secfarm-"))
        self.name = name
        self.auth: Auth
        if mechanism == "secret":
            self.auth = SharedSecretAuth(create_secret(self.folder / "secret", PRINCIPAL))
            keys = 'secrets = ["secret"]'
        else:
            server, client = create_signing_key(self.folder / "key"), SigningKey.from_seed(os.urandom(32))
            self._write("allowed_signers", f"{PRINCIPAL} {client.public.openssh()}\n")
            self.auth = Ed25519AuthClient(client, KnownServers([KnownServer(("*",), server.public)]))
            keys = 'key = "key"\nallowed_signers = "allowed_signers"'
        self._write("policy.toml", policy)
        self._rest = f'{keys}\npolicy = "policy.toml"\nstate = "state"\nname = "{name}"\nworkers = {workers}\n'
        self.address = f"unix:{self.folder}/sock" if transport == "unix" else "127.0.0.1:0"
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline = -1
        self.start()

    def _write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o600)

    def start(self) -> None:
        """Start the process at the address that it has, or had, and return when it takes connections."""
        self._write("config.toml", f"listen = [{json.dumps(self.address)}]\n{self._rest}")
        answer_read, answer = os.pipe()
        lifeline, self._lifeline = os.pipe()
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "secfarm.daemon.process",
                self.folder / "config.toml",
                f"{lifeline}",
                f"{answer}",
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            pass_fds=(lifeline, answer),
            start_new_session=True,
        )
        os.close(answer)
        os.close(lifeline)
        with os.fdopen(answer_read, encoding="utf-8") as pipe:
            self.address = json.loads(pipe.readline())["addresses"][0]

    @property
    def pid(self) -> int:
        """Process id of the daemon."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """End it as a power cut would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        os.close(self._lifeline)

    def close(self) -> None:
        """End it and remove its folder."""
        if self._process is not None and self._process.poll() is None:
            os.close(self._lifeline)
            self._process.wait(WAIT_S)
        shutil.rmtree(self.folder, ignore_errors=True)

    def connect(self, *addresses: str, **settings: object) -> Kernel:
        """Return a kernel on this server, or on `addresses` that lead to it."""
        return Kernel(list(addresses) or [self.address], auth=self.auth, connect_timeout_s=WAIT_S, **settings)  # type: ignore[arg-type]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def allow(first: Daemon, second: Daemon) -> None:
    """Let a client of the first server, which has Ed25519 keys, be one of the second as well."""
    first.auth.known_servers.entries += second.auth.known_servers.entries  # type: ignore[attr-defined]
    second.kill()
    (second.folder / "allowed_signers").write_bytes((first.folder / "allowed_signers").read_bytes())
    second.start()


# --- gates: tasks that stop until they are let through ------------------------------------------------------------


def pass_gate(started: str, go: str, tag: object) -> object:
    """Say that we run, as which process, and go on when we may. A task."""
    import os

    fd = os.open(started, os.O_WRONLY)
    os.write(fd, f"{tag} {os.getpid()}\n".encode())
    os.close(fd)
    fd = os.open(go, os.O_RDONLY)
    os.read(fd, 1)
    os.close(fd)
    return tag


class Gate:
    """A place where tasks wait for the test."""

    def __init__(self, folder: Path) -> None:
        self._started, self._go = str(folder / "started"), str(folder / "go")
        os.mkfifo(self._started)
        os.mkfifo(self._go)
        # Open for both, so that neither side ever waits for the other to open its end.
        self._started_fd, self._go_fd = (os.open(path, os.O_RDWR) for path in (self._started, self._go))
        self._lines = b""

    def arguments(self, tag: object) -> tuple[str, str, object]:
        """What `pass_gate` wants."""
        return self._started, self._go, tag

    def hold(self, kernel: Kernel, tag: object = 0) -> Future[object]:
        """Submit a task that stops at the gate; its result is `tag`."""
        return kernel.submit(pass_gate, *self.arguments(tag))

    def wait(self, count: int = 1) -> list[tuple[str, int]]:
        """Wait until `count` more tasks stand at the gate; return the tag and the process id of each."""
        deadline_s = time.monotonic() + WAIT_S
        while self._lines.count(b"\n") < count:
            readable, _, _ = select.select([self._started_fd], [], [], max(0.0, deadline_s - time.monotonic()))
            assert readable, f"{self._lines.count(10)} of {count} tasks came to the gate"
            self._lines += os.read(self._started_fd, 4096)
        *lines, self._lines = self._lines.split(b"\n", count)
        return [(tag, int(pid)) for tag, pid in (line.decode().rsplit(" ", 1) for line in lines)]

    def open(self, count: int = 1) -> None:
        """Let `count` tasks through, those that come later included."""
        os.write(self._go_fd, b"." * count)

    def close(self) -> None:
        """Let everybody through and forget the gate."""
        self.open(1000)
        os.close(self._started_fd)
        os.close(self._go_fd)


# --- counting -----------------------------------------------------------------------------------------------------


def note(path: str, line: object) -> object:
    """Leave a line in a file and return it. A task."""
    import os

    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{line}\n".encode())
    os.close(fd)
    return line


def notes(path: Path) -> list[int]:
    """Return the numbers that tasks have left."""
    return [int(line) for line in path.read_text().split()] if path.exists() else []


# --- waiting ------------------------------------------------------------------------------------------------------


def until(condition: Callable[[], object], what: str) -> None:
    """Ask again and again; for what nothing can be waited for."""
    deadline_s = time.monotonic() + WAIT_S
    never = threading.Event()
    while not condition():
        assert time.monotonic() < deadline_s, f"never: {what}"
        never.wait(0.002)


def gone(pids: Iterable[int]) -> None:
    """Wait until these processes, children of anybody, are gone."""
    for pid in pids:
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        with contextlib.closing(os.fdopen(fd)):
            ended, _, _ = select.select([fd], [], [], WAIT_S)
            assert ended, f"process {pid} is still there"


def results(futures: Iterable[Future[object]]) -> list[object]:
    """Wait for the results of all."""
    return [future.result(WAIT_S) for future in futures]
