"""A broken line costs time and nothing else: connections cut at every stage, servers killed and started again."""

# ruff: noqa: PLW0603, SIM117 - tasks are written as users write them

from __future__ import annotations

import concurrent.futures
import random
from collections import Counter
from pathlib import Path

import pytest

from secfarm import ConnectionLostError, KernelCreationError
from secfarm.farm.launcher import server_status
from tests.farm.farms import WAIT_S, WAYS, Daemon, allow, results, until
from tests.farm.proxy import Proxy
from tests.meeting import Gate, Notes, note, pass_gate

# Bytes after which a line breaks. TLS's handshake is about 1 kB each way, ours another one; then come batches.
EARLY = [1, 50, 300, 600, 900, 1200, 1500, 1800, 2100, 2500]


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_handshake_that_is_cut_anywhere_is_tried_again(daemon: Daemon, direction: str) -> None:
    """A cut is no refusal: the kernel goes on until it is let in."""
    cuts = [(cut, None) if direction == "up" else (None, cut) for cut in (1, 400, 700)]
    with daemon.through(cuts) as (proxy, kernel):
        assert kernel.run(divmod, 7, 2) == (3, 1)
        assert proxy.count >= len(cuts)


@pytest.mark.parametrize("seed", range(3))
def test_under_load_each_task_has_one_result_and_one_execution_whatever_is_cut(
    daemon: Daemon, ran: Notes, seed: int
) -> None:
    """The server survives; 1500 tasks, a dozen cuts in either direction."""
    dice = random.Random(seed)
    cuts = [(None, None)]
    for _ in range(12):
        cut = dice.choice([*EARLY, 4000, 8000, 15_000, 30_000, 50_000]) + dice.randrange(200)
        cuts.append((cut, None) if dice.random() < 0.5 else (None, cut))
    with daemon.through(cuts) as (proxy, kernel):
        futures = [kernel.submit(note, ran.port, i) for i in range(750)]
        proxy.cut()
        futures += [kernel.submit(note, ran.port, i) for i in range(750, 1500)]
        assert results(futures) == list(range(1500))
        assert proxy.count > 2
    assert [count for count in Counter(ran.numbers()).values() if count > 1] == []
    assert sorted(ran.numbers()) == list(range(1500))


def test_cuts_in_a_row_while_tasks_finish(one_daemon: Daemon, ran: Notes) -> None:
    """The line breaks each time that some results have come."""
    with Proxy(one_daemon.address) as proxy, one_daemon.connect(proxy.address) as kernel:
        futures = [kernel.submit(note, ran.port, i) for i in range(3000)]
        for i in range(0, 3000, 500):
            futures[i].result(WAIT_S)
            proxy.cut()
        assert results(futures) == list(range(3000))
    assert sorted(ran.numbers()) == list(range(3000))


@pytest.mark.parametrize("way", WAYS)
def test_a_running_task_outlives_the_line_and_its_result_is_fetched(
    daemon_of, way: str, gate: Gate, tmp_path: Path
) -> None:
    daemon = daemon_of(way)
    with daemon.through() as (proxy, kernel):
        held = gate.hold(kernel, "same")
        gate.wait()
        proxy.cut()
        assert kernel.submit(divmod, 7, 2).result(WAIT_S) == (3, 1)
        assert not held.done()
        gate.open()
        assert held.result(WAIT_S) == "same"
        assert kernel.submit(pass_gate, *gate.arguments("next")) is not None
        assert [tag for tag, _ in gate.wait()] == ["next"], "the first one did not run again"
        gate.open()


