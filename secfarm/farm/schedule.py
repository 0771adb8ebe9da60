"""Who gets which task next. Pure: events in, assignments out; no clock, no sockets.

Tasks wait here, in order of priority and then of submission, until a server can start them soon. What a server is sent
ahead of free workers is bounded by expected time, not by number: short tasks are pipelined by the hundred, and a task
of unknown length goes to a free worker only.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

from secfarm.limits import MAX_PENDING_VALUES_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from secfarm.farm.future import Submission

# Expected work that one worker may have in front of it: some round trips, so that it never waits for the network, and
# little enough that no task waits noticeably behind others while another server is free.
_AHEAD_S: Final = 0.02
_MAX_AHEAD: Final = 4096  # tasks per server
_MAX_HELD_BYTES: Final = MAX_PENDING_VALUES_BYTES // 2  # of arguments, per server: well under what it may refuse
_WEIGHT: Final = 0.2  # of the newest duration in a program's moving average

Identity: TypeAlias = "tuple[str, str]"  # a server's key and the name that it gives itself


@dataclass(slots=True, eq=False)
class Seat:
    """One server as the schedule sees it."""

    workers: int
    max_tasks: int
    held: dict[bytes, Submission] = field(default_factory=dict)  # sent and not answered, by task id
    load_s: float = 0.0
    held_bytes: int = 0
    answers: int = 0  # so far
    stalled: bool = False  # what it runs takes longer than it should: nothing is sent ahead until it answers

    def hold(self, submission: Submission) -> None:
        """Note that the server has a task."""
        self.held[submission.task_id] = submission
        submission.seat = self
        self.held_bytes += submission.size_bytes

    def drop(self, task_id: bytes) -> Submission | None:
        """Note that it has it no longer; return the task, or None if it did not have it."""
        submission = self.held.pop(task_id, None)
        if submission is not None:
            submission.seat = None
            self.held_bytes -= submission.size_bytes
        return submission

    def runs(self, submission: Submission) -> bool:
        """Whether the server runs the task, as far as we know: it begins tasks in the order in which they came."""
        # Other threads ask; to make a tuple of a dictionary is one step.
        return submission.task_id in tuple(self.held)[: self.workers]

    def has_room(self, size_bytes: int) -> bool:
        """Whether values of that size may be sent besides those that it has; one task always may."""
        return not self.held or self.held_bytes + size_bytes <= _MAX_HELD_BYTES

    @property
    def free(self) -> int:
        """How many of its workers have nothing to do, as far as we know."""
        return self.workers - len(self.held)


class Schedule:
    """All tasks of a kernel that are not done, and the servers that may run them."""

    def __init__(self) -> None:
        self.seats: list[Seat] = []
        self._waiting: tuple[deque[Submission], deque[Submission]] = (deque(), deque())
        self._average_s: dict[bytes, float] = {}
        self._kept: dict[Identity, list[Submission]] = {}

    def add(self, submission: Submission) -> None:
        """A task was submitted."""
        self._waiting[submission.options.priority].append(submission)

    def withdraw(self, submission: Submission) -> bool:
        """Forget a task that waits, and is kept for no server that may be running it; return whether it did."""
        queue = self._waiting[submission.options.priority]
        if submission in queue:
            queue.remove(submission)
            return True
        return False

    def keeps(self, submission: Submission) -> bool:
        """Whether the task waits for a server that may be running it."""
        return any(submission in queue for queue in self._kept.values())

    def withdraw_all(self, unwanted: Callable[[Submission], bool]) -> list[Submission]:
        """Forget the waiting tasks that are unwanted, and return them in order."""
        withdrawn: list[Submission] = []
        for queue in (*self._kept.values(), *self._waiting):
            stay: list[Submission] = []
            for submission in queue:
                (withdrawn if unwanted(submission) else stay).append(submission)
            queue.clear()
            queue.extend(stay)
        return withdrawn

    def join(self, workers: int, max_tasks: int) -> Seat:
        """A server has come."""
        seat = Seat(workers, max_tasks)
        self.seats.append(seat)
        return seat

    def leave(self, seat: Seat) -> list[Submission]:
        """A server has gone; return what it had, in order of submission, for the caller to decide about."""
        if seat in self.seats:
            self.seats.remove(seat)
        held = tuple(seat.held.values())
        for submission in held:
            seat.drop(submission.task_id)
        return list(held)

    def keep(self, identity: Identity, submissions: list[Submission]) -> None:
        """The server that has these may be back for them in a moment: nobody else gets them until then."""
        self._kept.setdefault(identity, []).extend(submissions)

    def kept(self, identity: Identity) -> list[Submission]:
        """Return what was kept for this server, and keep it no longer."""
        return self._kept.pop(identity, [])

    def give(self, seat: Seat, submissions: list[Submission]) -> list[Submission]:
        """A server gets these, which it had before, ahead of all others; return those that it has room for."""
        room = max(0, seat.max_tasks - len(seat.held))
        for submission in submissions[:room]:
            self._assign(seat, submission)
        self.put_back(submissions[room:])
        return submissions[:room]

    def put_back(self, submissions: list[Submission]) -> None:
        """These wait again, in front of all others."""
        for submission in reversed(submissions):
            self._waiting[submission.options.priority].appendleft(submission)

    def blocked(self) -> dict[Seat, int]:
        """Return the servers that hold tasks which a free worker elsewhere could run, and their answers so far."""
        if not any(seat.free > 0 for seat in self.seats):
            return {}
        return {seat: seat.answers for seat in self.seats if seat.free < 0}

    def take_back(self, seat: Seat, task_ids: Iterable[bytes]) -> list[Submission]:
        """A server has given these back without having begun them; return them for the caller to decide about."""
        back = [submission for submission in map(seat.drop, task_ids) if submission is not None]
        for submission in back:
            self._relieve(seat, self._average_s.get(submission.program.key))
        return back

    def finish(self, seat: Seat, task_id: bytes, seconds: float) -> Submission | None:
        """A server has answered; return the task, or None if the server did not have it.

        Args:
            seconds: how long it ran there.
        """
        submission = seat.drop(task_id)
        if submission is None:
            return None
        seat.answers += 1
        seat.stalled = False
        key = submission.program.key
        before_s = self._average_s.get(key)
        if 0 <= seconds < 1e9:  # noqa: PLR2004 - a server's clock may jump; its word only shapes what it is sent
            self._average_s[key] = seconds if before_s is None else before_s + _WEIGHT * (seconds - before_s)
        self._relieve(seat, before_s)
        return submission

    def assign(self) -> list[tuple[Seat, list[Submission]]]:
        """Take from those waiting what servers should have now."""
        assigned: dict[Seat, list[Submission]] = {}
        for queue in self._waiting:
            while queue and (seat := self._seat_for(queue[0])) is not None:
                submission = queue.popleft()
                self._assign(seat, submission)
                assigned.setdefault(seat, []).append(submission)
            if queue:
                break  # low priority runs when nothing of the default waits
        return list(assigned.items())

    def _assign(self, seat: Seat, submission: Submission) -> None:
        seat.hold(submission)
        seat.load_s += self._expected_s(self._average_s.get(submission.program.key))

    @property
    def waiting(self) -> list[Submission]:
        """The tasks that no server has."""
        return [submission for queue in self._waiting for submission in queue]

    def _seat_for(self, submission: Submission) -> Seat | None:
        seats = [seat for seat in self.seats if seat.has_room(submission.size_bytes)]
        best = max(seats, key=lambda seat: seat.free, default=None)
        if best is not None and best.free > 0:
            return best
        expected_s = self._average_s.get(submission.program.key)
        if expected_s is None or expected_s > _AHEAD_S:
            return None
        open_seats = [
            seat
            for seat in seats
            if seat.workers
            and not seat.stalled
            and seat.load_s + expected_s <= _AHEAD_S * seat.workers
            and len(seat.held) < min(_MAX_AHEAD, seat.max_tasks)
        ]
        return min(open_seats, key=lambda seat: seat.load_s / seat.workers, default=None)

    def _relieve(self, seat: Seat, average_s: float | None) -> None:
        # What was expected when the task was sent may have been less.
        seat.load_s = max(0.0, seat.load_s - self._expected_s(average_s)) if seat.held else 0.0

    @staticmethod
    def _expected_s(average_s: float | None) -> float:
        return _AHEAD_S if average_s is None else average_s
