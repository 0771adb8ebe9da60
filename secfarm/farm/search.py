"""Cognates that ask: parallel relatives of `any`, `all`, `list.count` and `filter`. On the current kernel.

A predicate's value counts by its truth and need not be able to travel, unless only a name travels. What is compared
with an item is compared here; keys are computed on the servers. Source: lparallel (src/cognate/: pquantifier.lisp,
pcount.lisp, pfind.lisp, premove.lisp).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, cast

from secfarm.farm.cognates import rows_of
from secfarm.farm.current import check_kernel, task_settings
from secfarm.farm.shipped import judge, seeker
from secfarm.farm.siblings import Siblings, joint_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from secfarm.farm.cognates import Row
    from secfarm.farm.future import Future

T = TypeVar("T")
_Found = tuple[int, object]  # the row's number in its part, and what the predicate said where that is wanted
_PartResult = list[object] | _Found | None


def psome(
    predicate: Callable[..., object] | str,
    *sequences: Iterable[object],
    size: int | None = None,
    parts: int | None = None,
) -> object:
    """Return the first true value of the predicate over the sequences, False when there is none: `some` of Lisp.

    First in order, whichever is known first: what follows may have been asked too, but neither its values nor its
    errors count. Source: lparallel's `psome`.
    """
    with Siblings() as siblings:
        search = _Search(siblings, predicate, rows_of(sequences, size), parts, wanted=True, keep=True)
        found = search.first_in_order()
    return False if found is None else found[1]


def pevery(
    predicate: Callable[..., object] | str,
    *sequences: Iterable[object],
    size: int | None = None,
    parts: int | None = None,
) -> bool:
    """Whether the predicate holds for all rows; known as soon as one part says no. Source: lparallel's `pevery`."""
    return not _occurs(predicate, rows_of(sequences, size), parts, wanted=False)


def pnotany(
    predicate: Callable[..., object] | str,
    *sequences: Iterable[object],
    size: int | None = None,
    parts: int | None = None,
) -> bool:
    """Whether the predicate holds for no row. Source: lparallel's `pnotany`."""
    return not _occurs(predicate, rows_of(sequences, size), parts, wanted=True)


def pnotevery(
    predicate: Callable[..., object] | str,
    *sequences: Iterable[object],
    size: int | None = None,
    parts: int | None = None,
) -> bool:
    """Whether the predicate does not hold for some row. Source: lparallel's `pnotevery`."""
    return _occurs(predicate, rows_of(sequences, size), parts, wanted=False)


def _occurs(predicate: Callable[..., object] | str, rows: list[Row], parts: int | None, *, wanted: bool) -> bool:
    with Siblings() as siblings:
        return _Search(siblings, predicate, rows, parts, wanted=wanted).finds_any()


# --- find -----------------------------------------------------------------------------------------------------------


def pfind_if(
    predicate: Callable[..., object] | str,
    sequence: Iterable[T],
    *,
    key: Callable[..., object] | str | None = None,
    start: int = 0,
    end: int | None = None,
    from_end: bool = False,
    parts: int | None = None,
) -> T | None:
    """Return the first item for which the predicate holds, the last with `from_end`, None when there is none.

    First in order, as in `psome`. It is the caller's own object. Source: lparallel's `pfind-if`.

    Args:
        key: a task that each item goes through before the predicate.
        start: with `end` the slice of the sequence to look at.
    """
    return _find(predicate, sequence, key, slice(start, end), parts, from_end=from_end, wanted=True)


def pfind_if_not(
    predicate: Callable[..., object] | str,
    sequence: Iterable[T],
    *,
    key: Callable[..., object] | str | None = None,
    start: int = 0,
    end: int | None = None,
    from_end: bool = False,
    parts: int | None = None,
) -> T | None:
    """As `pfind_if`, for the first item for which the predicate does not hold. Source: lparallel's `pfind-if-not`."""
    return _find(predicate, sequence, key, slice(start, end), parts, from_end=from_end, wanted=False)


