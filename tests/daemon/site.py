"""A server with keys and files of its own, in a thread or a process; and a client that shows every byte it says."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

from secfarm.auth.base import Auth, End, Side
from secfarm.auth.ed25519 import Ed25519AuthClient
from secfarm.auth.shared_secret import SharedSecretAuth
from secfarm.daemon.make import make_server
from secfarm.daemon.server import Server
from secfarm.disk.config import load_server_config
from secfarm.disk.keyfile import create_secret, create_signing_key
from secfarm.errors import SecfarmError
from secfarm.net.tls import initiator_context
from secfarm.sign.envelope import encode_envelope, seal, session_type
from secfarm.sign.keys import SharedSecret, Signer, SigningKey
from secfarm.task import codec
from secfarm.task.capture import capture
from secfarm.task.payload import BATCH_VERSION, Batch, Blob, Call, Order, encode_batch
from secfarm.task.program import NameProgram, Program, make_program
from secfarm.trust.store import KnownServer, KnownServers
from secfarm.wire.address import Address, UnixAddress, parse_address
from secfarm.wire.messages import (
    Goodbye,
    Message,
    OrderResult,
    Outcome,
    Received,
    Results,
    Submit,
)
from secfarm.wire.session import Session
from tests.meeting import NETWORK

ROOT: Final = Path(__file__).parents[2]
DEADLINE_S: Final = 60.0
POLICY: Final = f"""\
[[grant]]
principals = ["ada", "bob"]
may = ["run", "call", "broadcast", "kill", "admin"]
names = ["*"]
{NETWORK}"""
ADA: Final = SigningKey.from_seed(b"\x01" * 32)
BOB: Final = SigningKey.from_seed(b"\x02" * 32)
_sources: Final = itertools.count()
_task_ids: Final = itertools.count(1)
EVE: Final = SigningKey.from_seed(b"\x03" * 32)


class Site:
    """The files of one server, and what a client needs to know of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = create_signing_key(folder / "key")
        self.secret = create_secret(folder / "cy.secret", "cy")
        self.allowed_signers(f"ada {ADA.public.openssh()}\nbob {BOB.public.openssh()}\n")
        self.policy(POLICY)
        self.config()

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o600)
        return path

    def allowed_signers(self, text: str) -> None:
        self.write("allowed_signers", text)

    def policy(self, text: str) -> None:
        self.write("policy.toml", text)

    def config(self, **changes: object) -> Path:
        """Write config.toml: what every server needs, with changes; None leaves a key out."""
        keys: dict[str, object] = {
            "listen": ["127.0.0.1:0"],
            "key": "key",
            "allowed_signers": "allowed_signers",
            "policy": "policy.toml",
            "audit": "audit.jsonl",
            "state": "state",
            "name": "node1",
            "workers": 1,
            **changes,
        }
        lines = [f"{name} = {json.dumps(value)}" for name, value in keys.items() if value is not None]
        return self.write("config.toml", "\n".join(lines) + "\n")

    @property
    def audit(self) -> list[dict[str, object]]:
        """The records so far."""
        written = (self.folder / "audit.jsonl").read_bytes()
        return [
            json.loads(line) for line in written[: written.rfind(b"\n") + 1].splitlines()
        ]  # the last may be under way

    def known(self) -> KnownServers:
        return KnownServers([KnownServer(("*:*", "unix:*"), self.key.public)])

    def auth(self, key: SigningKey = ADA) -> Auth:
        return Ed25519AuthClient(key, self.known())

    def events(self, event: str) -> list[dict[str, object]]:
        return [record for record in self.audit if record["event"] == event]


