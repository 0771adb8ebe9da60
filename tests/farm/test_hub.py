"""A kernel that listens: servers come, go and come back, and every task has one result."""

from __future__ import annotations

import contextlib
import logging
import select
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from secfarm import ConnectionLostError, Kernel, KernelCreationError, SigningKey, make_kernel
from secfarm.auth import Ed25519AuthClient
from secfarm.farm.launcher import end_server, server_status
from secfarm.trust.store import KnownServer, KnownServers
from tests.farm.farms import WAIT_S, Daemon, gone, records, results, until
from tests.farm.proxy import Proxy
from tests.meeting import Gate, Notes, note, pass_gate

KEY = SigningKey.from_seed(b"\x05" * 32)
STRANGER = Ed25519AuthClient(KEY, KnownServers([KnownServer(("*",), KEY.public)]))  # no server here has that key
DIALIN = pytest.mark.parametrize("way", ["dialin-ed25519", "dialin-secret"])


@contextlib.contextmanager
def hub(auth: object, listen: object = "127.0.0.1:0", **settings: object) -> Iterator[Kernel]:
    """A kernel that listens, for whatever dials in later."""
    with Kernel(listen=listen, auth=auth, **settings) as kernel:  # type: ignore[arg-type]
        yield kernel


def audit(daemon: Daemon, event: str) -> list[dict[str, object]]:
    return records(daemon.folder / "state/audit.jsonl", event)


# --- where it listens -----------------------------------------------------------------------------------------------


def test_a_hub_says_where_it_listens(tmp_path: Path) -> None:
    with hub(STRANGER) as kernel, hub(STRANGER, ["127.0.0.1:0", "[::1]:0", f"unix:{tmp_path}/sock"]) as several:
        host, port = kernel.listening[0].split(":")
        assert (host, int(port) > 0, len(kernel.listening)) == ("127.0.0.1", True, 1)
        assert kernel.listening[0] in repr(kernel)
        assert several.listening[1].startswith("[::1]:")
        assert several.listening[2] == f"unix:{tmp_path}/sock"
        assert (tmp_path / "sock").stat().st_mode & 0o777 == 0o600
        with pytest.raises(KernelCreationError, match=f"cannot listen on {kernel.listening[0]}"):
            Kernel(listen=[f"unix:{tmp_path}/other", kernel.listening[0]], auth=STRANGER)
    assert not (tmp_path / "sock").exists()
    assert Kernel([], listen=("127.0.0.1", 0), auth=STRANGER).shutdown() is None


@pytest.mark.parametrize("listen", ["host:port", ["127.0.0.1:0", "unix:relative"], "127.0.0.1:99999"])
def test_a_malformed_address_to_listen_on_is_a_value_error(listen: object) -> None:
    with pytest.raises(ValueError, match="malformed address"):
        Kernel(listen=listen, auth=STRANGER)  # type: ignore[arg-type]


