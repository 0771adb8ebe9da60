"""Functions of ours that travel: they run a part of a cognate on a server, around the functions of the user.

Each is a closure over the user's functions and goes as source text, as that of any closure does (task/capture.py);
what it names besides is of the standard library. A part is one task: the user's functions see the same globals in all
of its calls.
"""

from __future__ import annotations

import functools
from types import CoroutineType, GeneratorType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def _settler() -> Callable[[object], object]:
    def settled(value: object) -> object:
        """Return what a worker makes of the value of a task: a list of what it yields, what it awaits to."""
        if isinstance(value, GeneratorType):
            return list(value)
        if isinstance(value, CoroutineType):
            import asyncio

            return asyncio.run(value)
        return value

    return settled


_settled = _settler()  # a closure's own: a module-level function of ours would be looked up on the server by name


def folder(
    task: Callable[..., object], key: Callable[..., object] | None, *, from_end: bool
) -> Callable[[list[object], list[object]], object]:
    """Return the function that reduces a part: `items` through `key`, with `known` as they are in front of them.

    From the end the known ones come behind, and the last two are combined first.
    """
    settled = _settled

    def fold(items: list[object], known: list[object]) -> object:
        if key is not None:
            items = [settled(key(item)) for item in items]
        values = [*items, *known][::-1] if from_end else [*known, *items]
        result = values[0]
        for value in values[1:]:
            result = settled(task(value, result) if from_end else task(result, value))
        return result

    return fold


def seeker(
    predicate: Callable[..., object], key: Callable[..., object] | None, *, wanted: bool, keep: bool
) -> Callable[[list[tuple[object, ...]]], tuple[int, object] | None]:
    """Return the function that looks for the first row of a part of which the predicate is `wanted`.

    It returns None, or the row's number and, where it is to `keep` that, what the predicate said.
    """
    settled = _settled

    def seek(rows: list[tuple[object, ...]]) -> tuple[int, object] | None:
        for number, row in enumerate(rows):
            value = settled(predicate(*row) if key is None else predicate(settled(key(*row))))
            if bool(value) is wanted:
                return number, value if keep else None
        return None

    return seek


def judge(
    predicate: Callable[..., object], key: Callable[..., object] | None
) -> Callable[[list[tuple[object, ...]]], list[bool]]:
    """Return the function that says of each row of a part whether the predicate holds."""
    settled = _settled

    def judged(rows: list[tuple[object, ...]]) -> list[bool]:
        if key is None:
            return [bool(settled(predicate(*row))) for row in rows]
        return [bool(settled(predicate(settled(key(*row))))) for row in rows]

    return judged


def sorter(before: Callable[..., object]) -> Callable[[list[object]], list[int]]:
    """Return the function that says in which order the keys of a part stand; runs in order are merged cheaply."""
    settled = _settled

    def order(keys: list[object]) -> list[int]:
        def compare(a: int, b: int) -> int:
            return -1 if settled(before(keys[a], keys[b])) else 0  # sorting only asks whether it is less

        return sorted(range(len(keys)), key=functools.cmp_to_key(compare))

    return order
