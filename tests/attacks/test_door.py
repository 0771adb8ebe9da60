"""Those who stand at the door: silent, slow, many. Each costs little, for a bounded time, and stops nobody else."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from secfarm.errors import AuthError
from secfarm.net import listen
from secfarm.net.tls import initiator_context
from secfarm.wire.messages import Ping, Pong
from tests.daemon.site import ADA, DEADLINE_S, EVE, Client, Serving, Site, client, connect


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handshake may take less long than usual."""
    monkeypatch.setattr(listen, "HANDSHAKE_TIMEOUT_S", 0.5)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody who waits at the door is turned away for it while the test looks."""
    monkeypatch.setattr(listen, "HANDSHAKE_TIMEOUT_S", DEADLINE_S)


def closed(sock: socket.socket) -> bool:
    """Wait until the other end closes; what it says before is read."""
    sock.settimeout(DEADLINE_S)
    try:
        while sock.recv(1 << 16):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


@pytest.mark.usefixtures("patient")
def test_a_silent_client_stops_nobody(site: Site, serving: Serving) -> None:
    """Silent at once, silent after TLS, silent after its hello: others are served meanwhile."""
    silent = connect(serving.address)
    after_tls = Client(serving.address, site.auth(), ADA)
    after_hello = Client(serving.address, site.auth(), ADA)
    after_hello.session.start()
    after_hello.flush()
    with silent, after_tls, after_hello, client(serving, site) as ada:
        assert ada.run("builtins:abs", -1) == 1
        assert serving.call(serving.server._ways._door._waiting.total) == 3


@pytest.mark.usefixtures("hasty")
def test_who_proves_nothing_in_time_is_closed_at_every_stage(site: Site, serving: Serving) -> None:
    silent = connect(serving.address)
    after_tls = Client(serving.address, site.auth(), ADA)
    after_hello = Client(serving.address, site.auth(), ADA)
    after_hello.session.start()
    after_hello.flush()
    with silent, after_tls, after_hello:
        assert closed(silent)
        assert closed(after_tls.socket)
        assert closed(after_hello.socket)  # read past its session, which would answer
    serving.until(lambda: len(site.events("turned-away")) == 3)
    assert serving.call(serving.server._ways._door._waiting.total) == 0


@pytest.mark.usefixtures("hasty")
def test_a_peer_that_sends_a_byte_at_a_time_gets_no_more_time_for_it(site: Site, serving: Serving) -> None:
    """Every byte is progress, none of it extends the deadline."""
    slow = Client(serving.address, site.auth(), ADA)
    slow.session.start()
    hello = slow.session.outgoing()
    gone = threading.Event()

    def drip() -> None:
        for byte in hello * 1000:
            if gone.wait(0.01):  # the slowness under test
                return
            try:
                slow.raw(bytes([byte]))
            except OSError:
                return

    dripping = threading.Thread(target=drip)
    with slow:
        dripping.start()
        serving.until(lambda: bool(site.events("turned-away")))
        gone.set()
        dripping.join(DEADLINE_S)
    assert "no proof within" in str(site.events("turned-away")[0]["reason"])


@pytest.fixture
def crowd() -> Iterator[list[socket.socket]]:
    made: list[socket.socket] = []
    yield made
    for one in made:
        one.close()


@pytest.mark.usefixtures("patient")
def test_a_crowd_from_one_source_is_cut_off_and_others_are_served(
    site: Site, serving: Serving, crowd: list[socket.socket]
) -> None:
    crowd += [connect(serving.address, "127.0.0.9") for _ in range(3 * listen.MAX_UNAUTHENTICATED_PER_SOURCE)]
    serving.until(lambda: len(site.events("turned-away")) == 2 * listen.MAX_UNAUTHENTICATED_PER_SOURCE)
    assert serving.call(serving.server._ways._door._waiting.total) == listen.MAX_UNAUTHENTICATED_PER_SOURCE
    with client(serving, site) as ada:
        assert ada.run("builtins:abs", -1) == 1


@pytest.mark.usefixtures("patient")
def test_a_crowd_from_everywhere_is_bounded_and_sessions_live_on(
    site: Site, serving: Serving, crowd: list[socket.socket]
) -> None:
    with client(serving, site) as ada:
        crowd += [connect(serving.address) for _ in range(2 * listen.MAX_UNAUTHENTICATED)]
        serving.until(lambda: len(site.events("turned-away")) == listen.MAX_UNAUTHENTICATED)
        assert serving.call(serving.server._ways._door._waiting.total) == listen.MAX_UNAUTHENTICATED
        assert ada.run("builtins:abs", -1) == 1
        ada.send(Ping(7))
        while Pong(7) not in ada.heard:
            ada.read()


def test_a_source_that_keeps_failing_is_turned_away_before_it_costs_anything(
    site: Site, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And without a line in the log for each try: the log is no way to fill the disk."""
    from secfarm.net import penalty

    monkeypatch.setattr(penalty, "REFILL_PER_S", 0.0)  # a slow machine would refill what it takes
    for _ in range(penalty.BURST + 30):
        with connect(serving.address, "127.0.0.8") as plain:
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
            closed(plain)
    records = [record for record in site.events("turned-away") if record["source"] == "127.0.0.8"]
    assert len(records) == penalty.BURST
    with client(serving, site) as ada:
        assert ada.run("builtins:abs", -1) == 1


def test_a_stranger_hears_nothing_about_the_server(site: Site, serving: Serving) -> None:
    """No name, no version, no list of principals, and the same word whether a key is unknown or expired."""
    with pytest.raises(AuthError, match="refused us"):
        client(serving, site, EVE)
    stranger = Client(serving.address, site.auth(EVE), EVE)
    with stranger:
        stranger.session.start()
        stranger.flush()
        stranger.session.receive(stranger.socket.recv(1 << 16))
        assert (stranger.session.peer_hello.name, stranger.session.peer_hello.python_version) == ("", "")
        stranger.flush()
        goodbye = stranger.goodbye()
        assert (goodbye.code, goodbye.text) == ("refused", "")


def test_the_door_closes_on_those_who_stand_at_it(site: Site, serving: Serving) -> None:
    waiting = Client(serving.address, site.auth(), ADA)
    waiting.session.start()
    waiting.flush()
    waiting.session.receive(waiting.socket.recv(1 << 16))
    with waiting, client(serving, site) as ada:
        serving.call(serving.server.end)
        assert closed(waiting.socket)
        assert ada.run("builtins:abs", -1) == 1


def test_an_older_tls_gets_nowhere(serving: Serving) -> None:
    import ssl
    import warnings

    context = initiator_context()
    context.maximum_version = ssl.TLSVersion.MAXIMUM_SUPPORTED
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    with connect(serving.address) as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain)