def _find(
    predicate: Callable[..., object] | str,
    sequence: Iterable[T],
    key: Callable[..., object] | str | None,
    bounds: slice,
    parts: int | None,
    *,
    from_end: bool,
    wanted: bool,
) -> T | None:
    items = list(sequence)[bounds]
    if from_end:
        items.reverse()
    with Siblings() as siblings:
        rows: list[Row] = [(item,) for item in items]
        found = _Search(siblings, predicate, rows, parts, key=key, wanted=wanted).first_in_order()
    return None if found is None else items[found[0]]


def pfind(
    item: object,
    sequence: Iterable[T],
    *,
    key: Callable[..., object] | str | None = None,
    start: int = 0,
    end: int | None = None,
    from_end: bool = False,
    parts: int | None = None,
) -> T | None:
    """Return the first item of the sequence that equals `item`, or whose key does; None when there is none.

    Other arguments as `pfind_if`. Source: lparallel's `pfind`.
    """
    items = list(sequence)[start:end]
    equal = [number for number, same in enumerate(_equal(item, items, key, parts)) if same]
    return items[equal[-1 if from_end else 0]] if equal else None


# --- count and remove -----------------------------------------------------------------------------------------------


def pcount_if(
    predicate: Callable[..., object] | str,
    sequence: Iterable[object],
    *,
    key: Callable[..., object] | str | None = None,
    start: int = 0,
    end: int | None = None,
    parts: int | None = None,
) -> int:
    """Return for how many items the predicate holds. Source: lparallel's `pcount-if`.

    Args:
        key: a task that each item goes through before the predicate.
        start: with `end` the slice of the sequence to look at.
    """
    return sum(_judged(predicate, list(sequence)[start:end], key, parts))


def pcount_if_not(
    predicate: Callable[..., object] | str,
    sequence: Iterable[object],
    *,
    key: Callable[..., object] | str | None = None,
    start: int = 0,
    end: int | None = None,
    parts: int | None = None,
) -> int:
    """As `pcount_if`, for the items for which it does not hold. Source: lparallel's `pcount-if-not`."""
    judged = _judged(predicate, list(sequence)[start:end], key, parts)
    return len(judged) - sum(judged)


def pcount(
    item: object,
    sequence: Iterable[object],
    *,
    key: Callable[..., object] | str | None = None,
    start: int = 0,
    end: int | None = None,
    parts: int | None = None,
) -> int:
    """Return how many items equal `item`, or have a key that does. As `pcount_if`. Source: lparallel's `pcount`."""
    return sum(_equal(item, list(sequence)[start:end], key, parts))


def premove_if(
    predicate: Callable[..., object] | str,
    sequence: Iterable[T],
    *,
    key: Callable[..., object] | str | None = None,
    start: int = 0,
    end: int | None = None,
    parts: int | None = None,
) -> list[T]:
    """Return a list without the items for which the predicate holds. Source: lparallel's `premove-if`.

    Args:
        key: a task that each item goes through before the predicate.
        start: with `end` the slice to remove from; what is outside of it stays.
    """
    items = list(sequence)
    return _without(items, slice(start, end), _judged(predicate, items[start:end], key, parts))


def premove_if_not(
    predicate: Callable[..., object] | str,
    sequence: Iterable[T],
    *,
    key: Callable[..., object] | str | None = None,
    start: int = 0,
    end: int | None = None,
    parts: int | None = None,
) -> list[T]:
    """As `premove_if`, without those for which it does not hold: `filter`. Source: lparallel's `premove-if-not`."""
    items = list(sequence)
    judged = _judged(predicate, items[start:end], key, parts)
    return _without(items, slice(start, end), [not holds for holds in judged])


