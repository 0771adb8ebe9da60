"""Compiler: verified program text becomes a function, in a worker process. Nothing but the called function runs.

Each function is compiled once, by the very template that proved it on the client; each run gets fresh globals.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import linecache
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import CellType, CodeType, FunctionType, ModuleType, TracebackType
from typing import Final

from secfarm.errors import InvalidTaskError, ProtocolError
from secfarm.limits import MAX_ERROR_TEXT_BYTES
from secfarm.run.fellow import Fellow
from secfarm.run.preflight import check_installed, newer_python, references
from secfarm.task.program import (
    Binding,
    Function,
    FunctionRef,
    ImportRef,
    NameProgram,
    Program,
    SourceProgram,
    TaskRef,
    ValueRef,
)
from secfarm.task.template import compile_function

_OWN_FOLDER: Final = str(Path(__file__).parents[1])
_MAX_REPORT_CHARACTERS: Final = 1000

Task = Callable[..., object]

# As linecache keeps them: size, modification time, lines, name; or one function that gets the lines when needed.
_CacheEntry = tuple[int, float | None, list[str], str] | tuple[Callable[[], str | None]]
_FULL_ENTRY: Final = 4


class Prepared:
    """A program that is ready to run, as often as wanted.

    Raises:
        MissingModulesError: it names modules that are not installed here; all of them are listed.
        PythonVersionError: its text is of a newer Python.
        SyntaxError: its text is of another Python.
        ImportError, AttributeError: a name is not in its module, or importing that failed.
        ProtocolError, InvalidTaskError: the text is not what it claims to be.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self._globals: list[dict[str, object]] = []
        self._own_labels: tuple[tuple[int, str], ...] = ()
        self.files = frozenset(place.file for place in program.places)
        self._is_published = False
        self._named: Task | None = None
        self._code: tuple[CodeType, ...] = ()
        if isinstance(program.content, NameProgram):
            self._named = _find_callable(program.content.name)
            return
        content = program.content
        self._code = _compile_all(program, content)
        self._imported = _import_all(check_installed(content))
        self._is_plain = _is_plain(content)
        self._label = content.namespaces[0].label
        labels = [namespace.label for namespace in content.namespaces]
        self._own_labels = tuple((labels.index(label), label) for label in set(labels) if _is_clients_own(label))

    def bind(self, values: Sequence[object], inherited: Mapping[str, object]) -> Task:
        """Return the function to call, with globals that no other run shares.

        Args:
            values: what the client captured, decoded for this run alone.
            inherited: what broadcasts of the session defined; a captured name wins.

        Raises:
            ProtocolError: there are not as many values as the program says.
        """
        _withdraw_names()
        if self._named is not None:
            return self._named
        if self._is_plain and not values:
            names = {**inherited, "__name__": self._label, "__builtins__": builtins}
            self._globals = [names]
            self._publish_names()
            return FunctionType(self._code[0], names)
        return self._bind_all(values, inherited)

    def defined(self) -> dict[str, object]:
        """Return the global names that the last run's `global` statements left with a value, for broadcasts."""
        content = self.program.content
        if isinstance(content, NameProgram):
            return {}
        return {name: names[name] for names in self._globals for name in content.global_writes if name in names}

    def format_exception(self, error: BaseException) -> tuple[str, str, str]:
        """Return (report, description, remote type) of what a run raised.

        The report is the line that Python prints last, the description the traceback with the chain of causes and the
        client's file names and lines, without frames of ours; the type is `ValueError` or `decimal.InvalidOperation`.
        """
        remote_type = _name_of(type(error))
        replaced = self._swap_lines()
        try:
            self._trim(error, set())
            description = "".join(traceback.format_exception(error))
            report = "".join(traceback.format_exception_only(error)).strip()
        # What is formatted is the user's: its __str__ may do anything, exit too, and memory or stack may have run out.
        except BaseException:  # noqa: BLE001
            report = description = f"{remote_type}: (its text could not be made)"
        finally:
            _restore_lines(replaced)
        report = report.replace("\n", " ")
        if len(report) > _MAX_REPORT_CHARACTERS:
            report = report[: _MAX_REPORT_CHARACTERS - 1] + "…"
        return _sendable(report), _cut(_sendable(description)), _sendable(remote_type)

    def _bind_all(self, values: Sequence[object], inherited: Mapping[str, object]) -> Task:
        content = self.program.content
        if isinstance(content, NameProgram) or len(values) != content.value_count:
            raise ProtocolError(f"{len(values)} captured values came with {content.name!r}; nothing was run")
        spaces: list[dict[str, object]] = [
            {**inherited, "__name__": namespace.label, "__builtins__": builtins} for namespace in content.namespaces
        ]
        cells = [CellType() for _ in content.cells]
        functions = [
            FunctionType(code, spaces[function.namespace], code.co_name, None, _closure(function, cells))
            for function, code in zip(content.functions, self._code, strict=True)
        ]

        fellows: dict[TaskRef, Fellow] = {}

        def value_of(binding: Binding) -> object:
            match binding:
                case ValueRef(slot):
                    return values[slot]
                case FunctionRef(index):
                    return functions[index]
                case TaskRef(index, name):
                    return fellows.setdefault(binding, Fellow(functions[index], name))
                case _:
                    return self._imported[binding]

        for cell, binding in zip(cells, content.cells, strict=True):
            if binding is not None:
                cell.cell_contents = value_of(binding)
        for space, namespace in zip(spaces, content.namespaces, strict=True):
            space.update((name, value_of(binding)) for name, binding in namespace.names)
        _complete_all(functions, content.functions, value_of)
        for fellow in fellows.values():
            fellow.complete()
        self._globals = spaces
        self._publish_names()
        return functions[0]

    def _publish_names(self) -> None:
        """In a worker, let `sys.modules` give this run's globals where the client's modules would be, until the next.

        `dataclass` and others look there for what the text of an annotation names.
        """
        if self._is_published:
            for index, label in self._own_labels:
                _replaced[label] = sys.modules.get(label)
                sys.modules[label] = _Names(self._globals[index])  # type: ignore[assignment]

    # --- tracebacks

    def publish_lines(self) -> dict[str, _CacheEntry | None]:
        """Give `linecache` the client's lines and return what it held before.

        For worker processes, so that tracebacks that a task formats itself show them; nothing reads the file of that
        name, if there is one here: it is not the client's. From now on `sys.modules` gives the names of a run, too.
        """
        self._is_published = True
        return self._swap_lines()

    def _swap_lines(self) -> dict[str, _CacheEntry | None]:
        replaced: dict[str, _CacheEntry | None] = {}
        content = self.program.content
        if isinstance(content, NameProgram):
            return replaced
        for function, place in zip(content.functions, self.program.places, strict=True):
            known = linecache.cache.get(place.file)
            replaced.setdefault(place.file, known)
            lines = list(known[2]) if known is not None and len(known) == _FULL_ENTRY else []
            added = [line + "\n" for line in (" " * place.column + function.text).split("\n")]
            lines += ["\n"] * (place.line - 1 + len(added) - len(lines))
            lines[place.line - 1 : place.line - 1 + len(added)] = added
            # Without a modification time: checkcache() leaves such entries alone.
            linecache.cache[place.file] = (len(lines), None, lines, place.file)
        return replaced

    def _trim(self, error: BaseException, seen: set[int]) -> None:
        """Take our frames, and those of what we call it through, off the top of the tracebacks of the whole chain."""
        pending = [error]
        while pending:
            one = pending.pop()
            if id(one) in seen:
                continue
            seen.add(id(one))
            one.__traceback__ = self._users_part(one.__traceback__)
            pending += [linked for linked in (one.__cause__, one.__context__) if linked is not None]
            if isinstance(one, BaseExceptionGroup):
                pending += one.exceptions

    def _users_part(self, frames: TracebackType | None) -> TracebackType | None:
        own = frames
        while own is not None and own.tb_frame.f_code.co_filename.startswith(_OWN_FOLDER):
            own = own.tb_next
        _take_out_fellows(own)
        if self._named is not None:
            return own
        users = own
        while users is not None and users.tb_frame.f_code.co_filename not in self.files:
            users = users.tb_next
        return users or own


