"""The standard library as a check: every function of it is found, and none that is found is wrong."""

from __future__ import annotations

import argparse
import ast
import asyncio.base_events
import contextlib
import dataclasses
import email.message
import enum
import inspect
import typing
import unittest.mock
from collections.abc import Iterator
from pathlib import Path
from types import CellType, FunctionType, ModuleType

import pytest

from secfarm.task.source import find_source, nested_code
from secfarm.task.template import compile_function, same_code

# Few, for the time; among them what has nested classes, closures, decorators, coroutines and names of `super`.
SAMPLE = (argparse, asyncio.base_events, contextlib, dataclasses, email.message, enum, typing, unittest.mock)


def functions_of(module: ModuleType) -> Iterator[FunctionType]:
    """Yield a function for every code object of a module's file that a `def` or a lambda has made."""
    assert module.__file__ is not None
    text = Path(module.__file__).read_bytes()
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    defined = {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)} | {"<lambda>"}
    for code in nested_code(compile(text, module.__file__, "exec", dont_inherit=True)):
        if code.co_name in defined and code.co_flags & inspect.CO_OPTIMIZED:
            cells = tuple(CellType() for _ in code.co_freevars)
            yield FunctionType(code, {"__name__": module.__name__}, None, None, cells)


@pytest.mark.parametrize("module", SAMPLE, ids=lambda module: module.__name__)
def test_every_function_of_the_standard_library_is_found_exactly(module: ModuleType) -> None:
    count = 0
    for function in functions_of(module):
        found = find_source(function)
        place = found.place
        assert (
            same_code(compile_function(found.function, place.file, place.line, place.column), function.__code__) is None
        )
        assert place.line >= function.__code__.co_firstlineno
        count += 1
    assert count > 20
