"""Capture: a task becomes a program and the values that go with it, or is refused with the reason.

The program part is kept for the next time and checked against the live objects at each submit; values are read anew.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from inspect import CO_ASYNC_GENERATOR
from types import BuiltinFunctionType, CodeType, FunctionType, MethodDescriptorType, MethodType, WrapperDescriptorType
from typing import Final

from secfarm.errors import InvalidTaskError, ValueTransferError
from secfarm.task.importable import import_ref, public_name, told
from secfarm.task.program import NameProgram, Program, check_name, make_program
from secfarm.task.resolve import resolve
from secfarm.task.source import Recorded
from secfarm.task.watch import ROOT, Watch


@dataclass(frozen=True, slots=True)
class Captured:
    """What one submit sends of a task: the program, its captured values, and for each of those where it was found."""

    program: Program
    values: tuple[object, ...] = ()
    places: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Record:
    """What is kept for a code object: good as long as its namespace, its shape and every watch are the same.

    Attributes:
        requires: what the task asked for; a function and tasks of it share a code object.
        is_plain: nothing can have changed but the code and the namespace.
        captured: without values; those are read at each submit.
    """

    code: weakref.ref[CodeType]
    names: dict[str, object]
    shape: tuple[object, ...]
    requires: tuple[str, ...]
    watches: tuple[Watch, ...]
    is_plain: bool
    captured: Captured


_MAX_RECORDS: Final = 4096
_PLAIN: Final = (0, (), 0)

_records: dict[int, _Record] = {}


def capture(task: object) -> Captured:
    """Return what travels of `task`.

    Args:
        task: a function, lambda, deftask, installed function or class, or the name of one (`"operator.add"`, `"len"`).

    Raises:
        InvalidTaskError: it is none of these, or something that it names cannot travel.
    """
    function = task.function if isinstance(task, Recorded) else task
    if isinstance(function, FunctionType):
        code = function.__code__
        record = _records.get(id(code))
        if (
            record is not None
            and record.names is function.__globals__
            and record.code() is code
            and record.requires == (task.requires if isinstance(task, Recorded) else ())
        ):
            captured = _again(record, function)
            if captured is not None:
                return captured
        return _capture_function(task if isinstance(task, Recorded) else function, function)
    if isinstance(task, Recorded):
        resolved = resolve(task)
        return Captured(resolved.program, resolved.values, resolved.places)
    return _capture_name(task if isinstance(task, str) else _name_of(task))


def refuse_values(captured: Captured, error: ValueTransferError, encode: Callable[[object], bytes]) -> InvalidTaskError:
    """Return the error that names the variable whose value could not be encoded.

    Args:
        captured: what was to be sent.
        error: what encoding all its values raised.
        encode: encodes one value, to find out which it was.
    """
    for value, place in zip(captured.values, captured.places, strict=True):
        try:
            encode(value)
        except ValueTransferError as own:
            return InvalidTaskError(
                f"{place} cannot travel: {_reason(own, place)}; nothing was sent. Pass what the task needs of it as an "
                "argument, or make it inside of the task."
            )
    return InvalidTaskError(
        f"what `{captured.program.name}` captured cannot travel: {_reason(error, '')}; nothing was sent"
    )


def _reason(error: ValueTransferError, place: str) -> str:
    """Return what is wrong with a captured value, with the variable's name in the path where it has one."""
    reason = str(error).removesuffix("; nothing was sent")
    if reason.startswith("value "):
        return "it " + reason.removeprefix("value ")
    variable = re.match(r"(?:global variable|closure variable) `(\w+)`", place)
    return variable[1] + reason.removeprefix("value") if variable and reason.startswith("value") else reason


def _shape(function: FunctionType) -> tuple[object, ...]:
    """Return how many defaults and closure variables the function has, for the watches go by position."""
    defaults, keyword_defaults, closure = function.__defaults__, function.__kwdefaults__, function.__closure__
    if defaults is None and keyword_defaults is None and closure is None:
        return _PLAIN
    return len(defaults or ()), tuple(keyword_defaults or ()), len(closure or ())


def _again(record: _Record, function: FunctionType) -> Captured | None:
    """Return the known program with the values of now, None when something that it rests on has changed."""
    if record.shape != _shape(function):
        return None
    if record.is_plain:
        return record.captured
    values = []
    for watch in record.watches:
        value = watch.read(function)
        if watch.is_value:
            if type(value) is not watch.expected:
                return None
            values.append(value)
        elif value is not watch.expected and (watch.expected is not ROOT or value is not function):
            return None
    return Captured(record.captured.program, tuple(values), record.captured.places) if values else record.captured


def _capture_function(task: FunctionType | Recorded, function: FunctionType) -> Captured:
    if import_ref(function) is not None:
        return _capture_name(public_name(function))
    if function.__code__.co_flags & CO_ASYNC_GENERATOR:
        raise InvalidTaskError(
            f"`{function.__qualname__}` is an asynchronous generator, which has no result; nothing was sent. Gather "
            "what it yields in an `async def` and return that."
        )
    resolved = resolve(task)
    if len(_records) >= _MAX_RECORDS:
        _records.clear()
    _records[id(function.__code__)] = _Record(
        code=weakref.ref(function.__code__),
        names=function.__globals__,
        shape=_shape(function),
        requires=task.requires if isinstance(task, Recorded) else (),
        watches=resolved.watches,
        is_plain=not resolved.watches,
        captured=Captured(resolved.program, (), resolved.places),
    )
    return Captured(resolved.program, resolved.values, resolved.places)


@lru_cache(maxsize=1024)
def _capture_name(name: str) -> Captured:
    return Captured(make_program(NameProgram(check_name(f"builtins:{name}" if name.isidentifier() else name))))


def _name_of(task: object) -> str:
    """Return the public name of something callable that is not a plain function.

    Raises:
        InvalidTaskError: it has none.
    """
    if callable(task) and import_ref(task) is not None:
        return public_name(task)
    advice = "write a lambda that calls it, with the data that it needs as arguments"
    if isinstance(task, type | BuiltinFunctionType | MethodDescriptorType | WrapperDescriptorType):
        raise InvalidTaskError(f"{told(task)} is nothing that an installed module offers; nothing was sent; {advice}")
    if isinstance(task, MethodType):
        raise InvalidTaskError(
            f"{told(task)} is a bound method: its object would stay here; nothing was sent; {advice}"
        )
    if callable(task):
        raise InvalidTaskError(f"{told(task)} is a callable object and not a function; nothing was sent; {advice}")
    raise InvalidTaskError(
        f"{told(task)} is not a task: that is a function, a lambda, a deftask or the name of a function; nothing was "
        "sent"
    )
