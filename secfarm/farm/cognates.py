"""Cognates that map: parallel relatives of `map`, of loops, of `and` and `or`. On the current kernel.

A cognate cuts its rows into a few parts and sends each as one call. Ragged sequences stop at the shortest, `size` cuts
earlier, `parts` says how many pieces. When a part fails its error is raised, of several that are known the first one's,
and the others are cancelled. Source: lparallel (src/cognate/: pmap.lisp, pandor.lisp, pdotimes.lisp, pfuncall.lisp);
the names and meanings are its, the values Python's.
"""

from __future__ import annotations

import array
import itertools
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar, cast, overload

from secfarm.farm.siblings import Siblings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, MutableSequence

    AnyArray = array.array[int] | array.array[float] | array.array[str]

T = TypeVar("T")
S = TypeVar("S", bound="Iterable[object]")
M = TypeVar("M", bound="MutableSequence[object]")
Row = tuple[object, ...]


def rows_of(sequences: tuple[Iterable[object], ...], size: int | None) -> list[Row]:
    """Return the arguments of each call: as many as the shortest sequence has items, and `size` at most.

    Raises:
        TypeError: there is no sequence.
        ValueError: `size` is negative.
    """
    if not sequences:
        raise TypeError("at least one sequence is needed")
    _check_size(size)
    rows = zip(*sequences)  # noqa: B905 - the shortest ends it
    return list(rows if size is None else itertools.islice(rows, size))


def _check_size(size: int | None) -> None:
    if size is not None and operator.index(size) < 0:
        raise ValueError(f"size is at least 0, not {size}")


def _mapped(
    name: str, task: Callable[..., T] | str, rows: Sequence[Row], parts: int | None, *, progress: bool
) -> list[T]:
    with Siblings(progress=progress, title=name) as siblings:
        return siblings.joined(siblings.spread(task, rows, parts))


# --- pmap -----------------------------------------------------------------------------------------------------------


@overload
def pmap(
    result_type: type[list[object]],
    task: Callable[..., T] | str,
    *sequences: Iterable[object],
    size: int | None = ...,
    parts: int | None = ...,
    progress: bool = ...,
) -> list[T]: ...
@overload
def pmap(
    result_type: type[tuple[object, ...]],
    task: Callable[..., T] | str,
    *sequences: Iterable[object],
    size: int | None = ...,
    parts: int | None = ...,
    progress: bool = ...,
) -> tuple[T, ...]: ...
@overload
def pmap(
    result_type: str,
    task: Callable[..., object] | str,
    *sequences: Iterable[object],
    size: int | None = ...,
    parts: int | None = ...,
    progress: bool = ...,
) -> AnyArray: ...
@overload
def pmap(
    result_type: None,
    task: Callable[..., object] | str,
    *sequences: Iterable[object],
    size: int | None = ...,
    parts: int | None = ...,
    progress: bool = ...,
) -> None: ...
def pmap(
    result_type: type[list[object] | tuple[object, ...]] | str | None,
    task: Callable[..., object] | str,
    *sequences: Iterable[object],
    size: int | None = None,
    parts: int | None = None,
    progress: bool = False,
) -> object:
    """Return the results of `task` over the sequences, in order. Source: lparallel's `pmap`.

    Args:
        result_type: `list`, `tuple`, the type code of an `array.array`, or None for no result.
        size: how many items at most.
        parts: into how many pieces; by default some for each worker.
        progress: show on a terminal how many items are done.

    Raises:
        TypeError: there is no sequence, or no such result type.
        ValueError: it is no type code of an array, or a number is out of range.
        NoKernelError: there is no current kernel.
    """
    make = _maker(result_type)
    results = _mapped("pmap", task, rows_of(sequences, size), parts, progress=progress)
    return make(results)


def _maker(result_type: object) -> Callable[[list[object]], object]:
    """Return how a list of results becomes what was asked for; refused before anything is sent."""
    if result_type is None:
        return lambda _: None
    if result_type is list:
        return lambda results: results
    if result_type is tuple:
        return tuple
    if isinstance(result_type, str):
        empty = array.array(result_type)
        return lambda results: array.array(empty.typecode, cast("list[float]", results))
    raise TypeError(f"the result type is list, tuple, a type code of array.array, or None, not {result_type!r}")


def pmapcar(
    task: Callable[..., T] | str,
    *sequences: Iterable[object],
    size: int | None = None,
    parts: int | None = None,
    progress: bool = False,
) -> list[T]:
    """As `pmap`, with a list as result. Source: lparallel's `pmapcar`."""
    return _mapped("pmapcar", task, rows_of(sequences, size), parts, progress=progress)


def pmap_into(
    result: M,
    task: Callable[..., object] | str,
    *sequences: Iterable[object],
    size: int | None = None,
    parts: int | None = None,
    progress: bool = False,
) -> M:
    """Put the results of `task` in front of `result`, in place of what was there, and return it.

    No more than it has room for is computed; without sequences `task` is called without arguments for each place. When
    a part fails `result` is as before. Source: lparallel's `pmap-into`.
    """
    rows = rows_of((*sequences, result), size)  # the last column is what will be replaced
    results = _mapped("pmap_into", task, [row[:-1] for row in rows], parts, progress=progress)
    return _put(result, results)


