"""A crew: what one session has of the pool. Its workers, its waiting calls, its broadcasts.

Every new worker of a crew runs the broadcasts first. Idea of the categories, and of killing a worker to kill its task:
lparallel's kernel.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from secfarm.limits import RESERVED_BYTES
from secfarm.run.pipe import PACKET_BYTES
from secfarm.task.outcome import Done, ErrorRecord
from secfarm.task.payload import Priority

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from secfarm.run.cradle import Exit, Terms
    from secfarm.run.hearing import Hearing
    from secfarm.run.pool import WorkerPool
    from secfarm.run.process import WorkerProcess
    from secfarm.task.payload import ProgramText

_RUN_BYTES: Final = 128  # of an encoded call besides its arguments, values and program, at most


@dataclass(slots=True, eq=False)
class Work:
    """One call on its way through the pool; `report` is called once with what became of it."""

    key: bytes
    text: ProgramText
    arguments: bytes
    values: bytes | None
    report: Callable[[Done], None]
    category: str = "default"
    priority: Priority = Priority.DEFAULT
    timeout_s: float | None = None
    memory_bytes: int | None = None
    cpu_s: float | None = None
    output_bytes: int = 1 << 20
    broadcast: bool = False
    spread: bool = False
    dry_run: bool = False
    live_output: bool = False
    live_progress: bool = False
    output_limit: int | None = None
    hearing: Hearing | None = None  # of what it tells while it runs, when it is to
    number: int = 0
    began_s: float = 0.0
    carried_text: bool = False


@dataclass(slots=True, eq=False)
class Broadcast:
    """A call that every worker of the crew runs; `values` are the reports of those that have."""

    work: Work
    wanted: int
    values: list[Done] = field(default_factory=list)
    finished: bool = False


@dataclass(slots=True, eq=False)
class Worker:
    """A worker process with its crew and the calls in its pipe, the running one first."""

    process: WorkerProcess
    terms: Terms
    crew: Crew | None = None
    queue: deque[Work] = field(default_factory=deque)
    programs: set[bytes] = field(default_factory=set)
    ran: list[Broadcast] = field(default_factory=list)
    load_s: float = 0.0
    ready: bool = False
    hired_s: float = 0.0
    idle_s: float = 0.0  # since when, while its queue is empty
    large: bool = False  # a frame of several packets is in its pipe: none of it can be taken back
    alone: bool = False  # what is in its pipe may have nothing behind it: that, or the text of a program
    stalled: bool = False  # its head takes longer than calls of that program did
    verdict: tuple[Work, ErrorRecord] | None = None
    unwanted: bool = False  # it was told to end
    refusal: ErrorRecord | None = None  # of the worker itself, instead of being ready
    cpu_began_s: float = 0.0  # what it had used when its head began
    cpu_check: asyncio.TimerHandle | None = None
    deadline: asyncio.TimerHandle | None = None
    stall_check: asyncio.TimerHandle | None = None
    unread_check: asyncio.TimerHandle | None = None

    def may_have_next(self, work: Work) -> bool:
        """Whether the call may stand behind others in its pipe: one packet, of a program that it has."""
        size_bytes = _RUN_BYTES + len(work.arguments) + len(work.values or b"")
        return work.key in self.programs and size_bytes <= PACKET_BYTES

    def last_word(self, work: Work, how: Exit) -> Done:
        """What is told of a call that this worker had when it ended."""
        if self.verdict is not None and self.verdict[0] is work:
            error = self.verdict[1]
        elif self.refusal is not None:
            error = self.refusal
        elif work.cpu_s is not None and how.cpu_s > self.cpu_began_s + work.cpu_s:
            error = over_cpu(work.cpu_s)
        elif how.out_of_memory:
            most_bytes = self.terms.bounds.memory_bytes - RESERVED_BYTES
            report = f"the kernel ended the task for want of memory; with what it starts it may have {most_bytes} bytes"
            error = ErrorRecord("resource", report, kind="memory", limit=most_bytes)
        else:
            report = f"the worker process died under the task: {how}; it was not run again"
            error = ErrorRecord("worker-lost", report, signal=how.signal)
        return Done(work.number, None, error, 0.0, 0.0)


def over_cpu(most_s: float) -> ErrorRecord:
    """What is told of a task that used more processor time."""
    report = f"the task used more than its {most_s:g} s of processor time"
    return ErrorRecord("resource", report, kind="cpu", limit=most_s)


class Crew:
    """One session's share of the pool. Made by `WorkerPool.crew`."""

    def __init__(self, pool: WorkerPool, terms: Terms, *, single_use: bool) -> None:
        self._pool = pool
        self.terms = terms
        self.waiting: tuple[deque[Work], deque[Work]] = (deque(), deque())  # by priority
        self.workers: list[Worker] = []
        self.broadcasts: list[Broadcast] = []
        self.seconds: dict[bytes, float] = {}  # moving average of each program's duration
        self.single_use = single_use  # a fresh worker for every call
        self.held = False  # nothing new begins: its client does not read what came of the rest
        self.closing = False
        self.closed = False

    def submit(self, work: Work) -> None:
        """Queue a call; it starts when a worker is free."""
        self.waiting[work.priority].append(work)

    def broadcast(self, work: Work, report: Callable[[list[Done]], None]) -> None:
        """Run a call once on as many workers as the pool has, now, and on every later worker of this crew first.

        Args:
            report: called with one `Done` for each worker, or with the first that failed alone.
        """
        record = Broadcast(work, self._pool.size)

        def collect(done: Done) -> None:
            if done.error is not None:
                # What fails, or kills its worker, is not run again in the next one.
                self.broadcasts = [other for other in self.broadcasts if other is not record]
            if record.finished:
                return
            record.values.append(done)
            if done.error is not None:
                record.finished = True
                report([done])
            elif len(record.values) == record.wanted:
                record.finished = True
                report(record.values)

        work.report = collect
        self.broadcasts.append(record)

    def pump(self) -> None:
        """Start what can be started; call it once after a batch of `submit`."""
        self._pool.pump(self)

    def cancel(self, work: Work, error: ErrorRecord) -> bool:
        """Kill `work` if it is running, and return True; its report follows. Else take it back and return False."""
        for worker in self.workers:
            if work in worker.queue:
                self._pool.take_back(worker)
                if work in worker.queue and self._pool.kill(worker, error, work):
                    return True
        self._drop_waiting(work)
        return False

    def withdraw(self, works: set[Work]) -> set[Work]:
        """Take back these calls, and return those that had not begun."""
        for worker in self.workers:
            if not works.isdisjoint(worker.queue):
                self._pool.take_back(worker)
        for queue in self.waiting:
            kept = [work for work in queue if work not in works]
            queue.clear()
            queue.extend(kept)
        self._pool.pump(self)
        return works.difference(*(worker.queue for worker in self.workers))

    def _drop_waiting(self, work: Work) -> None:
        """Forget `work` if it waits; those that were taken back with it start again."""
        if work in self.waiting[work.priority]:
            self.waiting[work.priority].remove(work)
        self._pool.pump(self)

    def runs(self, work: Work) -> bool:
        """Whether a worker has begun `work`."""
        return any(work in worker.queue for worker in self.workers)

    def stop_waiting(self) -> None:
        """Drop the calls that have not begun, without a report."""
        for worker in self.workers:
            self._pool.take_back(worker)
        for queue in self.waiting:
            queue.clear()

    def close_when_idle(self) -> None:
        """Close the crew as soon as nothing of it runs."""
        self.closing = True
        if not any(worker.queue for worker in self.workers):
            self.close()

    def kill(self, category: str, error: ErrorRecord, *, dry_run: bool) -> int:
        """Kill the running calls of a category and return how many there were; waiting ones stay.

        One that was killed already, and whose worker is not gone yet, is not counted again.
        """
        running = [worker for worker in self.workers if worker.queue and worker.verdict is None]
        hit = [worker for worker in running if worker.queue[0].category == category]
        return len(hit) if dry_run else sum([self._kill_head(worker, error) for worker in hit])

    def _kill_head(self, worker: Worker, error: ErrorRecord) -> bool:
        """Kill what a worker runs, or is about to: `categories` tells of both."""
        work = worker.queue[0]
        if self._pool.kill(worker, error):
            return True
        if work not in self.waiting[work.priority]:
            return False  # it was over
        self.waiting[work.priority].remove(work)
        work.report(Done(work.number, None, error, 0.0, 0.0))
        return True

    def change(self, terms: Terms, error: ErrorRecord, *, single_use: bool) -> bool:
        """Go on with workers of these terms, and return whether they are others; what runs is killed with `error`."""
        self.single_use = single_use
        before, self.terms = self.terms, terms
        if terms != before:
            for worker in list(self.workers):
                self._pool.part(worker, error)
            self.pump()
        return terms != before

    def categories(self) -> list[str | None]:
        """The category that each worker of the pool's size is running for this crew; None for an idle one."""
        running: list[str | None] = [worker.queue[0].category if worker.queue else None for worker in self.workers]
        return running + [None] * (self._pool.size - len(running))

    def close(self) -> None:
        """End the crew: its workers are killed, its waiting calls dropped without a report."""
        self.closed = True
        for queue in self.waiting:
            queue.clear()
        self.broadcasts.clear()
        self._pool.dismiss(self)

    @property
    def wants_workers(self) -> bool:
        """Whether calls that may begin, or unfinished broadcasts, wait."""
        return self.next_waiting() is not None or any(not record.finished for record in self.broadcasts)

    def next_waiting(self) -> Work | None:
        """The call that is to start next."""
        queue = self.waiting[0] or self.waiting[1]
        return queue[0] if queue and not self.held else None
