"""Real servers for the tests of the client: processes that can be killed and started again.

Their tasks may use the network, which is how they meet the test: tests/meeting.py.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, Self

from secfarm import Future, Kernel, SigningKey
from secfarm.auth import Ed25519AuthClient, GssAuthClient, SharedSecretAuth
from secfarm.auth.base import Auth
from secfarm.disk.keyfile import create_secret, create_signing_key
from secfarm.trust.store import KnownServer, KnownServers
from tests.auth.realm import HOST, REALM, SERVICE, Realm
from tests.farm.proxy import WAIT_S, Proxy
from tests.meeting import NETWORK

ROOT: Final = Path(__file__).parents[2]
WAYS: Final = ("tcp-ed25519", "unix-ed25519", "tcp-secret", "unix-secret", "dialin-ed25519", "dialin-secret")
HUBS: Final = 4  # kernels that one server that dials in may serve at once
PRINCIPAL: Final = "tester"
POLICY: Final = f"""\
[[grant]]
principals = ["{PRINCIPAL}"]
may = ["run", "call", "broadcast", "kill", "admin"]
names = ["*"]
{NETWORK}"""


class Daemon:
    """A server process with a folder, keys and an address that outlive it. A context manager."""

    def __init__(
        self,
        way: str = "tcp-ed25519",
        *,
        workers: int = 2,
        policy: str = POLICY,
        name: str = "node",
        beside: Daemon | None = None,
        hubs: Sequence[str] = (),
        known: bool = True,
    ) -> None:
        """Start it; `way` says over what it is reached and how its clients prove themselves.

        One that dials in has `HUBS` hubs, at ports that are kept for kernels of `connect`, or those in `hubs`; it also
        listens, for questions such as `ping`. It believes the client of another, `beside` which it serves, and is
        `known` to it by its name.
        """
        transport, mechanism = way.split("-")
        keys = last = ""
        self.folder = Path(tempfile.mkdtemp(prefix="secfarm-"))
        self.name = name
        self.auth: Auth
        self.realm: Realm | None = None
        if mechanism == "gss":
            self.realm = Realm()
            keytab = self.realm.keytab("secfarm.keytab", SERVICE)
            target = None if transport == "dialin" else HOST
            self.auth = GssAuthClient(ccache=self.realm.ticket(), target=target, servers=[name])
            last = f'[kerberos]\nkeytab = "{keytab}"\nallowed_users = ["ada@{REALM}"]\n'
            policy = policy.replace(PRINCIPAL, f"ada@{REALM}")
        elif mechanism == "secret":
            keys = 'secrets = ["secret"]'
            if beside is not None:
                shutil.copy(beside.folder / "secret", self.folder)
                self.auth = beside.auth
            else:
                self.auth = SharedSecretAuth(create_secret(self.folder / "secret", PRINCIPAL))
        elif beside is not None:
            keys = 'key = "key"\nallowed_signers = "allowed_signers"'
            server = create_signing_key(self.folder / "key")
            shutil.copy(beside.folder / "allowed_signers", self.folder)
            self.auth = beside.auth
            if known:
                self.auth.known_servers.entries += (KnownServer((name, f"unix:{self.folder}/sock"), server.public),)  # type: ignore[attr-defined]
        else:
            server, client = create_signing_key(self.folder / "key"), SigningKey.from_seed(os.urandom(32))
            self._write("allowed_signers", f"{PRINCIPAL} {client.public.openssh()}\n")
            self.auth = Ed25519AuthClient(client, KnownServers([KnownServer(("*",), server.public)]))
            keys = 'key = "key"\nallowed_signers = "allowed_signers"'
        self._write("policy.toml", policy)
        self._ports = [reserved_port() for _ in range(HUBS if transport == "dialin" and not hubs else 0)]
        self._free = [f"127.0.0.1:{port.getsockname()[1]}" for port in self._ports]
        self._rest = f'{keys}\npolicy = "policy.toml"\nstate = "state"\nname = "{name}"\nworkers = {workers}\n'
        if hubs or self._free:
            self._rest += f"dial = {json.dumps([*hubs, *self._free])}\n"
        self._rest += last
        self._own = reserved_port()  # while the server is dead, nobody else listens where it is to come back
        self.address = f"unix:{self.folder}/sock"
        if transport == "tcp":
            self.address = f"127.0.0.1:{self._own.getsockname()[1]}"
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
                "secfarm.daemon.alone",
                self.folder / "config.toml",
                f"{lifeline}",
                f"{answer}",
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT), **({} if self.realm is None else self.realm.environ)},
            stdin=subprocess.DEVNULL,
            pass_fds=(lifeline, answer),
            start_new_session=True,
        )
        os.close(answer)
        os.close(lifeline)
        with os.fdopen(answer_read, encoding="utf-8") as pipe:
            self.address = json.loads(pipe.readline())["addresses"][0]

    @property
    def hub(self) -> str:
        """An address that it dials, and that no kernel of `connect` listens on yet."""
        return self._free[0]

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
        for port in (self._own, *self._ports):
            port.close()
        if self.realm is not None:
            self.realm.close()

    def connect(self, *addresses: str, **settings: object) -> Kernel:
        """Return a kernel on this server, or on `addresses` that lead to it."""
        if self._ports and not addresses:
            return self._listen(settings)
        return Kernel(list(addresses) or [self.address], auth=self.auth, connect_timeout_s=WAIT_S, **settings)  # type: ignore[arg-type]

    def _listen(self, settings: dict[str, object]) -> Kernel:
        """Return a kernel that this server has dialled in to."""
        hub = self._free.pop()
        try:
            kernel = Kernel(listen=hub, auth=self.auth, connect_timeout_s=WAIT_S, **settings)  # type: ignore[arg-type]
        except BaseException:
            self._free.append(hub)
            raise
        kernel.on_close(lambda: self._free.append(hub))
        return kernel

    @contextlib.contextmanager
    def through(
        self, cuts: list[tuple[int | None, int | None]] | None = None, **settings: object
    ) -> Iterator[tuple[Proxy, Kernel]]:
        """Yield a relay that cuts (up: from the client), and a kernel that reaches this server through it alone."""
        if not self._ports:
            with Proxy(self.address, cuts) as proxy, self.connect(proxy.address, **settings) as kernel:
                yield proxy, kernel
            return
        hub = self._free.pop()
        kernel = Kernel(listen="127.0.0.1:0", auth=self.auth, **settings)  # type: ignore[arg-type]
        # To the relay, who dials is the client.
        turned = [(down, up) for up, down in cuts or []]
        with contextlib.ExitStack() as stack:
            stack.callback(self._free.append, hub)
            proxy = stack.enter_context(Proxy(kernel.listening[0], turned, port=int(hub.rpartition(":")[2])))
            stack.enter_context(kernel)
            until(lambda: kernel.worker_count, "the server dials in")
            yield proxy, kernel

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def reserved_port() -> socket.socket:
    """Bound, not listening: the system gives the port to nobody, and dialling it is refused.

    Who knows it may listen there beside us, with SO_REUSEADDR, as servers set it.
    """
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", 0))
    return reserved


def allow(first: Daemon, second: Daemon) -> None:
    """Let a client of the first server, which has Ed25519 keys, be one of the second as well."""
    first.auth.known_servers.entries += second.auth.known_servers.entries  # type: ignore[attr-defined]
    second.kill()
    (second.folder / "allowed_signers").write_bytes((first.folder / "allowed_signers").read_bytes())
    second.start()


# --- waiting ------------------------------------------------------------------------------------------------------


def until(condition: Callable[[], object], what: str) -> None:
    """Ask again and again; for what nothing can be waited for."""
    deadline_s = time.monotonic() + WAIT_S
    never = threading.Event()
    while not condition():
        assert time.monotonic() < deadline_s, f"never: {what}"
        never.wait(0.002)


def let_go(reference: weakref.ref[object]) -> None:
    """Wait until nobody holds the object: the kernel's thread lets go of a result a moment after it has told of it."""
    until(lambda: reference() is None or (gc.collect(), reference())[1] is None, "nobody holds it")


def records(log: Path, event: str = "") -> list[dict[str, object]]:
    """The records of an audit log so far, or those of one event; the last line may be under way."""
    written = log.read_bytes()
    found = [json.loads(line) for line in written[: written.rfind(b"\n") + 1].splitlines()]
    return [record for record in found if event in ("", record["event"])]


def children(pid: int | str = "self") -> list[int]:
    """Process ids of the children of a process, none if it has gone."""
    found: list[int] = []
    with contextlib.suppress(OSError):  # the process ends while we look
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):  # a thread does
                found += map(int, path.read_text().split())
    return found


def below(pid: int) -> list[int]:
    """A process and all that came of it."""
    return [pid, *(one for child in children(pid) for one in below(child))]


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


def make_short(kernel: Kernel, *futures: Future[object]) -> None:
    """Let the kernel take the programs of these futures for short, whatever it measured: it sends such tasks ahead."""
    schedule = kernel._dispatch._schedule
    for future in futures:
        schedule._average_s[future._program.key] = 0.0
    for seat in schedule.seats:
        seat.load_s = 0.0


def results(futures: Iterable[Future[object]]) -> list[object]:
    """Wait for the results of all."""
    return [future.result(WAIT_S) for future in futures]