def test_a_line_that_the_server_holds_for_good_does_not_keep_the_result(gate: Gate) -> None:
    """The client's end breaks first; the server hears of it only when the client is back."""
    with Daemon() as daemon, Proxy(daemon.address) as proxy, daemon.connect(proxy.address) as kernel:
        # That of the question is one of them, and that of the question before may be going.
        sessions = lambda: len(server_status(daemon.address, auth=daemon.auth)["sessions"]) - 1
        until(lambda: sessions() == 1, "the kernel's")
        held = gate.hold(kernel, 5)
        gate.wait()
        proxy.cut(only_client=True)
        assert kernel.submit(divmod, 7, 2).result(WAIT_S) == (3, 1)
        until(lambda: sessions() == 2, "the old line stands")
        assert not held.done()
        proxy.cut_the_rest()
        until(lambda: sessions() == 1, "the server sees that the old line is gone")
        gate.open()
        assert held.result(WAIT_S) == 5


def test_tasks_that_wait_behind_a_held_line_are_not_lost(one_daemon: Daemon, gate: Gate, ran: Notes) -> None:
    with Proxy(one_daemon.address) as proxy, one_daemon.connect(proxy.address) as kernel:
        kernel.run(note, ran.port, -1)  # it is known to be short: many are sent ahead of a free worker
        held = [gate.hold(kernel, i) for i in range(kernel.worker_count)]
        gate.wait(len(held))
        futures = [kernel.submit(note, ran.port, i) for i in range(500)]
        proxy.cut(only_client=True)
        futures += [kernel.submit(note, ran.port, i) for i in range(500, 600)]
        until(lambda: proxy.count == 2, "the client is back")
        proxy.cut_the_rest()
        gate.open(len(held))
        assert results(futures) == list(range(600))
        results(held)
    assert sorted(ran.numbers()) == list(range(-1, 600))


@pytest.mark.parametrize("way", WAYS)
def test_a_server_that_is_killed_and_started_again_is_found_again(way: str, ran: Notes) -> None:
    """Each task has one result; some ran twice, because the server lost its memory."""
    with Daemon(way) as daemon, daemon.connect() as kernel:
        futures = [kernel.submit(note, ran.port, i) for i in range(1000)]
        futures[10].result(WAIT_S)
        daemon.kill()
        until(lambda: kernel.worker_count == 0, "the client sees that the server is gone")
        futures += [kernel.submit(note, ran.port, i) for i in range(1000, 1100)]
        daemon.start()
        assert results(futures) == list(range(1100))
        assert kernel.worker_count == 2
    assert set(ran.numbers()) == set(range(1100))


def test_a_lost_server_s_tasks_go_to_the_others(gate: Gate, tmp_path: Path) -> None:
    with Daemon(name="a") as first, Daemon(name="b", workers=1) as second:
        allow(first, second)
        with first.connect(first.address, second.address) as kernel:
            assert kernel.worker_count == 3
            held = [gate.hold(kernel, i) for i in range(3)]
            gate.wait(3)
            first.kill()
            gate.open(3 + 2)  # the dead server's workers stand at the gate as well
            assert results(held) == [0, 1, 2]
            assert len(gate.wait(2)) == 2, "those two began again"
            until(lambda: kernel.worker_count == 1, "one server is left")


def test_a_broadcast_is_run_again_on_a_server_that_comes_back() -> None:
    def define():
        global SHARED
        SHARED = 6

    with Daemon() as daemon, daemon.connect() as kernel:
        kernel.broadcast(define)
        daemon.kill()
        daemon.start()
        assert kernel.submit(lambda: SHARED).result(WAIT_S) == 6


def test_at_most_once_fails_what_was_sent_and_keeps_what_was_not(one_daemon: Daemon, gate: Gate) -> None:
    with Proxy(one_daemon.address) as proxy, one_daemon.connect(proxy.address, delivery="at-most-once") as kernel:
        held = [gate.hold(kernel, i) for i in range(kernel.worker_count)]
        gate.wait(len(held))
        waiting = kernel.submit(divmod, 7, 2)
        proxy.cut()
        for future in held:
            with pytest.raises(ConnectionLostError, match=proxy.address) as caught:
                future.result(WAIT_S)
            assert isinstance(caught.value, ConnectionError)
        gate.open(len(held))
        assert waiting.result(WAIT_S) == (3, 1)


