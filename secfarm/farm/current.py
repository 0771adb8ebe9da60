"""The current kernel, and the functions of lparallel's kernel API that use it."""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from typing import TYPE_CHECKING, Literal, TypeVar

from secfarm.errors import NoKernelError
from secfarm.farm.future import Options
from secfarm.task.deftask import Task
from secfarm.task.payload import Priority

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from secfarm.farm.kernel import Kernel

T = TypeVar("T")
K = TypeVar("K", "Kernel", None)

_process_wide: Kernel | None = None
# A context may have none where the process has one: what is not set is an empty tuple.
_in_context: ContextVar[tuple[Kernel | None, ...]] = ContextVar("secfarm kernel", default=())
_category: ContextVar[str | None] = ContextVar("secfarm category", default=None)
_priority: ContextVar[Priority | None] = ContextVar("secfarm priority", default=None)

_HELP = """there is no current kernel, so there is no server to run the task on; nothing was sent.
Make one first:
    with secfarm.local_kernel() as kernel: ...          # servers on this machine
    with secfarm.Kernel(["host:7419"]) as kernel: ...   # servers that run `secfarm serve`
or set one for the whole process: secfarm.set_kernel(secfarm.Kernel([...]))"""


def current_kernel() -> Kernel | None:
    """Return the kernel of this context, else that of the process, else None."""
    kernel, *_ = (*_in_context.get(), _process_wide)
    return None if kernel is None or kernel.closed else kernel


def check_kernel() -> Kernel:
    """Return the current kernel.

    Raises:
        NoKernelError: there is none.
    """
    kernel = current_kernel()
    if kernel is None:
        raise NoKernelError(_HELP)
    return kernel


def set_kernel(kernel: Kernel | None) -> Kernel | None:
    """Make `kernel` the current one of the process and return the one before; None takes it away. Ends nothing."""
    global _process_wide
    before, _process_wide = _process_wide, kernel
    return before


@contextlib.contextmanager
def use_kernel(kernel: K) -> Iterator[K]:
    """Make `kernel` the current one inside the block, for this thread or asyncio task only; None: there is none."""
    token = _in_context.set((kernel,))
    try:
        yield kernel
    finally:
        _in_context.reset(token)


def end_kernel(*, wait: bool = False) -> None:
    """Shut the current kernel down and leave none; twice is no error."""
    kernel = current_kernel()
    if kernel is not None:
        kernel.shutdown(wait=wait)
    if not _in_context.get():
        set_kernel(None)


def kernel_worker_count() -> int:
    """Workers of the current kernel."""
    return check_kernel().worker_count


def kernel_name() -> str:
    """Name of the current kernel."""
    return check_kernel().name


def broadcast_task(task: Callable[..., T] | str, /, *args: object, **kwargs: object) -> list[T]:
    """Run a task once on every worker of the current kernel; see `Kernel.broadcast`."""
    return check_kernel().broadcast(task, *args, **kwargs)


def kill_tasks(category: str, *, dry_run: bool = False) -> int:
    """Kill the running tasks of a category on the current kernel; see `Kernel.kill`."""
    return check_kernel().kill(category, dry_run=dry_run)


def task_categories_running() -> list[str | None]:
    """Return the category of each worker of the current kernel, None for an idle one."""
    return check_kernel().categories_running()


@contextlib.contextmanager
def task_category(category: str) -> Iterator[None]:
    """Give the tasks that are submitted inside the block a category.

    Raises:
        TypeError, ValueError: it is none.
    """
    Options(category=category)
    token = _category.set(category)
    try:
        yield
    finally:
        _category.reset(token)


@contextlib.contextmanager
def task_priority(priority: Literal["default", "low"]) -> Iterator[None]:
    """Give the tasks that are submitted inside the block a priority.

    Raises:
        ValueError: it is another word.
    """
    token = _priority.set(priority_of(priority))
    try:
        yield
    finally:
        _priority.reset(token)


def priority_of(word: str) -> Priority:
    """Return the priority that is called so.

    Raises:
        ValueError: none is.
    """
    if word not in ("default", "low"):
        raise ValueError(f'priority is "default" or "low", not {word!r}; nothing was sent')
    return Priority[word.upper()]


_DEFAULT = Options()


def task_settings(task: object, options: Options | None) -> Options:
    """Return the settings for one submission: those given, else the context's over the deftask's own."""
    if options is not None:
        return options
    category, priority = _category.get(), _priority.get()
    if not isinstance(task, Task):
        if category is None and priority is None:
            return _DEFAULT
        return Options(category="default" if category is None else category, priority=priority or Priority.DEFAULT)
    own = task.options
    chosen = own.priority if priority is None else priority
    category = (own.category or "default") if category is None else category
    return Options(own.timeout_s, category, chosen or Priority.DEFAULT)
