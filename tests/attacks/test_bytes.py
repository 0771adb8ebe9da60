"""Garbage, truncated, oversized and out-of-order bytes at every stage: a clear word, a closed connection, no more."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from secfarm.errors import SecfarmError
from secfarm.limits import MAX_FRAME_BEFORE_AUTH_BYTES, MAX_FRAME_BYTES
from secfarm.wire.frames import encode_frame
from secfarm.wire.messages import (
    AuthToken,
    Chunk,
    Goodbye,
    Hello,
    OrderResult,
    Outcome,
    Output,
    Ping,
    Pong,
    Received,
    Results,
    Stream,
    Submit,
    Welcome,
    Workers,
    encode_message,
)
from tests.daemon.site import ADA, Client, ServerProcess, Site, client, connect

STAGES = ("tls", "hello", "first token", "server's token", "ready")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("bytes") / "site"
    folder.mkdir(mode=0o700)
    return Site(folder)


@pytest.fixture(scope="module")
def server(site: Site) -> Iterator[ServerProcess]:
    """One server for all of these attacks: at the end it said nothing, holds no more memory, and still serves."""
    with ServerProcess(site) as running:
        with client(running, site) as ada:
            assert ada.run("builtins:abs", -1) == 1
        before = running.memory_bytes()
        yield running
        with client(running, site) as ada:
            assert ada.run("builtins:abs", -2) == 2
        assert running.memory_bytes() - before < 32 << 20
        assert len(os.listdir(f"/proc/{running.process.pid}/fd")) < 40  # noqa: PTH208
    assert Path(running.stderr).read_text() == ""


def reach(server: ServerProcess, site: Site, stage: str) -> Client:
    """A client that has gone as far as `stage` and has sent everything that belongs to it."""
    made = Client(server.address, site.auth(), ADA)
    if stage == "ready":
        return made.meet()
    if stage != "tls":
        made.session.start()
        made.flush()
    if stage in ("first token", "server's token"):
        made.session.receive(made.socket.recv(1 << 16))
        made.flush()
    if stage == "server's token":
        made.session.receive(made.socket.recv(1 << 16))
    return made


def expect_refusal(attacker: Client) -> None:
    """The server says one word that is in the protocol, and closes."""
    with attacker:
        attacker.session._frames.max_bytes = MAX_FRAME_BYTES
        said = bytearray()
        try:
            while data := attacker.socket.recv(1 << 16):
                said += data
        except OSError:
            pass
    goodbye = [Goodbye(code) for code in ("protocol", "refused")]
    assert any(said.endswith(encode_frame(encode_message(one))) for one in goodbye), bytes(said[-80:])
    assert b"Traceback" not in said
    assert b"secfarm/" not in said


GARBAGE = {
    "no msgpack": encode_frame(b"\xc1"),
    "text": encode_frame(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
    "empty frame": bytes(4),
    "4 GiB": b"\xff\xff\xff\xff",
    "over the small limit": (MAX_FRAME_BYTES + 1).to_bytes(4, "big"),
    "deep": encode_frame(b"\x91" * 5000),
    "unknown tag": encode_frame(b"\x91\x7f"),
    "a map": encode_frame(b"\x81\x01\x02"),
    "huge array": encode_frame(b"\xdd\xff\xff\xff\xff"),
    "huge text": encode_frame(b"\x92\x0d\xdb\xff\xff\xff\xff"),
    "http": b"GET / HTTP/1.1\r\n\r\n",
    "zeros": bytes(64),
}


@pytest.mark.parametrize(("stage", "what"), list(itertools.product(STAGES, GARBAGE)))
def test_garbage_gets_one_word_and_a_closed_connection(
    server: ServerProcess, site: Site, stage: str, what: str
) -> None:
    attacker = reach(server, site, stage)
    attacker.raw(GARBAGE[what])
    expect_refusal(attacker)


HELLO = Hello(1, b"n" * 32, "client", ("ed25519",), "eve", "3.11")
MESSAGES = (
    HELLO,
    AuthToken(b"t" * 32),
    Welcome("eve", "3.11", 1, 1),
    Submit(b"envelope"),
    Results((Outcome(b"t" * 16, b"\x01"),)),
    Chunk(b"d" * 32, 0, memoryview(b"data")),
    Received(1),
    Output(b"t" * 16, Stream.STDOUT, "text"),
    Workers(1),
    OrderResult(1),
    Ping(1),
    Pong(1),
)
ALLOWED = {
    "tls": {"Hello"},
    "hello": {"AuthToken"},
    "first token": {"AuthToken"},
    "server's token": {"AuthToken"},
    "ready": {"Ping", "Pong"},
}


@pytest.mark.parametrize(
    ("stage", "number"),
    [
        (stage, number)
        for stage, number in itertools.product(STAGES, range(len(MESSAGES)))
        if type(MESSAGES[number]).__name__ not in ALLOWED[stage]
    ],
)
def test_a_message_out_of_order_gets_one_word_and_a_closed_connection(
    server: ServerProcess, site: Site, stage: str, number: int
) -> None:
    attacker = reach(server, site, stage)
    attacker.raw(encode_frame(encode_message(MESSAGES[number])))
    expect_refusal(attacker)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stream_that_is_cut_in_the_middle_of_a_frame_is_no_news(
    server: ServerProcess, site: Site, stage: str
) -> None:
    for cut in (1, 3, 4, 20):
        attacker = reach(server, site, stage)
        attacker.raw(encode_frame(bytes(5000))[:cut])
        attacker.cut()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 1000,
        b"GET / HTTP/1.1\r\n\r\n",
        b"SSH-2.0-x\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(600),
    ],
    ids=["nothing", "zeros", "http", "ssh", "half a client hello"],
)
def test_bytes_that_are_no_tls_end_the_connection(server: ServerProcess, data: bytes) -> None:
    with connect(server.address) as plain:
        plain.sendall(data)
        if data[:1] != b"\x16" and data:
            try:
                while answer := plain.recv(1000):
                    assert b"Traceback" not in answer
            except ConnectionError:
                pass


def test_a_frame_larger_than_allowed_before_the_proof_is_refused_after_its_length(
    server: ServerProcess, site: Site
) -> None:
    """Nothing of the payload is waited for."""
    attacker = reach(server, site, "hello")
    attacker.raw((MAX_FRAME_BEFORE_AUTH_BYTES + 1).to_bytes(4, "big"))
    expect_refusal(attacker)


@pytest.mark.parametrize("version", [0, 2, 2**62])
def test_another_version_is_refused(server: ServerProcess, site: Site, version: int) -> None:
    attacker = reach(server, site, "tls")
    attacker.raw(encode_frame(encode_message(Hello(version, b"n" * 32, "client", ("ed25519",), "", ""))))
    expect_refusal(attacker)


@pytest.mark.parametrize("mechanisms", [("none",), ("shared-secret",), ("anonymous", "ed25519"), ("ED25519",)])
def test_there_is_no_mechanism_to_fall_back_to(server: ServerProcess, site: Site, mechanisms: tuple[str, ...]) -> None:
    attacker = reach(server, site, "tls")
    attacker.raw(encode_frame(encode_message(Hello(1, b"n" * 32, "client", mechanisms, "", ""))))
    expect_refusal(attacker)


def test_every_truncation_of_the_handshake_leaves_the_server_whole(server: ServerProcess, site: Site) -> None:
    """The client's own bytes, cut off at every hundredth place, in each of its three sendings."""
    for stage in ("tls", "hello", "first token"):
        for cut in range(0, 400, 100):
            attacker = reach(server, site, stage)
            if stage == "tls":
                attacker.session.start()
            elif stage in {"hello", "first token"}:
                try:
                    attacker.session.receive(attacker.socket.recv(1 << 16))
                except SecfarmError:
                    pytest.fail("the honest half of it failed")
            attacker.raw(attacker.session.outgoing()[:cut] or b"\x00")
            attacker.cut()