def premove(
    item: object,
    sequence: Iterable[T],
    *,
    key: Callable[..., object] | str | None = None,
    start: int = 0,
    end: int | None = None,
    parts: int | None = None,
) -> list[T]:
    """Return a list without what equals `item`, or has a key that does; else as `premove_if`. Source: lparallel's."""
    items = list(sequence)
    return _without(items, slice(start, end), _equal(item, items[start:end], key, parts))


def _without(items: list[T], bounds: slice, unwanted: list[bool]) -> list[T]:
    kept = [one for one, is_unwanted in zip(items[bounds], unwanted, strict=True) if not is_unwanted]
    first, last, _ = bounds.indices(len(items))
    return [*items[:first], *kept, *items[max(first, last) :]]


# --- what they stand on ---------------------------------------------------------------------------------------------


def _equal(item: object, items: list[T], key: Callable[..., object] | str | None, parts: int | None) -> list[bool]:
    """Say of each item whether it, or its key, is or equals `item`, as `list.count` compares."""
    if key is None:
        check_kernel()
        keys: list[object] = [*items]
    else:
        with Siblings() as siblings:
            keys = siblings.joined(siblings.spread(key, [(one,) for one in items], parts))
    return [one is item or bool(one == item) for one in keys]


def _judged(
    predicate: Callable[..., object] | str, items: list[T], key: Callable[..., object] | str | None, parts: int | None
) -> list[bool]:
    """Say of each item whether the predicate holds for it, or for its key."""
    with Siblings() as siblings:
        keys, own_key, settings = siblings.keyed(predicate, [*items], key, parts)
        rows = [(one,) for one in keys]
        if settings is None:
            return [bool(value) for value in siblings.joined(siblings.spread(predicate, rows, parts))]
        judged = judge(cast("Callable[..., object]", predicate), own_key)
        pieces = siblings.pieces(rows, parts, settings)
        return siblings.joined(siblings.each(judged, [(piece,) for piece in pieces], settings))


class _Search:
    """The parts of one search. A part looks no further than its first find, unless only a name travels."""

    def __init__(
        self,
        siblings: Siblings,
        predicate: Callable[..., object] | str,
        rows: list[Row],
        parts: int | None,
        *,
        key: Callable[..., object] | str | None = None,
        wanted: bool,
        keep: bool = False,
    ) -> None:
        """Send the parts.

        Args:
            key: for rows of one item, what that goes through first.
            wanted: the truth of the predicate to look for.
            keep: bring what the predicate said.
        """
        self._siblings = siblings
        self._wanted = wanted
        own_key: Callable[..., object] | None = None
        settings = joint_settings(predicate)
        if key is not None:
            keys, own_key, settings = siblings.keyed(predicate, [item for (item,) in rows], key, parts)
            rows = [(one,) for one in keys]
        self._pieces = siblings.pieces(rows, parts, settings or task_settings(predicate, None))
        self._futures: Sequence[Future[_PartResult]]
        if settings is None:
            found = siblings.spread_pieces(predicate, self._pieces, task_settings(predicate, None))
            self._futures = cast("list[Future[_PartResult]]", found)
        else:
            seek = seeker(cast("Callable[..., object]", predicate), own_key, wanted=wanted, keep=keep)
            self._futures = siblings.each(seek, [(piece,) for piece in self._pieces], settings)

    def _find(self, result: _PartResult) -> _Found | None:
        """Return what a part has found."""
        if not isinstance(result, list):
            return result
        return next(((number, value) for number, value in enumerate(result) if bool(value) is self._wanted), None)

    def first_in_order(self) -> _Found | None:
        """Return the first find, its number counted from the first row of all."""
        offset = 0
        for piece, future in zip(self._pieces, self._futures, strict=True):
            found = self._find(future.result())
            if found is not None:
                return offset + found[0], found[1]
            offset += len(piece)
        return None

    def finds_any(self) -> bool:
        """Whether any part has found something, as soon as one has."""
        return self._siblings.first(self._futures, lambda result: self._find(result) is not None) is not None