def _take_out_fellows(frames: TracebackType | None) -> None:
    while frames is not None:
        while frames.tb_next is not None and frames.tb_next.tb_frame.f_code is Fellow.__call__.__code__:
            frames.tb_next = frames.tb_next.tb_next
        frames = frames.tb_next


def _compile_all(program: Program, content: SourceProgram) -> tuple[CodeType, ...]:
    try:
        return tuple(
            compile_function(function, place.file, place.line, place.column)
            for function, place in zip(content.functions, program.places, strict=True)
        )
    except (SyntaxError, ValueError, InvalidTaskError) as error:
        newer = newer_python(program, error)
        if newer is None:
            raise
        raise newer from error


def _name_of(kind: type) -> str:
    """Return `ValueError` or `decimal.InvalidOperation`, past what a metaclass of the user's says."""
    module, qualname = _module_of.__get__(kind), _qualname_of.__get__(kind)
    return qualname if module == "builtins" or type(module) is not str else f"{module}.{qualname}"


_module_of: Final = vars(type)["__module__"]
_qualname_of: Final = vars(type)["__qualname__"]


class _Names:
    """Stands in `sys.modules` for a client's module, of which only the names that a program uses have travelled."""

    def __init__(self, names: dict[str, object]) -> None:
        self.__dict__ = names

    def __getattr__(self, name: str) -> object:
        if name.startswith("__") and name.endswith("__"):  # Python's own machinery asks for these
            raise AttributeError(name)
        label = self.__dict__["__name__"]
        raise ModuleNotFoundError(
            f"No module named {label!r} here: of the client's only what the task names by itself has travelled, and "
            f"`{name}` has not; name it in the task, or pass it as an argument",
            name=str(label),
        )


