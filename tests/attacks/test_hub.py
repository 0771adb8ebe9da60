"""Those who dial in to a hub, or wait where a server dials: each end believes proofs, and nothing else."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest

from secfarm import Kernel, SigningKey
from secfarm.auth.base import Auth, End, Side
from secfarm.auth.ed25519 import Ed25519AuthClient, Ed25519AuthServer
from secfarm.auth.shared_secret import SharedSecretAuth
from secfarm.errors import AuthError, SecfarmError
from secfarm.net import listen
from secfarm.net.tls import acceptor_context, initiator_context
from secfarm.trust.store import KnownServer, KnownServers, TrustStore, parse_allowed_signers
from secfarm.wire.address import Address, parse_address
from secfarm.wire.messages import Goodbyes, Welcome
from secfarm.wire.session import Session
from tests.attacks.test_door import closed
from tests.attacks.test_middle import Relay, same
from tests.daemon.roles import Roles
from tests.daemon.site import ADA, DEADLINE_S, EVE, Serving, Site, client, connect
from tests.daemon.test_roles import counted, runs
from tests.farm.farms import until

TRUST = TrustStore(parse_allowed_signers(f"ada {ADA.public.openssh()}\n", file="allowed_signers"))
NODE = SigningKey.from_seed(b"\x08" * 32)
WELCOME = Welcome("node1", "3.11.2", 1, 1000)


def hub(auth: Auth) -> Kernel:
    return Kernel(listen="127.0.0.1:0", auth=auth, key=ADA)


@pytest.fixture
def kernel(site: Site) -> Iterator[Kernel]:
    """A hub that knows the site's server, and a key of ours, both by the name node1."""
    known = KnownServers([KnownServer(("node1",), site.key.public), KnownServer(("node1",), NODE.public)])
    with hub(Ed25519AuthClient(ADA, known)) as kernel:
        yield kernel


