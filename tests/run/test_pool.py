"""The pool: what happens to calls when workers are busy, slow, killed, crashed or shared."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import sys
from pathlib import Path

import pytest

from secfarm.errors import KernelError
from secfarm.run.cradle import Terms
from secfarm.run.pool import WorkerPool
from secfarm.run.profile import Bounds, Openings
from secfarm.task import codec
from secfarm.task.outcome import Done, ErrorRecord
from secfarm.task.payload import Priority
from tests.run.plain import PlainChild, PlainCradle
from tests.run.team import DEADLINE_S, Hold, broadcast, hold, pooled, run, submit, work

KILLED = ErrorRecord("killed", "on request")


def value_of(done: Done) -> object:
    assert done.error is None, done.error
    return codec.decode(done.value or b"")


def code_of(done: Done) -> str:
    assert done.error is not None, done.value
    return done.error.code


# --- a worker ends ------------------------------------------------------------------------------------------------


@pooled()
async def test_a_crashed_worker_is_replaced_and_its_call_reported_lost(pool: WorkerPool) -> None:
    crew = pool.crew()
    before = await run(crew, os.getpid)
    done = await submit(crew, lambda: __import__("os")._exit(3))
    assert code_of(done) == "worker-lost"
    assert "status 3" in done.error.report
    assert done.error.signal is None
    after = await run(crew, os.getpid)
    assert after != before
    assert len(pool.pids()) == pool.size + 1


@pooled()
async def test_a_worker_ended_by_a_signal_reports_the_signal(pool: WorkerPool) -> None:
    crew = pool.crew()
    done = await submit(crew, lambda: os.kill(os.getpid(), signal.SIGSEGV))
    assert (code_of(done), done.error.signal) == ("worker-lost", signal.SIGSEGV)
    assert await run(crew, abs, -1) == 1


@pooled()
async def test_after_a_kill_it_is_known_exactly_which_calls_began(pool: WorkerPool, held: Hold) -> None:
    """The running one is lost; those behind it in the same pipe run, once, in the replacement."""
    crew = pool.crew()
    marks: list[str] = []
    note = str(Path(held.began).parent / "note")
    append = lambda path, number: open(path, "a").write(f"{number}\n")  # noqa: PTH123, SIM115
    assert await run(crew, append, note, 0)  # the pool now knows that it is short
    running = submit(crew, hold, *held.args)
    await held.begins()
    behind = [work(append, note, number) for number in range(1, 20)]
    for one, _ in behind:
        crew.submit(one)
    # Behind a call of unknown length nothing is queued: put them there as for a short one.
    worker = crew.workers[0]
    for one, _ in behind:
        crew.waiting[one.priority].popleft()
        pool._start(worker, one)
    os.kill(worker.process.pid, signal.SIGKILL)
    assert (code_of(await running), (await running).error.signal) == ("worker-lost", signal.SIGKILL)
    for _, future in behind:
        assert value_of(await future)
    marks = (await asyncio.to_thread(Path(note).read_text)).split()
    assert marks == [str(number) for number in range(20)]


@pooled(2)
async def test_no_call_is_lost_or_run_twice_while_workers_are_killed(pool: WorkerPool, tmp_path: Path) -> None:
    """Of many short calls, each either left one mark, or is reported lost and left at most one."""
    crew = pool.crew()
    append = lambda path, number: open(path, "a").write(f"{number}\n") and number  # noqa: PTH123, SIM115
    path = str(tmp_path / "marks")
    calls = [work(append, path, number) for number in range(1500)]
    for one, _ in calls:
        crew.submit(one)
    crew.pump()
    for batch in range(0, 1500, 300):
        await calls[batch][1]
        os.kill(crew.workers[0].process.pid, signal.SIGKILL)
    dones = [await future for _, future in calls]
    marks = (await asyncio.to_thread(Path(path).read_text)).split()
    assert len(marks) == len(set(marks))
    lost = {str(number) for number, done in enumerate(dones) if done.error is not None}
    assert {code_of(done) for done in dones if done.error is not None} <= {"worker-lost"}
    assert len(lost) <= 5
    assert {str(number) for number in range(1500)} - lost <= set(marks)


@pooled()
async def test_a_killed_call_ends_with_the_killers_words(pool: WorkerPool, held: Hold) -> None:
    crew = pool.crew()
    one, future = work(hold, *held.args, category="etl")
    crew.submit(one)
    crew.pump()
    await held.begins()
    assert crew.categories() == ["etl"]
    assert crew.kill("other", KILLED, dry_run=False) == 0
    assert crew.kill("etl", KILLED, dry_run=True) == 1
    assert not future.done()
    assert crew.kill("etl", KILLED, dry_run=False) == 1
    assert crew.kill("etl", KILLED, dry_run=True) == 0, "it is doomed, although its process is not gone yet"
    assert crew.kill("etl", KILLED, dry_run=False) == 0
    assert (await future).error == KILLED
    assert await run(crew, abs, -1) == 1
    assert crew.categories() == [None]


@pytest.fixture(params=["stops", "does not stop"])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a worker stands still in time when it is told to: on a busy machine it may not get its turn to do so."""
    if request.param != "stops":
        monkeypatch.setattr(PlainChild, "stop", lambda _: False)


