"""20,000 tasks, servers killed and lines cut meanwhile: each task is accounted for, its results and its executions.

A task leaves its number in a file of the server process that runs it. So it is known for each life of each server
what it ran, and how often.
"""

from __future__ import annotations

import concurrent.futures
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from secfarm import ConnectionLostError, Future, Kernel
from secfarm.farm.schedule import _MAX_AHEAD
from tests.farm.farms import WAIT_S, Daemon, Gate, allow, until
from tests.farm.proxy import Proxy

COUNT = 20_000


def mark(folder: str, number: int) -> int:
    """Leave the number in the file of this server's life. A task."""
    import os

    fd = os.open(f"{folder}/{os.getppid()}", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, b"%d\n" % number)
    os.close(fd)
    return number


def marks(folder: Path) -> dict[int, Counter[int]]:
    """Server process -> how often it ran each task."""
    return {int(file.name): Counter(map(int, file.read_text().split())) for file in folder.iterdir()}


def submit(kernel: Kernel, folder: Path, numbers: Iterable[int]) -> list[Future[int]]:
    return [kernel.submit(mark, str(folder), number) for number in numbers]


def done(futures: list[Future[int]], share: float) -> None:
    """Wait until some share of the tasks is done, roughly."""
    futures[int(share * (len(futures) - 1))].result(WAIT_S)


def test_each_task_has_one_result_and_the_survivor_ran_each_once(one_daemon: Daemon, tmp_path: Path) -> None:
    """One server, the line cut four times: in the rush of the first batches, half way, in a handshake, near the end."""
    with Proxy(one_daemon.address) as proxy, one_daemon.connect(proxy.address) as kernel:
        futures = submit(kernel, tmp_path, range(COUNT // 2))
        proxy.cut()
        futures += submit(kernel, tmp_path, range(COUNT // 2, COUNT))
        done(futures, 0.4)
        proxy.cuts.extend([(1200, None)])  # the connection that comes next ends in its handshake
        proxy.cut(only_client=True)
        done(futures, 0.7)
        proxy.cut_the_rest()
        proxy.cut()
        done(futures, 0.95)
        proxy.cut()
        assert [future.result(WAIT_S) for future in futures] == list(range(COUNT))
        assert proxy.count >= 5
    ((_, ran),) = marks(tmp_path).items()
    assert ran == Counter(range(COUNT))


def test_servers_killed_under_load_lose_nothing_and_no_life_of_one_runs_a_task_twice(tmp_path: Path) -> None:
    """Two servers: one survives, the other is killed and started again four times, with tasks before and in workers."""
    with Daemon(name="stays") as stays, Daemon(name="falls") as falls:
        allow(stays, falls)
        with stays.connect(stays.address, falls.address) as kernel:
            futures = submit(kernel, tmp_path, range(COUNT))
            killed: set[int] = set()
            for share in (0.05, 0.3, 0.6, 0.85):
                done(futures, share)
                until(lambda: kernel.worker_count == 4, "both are there")
                killed.add(falls.pid)
                falls.kill()
                falls.start()
            assert [future.result(WAIT_S) for future in futures] == list(range(COUNT))
            assert len({future.task_id for future in futures}) == COUNT
        lives = marks(tmp_path)
        assert {stays.pid, *killed} & lives.keys(), "both took part"
        for life, ran in lives.items():
            assert ran.most_common(1)[0][1] == 1, f"server process {life} ran a task twice"
        survived = sum((ran for life, ran in lives.items() if life not in killed), Counter[int]())
        assert survived.most_common(1)[0][1] == 1, "no two that live ran the same task"
        everything = sum(lives.values(), Counter[int]())
        assert set(everything) == set(range(COUNT))
        again = sum(count - 1 for count in everything.values())
        assert again <= 4 * _MAX_AHEAD, "only what a server that was killed had is done again"


def test_at_most_once_a_task_has_one_result_or_is_lost_and_never_runs_twice(tmp_path: Path) -> None:
    """One server killed twice, its line cut twice."""
    with Daemon() as daemon, Proxy(daemon.address) as proxy:  # noqa: SIM117 - the proxy outlives the kernel
        with daemon.connect(proxy.address, delivery="at-most-once") as kernel:
            futures = submit(kernel, tmp_path, range(COUNT))
            for number, share in enumerate((0.05, 0.3, 0.6, 0.85)):
                concurrent.futures.wait(futures[: int(share * COUNT)], WAIT_S)
                if number % 2:
                    daemon.kill()
                    daemon.start()
                else:
                    proxy.cut()
            assert not concurrent.futures.wait(futures, WAIT_S).not_done
    lost = {i for i, future in enumerate(futures) if isinstance(future.exception(), ConnectionLostError)}
    held = {i: future.result() for i, future in enumerate(futures) if i not in lost}
    assert held == {i: i for i in range(COUNT) if i not in lost}
    ran = sum(marks(tmp_path).values(), Counter[int]())
    assert ran.most_common(1)[0][1] == 1
    assert held.keys() <= ran.keys()
    assert len(lost) <= 4 * _MAX_AHEAD, "only what had been sent when a line broke is lost"


# --- a long task, and servers that are free ------------------------------------------------------------------------


def short_or_long(started: str, go: str, number: int) -> int:
    """Return the number, at once unless it is 0. A task whose length nobody can foresee."""
    if not number:
        import os

        fd = os.open(started, os.O_WRONLY)
        os.write(fd, b"0 0\n")
        os.close(fd)
        fd = os.open(go, os.O_RDONLY)
        os.read(fd, 1)
        os.close(fd)
    return number


@pytest.mark.parametrize("delivery", ["at-least-once", "at-most-once"])
def test_what_waits_behind_a_long_task_goes_to_another_server_that_is_free(gate: Gate, delivery: str) -> None:
    """It was sent ahead because tasks of that program are short, and is taken back."""
    with Daemon(workers=1, name="a") as first, Daemon(workers=1, name="b") as second:
        allow(first, second)
        with first.connect(first.address, second.address, delivery=delivery) as kernel:
            started, go, _ = gate.arguments(0)
            for _ in range(5):
                kernel.run(short_or_long, started, go, 1)
            numbers = [*range(1, 500), 0, *range(500, 2000)]
            futures = {number: kernel.submit(short_or_long, started, go, number) for number in numbers}
            gate.wait()
            short = [futures[number] for number in numbers if number]
            late = concurrent.futures.wait(short, WAIT_S).not_done
            was_done = futures[0].done()
            gate.open()  # before anything may fail: the kernel waits for it
            assert (late, was_done) == (set(), False)
            assert [future.result(WAIT_S) for future in futures.values()] == numbers


def test_a_task_that_is_taken_back_can_be_cancelled_meanwhile(gate: Gate) -> None:
    with Daemon(workers=1, name="a") as first, Daemon(workers=1, name="b") as second:
        allow(first, second)
        with first.connect(first.address, second.address) as kernel:
            started, go, _ = gate.arguments(0)
            for _ in range(5):
                kernel.run(short_or_long, started, go, 1)
            held = [kernel.submit(short_or_long, started, go, 0) for _ in range(2)]
            gate.wait(2)
            waiting = [kernel.submit(short_or_long, started, go, number) for number in range(1, 300)]
            gate.open()
            cancelled = [future for future in waiting if future.cancel()]
            for future in waiting:
                assert future in cancelled or future.result(WAIT_S)
            gate.open()
            assert [future.result(WAIT_S) for future in held] == [0, 0]