class Serving:
    """A server of a site in a thread of this process: its insides are in reach of the test. A context manager."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.server: Server
        self.addresses: list[Address] = []
        self.broken: list[dict[str, object]] = []
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda _, context: self.broken.append(context))
        self._error: BaseException | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._started.wait(DEADLINE_S)
        if self._error is not None:
            self._thread.join(DEADLINE_S)
            raise self._error

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._main())
        except BaseException as error:  # noqa: BLE001 - for the thread that waits
            self._error = error
        finally:
            self._started.set()
            self._loop.close()

    async def _main(self) -> None:
        config = load_server_config(self.site.folder / "config.toml", {})
        self.server = make_server(config, None, None)
        self.addresses = await self.server.start(config.listen, config.dial)
        self._started.set()
        await self.server.finished.wait()
        # Transports need a turn or two to close.
        pending = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        async with asyncio.timeout(DEADLINE_S):
            for session in list(self.server.sessions):
                session._connection.abort()
                await session._connection.closed

    @property
    def address(self) -> Address:
        return self.addresses[0]

    def call(self, function: Callable[[], object]) -> object:
        """Run something in the server's loop and return what it returned."""
        done: list[object] = []
        ready = threading.Event()

        def run() -> None:
            done.append(function())
            ready.set()

        self._loop.call_soon_threadsafe(run)
        assert ready.wait(DEADLINE_S)
        return done[0]

    def until(self, condition: Callable[[], bool]) -> None:
        """Return once `condition` holds in the server's loop."""
        met = threading.Event()

        def look() -> None:
            if condition():
                met.set()
            else:
                self._loop.call_later(0.002, look)

        self._loop.call_soon_threadsafe(look)
        assert met.wait(DEADLINE_S), "it never came true"

    def wait(self) -> None:
        """Return once the server has ended."""
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()

    def close(self) -> None:
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self.server.stop)
        self.wait()
        self.server._audit.close()
        assert self._error is None, self._error
        assert self.broken == []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class ServerProcess:
    """A server of a site as a process. Its stderr is a file of the site. A context manager."""

    def __init__(self, site: Site) -> None:
        self.stderr = site.folder / "stderr"
        lifeline, self._lifeline = os.pipe()
        answer_read, answer = os.pipe()
        with self.stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "secfarm.daemon.alone",
                    site.folder / "config.toml",
                    str(lifeline),
                    str(answer),
                ],
                env={"PYTHONPATH": str(ROOT), "HOME": str(site.folder)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                pass_fds=(lifeline, answer),
            )
        os.close(lifeline)
        os.close(answer)
        with os.fdopen(answer_read, encoding="utf-8") as pipe:
            assert select.select([pipe], [], [], DEADLINE_S)[0], self.stderr.read_text()
            self.answer = json.loads(pipe.readline() or "{}")
        self.addresses = [parse_address(text) for text in self.answer.get("addresses", [])]

    @property
    def address(self) -> Address:
        return self.addresses[0]

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Return its exit status once it has ended."""
        return self.process.wait(DEADLINE_S)

    def memory_bytes(self) -> int:
        """What it has in memory now."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def close(self) -> None:
        os.close(self._lifeline)
        try:
            self.wait()
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def connect(address: Address, source: str | None = None) -> socket.socket:
    """A plain socket to a server."""
    if isinstance(address, UnixAddress):
        plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        plain.settimeout(DEADLINE_S)
        plain.connect(address.path)
        return plain
    number = next(_sources) % 60_000
    # A source of its own: penalties of one attack are not those of the next.
    source = f"127.1.{number // 250}.{number % 250 + 1}" if source is None else source
    return socket.create_connection((address.host, address.port), DEADLINE_S, source_address=(source, 0))