@pooled()
async def test_a_call_is_killed_whether_or_not_its_worker_has_read_it(pool: WorkerPool, machine: None) -> None:
    """It is listed as running, and so it is counted, and does not begin after all. Of some, none is read by then."""
    crew = pool.crew()
    for _ in range(10):
        assert await run(crew, abs, -1) == 1
        endless = lambda: __import__("threading").Event().wait()
        futures = [submit(crew, endless, category="etl"), submit(crew, abs, -2)]
        assert crew.categories() == ["etl"]
        assert crew.kill("etl", KILLED, dry_run=False) == 1
        assert (await futures[0]).error == KILLED
        assert value_of(await futures[1]) == 2


@pooled()
async def test_a_crew_that_is_held_begins_nothing(pool: WorkerPool) -> None:
    """What waits stays, is taken back when asked for, and begins when the crew is let go."""
    crew, other = pool.crew(), pool.crew()
    crew.held = True
    first, second = work(abs, -1), work(abs, -2)
    crew.submit(first[0])
    crew.submit(second[0])
    crew.pump()
    assert await run(other, abs, -3) == 3
    assert (crew.workers, crew.wants_workers) == ([], False)
    assert crew.withdraw({first[0]}) == {first[0]}
    crew.held = False
    crew.pump()
    assert value_of(await second[1]) == 2
    assert not first[1].done()


@pooled()
async def test_cancel_kills_what_runs_and_takes_back_what_waits(pool: WorkerPool, held: Hold) -> None:
    crew = pool.crew()
    running, future = work(hold, *held.args)
    waiting, never = work(abs, -1)
    for one in (running, waiting):
        crew.submit(one)
    crew.pump()
    await held.begins()
    assert crew.cancel(waiting, KILLED) is False
    assert crew.cancel(running, KILLED) is True
    assert (await future).error == KILLED
    assert await run(crew, abs, -2) == 2
    assert not never.done()


@pooled()
async def test_cancel_of_a_call_that_began_unnoticed_kills_it(pool: WorkerPool, held: Hold, machine: None) -> None:
    """The report of the call before it is still on its way: the one to cancel is not taken for unstarted."""
    crew = pool.crew()
    await run(crew, abs, -1)
    first, first_done = work(abs, -7)
    second, second_done = work(hold, *held.args)
    worker = crew.workers[0]
    for one in (first, second):
        pool._start(worker, one)
    held.begins_now()  # blocks the loop, so that the first one's report stays unread
    assert crew.cancel(second, KILLED) is True
    assert value_of(await first_done) == 7
    assert (await second_done).error == KILLED


@pooled()
async def test_a_kill_that_comes_too_late_hits_no_other_call(pool: WorkerPool, held: Hold, machine: None) -> None:
    """The report of the one to kill is still on its way, and the next one has begun: that one goes on."""
    crew = pool.crew()
    await run(crew, abs, -1)
    first, first_done = work(abs, -7, category="etl")
    second, second_done = work(hold, *held.args)
    worker = crew.workers[0]
    for one in (first, second):
        pool._start(worker, one)
    held.begins_now()  # blocks the loop, so that the first one's report stays unread
    assert crew.categories() == ["etl"]
    assert crew.kill("etl", KILLED, dry_run=False) == 0
    held.let_go()
    assert value_of(await first_done) == 7
    assert value_of(await second_done)