def test_at_most_once_runs_nothing_twice_under_cuts(one_daemon: Daemon, ran: Notes) -> None:
    cuts = [(None, None), (20_000, None), (None, 20_000), (5000, None), (None, 5000)]
    with Proxy(one_daemon.address, cuts) as proxy:
        with one_daemon.connect(proxy.address, delivery="at-most-once") as kernel:
            futures = [kernel.submit(note, ran.port, i) for i in range(1000)]
            futures[100].result(WAIT_S)
            proxy.cut()
            concurrent.futures.wait(futures, WAIT_S)
            lost = [i for i, future in enumerate(futures) if isinstance(future.exception(), ConnectionLostError)]
            assert [future.result() for i, future in enumerate(futures) if i not in set(lost)] == [
                i for i in range(1000) if i not in set(lost)
            ]
    numbers = ran.numbers()
    assert len(set(numbers)) == len(numbers)
    assert set(range(1000)) - set(lost) <= set(numbers)


# --- large values ---------------------------------------------------------------------------------------------------


def test_large_values_go_up_and_down(kernel) -> None:
    text = bytes(range(256)) * (3 << 14)  # 12 MiB
    up, down = kernel.submit(len, text), kernel.submit(bytes, len(text))
    assert kernel.submit(divmod, 7, 2).result(WAIT_S) == (3, 1)
    assert (up.result(WAIT_S), down.result(WAIT_S)) == (len(text), bytes(len(text)))
    assert kernel.submit(lambda x: x, text).result(WAIT_S) == text
    shared = [kernel.submit(lambda n: text[n], n) for n in range(3)]  # captured, once for the whole batch
    assert results(shared) == [0, 1, 2]


@pytest.mark.parametrize("cuts", [[(100_000, None)] * 2 + [(3 << 20, None)], [(None, 100_000)] * 2 + [(None, 3 << 20)]])
def test_a_large_value_that_is_cut_on_its_way_is_sent_again(one_daemon: Daemon, cuts, ran: Notes) -> None:
    def counted(port: int, value: bytes) -> bytes:
        note(port, 1)
        return value

    text = bytes(range(256)) * (1 << 14)  # 4 MiB
    with Proxy(one_daemon.address, [(None, None), *cuts]) as proxy, one_daemon.connect(proxy.address) as kernel:
        proxy.cut()
        futures = [kernel.submit(counted, ran.port, text[n:]) for n in range(3)]
        assert results(futures) == [text, text[1:], text[2:]]
        assert proxy.count > len(cuts)
    assert len(ran.numbers()) == 3


def test_nobody_there_at_first_is_no_error_while_connect_timeout_lasts(tmp_path: Path) -> None:
    """Servers may start after the kernel."""
    with Daemon("unix-ed25519") as daemon:
        daemon.kill()
        with concurrent.futures.ThreadPoolExecutor() as pool:
            making = pool.submit(daemon.connect)
            daemon.start()
            with making.result(WAIT_S) as kernel:
                assert kernel.run(divmod, 7, 2) == (3, 1)


def test_who_is_refused_later_is_not_let_go_of(one_daemon: Daemon) -> None:
    """Once in, a kernel keeps trying: keys are changed in the wrong order, too."""
    with Daemon() as daemon, daemon.connect() as kernel:
        allowed = (daemon.folder / "allowed_signers").read_bytes()
        daemon.kill()
        (daemon.folder / "allowed_signers").write_bytes(allowed[:0] + b"# nobody\n")
        daemon.start()
        with pytest.raises(KernelCreationError):
            daemon.connect()
        future = kernel.submit(divmod, 7, 2)
        daemon.kill()
        (daemon.folder / "allowed_signers").write_bytes(allowed)
        daemon.start()
        assert future.result(WAIT_S) == (3, 1)
