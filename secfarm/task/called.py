"""Called: the names that a function's text uses for nothing but calling what they stand for."""

from __future__ import annotations

import ast
from typing import Final

from secfarm.task.source import Found
from secfarm.task.template import parse_function

_BLIND: Final = frozenset({"dir", "globals", "locals", "vars"})  # give values of names that no text shows


def only_called(found: Found) -> frozenset[str]:
    """Return the names whose every occurrence in the text is that of the function in a call."""
    if not _BLIND.isdisjoint(found.loads):
        return frozenset()
    nodes = list(ast.walk(parse_function(found.function, found.place.line, found.place.column)))
    called = [node.func for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    as_function = set(map(id, called))
    others = {node.id for node in nodes if isinstance(node, ast.Name) and id(node) not in as_function}
    return frozenset(node.id for node in called) - others