def _put(result: M, values: Iterable[object]) -> M:
    for place, value in enumerate(values):
        result[place] = value
    return result


# --- the others of the family -----------------------------------------------------------------------------------------


def pmapc(
    task: Callable[..., object] | str,
    first: S,
    *sequences: Iterable[object],
    size: int | None = None,
    parts: int | None = None,
    progress: bool = False,
) -> S:
    """As `pmapcar`, for what it does and not for its results; return the first sequence. Source: lparallel's `pmapc`.

    The results travel and are dropped, so they have to be values that can.
    """
    _mapped("pmapc", task, rows_of((first, *sequences), size), parts, progress=progress)
    return first


def pmapcan(
    task: Callable[..., Iterable[T]] | str,
    *sequences: Iterable[object],
    size: int | None = None,
    parts: int | None = None,
    progress: bool = False,
) -> list[T]:
    """Return what the results of `task`, which are sequences, hold, as one list. Source: lparallel's `pmapcan`."""
    results = _mapped("pmapcan", task, rows_of(sequences, size), parts, progress=progress)
    return list(itertools.chain.from_iterable(results))


def pmaplist(
    task: Callable[..., T] | str,
    *sequences: Iterable[object],
    size: int | None = None,
    parts: int | None = None,
    progress: bool = False,
) -> list[T]:
    """Return the results of `task` over the tails: the sequences, the sequences without their first item, and so on.

    Slices of a list, tuple or text are of its type, other iterables become lists. Each tail travels as a value of its
    own, n * n / 2 items in all. Source: lparallel's `pmaplist`.
    """
    return _mapped("pmaplist", task, _tails(sequences, size), parts, progress=progress)


def pmapl(
    task: Callable[..., object] | str,
    first: S,
    *sequences: Iterable[object],
    size: int | None = None,
    parts: int | None = None,
    progress: bool = False,
) -> S:
    """As `pmaplist`, for what it does; return the first sequence. Source: lparallel's `pmapl`."""
    _mapped("pmapl", task, _tails((first, *sequences), size), parts, progress=progress)
    return first


def pmapcon(
    task: Callable[..., Iterable[T]] | str,
    *sequences: Iterable[object],
    size: int | None = None,
    parts: int | None = None,
    progress: bool = False,
) -> list[T]:
    """As `pmaplist`, where the results are sequences, joined to one list. Source: lparallel's `pmapcon`."""
    results = _mapped("pmapcon", task, _tails(sequences, size), parts, progress=progress)
    return list(itertools.chain.from_iterable(results))


def pmaplist_into(
    result: M,
    task: Callable[..., object] | str,
    *sequences: Iterable[object],
    size: int | None = None,
    parts: int | None = None,
    progress: bool = False,
) -> M:
    """As `pmaplist`, with the results put in front of `result`, as `pmap_into` does. Source: lparallel's."""
    _check_size(size)
    room = len(result) if size is None else min(size, len(result))
    return _put(result, _mapped("pmaplist_into", task, _tails(sequences, room), parts, progress=progress))


def _tails(sequences: tuple[Iterable[object], ...], size: int | None) -> list[Row]:
    if not sequences:
        raise TypeError("at least one sequence is needed")
    _check_size(size)
    held = [one if isinstance(one, Sequence) and not isinstance(one, range) else list(one) for one in sequences]
    count = min(map(len, held))
    count = count if size is None else min(size, count)
    return [tuple(one[start:] for one in held) for start in range(count)]


def pdotimes(n: int, task: Callable[[int], object] | str, *, parts: int | None = None, progress: bool = False) -> None:
    """Call `task` with each number from 0 to `n` - 1, for what it does. Source: lparallel's `pdotimes`."""
    _mapped("pdotimes", task, [(i,) for i in range(operator.index(n))], parts, progress=progress)


# --- tasks without arguments ----------------------------------------------------------------------------------------


def pfuncall(task: Callable[..., T] | str, /, *thunks: Callable[[], object] | str) -> T:
    """Run the thunks in parallel, then `task` with their values, on the servers. Source: lparallel's `pfuncall`."""
    with Siblings() as siblings:
        values = siblings.results([siblings.submit(thunk) for thunk in thunks])
        return siblings.submit(task, *values).result()


def pand(*tasks: Callable[[], object] | str) -> object:
    """Run tasks without arguments in parallel; return a false value as soon as one gives it, else the last one's value.

    Those that are not done then are cancelled. Without tasks it is True. Source: lparallel's `pand`.
    """
    return _decided(tasks, decisive=False)


def por(*tasks: Callable[[], object] | str) -> object:
    """Run tasks without arguments in parallel; return a true value as soon as one gives it, else the last one's value.

    Those that are not done then are cancelled. Without tasks it is False. Source: lparallel's `por`.
    """
    return _decided(tasks, decisive=True)


def _decided(tasks: tuple[Callable[[], object] | str, ...], *, decisive: bool) -> object:
    with Siblings() as siblings:
        futures = [siblings.submit(task) for task in tasks]
        found = siblings.first(futures, lambda value: bool(value) is decisive)
        if found is not None:
            return found[1]
        return futures[-1].result() if futures else not decisive
