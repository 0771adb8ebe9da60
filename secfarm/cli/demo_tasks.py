"""The demo's tasks, as a user would write them. Nothing here knows of servers, keys or batches.

`secfarm demo` copies this file out of the package before it loads it: what lies inside of secfarm is expected on every
server and would travel by name, and the demo is to send source.
"""

from __future__ import annotations

import ast
import re
import warnings
from typing import TypedDict

from secfarm.farm.deftask import deftask

KEPT = 5  # how many of the longest functions are kept


class Survey(TypedDict):
    """What is counted of some files."""

    files: int
    unparsed: int  # of these
    lines: int
    words: int
    functions: int
    identifiers: dict[str, int]
    longest: list[tuple[int, str]]  # lines, then where and what


def first(functions: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Return the longest ones; of equally long ones those that come first by name."""
    return sorted(functions, key=lambda function: (-function[0], function[1]))[:KEPT]


@deftask
def survey(path: str, text: str) -> Survey:
    """Count one file: parse it, walk its syntax tree, measure its functions."""
    unparsed = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the file's own style
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError):  # a template, or meant for another Python
            tree, unparsed = ast.Module([], []), 1
    identifiers: dict[str, int] = {}
    functions = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            identifiers[node.id] = identifiers.get(node.id, 0) + 1
        elif isinstance(node, ast.Attribute):
            identifiers[node.attr] = identifiers.get(node.attr, 0) + 1
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            functions.append(((node.end_lineno or node.lineno) - node.lineno + 1, f"{path}:{node.lineno} {node.name}"))
    return {
        "files": 1,
        "unparsed": unparsed,
        "lines": text.count("\n"),
        "words": len(re.findall(r"\w+", text)),
        "functions": len(functions),
        "identifiers": identifiers,
        "longest": first(functions),
    }


@deftask
def merge(surveys: list[Survey]) -> Survey:
    """Add surveys up."""
    identifiers: dict[str, int] = {}
    for one in surveys:
        for name, count in one["identifiers"].items():
            identifiers[name] = identifiers.get(name, 0) + count
    return {
        "files": sum(one["files"] for one in surveys),
        "unparsed": sum(one["unparsed"] for one in surveys),
        "lines": sum(one["lines"] for one in surveys),
        "words": sum(one["words"] for one in surveys),
        "functions": sum(one["functions"] for one in surveys),
        "identifiers": identifiers,
        "longest": first([function for one in surveys for function in one["longest"]]),
    }
