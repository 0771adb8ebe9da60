"""Source: the exact text of a function, found in its file and proven to be the code that runs.

Where the text is looked for: what a deftask remembered, `linecache`, `linecache` after `checkcache`,
`inspect.findsource`, and for `python -c` the command line. Of the functions that stand on the line, the one is taken
whose text compiles to the same code object; when there is none, nothing is guessed: `InvalidTaskError`.
"""

from __future__ import annotations

import ast
import dis
import inspect
import linecache
import re
import sys
import textwrap
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import CodeType, FunctionType
from typing import Final

from secfarm.errors import InvalidTaskError
from secfarm.task.program import Function, FunctionKind, Place, Scope, ScopeKind
from secfarm.task.template import FUTURE_FLAGS, compile_function, parse, same_code


@dataclass(frozen=True, slots=True)
class Found:
    """A function's text, where it stands, and the names that its code uses.

    Attributes:
        function: with namespace 0 and nothing bound yet.
        loads: global names that it reads or deletes, in order of first use, nested functions included.
        writes: global names that it assigns or deletes.
        used_free: the closure variables that it really uses.
        words: all its other names and its string constants: every attribute that it can ask for.
        from_imports: for names that its module imports `from` another: that module and the name there.
        defaults: values of defaults that are written as literals; only for text that never was a function here.
        keyword_defaults: the same for keyword-only parameters.
    """

    function: Function
    place: Place
    loads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    used_free: frozenset[str] = frozenset()
    words: frozenset[str] = frozenset()
    from_imports: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    defaults: tuple[object, ...] = ()
    keyword_defaults: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A function in a file: its extent (lines from 1, columns in bytes) and the scopes around it."""

    kind: FunctionKind
    name: str
    line: int
    column: int
    end_line: int
    end_column: int
    scopes: tuple[Scope, ...]
    in_fstring: ast.JoinedStr | None


@dataclass(frozen=True, slots=True)
class _File:
    """What is kept of a parsed file; the tree is not, it is a hundred times larger."""

    text: str
    lines: list[str]
    functions: dict[int, list[_Candidate]]  # by the line that their code objects start on
    import_names: frozenset[str]
    from_imports: dict[str, tuple[str, str]]


_MAX_FILES: Final = 64  # parsed files kept
_MAX_FOUND: Final = 4096  # texts kept
_MAX_FSTRING_TRIES: Final = 500

_files: dict[str, _File] = {}
_found: dict[int, tuple[weakref.ref[CodeType], Found]] = {}


def remember_lines(function: FunctionType) -> Sequence[str]:
    """Return the lines of the file that `function` came from as they are now, empty when there are none.

    `linecache` shares one list between all who ask, so this costs a file read and no copy.
    """
    return linecache.getlines(function.__code__.co_filename, function.__globals__)


def find_source(function: FunctionType, remembered: Sequence[str] = ()) -> Found:
    """Return the text of `function` with proof: it compiles to the code that runs here.

    Args:
        remembered: lines of its file when it was made, to be looked at first.

    Raises:
        InvalidTaskError: there is no text, or it is not that of the code.
    """
    code = function.__code__
    known = _found.get(id(code))
    if known is not None and known[0]() is code:
        return known[1]
    found = _search(function, remembered)
    if len(_found) >= _MAX_FOUND:
        _found.clear()
    _found[id(code)] = weakref.ref(code), found
    return found


def _search(function: FunctionType, remembered: Sequence[str]) -> Found:
    code = function.__code__
    difference = ""
    seen: set[str] = set()
    for text in _texts(function, remembered):
        if text in seen:
            continue
        seen.add(text)
        try:
            file = _parse_file(code.co_filename, text, code.co_flags & FUTURE_FLAGS)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            difference = "the file is not Python any more"
            continue
        found = _prove(code, file)
        if isinstance(found, Found):
            return found
        difference = found
    where = f"{code.co_filename}, line {code.co_firstlineno}"
    if not seen:
        raise InvalidTaskError(
            f"`{code.co_qualname}` cannot travel: there is no source text of it ({where}); nothing was sent. Code made "
            "by exec or eval, or typed where Python keeps no text, has none: put it in a file, or use task_from_source."
        )
    raise InvalidTaskError(
        f"`{code.co_qualname}` cannot travel: the text at {where} is not the code that runs here ({difference}); "
        "nothing was sent. The file was edited after it was imported, or something rewrote the code (as pytest does "
        "with `assert`): import it again, or move the function to a module of its own."
    )


def _texts(function: FunctionType, remembered: Sequence[str]) -> Iterator[str]:
    """Yield each text that may be that of the function's file, with line ends as the tokenizer makes them."""
    name = function.__code__.co_filename
    if remembered:
        yield _joined(remembered)
    if lines := linecache.getlines(name, function.__globals__):
        yield _joined(lines)
    linecache.checkcache(name)
    if lines := linecache.getlines(name, function.__globals__):
        yield _joined(lines)
    try:
        lines, _ = inspect.findsource(function)
    except (OSError, TypeError, IndexError, SyntaxError):
        lines = []
    if lines:
        yield _joined(lines)
    if name == "<string>" and (command := _command_line_text()):
        yield _joined([command])
        yield _joined([textwrap.dedent(command)])  # since Python 3.14 `-c` takes off common indentation