@pytest.fixture
def turned_away(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    """What the hub has said about those whom it did not let in."""
    with caplog.at_level(logging.INFO, "secfarm"):
        yield lambda: [one.getMessage() for one in caplog.records if "turned away" in one.msg]


def address_of(kernel: Kernel) -> Address:
    return parse_address(kernel.listening[0])


class Caller:
    """Dials a hub and says what it is told, allowed or not. A context manager."""

    def __init__(
        self,
        address: Address,
        key: SigningKey = NODE,
        *,
        name: str = "node1",
        side: Side = Side.SERVER,
        auth: Auth | None = None,
    ) -> None:
        self.socket = initiator_context().wrap_socket(connect(address), suppress_ragged_eofs=False)
        self.socket.settimeout(DEADLINE_S)
        auth = auth or Ed25519AuthServer(key, TRUST)
        self.session = Session(
            end=End.INITIATOR,
            side=side,
            auths={auth.mechanism: auth},
            nonce=os.urandom(32),
            certificate=self.socket.getpeercert(binary_form=True) or b"",
            address=str(address),
            name=name,
            python_version="3.11.2",
            clock=lambda: 1.8e9,
            welcome=WELCOME if side is Side.SERVER else None,
        )
        self.sent = b""
        self.session.start()

    def flush(self) -> None:
        data = self.session.outgoing()
        self.sent += data
        self.socket.sendall(data)

    def meet(self) -> Self:
        """Do the whole handshake, or raise what it failed with."""
        self.flush()
        while not self.session.ready:
            data = self.socket.recv(1 << 16)
            if not data:
                raise EOFError("the hub closed the connection")
            try:
                self.session.receive(data)
            finally:
                self.flush()
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()


def test_who_proves_the_key_and_has_the_name_is_let_in(kernel: Kernel) -> None:
    """What the other tests stand on. Before the proof the hub has told nothing of itself."""
    with Caller(address_of(kernel)) as caller:
        caller.meet()
        until(lambda: kernel.worker_count == 1, "it is in")
        hello = caller.session.peer_hello
        assert hello is not None
        assert (hello.name, hello.python_version, hello.side) == ("", "", Side.CLIENT)
        assert caller.session.peer is not None
        assert caller.session.peer.principal == "ada"


REFUSED: dict[str, dict[str, object]] = {
    "another key": {"key": EVE},
    "another name": {"name": "node2"},
    "no name": {"name": ""},
    "a name that is a pattern": {"name": "*"},
    "a client": {"side": Side.CLIENT, "auth": Ed25519AuthClient(ADA, KnownServers([KnownServer(("*",), ADA.public)]))},
    "another mechanism": {"auth": SharedSecretAuth(bytes(range(32)))},
}


@pytest.mark.parametrize("who", REFUSED)
def test_a_stranger_that_dials_in_is_turned_away(
    who: str, kernel: Kernel, turned_away: Callable[[], list[str]]
) -> None:
    """A server with another key or name, a client where a server is wanted; no task reaches any of them."""
    future = kernel.submit(abs, -1)
    with Caller(address_of(kernel), **REFUSED[who]) as caller:  # type: ignore[arg-type]
        with pytest.raises((SecfarmError, EOFError, OSError)):
            caller.meet()
        assert closed(caller.socket)
    until(turned_away, "the hub said why")
    assert (kernel.worker_count, future.done()) == (0, False)
    assert "\n" not in turned_away()[0]
    kernel.shutdown(cancel_futures=True)


def test_a_stranger_s_name_is_escaped_in_the_log(kernel: Kernel, turned_away: Callable[[], list[str]]) -> None:
    with Caller(address_of(kernel), name="\x1b[31m\nnode1") as caller, pytest.raises((SecfarmError, EOFError, OSError)):
        caller.meet()
    until(turned_away, "the hub said why")
    assert "\x1b" not in turned_away()[0]
    assert "\n" not in turned_away()[0]


@pytest.mark.parametrize("secret", [bytes(range(32)), bytes(32)], ids=["the right one", "another one"])
def test_a_server_s_secret_is_proven_to_the_hub(secret: bytes) -> None:
    right = SharedSecretAuth(bytes(range(32)))
    with hub(right) as kernel, Caller(address_of(kernel), auth=SharedSecretAuth(secret)) as caller:
        if secret == bytes(range(32)):
            caller.meet()
            until(lambda: kernel.worker_count == 1, "it is in")
        else:
            with pytest.raises(AuthError):
                caller.meet()
            assert kernel.worker_count == 0


def test_a_handshake_that_is_said_again_proves_nothing(kernel: Kernel, turned_away: Callable[[], list[str]]) -> None:
    """Word for word what a server said on another connection: the nonce of the hub is another one."""
    with Caller(address_of(kernel)) as honest:
        honest.meet()
        until(lambda: kernel.worker_count == 1, "it is in")
        with initiator_context().wrap_socket(connect(address_of(kernel))) as again:
            again.sendall(honest.sent)
            assert closed(again)
        until(turned_away, "the hub noticed")
        assert "did not prove it on this channel" in turned_away()[0]
        assert kernel.worker_count == 1


def test_the_hub_s_own_words_prove_nothing_to_it(kernel: Kernel, turned_away: Callable[[], list[str]]) -> None:
    with initiator_context().wrap_socket(connect(address_of(kernel))) as mirror:
        mirror.settimeout(DEADLINE_S)
        mirror.sendall(mirror.recv(1 << 16))
        assert closed(mirror)
    until(turned_away, "the hub noticed")
    assert "both ends are a client" in turned_away()[0]


@pytest.mark.parametrize(
    "rubbish", [b"GET / HTTP/1.1\r\n\r\n", b"\x07" * 3000, b"\x16\x03\x01\xff\xff" + bytes(70_000)]
)
def test_garbage_at_the_hub_s_door_stops_nobody(
    rubbish: bytes, kernel: Kernel, turned_away: Callable[[], list[str]]
) -> None:
    with connect(address_of(kernel)) as plain:
        with contextlib.suppress(OSError):
            plain.sendall(rubbish)
        assert closed(plain)
    until(turned_away, "the hub noticed")
    with Caller(address_of(kernel)) as caller:
        caller.meet()
        until(lambda: kernel.worker_count == 1, "a server is let in")


def test_before_the_proof_the_hub_takes_small_frames_only(kernel: Kernel, turned_away: Callable[[], list[str]]) -> None:
    with initiator_context().wrap_socket(connect(address_of(kernel))) as large:
        large.sendall((1 << 20).to_bytes(4, "big"))
        assert closed(large)
    until(turned_away, "the hub noticed")


def test_the_number_of_servers_that_dial_in_is_bounded(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """One stolen key opens no more sessions than that, and those that are here stay."""
    monkeypatch.setattr("secfarm.farm.hub.MAX_SESSIONS", 1)
    with Caller(address_of(kernel)) as first, Caller(address_of(kernel)) as second:
        first.meet()
        until(lambda: kernel.worker_count == 1, "it is in")
        second.meet()  # its own part is done then
        assert closed(second.socket)
        assert kernel.worker_count == 1


def test_silent_peers_cost_the_hub_little_for_a_short_time(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, turned_away: Callable[[], list[str]]
) -> None:
    """Silent at once, after TLS, after the hello; and a crowd from one place. A server is let in meanwhile."""
    monkeypatch.setattr(listen, "HANDSHAKE_TIMEOUT_S", 2.0)
    address = address_of(kernel)
    after_hello = Caller(address)
    after_hello.flush()
    crowd = [connect(address, "127.0.0.9") for _ in range(3 * listen.MAX_UNAUTHENTICATED_PER_SOURCE)]
    with connect(address) as silent, Caller(address) as after_tls, after_hello, Caller(address) as honest:
        honest.meet()
        until(lambda: kernel.worker_count == 1, "a server is let in")
        until(
            lambda: sum("too many" in one for one in turned_away()) == 2 * listen.MAX_UNAUTHENTICATED_PER_SOURCE,
            "the crowd is cut down",
        )
        for one in (silent, after_tls.socket, after_hello.socket, *crowd):
            assert closed(one)
        assert kernel.worker_count == 1
    for plain in crowd:
        plain.close()


# --- where a server dials -------------------------------------------------------------------------------------------


class FalseHub:
    """Waits where a server dials, and says what it is told. A context manager."""

    def __init__(self, side: Side, auth: Auth) -> None:
        self._side, self._auth = side, auth
        self._context, self._certificate = acceptor_context()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self.tries = self.met = 0
        self.tried_s: list[float] = []
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ending.is_set():
            if not select.select([self._listening], [], [], 0.05)[0]:
                continue
            plain, _ = self._listening.accept()
            self.tries += 1
            self.tried_s.append(time.monotonic())
            with contextlib.suppress(OSError, SecfarmError), self._context.wrap_socket(plain, server_side=True) as tls:
                self._meet(tls)

    def _meet(self, tls: socket.socket) -> None:
        tls.settimeout(DEADLINE_S)
        session = Session(
            end=End.ACCEPTOR,
            side=self._side,
            auths={self._auth.mechanism: self._auth},
            nonce=os.urandom(32),
            certificate=self._certificate,
            address="",
            name="",
            python_version="",
            clock=lambda: 1.8e9,
        )
        session.start()
        tls.sendall(session.outgoing())
        while data := tls.recv(1 << 16):
            try:
                session.receive(data)
            finally:
                tls.sendall(session.outgoing())
            if session.ready:
                self.met += 1
                session.close(Goodbyes.DONE)
                tls.sendall(session.outgoing())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._ending.set()
        self._thread.join(DEADLINE_S)
        self._listening.close()


def client_auth(site: Site, key: SigningKey) -> Auth:
    return Ed25519AuthClient(key, KnownServers([KnownServer(("node1",), site.key.public)]))


def test_a_server_lets_in_the_hub_that_it_believes(site: Site) -> None:
    """What the next ones stand on; it comes back when the hub has ended the session."""
    with FalseHub(Side.CLIENT, client_auth(site, ADA)) as hub:
        site.config(listen=None, dial=[hub.address])
        with Serving(site) as serving:
            assert serving.addresses == []
            serving.until(lambda: hub.met >= 2)
    assert {record["principal"] for record in site.events("session")} == {"ada"}
    assert site.events("turned-away") == []


def test_a_hub_that_ends_each_session_at_once_is_dialled_less_and_less(site: Site) -> None:
    """It is believed, and each session is a record: who dials on at full speed would fill the disk."""
    with FalseHub(Side.CLIENT, client_auth(site, ADA)) as hub:
        site.config(listen=None, dial=[hub.address])
        with Serving(site) as serving:
            serving.until(lambda: len(site.events("closed")) >= 11)
    assert hub.tried_s[10] - hub.tried_s[9] >= 0.18, "half of the tenth pause; the first has 0.05 s"


@pytest.mark.parametrize("who", ["a server", "a stranger"])
def test_a_server_gives_nothing_to_who_is_no_hub_of_its_own(who: str, site: Site) -> None:
    """It says so once in its audit log, not at each of its attempts, and goes on serving."""
    as_server = (Side.SERVER, Ed25519AuthServer(NODE, TRUST))
    side, auth = as_server if who == "a server" else (Side.CLIENT, client_auth(site, EVE))
    with FalseHub(side, auth) as hub:
        site.config(dial=[hub.address])
        with Serving(site) as serving:
            serving.until(lambda: hub.tries >= 3)
            with client(serving, site) as ada:
                assert ada.run("builtins:abs", -1) == 1
    (record,) = site.events("turned-away")
    assert record["source"] == hub.address
    assert ("both ends are a server" if who == "a server" else "was not believed") in str(record["reason"])
    assert len(site.events("session")) == 1, "that of the listening side"
    assert hub.met == 0


def test_two_servers_do_not_meet(site: Site, tmp_path: Path) -> None:
    other = Site(tmp_path)
    with Serving(other) as listening:
        site.config(listen=None, dial=[str(listening.address)])
        with Serving(site) as dialling:
            dialling.until(lambda: bool(site.events("turned-away") and other.events("turned-away")))
    for place in (site, other):
        assert place.events("session") == []
        assert "both ends are a server" in str(place.events("turned-away")[0]["reason"])


def test_a_relay_with_its_own_certificate_is_noticed_by_server_and_hub(
    site: Site, kernel: Kernel, turned_away: Callable[[], list[str]]
) -> None:
    with Relay(address_of(kernel), same, ends_tls=True) as relay:
        site.config(listen=None, dial=[relay.address])
        with Serving(site) as serving:
            serving.until(lambda: bool(site.events("turned-away")))
            until(turned_away, "the hub noticed")
    assert site.events("session") == []
    assert kernel.worker_count == 0
    with Relay(address_of(kernel), same, ends_tls=False) as relay:
        site.config(listen=None, dial=[relay.address])
        with Serving(site):
            assert kernel.submit(abs, -1).result(DEADLINE_S) == 1


def test_a_hub_that_says_nothing_stops_nobody(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        site.config(dial=[f"127.0.0.1:{silent.getsockname()[1]}"])
        with Serving(site) as serving, client(serving, site) as ada:
            assert ada.run("builtins:abs", -1) == 1


# --- the same through a gate, as `secfarm serve` has it -----------------------------------------------------------


def test_a_server_whose_gate_is_killed_dials_in_again_and_no_task_is_lost(site: Site, kernel: Kernel) -> None:
    site.config(dial=kernel.listening)
    with Roles(site) as roles:
        until(lambda: kernel.worker_count == 1, "it is in")
        futures = [kernel.submit(counted, number) for number in range(100)]
        futures[10].result(DEADLINE_S)
        os.kill(roles.pid("gate"), signal.SIGKILL)
        results = [future.result(DEADLINE_S) for future in futures]
    assert [number for number, _, _ in results] == list(range(100))
    assert runs(results) == 100, "the keeper kept results and the task that was running"


def test_a_hub_that_is_not_believed_is_written_down_once(site: Site) -> None:
    """Who dials for ever would fill the disk."""
    with FalseHub(Side.CLIENT, client_auth(site, EVE)) as hub:
        site.config(dial=[hub.address])
        with Roles(site):
            until(lambda: hub.tries >= 4, "it has tried several times")
    records = site.events("turned-away")
    assert {record["source"] for record in records} == {hub.address}
    reasons = [str(record["reason"]) for record in records]
    assert len(set(reasons)) == len(reasons) < hub.tries
    assert any("was not believed" in reason for reason in reasons)
