"""Imports: the modules that a function's own `import` statements need. Syntax trees in, names out; nothing is imported.

A statement counts when it runs whatever the machine: not where the code around it is ready for the module's absence,
nor where it asks for the platform or the Python version first.
"""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Iterator, Sequence
from importlib.util import resolve_name
from typing import Final

from secfarm.task.program import is_dotted

# Whoever catches one of these lives without the module.
_CAUGHT: Final = frozenset({"ImportError", "ModuleNotFoundError", "Exception", "BaseException"})
# Names in the test of an `if` that say that the branches are for different machines.
_MACHINES: Final = frozenset({"TYPE_CHECKING", "find_spec", "implementation", "platform", "version_info"})


def needed_modules(body: Sequence[ast.stmt]) -> tuple[str, ...]:
    """Return what the import statements in a function's body name, sorted; relative ones begin with their dots.

    Functions and classes inside of it are looked into. Of `from a import b` it is `a`: only importing that could tell
    whether `b` is a module.
    """
    found: set[str] = set()
    # The walk keeps its own stack: statements nest deeper than Python's.
    stack: list[ast.AST] = list(body)
    while stack:
        node = stack.pop()
        match node:
            case ast.Import():
                found.update(alias.name for alias in node.names)
            case ast.ImportFrom():
                found.add("." * node.level + (node.module or ""))
            case ast.Try() | ast.TryStar() if any(map(_catches, node.handlers)):
                stack += node.finalbody  # a handler's own imports are what it does instead
            case ast.With() if any(_suppresses(item.context_expr) for item in node.items):
                pass
            case ast.If() if _is_constantly_false(node.test):
                stack += node.orelse
            case ast.If() if _asks_for_the_machine(node.test):
                pass
            case ast.stmt() | ast.excepthandler() | ast.match_case():
                stack += [child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr)]
    return tuple(sorted(found))


def absolute_names(modules: Sequence[str], label: str) -> Iterator[str]:
    """Yield the modules' names as a server's Python understands them, where `__name__` is `label` and no more is known.

    A relative one that leads out of the package is left to the statement itself, which fails.
    """
    package = label.rpartition(".")[0]
    for name in modules:
        with contextlib.suppress(ImportError):
            absolute = resolve_name(name, package)
            if is_dotted(absolute):
                yield absolute


def _catches(handler: ast.excepthandler) -> bool:
    if not isinstance(handler, ast.ExceptHandler):
        return False
    if handler.type is None:
        return True
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(_last_name(kind) in _CAUGHT for kind in kinds)


def _suppresses(manager: ast.expr) -> bool:
    """Whether it is `contextlib.suppress(ImportError)` or the like."""
    if not isinstance(manager, ast.Call) or _last_name(manager.func) != "suppress":
        return False
    return any(_last_name(argument) in _CAUGHT for argument in manager.args)


def _is_constantly_false(test: ast.expr) -> bool:
    return isinstance(test, ast.Constant) and not test.value


def _asks_for_the_machine(test: ast.expr) -> bool:
    names = [node for node in ast.walk(test) if isinstance(node, ast.Name | ast.Attribute)]
    return any(_last_name(node) in _MACHINES or ast.unparse(node) == "os.name" for node in names)


def _last_name(node: ast.expr) -> str:
    """`ImportError` of both `ImportError` and `builtins.ImportError`; empty for what is no name."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""
