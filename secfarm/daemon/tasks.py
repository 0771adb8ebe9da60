"""What the server knows of each task: where it runs, what became of it, whom to tell.

Tasks are found by (principal, task id), so a task that is submitted again after a broken connection runs once: a
finished one is answered from here, a running one is told to the new session. Nothing here outlives the process.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from secfarm.limits import MAX_PENDING_VALUES_BYTES, MAX_VALUE_BYTES, RESULT_KEEP_S

if TYPE_CHECKING:
    from collections.abc import Iterator

    from secfarm.daemon.session import ServerSession
    from secfarm.run.crew import Crew, Work
    from secfarm.task.outcome import Done


@dataclass(slots=True, eq=False)
class Task:
    """One accepted call."""

    principal: str
    task_id: bytes
    session: ServerSession | None  # whom to tell; None while nobody is there to hear it
    program: str = ""  # its digest; empty for a call that was refused
    crew: Crew | None = None
    work: Work | None = None
    done: Done | None = None
    missing: int = 0  # large values of it that have not arrived
    size_bytes: int = 0  # of its arguments and values
    orphaned_s: float = 0.0


class TaskTable:
    """All tasks that were accepted and not yet acknowledged."""

    def __init__(self) -> None:
        self._tasks: dict[tuple[str, bytes], Task] = {}
        # Tasks whose session broke, oldest first: their results wait for a while, and not without bound.
        self._orphans: OrderedDict[Task, None] = OrderedDict()
        self._orphan_bytes = 0

    def __len__(self) -> int:
        return len(self._tasks)

    def find(self, principal: str, task_id: bytes) -> Task | None:
        """Return the task of that id, if it is this principal's."""
        return self._tasks.get((principal, task_id))

    def add(self, task: Task) -> None:
        """Remember a task that was just accepted."""
        self._tasks[task.principal, task.task_id] = task

    def forget(self, task: Task) -> None:
        """Drop a task: its result was acknowledged, or it never began and its session is gone."""
        if self._tasks.get((task.principal, task.task_id)) is task:
            del self._tasks[task.principal, task.task_id]
        self.adopt(task)

    def orphan(self, task: Task, now_s: float) -> None:
        """Keep what is known of `task`, if it was accepted, for a client that may come back for it."""
        task.session = None
        if self.find(task.principal, task.task_id) is not task:
            return
        task.orphaned_s = now_s
        self._orphans[task] = None
        self._orphan_bytes += size_bytes(task.done)
        self.expire(now_s)

    def finished(self, task: Task, done: Done) -> None:
        """Note the result of `task`."""
        task.done = done
        if task.work is not None and not task.work.broadcast:  # which later workers run as well
            task.work.arguments, task.work.values = b"", None  # they need not wait for an acknowledgement
        if task in self._orphans:
            self._orphan_bytes += size_bytes(done)

    def adopt(self, task: Task) -> None:
        """A session has taken charge of `task` again, or it is dropped."""
        if task in self._orphans:
            del self._orphans[task]
            self._orphan_bytes -= size_bytes(task.done)

    def expire(self, now_s: float) -> None:
        """Forget finished orphans that are too old, or the oldest ones when they take too much memory."""
        over_bytes = self._orphan_bytes - MAX_VALUE_BYTES
        gone: list[Task] = []
        for task in self._orphans:
            if task.orphaned_s + RESULT_KEEP_S > now_s and over_bytes <= 0:
                break
            if task.done is not None:
                gone.append(task)
                over_bytes -= size_bytes(task.done)
        for task in gone:
            self.forget(task)


def size_bytes(done: Done | None) -> int:
    """How much a result takes, and what the task printed."""
    return 0 if done is None else len(done.value or b"") + len(done.output)


class Outstanding:
    """The tasks of one session that are not finished, and how much their arguments take."""

    def __init__(self) -> None:
        self._tasks: set[Task] = set()
        self._size_bytes = 0
        self._kept_bytes = 0  # of the broadcasts that went well: later workers run them too

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[Task]:
        return iter(self._tasks)

    def __contains__(self, task: Task) -> bool:
        return task in self._tasks

    def has_room(self, size_bytes: int, *, broadcast: bool) -> bool:
        """Whether arguments of that size may be held besides those that are; those of one task always may."""
        held_bytes = self._size_bytes + (self._kept_bytes if broadcast else 0)
        return held_bytes == 0 or held_bytes + size_bytes <= MAX_PENDING_VALUES_BYTES

    def add(self, task: Task) -> None:
        """A task was accepted, or adopted."""
        if task not in self._tasks:
            self._tasks.add(task)
            self._size_bytes += task.size_bytes

    def discard(self, task: Task) -> None:
        """It is finished, or another session's."""
        if task in self._tasks:
            self._tasks.remove(task)
            self._size_bytes -= task.size_bytes
            if task.work is not None and task.work.broadcast and task.done is not None and task.done.error is None:
                self._kept_bytes += task.size_bytes

    def clear(self) -> None:
        """Nothing is to be told of them."""
        self._tasks.clear()
        self._size_bytes = 0