def _joined(lines: Sequence[str]) -> str:
    return "".join(lines).replace("\r\n", "\n").replace("\r", "\n")


def _command_line_text() -> str:
    """Return the program text of `python -c`, empty when there is none."""
    arguments = iter(sys.orig_argv[1:])
    for argument in arguments:
        if not argument.startswith("-") or argument.startswith("--"):
            continue
        if argument[1:2] in ("W", "X"):
            if len(argument) == 2:  # noqa: PLR2004 - the option's value is the next argument
                next(arguments, None)
            continue
        if "c" in argument:
            return argument.partition("c")[2] or next(arguments, "")
    return ""


def _prove(code: CodeType, file: _File) -> Found | str:
    """Return the text in `file` that compiles to `code`, or what the nearest one differs in."""
    difference = f"no function `{code.co_name}` starts there"
    matches: list[tuple[bool, Function, Place]] = []
    for candidate in file.functions.get(code.co_firstlineno, ()):
        if candidate.name != code.co_name:
            continue
        for text, line, column in _candidate_texts(candidate, file):
            function = Function(
                kind=candidate.kind,
                name=candidate.name,
                text=text,
                namespace=0,
                flags=code.co_flags & FUTURE_FLAGS,
                optimize=sys.flags.optimize,
                scopes=candidate.scopes,
                import_names=tuple(sorted(file.import_names.intersection(_all_names(code)))),
                free_names=code.co_freevars,
            )
            try:
                compiled = compile_function(function, code.co_filename, line, column)
            except (SyntaxError, ValueError, InvalidTaskError) as error:
                difference = str(error)
                continue
            found = same_code(compiled, code)
            if found is None:
                exact = list(compiled.co_positions()) == list(code.co_positions())
                matches.append((exact, function, Place(code.co_filename, line, column)))
            else:
                difference = f"{found} differs"
    if not matches:
        return difference
    # Any of them is the code; the one with the same columns is also the text that the user wrote there.
    _, function, place = max(matches, key=lambda match: match[0])
    return _described(function, place, code, file)


def _candidate_texts(candidate: _Candidate, file: _File) -> Iterator[tuple[str, int, int]]:
    """Yield the texts that the candidate may have, with line and column of their first character."""
    if candidate.in_fstring is not None:
        yield from _fstring_texts(candidate.in_fstring, file)
        return
    column = 0 if candidate.kind is FunctionKind.DEF else candidate.column
    text = _cut(file.lines, candidate.line, column, candidate.end_line, candidate.end_column)
    yield text, candidate.line, column


def _cut(lines: list[str], line: int, column: int, end_line: int, end_column: int) -> str:
    cut = [part.encode() for part in lines[line - 1 : end_line]]
    cut[-1] = cut[-1][:end_column]
    cut[0] = cut[0][column:]
    return b"\n".join(cut).decode()