@pooled()
async def test_other_terms_get_another_worker_though_the_call_that_it_runs_is_just_over(
    pool: WorkerPool, held: Hold, machine: None
) -> None:
    """Its report is still on its way, and the call behind it is not read, or has begun."""
    crew = pool.crew()
    before = await run(crew, os.getpid)
    first, first_done = work(abs, -7)
    second, second_done = work(hold, *held.args)
    (worker,) = crew.workers
    for one in (first, second):
        pool._start(worker, one)
    assert select.select([worker.process._results_read], [], [], DEADLINE_S)[0], "no report"  # blocks the loop
    assert crew.change(Terms(Openings(), Bounds(files=50)), KILLED, single_use=False)
    assert worker not in crew.workers or worker.verdict
    assert value_of(await first_done) == 7
    held.let_go()
    done = await second_done
    assert done.error == KILLED or value_of(done) != before
    assert await run(crew, os.getpid) != before


# --- deadlines and limits -----------------------------------------------------------------------------------------


@pooled()
async def test_a_call_over_its_deadline_is_killed_and_the_next_one_runs(pool: WorkerPool, held: Hold) -> None:
    crew = pool.crew()
    late = submit(crew, hold, *held.args, timeout_s=0.05)
    done = await late
    assert code_of(done) == "timeout"
    assert "0.05 s" in done.error.report
    assert await run(crew, abs, -1, timeout_s=5.0) == 1


@pooled()
async def test_the_clock_of_a_call_starts_when_it_begins_and_not_when_it_queues(pool: WorkerPool, held: Hold) -> None:
    crew = pool.crew()
    first = submit(crew, hold, *held.args)
    await held.begins()
    second = submit(crew, abs, -1, timeout_s=1.0)
    await asyncio.sleep(1.1)  # the law is about time passing
    held.let_go()
    assert value_of(await first)
    assert value_of(await second) == 1


@pooled()
async def test_a_child_that_holds_the_pipes_does_not_keep_a_dead_worker_alive(pool: WorkerPool, held: Hold) -> None:
    """The end of a worker is the end of its process, whoever inherited its descriptors."""

    def fork_and_hold(began: str, release: str) -> int:
        if os.fork() == 0:
            os.setsid()
        return hold(began, release)

    crew = pool.crew()
    future = submit(crew, fork_and_hold, *held.args)
    pids = {await held.begins(), await held.begins()}
    try:
        assert crew.kill("default", KILLED, dry_run=False) == 1
        assert (await future).error == KILLED
        assert await run(crew, abs, -1) == 1
    finally:
        held.let_go(2)
        for pid in pids - set(pool.pids()):
            if Path(f"/proc/{pid}").exists():  # noqa: ASYNC240
                os.kill(pid, signal.SIGKILL)


@pooled()
async def test_too_much_memory_is_a_typed_error_and_the_limit_ends_with_the_call(pool: WorkerPool) -> None:
    crew = pool.crew()
    done = await submit(crew, bytes, 300_000_000, memory_bytes=50_000_000)
    assert (code_of(done), done.error.kind, done.error.limit) == ("resource", "memory", 50_000_000)
    assert await run(crew, lambda: len(bytes(300_000_000))) == 300_000_000


@pooled()
async def test_too_much_processor_time_is_a_typed_error(pool: WorkerPool) -> None:
    def spin() -> None:
        while True:
            pass

    crew = pool.crew()
    done = await submit(crew, spin, cpu_s=0.1)
    assert (code_of(done), done.error.kind, done.error.limit) == ("resource", "cpu", 0.1)
    assert await run(crew, abs, -1) == 1


# --- who runs what ------------------------------------------------------------------------------------------------


@pooled(2)
async def test_a_long_call_holds_up_no_others_that_a_free_worker_could_run(pool: WorkerPool, held: Hold) -> None:
    crew = pool.crew()
    long = submit(crew, hold, *held.args)
    await held.begins()
    for number in range(200):
        assert await run(crew, abs, -number) == number
    assert not long.done()
    held.let_go()
    assert value_of(await long)


