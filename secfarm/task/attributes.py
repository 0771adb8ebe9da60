"""Attributes of functions and tasks that a program can reach as values: which of them some code of it asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Final

from secfarm.task.evaluated import is_dunder
from secfarm.task.program import Binding
from secfarm.task.source import Recorded
from secfarm.task.watch import MISSING, Read

__all__ = ["Held", "asked", "attribute", "attributes_of", "special_attributes", "special_default"]

_INSPECTORS: Final = frozenset({"__dict__", "dir", "getattr", "hasattr", "vars"})  # ask by names that no code shows
_SIGNATURES: Final = frozenset({"__annotations__", "signature", "get_type_hints", "get_annotations", "getfullargspec"})


@dataclass(slots=True)
class Held:
    """The attributes of a function object that the program can reach, and which of them travel."""

    index: int
    title: str
    function: Read
    attributes: Callable[[FunctionType | None], Mapping[str, object]]
    bound: dict[str, Binding]


def attributes_of(task: FunctionType | Recorded | None) -> Mapping[str, object]:
    """Return what was set on a function or task, without what functools.update_wrapper puts on a task."""
    if isinstance(task, Recorded):
        return {name: value for name, value in vars(task).items() if not is_dunder(name)}
    return {} if task is None else vars(task)


def asked(attributes: Mapping[str, object], words: frozenset[str]) -> frozenset[str]:
    """Return the attributes that code with these names can ask for."""
    if not attributes or not _INSPECTORS.isdisjoint(words):
        return frozenset(attributes)
    return words.intersection(attributes)


def attribute(held: Held, name: str) -> Read:
    """Return a reader of one of them."""
    return lambda root: held.attributes(root).get(name, MISSING)


def special_attributes(held: Held, words: frozenset[str]) -> list[tuple[str, Read]]:
    """Return readers of those attributes that every function has and that the program asks for."""
    names: list[str] = [name for name in ("__doc__", "__module__", "__name__", "__qualname__") if name in words]
    if _SIGNATURES.intersection(words):
        names.append("__annotations__")
    return [(name, lambda root, name=name: getattr(held.function(root), name)) for name in names]  # type: ignore[misc]


def special_default(function: FunctionType | None, label: str, name: str) -> object:
    """Return what such an attribute is on a server when nothing is said."""
    if function is None or name == "__annotations__":
        return {}
    code = function.__code__
    first = code.co_consts[0] if code.co_consts else None
    documentation = first if isinstance(first, str) else None
    defaults: dict[str, object] = {
        # Since Python 3.13 lines of it lose their indentation; a server's may be another Python.
        "__doc__": MISSING if documentation is not None and "\n" in documentation else documentation,
        "__module__": label,
        "__name__": code.co_name,
        "__qualname__": code.co_qualname,
    }
    return defaults[name]
