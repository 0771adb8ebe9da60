"""Watch: where a captured value was found, and how to read the place again at the next submit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import CellType, FunctionType
from typing import Final


class Marker:
    """A name for what is no object of the user's."""


MISSING: Final = Marker()  # a name or cell without a value
ROOT: Final = Marker()  # the function itself that is captured: a lambda is another object each time it is made

Read = Callable[[FunctionType | None], object]


@dataclass(frozen=True, slots=True)
class Watch:
    """One place that was looked at.

    Attributes:
        read: reads it again; takes the function that is captured then.
        expected: the object to find there; for a value its type, for that alone decides how it travels.
    """

    read: Read
    expected: object
    is_value: bool


def closure_of(function: FunctionType | None) -> tuple[CellType, ...]:
    """Return the cells of a function's closure variables."""
    return (function.__closure__ or ()) if function is not None else ()


def read_global(names: dict[str, object], fallback: Mapping[str, object], name: str) -> Read:
    """Return how a global name is read: from its namespace, then from the built-ins, else `MISSING`."""
    return lambda _: names[name] if name in names else fallback.get(name, MISSING)


def read_own_cell(position: int) -> Read:
    """Return how a cell, not its value, of the captured function is read."""
    return lambda root: closure_of(root)[position]


def read_cell(cell: CellType | None, position: int) -> Read:
    """Return how a closure variable is read; without a cell, that of the captured function at `position`."""

    def read(root: FunctionType | None) -> object:
        own = closure_of(root)[position] if cell is None else cell
        try:
            contents: object = own.cell_contents
        except ValueError:
            return MISSING
        return contents

    return read


def read_default(function: FunctionType | None, position: int) -> Read:
    """Return how a default is read, of the captured function when `function` is None."""

    def read(root: FunctionType | None) -> object:
        chosen = function or root
        return chosen.__defaults__[position] if chosen is not None and chosen.__defaults__ else MISSING

    return read


def read_keyword(function: FunctionType | None, name: str) -> Read:
    """Return how a keyword-only default is read, of the captured function when `function` is None."""

    def read(root: FunctionType | None) -> object:
        chosen = function or root
        return chosen.__kwdefaults__.get(name, MISSING) if chosen is not None and chosen.__kwdefaults__ else MISSING

    return read