@pooled(2)
async def test_calls_behind_one_that_turns_out_long_are_taken_back(pool: WorkerPool, held: Hold) -> None:
    """The same program was short so far, so calls were queued behind it; a free worker gets them."""

    def maybe_hold(began: str, release: str, wait: bool) -> int:  # noqa: FBT001
        return hold(began, release) if wait else os.getpid()

    crew = pool.crew()
    for _ in range(20):
        await run(crew, maybe_hold, *held.args, False)
    calls = [work(maybe_hold, *held.args, number == 0) for number in range(200)]
    for one, _ in calls:
        crew.submit(one)
    crew.pump()
    pid = await held.begins()
    others = {value_of(await future) for _, future in calls[1:]}
    assert pid not in others
    assert not calls[0][1].done()
    held.let_go()
    assert value_of(await calls[0][1]) == pid


@pooled()
async def test_large_calls_and_small_ones_keep_their_contents_apart(pool: WorkerPool) -> None:
    """Frames of many packets stand alone in the pipe: nothing is queued in front of them or behind them."""
    crew = pool.crew()
    await run(crew, len, b"")
    sizes = [1, 5_000, 3, 70_000, 2, 3_000_000, 4, 4_000, 4_096, 9, 100_000] * 3
    calls = [work(len, bytes(size)) for size in sizes]
    for one, _ in calls:
        crew.submit(one)
    crew.pump()
    assert [value_of(await future) for _, future in calls] == sizes


@pooled()
async def test_a_large_call_behind_a_killed_one_is_not_lost(pool: WorkerPool, held: Hold) -> None:
    def maybe_hold(began: str, release: str, data: bytes) -> int:
        return len(data) or hold(began, release)

    crew = pool.crew()
    for _ in range(20):
        await run(crew, maybe_hold, *held.args, b"x")
    calls = [work(maybe_hold, *held.args, bytes(size)) for size in (0, 10_000, 300_000, 1)]
    for one, _ in calls:
        crew.submit(one)
    crew.pump()
    await held.begins()
    assert crew.kill("default", KILLED, dry_run=False) == 1
    assert (await calls[0][1]).error == KILLED
    assert [value_of(await future) for _, future in calls[1:]] == [10_000, 300_000, 1]


@pooled()
async def test_low_priority_runs_when_nothing_else_waits(pool: WorkerPool, held: Hold) -> None:
    crew = pool.crew()
    order: list[str] = []
    first = submit(crew, hold, *held.args)
    await held.begins()
    low = submit(crew, abs, -1, priority=Priority.LOW)
    low.add_done_callback(lambda _: order.append("low"))
    default = submit(crew, abs, -1)
    default.add_done_callback(lambda _: order.append("default"))
    held.let_go()
    await asyncio.gather(first, low, default)
    assert order == ["default", "low"]


@pooled(2)
async def test_two_crews_share_the_pool(pool: WorkerPool, held: Hold) -> None:
    """A crew with endless work leaves a place to the one that comes later."""
    greedy, late = pool.crew(), pool.crew()
    stop = False

    def again(_: object = None) -> None:
        if not stop:
            submit(greedy, abs, -1).add_done_callback(again)

    for _ in range(50):
        again()
    assert await run(greedy, abs, -1) == 1
    future = submit(late, hold, *held.args)
    await held.begins()
    assert len(greedy.workers) == 1
    assert len(late.workers) == 1
    assert await run(greedy, abs, -2) == 2
    held.let_go()
    assert value_of(await future)
    stop = True


@pooled(2)
async def test_an_idle_crew_holds_no_worker_back_from_a_broadcast(pool: WorkerPool) -> None:
    idle, other = pool.crew(), pool.crew()
    await asyncio.gather(*(asyncio.ensure_future(run(idle, abs, -1)) for _ in range(2)))
    dones = await broadcast(other, os.getpid)
    assert len({value_of(done) for done in dones}) == 2
    assert await run(idle, abs, -3) == 3


