"""What a service manager gives is taken only as it was meant; what it is told is never worth the server."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from secfarm.errors import ConfigError
from secfarm.net import service
from secfarm.net.service import Notifier, given_sockets
from tests.farm.farms import reserved_port

PID = 4711


@pytest.fixture
def first(monkeypatch: pytest.MonkeyPatch) -> int:
    """The number of the first descriptor that is given, away from those of the tests."""
    monkeypatch.setattr(service, "_FIRST", 700)
    return 700


@pytest.fixture
def give(first: int) -> Iterator[Any]:
    given: list[int] = []

    def give(*ones: Any) -> dict[str, str]:
        for number, one in enumerate(ones, first):
            os.dup2(one.fileno(), number)
            given.append(number)
            one.close()
        return {"LISTEN_PID": str(PID), "LISTEN_FDS": str(len(ones)), "LISTEN_FDNAMES": "a:b", "OTHER": "kept"}

    yield give
    for fd in given:
        try:
            os.close(fd)
        except OSError:
            continue


def unix(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    sock.listen()
    return sock


def test_sockets_are_taken_in_their_order_and_nothing_is_passed_on(give: Any, tmp_path: Path) -> None:
    tcp, tcp6 = socket.create_server(("127.0.0.1", 0)), socket.create_server(("::1", 0), family=socket.AF_INET6)
    names = [tcp.getsockname(), tcp6.getsockname(), f"{tmp_path}/sock"]
    environ = give(tcp, tcp6, unix(f"{tmp_path}/sock"))
    taken = given_sockets(environ, PID)
    try:
        assert [sock.getsockname() for sock in taken] == names
        for sock in taken:
            assert fcntl.fcntl(sock, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
            assert not os.get_blocking(sock.fileno())
    finally:
        for sock in taken:
            sock.close()
    assert environ == {"OTHER": "kept"}


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_PID": str(PID)},
        {"LISTEN_PID": str(PID + 1), "LISTEN_FDS": "1"},
        {"LISTEN_PID": str(PID + 1), "LISTEN_FDS": "nonsense"},
    ],
)
def test_what_is_not_for_us_is_ignored_and_removed(environ: dict[str, str]) -> None:
    environ = environ | {"LISTEN_FDNAMES": "x", "LISTEN_PIDFDID": "5"}
    assert given_sockets(environ, PID) == []
    assert environ == {}


@pytest.mark.parametrize("count", ["0", "-1", "+1", " 1", "1 ", "1_0", "0x1", "٣", "one", "1.0", "9" * 30, "1\n", "33"])
def test_a_number_of_sockets_that_is_none_is_an_error(first: int, count: str) -> None:
    with pytest.raises(ConfigError, match=r"LISTEN_FDS=.*nothing was started"):
        given_sockets({"LISTEN_PID": str(PID), "LISTEN_FDS": count}, PID)


@pytest.mark.parametrize("pid", ["0", "-5", "me", "4711x", "\x1b[2J"])
def test_a_process_that_is_none_is_an_error_that_moves_no_cursor(pid: str) -> None:
    with pytest.raises(ConfigError, match="LISTEN_PID=") as caught:
        given_sockets({"LISTEN_PID": pid, "LISTEN_FDS": "1"}, PID)
    assert "\x1b" not in str(caught.value)


def plain_file() -> Any:
    return Path(os.devnull).open("rb")


def connected() -> socket.socket:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return socket.create_connection(server.getsockname())


def bound() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock


def packets() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.bind(f"\0secfarm-packets-{os.getpid()}")
    sock.listen()
    return sock


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (plain_file, "no socket"),
        (lambda: socket.socket(type=socket.SOCK_DGRAM), "not of TCP"),
        (lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW), "not of TCP"),
        (packets, "not of TCP"),
        (bound, "not listening"),
        (connected, "Accept=no"),
        (lambda: unix(f"\0secfarm-test-{os.getpid()}"), "without an absolute path"),
    ],
)
def test_what_is_no_listening_stream_is_named_and_refused(give: Any, first: int, make: Any, words: str) -> None:
    environ = give(socket.create_server(("127.0.0.1", 0)), make())
    with pytest.raises(ConfigError, match=f"descriptor {first + 1}, .*{words}.*nothing was started"):
        given_sockets(environ, PID)


def test_a_descriptor_that_is_not_there_is_refused(first: int) -> None:
    with pytest.raises(ConfigError, match=f"descriptor {first}, .*no socket .Bad file descriptor"):
        given_sockets({"LISTEN_PID": str(PID), "LISTEN_FDS": "1"}, PID)


def test_a_unix_path_that_would_write_on_a_terminal_is_refused(give: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="printable"):
        given_sockets(give(unix(f"{tmp_path}/a\x1b[2J")), PID)


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        name = f"{tmp_path}/notify" if request.param == "path" else f"@secfarm-notify-{os.getpid()}"
        sock.bind(name.replace("@", "\0") if request.param == "abstract" else name)
        sock.settimeout(5)
        yield name, sock


def test_states_are_told_in_words_of_sd_notify(manager: tuple[str, socket.socket]) -> None:
    name, sock = manager
    environ = {"NOTIFY_SOCKET": name}
    notifier = Notifier(environ)
    assert environ == {}
    notifier.ready("listening")
    assert sock.recv(4096) == b"READY=1\nSTATUS=listening"
    before_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.reloading()
    state, monotonic, status = sock.recv(4096).decode().split("\n")
    assert (state, status) == ("RELOADING=1", "STATUS=reading files again")
    assert before_us <= int(monotonic.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
    notifier.stopping("ending")
    assert sock.recv(4096) == b"STOPPING=1\nSTATUS=ending"
    for tell in (notifier.reloading, lambda: notifier.ready("again"), lambda: notifier.stopping("again")):
        tell()
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.recv(4096)


def test_a_status_says_one_thing_only(manager: tuple[str, socket.socket]) -> None:
    name, sock = manager
    Notifier({"NOTIFY_SOCKET": name}).ready("a\nMAINPID=1\r\x1b\u202e\udc80" + "x" * 10_000)
    state, status = sock.recv(1 << 16).decode("ascii").split("\n")
    assert state == "READY=1"
    assert status.startswith("STATUS=a\\nMAINPID=1\\r\\x1b\\u202e\\udc80xx")
    assert len(status) < 600


@pytest.mark.parametrize(
    "where", ["/nowhere/notify", "/dev/null", "@nobody-listens-there", "relative", f"/{'x' * 200}"]
)
def test_a_manager_that_does_not_hear_is_a_line_in_the_log(where: str, caplog: pytest.LogCaptureFixture) -> None:
    Notifier({"NOTIFY_SOCKET": where}).ready("on")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "did not hear" in caplog.text


def test_a_manager_that_never_listens_holds_us_up_for_a_moment_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(service, "_TELL_WITHIN_S", 0.01)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"{tmp_path}/notify")
        notifier = Notifier({"NOTIFY_SOCKET": f"{tmp_path}/notify"})
        while not caplog.records:
            notifier.ready("on")  # until its queue is full
    assert "timed out" in caplog.text


def test_without_a_manager_nothing_is_told(caplog: pytest.LogCaptureFixture) -> None:
    for environ in ({}, {"NOTIFY_SOCKET": ""}):
        Notifier(environ).ready("on")
    assert caplog.records == []


def test_the_real_activator_is_understood() -> None:
    """`systemd-socket-activate` starts the program at the first connection."""
    reserved = reserved_port()
    port = reserved.getsockname()[1]
    script = (
        "import os; from secfarm.net.service import given_sockets;"
        "[sock] = given_sockets(os.environ, os.getpid()); peer, _ = sock.accept();"
        "peer.sendall(b'served' + str([name for name in os.environ if name.startswith('LISTEN')]).encode())"
    )
    tree = f"PYTHONPATH={Path(service.__file__).parents[2]}"
    activator = subprocess.Popen(
        ["systemd-socket-activate", "-l", f"127.0.0.1:{port}", "-E", tree, sys.executable, "-c", script],
        stderr=subprocess.PIPE,
    )
    try:
        assert activator.stderr is not None
        assert b"Listening on" in activator.stderr.readline()
        with socket.create_connection(("127.0.0.1", port), 30) as peer:
            assert peer.recv(100) == b"served[]"
    finally:
        activator.kill()
        activator.communicate()
        reserved.close()
