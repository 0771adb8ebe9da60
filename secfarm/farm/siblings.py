"""Siblings: the tasks of one cognate. They are cut, sent and awaited together, and end together.

When one fails the error of the first that is known to have failed is raised; whatever way the block is left, tasks
that are not done are taken back, and those that run are killed.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import operator
import queue
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar, cast

from secfarm.farm.current import check_kernel, task_settings
from secfarm.farm.kernel import _captured
from secfarm.farm.progress_line import ProgressLine
from secfarm.task import codec
from secfarm.task.capture import capture
from secfarm.task.program import ProgramKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType
    from typing import Self

    from secfarm.farm.future import Future, Options

T = TypeVar("T")


class Siblings:
    """The tasks of one cognate on the current kernel. A context manager.

    Raises (on creation):
        NoKernelError: there is no current kernel.
    """

    def __init__(self, *, progress: bool = False, title: str = "") -> None:
        """Take the current kernel.

        Args:
            progress: show on a terminal how many items are done, under `title`.
        """
        self._kernel = check_kernel()
        self._sent: list[Future[object]] = []
        self._progress = ProgressLine(title) if progress else None

    @property
    def worker_count(self) -> int:
        """Workers of the kernel, at least 1."""
        return max(1, self._kernel.worker_count)

    def submit(self, task: Callable[..., T] | str, *args: object, settings: Options | None = None) -> Future[T]:
        """Send one task."""
        future = self._kernel._submit(task, args, {}, settings)  # noqa: SLF001 - a part of the same façade
        self._sent.append(future)
        return cast("Future[T]", future)

    def spread(
        self, task: Callable[..., T] | str, rows: Sequence[tuple[object, ...]], parts: int | None = None
    ) -> list[Future[list[T]]]:
        """Send `task` over rows of arguments, one call a part; each future holds the results of its part.

        Args:
            parts: how many; None lets each worker have a few, and each row be a call of its own when the task has a
                time limit, which is meant for one.
        """
        settings = task_settings(task, None)
        return self.spread_pieces(task, self.pieces(rows, parts, settings), settings)

    def spread_pieces(
        self, task: Callable[..., T] | str, pieces: Iterable[list[tuple[object, ...]]], settings: Options
    ) -> list[Future[list[T]]]:
        """As `spread`, over rows that are cut already."""
        return cast("list[Future[list[T]]]", self._send(task, ((piece,) for piece in pieces), settings, spread=True))

    def each(
        self, function: Callable[..., T], arguments: Iterable[tuple[object, ...]], settings: Options
    ) -> list[Future[T]]:
        """Send a function of ours (farm/shipped.py) once for each tuple of arguments, with the user's settings."""
        return cast("list[Future[T]]", self._send(function, arguments, settings, spread=False))

    def _send(
        self,
        task: Callable[..., object] | str,
        arguments: Iterable[tuple[object, ...]],
        settings: Options,
        *,
        spread: bool,
    ) -> list[Future[object]]:
        program, values = _captured(task)
        if self._progress is not None and self._progress.is_shown:
            settings = replace(settings, on_progress=self._progress.reached)
        futures: list[Future[object]] = []
        for one in arguments:
            future = self._kernel._send(  # noqa: SLF001 - a part of the same façade
                task, program, codec.encode_call(one, {}), values, settings, spread=spread
            )
            self._sent.append(future)
            futures.append(future)
            if self._progress is not None:
                items = one[0]
                self._progress.expect(future, len(items) if isinstance(items, list) else 1)
        return futures

    def pieces(self, rows: Sequence[T], parts: int | None, settings: Options) -> list[list[T]]:
        """Cut `rows` into consecutive pieces that differ by one row at most, none of them empty.

        Raises:
            ValueError: `parts` is less than 1.
            TypeError: it is no whole number.
        """
        if parts is not None and operator.index(parts) < 1:
            raise ValueError(f"parts is at least 1, not {parts}")
        if parts is None:
            parts = -(-len(rows) // self._kernel._chunk_size(len(rows), settings))  # noqa: SLF001 - same façade
        parts = min(parts, len(rows))
        if not parts:
            return []
        size, longer = divmod(len(rows), parts)
        ends = itertools.accumulate(size + (number < longer) for number in range(parts))
        return [list(rows[start:end]) for start, end in itertools.pairwise((0, *ends))]

    def keyed(
        self,
        task: Callable[..., object] | str,
        items: list[T],
        key: Callable[..., object] | str | None,
        parts: int | None,
    ) -> tuple[list[T] | list[object], Callable[..., object] | None, Options | None]:
        """Return the items to give to `task`, the key to put them through there, and the settings for both.

        Where the two may not be called together, the items come back as keys, and there is no key. Where `task` may
        not be called by a function of ours at all, the settings are None, and there is no key either.
        """
        settings = joint_settings(task) if key is None else joint_settings(task, key)
        if settings is not None or key is None:
            return items, cast("Callable[..., object] | None", key), settings
        keys = self.joined(self.spread(key, [(item,) for item in items], parts))
        return keys, None, joint_settings(task)

    def results(self, futures: Sequence[Future[T]]) -> list[T]:
        """Wait for all and return their results in order.

        Raises:
            Exception: the error of the first one in order that is known when one fails.
        """
        concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_EXCEPTION)
        failed = next((future for future in futures if future.done() and _has_failed(future)), None)
        if failed is not None:
            failed.result()
        return [future.result() for future in futures]

    def joined(self, futures: Sequence[Future[list[T]]]) -> list[T]:
        """Wait for all parts and return their results as one list; errors as `results`."""
        parts: list[list[T]] = self.results(futures)
        return list(itertools.chain.from_iterable(parts))

    @staticmethod
    def first(futures: Sequence[Future[T]], is_wanted: Callable[[T], bool]) -> tuple[int, T] | None:
        """Return the first result that is wanted with its number, without waiting for the others; None: none is.

        Of several that are known, the first in order counts; so does an error, which is raised.
        """
        done: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number, future in enumerate(futures):
            future.add_done_callback(lambda _, number=number: done.put(number))  # type: ignore[misc]
        left = len(futures)
        while left:
            known = [done.get()]
            while not done.empty():
                known.append(done.get())
            for number in sorted(known):
                result = futures[number].result()
                if is_wanted(result):
                    return number, result
            left -= len(known)
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        undone = [future for future in self._sent if not future.done()]
        if undone:
            self._kernel._dispatch.abandon(undone)  # noqa: SLF001 - a part of the same façade
        if self._progress is not None:
            self._progress.close()


def _has_failed(future: Future[T]) -> bool:
    return future.cancelled() or future.exception() is not None


def joint_settings(*tasks: object) -> Options | None:
    """Return the settings under which a function of ours may call all these on a server, or None where it may not.

    It may not where a name is all that travels, and all that a policy may have granted; where a time limit is meant
    for each call; and where the settings differ.

    Raises:
        InvalidTaskError: one of them is not a task, or cannot travel.
    """
    kinds = [capture(task).program.kind for task in tasks]
    first, *others = (task_settings(task, None) for task in tasks)
    if any(isinstance(task, str) for task in tasks) or ProgramKind.SOURCE not in kinds:
        return None
    return first if first.timeout_s is None and all(other == first for other in others) else None
