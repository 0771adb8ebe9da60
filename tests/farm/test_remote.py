"""Servers far away: started over a real sshd, reached through one, ended; and every way in which that fails."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from secfarm import (
    AuthError,
    Kernel,
    KernelCreationError,
    SigningKey,
    end_local_servers,
    end_remote_servers,
    ping,
    start_local_servers,
    start_remote_servers,
)
from secfarm.auth import Ed25519AuthClient
from secfarm.disk.keyfile import create_signing_key
from secfarm.farm.launcher import server_status
from secfarm.net.dial import dial
from secfarm.net.pump import Connection
from secfarm.trust.store import KnownServer, KnownServers
from secfarm.wire.address import SshAddress
from tests.farm.farms import POLICY, PRINCIPAL, WAIT_S, Daemon, children, gone, records, reserved_port, until
from tests.farm.sshd import Sshd, free_port
from tests.meeting import Gate


class Far:
    """What stands on the far machine: keys, trust, policy. And our own key, which it believes."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700)
        self.folder = folder
        key, self.ours = create_signing_key(folder / "key"), SigningKey.from_seed(os.urandom(32))
        files = {
            "allowed_signers": f"{PRINCIPAL} {self.ours.public.openssh()}\n",
            "policy.toml": POLICY,
            "config.toml": 'key = "key"\nallowed_signers = "allowed_signers"\npolicy = "policy.toml"\nstate = "state"\n'
            'workers = 1\nname = "far"\n',
        }
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
            (folder / name).chmod(0o600)
        self.auth = Ed25519AuthClient(self.ours, KnownServers([KnownServer(("*",), key.public)]))
        self.words: list[str] = [sys.executable, "-m", "secfarm", "serve", "-c", str(folder / "config.toml")]

    def events(self, log: str) -> list[object]:
        """What the server has written into its audit log so far."""
        return [record["event"] for record in records(self.folder / "state" / log)]


@pytest.fixture
def far(tmp_path: Path) -> Far:
    return Far(tmp_path / "far")


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    with Sshd(tmp_path) as running:
        yield running


Start = Callable[..., list[str]]


def _somebody_listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), WAIT_S).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.fixture
def start(sshd: Sshd, far: Far) -> Iterator[Start]:
    """`start_remote_servers` with what the sshd wants; servers that are still there at the end are ended."""
    started: list[str] = []

    def start(*addresses: str, **changes: object) -> list[str]:
        settings: dict[str, object] = {
            "ssh_options": sshd.options(),
            "command": far.words,
            "auth": far.auth,
        }
        started.extend(addresses)
        return start_remote_servers(addresses, **{**settings, **changes})  # type: ignore[arg-type]

    yield start
    for address in started:
        if _somebody_listens(address):
            end_remote_servers([address], auth=far.auth)


# --- starting and ending --------------------------------------------------------------------------------------------


def test_servers_start_over_ssh_outlive_it_and_end_when_told(sshd: Sshd, far: Far, start: Start) -> None:
    addresses = [f"{sshd.host}:{free_port(sshd.host)}"]
    assert start(*addresses) == addresses
    sshd.cut()  # whatever is left of the ssh sessions
    with Kernel(addresses, auth=far.auth, connect_timeout_s=WAIT_S) as kernel:
        assert kernel.run(divmod, 17, 5) == (3, 2)
    status = server_status(addresses[0], auth=far.auth)
    assert status["server"] == "far"
    end_remote_servers(addresses, auth=far.auth)
    gone([int(str(status["pid"]))])
    assert "draining" not in (far.folder / "state" / "serve.log").read_text()


def test_words_reach_the_far_shell_as_they_are(sshd: Sshd, start: Start, tmp_path: Path) -> None:
    address = f"{sshd.host}:{free_port(sshd.host)}"
    mark = tmp_path / "ran"
    script = 'printf "<%s>" "$@" >&2; exit 9'
    for bait in (f"; touch {mark}", f"$(touch {mark})", "`id`", "a b", "'", '"', "*", ""):
        with pytest.raises(KernelCreationError, match="status 9") as caught:
            start(address, command=["sh", "-c", script, "sh", bait])
        assert f"<{bait}><--listen><{address}><--detach>" in str(caught.value).replace("\\'", "'")
    assert not mark.exists()


