"""Syntax: which functions stand in a file, where, and inside of what. Text in, values out; nothing is compiled."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from secfarm.task.program import FunctionKind, Scope, ScopeKind
from secfarm.task.template import parse

_MAX_FILES: Final = 64  # parsed files kept
_MAX_FSTRING_TRIES: Final = 500


@dataclass(frozen=True, slots=True)
class Candidate:
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
class File:
    """What is kept of a parsed file; the tree is not, it is a hundred times larger."""

    text: str
    lines: list[str]
    functions: dict[int, list[Candidate]]  # by the line that their code objects start on
    import_names: frozenset[str]
    from_imports: dict[str, tuple[str, str]]


_files: dict[str, File] = {}


def parse_file(name: str, text: str, flags: int) -> File:
    """Return what stands in a file's text, parsed once for as long as the text stays the same.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: it is not Python of this version.
    """
    known = _files.get(name)
    if known is not None and known.text == text:
        return known
    tree = parse(text, flags)
    names, from_imports = _imports_of(tree)
    if _mentions_super(tree):
        # Python 3.12 compiles `super()` differently in such a module; to the compiler an import is a mention too.
        names |= {"super"}
    file = File(text, text.split("\n"), _functions_of(tree), names, from_imports)
    if len(_files) >= _MAX_FILES:
        _files.clear()
    _files[name] = file
    return file


def candidate_texts(candidate: Candidate, file: File) -> Iterator[tuple[str, int, int]]:
    """Yield the texts that the candidate may have, with line and column of their first character."""
    if candidate.in_fstring is not None:
        yield from _fstring_texts(candidate.in_fstring, file)
        return
    column = 0 if candidate.kind is FunctionKind.DEF else candidate.column
    text = cut(file.lines, candidate.line, column, candidate.end_line, candidate.end_column)
    yield text, candidate.line, column


def cut(lines: list[str], line: int, column: int, end_line: int, end_column: int) -> str:
    """Return the text between two positions, as `ast` gives them: lines from 1, columns in UTF-8 bytes."""
    parts = [part.encode() for part in lines[line - 1 : end_line]]
    parts[-1] = parts[-1][:end_column]
    parts[0] = parts[0][column:]
    return b"\n".join(parts).decode()


def _fstring_texts(node: ast.JoinedStr, file: File) -> Iterator[tuple[str, int, int]]:
    """Yield every lambda in an f-string: before Python 3.12 the positions inside of one are not those of the file."""
    end_line, end_column = node.end_lineno or node.lineno, node.end_col_offset or 0
    whole = cut(file.lines, node.lineno, node.col_offset, end_line, end_column)
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


def _functions_of(tree: ast.Module) -> dict[int, list[Candidate]]:
    """Return every function and lambda of a file. The walk keeps its own stack: expressions nest deeper than Python."""
    functions: dict[int, list[Candidate]] = {}
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
                functions.setdefault(node.lineno, []).append(_candidate(node, FunctionKind.LAMBDA, "<lambda>", around))
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
) -> Candidate:
    return Candidate(
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
