"""The template: how a function's exact text becomes its code object, on the client as proof and on the server to run.

The one `compile` of the package. The text is parsed, what would run outside of the function (decorators, defaults,
annotations) is taken off, the scopes that stood around it are built again so that the compiler sees the same names,
and of the result only the function's own code object is kept: nothing is executed here, or later but that code.
Format: docs/PROTOCOL.md, "The template".
"""

from __future__ import annotations
import __future__

import ast
import inspect
import struct
import threading
import warnings
from collections.abc import Callable, Hashable
from functools import reduce
from operator import attrgetter, or_
from types import CodeType, EllipsisType
from typing import Final

from secfarm.errors import InvalidTaskError
from secfarm.task.program import Function, FunctionKind, Scope, ScopeKind

# Says that the function stood inside another one and changes nothing at run time.
_NESTED: Final = inspect.CO_NESTED

# The bits of co_flags that change how text is compiled, by the interpreter's own table; it gives nested_scopes, which
# all Pythons have, the bit of CO_NESTED.
FUTURE_FLAGS: Final[int] = (
    reduce(or_, (getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)) & ~_NESTED
)

# warnings.catch_warnings() swaps the process's filters: two threads inside it at once would leave them swapped.
_quiet = threading.Lock()

_Tree = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


def parse(text: str, flags: int = 0) -> ast.Module:
    """Return the syntax tree of a file's text; nothing is compiled.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: it is not Python of this version.
    """
    with _quiet, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree: ast.Module = compile(text, "<text>", "exec", flags | ast.PyCF_ONLY_AST, dont_inherit=True, optimize=0)
    return tree


def compile_function(
    function: Function, file: str, line: int, column: int, rewrite: Callable[[ast.Module], None] | None = None
) -> CodeType:
    """Return the code object of `function`, with positions as if compiled where it stands at the client.

    Args:
        file: for tracebacks; never opened.
        line: of `def` or `lambda`, from 1.
        column: of `lambda`, in UTF-8 bytes; a `def` has its indentation in its text.
        rewrite: changes the module as something changed the client's.

    Raises:
        SyntaxError: the text is not Python of this version.
        ValueError: a name or character in it is none that Python takes.
        InvalidTaskError: the text is not exactly one function, or is nested too deeply.
    """
    try:
        try:
            module = build_module(function, line, column)
        except SyntaxError as error:
            error.filename = file
            raise
        if rewrite is not None:
            rewrite(module)
        with _quiet, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = compile(module, file, "exec", function.flags, dont_inherit=True, optimize=function.optimize)
    except (RecursionError, MemoryError, OverflowError) as error:
        raise InvalidTaskError(f"the text of {function.name!r} is nested too deeply to compile") from error
    return _dig(code, line, function)


def build_module(function: Function, line: int, column: int) -> ast.Module:
    """Return the module that is compiled: the function, without what is evaluated around it, in its scopes.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError, OverflowError, InvalidTaskError: see `parse_function`.
    """
    tree = parse_function(function, line, column)
    _strip(tree)
    return _surround(tree, function)


def parse_function(function: Function, line: int, column: int) -> _Tree:
    """Parse the text where blanks around it make it legal and its columns true.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError, OverflowError: it is not Python of this version.
        InvalidTaskError: it is not exactly one function.
    """
    if function.kind is FunctionKind.LAMBDA:
        header_lines = 1
        text = f"(\n{' ' * column}{function.text}\n)"
    else:
        # A form feed sets the tokenizer's column back to 0.
        blanks = function.text[: len(function.text) - len(function.text.lstrip())].rpartition("\f")[2]
        header_lines = 1 if blanks else 0
        text = "if 1:\n" * header_lines + function.text + "\n"
    try:
        tree = parse(text, function.flags)
    except SyntaxError as error:
        error.lineno = (error.lineno or 1) + line - 1 - header_lines
        error.end_lineno = None
        raise
    first = tree.body[0] if tree.body else None
    if function.kind is FunctionKind.DEF and header_lines and isinstance(first, ast.If) and not first.orelse:
        tree = ast.Module([*first.body, *tree.body[1:]], [])
    node: ast.AST | None = tree.body[0] if len(tree.body) == 1 else None
    if isinstance(node, ast.Expr):
        node = node.value
    expected = ast.Lambda if function.kind is FunctionKind.LAMBDA else (ast.FunctionDef, ast.AsyncFunctionDef)
    if not isinstance(node, expected):
        raise InvalidTaskError(f"the text of {function.name!r} is not exactly one {function.kind.name.lower()}")
    ast.increment_lineno(node, line - 1 - header_lines)
    return node


def _strip(node: _Tree) -> None:
    """Take off all that is evaluated when the function is made: it never runs on a server."""
    arguments = node.args
    arguments.defaults = []
    arguments.kw_defaults = [None] * len(arguments.kwonlyargs)
    if isinstance(node, ast.Lambda):
        return
    node.decorator_list = []
    node.returns = None
    if hasattr(node, "type_params"):  # Python 3.12
        node.type_params = []
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    for argument in filter(None, every):
        argument.annotation = None