@pooled(2)
async def test_a_closed_crew_gives_its_workers_up(pool: WorkerPool, held: Hold) -> None:
    gone, stays = pool.crew(), pool.crew()
    running = [submit(gone, hold, *held.args) for _ in range(2)]
    pids = {await held.begins(), await held.begins()}
    future = submit(stays, os.getpid)
    gone.close()
    assert value_of(await future) not in pids
    assert {code_of(await one) for one in running} == {"worker-lost"}


@pooled()
async def test_single_use_gives_every_call_a_worker_of_its_own(pool: WorkerPool) -> None:
    crew = pool.crew(single_use=True)
    pids = [await run(crew, os.getpid) for _ in range(3)]
    assert len(set(pids)) == 3


# --- broadcasts ---------------------------------------------------------------------------------------------------


def define() -> int:
    global STATE  # noqa: PLW0603 - what a broadcast is for
    STATE = "defined by the broadcast"
    return os.getpid()


def look() -> str:
    return STATE


@pooled(2)
async def test_a_broadcast_runs_once_on_every_worker(pool: WorkerPool) -> None:
    crew = pool.crew()
    dones = await broadcast(crew, define)
    assert len({value_of(done) for done in dones}) == 2
    assert await run(crew, look) == "defined by the broadcast"


@pooled()
async def test_a_replacement_runs_the_broadcasts_before_anything_else(pool: WorkerPool) -> None:
    crew = pool.crew()
    await broadcast(crew, define)
    await submit(crew, lambda: __import__("os")._exit(1))
    assert await run(crew, look) == "defined by the broadcast"


@pooled()
async def test_single_use_workers_run_the_broadcasts_too(pool: WorkerPool) -> None:
    crew = pool.crew(single_use=True)
    await broadcast(crew, define)
    assert [await run(crew, look) for _ in range(2)] == ["defined by the broadcast"] * 2


@pooled(2)
async def test_another_crew_never_sees_what_a_broadcast_defined(pool: WorkerPool) -> None:
    crew, other = pool.crew(), pool.crew()
    await broadcast(crew, define)
    done = await submit(other, look)
    assert done.error.remote_type == "NameError"


@pooled()
async def test_a_broadcast_that_fails_is_told_once_and_not_run_again(pool: WorkerPool) -> None:
    crew = pool.crew()
    [done] = await broadcast(crew, lambda: 1 / 0)
    assert done.error.remote_type == "ZeroDivisionError"
    [done] = await broadcast(crew, lambda: __import__("os")._exit(1))
    assert code_of(done) == "worker-lost"
    assert await run(crew, abs, -1) == 1


@pooled()
async def test_a_crew_may_end_while_its_broadcast_runs(pool: WorkerPool, held: Hold) -> None:
    crew = pool.crew()
    broadcast(crew, hold, *held.args)
    pid = await held.begins()
    crew.close()
    assert await run(pool.crew(), os.getpid) != pid


# --- what a worker may claim --------------------------------------------------------------------------------------


def write_to_results(frames: list[bytes]) -> int:
    """Find the pipe that results go through, as hostile code would, and write to it."""
    fd = int(sys.argv[2])
    for one in frames:
        os.write(fd, one)
    return 1


def forged(number: int, value: bytes = b"\x01", **fields: object) -> bytes:
    from secfarm.run.pipe import encode_report

    return encode_report(Done(number, value, None, 0.0, 0.0, **fields))


@pytest.mark.parametrize(
    "frames",
    [
        [b"\x00\x00\x00\x03abc"],
        [b"\xff\xff\xff\xff"],
        [b"\x00\x00\x00\x00"],
        [b"\x00\x00\x00\x01\xc1"],
        [forged(0)],
        [forged(10**9)],
        [forged(10**9), forged(1)],
        [forged(-1)],
        [b"GET / HTTP/1.1\r\n\r\n"],
    ],
    ids=[
        "garbage",
        "4 GiB",
        "empty",
        "no msgpack",
        "ready again",
        "unknown call",
        "then a known one",
        "negative",
        "http",
    ],
)
@pooled()
async def test_a_worker_that_lies_is_ended_and_its_call_reported_lost(pool: WorkerPool, frames: list[bytes]) -> None:
    crew = pool.crew()
    done = await submit(crew, write_to_results, frames)
    assert code_of(done) == "worker-lost"
    assert await run(crew, abs, -1) == 1
    assert len(pool.pids()) == pool.size + 1


