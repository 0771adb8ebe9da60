"""Local servers: real daemons that leave nothing behind, however their owner ends; and questions to any server."""

# ruff: noqa: PTH208, SIM117 - tasks are written as users write them

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from secfarm import (
    AuthError,
    ConnectionLostError,
    Kernel,
    KernelCreationError,
    TaskRefusedError,
    end_server,
    local_kernel,
    ping,
    start_local_servers,
    task_category,
)
from secfarm.auth import SharedSecretAuth
from secfarm.farm.launcher import server_status
from tests.farm.farms import POLICY, ROOT, WAIT_S, Daemon, below, children, gone, results, until
from tests.meeting import Gate, Notes, mark_process, note


def left_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith("secfarm-")]


def test_without_a_place_for_temporary_files_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(KernelCreationError, match="temporary directory"):
        local_kernel(workers=1)
    with pytest.raises(KernelCreationError, match="temporary directory"):
        start_local_servers(["127.0.0.1:0"])


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go, empty at first."""
    folder = Path(tempfile.mkdtemp(prefix="t-"))  # short: the path of a unix socket has 107 bytes
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_local_kernel_leaves_no_process_file_or_descriptor(temporary: Path) -> None:
    local_kernel(workers=1).shutdown()  # what is made once for all kernels is there now
    before, fds = set(children()), sorted(os.listdir("/proc/self/fd"))
    threads = threading.active_count()
    with local_kernel(workers=2) as kernel:
        [daemon] = set(children()) - before
        pids = below(daemon)
        assert len(pids) >= 4, "the daemon, both processes of its zygote, workers"
        assert kernel.run(divmod, 7, 2) == (3, 1)
        assert left_in(temporary)
    gone(pids)
    assert set(children()) == before
    assert left_in(temporary) == []
    until(lambda: sorted(os.listdir("/proc/self/fd")) == fds, "no descriptor is left")  # the loop closes its transports
    until(lambda: threading.active_count() == threads, "no thread is left")


def test_local_kernel_ends_when_a_block_ends_by_an_error(temporary: Path) -> None:
    with pytest.raises(ZeroDivisionError), local_kernel(workers=1) as kernel:
        kernel.run(lambda: 1 / 0)
    assert kernel.closed
    assert left_in(temporary) == []


_CLIENT = """
import os, sys, secfarm
def busy():
    while True:
        pass
