"""Promises: values that are still to come, from a server, from another thread, or from a computation put off.

A future is computed on the current kernel, a promise is given its value by somebody, a delay computes its value here
when it is first wanted. `force` waits for any of them. Source: lparallel's promises (src/promise.lisp)
and lfarm's (lfarm-client/promise.lisp): the names and meanings are theirs, the values Python's.
"""

from __future__ import annotations

import concurrent.futures
import inspect
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Final, Generic, ParamSpec, TypeVar, cast, overload

from secfarm.farm.current import check_kernel, task_priority
from secfarm.farm.siblings import Siblings
from secfarm.task.source import Recorded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from secfarm.farm.future import Future

P = ParamSpec("P")
T = TypeVar("T")

_NOTHING: Final = object()


class Promise(Generic[T]):
    """A value that somebody will give, once. Safe for several threads. Source: lparallel's `promise`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._given = threading.Event()
        self._value: T | None = None

    def fulfill(self, value: T) -> bool:
        """Give it its value; return False, and change nothing, when it has one."""
        with self._lock:
            if self._given.is_set():
                return False
            self._value = value
            self._given.set()
            return True

    @property
    def fulfilled(self) -> bool:
        """Whether it has its value."""
        return self._given.is_set()

    def force(self) -> T:
        """Wait until it has its value, and return that."""
        self._given.wait()
        return cast("T", self._value)

    def __repr__(self) -> str:
        return f"<secfarm.Promise: {'fulfilled' if self.fulfilled else 'open'}>"


class Delay(Generic[T]):
    """A computation that is put off until its value is first wanted, and then done once. Source: lparallel's `delay`.

    It runs here, in the thread that forces it; other threads that want it wait. An error that it raises is kept and
    raised each time it is forced.
    """

    def __init__(self, function: Callable[[], T]) -> None:
        if not callable(function):
            raise TypeError(f"delay takes a function without arguments, not {type(function).__name__} {function!r}")
        self._lock = threading.RLock()
        self._function: Callable[[], T] | None = function
        self._computing = False
        self._value: T | None = None
        self._error: Exception | None = None

    def fulfill(self, value: T) -> bool:
        """Give it a value, so that it is never computed; return False when it has one, or an error."""
        if not self._lock.acquire(blocking=False):
            return False  # another thread computes it
        try:
            if self._function is None or self._computing:
                return False
            self._function, self._value = None, value
            return True
        finally:
            self._lock.release()

    @property
    def fulfilled(self) -> bool:
        """Whether it has its value, or its error."""
        return self._function is None

    def force(self) -> T:
        """Return the value, computed now if this is the first time.

        Raises:
            RuntimeError: its own computation wants it.
        """
        with self._lock:
            if self._function is not None:
                self._compute(self._function)
            if self._error is not None:
                raise self._error
            return cast("T", self._value)

    def _compute(self, function: Callable[[], T]) -> None:
        if self._computing:
            raise RuntimeError("a delay was forced by its own computation, which would never end")
        self._computing = True
        try:
            self._value = function()
        except Exception as error:  # noqa: BLE001 - whatever it raised is raised each time; an interrupt is not its own
            self._error = error
        finally:
            self._computing = False
        self._function = None

    def __repr__(self) -> str:
        return f"<secfarm.Delay: {'fulfilled' if self.fulfilled else 'open'}>"


class Chain:
    """What `chain` returns."""

    __slots__ = ("link",)

    def __init__(self, link: object) -> None:
        self.link = link

    def __repr__(self) -> str:
        return f"<secfarm chain to {self.link!r}>"


def future(task: Callable[P, T] | str, /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    """Submit a task to the current kernel and return its future. Source: lparallel's `future`.

    Raises:
        NoKernelError: there is no current kernel.
        InvalidTaskError: the task cannot travel.
    """
    return check_kernel().submit(task, *args, **kwargs)


def speculate(task: Callable[P, T] | str, /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    """As `future`, with low priority: it runs when nothing else waits. Source: lparallel's `speculate`."""
    with task_priority("low"):
        return check_kernel().submit(task, *args, **kwargs)


def promise() -> Promise[object]:
    """Return a promise that `fulfill` gives its value. Source: lparallel's `promise`."""
    return Promise()


def delay(function: Callable[[], T]) -> Delay[T]:
    """Put off a computation until it is forced; see `Delay`."""
    return Delay(function)


def chain(link: object) -> Chain:
    """Link two promises: to force the chain is to force `link`, and whatever promise that yields in turn.

    A promise or delay whose value is a chain is followed too, while one whose value is a plain promise yields that
    promise. Source: lparallel's `chain`.
    """
    return Chain(link)