def _fstring_texts(node: ast.JoinedStr, file: _File) -> Iterator[tuple[str, int, int]]:
    """Yield every lambda in an f-string: before Python 3.12 the positions inside of one are not those of the file."""
    end_line, end_column = node.end_lineno or node.lineno, node.end_col_offset or 0
    whole = _cut(file.lines, node.lineno, node.col_offset, end_line, end_column)
    tries = 0
    for start in re.finditer(r"\blambda\b", whole):
        before = whole[: start.start()].encode()
        line = node.lineno + before.count(b"\n")
        column = len(before) - before.rfind(b"\n") - 1 + (0 if b"\n" in before else node.col_offset)
        for end in re.finditer(r"[)\]},:!]", whole[start.end() :]):
            tries += 1
            if tries > _MAX_FSTRING_TRIES:
                return
            text = whole[start.start() : start.end() + end.start()].rstrip()
            try:
                parsed = parse(f"(\n{text}\n)").body
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                continue
            if len(parsed) == 1 and isinstance(parsed[0], ast.Expr) and isinstance(parsed[0].value, ast.Lambda):
                yield text, line, column


# --- what a file holds -------------------------------------------------------------------------------------------


def _parse_file(name: str, text: str, flags: int) -> _File:
    known = _files.get(name)
    if known is not None and known.text == text:
        return known
    tree = parse(text, flags)
    names, from_imports = _imports_of(tree)
    if _mentions_super(tree):
        # Python 3.12 compiles `super()` differently in such a module; to the compiler an import is a mention too.
        names |= {"super"}
    file = _File(text, text.split("\n"), _functions_of(tree), names, from_imports)
    if len(_files) >= _MAX_FILES:
        _files.clear()
    _files[name] = file
    return file


_COMPREHENSIONS: Final[Mapping[type[ast.AST], ScopeKind]] = {
    ast.ListComp: ScopeKind.LIST,
    ast.SetComp: ScopeKind.SET,
    ast.DictComp: ScopeKind.DICT,
    ast.GeneratorExp: ScopeKind.GENERATOR,
}


@dataclass(frozen=True, slots=True)
class _Inside:
    """Where the walk is: the scopes around, the names declared `global` in the innermost, the f-string around."""

    scopes: tuple[Scope, ...] = ()
    global_names: frozenset[str] = frozenset()
    fstring: ast.JoinedStr | None = None

    def enter(self, scope: Scope, body: Sequence[ast.AST]) -> _Inside:
        # A name declared `global` takes its qualified name from the module, wherever it is defined.
        around = () if scope.name in self.global_names else self.scopes
        return _Inside((*around, scope), _declared_global(body), self.fstring)


def _functions_of(tree: ast.Module) -> dict[int, list[_Candidate]]:
    """Return every function and lambda of a file. The walk keeps its own stack: expressions nest deeper than Python."""
    functions: dict[int, list[_Candidate]] = {}
    stack: list[tuple[ast.AST, _Inside]] = [(tree, _Inside())]
    while stack:
        node, around = stack.pop()
        inner: list[ast.AST] = []
        inside = around
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                functions.setdefault(first, []).append(_candidate(node, FunctionKind.DEF, node.name, around))
                inner, inside = list(node.body), around.enter(Scope(ScopeKind.DEF, node.name), node.body)
            case ast.ClassDef():
                inner, inside = list(node.body), around.enter(Scope(ScopeKind.CLASS, node.name), node.body)
            case ast.Lambda():
                functions.setdefault(node.lineno, []).append(
                    _candidate(node, FunctionKind.LAMBDA, "<lambda>", around)
                )
                inner, inside = [node.body], around.enter(Scope(ScopeKind.LAMBDA), ())
            case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                inside = around.enter(Scope(_COMPREHENSIONS[type(node)]), ())
                first_clause = node.generators[0]
                stack.append((first_clause.iter, around))  # evaluated outside of the comprehension
                inner = [child for child in ast.iter_child_nodes(node) if child is not first_clause]
                inner += [first_clause.target, *first_clause.ifs]
                stack += [(child, inside) for child in inner]
                continue
            case ast.JoinedStr() if sys.version_info < (3, 12) and around.fstring is None:
                around = _Inside(around.scopes, around.global_names, node)
        # Defaults, decorators, annotations and base classes belong to the scope around.
        own = set(map(id, inner))
        stack += [(child, inside if id(child) in own else around) for child in ast.iter_child_nodes(node)]
    return functions


