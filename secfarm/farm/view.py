"""A kernel with settings: `Kernel.options`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ParamSpec, TypeVar, cast

from secfarm.farm.current import task_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from secfarm.farm.future import Future, Options
    from secfarm.farm.kernel import Kernel

P = ParamSpec("P")
T = TypeVar("T")


class KernelView:
    """A kernel with settings for what is submitted through it; see `Kernel.options`."""

    def __init__(self, kernel: Kernel, settings: dict[str, object]) -> None:
        self._kernel = kernel
        self._settings = {name: value for name, value in settings.items() if value is not None}

    def _options(self, task: object) -> Options:
        """The settings of `task` with those of this view before them."""
        return replace(task_settings(task, None), **self._settings)  # type: ignore[arg-type]

    def submit(self, task: Callable[P, T] | str, /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """As `Kernel.submit`."""
        return cast("Future[T]", self._kernel._submit(task, args, kwargs, self._options(task)))  # noqa: SLF001

    def run(self, task: Callable[P, T] | str, /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Submit, wait, and return the result."""
        return self.submit(task, *args, **kwargs).result()

    def map(
        self,
        fn: Callable[..., T] | str,
        *iterables: Iterable[object],
        timeout: float | None = None,
        chunksize: int | None = None,
    ) -> Iterator[T]:
        """As `Kernel.map`."""
        return self._kernel._map(fn, iterables, timeout, chunksize, self._options(fn))  # noqa: SLF001
