"""The pool: a bounded number of worker processes, shared out among sessions, one session each at a time.

Decides which worker runs which call of which crew (see crew.py), replaces those that end, and enforces deadlines.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from secfarm.errors import ProtocolError
from secfarm.limits import RESERVED_BYTES
from secfarm.run.cradle import DEFAULT
from secfarm.run.crew import Crew, Work, Worker, over_cpu
from secfarm.run.pipe import MAX_NOTE_CHARS, Run
from secfarm.run.process import WorkerProcess
from secfarm.run.reserve import Reserve
from secfarm.task.outcome import Done, ErrorRecord

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from secfarm.run.cradle import Cradle, Exit, Terms
    from secfarm.task.outcome import Report

# Calls are queued into a worker's pipe up to this much expected work: enough to hide the pool's own latency (some
# 0.1 ms), and little enough that a call that turns out long holds nobody up before it is noticed.
_PIPELINE_S: Final = 0.002
_PIPELINE_CALLS: Final = 128  # half of the packets that a pipe of 1 MiB takes
_STALLED_S: Final = 0.005
_UNREAD_S: Final = 1.0  # a worker that said it was idle reads at once what it is sent, but on an overloaded machine
_WEIGHT: Final = 0.2  # of the newest duration in a program's moving average
_PROCESSORS: Final = os.cpu_count() or 1
_TENURE_S: Final = 1.0  # a crew that still has work keeps a worker this long before another crew may have its place
_IDLE_S: Final = 1.0  # after which a worker of a crew without work goes to one that has some
_CPU_LOOK_S: Final = 0.05  # at least between two looks at a worker's processor time
READY: Final = 0  # the number in the report with which a worker says that it is warm


class WorkerPool:
    """At most `size` workers at work, and a warm spare of each kind, so that a replacement costs no start-up time."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, size: int, cradle: Cradle, expected: Iterable[Terms] = ()
    ) -> None:
        """Start `size + 1` processes, and one more of each other terms that are expected.

        Args:
            size: how many calls may run at once, over all crews.
            cradle: starts the processes; closed with the pool.
            expected: see `expect`.
        """
        self.size = size
        self.loop = loop
        self.crews: list[Crew] = []
        self.closed = False
        self.confinement = cradle.confinement
        self._cradle = cradle
        self._numbers = itertools.count(1)
        self._workers: dict[WorkerProcess, Worker] = {}
        self._retiring: asyncio.TimerHandle | None = None
        self._reserve = Reserve(self)
        self.expect(expected)

    def expect(self, terms: Iterable[Terms]) -> None:
        """Keep spares for crews of these terms, the first above all; by default for those of no particular terms."""
        wanted = list(terms) or [DEFAULT]
        self._cradle.expect(one.openings for one in wanted)
        self._reserve.expect(wanted)
        self._reserve.fill()

    def crew(self, terms: Terms = DEFAULT, *, single_use: bool = False) -> Crew:
        """Return a new crew for a session; close it when the session ends."""
        crew = Crew(self, terms, single_use=single_use)
        self.crews.append(crew)
        return crew

    async def ready(self) -> None:
        """Return once a worker is warm.

        Raises:
            KernelError: they do not start, or not confined.
        """
        await self._cradle.ready()
        await self._reserve.started

    @property
    def busy(self) -> int:
        """How many workers run a call."""
        return sum(1 for worker in self._workers.values() if worker.queue)

    @property
    def workers(self) -> list[Worker]:
        """All workers, spares included."""
        return list(self._workers.values())

    def pids(self) -> list[int]:
        """Process ids of all workers, spares included."""
        return [pid for process in self._workers if (pid := process.pid) is not None]

    def close(self) -> None:
        """Kill every worker; they are gone when this returns."""
        self.closed = True
        self._reserve.close()
        if self._retiring is not None:
            self._retiring.cancel()
        for process in list(self._workers):
            process.end()
        self._cradle.close()

    # --- sharing out ----------------------------------------------------------------------------------------------

    def pump(self, crew: Crew) -> None:
        """Give the crew's waiting calls to its workers, hiring where the pool allows."""
        for worker in crew.workers:
            if not worker.queue:
                self._run_broadcasts(worker)
        while (work := crew.next_waiting()) is not None:
            worker_or_none = self._free(crew) or self._pipelined(crew, work)
            if worker_or_none is None:
                return
            crew.waiting[work.priority].popleft()
            self._start(worker_or_none, work)
        while crew.wants_workers and self._hire(crew) is not None:
            pass

    def _free(self, crew: Crew) -> Worker | None:
        for worker in crew.workers:
            if not (worker.queue or worker.verdict):
                return worker
        hired = self._hire(crew)
        return hired if hired is not None and not hired.queue else None

    def _pipelined(self, crew: Crew, work: Work) -> Worker | None:
        """The worker that could run `work` soonest after what is in its pipe, if that is soon enough."""
        expected = crew.seconds.get(work.key)
        # Low priority is for free workers: what stands in a pipe would go before a default that comes meanwhile.
        if expected is None or work.priority or crew.single_use or self._owed_to(crew) is not None:
            return None
        best, best_s = None, _PIPELINE_S - expected
        for worker in crew.workers:
            free = not (worker.alone or worker.stalled or worker.verdict) and len(worker.queue) < _PIPELINE_CALLS
            if free and worker.load_s < best_s and worker.may_have_next(work):
                best, best_s = worker, worker.load_s
        return best

    def _hire(self, crew: Crew) -> Worker | None:
        if self.closed or crew.closed or len(crew.workers) >= self.size:
            return None
        employed = sum(len(other.workers) for other in self.crews)
        if employed >= self.size:
            self._retire_for(crew)
            return None
        if employed == self.size - 1 and self._owed_to(crew) is not None:
            return None  # the last place is somebody else's
        worker = self._reserve.take(crew.terms)
        if worker is None:
            return None
        worker.crew = crew
        worker.hired_s = worker.idle_s = self.loop.time()
        crew.workers.append(worker)
        self._reserve.fill_soon()
        self._run_broadcasts(worker)
        return worker

    def _retire_for(self, crew: Crew) -> None:
        """End an idle worker of a crew with more than its share, or no work; its place is filled when it is gone."""
        wait_s = _IDLE_S
        for other in self.crews:
            if other is crew:
                continue
            over_share = len(other.workers) > len(crew.workers) + 1 or not crew.workers
            for worker in other.workers:
                left_s = worker.idle_s + _IDLE_S - self.loop.time()
                if not worker.queue and (over_share or (left_s <= 0 and not other.wants_workers)):
                    other.workers.remove(worker)
                    self.end(worker)
                    return
                wait_s = min(wait_s, max(left_s, 0.0) if not worker.queue else _IDLE_S)
        if self._retiring is None and len(self.crews) > 1:
            self._retiring = self.loop.call_later(wait_s + 0.01, self._retire_again)

    def _retire_again(self) -> None:
        self._retiring = None
        self.pump_all()

    def pump_all(self) -> None:
        """Start what can be started, of every crew."""
        for crew in list(self.crews):
            if crew.wants_workers:
                self.pump(crew)

    def _owed_to(self, crew: Crew) -> Crew | None:
        """The crew that waits for a worker while `crew` has more than its share, if there is one."""
        is_before = True  # of crews without a worker the one that waits longest is first
        for other in self.crews:
            if other is crew:
                is_before = False
            elif (
                len(other.workers) + 1 < len(crew.workers) or (not other.workers and (crew.workers or is_before))
            ) and other.wants_workers:
                return other
        return None

    def _run_broadcasts(self, worker: Worker) -> None:
        crew = worker.crew
        if crew is None:
            return
        for record in crew.broadcasts:
            if record not in worker.ran:
                worker.ran.append(record)
                self._start(worker, replace(record.work))
                return

    def spawn(self, terms: Terms) -> Worker:
        """Start a worker that has no crew yet."""
        process = WorkerProcess(self.loop, self._cradle, terms, self._reported, self._exited)
        worker = self._workers[process] = Worker(process, terms)
        return worker

    # --- one worker -----------------------------------------------------------------------------------------------

    def _start(self, worker: Worker, work: Work) -> None:
        crew = worker.crew
        if crew is None:
            return
        work.number = next(self._numbers)
        work.carried_text = work.key not in worker.programs
        worker.programs.add(work.key)
        run = Run(
            work.number,
            work.key,
            work.arguments,
            work.values,
            work.text if work.carried_text else None,
            work.broadcast,
            work.spread,
            _memory_for(worker, work),
            work.output_bytes,
            work.dry_run,
            work.live_output,
            work.live_progress,
            work.output_limit,
        )
        worker.queue.append(work)
        worker.load_s += crew.seconds.get(work.key, _PIPELINE_S)
        # A call behind a program's text might be read, and the text taken back.
        worker.large = not worker.process.send(run)
        worker.alone = worker.large or work.carried_text
        if len(worker.queue) == 1:
            self._begins(worker)
        elif worker.stall_check is None:
            worker.stall_check = self.loop.call_later(_STALLED_S, self._check_stall, worker, worker.queue[0])

    def _begins(self, worker: Worker) -> None:
        """The head of the queue is what the worker runs from now on: its clocks start."""
        work = worker.queue[0]
        if worker.ready and worker.unread_check is None:
            worker.unread_check = self.loop.call_later(_UNREAD_S, self._check_unread, worker, work)
        if work.cpu_s is not None and worker.ready:  # it cannot be told: it is process 1, and hears nothing
            worker.cpu_began_s = worker.process.cpu_s()
            if worker.cpu_check is None:
                worker.cpu_check = self.loop.call_later(_next_look_s(work.cpu_s), self._check_cpu, worker)
        if work.timeout_s is None or not worker.ready:
            return
        work.began_s = self.loop.time()
        due_s = work.began_s + work.timeout_s
        if worker.deadline is None or worker.deadline.when() > due_s:
            if worker.deadline is not None:
                worker.deadline.cancel()
            worker.deadline = self.loop.call_at(due_s, self._check_deadline, worker)

    def _check_deadline(self, worker: Worker) -> None:
        worker.deadline = None
        if not worker.queue or worker.queue[0].timeout_s is None:
            return
        work = worker.queue[0]
        timeout_s = work.timeout_s or 0.0
        if self.loop.time() < work.began_s + timeout_s:
            worker.deadline = self.loop.call_at(work.began_s + timeout_s, self._check_deadline, worker)
            return
        self.kill(worker, ErrorRecord("timeout", f"the task ran longer than its {timeout_s:g} s and was killed"))

    def _check_cpu(self, worker: Worker) -> None:
        worker.cpu_check = None
        if not worker.queue or (most_s := worker.queue[0].cpu_s) is None:
            return
        left_s = most_s - (worker.process.cpu_s() - worker.cpu_began_s)
        if left_s > 0:
            worker.cpu_check = self.loop.call_later(_next_look_s(left_s), self._check_cpu, worker)
        else:
            self.kill(worker, over_cpu(most_s))

    def _check_stall(self, worker: Worker, head: Work) -> None:
        worker.stall_check = None
        if len(worker.queue) < 2:  # noqa: PLR2004 the running call and at least one behind it
            return
        if worker.queue[0] is head:
            self.take_back(worker)
            worker.stalled = True
            if worker.crew is not None:
                self.pump(worker.crew)
        else:
            worker.stall_check = self.loop.call_later(_STALLED_S, self._check_stall, worker, worker.queue[0])

    def _check_unread(self, worker: Worker, head: Work) -> None:
        """Replace a worker that does not read: what it told of the call before was a lie, or left something running."""
        worker.unread_check = None
        if not worker.queue or worker.crew is None:
            return
        if worker.queue[0] is not head:
            worker.unread_check = self.loop.call_later(_UNREAD_S, self._check_unread, worker, worker.queue[0])
            return
        self.take_back(worker)
        if not worker.queue:
            self._leave(worker.crew, worker)
        self.pump(worker.crew)

    def take_back(self, worker: Worker) -> None:
        """Put the calls that the worker has not begun back in front of its crew's queues."""
        crew = worker.crew
        if crew is None or worker.large:
            return
        taken = worker.process.take_back()
        back = [work for work in worker.queue if work.number in taken]
        worker.queue = deque(work for work in worker.queue if work.number not in taken)
        for work in reversed(back):
            if work.carried_text:
                worker.programs.discard(work.key)
            if work.broadcast:
                worker.ran.pop()  # broadcasts start one at a time, on an idle worker: this is the last one
            else:
                crew.waiting[work.priority].appendleft(work)
        worker.load_s = sum(crew.seconds.get(work.key, _PIPELINE_S) for work in worker.queue)

    def kill(self, worker: Worker, error: ErrorRecord, work: Work | None = None) -> bool:
        """Kill the worker because of `work`, by default the call that it is running, which ends with `error`.

        Returns False, and kills nothing, when it turns out that the call is over or was taken back: between a look
        at the queue and a kill, the worker may go on to the next call, which must not die for another.
        """
        work = work or worker.queue[0]
        worker.process.hold()
        if worker.process in self._workers:
            self.take_back(worker)
            if work in worker.queue:
                # A machine that is overloaded may not have stopped it in time: its pipe is empty now, and so what it
                # has told is all that it did before the call that it is in.
                worker.process.hear()
            if work not in worker.queue:
                worker.process.release()
                if worker.crew is not None:
                    self.loop.call_soon(self.pump, worker.crew)  # the caller may not want it to begin after all
                return False
        worker.verdict = (work, error)
        self.end(worker)
        return True

    def dismiss(self, crew: Crew) -> None:
        """Forget a crew and kill its workers."""
        if crew in self.crews:
            self.crews.remove(crew)
        for worker in crew.workers:
            self.end(worker)
        self._reserve.fill()

    def part(self, worker: Worker, error: ErrorRecord) -> None:
        """Take a worker from its crew; what it runs is killed and ends with `error`."""
        while worker.queue:
            if self.kill(worker, error):
                return
            # That call was over, or goes elsewhere; the next one may have begun.
        if worker.crew is not None:
            self._leave(worker.crew, worker)

    def end(self, worker: Worker) -> None:
        """Kill a worker that is not to be."""
        worker.unwanted = True
        worker.process.kill()

    def _reported(self, process: WorkerProcess, report: Report) -> None:
        worker = self._workers[process]
        if report.number == READY and not worker.ready and isinstance(report, Done):
            if report.error is None:
                worker.ready = True
                self._reserve.has_started(worker)
                if worker.queue:
                    self._begins(worker)
            else:
                worker.refusal = report.error  # it could not be confined, and ends
            return
        crew = worker.crew
        if crew is None or not worker.queue or worker.queue[0].number != report.number:
            raise ProtocolError("a worker reports a call that it was not given; nothing that it says is believed now")
        if isinstance(report, Done):
            self._done(crew, worker, report)
        elif (hearing := worker.queue[0].hearing) is not None:
            hearing.take(report, self.loop.time())
        else:
            raise ProtocolError("a worker tells of a call that nobody listens to; the worker is ended")

    def _done(self, crew: Crew, worker: Worker, done: Done) -> None:
        if len(done.output) > worker.queue[0].output_bytes + MAX_NOTE_CHARS:
            raise ProtocolError("a worker reports more output than the call may have")
        if done.value is not None and done.error is not None and not worker.queue[0].spread:
            raise ProtocolError("a worker reports both a value and an error of a call that was not spread")
        work = worker.queue.popleft()
        self._learn(crew, worker, work, done)
        worker.large = worker.alone = worker.stalled = False
        work.report(done)
        if worker.queue:
            self._begins(worker)
        elif self._is_over(crew, worker, work):
            self._leave(crew, worker)
            return
        else:
            worker.idle_s = self.loop.time()
            self._run_broadcasts(worker)
        self.pump(crew)
        if not worker.queue:
            self._pump_others(crew)

    def _is_over(self, crew: Crew, worker: Worker, work: Work) -> bool:
        """Whether a worker that has just become idle is not to go on in its crew."""
        if crew.closing and not any(other.queue for other in crew.workers):
            crew.close()
        over_time = self.loop.time() - worker.hired_s > _TENURE_S
        used = crew.single_use and not work.broadcast
        return used or (over_time and self._owed_to(crew) is not None)

    def _leave(self, crew: Crew, worker: Worker) -> None:
        """End an idle worker of `crew`, which is the last to get another one."""
        if worker in crew.workers:
            crew.workers.remove(worker)
        if crew in self.crews:
            self.crews.remove(crew)
            self.crews.append(crew)
        self.end(worker)

    def _learn(self, crew: Crew, worker: Worker, work: Work, done: Done) -> None:
        spent_s = done.ended_s - done.started_s
        if not 0 <= spent_s < 1e6:  # noqa: PLR2004 the clock was set, or the worker lies; it only misleads its own crew
            spent_s = 1.0
        average_s = crew.seconds.get(work.key)
        crew.seconds[work.key] = spent_s if average_s is None else average_s + _WEIGHT * (spent_s - average_s)
        worker.load_s = worker.load_s - (_PIPELINE_S if average_s is None else average_s) if worker.queue else 0.0

    def _pump_others(self, crew: Crew) -> None:
        for other in self.crews:
            if other is not crew and other.wants_workers:
                self.pump(other)

    def _exited(self, process: WorkerProcess, how: Exit) -> None:
        worker = self._workers.pop(process)
        self._reserve.discard(worker)
        for timer in (worker.deadline, worker.stall_check, worker.cpu_check, worker.unread_check):
            if timer is not None:
                timer.cancel()
        if not (worker.ready or worker.unwanted):
            self._reserve.did_not_start(worker, how)
        crew = worker.crew
        if crew is not None and worker in crew.workers:
            self.take_back(worker)
            crew.workers.remove(worker)
            for work in worker.queue:
                work.report(worker.last_word(work, how))
            if crew.closing and not any(other.queue for other in crew.workers):
                crew.close()
        self._reserve.fill()
        self.pump_all()


def _memory_for(worker: Worker, work: Work) -> int:
    """Return what the call may allocate: always something, so that the worker's hard bound is not met."""
    most = worker.terms.bounds.memory_bytes - RESERVED_BYTES
    return most if work.memory_bytes is None else min(work.memory_bytes, most)


def _next_look_s(left_s: float) -> float:
    """When to look again at a worker that may use so much more, with threads on every processor."""
    return max(_CPU_LOOK_S, left_s / _PROCESSORS)
