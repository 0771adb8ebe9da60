"""Importable: by what public name a server can find the very object that a task names here.

Only modules of the standard library, built-in ones and installed ones count: what the user wrote goes as text. A name
is believed when importing it gives the same object, and else not at all.
"""

from __future__ import annotations

import importlib
import os
import site
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path
from types import BuiltinMethodType, FunctionType, MethodType, ModuleType
from typing import Final

from secfarm.errors import InvalidTaskError
from secfarm.task.program import ImportRef

# Modules that implement a public one under another name; what starts with an underscore is found by rule.
_PUBLIC: Final = {"posixpath": "os.path", "ntpath": "os.path", "posix": "os", "nt": "os"}
_MAX_TOLD_CHARS: Final = 200  # of a value, in a message


@cache
def _installed_folders() -> tuple[str, ...]:
    """Return the folders of the standard library, of installed packages and of secfarm itself."""
    paths = sysconfig.get_paths()
    folders = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders += [*site.getsitepackages(), site.getusersitepackages()]
    folders.append(str(Path(__file__).absolute().parents[1]))
    every = {os.path.normpath(folder) for folder in folders} | {os.path.realpath(folder) for folder in folders}
    return tuple(folder + os.sep for folder in every)


@lru_cache(maxsize=4096)
def is_installed_file(file: str) -> bool:
    """Whether code of this file is the interpreter's, an installed package's or secfarm's own."""
    if file.startswith("<frozen "):
        return True
    return Path(file).is_absolute() and os.path.normpath(file).startswith(_installed_folders())


def is_installed_module(module: ModuleType) -> bool:
    """Whether a server can be expected to have this module: it is not the user's own."""
    name = module.__name__
    if name == "__main__":
        return False
    if name in sys.builtin_module_names or getattr(module.__spec__, "origin", None) == "frozen":
        return True
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and is_installed_file(file)


def module_ref(module: ModuleType) -> ImportRef | None:
    """Return the name under which `module` itself is imported, None when it is not what that name gives here."""
    name = module.__name__
    for candidate in (_PUBLIC.get(name, name), name):
        if candidate != "__main__" and sys.modules.get(candidate) is module:
            return ImportRef(candidate)
    return None


def submodules(module: ModuleType, words: frozenset[str]) -> Iterator[str]:
    """Yield the names of the modules below `module` that code with these names can reach by attributes."""
    if not hasattr(module, "__path__"):
        return
    for word in sorted(words):
        below = vars(module).get(word)
        if isinstance(below, ModuleType) and sys.modules.get(f"{module.__name__}.{word}") is below:
            yield below.__name__
            yield from submodules(below, words)


def import_ref(value: object) -> ImportRef | None:
    """Return by what name an installed module gives `value` itself, None when none does.

    Public names are preferred: `_operator.add` is `operator:add`, `posixpath.join` is `os.path:join`.
    """
    if isinstance(value, FunctionType) and not is_installed_file(value.__code__.co_filename):
        return None  # functools.wraps gives the user's own functions the names of others
    found = _claimed_name(value)
    if found is None:
        return None
    module, qualname = found
    if "<" in qualname:
        return None
    return next((ImportRef(name, qualname) for name in _homes(module) if offers(name, qualname, value)), None)


def _claimed_name(value: object) -> tuple[str, str] | None:
    """Return module and qualified name that `value` says it has; nothing is believed yet."""
    if not isinstance(value, _NAMED) and not _is_installed_type(type(value)):
        return None  # the attributes of a user's object are the user's code
    name = getattr(value, "__name__", None)
    owner = getattr(value, "__self__", None)
    if isinstance(value, MethodType | BuiltinMethodType) and not isinstance(owner, ModuleType | None):
        if isinstance(owner, type):
            return _pair(owner.__module__, f"{owner.__qualname__}.{name}")
        return _pair(type(owner).__module__, name)  # random.randint is a method of a hidden instance
    scope = getattr(value, "__objclass__", None)
    if isinstance(scope, type):
        return _pair(scope.__module__, f"{scope.__qualname__}.{name}")
    module = getattr(value, "__module__", None)
    return _pair(module or type(value).__module__, getattr(value, "__qualname__", None) or name)


_NAMED: Final = (FunctionType, BuiltinMethodType, MethodType, type)


def _is_installed_type(kind: type) -> bool:
    module = sys.modules.get(kind.__module__)
    return module is not None and is_installed_module(module)


def _pair(module: object, qualname: object) -> tuple[str, str] | None:
    return (module, qualname) if isinstance(module, str) and isinstance(qualname, str) else None


def _homes(module: str) -> Iterator[str]:
    """Yield the modules that may offer what `module` defines, the public ones first."""
    if module in ("io", "_io"):
        yield "builtins"  # open
    if module in _PUBLIC:
        yield _PUBLIC[module]
    parts = module.split(".")
    private = next((index for index, part in enumerate(parts) if part.startswith("_")), None)
    if private is not None:
        yield ".".join(part.lstrip("_") for part in parts)
        if private:
            yield ".".join(parts[:private])
    yield module


def offers(module_name: str, qualname: str, value: object) -> bool:
    """Whether `qualname` in the installed module of that name is `value` itself."""
    module = sys.modules.get(module_name)
    if module is None and module_name.partition(".")[0] in sys.stdlib_module_names:
        try:
            module = importlib.import_module(module_name)
        except ImportError:
            return False
    if module is None or not is_installed_module(module):
        return False
    found: object = module
    for part in qualname.split("."):
        found = getattr(found, part, None)
        if found is None or (isinstance(found, ModuleType) and found is not value):
            return False
    # Methods are made anew at each access; equal ones have the same function and the same owner.
    return found is value or (isinstance(value, MethodType | BuiltinMethodType) and bool(found == value))


def told(value: object) -> str:
    """Return how messages name a value: as it shows itself, cut, or by its type where that fails."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - the user's own code may raise anything
        text = object.__repr__(value)
    return text if len(text) <= _MAX_TOLD_CHARS else f"{text[:_MAX_TOLD_CHARS]}..."


def public_name(value: object) -> str:
    """Return the name by which a server is asked for a function or class: `module:qualname`.

    Raises:
        InvalidTaskError: no installed module offers it under a public name.
    """
    reference = import_ref(value)
    if reference is None or any(part.startswith("_") for part in f"{reference.module}.{reference.qualname}".split(".")):
        raise InvalidTaskError(
            f"{told(value)} cannot be called by name: no installed module offers it under a public one; nothing was "
            "sent. Write a function or lambda that calls it."
        )
    return f"{reference.module}:{reference.qualname}"
