"""The one in the middle, and the false server: the client believes nothing, and no result reaches a future."""

from __future__ import annotations

import contextlib
import os
import queue
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Self

import pytest

from secfarm import Kernel
from secfarm.auth.base import End, Side
from secfarm.auth.ed25519 import Ed25519AuthClient, Ed25519AuthServer
from secfarm.errors import AuthError, KernelCreationError, SecfarmError
from secfarm.net.tls import acceptor_context, initiator_context
from secfarm.sign.envelope import decode_envelope
from secfarm.sign.keys import SigningKey
from secfarm.task import codec
from secfarm.task.outcome import ErrorRecord
from secfarm.task.payload import Blob, decode_batch
from secfarm.trust.store import KnownServer, KnownServers, TrustStore, parse_allowed_signers
from secfarm.wire.address import Address, parse_address
from secfarm.wire.frames import encode_frame
from secfarm.wire.messages import Chunk, Message, OrderResult, Outcome, Results, Submit, Welcome, encode_message
from secfarm.wire.session import Session
from tests.daemon.site import ADA, BOB, DEADLINE_S, Client, Serving, Site, connect

Alter = Callable[[int, bytes], bytes]  # (0: to the server, 1: to the client), bytes of one reading


class Relay:
    """Listens, and passes what comes on to an address, altered. A context manager."""

    def __init__(self, address: Address, alter: Alter, *, ends_tls: bool) -> None:
        self._upstream = address
        self._alter = alter
        self._context = acceptor_context()[0] if ends_tls else None
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self.relayed = [b"", b""]
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ending.is_set():
            if not select.select([self._listening], [], [], 0.05)[0]:
                continue
            client, _ = self._listening.accept()
            with contextlib.suppress(OSError), client, connect(self._upstream) as server:
                if self._context is None:
                    self._carry(client, server)
                else:
                    with (
                        self._context.wrap_socket(client, server_side=True) as near,
                        initiator_context().wrap_socket(server) as far,
                    ):
                        self._carry(near, far)

    def _carry(self, client: socket.socket, server: socket.socket) -> None:
        pair = (client, server)
        while not self._ending.is_set():
            pending = [one for one in pair if isinstance(one, ssl.SSLSocket) and one.pending()]
            for one in pending or select.select(pair, [], [], 0.05)[0]:
                way = pair.index(one)
                data = one.recv(1 << 16)
                if not data:
                    return
                self.relayed[way] += data
                pair[1 - way].sendall(self._alter(way, data))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._ending.set()
        self._thread.join(DEADLINE_S)
        self._listening.close()


def same(way: int, data: bytes) -> bytes:
    return data


def known(key: SigningKey) -> KnownServers:
    return KnownServers([KnownServer(("*:*",), key.public)])


def through(relay: Relay, site: Site) -> Client:
    return Client(parse_address(relay.address), site.auth(), ADA)


def test_a_relay_below_tls_changes_nothing(site: Site, serving: Serving) -> None:
    """What the other tests stand on: it is the relay's certificate, or its bytes, that make them fail."""
    with Relay(serving.address, same, ends_tls=False) as relay, through(relay, site) as ada:
        assert ada.meet().run("builtins:abs", -1) == 1


def test_a_relay_with_its_own_certificate_is_noticed_by_both_ends(site: Site, serving: Serving) -> None:
    with Relay(serving.address, same, ends_tls=True) as relay:
        with through(relay, site) as ada, pytest.raises(AuthError):
            ada.meet()
        with pytest.raises(KernelCreationError, match="no session"):
            Kernel([relay.address], auth=site.auth(), connect_timeout_s=DEADLINE_S)
        serving.until(lambda: bool(site.events("turned-away")))
    assert site.events("session") == []
    assert serving.server.verified == 0


@pytest.mark.parametrize("way", [0, 1], ids=["to the server", "to the client"])
@pytest.mark.parametrize("nth", [0, 1, 2, 4])
def test_a_flipped_bit_on_the_wire_ends_the_session(site: Site, serving: Serving, way: int, nth: int) -> None:
    """Wherever it falls; a result whose bytes were touched is none."""
    seen = [0, 0]

    def flip(where: int, data: bytes) -> bytes:
        seen[where] += 1
        if where == way and seen[where] == nth + 1:
            return data[:-1] + bytes([data[-1] ^ 1])
        return data

    def work(relay: Relay) -> None:
        with through(relay, site) as ada:
            ada.meet()
            for number in range(20):
                assert ada.run("builtins:abs", -number) == number

    with Relay(serving.address, flip, ends_tls=False) as relay, pytest.raises((OSError, EOFError, SecfarmError)):
        work(relay)


