"""What a broadcast defines: for this session, in every worker it ever has, behind what a task captured itself."""

# ruff: noqa: PLW0603 - names that broadcasts define

from __future__ import annotations

import os
import signal

import pytest

from secfarm import Kernel, SigningKey, TaskKilledError
from secfarm.auth import Ed25519AuthClient
from tests.farm.farms import WAIT_S, Daemon, results
from tests.farm.proxy import Proxy
from tests.meeting import Gate, mark_process, pass_gate

CAPTURED = "the client's own"


def define(value: object) -> None:
    global SHARED, TWICE
    SHARED = value
    TWICE = [value, value]


def build_on_it() -> None:
    global THIRD
    THIRD = [*TWICE, SHARED]


def everywhere(kernel: Kernel, task) -> list[object]:
    """The results of many calls, whichever workers they meet."""
    return list({repr(value): value for value in results(kernel.submit(task) for _ in range(20))}.values())


def test_a_captured_name_wins(kernel: Kernel) -> None:
    def clash() -> None:
        global CAPTURED
        CAPTURED = "the broadcast's"

    before = CAPTURED
    kernel.broadcast(clash)
    assert everywhere(kernel, lambda: CAPTURED) == [before]
    inner = "closed over"
    assert everywhere(kernel, lambda: (inner, CAPTURED)) == [("closed over", before)]


def test_what_ordinary_tasks_write_does_not_persist(one_daemon: Daemon) -> None:
    def overwrite() -> object:
        global SHARED, STRAY
        before, SHARED, STRAY = SHARED, "overwritten", 1
        return before

    with one_daemon.connect() as kernel:
        kernel.broadcast(define, "defined")
        assert everywhere(kernel, overwrite) == ["defined"]
        assert everywhere(kernel, lambda: SHARED) == ["defined"]
        with pytest.raises(NameError):
            kernel.run(lambda: STRAY)


def test_the_last_broadcast_counts_and_each_may_build_on_those_before(one_daemon: Daemon) -> None:
    with one_daemon.connect() as kernel:
        kernel.broadcast(define, 1)
        kernel.broadcast(build_on_it)
        kernel.broadcast(define, 2)
        assert everywhere(kernel, lambda: (SHARED, THIRD)) == [(2, [1, 1, 1])]


@pytest.mark.parametrize("end", ["killed", "crashed", "timed out"])
def test_each_replacement_is_made_as_the_worker_was_before_it_runs_a_task(
    one_daemon: Daemon, gate: Gate, end: str
) -> None:
    """All broadcasts, in their order; whatever became of the worker."""
    with one_daemon.connect() as kernel:
        kernel.broadcast(define, 1)
        kernel.broadcast(build_on_it)
        kernel.broadcast(define, 2)
        before = set(kernel.broadcast(mark_process))
        assert len(before) == kernel.worker_count
        view = kernel.options(category="doomed", timeout_s=0.2 if end == "timed out" else None)
        doomed = [view.submit(pass_gate, *gate.arguments(0)) for _ in range(kernel.worker_count)]
        if end != "timed out":  # which may be before they come to the gate
            pids = {pid for _, pid in gate.wait(kernel.worker_count)}
            if end == "killed":
                assert kernel.kill("doomed") == kernel.worker_count
            else:
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
        for future in doomed:
            assert future.exception(WAIT_S) is not None
        assert everywhere(kernel, lambda: (SHARED, THIRD)) == [(2, [1, 1, 1])]
        assert before.isdisjoint(kernel.broadcast(mark_process))


def test_a_new_session_with_the_same_server_is_given_them_first(one_daemon: Daemon) -> None:
    """The line breaks, the server survives: the session's workers are others then."""
    with Proxy(one_daemon.address) as proxy, one_daemon.connect(proxy.address) as kernel:
        kernel.broadcast(define, 3)
        proxy.cut()
        assert everywhere(kernel, lambda: SHARED) == [3]


def test_no_other_session_and_no_other_principal_sees_them_and_no_worker_is_shared() -> None:
    policy = '[[grant]]\nprincipals = ["*"]\nmay = ["run", "call", "broadcast"]\nnames = ["*"]\n'
    with Daemon("tcp-ed25519", workers=1, policy=policy) as daemon:
        with daemon.connect() as kernel:
            kernel.broadcast(define, "secret")
            mark = kernel.run(mark_process)
            with daemon.connect() as other:  # the same principal, the same single place for a worker
                assert other.run(mark_process) != mark
                with pytest.raises(NameError):
                    other.run(lambda: SHARED)
            assert everywhere(kernel, lambda: SHARED) == ["secret"]
        stranger = SigningKey.from_seed(os.urandom(32))
        with (daemon.folder / "allowed_signers").open("a") as file:
            file.write(f"stranger {stranger.public.openssh()}\n")
        daemon.kill()
        daemon.start()
        auth = Ed25519AuthClient(stranger, daemon.auth.known_servers)  # type: ignore[attr-defined]
        with Kernel([daemon.address], auth=auth, connect_timeout_s=WAIT_S) as theirs, daemon.connect() as kernel:
            kernel.broadcast(define, "secret")
            with pytest.raises(NameError):
                theirs.run(lambda: SHARED)
            assert everywhere(kernel, lambda: SHARED) == ["secret"]


def test_a_task_killed_for_its_category_leaves_the_definitions(one_daemon: Daemon, gate: Gate) -> None:
    with one_daemon.connect() as kernel:
        kernel.broadcast(define, 4)
        held = kernel.options(category="one").submit(pass_gate, *gate.arguments(0))
        gate.wait()
        assert kernel.kill("one") == 1
        with pytest.raises(TaskKilledError):
            held.result(WAIT_S)
        assert everywhere(kernel, lambda: SHARED) == [4]