def _surround(node: _Tree, function: Function) -> ast.Module:
    """Build the scopes around `node`; the outermost one that has variables binds its closure variables.

    They stand one line below `node`: so the first code object that starts on its line is the function's.
    """
    scopes = list(function.scopes)
    binder = next((index for index, scope in enumerate(scopes) if scope.kind is not ScopeKind.CLASS), None)
    inner: ast.stmt | ast.expr = node
    for index in range(len(scopes) - 1, -1, -1):
        inner = _enclose(inner, scopes[index], function.free_names if index == binder else ())
    statement = inner if isinstance(inner, ast.stmt) else ast.Expr(inner)
    if function.free_names and binder is None:
        # A `global` name has its own name as qualified name, wherever it is defined.
        outermost = scopes[0].name if scopes else function.name
        statement = ast.FunctionDef("scope", _arguments(function.free_names), [ast.Global([outermost]), statement], [])
    imports = [ast.Import([ast.alias("module", name)]) for name in function.import_names]
    module = ast.Module([statement, *imports], [])
    below = node.lineno + 1
    for made in ast.walk(module):
        if isinstance(made, ast.stmt | ast.expr | ast.arg | ast.alias) and not hasattr(made, "lineno"):
            made.lineno = made.end_lineno = below
            made.col_offset = made.end_col_offset = 0
    return module


_COMPREHENSIONS: Final = {
    ScopeKind.LIST: ast.ListComp,
    ScopeKind.SET: ast.SetComp,
    ScopeKind.GENERATOR: ast.GeneratorExp,
}


def _enclose(inner: ast.stmt | ast.expr, scope: Scope, names: tuple[str, ...]) -> ast.stmt | ast.expr:
    body = [inner if isinstance(inner, ast.stmt) else ast.Expr(inner)]
    match scope.kind:
        case ScopeKind.CLASS:
            return ast.ClassDef(scope.name, [], [], body, [])
        case ScopeKind.DEF:
            return ast.FunctionDef(scope.name, _arguments(names), body, [])
    if isinstance(inner, ast.stmt):
        raise InvalidTaskError(f"a def cannot stand in a {scope.kind.name.lower()}")
    if scope.kind is ScopeKind.LAMBDA:
        return ast.Lambda(_arguments(names), inner)
    target = ast.Tuple([ast.Name(name, ast.Store()) for name in names], ast.Store())
    clauses = [ast.comprehension(target, ast.Tuple([], ast.Load()), [], 0)]
    if scope.kind is ScopeKind.DICT:
        return ast.DictComp(inner, ast.Constant(None), clauses)
    return _COMPREHENSIONS[scope.kind](inner, clauses)


def _arguments(names: tuple[str, ...]) -> ast.arguments:
    return ast.arguments([], [ast.arg(name) for name in names], None, [], [], None, [])


def _dig(code: CodeType, line: int, function: Function) -> CodeType:
    """Return the function's own code object out of the scopes around it."""
    while code.co_name != function.name or code.co_firstlineno != line:
        nested = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        if len(nested) != 1:
            raise InvalidTaskError(f"the text of {function.name!r} does not compile to one function of that name")
        code = nested[0]
    if code.co_freevars != function.free_names:
        raise InvalidTaskError(
            f"{function.name!r} has the closure variables {code.co_freevars} by its text, but {function.free_names} "
            "came with it"
        )
    return code


_COMPARED: Final = (
    "co_name",
    "co_qualname",
    "co_argcount",
    "co_posonlyargcount",
    "co_kwonlyargcount",
    "co_varnames",
    "co_freevars",
    "co_cellvars",
    "co_names",
    "co_code",
    "co_exceptiontable",
)


def same_code(one: CodeType, other: CodeType) -> str | None:
    """Return where two code objects differ in what they do, or None when they are the same; lines are not compared.

    Stricter than `==`, which takes some constants for equal that are not, and blind to line tables, which it is not.
    """
    for field in _COMPARED:
        if getattr(one, field) != getattr(other, field):
            return f"{field} of {one.co_qualname}"
    if (one.co_flags ^ other.co_flags) & ~_NESTED:
        return f"co_flags of {one.co_qualname}"
    if len(one.co_consts) != len(other.co_consts):
        return f"co_consts of {one.co_qualname}"
    for mine, yours in zip(one.co_consts, other.co_consts, strict=True):
        if isinstance(mine, CodeType) and isinstance(yours, CodeType):
            if (difference := same_code(mine, yours)) is not None:
                return difference
        elif _typed(mine) != _typed(yours):
            return f"co_consts of {one.co_qualname}"
    return None


_bits = struct.Struct("d").pack
_slice_parts = attrgetter("start", "stop", "step")


def _typed(constant: object) -> Hashable:
    """Return a key that is equal only for constants that nothing can tell apart: 1, 1.0 and True differ."""
    kind = type(constant)
    if isinstance(constant, float):
        return kind, _bits(constant)
    if isinstance(constant, complex):
        return kind, _bits(constant.real), _bits(constant.imag)
    if isinstance(constant, tuple | slice):  # slices are constants since Python 3.14
        return kind, tuple(map(_typed, constant if isinstance(constant, tuple) else _slice_parts(constant)))
    if isinstance(constant, frozenset):
        return kind, frozenset(map(_typed, constant))
    is_atom = constant is None or isinstance(constant, int | str | bytes | EllipsisType)
    return kind, constant if is_atom else id(constant)
