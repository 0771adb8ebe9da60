"""Source: the exact text of a function, found in its file and proven to be the code that runs.

Where the text is looked for: what a deftask remembered, `linecache`, `linecache` after `checkcache`,
`inspect.findsource`, the loader of its module, and for `python -c` the command line. Of the functions that stand on the
line, the one is taken whose text compiles to the same code object; when there is none, nothing is guessed:
`InvalidTaskError`.
"""

from __future__ import annotations
import __future__

import ast
import dis
import importlib.util
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
from secfarm.task.imports import needed_modules
from secfarm.task.program import Function, Place
from secfarm.task.rewritten import rewriter_of
from secfarm.task.syntax import Candidate, File, candidate_texts, parse_file
from secfarm.task.template import FUTURE_FLAGS, compile_function, parse_function, same_code


@dataclass(frozen=True, slots=True)
class Found:
    """A function's text, where it stands, and the names that its code uses.

    Attributes:
        function: with namespace 0 and nothing bound yet.
        loads: global names that it reads or deletes, in order of first use, nested functions included.
        writes: global names that it assigns or deletes.
        used_free: the closure variables that it really uses.
        words: all its other names and its string constants: every attribute that it can ask for.
        needs: modules that its own import statements name (task/imports.py).
        annotation_names: names in annotations of classes and functions inside of it that are text.
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
    needs: tuple[str, ...] = ()
    annotation_names: frozenset[str] = frozenset()
    from_imports: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    defaults: tuple[object, ...] = ()
    keyword_defaults: Mapping[str, object] = field(default_factory=dict)


class Recorded:
    """A task that remembers its text: a function with the lines of its file when it was made, or text alone.

    Attributes:
        function: None for text alone, which is never compiled here.
        lines: of the file, as `linecache` had them.
        text: for text alone, what is known of it.
        requires: distributions that it needs on the server, as task/requirement.py spells them.
    """

    __slots__ = ("__dict__", "__weakref__", "function", "lines", "requires", "text")

    def __init__(
        self,
        function: FunctionType | None,
        *,
        lines: Sequence[str] = (),
        text: Found | None = None,
        requires: tuple[str, ...] = (),
    ) -> None:
        self.function = function
        self.lines = lines
        self.text = text
        self.requires = requires


_MAX_FOUND: Final = 4096  # texts kept

_found: dict[int, tuple[weakref.ref[CodeType], Found]] = {}


def remember_lines(function: FunctionType) -> Sequence[str]:
    """Return the lines of the file that `function` came from as they are now, empty when there are none.

    `linecache` shares one list between all who ask, so this costs a file read and no copy.
    """
    return _cached_lines(function)


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
            file = parse_file(code.co_filename, text, code.co_flags & FUTURE_FLAGS)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            difference = "the file is not Python any more"
            continue
        found = _prove(code, file)
        if isinstance(found, Found):
            return found
        difference = found
    where = f"{code.co_filename}, line {code.co_firstlineno}"
    if not seen or code.co_filename == "<string>":  # the command line is only a guess
        raise InvalidTaskError(
            f"`{code.co_qualname}` cannot travel: there is no source text of it ({where}); nothing was sent. Code made "
            "by exec or eval, or typed where Python keeps no text, has none: put it in a file, or use task_from_source."
        )
    raise InvalidTaskError(
        f"`{code.co_qualname}` cannot travel: the text at {where} is not the code that runs here ({difference}); "
        "nothing was sent. The file was edited after it was imported, or something rewrote the code: import it again, "
        "or move the function to a module of its own."
    )


def _texts(function: FunctionType, remembered: Sequence[str]) -> Iterator[str]:
    """Yield each text that may be that of the function's file, with line ends as the tokenizer makes them."""
    name = function.__code__.co_filename
    if remembered:
        yield _joined(remembered)
    if lines := _cached_lines(function):
        yield _joined(lines)
    linecache.checkcache(name)
    if lines := _cached_lines(function):
        yield _joined(lines)
    try:
        lines, _ = inspect.findsource(function)
    except (OSError, TypeError, IndexError, SyntaxError, ValueError):
        lines = []
    if lines:
        yield _joined(lines)
    if text := _loaded_text(function):
        yield text
    if name == "<string>" and (command := _command_line_text()):
        yield _joined([command])
        yield _joined([textwrap.dedent(command)])  # since Python 3.14 `-c` takes off common indentation


def _cached_lines(function: FunctionType) -> list[str]:
    try:
        return linecache.getlines(function.__code__.co_filename, function.__globals__)
    except (ValueError, SyntaxError):  # zipimport takes all text for UTF-8
        return []


