"""Helpers of capture tests: modules from text, and a task's way to a server and back without a wire."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import sys
from types import CoroutineType, GeneratorType, ModuleType
from typing import TYPE_CHECKING

from secfarm.run.compiler import Prepared
from secfarm.task import codec
from secfarm.task.capture import capture
from secfarm.task.program import decode_program

if TYPE_CHECKING:
    from pathlib import Path

_number = itertools.count()


def load(folder: Path, text: str | bytes, name: str | None = None) -> ModuleType:
    """Write a module into `folder` and import it, as a user's own; bytes are written as they are."""
    name = name or f"module_{next(_number)}"
    file = folder / f"{name}.py"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_file(file, name)


def load_file(file: Path, name: str) -> ModuleType:
    """Import a file under a name."""
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def prepare(task: object) -> tuple[Prepared, list[object]]:
    """Return what a worker makes of the bytes that a client sends for `task`."""
    captured = capture(task)
    values = codec.decode(codec.encode(list(captured.values)))
    assert isinstance(values, list)
    return Prepared(decode_program(captured.program.wire)), values


def remote(task: object, *args: object, **kwargs: object) -> object:
    """Run a task as a worker does."""
    prepared, values = prepare(task)
    return finish(prepared.bind(values, {})(*args, **kwargs))


def finish(result: object) -> object:
    """Return what a worker sends for a result: a generator's items, a coroutine's result."""
    if isinstance(result, GeneratorType):
        return list(result)
    return asyncio.run(result) if isinstance(result, CoroutineType) else result
