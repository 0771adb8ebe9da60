"""Evaluated: code that looks names up where no code shows them, in text that it runs or in a dict of all globals."""

from __future__ import annotations

import builtins
import re
from collections.abc import Collection, Mapping
from types import FunctionType
from typing import Final

from secfarm.task.source import Found
from secfarm.task.watch import closure_of, read_cell

_BUILTINS: Final = frozenset({"builtins", "__builtins__"})
_EVALUATORS: Final = frozenset({"eval", "exec"})
_IDENTIFIER: Final = re.compile(r"[^\W\d]\w*")
_NAMESPACES: Final = frozenset({"__globals__", "f_globals"})

_evaluators: Final = tuple(vars(builtins)[name] for name in sorted(_EVALUATORS))


def namespace_asked_for(found: Found, held: Collection[object]) -> str | None:
    """Return by what a function may ask for all of its global names at once, None when it does not.

    Args:
        held: the objects that its global names stand for.
    """
    asked = set(_NAMESPACES.intersection(found.words))
    if "globals" in found.words and _reaches_builtins(found, held):
        asked.add("globals()")
    return min(asked, default=None)


def evaluates(found: Found, function: FunctionType | None, held: Collection[object]) -> bool:
    """Whether a function may call `eval` or `exec`, by whatever name."""
    if _EVALUATORS.intersection(found.loads):
        return True
    if _EVALUATORS.intersection(found.words) and _reaches_builtins(found, held):
        return True
    every = [*held, *(read_cell(cell, 0)(None) for cell in closure_of(function))]
    if function is not None:
        every += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    return any(value is evaluator for value in every for evaluator in _evaluators)


def _reaches_builtins(found: Found, held: Collection[object]) -> bool:
    return not _BUILTINS.isdisjoint(found.words) or any(value is builtins for value in held)


def evaluated_names(found: Found, names: Mapping[str, object], fallback: Mapping[str, object]) -> set[str]:
    """Return the names that `eval` and `exec` may look up: those in string constants, and all that hide a built-in.

    What else a text that is made at run time names is a NameError there; a hidden built-in would silently be
    another function.
    """
    written = {name for word in found.words for name in _IDENTIFIER.findall(word)}
    return {name for name in names if (name in written or name in fallback) and not is_dunder(name)}


def is_dunder(name: str) -> bool:
    """Whether it is one of Python's own names."""
    return name.startswith("__") and name.endswith("__")