def _loaded_text(function: FunctionType) -> str:
    """Return the text that the function's module was loaded from, by its own loader; empty when there is none.

    The lines that `linecache` gets from a loader are split at form feeds and the like, inside of strings too.
    """
    name = function.__code__.co_filename
    get_data = getattr(function.__globals__.get("__loader__"), "get_data", None)
    if get_data is None or function.__globals__.get("__file__") != name:
        return ""
    try:
        return importlib.util.decode_source(get_data(name))
    except (OSError, SyntaxError, ValueError):
        return ""


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


def _prove(code: CodeType, file: File) -> Found | str:
    """Return the text in `file` that compiles to `code`, or what the nearest one differs in."""
    difference = f"no function `{code.co_name}` starts there"
    matches: list[tuple[bool, Function, Place, CodeType]] = []
    rewrite = rewriter_of(code)
    for candidate in _likeliest_first(file.functions.get(code.co_firstlineno, ()), code):
        if matches and matches[-1][0]:
            break
        if candidate.name != code.co_name:
            continue
        for text, line, column in candidate_texts(candidate, file):
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
                written = compile_function(function, code.co_filename, line, column)
                compiled = compile_function(function, code.co_filename, line, column, rewrite) if rewrite else written
            except (SyntaxError, ValueError, InvalidTaskError) as error:
                difference = str(error)
                continue
            found = same_code(compiled, code)
            if found is None:
                exact = list(compiled.co_positions()) == list(code.co_positions())
                matches.append((exact, function, Place(code.co_filename, line, column), written))
            else:
                difference = f"{found} differs"
    if not matches:
        return difference
    # Any of them is the code; the one with the same columns is also the text that the user wrote there.
    _, function, place, written = max(matches, key=lambda match: match[0])
    return _described(function, place, written, file)


def _likeliest_first(candidates: Sequence[Candidate], code: CodeType) -> list[Candidate]:
    """Return the functions of a line, those around the columns of the code first, the shortest of them foremost."""
    # What the compiler adds at the begin and end of a function has a line and no columns.
    known = [place for place in code.co_positions() if place[0] and place[1] and place[2] is not None and place[3]]
    if not known:
        return list(candidates)
    line, end_line, column, end_column = known[-1]

    def rank(one: Candidate) -> tuple[bool, int, int]:
        around = (one.line, one.column) <= (line, column) and (end_line, end_column) <= (one.end_line, one.end_column)
        return not around, one.end_line - one.line, one.end_column - one.column

    return sorted(candidates, key=rank)


# --- what a code object uses -------------------------------------------------------------------------------------

_GLOBAL_READS: Final = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS", "DELETE_GLOBAL"})
_GLOBAL_WRITES: Final = frozenset({"STORE_GLOBAL", "DELETE_GLOBAL"})
_FRAME_READERS: Final = frozenset(
    {"dir", "eval", "exec", "locals", "super", "vars"}
)  # see variables that no code names
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


def _described(function: Function, place: Place, code: CodeType, file: File) -> Found:
    loads: dict[str, None] = {}
    writes: dict[str, None] = {}
    used_free: set[str] = set()
    has_imports = False
    for part in nested_code(code):
        for instruction in dis.get_instructions(part):
            name = instruction.argval
            if instruction.opname in _GLOBAL_READS:
                loads[name] = None
            if instruction.opname in _GLOBAL_WRITES:
                writes[name] = None
            has_imports = has_imports or instruction.opname == "IMPORT_NAME"
            if part is code and instruction.opcode in _VARIABLES and instruction.opname != "COPY_FREE_VARS":
                used_free.update(name if isinstance(name, tuple) else (name,))
    return Found(
        function=function,
        place=place,
        loads=tuple(loads),
        writes=tuple(sorted(writes)),
        used_free=frozenset(code.co_freevars if _FRAME_READERS.intersection(loads) else used_free),
        words=frozenset(_words(code)),
        annotation_names=frozenset(_annotation_names(code)),
        needs=_needs(function, place) if has_imports else (),
        from_imports=file.from_imports,
    )


def _needs(function: Function, place: Place) -> tuple[str, ...]:
    node = parse_function(function, place.line, place.column)
    return () if isinstance(node, ast.Lambda) else needed_modules(node.body)


_IDENTIFIER: Final = re.compile(r"[^\W\d]\w*")


def _annotation_names(code: CodeType) -> Iterator[str]:
    """Yield the names in annotations under `from __future__ import annotations`: of classes, then of functions."""
    if not code.co_flags & __future__.annotations.compiler_flag:
        return
    for part in nested_code(code):
        texts = [text for text in part.co_consts if isinstance(text, str)] if "__annotations__" in part.co_names else []
        texts += [text for items in part.co_consts if isinstance(items, tuple) for text in items if type(text) is str]
        for text in texts:
            yield from _IDENTIFIER.findall(text)


def _words(code: CodeType) -> Iterator[str]:
    for part in nested_code(code):
        yield from part.co_names
        for constant in part.co_consts:
            if isinstance(constant, str):
                yield constant
            elif isinstance(constant, tuple | frozenset):
                yield from (item for item in constant if isinstance(item, str))