class Client:
    """A client made of the library's own parts, which does what it is told, allowed or not. A context manager.

    Attributes:
        session: the sans-I/O machine; None's the rule for attacks that go around it.
        heard: every application message so far.
    """

    def __init__(self, address: Address, auth: Auth, signer: Signer, *, name: str = "laptop") -> None:
        """Open TLS; `meet` does the rest."""
        self.signer = signer
        self.socket = initiator_context().wrap_socket(connect(address), suppress_ragged_eofs=False)
        self.session = Session(
            end=End.INITIATOR,
            side=Side.CLIENT,
            auths={auth.mechanism: auth},
            nonce=os.urandom(32),
            certificate=self.socket.getpeercert(binary_form=True) or b"",
            address=str(address),
            name=name,
            python_version="3.11.2",
            clock=lambda: 1.8e9,
        )
        self.heard: list[Message] = []
        self.outcomes: dict[bytes, Outcome] = {}
        self.announced: set[bytes] = set()
        self.sequence = itertools.count(1)
        self.ended = False

    def meet(self) -> Client:
        """Do the whole handshake, or raise what it failed with."""
        self.session.start()
        self.flush()
        while not self.session.ready:
            self.read()
        return self

    def flush(self) -> None:
        if data := self.session.outgoing():
            self.socket.sendall(data)

    def raw(self, data: bytes) -> None:
        """Send bytes past the session."""
        self.socket.sendall(data)

    def read(self) -> list[Message]:
        """Take what comes next."""
        try:
            data = self.socket.recv(1 << 16)
        except (OSError, EOFError):
            data = b""
        if not data:
            self.ended = True
            raise EOFError("the server closed the connection")
        try:
            new = self.session.receive(data)
        finally:
            self.flush()
        self.heard += new
        for message in new:
            if isinstance(message, Results):
                self.outcomes |= {outcome.task_id: outcome for outcome in message.outcomes}
        return new

    def goodbye(self) -> Goodbye | None:
        """Read to the end of the connection and return the server's last word."""
        with contextlib.suppress(EOFError, SecfarmError):
            while True:
                self.read()
        if not self.ended:
            with contextlib.suppress(OSError):
                while self.socket.recv(1 << 16):
                    pass
        self.ended = True
        return self.session.goodbye

    def sealed(self, batch: Batch | bytes, *, session_id: str | None = None, signer: Signer | None = None) -> bytes:
        payload = batch if isinstance(batch, bytes) else encode_batch(batch)
        kind = session_type(session_id or self.session.session_id)
        return encode_envelope(seal(kind, payload, signer or self.signer))

    def batch(self, *calls: tuple[Program, Call], orders: tuple[Order, ...] = (), sequence: int | None = None) -> Batch:
        """A batch of calls with the programs that the session does not know yet."""
        new = {program.key: program for program, _ in calls if program.key not in self.announced}
        self.announced |= set(new)
        return Batch(
            BATCH_VERSION,
            next(self.sequence) if sequence is None else sequence,
            tuple(program.wire for program in new.values()),
            (),
            tuple(call for _, call in calls),
            orders,
        )

    def task(self, task: object, *args: object, task_id: bytes | None = None, **fields: object) -> tuple[Program, Call]:
        """A call of a function without captured values, or of any name."""
        program = make_program(NameProgram(task)) if isinstance(task, str) else capture(task).program
        arguments: bytes | Blob = codec.encode_call(args, {})
        return program, Call(task_id or next(_task_ids).to_bytes(16, "big"), program.key, arguments, **fields)

    def submit(self, *calls: tuple[Program, Call], orders: tuple[Order, ...] = ()) -> None:
        self.send(Submit(self.sealed(self.batch(*calls, orders=orders))))

    def send(self, message: Message) -> None:
        self.session.send(message)
        self.flush()

    def outcome(self, task_id: bytes) -> Outcome:
        """Wait for the outcome of a task."""
        while task_id not in self.outcomes:
            self.read()
        return self.outcomes[task_id]

    def run(self, task: object, *args: object, **fields: object) -> object:
        """The result of one call."""
        one = self.task(task, *args, **fields)
        self.submit(one)
        outcome = self.outcome(one[1].task_id)
        assert outcome.error is None, outcome.error
        return codec.decode(outcome.value)

    def order(self, order: Order) -> OrderResult:
        """Give an order and return the answer."""
        self.submit(orders=(order,))
        while True:
            for message in self.heard:
                if isinstance(message, OrderResult) and message.request_id == order.request_id:
                    return message
            self.read()

    def acknowledge(self) -> None:
        """Say that every outcome so far was received."""
        self.send(Received(sum(len(one.outcomes) for one in self.heard if isinstance(one, Results))))

    def cut(self) -> None:
        """Break the connection as a pulled plug would."""
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()


def client(serving: Serving | ServerProcess, site: Site, key: SigningKey = ADA, **settings: object) -> Client:
    """A client that has met the server."""
    return _met(Client(serving.address, site.auth(key), key, **settings))


def secret_client(serving: Serving | ServerProcess, secret: SharedSecret) -> Client:
    return _met(Client(serving.address, SharedSecretAuth(secret), secret))


def _met(made: Client) -> Client:
    try:
        return made.meet()
    except BaseException:
        made.cut()
        raise
