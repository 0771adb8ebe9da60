"""`@deftask`: what task/deftask.py records of a function, with `submit` on the current kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, cast, overload

from secfarm.farm.current import check_kernel
from secfarm.task import deftask as recorded
from secfarm.task.requirement import parse_requirements

if TYPE_CHECKING:
    from secfarm.farm.future import Future

P = ParamSpec("P")
T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)


class Task(recorded.Task[P, R_co]):
    """A function that can be sent, and still be called here. Made by `deftask` and `task_from_source`."""

    __slots__ = ()

    def submit(self, /, *args: P.args, **kwargs: P.kwargs) -> Future[R_co]:
        """Submit it to the current kernel; see `Kernel.submit`.

        Raises:
            NoKernelError: there is none.
        """
        return check_kernel().submit(cast("Callable[P, R_co]", self), *args, **kwargs)


@overload
def deftask(function: Callable[P, T], /) -> Task[P, T]: ...
@overload
def deftask(
    *,
    timeout_s: float | None = None,
    category: str | None = None,
    priority: Literal["default", "low"] | None = None,
    name: str | None = None,
    requires: Sequence[str] = (),
) -> Callable[[Callable[P, T]], Task[P, T]]: ...
def deftask(
    function: Callable[P, T] | None = None,
    /,
    *,
    timeout_s: float | None = None,
    category: str | None = None,
    priority: Literal["default", "low"] | None = None,
    name: str | None = None,
    requires: Sequence[str] = (),
) -> Task[P, T] | Callable[[Callable[P, T]], Task[P, T]]:
    """Make a function a task: `@deftask`, or `@deftask(timeout_s=5, category="etl", priority="low", name="add")`.

    Called, it runs here as before. Submitted, its source text and that of every function it names travels.
    Source: lfarm's deftask (lfarm-client/promise.lisp).

    Args:
        timeout_s: seconds after which a run of it is killed.
        category: what `kill_tasks` knows it by.
        priority: `low` runs when nothing of `default` waits.
        name: for logs and listings.
        requires: distributions that a server must have before anything of it runs: `["numpy>=2,<3"]`.

    Raises:
        InvalidTaskError: it is not a plain function, a setting is out of range, or a requirement is malformed.
    """
    if function is not None:
        return Task(function)
    requirements = parse_requirements(requires)
    return lambda later: Task(
        later, timeout_s=timeout_s, category=category, priority=priority, name=name, requires=requirements
    )


def task_from_source(text: str) -> Task[..., Any]:
    """Return a task from the text of one function; the text is recorded, and not compiled here (lfarm's deftask*).

    Raises:
        InvalidTaskError: the text is not exactly one `def`, `async def` or lambda without decorators.
    """
    return cast("Task[..., Any]", recorded.task_from_source(text, task_class=Task))