@pooled()
async def test_a_worker_that_reports_calls_that_it_has_not_read_costs_only_its_own_crew(
    pool: WorkerPool, held: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More calls lie unread in its pipe than it still owes reports for."""
    monkeypatch.setattr("secfarm.run.pool._STALLED_S", 60.0)  # on a busy machine the two would go to another worker

    def forge_and_hold(frames: list[bytes], began: str, release: str) -> int:
        write_to_results(frames)
        return hold(began, release)

    crew, other = pool.crew(), pool.crew()
    await run(crew, abs, -1)
    number = next(pool._numbers) + 1
    calls = [
        work(forge_and_hold, [forged(number + add) for add in range(3)], *held.args),
        work(abs, -2),
        work(abs, -3),
    ]
    worker = crew.workers[0]
    for one, _ in calls:
        pool._start(worker, one)
    assert [value_of(await future) for _, future in calls] == [1, 1, 1]
    await held.begins()
    os.kill(worker.process.pid, signal.SIGKILL)
    assert await run(crew, abs, -4) == 4
    assert await run(other, abs, -5) == 5


def report_and_go_on() -> None:
    """Report this very call as done, and never return."""
    from secfarm.run.pipe import Run, encode_report

    frame = sys._getframe()
    while not isinstance(frame.f_locals.get("call"), Run):
        assert frame.f_back is not None
        frame = frame.f_back
    os.write(int(sys.argv[2]), encode_report(Done(frame.f_locals["call"].number, b"\xc0", None, 0.0, 0.0)))
    while True:
        os.getpid()


@pooled(size=1)
async def test_a_call_is_not_left_to_a_worker_that_only_claims_to_be_idle(pool: WorkerPool) -> None:
    crew = pool.crew()
    assert value_of(await submit(crew, report_and_go_on)) is None
    (liar,) = [worker.process.pid for worker in crew.workers]
    assert await run(crew, abs, -1) == 1
    assert liar not in [worker.process.pid for worker in crew.workers]


@pooled()
async def test_values_beside_an_error_are_for_calls_that_were_spread(pool: WorkerPool) -> None:
    from secfarm.run.pipe import encode_report

    crew = pool.crew()
    await run(crew, abs, -1)
    number = next(pool._numbers) + 1
    both = Done(number, b"\x01", ErrorRecord("raised", "x"), 0.0, 0.0)
    assert code_of(await submit(crew, write_to_results, [encode_report(both)])) == "worker-lost"


@pooled()
async def test_what_a_worker_claims_to_have_printed_or_raised_is_bounded(pool: WorkerPool) -> None:
    """Texts over the limits come from no worker of ours: they would not fit a message to the client."""
    from secfarm.run.pipe import encode_report

    crew = pool.crew()
    await run(crew, abs, -1)
    for number, claim in enumerate(
        [
            Done(0, b"\x01", None, 0.0, 0.0, "x" * 10_000_000),
            Done(0, None, ErrorRecord("raised", "x" * 10_000_000), 0.0, 0.0),
            Done(0, None, ErrorRecord("raised", "", "x" * 10_000_000), 0.0, 0.0),
            Done(0, None, ErrorRecord("x" * 10_000_000, ""), 0.0, 0.0),
            Done(0, None, ErrorRecord("raised", "", modules=("x" * 1000,) * 10_000), 0.0, 0.0),
        ]
    ):
        upcoming = next(pool._numbers) + 1
        lie = encode_report(Done(upcoming, claim.value, claim.error, 0.0, 0.0, claim.output))
        done = await submit(crew, write_to_results, [lie])
        assert code_of(done) == "worker-lost", number


def test_who_waits_for_the_first_worker_hears_that_the_pool_was_closed() -> None:
    """A server that is told to end while it starts ends."""

    async def main() -> None:
        pool = WorkerPool(asyncio.get_running_loop(), 1, PlainCradle(asyncio.get_running_loop()))
        ready = asyncio.ensure_future(pool.ready())
        await asyncio.sleep(0)
        pool.close()
        with pytest.raises(KernelError, match="told to end"):
            await asyncio.wait_for(ready, 10)

    asyncio.run(main())
