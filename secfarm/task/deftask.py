"""Tasks: `Task`, a function that knows its text and the settings it is submitted with. What `@deftask` makes.

It is still a function: calling it runs it here. `task_from_source` makes one from text alone, which is recorded and
parsed, and never compiled or run on this side.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType, MethodType
from typing import Final, Generic, ParamSpec, TypeVar, cast

import msgspec

from secfarm.errors import InvalidTaskError
from secfarm.task.capture import Captured, capture
from secfarm.task.importable import told
from secfarm.task.imports import needed_modules
from secfarm.task.payload import Priority
from secfarm.task.program import Function, FunctionKind, Place
from secfarm.task.requirement import parse_requirements
from secfarm.task.source import Found, Recorded, remember_lines
from secfarm.task.syntax import cut
from secfarm.task.template import parse

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)

_PRIORITIES: Final[Mapping[str, Priority]] = {"default": Priority.DEFAULT, "low": Priority.LOW}


class TaskOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a task's calls; None where the kernel's own settings decide.

    Attributes:
        timeout_s: seconds that it may run; its worker is killed then.
        category: what `kill_tasks` finds it by.
        priority: `low` runs when nothing else waits.
    """

    timeout_s: float | None = None
    category: str | None = None
    priority: Priority | None = None


class Task(Recorded, Generic[P, R_co]):
    """A function that can be submitted; called, it runs here.

    Args:
        function: a plain function or lambda, not yet wrapped by anything that is no function.
        name: what logs, listings and `Future`s call it; its own name by default.
        timeout_s: see `TaskOptions`.
        category: see `TaskOptions`.
        priority: `"default"` or `"low"`.
        requires: distributions that a server must have, with versions: `["numpy>=2"]`.

    Raises:
        InvalidTaskError: not a plain function, a setting that is out of range, or a malformed requirement.
    """

    __slots__ = ("name", "options")

    def __init__(
        self,
        function: Callable[P, R_co],
        *,
        name: str | None = None,
        timeout_s: float | None = None,
        category: str | None = None,
        priority: str | None = None,
        requires: Sequence[str] = (),
    ) -> None:
        if not isinstance(function, FunctionType):
            raise InvalidTaskError(
                f"deftask takes a function and got {type(function).__name__} {told(function)}; put @deftask directly "
                "above the `def`, below decorators that return other objects"
            )
        super().__init__(function, lines=remember_lines(function), requires=parse_requirements(requires))
        functools.update_wrapper(self, function)
        self._set(name or function.__name__, timeout_s, category, priority)

    def _set(self, name: str, timeout_s: float | None, category: str | None, priority: str | None) -> None:
        if timeout_s is not None and not timeout_s > 0:
            raise InvalidTaskError(f"timeout_s of {name!r} is {timeout_s}; it is a number of seconds above 0, or None")
        if priority is not None and priority not in _PRIORITIES:
            raise InvalidTaskError(f"priority of {name!r} is {priority!r}; it is 'default' or 'low'")
        self.name = name
        self.options = TaskOptions(
            timeout_s=timeout_s,
            category=category,
            priority=None if priority is None else _PRIORITIES[priority],
        )

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Run it here."""
        if self.function is None:
            raise InvalidTaskError(
                f"{self.name!r} was made by task_from_source: its text was not compiled here and can only be submitted"
            )
        return cast("R_co", self.function(*args, **kwargs))

    def __get__(self, instance: object, owner: type | None = None) -> object:
        return self if instance is None else MethodType(self, instance)

    def __repr__(self) -> str:
        return f"<task {self.name}>"

    def captured(self) -> Captured:
        """Return what a submit would send now.

        Raises:
            InvalidTaskError: something that it names cannot travel.
        """
        return capture(self)

    @property
    def source(self) -> str:
        """The text that would travel: this function's, then that of every function that it names."""
        return self.captured().program.source_text

    @property
    def digest(self) -> str:
        """SHA-256 of the program, the same in every process that holds the same text."""
        return self.captured().program.digest


def task_from_source(text: str, *, task_class: type[Task[..., object]] = Task) -> Task[..., object]:
    """Return a task from the text of one `def`, `async def` or lambda; it is parsed and not compiled or run here.

    Its global names are looked up on the server alone; defaults of parameters have to be literals.

    Args:
        text: the function, indented or not, without decorators.
        task_class: the class to make.

    Raises:
        InvalidTaskError: it is not exactly one function of this Python's syntax.
    """
    node, found = _read(text)
    made = task_class.__new__(task_class)
    Recorded.__init__(made, None, text=found)
    name = "lambda" if isinstance(node, ast.Lambda) else node.name
    made._set(name, None, None, None)  # noqa: SLF001 - a constructor beside __init__
    if not isinstance(node, ast.Lambda):
        made.__doc__ = ast.get_docstring(node)
    return made


_Node = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


def _read(text: str) -> tuple[_Node, Found]:
    """Return the one function in `text`, parsed and described."""
    if not isinstance(text, str):
        raise InvalidTaskError(f"task_from_source takes text and got {type(text).__name__}")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    first = next((line for line in text.split("\n") if line.strip() and not line.lstrip().startswith("#")), "")
    is_lambda = first.lstrip(" \t(").startswith("lambda")
    header = "(\n" if is_lambda else "if 1:\n" if first[:1] in (" ", "\t") else ""
    try:
        body = parse(f"{header}{text}\n)" if is_lambda else f"{header}{text}\n").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InvalidTaskError(f"the text is not Python of this version: {error}; nothing was recorded") from error
    if header.startswith("if") and len(body) == 1 and isinstance(body[0], ast.If):
        body = body[0].body
    node: ast.AST | None = body[0] if len(body) == 1 else None
    if isinstance(node, ast.Expr):
        node = node.value
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        raise InvalidTaskError("the text is not exactly one def, async def or lambda; nothing was recorded")
    if not isinstance(node, ast.Lambda) and node.decorator_list:
        raise InvalidTaskError(f"decorators of {node.name!r} would be dropped; take them off, or use @deftask")
    defaults, keyword_defaults = _literals(node)
    column = node.col_offset if isinstance(node, ast.Lambda) else 0
    lines = f"{header}{text}".split("\n")
    own = cut(lines, node.lineno, column, node.end_lineno or node.lineno, node.end_col_offset or 0)
    name = "<lambda>" if isinstance(node, ast.Lambda) else node.name
    place = Place(f"<task {name}>", node.lineno - header.count("\n"), column)
    function = Function(
        kind=FunctionKind.LAMBDA if isinstance(node, ast.Lambda) else FunctionKind.DEF,
        name=name,
        text=own,
        namespace=0,
    )
    writes = {name for child in ast.walk(node) if isinstance(child, ast.Global) for name in child.names}
    return node, Found(
        function,
        place,
        writes=tuple(sorted(writes)),
        needs=() if isinstance(node, ast.Lambda) else needed_modules(node.body),
        defaults=defaults,
        keyword_defaults=keyword_defaults,
    )


def _literals(node: _Node) -> tuple[tuple[object, ...], dict[str, object]]:
    """Return the values of the defaults, which nothing but a literal has without being run."""
    arguments = node.args
    try:
        defaults = tuple(ast.literal_eval(default) for default in arguments.defaults)
        pairs = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        return defaults, {name.arg: ast.literal_eval(default) for name, default in pairs if default is not None}
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise InvalidTaskError(
            "a default in the text is not a literal, and nothing of it is run here; nothing was recorded. Use None and "
            "make the value inside of the function."
        ) from error
