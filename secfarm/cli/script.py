"""A user's file as a module of this process, and the one function of it that was asked for.

The file is run here, as importing it would: it is the user's own. Its `if __name__ == "__main__":` part is not.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import FunctionType

import click

from secfarm.errors import InvalidTaskError, SecfarmError
from secfarm.farm.deftask import Task


def task_of_file(word: str) -> Callable[..., object]:
    """Return the function that `FILE.py::FUNCTION` or `FILE.py` names, see `choose_task`.

    Raises:
        click.UsageError: there is nothing behind the colons.
        InvalidTaskError: there is no such file or function, or the file cannot be run.
    """
    name, colons, function = word.partition("::")
    if colons and not function:
        raise click.UsageError(f"{word} names no function; write {name}::FUNCTION, or {name} alone")
    file = Path(name)
    return choose_task(load_script(file), function, file)


def load_script(file: Path) -> Mapping[str, object]:
    """Return the names that the file defines; those that it imports are found beside it, as `python FILE` would.

    Raises:
        InvalidTaskError: there is no such file, or running it failed.
    """
    path = file.absolute()
    if not path.is_file():
        raise InvalidTaskError(f"there is no file {file}; nothing was sent")
    name = re.sub(r"\W", "_", path.stem)
    if name in sys.modules or name in sys.stdlib_module_names:
        name = f"{name}_script"  # a file named json.py must not become the module json
    loader = SourceFileLoader(name, str(path))
    spec = importlib.util.spec_from_loader(name, loader)
    if spec is None:
        raise InvalidTaskError(f"{file} cannot be loaded; nothing was sent")
    module = importlib.util.module_from_spec(spec)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.path.insert(0, str(path.parent))
    sys.modules[name] = module
    try:
        loader.exec_module(module)
    except SecfarmError:
        raise
    except (Exception, SystemExit) as error:
        raise InvalidTaskError(
            f"{file} cannot be loaded here: {type(error).__name__}: {error}{_place(error, path)}; nothing was sent"
        ) from error
    finally:
        sys.dont_write_bytecode = before
    return vars(module)


def _place(error: BaseException, path: Path) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f" (line {lines[-1]})" if lines else ""


def choose_task(names: Mapping[str, object], wanted: str, file: Path) -> Callable[..., object]:
    """Return the function `wanted`; where that is empty `main`, else the only one that the file defines.

    Raises:
        InvalidTaskError: there is none, or there are several.
    """
    own = {name: value for name, value in names.items() if _is_defined_in(value, file)}
    if not wanted:
        wanted = "main" if "main" in own or len(own) != 1 else next(iter(own))
    task = names.get(wanted)
    if not callable(task):
        there = f"it defines {', '.join(sorted(own))}" if own else "it defines no function"
        raise InvalidTaskError(f"{file} has no function {wanted}: {there}; name one as {file}::FUNCTION")
    return task


def _is_defined_in(value: object, file: Path) -> bool:
    function = value.function if isinstance(value, Task) else value
    if isinstance(function, FunctionType):
        return function.__code__.co_filename == str(file.absolute())
    return isinstance(value, Task)  # made by task_from_source: its text is in no file
