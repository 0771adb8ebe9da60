"""`psort`: parts are sorted on the servers and merged there, two by two. Source: lparallel (src/cognate/psort.lisp)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

from secfarm.farm.shipped import sorter
from secfarm.farm.siblings import Siblings, joint_settings
from secfarm.task.capture import capture
from secfarm.task.program import ProgramKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from secfarm.farm.future import Options

T = TypeVar("T")


def psort(
    sequence: Iterable[T],
    predicate: Callable[..., object] | str | None = None,
    *,
    key: Callable[..., object] | str | None = None,
    parts: int | None = None,
) -> list[T]:
    """Return the items in order, as a new list of the caller's own objects; equal ones stay as they stood.

    Keys are computed on the servers. Without a predicate they are compared here, as `sorted` does, which costs less
    than sending them would. Source: lparallel's `psort`, which is not stable and sorts in place.

    Args:
        predicate: a task that says whether its first argument stands before its second: `lambda a, b: a > b`. One that
            an installed module offers (`operator.gt`) is called here. A name as text is asked for each pair by itself,
            some n * log(n) ** 2 of them: for a function that exists on the servers only.
        parts: into how many pieces; by default some for each worker.
    """
    items = list(sequence)
    keys: list[object] = [*items]
    with Siblings() as siblings:
        if key is not None:
            keys = siblings.joined(siblings.spread(key, [(item,) for item in items], parts))
        if predicate is None:
            numbers = sorted(range(len(keys)), key=cast("list[int]", keys).__getitem__)
        elif (settings := joint_settings(predicate)) is not None:
            numbers = _by_parts(siblings, keys, cast("Callable[..., object]", predicate), settings, parts)
        elif callable(predicate) and capture(predicate).program.kind is ProgramKind.NAME:
            numbers = sorter(predicate)(keys)
        else:
            numbers = _by_pairs(siblings, keys, predicate, parts)
    return [items[number] for number in numbers]


def _by_parts(
    siblings: Siblings, keys: list[object], predicate: Callable[..., object], settings: Options, parts: int | None
) -> list[int]:
    """Return the numbers of the keys in order: each part is sorted by one call, and each two by one more."""
    order = sorter(predicate)

    def sort(runs: list[list[int]]) -> list[list[int]]:
        arguments = [([keys[number] for number in run],) for run in runs]
        orders = siblings.results(siblings.each(order, arguments, settings))
        return [[run[place] for place in places] for run, places in zip(runs, orders, strict=True)]

    runs = sort(siblings.pieces(range(len(keys)), parts, settings))
    while len(runs) > 1:
        joined = [[*left, *right] for left, right in zip(runs[::2], runs[1::2], strict=False)]
        runs = [*sort(joined), *runs[len(runs) // 2 * 2 :]]
    return runs[0] if runs else []


def _by_pairs(
    siblings: Siblings, keys: list[object], predicate: Callable[..., object] | str, parts: int | None
) -> list[int]:
    """As `_by_parts`, asking the predicate for one pair a call: all searches of a merge go on side by side."""
    runs = [[number] for number in range(len(keys))]
    while len(runs) > 1:
        pairs = list(zip(runs[::2], runs[1::2], strict=False))
        places = [_Place(number, right, 0, len(right)) for left, right in pairs for number in left]
        while asked := [place for place in places if place.low < place.high]:
            rows = [(keys[place.right[place.middle]], keys[place.number]) for place in asked]
            answers = siblings.joined(siblings.spread(predicate, rows, parts))
            for place, is_before in zip(asked, answers, strict=True):
                if is_before:
                    place.low = place.middle + 1
                else:
                    place.high = place.middle
        found = iter(places)
        runs = [*(_merged(left, right, found) for left, right in pairs), *runs[len(runs) // 2 * 2 :]]
    return runs[0] if runs else []


@dataclass(slots=True)
class _Place:
    """Where the key of a number belongs among those of a run on its right: between `low` and `high`."""

    number: int
    right: list[int]
    low: int
    high: int

    @property
    def middle(self) -> int:
        return (self.low + self.high) // 2


def _merged(left: list[int], right: list[int], found: Iterator[_Place]) -> list[int]:
    """Return both runs as one, with the numbers on the left where their places are."""
    merged: list[int] = []
    taken = 0
    for place in itertools.islice(found, len(left)):
        merged += [*right[taken : place.low], place.number]
        taken = max(taken, place.low)
    return [*merged, *right[taken:]]