_replaced: Final[dict[str, ModuleType | None]] = {}  # what `sys.modules` held before the last run


def _withdraw_names() -> None:
    """Undo what the run before published."""
    while _replaced:
        label, module = _replaced.popitem()
        if module is None:
            sys.modules.pop(label, None)
        else:
            sys.modules[label] = module


def _is_clients_own(label: str) -> bool:
    """Whether no module of this name is here. Nothing is imported to find out."""
    if label == "__main__":
        return True  # that of a worker is no concern of a task
    try:
        return label not in sys.modules and importlib.util.find_spec(label.partition(".")[0]) is None
    except (ImportError, ValueError):
        return False


def _restore_lines(replaced: dict[str, _CacheEntry | None]) -> None:
    for file, entry in replaced.items():
        if entry is None:
            linecache.cache.pop(file, None)
        else:
            linecache.cache[file] = entry


def _is_plain(content: SourceProgram) -> bool:
    """Whether there is nothing to bind: one function, no names, no values."""
    function = content.functions[0]
    bound = function.cells or function.defaults or function.keyword_defaults or function.attributes
    return len(content.functions) == 1 and not bound and not content.namespaces[0].names and not content.value_count


def _complete_all(
    made: Sequence[FunctionType], functions: Sequence[Function], value_of: Callable[[Binding], object]
) -> None:
    """Give functions the defaults and attributes that they have at the client."""
    for one, function in zip(made, functions, strict=True):
        if function.defaults:
            one.__defaults__ = tuple(map(value_of, function.defaults))
        if function.keyword_defaults:
            one.__kwdefaults__ = {name: value_of(binding) for name, binding in function.keyword_defaults}
        for name, binding in function.attributes:
            setattr(one, name, value_of(binding))


def _closure(function: Function, cells: list[CellType]) -> tuple[CellType, ...] | None:
    return tuple(cells[index] for index in function.cells) or None


# --- imports -----------------------------------------------------------------------------------------------------


def _import_all(content: SourceProgram) -> dict[ImportRef, object]:
    """Return every object that the program imports."""
    for name in content.submodules:
        importlib.import_module(name)
    found: dict[ImportRef, object] = {}
    for reference in references(content):
        value: object = importlib.import_module(reference.module)
        for part in filter(None, reference.qualname.split(".")):
            value = getattr(value, part)
        found[reference] = value
    return found


def _find_callable(name: str) -> Task:
    """Return the function of that name; it never walks from one module into another that it holds.

    Raises:
        ImportError, AttributeError, TypeError: there is none.
    """
    module_name, colon, qualname = name.partition(":")
    if not colon:
        module_name, qualname = _split_dotted(name)
    found: object = importlib.import_module(module_name)
    parts = qualname.split(".")
    for part in parts:
        if part.startswith("_"):
            raise AttributeError(f"{name!r} has a private part; only public names can be called")
        found = getattr(found, part)
        if isinstance(found, ModuleType):  # to the caller there is no such name, whatever type it has
            raise AttributeError(  # noqa: TRY004
                f"{name!r} goes through the module {found.__name__!r}; name that one's function itself"
            )
    if not callable(found):
        raise TypeError(f"{name!r} is {type(found).__name__} and cannot be called")
    return found


def _split_dotted(name: str) -> tuple[str, str]:
    """Split `a.b.c` after the longest part that is a module here."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:length])
        try:
            importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if length == 1 or error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise
        else:
            return module_name, ".".join(parts[length:])
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)


# --- text that goes back -----------------------------------------------------------------------------------------


def _sendable(text: str) -> str:
    """Return text without lone surrogates, which no message can hold."""
    return text.encode("utf-8", "backslashreplace").decode()


def _cut(text: str) -> str:
    """Return a traceback within its limit: its end says most, then its beginning."""
    encoded = text.encode()
    if len(encoded) <= MAX_ERROR_TEXT_BYTES:
        return text
    quarter = MAX_ERROR_TEXT_BYTES // 4
    first, last = encoded[:quarter].decode(errors="ignore"), encoded[-2 * quarter :].decode(errors="ignore")
    return f"{first}\n[... {len(encoded) - 3 * quarter} bytes left out ...]\n{last}"