def test_why_a_host_failed_is_told(sshd: Sshd, far: Far, start: Start, tmp_path: Path) -> None:
    address = f"{sshd.host}:{free_port(sshd.host)}"
    cases: list[tuple[dict[str, object], str]] = [
        ({"command": "no-such-program serve"}, r"status 127: .*no-such-program"),
        ({"command": [*far.words[:-1], str(tmp_path / "absent.toml")]}, r"status 2: .*absent\.toml"),
        ({"ssh": str(tmp_path / "no-ssh")}, "no-ssh' cannot be started"),
        ({"ssh_options": sshd.options(IdentityFile=tmp_path / "host")}, "status 255: .*denied"),
        ({"ssh_options": sshd.options(Port=free_port(sshd.host))}, "status 255: .*refused"),
        ({"command": ["sh", "-c", r"printf '\033[31mred\nline' >&2; exit 3"]}, r"status 3: \\x1b\[31mred; line$"),
    ]
    for changes, words in cases:
        with pytest.raises(KernelCreationError, match=words) as caught:
            start(address, **changes)
        assert str(caught.value).startswith(f"1 of 1 servers: {address}: ")
    assert not ping(address, auth=far.auth, timeout_s=0.05)


def test_what_started_runs_on_when_another_host_fails(sshd: Sshd, far: Far, start: Start) -> None:
    reserved = reserved_port()
    good, bad = f"{sshd.host}:{free_port(sshd.host)}", f"127.0.0.1:{reserved.getsockname()[1]}"
    with reserved, pytest.raises(KernelCreationError, match=rf"^1 of 2 servers: {bad}: ssh ended"):
        start(good, bad)
    assert ping(good, auth=far.auth, timeout_s=WAIT_S)


def test_a_server_that_does_not_believe_us_is_an_error_with_its_cause(sshd: Sshd, far: Far, start: Start) -> None:
    address = f"{sshd.host}:{free_port(sshd.host)}"
    known = far.auth.known_servers
    with pytest.raises(KernelCreationError, match="it was started, but") as caught:
        start(address, auth=Ed25519AuthClient(SigningKey.from_seed(bytes(32)), known))
    assert isinstance(caught.value.__cause__, AuthError)


@pytest.mark.parametrize(
    ("address", "changes"),
    [
        ("-oProxyCommand=x", {}),
        ("unix:/run/x", {}),
        ("ssh://node1", {}),
        ("node1:0", {}),
        ("node1", {"ssh_user": "-oProxyCommand=x"}),
        ("node1", {"ssh_user": "a b"}),
        ("node1", {"command": ""}),
        ("node1", {"command": "secfarm 'serve"}),
    ],
)
def test_what_is_malformed_starts_nothing(address: str, changes: dict[str, object], tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    (tmp_path / "ssh").write_text(f"#!/bin/sh\ntouch {mark}\n", encoding="utf-8")
    (tmp_path / "ssh").chmod(0o755)
    with pytest.raises(ValueError, match=r"nothing was|quotation"):
        start_remote_servers(["node1", address], ssh=str(tmp_path / "ssh"), **changes)  # type: ignore[arg-type]
    assert not mark.exists()


def test_ending_asks_every_server_and_raises_what_the_first_said(one_daemon: Daemon, tmp_path: Path) -> None:
    with start_local_servers(["127.0.0.1:0", f"unix:{tmp_path}/sock"], workers=1) as servers:
        with pytest.raises(AuthError):
            end_local_servers([*servers.addresses, one_daemon.address], auth=servers.auth)
        for address in servers.addresses:
            assert not ping(address, auth=servers.auth, timeout_s=0.05)


# --- ssh:// ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def address(sshd: Sshd, far: Far, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A server that ssh starts; how is in the client's configuration."""
    return configured(sshd, tmp_path, monkeypatch, sshd.options(), [*far.words, "--stdio"])


def configured(
    sshd: Sshd, folder: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], command: list[str]
) -> str:
    path = folder / "client.toml"
    path.write_text(f"[ssh]\noptions = {json.dumps(options)}\ncommand = {json.dumps(command)}\n", encoding="utf-8")
    path.chmod(0o600)
    monkeypatch.setenv("SECFARM_CONFIG", str(path))
    return f"ssh://{sshd.host}:{sshd.port}"