kernel = secfarm.local_kernel(workers=2)
kernel.run(len, "abc")
kernel.submit(busy)
print(os.getpid(), flush=True)
sys.stdin.read()
os._exit(0)
"""


@pytest.mark.parametrize("end", ["SIGKILL", "os._exit"])
def test_nothing_is_left_when_the_client_ends_without_a_word(temporary: Path, end: str) -> None:
    client = subprocess.Popen(
        [sys.executable, "-c", _CLIENT],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with client:
        assert client.stdout is not None
        client.stdout.readline()
        pids = below(client.pid)
        assert len(pids) >= 5, "with the client itself"
        if end == "SIGKILL":
            client.send_signal(signal.SIGKILL)
    gone(pids)
    until(lambda: left_in(temporary) == [], "files and sockets are gone")


def test_a_dead_daemon_of_a_local_kernel_does_not_keep_files_or_the_client(temporary: Path) -> None:
    kernel = local_kernel(workers=1)
    [daemon] = [pid for pid in children() if "secfarm.daemon.alone" in Path(f"/proc/{pid}/cmdline").read_text()][-1:]
    pids = below(daemon)
    assert len(pids) >= 4
    os.kill(daemon, signal.SIGKILL)
    gone(pids)
    until(lambda: kernel.worker_count == 0, "the client sees it")
    kernel.shutdown()
    assert left_in(temporary) == []


# --- what tasks are let out to --------------------------------------------------------------------------------------


def test_tasks_of_a_local_kernel_reach_nothing_unless_it_is_opened(tmp_path: Path, ran: Notes) -> None:
    (tmp_path / "table").write_text("apple")
    path, port = str(tmp_path / "table"), ran.port
    read = lambda: open(path).read()  # noqa: PTH123, SIM115
    write = lambda: open(path, "w")  # noqa: PTH123, SIM115
    with local_kernel(workers=1) as kernel:
        for task in (read, write):
            with pytest.raises(FileNotFoundError):
                kernel.run(task)
        with pytest.raises(OSError, match="not permitted"):
            kernel.run(lambda: note(port, 1))
        assert kernel.run(lambda: open("scratch", "w").write("mine")) == 4  # noqa: PTH123, SIM115
    with local_kernel(workers=1, confine={"read": [tmp_path], "network": True}) as kernel:
        assert kernel.run(read) == "apple"
        assert kernel.run(lambda: note(port, 2)) == 2
        with pytest.raises(OSError, match="Read-only"):
            kernel.run(write)
    with start_local_servers(["127.0.0.1:0"], workers=1, confine={"subprocesses": True}) as servers:
        with Kernel(servers.addresses, auth=servers.auth, connect_timeout_s=WAIT_S) as kernel:
            assert kernel.run("subprocess.getoutput", "echo heard") == "heard"
        started = json.loads((servers.folder / "server0/audit.jsonl").read_text().splitlines()[0])
        assert (started["event"], started["confinement"]) == ("started", "full")
    assert ran.numbers() == [2]


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"confine": {"raed": ["/srv"]}}, KernelCreationError, "unknown key 'raed'"),
        ({"confine": {"network": "yes"}}, KernelCreationError, "network"),
        ({"confine": {'network = true\n[[grant]]\nprincipals = ["*"]\n#': True}}, KernelCreationError, "unknown key"),
        ({"confine": {"read": ["data"]}}, KernelCreationError, "absolute"),
        ({"confine": {"read": ["/no/such/place"]}}, KernelCreationError, "exists here"),
        ({"confine": {"read": ["/tmp", "/var/tmp"]}}, KernelCreationError, "could be read by tasks"),
        ({"confine": {"read": {1}}}, TypeError, "not set"),
        ({"confinement": "none"}, KernelCreationError, "confinement"),
    ],
    ids=str,
)
def test_a_local_kernel_that_cannot_be_confined_as_asked_does_not_start(
    temporary: Path, settings: dict[str, object], error: type[Exception], words: str
) -> None:
    before = set(children())
    with pytest.raises(error, match=words):
        local_kernel(workers=1, **settings)  # type: ignore[arg-type]
    assert set(children()) == before
    assert left_in(temporary) == []


def test_a_local_kernel_may_be_confined_as_in_a_container(tmp_path: Path) -> None:
    (tmp_path / "table").write_text("apple")
    path = str(tmp_path / "table")
    with local_kernel(workers=1, confinement="container") as kernel:
        assert kernel.run(divmod, 7, 2) == (3, 1)
        with pytest.raises(PermissionError):
            kernel.run(lambda: open(path).read())  # noqa: PTH123, SIM115


# --- several local servers ------------------------------------------------------------------------------------------


def test_start_local_servers_gives_addresses_and_auth(temporary: Path) -> None:
    addresses = ["127.0.0.1:0", f"unix:{temporary}/sock", ("localhost", 0)]
    with start_local_servers(addresses, workers=1) as servers:
        assert servers.addresses[1] == f"unix:{temporary}/sock"
        assert len({*servers.addresses}) == 3
        assert servers.addresses[0] in repr(servers)
        assert all(ping(address, auth=servers.auth, timeout_s=WAIT_S) for address in servers.addresses)
        with Kernel(servers.addresses, auth=servers.auth, connect_timeout_s=WAIT_S) as kernel:
            assert kernel.worker_count == 3
            assert len(set(kernel.broadcast(mark_process))) == 3
        pids = [pid for daemon in servers.pids() for pid in below(daemon)]
    gone(pids)
    servers.close()
    assert list(temporary.iterdir()) == []


def test_servers_that_cannot_start_say_why_and_end_those_that_did(temporary: Path) -> None:
    before = set(children())
    with Daemon() as taken, pytest.raises(KernelCreationError, match="cannot listen"):
        start_local_servers(["127.0.0.1:0", taken.address])
    assert set(children()) == before
    assert left_in(temporary) == []
    with pytest.raises(ValueError, match="malformed"):
        start_local_servers(["127.0.0.1:0", "no port:"])
    assert set(children()) == before
    assert left_in(temporary) == []


def test_long_tasks_do_not_hold_back_others(gate: Gate) -> None:
    """Two servers; one worker of each is busy for long, hundreds of small tasks pass by."""
    with (
        start_local_servers(["127.0.0.1:0", "127.0.0.1:0"], workers=2, confine={"network": True}) as servers,
        Kernel(servers.addresses, auth=servers.auth, connect_timeout_s=WAIT_S) as kernel,
    ):
        held = [gate.hold(kernel, i) for i in range(2)]
        gate.wait(2)
        small = [kernel.submit(divmod, i, 3) for i in range(500)]
        held.append(gate.hold(kernel, 2))
        small += [kernel.submit(divmod, i, 3) for i in range(500, 1000)]
        assert results(small) == [divmod(i, 3) for i in range(1000)]
        gate.wait(1)
        assert not any(future.done() for future in held)
        gate.open(3)
        assert results(held) == [0, 1, 2]


def test_a_known_short_task_that_is_long_for_once_does_not_hold_back_those_behind_it(gate: Gate) -> None:
    """What was sent ahead of it is taken back from its worker and run by the other one."""

    def sometimes(arguments):
        return pass_gate(*arguments) if arguments else None

    from tests.meeting import pass_gate

    with start_local_servers(["127.0.0.1:0"], workers=2, confine={"network": True}) as servers:
        with Kernel(servers.addresses, auth=servers.auth, connect_timeout_s=WAIT_S) as kernel:
            results(kernel.submit(sometimes, None) for _ in range(300))
            futures = [kernel.submit(sometimes, None) for _ in range(50)]
            long = kernel.submit(sometimes, gate.arguments("long"))
            futures += [kernel.submit(sometimes, None) for _ in range(300)]
            results(futures)
            gate.wait()
            assert not long.done()
            gate.open()
            assert long.result(WAIT_S) == "long"


# --- questions ------------------------------------------------------------------------------------------------------


def test_ping_is_true_where_a_server_answers_us(daemon: Daemon) -> None:
    assert ping(daemon.address, auth=daemon.auth, timeout_s=WAIT_S) is True


def test_ping_is_false_where_nobody_answers_in_time(one_daemon: Daemon, tmp_path: Path) -> None:
    assert ping(f"unix:{tmp_path}/absent", auth=one_daemon.auth, timeout_s=0.05) is False
    with pytest.raises(ValueError, match="malformed"):
        ping("no port:", auth=one_daemon.auth)
    with pytest.raises(AuthError):
        ping(one_daemon.address, auth=SharedSecretAuth(bytes(range(32))), timeout_s=WAIT_S)


@pytest.mark.parametrize("wrong", [math.nan, -1, -0.5])
def test_what_is_no_time_is_refused_before_anything_is_dialled(one_daemon: Daemon, wrong: float) -> None:
    with pytest.raises(ValueError, match="connect_timeout_s"):
        Kernel(one_daemon.address, auth=one_daemon.auth, connect_timeout_s=wrong)
    with pytest.raises(ValueError, match="connect_timeout_s"):
        Kernel(listen="127.0.0.1:0", auth=one_daemon.auth, connect_timeout_s=wrong)
    with pytest.raises(ValueError, match="timeout_s"):
        ping(one_daemon.address, auth=one_daemon.auth, timeout_s=wrong)


def test_ping_waits_for_a_server_that_is_yet_to_start() -> None:
    with Daemon("unix-ed25519") as daemon:
        daemon.kill()
        answers: list[bool] = []
        asking = threading.Thread(target=lambda: answers.append(ping(daemon.address, auth=daemon.auth, timeout_s=None)))
        asking.start()
        daemon.start()
        asking.join(WAIT_S)
        assert answers == [True]


def test_server_status_tells_workers_and_sessions(daemon: Daemon) -> None:
    status = server_status(daemon.address, auth=daemon.auth)
    assert (status["server"], status["workers"], status["pid"]) == ("node", 2, daemon.pid)
    assert "tester" in status["sessions"]


def test_server_status_tells_what_runs_and_what_waits(gate: Gate) -> None:
    with Daemon("unix-ed25519", workers=2) as daemon, daemon.connect() as kernel:
        before = server_status(daemon.address, auth=daemon.auth)
        assert (before["busy"], before["waiting"], before["tasks"]) == (0, 0, 0)
        with task_category("etl"):
            held = [gate.hold(kernel, number) for number in range(2)]
        pids = {pid for _, pid in gate.wait(2)}
        status = server_status(daemon.address, auth=daemon.auth)
        assert (status["busy"], status["tasks"]) == (2, 2)
        busy = [one for one in status["worker_records"] if one["busy"]]
        assert {one["pid"] for one in busy} == pids
        assert {(one["principal"], one["category"]) for one in busy} == {("tester", "etl")}
        assert all(one["memory_bytes"] > 1_000_000 for one in busy)
        own = [one for one in status["session_records"] if one["outstanding"]]
        assert [(one["principal"], one["mechanism"], one["outstanding"]) for one in own] == [("tester", "ed25519", 2)]
        assert before["since"] <= own[0]["since"]
        gate.open(2)
        results(held)


def test_end_server_lets_connections_in_progress_finish(gate: Gate) -> None:
    with Daemon() as daemon:
        kernel = daemon.connect()
        held = gate.hold(kernel, 8)
        gate.wait()
        end_server(daemon.address, auth=daemon.auth)
        with pytest.raises(KernelCreationError):
            Kernel(daemon.address, auth=daemon.auth, connect_timeout_s=0.2)
        assert kernel.run(divmod, 7, 2) == (3, 1), "a session goes on until its client ends it"
        gate.open()
        assert held.result(WAIT_S) == 8
        kernel.shutdown()
        gone([daemon.pid])
        assert not ping(daemon.address, auth=daemon.auth, timeout_s=0.05)


def test_end_server_and_status_need_the_admin_grant() -> None:
    with Daemon(policy=POLICY.replace(', "admin"', "")) as daemon:
        with pytest.raises(TaskRefusedError):
            end_server(daemon.address, auth=daemon.auth)
        with pytest.raises(TaskRefusedError):
            server_status(daemon.address, auth=daemon.auth)
        assert ping(daemon.address, auth=daemon.auth, timeout_s=WAIT_S)


def test_questions_to_nobody_are_a_lost_connection(one_daemon: Daemon, tmp_path: Path) -> None:
    for ask in (end_server, server_status):
        with pytest.raises(ConnectionLostError, match="absent"):
            ask(f"unix:{tmp_path}/absent", auth=one_daemon.auth, timeout_s=0.05)