def test_the_hosts_of_the_configuration_are_for_kernels_that_name_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a hub would wait for servers that its user did not mean."""
    monkeypatch.setenv("SECFARM_HOSTS", "127.0.0.1:1")
    with hub(STRANGER) as kernel:
        assert "127.0.0.1:1>" not in repr(kernel)


def test_a_kernel_that_only_listens_does_not_wait_unless_told_to() -> None:
    with hub(STRANGER) as kernel:
        assert (kernel.worker_count, kernel.workers(), kernel.categories_running()) == (0, [], [])
        with pytest.raises(ConnectionLostError, match="no server is connected"):
            kernel.broadcast(len, "")
    with pytest.raises(KernelCreationError, match=r"no server dialled in to 127\.0\.0\.1:\d+ within 0\.1 s"):
        Kernel(listen="127.0.0.1:0", auth=STRANGER, connect_timeout_s=0.1)


@DIALIN
def test_tasks_wait_for_the_first_server(way: str, ran: Notes) -> None:
    """A queue of any length, before anybody is there to work."""
    with Daemon(way) as first:
        first.kill()
        with hub(first.auth) as kernel:
            futures = [kernel.submit(note, ran.port, i) for i in range(3000)]
            with Daemon(way, beside=first, hubs=kernel.listening, name="late"):
                assert results(futures) == list(range(3000))
    assert sorted(ran.numbers()) == list(range(3000))


def test_servers_dial_in_over_a_unix_socket(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/hub"
    with (
        Daemon(name="first") as first,
        Daemon(beside=first, hubs=[address], name="second"),
        make_kernel(listen=address, auth=first.auth, connect_timeout_s=WAIT_S) as kernel,
    ):
        assert [(one.server, one.address) for one in kernel.workers()] == [("second", address)] * 2


@DIALIN
def test_servers_of_both_kinds_serve_one_kernel(way: str, gate: Gate) -> None:
    """As many tasks at a time as there are workers, each where one is free, results as they come."""
    with (
        Daemon(way, name="dialled", workers=1) as first,
        Kernel(first.address, listen="127.0.0.1:0", auth=first.auth, connect_timeout_s=WAIT_S) as kernel,
    ):
        assert kernel.worker_count == 1, "what is dialled is waited for as ever"
        with (
            Daemon(way, beside=first, hubs=kernel.listening, name="b", workers=1),
            Daemon(way, beside=first, hubs=kernel.listening, name="c", workers=1),
        ):
            until(lambda: kernel.worker_count == 3, "everybody is here")
            assert {one.server for one in kernel.workers()} == {"dialled", "b", "c"}
            assert all(one.address.startswith(("unix:", "127.0.0.1:")) for one in kernel.workers())
            channel = kernel.channel()
            for tag in range(5):
                channel.submit(pass_gate, *gate.arguments(tag))
            assert sorted(tag for tag, _ in gate.wait(3)) == ["0", "1", "2"], "one each"
            assert kernel.categories_running() == ["default"] * 3
            gate.open(1)
            received = [channel.receive()]
            assert [tag for tag, _ in gate.wait(1)] == ["3"]
            gate.open(4)
            received += [channel.receive() for _ in range(4)]
            assert received[0] in {0, 1, 2}, "whichever is done first"
            assert sorted(received) == list(range(5))
        until(lambda: kernel.worker_count == 1, "those that went are gone")


# --- who may come ---------------------------------------------------------------------------------------------------


def test_a_server_that_dials_in_is_known_by_its_name(caplog: pytest.LogCaptureFixture) -> None:
    with Daemon(name="first") as first, hub(first.auth) as kernel:
        first.auth.known_servers.entries = ()  # type: ignore[attr-defined]
        with Daemon(beside=first, hubs=kernel.listening, name="right"):
            until(lambda: kernel.worker_count, "the right one is in")
            first.auth.known_servers.entries = (  # type: ignore[attr-defined]
                KnownServer(("right",), KEY.public),
                *first.auth.known_servers.entries,  # type: ignore[attr-defined]
            )
            with (
                caplog.at_level(logging.WARNING, "secfarm"),
                Daemon(beside=first, hubs=kernel.listening, name="other", known=False) as other,
            ):
                until(lambda: caplog.records, "the other one knocked")
                assert "'other'" in caplog.text
                until(lambda: audit(other, "turned-away"), "it was told so")
                assert str(audit(other, "turned-away")[0]["source"]) == kernel.listening[0]
                assert {one.server for one in kernel.workers()} == {"right"}


def test_why_nobody_came_is_in_the_error() -> None:
    with Daemon("dialin-ed25519") as daemon:
        daemon.auth.known_servers.entries = ()  # type: ignore[attr-defined]
        with pytest.raises(KernelCreationError, match=r"no server dialled in.*known_servers has no key at all for it"):
            Kernel(listen=daemon.hub, auth=daemon.auth, connect_timeout_s=5.0)


def test_a_server_that_dials_verifies_whose_hub_it_is() -> None:
    """Its allowed_signers decide, and then its policy."""
    with Daemon("dialin-ed25519", policy="") as daemon:
        known = daemon.auth.known_servers  # type: ignore[attr-defined]
        with pytest.raises(KernelCreationError, match="refused us"):
            Kernel(listen=daemon.hub, auth=Ed25519AuthClient(KEY, known), connect_timeout_s=5.0)
        until(lambda: audit(daemon, "turned-away"), "the server wrote down why")
        with daemon.connect() as kernel, pytest.raises(Exception, match="refused"):
            kernel.run(len, "")


# --- nothing is lost ------------------------------------------------------------------------------------------------


@DIALIN
def test_a_killed_server_s_tasks_go_to_the_others_and_all_are_accounted_for(way: str, ran: Notes) -> None:
    with (
        Daemon(way, name="first") as first,
        hub(first.auth) as kernel,
        Daemon(way, beside=first, hubs=kernel.listening, name="a") as victim,
        Daemon(way, beside=first, hubs=kernel.listening, name="b"),
    ):
        until(lambda: kernel.worker_count == 4, "both are here")
        futures = [kernel.submit(note, ran.port, i) for i in range(4000)]
        futures[50].result(WAIT_S)
        victim.kill()
        futures += [kernel.submit(note, ran.port, i) for i in range(4000, 5000)]
        assert results(futures) == list(range(5000))
        until(lambda: kernel.worker_count == 2, "one is left")
        victim.start()
        until(lambda: kernel.worker_count == 4, "it comes back")
        assert kernel.run(divmod, 7, 2) == (3, 1)
    times = Counter(ran.numbers())
    assert set(times) == set(range(5000))
    assert max(times.values()) <= 2, "a task of the lost server began once more, no other did"


@DIALIN
def test_a_running_task_waits_for_its_server_though_another_is_free(
    way: str, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is known again by its key and name, wherever it dials from; so the task runs once."""
    monkeypatch.setattr("secfarm.farm.dispatch._RETURN_S", WAIT_S)  # however long a busy machine takes to dial
    with (
        Daemon(way, name="first") as first,
        hub(first.auth) as kernel,
        Proxy(kernel.listening[0]) as proxy,
        Daemon(way, beside=first, hubs=[proxy.address], name="a", workers=1),
    ):
        held = gate.hold(kernel, "same")
        gate.wait()
        with Daemon(way, beside=first, hubs=kernel.listening, name="b", workers=1):
            until(lambda: kernel.worker_count == 2, "both are here")
            proxy.cut()
            until(lambda: proxy.count == 2 and kernel.worker_count == 2, "it is back")
            next_one = gate.hold(kernel, "next")
            assert [tag for tag, _ in gate.wait()] == ["next"], "the first one did not run again"
            gate.open(2)
            assert results([held, next_one]) == ["same", "next"]