def force(value: object) -> object:
    """Return the value of a future, promise, delay or chain, waiting for it; anything else is returned as it is.

    An error is raised every time. Source: lparallel's `force`.
    """
    value = _forced(value)
    while isinstance(value, Chain):
        value = _forced(value.link)
        while _is_promise(value):
            value = _forced(value)
    return value


def fulfill(promised: object, value: object) -> bool:
    """Give a promise, or a delay that was not forced, its value; return whether that was done.

    It is not for one that has its value, for a future, which only its task fulfils, and for what is no promise.
    Source: lparallel's `fulfill`, which evaluates its form only when it is used; here `value` is a value.
    """
    while isinstance(promised, Chain):
        promised = promised.link
    return isinstance(promised, Promise | Delay) and promised.fulfill(value)


def fulfilledp(value: object) -> bool:
    """Whether to force `value` would return, or raise, at once; True for what is no promise. Source: lparallel's."""
    followed = False
    while _is_promise(value) or isinstance(value, Chain):
        if isinstance(value, Chain):
            value, followed = value.link, True
            continue
        if not (value.done() if isinstance(value, concurrent.futures.Future) else _fulfilled(value)):
            return False
        value = _peek(value)
        if not (followed or isinstance(value, Chain)):
            return True
    return True


def _is_promise(value: object) -> bool:
    return isinstance(value, Promise | Delay | concurrent.futures.Future)


def _forced(value: object) -> object:
    if isinstance(value, concurrent.futures.Future):
        return value.result()
    return value.force() if isinstance(value, Promise | Delay) else value


def _fulfilled(value: object) -> bool:
    return isinstance(value, Promise | Delay) and value.fulfilled


def _peek(value: object) -> object:
    """Return what a fulfilled promise yields, and None where that is an error."""
    try:
        return _forced(value)
    except (Exception, concurrent.futures.CancelledError):  # noqa: BLE001 - whatever was raised, it was there at once
        return None


# --- plet -----------------------------------------------------------------------------------------------------------


@overload
def plet(*tasks: Callable[[], T] | str) -> tuple[T, ...]: ...
@overload
def plet(**tasks: Callable[[], object] | str) -> SimpleNamespace: ...
def plet(*tasks: Callable[[], object] | str, **named: Callable[[], object] | str) -> object:
    """Run tasks without arguments in parallel and return their values: a tuple, or for named ones a namespace.

    `area, border = plet(lambda: 3 * 4, lambda: 2 * (3 + 4))`; `plet(x=task, y=task).x`. When one fails its error is
    raised and the others are cancelled. Source: lparallel's `plet`, whose variables are forced when they are used;
    here all values are there when it returns.

    Raises:
        TypeError: some tasks are named and some are not.
        NoKernelError: there is no current kernel.
    """
    ordered = _ordered(tasks, named)
    with Siblings() as siblings:
        values = siblings.results([siblings.submit(task) for task in ordered])
    return _bound(values, named)


@overload
def plet_if(predicate: object, /, *tasks: Callable[[], T] | str) -> tuple[T, ...]: ...
@overload
def plet_if(predicate: object, /, **tasks: Callable[[], object] | str) -> SimpleNamespace: ...
def plet_if(predicate: object, /, *tasks: Callable[[], object] | str, **named: Callable[[], object] | str) -> object:
    """As `plet` when `predicate` is true; else call the tasks here, one after the other. Source: lparallel's `plet-if`.

    What cannot be called here as it would be there (a name, a task from text alone, a generator or coroutine function)
    runs on the kernel in either case, in its turn.

    Args:
        predicate: a truth value, or a function without arguments that gives one.
    """
    ordered = _ordered(tasks, named)
    if predicate() if callable(predicate) else predicate:
        return plet(*tasks, **named)
    return _bound([_called(task) for task in ordered], named)


def _ordered(
    tasks: tuple[Callable[[], object] | str, ...], named: dict[str, Callable[[], object] | str]
) -> Sequence[Callable[[], object] | str]:
    if tasks and named:
        raise TypeError("either all tasks are named or none is: one result cannot be a tuple and a namespace")
    return tuple(named.values()) or tasks


def _bound(values: list[object], named: dict[str, Callable[[], object] | str]) -> object:
    return SimpleNamespace(**dict(zip(named, values, strict=True))) if named else tuple(values)


def _called(task: object) -> object:
    function = task.function if isinstance(task, Recorded) else task
    if callable(function) and not (inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function)):
        return function()
    return check_kernel().submit(cast("Callable[[], object] | str", task)).result()
