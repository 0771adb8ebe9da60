"""Cognates that reduce: parallel relatives of `functools.reduce`. On the current kernel.

The parts are reduced on the servers, and so are their results. Where only a name travels (`"operator.add"`, `max`), and
a policy may let us call no more than that, neighbours are combined by calls of that name, level by level, until one
value is left. For an associative task all ways give the same. Source: lparallel (src/cognate/preduce.lisp).
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final, Generic, TypeVar, cast

from secfarm.farm.current import task_settings
from secfarm.farm.shipped import folder
from secfarm.farm.siblings import Siblings
from secfarm.task.capture import capture

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

T = TypeVar("T")


class _Missing:
    """Stands for an argument that was not given: None is a value like others."""

    def __repr__(self) -> str:
        return "<none>"


_MISSING: Final = _Missing()


def preduce(
    task: Callable[..., T] | str,
    sequence: Iterable[object],
    *,
    initial_value: object = _MISSING,
    key: Callable[..., object] | str | None = None,
    start: int = 0,
    end: int | None = None,
    from_end: bool = False,
    parts: int | None = None,
    progress: bool = False,
) -> T:
    """Return what `functools.reduce` does, for an associative task. Source: lparallel's `preduce`.

    Args:
        initial_value: goes in front of the items, behind them with `from_end`. Once: lparallel puts it into each part.
        key: a task that each item goes through first; the initial value does not.
        start: with `end` the slice of the sequence to reduce.
        from_end: combine the last two items first: `task(x0, task(x1, x2))`.
        parts: into how many pieces; by default some for each worker. A part is one task, that calls `task` often.
        progress: show on a terminal how many items are done.

    Raises:
        TypeError: there is no item and no initial value.
        NoKernelError: there is no current kernel.
    """
    items = list(sequence)[start:end]
    known = [] if initial_value is _MISSING else [initial_value]
    with Siblings(progress=progress, title="preduce") as siblings:
        if items:
            reduction: _Reduction[T] = _Reduction(siblings, task, items, key, parts, from_end=from_end)
            return reduction.total(known)
    if not known:
        raise TypeError("preduce of an empty sequence with no initial value")
    return cast("T", known[0])  # the caller's own, as from functools.reduce


def preduce_partial(
    task: Callable[..., T] | str,
    sequence: Iterable[object],
    *,
    initial_value: object = _MISSING,
    key: Callable[..., object] | str | None = None,
    start: int = 0,
    end: int | None = None,
    from_end: bool = False,
    parts: int | None = None,
    progress: bool = False,
) -> list[T]:
    """Return one partial result for each part, in order: what `preduce` reduces last. Source: lparallel's.

    Arguments as `preduce`; `parts` is by default the number of workers. The initial value enters the first part, the
    last with `from_end`.

    Raises:
        ValueError: there is no item, whether there is an initial value or not.
        NoKernelError: there is no current kernel.
    """
    items = list(sequence)[start:end]
    known = [] if initial_value is _MISSING else [initial_value]
    with Siblings(progress=progress, title="preduce_partial") as siblings:
        if not items:
            raise ValueError("preduce_partial of an empty sequence: there is no part to reduce")
        parts = siblings.worker_count if parts is None else parts
        reduction: _Reduction[T] = _Reduction(siblings, task, items, key, parts, from_end=from_end)
        return reduction.partial(known)


def pmap_reduce(
    map_task: Callable[..., object] | str,
    reduce_task: Callable[..., T] | str,
    sequence: Iterable[object],
    *,
    initial_value: object = _MISSING,
    start: int = 0,
    end: int | None = None,
    from_end: bool = False,
    parts: int | None = None,
    progress: bool = False,
) -> T:
    """As `preduce` with `map_task` as key. Source: lparallel's `pmap-reduce`."""
    capture(map_task)  # None is a key of `preduce`, and no task
    return preduce(
        reduce_task,
        sequence,
        initial_value=initial_value,
        key=map_task,
        start=start,
        end=end,
        from_end=from_end,
        parts=parts,
        progress=progress,
    )


class _Reduction(Generic[T]):
    """The items of one reduction, and the way to reduce them."""

    def __init__(
        self,
        siblings: Siblings,
        task: Callable[..., T] | str,
        items: list[object],
        key: Callable[..., object] | str | None,
        parts: int | None,
        *,
        from_end: bool,
    ) -> None:
        self._siblings = siblings
        self._task = task
        self._parts = parts
        self._from_end = from_end
        self._items, own_key, self._settings = siblings.keyed(task, items, key, parts)
        if self._settings is not None:
            fold = folder(cast("Callable[..., T]", task), own_key, from_end=from_end)
            self._fold = cast("Callable[..., T]", fold)

    def total(self, known: list[object]) -> T:
        """Return the one value of all items and the known ones."""
        if self._settings is None:
            return self._levels([self._with_known(self._items, known)], self._parts)[0]
        partial = self.partial([])
        if len(partial) + len(known) == 1:
            return partial[0]
        arguments: tuple[list[object], list[object]] = [], self._with_known(partial, known)
        return self._siblings.each(self._fold, [arguments], self._settings)[0].result()

    def partial(self, known: list[object]) -> list[T]:
        """Return the value of each part; the known ones belong to the first, or to the last from the end."""
        settings = self._settings
        pieces = self._siblings.pieces(self._items, self._parts, settings or task_settings(self._task, None))
        holder = len(pieces) - 1 if self._from_end else 0
        if settings is None:
            pieces[holder] = self._with_known(pieces[holder], known)
            return self._levels(pieces, None)
        arguments = [(piece, known if number == holder else []) for number, piece in enumerate(pieces)]
        return self._siblings.results(self._siblings.each(self._fold, arguments, settings))

    def _with_known(self, items: Sequence[object], known: list[object]) -> list[object]:
        return [*items, *known] if self._from_end else [*known, *items]

    def _levels(self, pieces: list[list[object]], parts: int | None) -> list[T]:
        """Combine neighbours within each piece until each is one value; one call a pair, a few messages a level."""
        while any(len(piece) > 1 for piece in pieces):
            pairs = [pair for piece in pieces for pair in zip(piece[::2], piece[1::2], strict=False)]
            combined = iter(self._siblings.joined(self._siblings.spread(self._task, pairs, parts)))
            pieces = [[*itertools.islice(combined, len(piece) // 2), *piece[len(piece) // 2 * 2 :]] for piece in pieces]
        return [cast("T", piece[0]) for piece in pieces]
