"""20,000 tasks, servers killed and lines cut meanwhile: each task is accounted for, its results and its executions.

A task leaves its number and what tells the life of the server that runs it. So it is known for each life of each
server what it ran, and how often.
"""

from __future__ import annotations

import concurrent.futures
from collections import Counter, defaultdict
from collections.abc import Iterable

import pytest

from secfarm import ConnectionLostError, Future, Kernel
from secfarm.auth.base import Auth
from secfarm.farm.schedule import _MAX_AHEAD
from tests.farm.farms import WAIT_S, Daemon, allow, until
from tests.farm.proxy import Proxy
from tests.meeting import Gate, Notes, note, pass_gate

COUNT = 20_000


def life() -> int:
    """What all workers of one zygote, and so of one life of a server, have in common. A task."""
    return hash("life")


def mark(port: int, number: int) -> int:
    """Leave the number and this server's life with the test. A task."""
    note(port, f"{life()} {number}")
    return number


def marks(ran: Notes) -> dict[int, Counter[int]]:
    """Life of a server -> how often it ran each task."""
    lives: dict[int, Counter[int]] = defaultdict(Counter)
    for line in ran.lines():
        which, number = map(int, line.split())
        lives[which][number] += 1
    return lives


def submit(kernel: Kernel, ran: Notes, numbers: Iterable[int]) -> list[Future[int]]:
    return [kernel.submit(mark, ran.port, number) for number in numbers]


def life_of(daemon: Daemon, auth: Auth) -> int:
    with Kernel([daemon.address], auth=auth, connect_timeout_s=WAIT_S) as kernel:
        return kernel.run(life)


def done(futures: list[Future[int]], share: float) -> None:
    """Wait until some share of the tasks is done, roughly."""
    futures[int(share * (len(futures) - 1))].result(WAIT_S)


def test_each_task_has_one_result_and_the_survivor_ran_each_once(one_daemon: Daemon, ran: Notes) -> None:
    """One server, the line cut four times: in the rush of the first batches, half way, in a handshake, near the end."""
    with Proxy(one_daemon.address) as proxy, one_daemon.connect(proxy.address) as kernel:
        futures = submit(kernel, ran, range(COUNT // 2))
        proxy.cut()
        futures += submit(kernel, ran, range(COUNT // 2, COUNT))
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
    ((_, counted),) = marks(ran).items()
    assert counted == Counter(range(COUNT))


def test_servers_killed_under_load_lose_nothing_and_no_life_of_one_runs_a_task_twice(ran: Notes) -> None:
    """Two servers: one survives, the other is killed and started again four times, with tasks before and in workers."""
    with Daemon(name="stays") as stays, Daemon(name="falls") as falls:
        allow(stays, falls)
        with stays.connect(stays.address, falls.address) as kernel:
            futures = submit(kernel, ran, range(COUNT))
            killed: set[int] = set()
            for share in (0.05, 0.3, 0.6, 0.85):
                done(futures, share)
                until(lambda: kernel.worker_count == 4, "both are there")
                killed.add(life_of(falls, stays.auth))
                falls.kill()
                falls.start()
            assert [future.result(WAIT_S) for future in futures] == list(range(COUNT))
            assert len({future.task_id for future in futures}) == COUNT
        lives = marks(ran)
        assert {life_of(stays, stays.auth), *killed} & lives.keys(), "both took part"
        for which, counted in lives.items():
            assert counted.most_common(1)[0][1] == 1, f"life {which} of a server ran a task twice"
        survived = sum((counted for which, counted in lives.items() if which not in killed), Counter[int]())
        assert survived.most_common(1)[0][1] == 1, "no two that live ran the same task"
        everything = sum(lives.values(), Counter[int]())
        assert set(everything) == set(range(COUNT))
        again = sum(count - 1 for count in everything.values())
        assert again <= 4 * _MAX_AHEAD, "only what a server that was killed had is done again"


def test_at_most_once_a_task_has_one_result_or_is_lost_and_never_runs_twice(ran: Notes) -> None:
    """One server killed twice, its line cut twice."""
    with Daemon() as daemon, Proxy(daemon.address) as proxy:  # noqa: SIM117 - the proxy outlives the kernel
        with daemon.connect(proxy.address, delivery="at-most-once") as kernel:
            futures = submit(kernel, ran, range(COUNT))
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
    counted = sum(marks(ran).values(), Counter[int]())
    assert counted.most_common(1)[0][1] == 1
    assert held.keys() <= counted.keys()
    assert len(lost) <= 4 * _MAX_AHEAD, "only what had been sent when a line broke is lost"


# --- a long task, and servers that are free ------------------------------------------------------------------------


def short_or_long(host: str, port: int, number: int) -> int:
    """Return the number, at once unless it is 0. A task whose length nobody can foresee."""
    return number or pass_gate(host, port, number)


@pytest.mark.parametrize("delivery", ["at-least-once", "at-most-once"])
def test_what_waits_behind_a_long_task_goes_to_another_server_that_is_free(gate: Gate, delivery: str) -> None:
    """It was sent ahead because tasks of that program are short, and is taken back."""
    with Daemon(workers=1, name="a") as first, Daemon(workers=1, name="b") as second:
        allow(first, second)
        with first.connect(first.address, second.address, delivery=delivery) as kernel:
            host, port, _ = gate.arguments(0)
            for _ in range(5):
                kernel.run(short_or_long, host, port, 1)
            numbers = [*range(1, 500), 0, *range(500, 2000)]
            futures = {number: kernel.submit(short_or_long, host, port, number) for number in numbers}
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
            host, port, _ = gate.arguments(0)
            for _ in range(5):
                kernel.run(short_or_long, host, port, 1)
            held = [kernel.submit(short_or_long, host, port, 0) for _ in range(2)]
            gate.wait(2)
            waiting = [kernel.submit(short_or_long, host, port, number) for number in range(1, 300)]
            gate.open()
            cancelled = [future for future in waiting if future.cancel()]
            for future in waiting:
                assert future in cancelled or future.result(WAIT_S)
            gate.open()
            assert [future.result(WAIT_S) for future in held] == [0, 0]