def test_a_line_that_only_the_hub_believes_in_is_found_out(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server has dialled in again; asked on the old line, it is silent; so it is asked for its task on the new."""
    monkeypatch.setattr("secfarm.farm.hub.HANDSHAKE_TIMEOUT_S", 2.0)
    with Daemon("dialin-ed25519") as daemon, daemon.through() as (proxy, kernel):
        held = gate.hold(kernel, 5)
        gate.wait()
        proxy.cut(only_client=True)
        until(lambda: kernel.worker_count == 4, "it is here twice")
        until(lambda: kernel.worker_count == 2, "once")
        proxy.cut_the_rest()
        gate.open()
        assert held.result(WAIT_S) == 5


def test_two_servers_with_one_key_and_one_name_are_two(gate: Gate) -> None:
    """Copies of one machine: each answers when it is asked whether it is there, so both stay."""
    with (
        Daemon("dialin-secret") as first,
        hub(first.auth) as kernel,
        Daemon("dialin-secret", beside=first, hubs=kernel.listening, workers=1),
        Daemon("dialin-secret", beside=first, hubs=kernel.listening, workers=1),
    ):
        until(lambda: kernel.worker_count == 2, "both are here")
        held = [gate.hold(kernel, tag) for tag in range(2)]
        assert len({pid for _, pid in gate.wait(2)}) == 2
        gate.open(2)
        assert results(held) == [0, 1]


@DIALIN
def test_a_hub_that_ends_and_starts_again_sees_its_servers_come_back(way: str) -> None:
    """Its end is a clean one to them, and they dial on."""
    with Daemon(way) as daemon:
        address = daemon.hub
        for _ in range(2):
            with Kernel(listen=address, auth=daemon.auth, connect_timeout_s=WAIT_S) as kernel:
                assert kernel.listening == [address]
                assert kernel.run(divmod, 7, 2) == (3, 1)
                status = server_status(daemon.address, auth=daemon.auth)
                assert status["dialled"] == [address]
                assert address in status["dial"]  # type: ignore[operator]
        until(lambda: not server_status(daemon.address, auth=daemon.auth)["dialled"], "the server has noticed")
        assert [record["error"] for record in audit(daemon, "closed")[:2]] == ["", ""]


def test_a_server_that_was_told_to_end_dials_no_more() -> None:
    with Daemon("dialin-ed25519") as daemon:
        with daemon.connect() as kernel:
            end_server(daemon.address, auth=daemon.auth)
            assert kernel.run(divmod, 7, 2) == (3, 1), "sessions in progress go on"
            with socket.create_server(("127.0.0.1", int(daemon.hub.partition(":")[2]))) as another:
                assert not select.select([another], [], [], 2.5)[0], "over its longest pause"
        gone([daemon.pid])