def _candidate(
    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, kind: FunctionKind, name: str, around: _Inside
) -> _Candidate:
    return _Candidate(
        kind=kind,
        name=name,
        line=node.lineno,
        column=node.col_offset,
        end_line=node.end_lineno or node.lineno,
        end_column=node.end_col_offset or 0,
        scopes=() if name in around.global_names else around.scopes,
        in_fstring=around.fstring,
    )


def _same_scope(body: Sequence[ast.AST]) -> Iterator[ast.AST]:
    """Yield the statements of a scope, those in its `if`s and loops too, but not those of functions and classes."""
    stack = list(body)
    while stack:
        node = stack.pop()
        yield node
        if isinstance(node, ast.stmt | ast.excepthandler | ast.match_case) and not isinstance(
            node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        ):
            stack += [child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr)]


def _declared_global(body: Sequence[ast.AST]) -> frozenset[str]:
    return frozenset(name for node in _same_scope(body) if isinstance(node, ast.Global) for name in node.names)


def _imports_of(tree: ast.Module) -> tuple[frozenset[str], dict[str, tuple[str, str]]]:
    """Return the names that the module imports, and for `from` imports what they name."""
    names: set[str] = set()
    from_imports: dict[str, tuple[str, str]] = {}
    for node in _same_scope(tree.body):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                bound = alias.asname or alias.name.partition(".")[0]
                names.add(bound)
                if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    from_imports[bound] = node.module, alias.name
    return frozenset(names), from_imports


def _mentions_super(tree: ast.Module) -> bool:
    """Whether code at module level, outside of functions and classes, names `super`."""
    return any(
        isinstance(node, ast.Name) and node.id == "super"
        for statement in _same_scope(tree.body)
        if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        for child in ast.iter_child_nodes(statement)
        if isinstance(child, ast.expr)
        for node in ast.walk(child)
    )


# --- what a code object uses -------------------------------------------------------------------------------------

_GLOBAL_READS: Final = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS", "DELETE_GLOBAL"})
_GLOBAL_WRITES: Final = frozenset({"STORE_GLOBAL", "DELETE_GLOBAL"})
_VARIABLES: Final = frozenset(dis.hasfree) | frozenset(dis.haslocal)


def nested_code(code: CodeType) -> Iterator[CodeType]:
    """Yield `code` and every code object inside of it, outermost first."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from nested_code(constant)


def _all_names(code: CodeType) -> set[str]:
    fields = ("co_names", "co_varnames", "co_cellvars", "co_freevars")
    return {name for part in nested_code(code) for field in fields for name in getattr(part, field)}


def _described(function: Function, place: Place, code: CodeType, file: _File) -> Found:
    loads: dict[str, None] = {}
    writes: dict[str, None] = {}
    used_free: set[str] = set()
    for part in nested_code(code):
        for instruction in dis.get_instructions(part):
            name = instruction.argval
            if instruction.opname in _GLOBAL_READS:
                loads[name] = None
            if instruction.opname in _GLOBAL_WRITES:
                writes[name] = None
            if part is code and instruction.opcode in _VARIABLES and instruction.opname != "COPY_FREE_VARS":
                used_free.update(name if isinstance(name, tuple) else (name,))
    return Found(
        function=function,
        place=place,
        loads=tuple(loads),
        writes=tuple(sorted(writes)),
        used_free=frozenset(used_free.intersection(code.co_freevars)),
        words=frozenset(_words(code)),
        from_imports=file.from_imports,
    )


def _words(code: CodeType) -> Iterator[str]:
    for part in nested_code(code):
        yield from part.co_names
        for constant in part.co_consts:
            if isinstance(constant, str):
                yield constant
            elif isinstance(constant, tuple | frozenset):
                yield from (item for item in constant if isinstance(item, str))
