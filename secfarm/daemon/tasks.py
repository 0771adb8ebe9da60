"""What the server knows of each task: where it runs, what became of it, whom to tell.

Tasks are found by (principal, task id), so a task that is submitted again after a broken connection runs once: a
finished one is answered from here, a running one is told to the new session. Nothing here outlives the process.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from secfarm.limits import MAX_VALUE_BYTES, RESULT_KEEP_S

if TYPE_CHECKING:
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
        """Keep what is known of `task` for a client that may come back for it."""
        task.session = None
        task.orphaned_s = now_s
        self._orphans[task] = None
        self._orphan_bytes += _size_bytes(task)
        self.expire(now_s)

    def finished(self, task: Task, done: Done) -> None:
        """Note the result of `task`."""
        task.done = done
        if task in self._orphans:
            self._orphan_bytes += _size_bytes(task)

    def adopt(self, task: Task) -> None:
        """A session has taken charge of `task` again, or it is dropped."""
        if task in self._orphans:
            del self._orphans[task]
            self._orphan_bytes -= _size_bytes(task)

    def expire(self, now_s: float) -> None:
        """Forget finished orphans that are too old, or the oldest ones when they take too much memory."""
        for task in list(self._orphans):
            if task.orphaned_s + RESULT_KEEP_S > now_s and self._orphan_bytes <= MAX_VALUE_BYTES:
                return
            if task.done is not None:
                self.forget(task)


def _size_bytes(task: Task) -> int:
    return len(task.done.value) if task.done is not None and task.done.value is not None else 0
