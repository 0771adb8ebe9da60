"""A kernel with settings: `Kernel.options`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, ParamSpec, TypeVar, cast

from secfarm.farm.channel import Channel
from secfarm.farm.current import task_settings
from secfarm.farm.future import Options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from secfarm.farm.future import Future
    from secfarm.farm.kernel import Kernel

P = ParamSpec("P")
T = TypeVar("T")


class KernelView:
    """A kernel with settings for what is submitted through it; see `Kernel.options`."""

    def __init__(self, kernel: Kernel, settings: dict[str, object]) -> None:
        self._kernel = kernel
        self._settings = {name: value for name, value in settings.items() if value is not None}
        Options(**self._settings)  # type: ignore[arg-type]  # raises where one is none

    def _options(self, task: object) -> Options:
        """The settings of `task` with those of this view before them."""
        return replace(task_settings(task, None), **self._settings)  # type: ignore[arg-type]

    def submit(self, task: Callable[P, T] | str, /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """As `Kernel.submit`."""
        return cast("Future[T]", self._kernel._submit(task, args, kwargs, self._options(task)))  # noqa: SLF001

    def run(
        self, task: Callable[..., T] | str, /, *args: object, timeout_s: float | None = None, **kwargs: object
    ) -> T:
        """As `Kernel.run`."""
        view = self if timeout_s is None else self.options(timeout_s=timeout_s)
        return view.submit(task, *args, **kwargs).result()

    def options(
        self,
        *,
        timeout_s: float | None = None,
        category: str | None = None,
        priority: Literal["default", "low"] | None = None,
        memory_bytes: int | None = None,
        on_output: Callable[[str, str], object] | None = None,
        on_progress: Callable[[float, float, str], object] | None = None,
    ) -> KernelView:
        """As `Kernel.options`, with the settings of this view where none is given."""
        view = self._kernel.options(
            timeout_s=timeout_s,
            category=category,
            priority=priority,
            memory_bytes=memory_bytes,
            on_output=on_output,
            on_progress=on_progress,
        )
        return KernelView(self._kernel, self._settings | view._settings)  # noqa: SLF001 - another view

    def map(
        self,
        fn: Callable[..., T] | str,
        *iterables: Iterable[object],
        timeout: float | None = None,
        chunksize: int | None = None,
    ) -> Iterator[T]:
        """As `Kernel.map`."""
        return self._kernel._map(fn, iterables, timeout, chunksize, self._options(fn))  # noqa: SLF001

    def channel(self, *, fixed_capacity: int | None = None) -> Channel:
        """As `Kernel.channel`; its tasks have the settings of this view."""
        return Channel(self._kernel, fixed_capacity=fixed_capacity, view=self)