def children_named(name: str) -> list[int]:
    """Our child processes of that name."""
    found = []
    for pid in children():
        with contextlib.suppress(OSError):  # it has gone meanwhile
            if Path(f"/proc/{pid}/comm").read_text().strip() == name:
                found.append(pid)
    return found


def test_a_session_goes_over_the_pipes_of_ssh(address: str, far: Far) -> None:
    with Kernel(address, auth=far.auth, connect_timeout_s=WAIT_S) as kernel:
        assert kernel.run(divmod, 17, 5) == (3, 2)
        assert kernel.run(len, bytes(1_000_000)) == 1_000_000
        assert list(kernel.map(abs, range(-500, 0))) == list(range(500, 0, -1))
        assert [one.address for one in kernel.workers()] == [address]
        assert ping(address, auth=far.auth, timeout_s=WAIT_S), "another server, with a log of its own"
    until(lambda: far.events("audit-1.jsonl")[-1] == "ended", "the server ends with its connection")
    until(lambda: not children_named("ssh"), "every ssh is gone and reaped")
    assert far.events("audit-1.jsonl")[0] == "started"
    assert not (far.folder / "state" / "audit.jsonl").exists()


def test_a_broken_ssh_is_dialled_again_and_its_server_ends(address: str, sshd: Sshd, far: Far, gate: Gate) -> None:
    with Kernel(address, auth=far.auth, connect_timeout_s=WAIT_S) as kernel:
        held = gate.hold(kernel, "held")
        gate.wait()
        sshd.cut()
        until(lambda: "ended" in far.events("audit-1.jsonl"), "a server of ssh ends with its connection")
        gate.wait()
        gate.open(2)
        assert held.result(WAIT_S) == "held"
    assert sshd.count == 2


def never() -> Connection:
    """A connection that nothing will reach."""
    return Connection(lambda _: pytest.fail("a session began"), lambda _: None)  # type: ignore[arg-type, return-value]


def test_why_ssh_failed_is_told(sshd: Sshd, far: Far, tmp_path: Path) -> None:
    cases: list[tuple[list[str], list[str], str]] = [
        (sshd.options(), ["no-such-program"], r"status 127: .*no-such-program"),
        (sshd.options(), ["sh", "-c", r"printf '\033[31mred' >&2; exit 3"], r"status 3: \\x1b\[31mred$"),
        (sshd.options(), ["sh", "-c", "echo a login script that talks"], "SSL"),
        (sshd.options(), [*far.words[:-1], "absent.toml", "--stdio"], r"status 2: .*absent\.toml"),
        (sshd.options(IdentityFile=tmp_path / "host"), far.words, "status 255: .*denied"),
    ]
    for options, command, words in cases:
        address = SshAddress(sshd.host, ssh=("ssh", *options), command=tuple(command))
        with pytest.raises(OSError, match=words):
            asyncio.run(dial(address, never))
    assert children_named("ssh") == []


def test_the_server_behind_ssh_has_to_prove_itself(address: str, far: Far) -> None:
    other = KnownServers([KnownServer(("*",), SigningKey.from_seed(bytes(32)).public)])
    with pytest.raises(KernelCreationError, match=r"known_servers"):
        Kernel(address, auth=Ed25519AuthClient(far.ours, other), connect_timeout_s=WAIT_S)


def test_a_missing_ssh_is_told_at_once(far: Far, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "client.toml"
    path.write_text('[ssh]\nprogram = "no-such-ssh"\n', encoding="utf-8")
    path.chmod(0o600)
    monkeypatch.setenv("SECFARM_CONFIG", str(path))
    with pytest.raises(KernelCreationError, match=r"'no-such-ssh' cannot be started"):
        Kernel("ssh://node1", auth=far.auth)
