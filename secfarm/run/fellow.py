"""Fellow: what a task is to the code of another task that uses it as a value, and does not just call it by its name."""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from types import FunctionType, MethodType
from typing import Any, Final

from secfarm.errors import InvalidTaskError

_AT_CLIENT: Final = frozenset({"captured", "digest", "lines", "options", "requires", "source", "submit", "text"})


class Fellow:
    """A function with the looks of a task; what only a client can do with one is an error."""

    __slots__ = ("__dict__", "__weakref__", "function", "name")

    def __init__(self, function: FunctionType, name: str) -> None:
        self.function = function
        self.name = name

    def complete(self) -> None:
        """Take over what the function has, once it has all of it."""
        update_wrapper(self, self.function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - any function's
        """Call the function."""
        return self.function(*args, **kwargs)

    def __get__(self, instance: object, owner: type | None = None) -> Callable[..., object]:
        return self if instance is None else MethodType(self, instance)

    def __repr__(self) -> str:
        return f"<task {self.name}>"

    def __getattr__(self, asked: str) -> object:
        if asked in _AT_CLIENT:
            raise InvalidTaskError(
                f"`{asked}` of the task {self.name!r} is its client's; inside of a task it can only be called, named "
                "and passed on"
            )
        raise AttributeError(f"'Task' object has no attribute {asked!r}", name=asked, obj=self)


# `type(task)` and what is made of it read as at the client.
Fellow.__module__, Fellow.__qualname__, Fellow.__name__ = "secfarm.farm.deftask", "Task", "Task"
