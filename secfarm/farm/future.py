"""A task on its way, and the future that its submitter holds."""

from __future__ import annotations

import concurrent.futures
import math
import os
import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, TypeVar, cast

from secfarm.errors import KernelError, ValueTransferError
from secfarm.farm.loop import NO_WAITING, in_background, wait_for
from secfarm.farm.receipts import receipt_of
from secfarm.farm.shown import html_table
from secfarm.limits import MAX_CATEGORY_CHARS, MAX_VALUE_BYTES
from secfarm.task.payload import Priority
from secfarm.trust.receipt import OK

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator, Sequence

    from secfarm.farm.receipts import Testimony
    from secfarm.farm.schedule import Seat
    from secfarm.task.program import Program
    from secfarm.trust.receipt import Receipt

T = TypeVar("T")

in_callback: Final = threading.local()  # .here is set in the threads that call on_output and on_progress


@dataclass(frozen=True, slots=True)
class Options:
    """Settings of a submission; None leaves a limit to the server's policy.

    Attributes:
        timeout_s: the task's process is killed when it runs longer.
        category: the name that `kill_tasks` knows it by.
        memory_bytes: what it may allocate.
        on_output: called with "stdout" or "stderr" and what the task has printed there, while it runs.
        on_progress: called with the arguments of `secfarm.progress` inside the task.

    Raises (on creation):
        ValueError, TypeError: a setting is none that a server would take.
    """

    timeout_s: float | None = None
    category: str = "default"
    priority: Priority = Priority.DEFAULT
    memory_bytes: int | None = None
    on_output: Callable[[str, str], object] | None = None
    on_progress: Callable[[float, float, str], object] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.category, str):
            raise TypeError(f"a category is a str, not {self.category!r}; nothing was sent")
        if len(self.category) > MAX_CATEGORY_CHARS:
            raise ValueError(f"a category has at most {MAX_CATEGORY_CHARS} characters; nothing was sent")
        if self.timeout_s is not None and not 0 < self.timeout_s < math.inf:
            raise ValueError(f"timeout_s is a number above 0, not {self.timeout_s!r}; nothing was sent")
        if self.memory_bytes is not None and self.memory_bytes not in range(1, 2**63):
            raise ValueError(f"memory_bytes is a whole number above 0, not {self.memory_bytes!r}; nothing was sent")

    @property
    def is_live(self) -> bool:
        """Whether something is to be heard of the task while it runs."""
        return self.on_output is not None or self.on_progress is not None


class Future(concurrent.futures.Future[T]):
    """A `concurrent.futures.Future` whose task runs on a server.

    Attributes:
        task_id: hexadecimal; the same in the server's audit log.
        output: what the task printed, known when it is done.
        progress: the arguments of the last `secfarm.progress` that came; None where `on_progress` was not asked for.
    """

    output: str = ""
    progress: tuple[float, float, str] | None = None
    # For the kernel; see `receipt`.
    testimony: Testimony | None = None
    outcome: str = OK
    digest: bytes = b""
    before: Sequence[object] = ()  # of a spread task that failed: the results that stand before the failing item

    def __init__(self, submission: Submission, cancel: Callable[[Submission], concurrent.futures.Future[bool]]) -> None:
        super().__init__()
        self._task_id = submission.task_id
        self._program = submission.program
        # None once done: the submission names us, and large arguments must not wait for the garbage collector.
        self._submission: Submission | None = submission
        self._cancel = cancel

    @property
    def task_id(self) -> str:
        """Name of the task in every log."""
        return self._task_id.hex()

    @property
    def receipt(self) -> Receipt | None:
        """The server's signed word on what it ran and what came of it, checked now against what came.

        None before the task is done, and where the server had nothing to sign with that we could check: it is signed
        by the key, or the shared secret, that the server proved in the session. `verify_receipt` checks it elsewhere.

        Raises:
            VerifyError: the server sent one that is not its own, or not about this result.
        """
        testimony = self.testimony
        if testimony is None:
            return None
        return receipt_of(cast("Future[object]", self), testimony, self._task_id, self._program.digest)

    def running(self) -> bool:
        """Whether a server runs it, as far as is known here: one that others of ours are before at its server does not.

        Nothing is asked for this. Where other clients use the server as well, it may still wait for a worker.
        """
        submission = self._submission
        seat = None if submission is None else submission.seat
        return seat is not None and seat.runs(cast("Submission", submission)) and not self.done()

    def result(self, timeout: float | None = None) -> T:
        """As `concurrent.futures.Future.result`.

        Raises:
            KernelError: a callback waits for what only its own thread can bring.
        """
        self._refuse_to_wait()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As `concurrent.futures.Future.exception`; raises what `result` does."""
        self._refuse_to_wait()
        return super().exception(timeout)

    def _refuse_to_wait(self) -> None:
        if self._submission is not None and in_background() and not self.done():
            raise KernelError(NO_WAITING)

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
        return f"<secfarm.Future {self.task_id} of {self._program.name}: {self._state_shown()}>"

    def __rich_repr__(self) -> Iterator[tuple[str, object]]:
        """What rich shows (rich.pretty)."""
        yield from self._shown()

    def _repr_html_(self) -> str:
        """What a notebook shows: not the value, which may be anything of any size."""
        return html_table("secfarm.Future", ("", ""), self._shown())

    def _shown(self) -> list[tuple[str, object]]:
        return [("task", self._program.name), ("task_id", self.task_id), ("state", self._state_shown())]

    def _state_shown(self) -> str:
        if self.running():
            return "running"
        if not self.done() or self.cancelled():
            return "cancelled" if self.cancelled() else "pending"
        error = self.exception()
        return "finished" if error is None else f"failed: {type(error).__name__}"


class LiveFuture(Future[T]):
    """A future whose task tells what it prints, or how far it is, while it runs."""

    def __init__(self, submission: Submission, cancel: Callable[[Submission], concurrent.futures.Future[bool]]) -> None:
        super().__init__(submission, cancel)
        self.heard: list[str] = []  # what it has printed so far
        self.heard_chars = 0

    def _refuse_to_wait(self) -> None:
        super()._refuse_to_wait()
        if getattr(in_callback, "here", False) and not self.done():
            raise KernelError(
                "an on_output or on_progress callback cannot wait for a task that has callbacks itself: its result "
                "comes behind them. Add a done callback to the future, or wait in another thread"
            )


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
    seat: Seat | None = None  # of the server that has it
    verdict: asyncio.Future[bool] | None = None  # set while a cancel waits for the server's word
    future: Future[object] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        size_bytes = max(len(self.arguments), len(self.values or b""))
        if size_bytes > MAX_VALUE_BYTES:
            raise ValueTransferError(
                f"the arguments, or the values that the task captured, have {size_bytes} bytes, at most "
                f"{MAX_VALUE_BYTES} can travel; nothing was sent. Send them in several tasks"
            )
        self.future = (LiveFuture if self.options.is_live else Future)(self, self.cancel)

    def again(self) -> Submission:
        """Return the same task under a new id, with a future of its own."""
        return replace(self, task_id=os.urandom(16), seat=None, verdict=None)

    @property
    def size_bytes(self) -> int:
        """How much room it takes in a batch."""
        return len(self.arguments) + (len(self.values) if self.values is not None else 0)
