"""A task on its way, and the future that its submitter holds."""

from __future__ import annotations

import concurrent.futures
import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from secfarm.farm.loop import in_background, wait_for
from secfarm.farm.shown import html_table
from secfarm.task.payload import Priority

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator, Sequence

    from secfarm.task.program import Program

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Options:
    """Settings of a submission; None leaves a limit to the server's policy.

    Attributes:
        timeout_s: the task's process is killed when it runs longer.
        category: the name that `kill_tasks` knows it by.
        memory_bytes: what it may allocate.
    """

    timeout_s: float | None = None
    category: str = "default"
    priority: Priority = Priority.DEFAULT
    memory_bytes: int | None = None


class Future(concurrent.futures.Future[T]):
    """A `concurrent.futures.Future` whose task runs on a server.

    Attributes:
        task_id: hexadecimal; the same in the server's audit log.
        output: what the task printed, known when it is done.
    """

    output: str = ""
    before: Sequence[object] = ()  # of a spread task that failed: the results that stand before the failing item

    def __init__(self, submission: Submission, cancel: Callable[[Submission], concurrent.futures.Future[bool]]) -> None:
        super().__init__()
        self._task_id = submission.task_id
        self._name = submission.program.name
        # None once done: the submission names us, and large arguments must not wait for the garbage collector.
        self._submission: Submission | None = submission
        self._cancel = cancel

    @property
    def task_id(self) -> str:
        """Name of the task in every log."""
        return self._task_id.hex()

    def running(self) -> bool:
        """Whether it was sent to a server and is not done."""
        submission = self._submission
        return submission is not None and submission.sent and not self.done()

    def cancel(self) -> bool:
        """Take the task back; one that is running is killed.

        Returns True only once it is certain that the task does not run (any more): for one that was sent, when its
        server has said so. A task that is done, or whose server is out of reach, cannot be cancelled.
        """
        submission = self._submission
        # A callback may not wait, in the loop's thread, for what only that thread can bring about.
        if submission is not None and not in_background() and wait_for(self._cancel(submission)):
            self.withdrawn()
        return self.cancelled()

    def cancel_soon(self) -> None:
        """As `cancel`, without waiting for the server's word: whether it was done is seen when the future is done."""
        submission = self._submission
        if submission is not None:
            self._cancel(submission).add_done_callback(lambda verdict: self.withdrawn() if verdict.result() else None)

    def set_result(self, result: T) -> None:
        """Note the result; for the kernel."""
        self._submission = None
        super().set_result(result)

    def set_exception(self, exception: BaseException | None) -> None:
        """Note the error; for the kernel."""
        self._submission = None
        super().set_exception(exception)

    def withdrawn(self) -> None:
        """Note that the task does not run; for the kernel."""
        self._submission = None
        if super().cancel() and self._state == "CANCELLED":
            self.set_running_or_notify_cancel()  # wakes `wait` and `as_completed`, as an executor's thread would

    def __repr__(self) -> str:
        return f"<secfarm.Future {self.task_id} of {self._name}: {self._state_shown()}>"

    def __rich_repr__(self) -> Iterator[tuple[str, object]]:
        """What rich shows (rich.pretty)."""
        yield from self._shown()

    def _repr_html_(self) -> str:
        """What a notebook shows: not the value, which may be anything of any size."""
        return html_table("secfarm.Future", ("", ""), self._shown())

    def _shown(self) -> list[tuple[str, object]]:
        return [("task", self._name), ("task_id", self.task_id), ("state", self._state_shown())]

    def _state_shown(self) -> str:
        if self.running():
            return "running"
        if not self.done() or self.cancelled():
            return "cancelled" if self.cancelled() else "pending"
        error = self.exception()
        return "finished" if error is None else f"failed: {type(error).__name__}"


@dataclass(slots=True, eq=False)
class Submission:
    """One task as the client keeps it until it holds the result."""

    task_id: bytes
    program: Program
    arguments: bytes
    values: bytes | None
    options: Options
    cancel: Callable[[Submission], concurrent.futures.Future[bool]]
    broadcast: bool = False
    spread: bool = False
    dry_run: bool = False
    sent: bool = False  # some server has it, or had it when its connection broke
    verdict: asyncio.Future[bool] | None = None  # set while a cancel waits for the server's word
    future: Future[object] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.future = Future(self, self.cancel)

    def again(self) -> Submission:
        """Return the same task under a new id, with a future of its own."""
        return replace(self, task_id=os.urandom(16), sent=False, verdict=None)

    @property
    def size_bytes(self) -> int:
        """How much room it takes in a batch."""
        return len(self.arguments) + (len(self.values) if self.values is not None else 0)