def test_a_cut_stream_is_an_error_and_no_end(site: Site, serving: Serving) -> None:
    with Relay(serving.address, same, ends_tls=False) as relay:
        ada = through(relay, site).meet()
    with ada:
        with pytest.raises((OSError, EOFError)):
            read_on(ada)
        with pytest.raises(SecfarmError, match="without a goodbye"):
            ada.session.receive_end()


def read_on(client: Client) -> None:
    """What was said before a cut may come first."""
    while True:
        client.read()


def test_a_server_with_another_key_than_the_known_one_is_refused(site: Site, serving: Serving) -> None:
    auth = Ed25519AuthClient(ADA, known(BOB))
    with Client(serving.address, auth, ADA) as ada, pytest.raises(AuthError):
        ada.meet()
    with pytest.raises(KernelCreationError):
        Kernel([str(serving.address)], auth=auth, connect_timeout_s=DEADLINE_S)
    with pytest.raises(KernelCreationError):
        Kernel([str(serving.address)], auth=Ed25519AuthClient(ADA, KnownServers()), connect_timeout_s=DEADLINE_S)
    assert site.events("session") == []


# --- a server that is proven and lies -----------------------------------------------------------------------------


class FalseServer:
    """A server with a known key that answers each batch with whatever the test says. A context manager.

    It waits to be dialled, or `dials` the hubs that it is told.
    """

    def __init__(
        self, answer: Callable[[tuple[bytes, ...]], list[Message]], key: SigningKey, *, dials: bool = False
    ) -> None:
        self._answer = answer
        self.dials = dials
        self.hubs: queue.Queue[str] = queue.Queue()
        self._auth = Ed25519AuthServer(
            key, TrustStore(parse_allowed_signers(f"ada {ADA.public.openssh()}\n", file="allowed_signers"))
        )
        self._context, self._certificate = acceptor_context()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self.goodbyes: list[str] = []
        self.ended = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._closing.is_set():
            if self.dials:
                with contextlib.suppress(queue.Empty):
                    plain = connect(parse_address(self.hubs.get(timeout=0.05)))
                    with contextlib.suppress(OSError, SecfarmError), initiator_context().wrap_socket(plain) as tls:
                        self._serve(tls, End.INITIATOR, tls.getpeercert(binary_form=True) or b"")
                continue
            if not select.select([self._listening], [], [], 0.05)[0]:
                continue
            plain, _ = self._listening.accept()
            with contextlib.suppress(OSError, SecfarmError), self._context.wrap_socket(plain, server_side=True) as tls:
                self._serve(tls, End.ACCEPTOR, self._certificate)

    def _serve(self, tls: ssl.SSLSocket, end: End, certificate: bytes) -> None:
        session = Session(
            end=end,
            side=Side.SERVER,
            auths={"ed25519": self._auth},
            nonce=os.urandom(32),
            certificate=certificate,
            address="",
            name="false",
            python_version="",
            clock=lambda: 1.8e9,
            welcome=Welcome("false", "3.11.2", 1, 1000),
        )
        session.start()
        tls.settimeout(DEADLINE_S)
        while not self._closing.is_set():
            if data := session.outgoing():
                tls.sendall(data)
            if not (tls.pending() or select.select([tls], [], [], 0.05)[0]):
                continue
            data = tls.recv(1 << 16)
            if not data:
                break
            for message in session.receive(data):
                if isinstance(message, Submit):
                    batch = decode_batch(decode_envelope(message.envelope).payload)
                    for said in self._answer(tuple(call.task_id for call in batch.calls)):
                        session._outgoing.append(encode_frame(encode_message(said)))  # allowed or not
        if session.goodbye is not None:
            self.goodbyes.append(session.goodbye.code)
            self.ended.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._closing.set()
        self._thread.join(DEADLINE_S)
        self._listening.close()


VALUE = codec.encode("forged")
BLOB = Blob(b"d" * 32, 300_000)


