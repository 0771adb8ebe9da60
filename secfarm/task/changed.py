"""Changed: functions and classes of the user's own that stand in installed modules and classes, put there at run time.

A server imports what is installed; there the same name would be the original.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from types import FunctionType, ModuleType

from secfarm.errors import InvalidTaskError
from secfarm.task.importable import is_installed_module

__all__ = ["Owner", "unchanged"]

Owner = ModuleType | type


def unchanged(owner: Owner, words: Collection[str]) -> Iterator[tuple[type | ModuleType, str, object]]:
    """Yield what may be called of an installed module or class by these words: where it stands, its name, itself.

    Raises:
        InvalidTaskError: one of them is the user's own.
    """
    places: Collection[Owner] = owner.__mro__ if isinstance(owner, type) else (owner,)
    for place in places:
        for name in sorted(set(words).intersection(vars(place))):
            value = vars(place)[name]
            if _is_own(value):
                title = "class" if isinstance(place, type) else "module"
                raise InvalidTaskError(
                    f"`{name}` of the {title} `{place.__name__}` is your own here and would be the original on a "
                    "server; nothing was sent. Call your own function by its own name."
                )
            if callable(value):
                yield place, name, value


def _is_own(value: object) -> bool:
    if isinstance(value, staticmethod | classmethod):
        value = value.__func__
    if isinstance(value, FunctionType):
        names = value.__globals__
        module = _module(names.get("__name__"))
        return module is not None and vars(module) is names and not is_installed_module(module)
    if isinstance(value, type):
        module = _module(value.__module__)
        return module is not None and not is_installed_module(module)
    return False


def _module(name: object) -> ModuleType | None:
    found = sys.modules.get(name) if isinstance(name, str) else None
    return found if isinstance(found, ModuleType) else None
