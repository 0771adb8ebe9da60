"""A worker that tells more than its call may is ended; nobody else notices."""

from __future__ import annotations

import pytest

from secfarm.errors import ProtocolError
from secfarm.run.hearing import _BURST_REPORTS, Hearing
from secfarm.run.pipe import encode_report
from secfarm.run.pool import WorkerPool
from secfarm.task.outcome import Printed, Progressed, Stream
from tests.run.team import Hold, pooled, run, work


def test_no_more_text_than_a_call_may_print() -> None:
    heard: list[object] = []
    hearing = Hearing(heard.append, 1000)
    hearing.take(Printed(1, Stream.STDOUT, "x" * 1000), 0.0)
    with pytest.raises(ProtocolError):
        hearing.take(Printed(1, Stream.STDOUT, "x" * 129), 0.0)
    assert len(heard) == 1


def test_no_flood_of_reports_but_a_steady_flow() -> None:
    hearing = Hearing(lambda _: None, 1000)
    for tick in range(50_000):
        hearing.take(Progressed(1, tick, 1, ""), tick / 100)
    for _ in range(_BURST_REPORTS):
        hearing.take(Progressed(1, 1, 1, ""), 600.0)
    with pytest.raises(ProtocolError):
        hearing.take(Progressed(1, 1, 1, ""), 600.0)


def write_to_results(lie: bytes) -> None:
    import os
    import sys

    os.write(int(sys.argv[2]), lie)


@pooled()
async def test_a_lie_told_while_a_call_runs_ends_the_worker(pool: WorkerPool) -> None:
    """Of a call that nobody listens to, and of one that is not running."""
    crew = pool.crew()
    for listens, wrong in ((False, 0), (True, 7)):
        running = next(pool._numbers) + 1
        lie = encode_report(Printed(running + wrong, Stream.STDOUT, "x"))
        hearing = Hearing(lambda _: None, 100) if listens else None
        one, future = work(write_to_results, lie, live_output=listens, hearing=hearing)
        crew.submit(one)
        crew.pump()
        error = (await future).error
        assert error is not None
        assert error.code == "worker-lost"
        assert await run(crew, divmod, 7, 2) == (3, 1)


@pooled()
async def test_what_a_left_over_thread_prints_is_no_report_of_a_call_that_is_over(pool: WorkerPool, tmp_path) -> None:
    def leave(began: str, release: str) -> None:
        import sys
        import threading

        stream = sys.stdout

        def later() -> None:
            with open(release, "rb", buffering=0) as file:  # noqa: PTH123
                file.read(1)
            stream.write("too late\n")
            with open(began, "wb", buffering=0) as file:  # noqa: PTH123
                file.write(b"....")

        threading.Thread(target=later, daemon=True).start()

    hold = Hold(tmp_path)
    heard: list[object] = []
    one, future = work(leave, *hold.args, live_output=True, hearing=Hearing(heard.append, 100))
    crew = pool.crew()
    crew.submit(one)
    crew.pump()
    assert (await future).output == ""
    hold.let_go()
    await hold.begins()
    assert await run(crew, divmod, 7, 2) == (3, 1)
    assert heard == []
    hold.close()


@pooled()
async def test_a_child_that_a_task_forks_tells_nothing_in_its_name(pool: WorkerPool) -> None:
    def fork() -> None:
        import os

        print("parent")
        pid = os.fork()
        if not pid:
            print("child")
            os._exit(0)
        os.waitpid(pid, 0)

    heard: list[Printed] = []
    one, future = work(fork, live_output=True, hearing=Hearing(heard.append, 100))
    crew = pool.crew()
    crew.submit(one)
    crew.pump()
    assert (await future).output == "parent\n"
    assert [report.text for report in heard] == ["parent\n"]