def one_outcome(task_id: bytes, **fields: object) -> Results:
    return Results((Outcome(task_id, **{"value": VALUE, **fields}),))


LIES: dict[str, Callable[[tuple[bytes, ...]], list[Message]]] = {
    "a task that was never given": lambda ids: [one_outcome(b"x" * 16)],
    "a task twice": lambda ids: [one_outcome(b"x" * 16), one_outcome(b"x" * 16)],
    "an order that was never given": lambda ids: [OrderResult(99, None, b"\xc3")],
    "a chunk that was never announced": lambda ids: [Chunk(b"d" * 32, 0, memoryview(bytes(1 << 18)))],
    "a chunk of other bytes": lambda ids: [
        one_outcome(ids[0], value=Blob(b"d" * 32, 1 << 18)),
        Chunk(b"d" * 32, 0, memoryview(bytes(1 << 18))),
    ],
    "a tiny chunk": lambda ids: [one_outcome(ids[0], value=BLOB), Chunk(b"d" * 32, 0, memoryview(b"x"))],
    "a chunk out of order": lambda ids: [
        one_outcome(ids[0], value=BLOB),
        Chunk(b"d" * 32, 1 << 18, memoryview(bytes(1 << 18))),
    ],
    "a value of a terabyte": lambda ids: [one_outcome(ids[0], value=Blob(b"d" * 32, 1 << 40))],
    "a second welcome": lambda ids: [Welcome("other", "", 1, 1)],
}


@pytest.fixture
def kernel_of() -> Iterator[Callable[[FalseServer, SigningKey], Kernel]]:
    made: list[Kernel] = []

    def make(server: FalseServer, key: SigningKey) -> Kernel:
        auth = Ed25519AuthClient(ADA, KnownServers([KnownServer(("*:*", "false"), key.public)]))
        if server.dials:
            made.append(Kernel(listen="127.0.0.1:0", auth=auth, delivery="at-most-once"))
            server.hubs.put(made[-1].listening[0])
        else:
            made.append(Kernel([server.address], auth=auth, delivery="at-most-once", connect_timeout_s=DEADLINE_S))
        return made[-1]

    yield make
    for kernel in made:
        kernel.shutdown(wait=True, cancel_futures=True)


@pytest.mark.parametrize("dials", [False, True], ids=["dialled", "dials in"])
@pytest.mark.parametrize("lie", LIES)
def test_a_false_servers_lie_ends_the_session_and_gives_no_result(
    lie: str, *, dials: bool, kernel_of: Callable[..., Kernel]
) -> None:
    key = SigningKey.from_seed(b"\x07" * 32)
    with FalseServer(LIES[lie], key, dials=dials) as server:
        future = kernel_of(server, key).submit(abs, -1)
        with pytest.raises(SecfarmError):
            future.result(DEADLINE_S)
        assert server.ended.wait(DEADLINE_S)
        assert server.goodbyes[0] == "protocol"


@pytest.mark.parametrize("value", [b"", b"\xc1", b"\x91" * 5000, b"\xdd\xff\xff\xff\xff", b"\xc7\xff\x7fx"])
def test_a_false_servers_value_is_data_or_an_error(value: bytes, kernel_of: Callable[..., Kernel]) -> None:
    key = SigningKey.from_seed(b"\x07" * 32)
    with (
        FalseServer(lambda ids: [one_outcome(one, value=value) for one in ids], key) as server,
        pytest.raises(SecfarmError),
    ):
        kernel_of(server, key).submit(abs, -1).result(DEADLINE_S)


@pytest.mark.parametrize(
    "remote_type", ["SystemExit", "os.system", "__import__", "Exception.__subclasses__", "eval", "\x1b[31m"]
)
def test_a_false_servers_error_is_one_of_our_classes(remote_type: str, kernel_of: Callable[..., Kernel]) -> None:
    key = SigningKey.from_seed(b"\x07" * 32)
    record = ErrorRecord("raised", "report", "text", remote_type)
    with (
        FalseServer(lambda ids: [one_outcome(one, value=None, error=record) for one in ids], key) as server,
        pytest.raises(SecfarmError) as caught,
    ):
        kernel_of(server, key).submit(abs, -1).result(DEADLINE_S)
    assert type(caught.value).__name__ == "TaskExecutionError"
