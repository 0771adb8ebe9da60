"""Capture: a task becomes a program and the values that go with it, or is refused with the reason.

Starting from the function that is called, every name that its code uses is resolved as the code would: modules and
what installed modules offer become imports, functions of the user's own travel as text with all that they name in
turn, everything else is data, a snapshot of now. The program part is kept for the next time and checked against the
live objects at each submit; values are read anew.
"""

from __future__ import annotations

import builtins
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import (
    BuiltinFunctionType,
    CellType,
    CodeType,
    FunctionType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Final

import msgspec

from secfarm.errors import InvalidTaskError, ValueTransferError
from secfarm.task.importable import import_ref, is_installed_module, module_ref, offers, public_name, submodules
from secfarm.task.program import (
    Binding,
    Function,
    FunctionRef,
    ImportRef,
    NameProgram,
    Namespace,
    Program,
    SourceProgram,
    ValueRef,
    check_name,
    make_program,
)
from secfarm.task.source import Found, find_source


@dataclass(frozen=True, slots=True)
class Captured:
    """What one submit sends of a task: the program, its captured values, and for each of those where it was found."""

    program: Program
    values: tuple[object, ...] = ()
    places: tuple[str, ...] = ()


class Recorded:
    """A task that remembers its text: the function and the lines of its file when it was made, or text alone."""

    __slots__ = ("__weakref__", "function", "lines", "text")

    function: FunctionType | None
    lines: list[str] | tuple[str, ...]
    text: Found | None


class _Marker:
    """A name for the absence of a value, or for the function itself that is being captured."""


_MISSING: Final = _Marker()
_ROOT: Final = _Marker()

_Read = Callable[[FunctionType | None], object]


@dataclass(frozen=True, slots=True)
class _Watch:
    """One place that was looked at: how to read it again, and what to find there.

    Attributes:
        expected: the object itself; for a value its type, for that alone decides how it travels.
    """

    read: _Read
    expected: object
    is_value: bool


@dataclass(frozen=True, slots=True)
class _Record:
    """What is kept for a code object: good as long as every watch still holds."""

    code: weakref.ref[CodeType]
    names: dict[str, object]
    shape: tuple[object, ...]
    watches: tuple[_Watch, ...]
    captured: Captured  # with the values of the first time when there are any


_MAX_RECORDS: Final = 4096

_records: dict[int, _Record] = {}


def capture(task: object) -> Captured:
    """Return what travels of `task`.

    Args:
        task: a function, lambda, deftask, installed function or class, or the name of one (`"operator.add"`, `"len"`).

    Raises:
        InvalidTaskError: it is none of these, or something that it names cannot travel.
    """
    if type(task) is FunctionType:
        function, lines = task, ()
    elif isinstance(task, Recorded):
        if task.function is None:
            return _capture_text(task)
        function, lines = task.function, tuple(task.lines) if id(task.function.__code__) not in _records else ()
    elif isinstance(task, str):
        return _capture_name(task)
    else:
        return _capture_name(_name_of(task))
    record = _records.get(id(function.__code__))
    if record is not None and record.code() is function.__code__ and record.names is function.__globals__:
        if not record.watches and record.shape == _NO_SHAPE and _has_no_shape(function):
            return record.captured
        known = _again(record, function)
        if known is not None:
            return known
    if import_ref(function) is not None:
        return _capture_name(public_name(function))
    return _capture_function(function, lines)


def refuse_values(captured: Captured, error: ValueTransferError, encode: Callable[[object], bytes]) -> InvalidTaskError:
    """Return the error that names the variable whose value could not be encoded.

    Args:
        error: what encoding all the values raised.
        encode: encodes one value, to find out which it was.
    """
    for value, place in zip(captured.values, captured.places, strict=True):
        try:
            encode(value)
        except ValueTransferError as own:
            return InvalidTaskError(
                f"{place} cannot travel: {own}; nothing was sent. Pass what the task needs of it as an argument, or "
                "make it inside of the task."
            )
    return InvalidTaskError(f"what `{captured.program.name}` captured cannot travel: {error}; nothing was sent")


# --- names -------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def _capture_name(name: str) -> Captured:
    plain = f"builtins:{name}" if name.isidentifier() else name
    return Captured(make_program(NameProgram(check_name(plain))))


def _name_of(task: object) -> str:
    """Return the public name of something callable that is not a plain function.

    Raises:
        InvalidTaskError: it has none.
    """
    if isinstance(task, type | BuiltinFunctionType | MethodDescriptorType | WrapperDescriptorType):
        return public_name(task)
    if import_ref(task) is not None and callable(task):
        return public_name(task)
    advice = "write a lambda that calls it, with the data that it needs as arguments"
    if isinstance(task, MethodType):
        raise InvalidTaskError(f"{task!r} is a bound method: its object would stay here; nothing was sent; {advice}")
    if callable(task):
        raise InvalidTaskError(f"{task!r} is a callable object and not a function; nothing was sent; {advice}")
    raise InvalidTaskError(
        f"{type(task).__name__} {task!r} is not a task; a task is a function, a lambda, a deftask or the name of a function"
    )


# --- the program that was captured before ------------------------------------------------------------------------

_NO_SHAPE: Final = (0, (), 0)


def _has_no_shape(function: FunctionType) -> bool:
    return function.__defaults__ is None and function.__kwdefaults__ is None and function.__closure__ is None


def _shape(function: FunctionType | None) -> tuple[object, ...]:
    if function is None or _has_no_shape(function):
        return _NO_SHAPE
    names = tuple(function.__kwdefaults__) if function.__kwdefaults__ else ()
    return len(function.__defaults__ or ()), names, len(function.__closure__ or ())


def _again(record: _Record, function: FunctionType) -> Captured | None:
    """Return the known program with the values of now, None when something that it rests on has changed."""
    if record.shape != _shape(function):
        return None
    values = []
    for watch in record.watches:
        value = watch.read(function)
        if watch.is_value:
            if type(value) is not watch.expected:
                return None
            values.append(value)
        elif value is not watch.expected and not (watch.expected is _ROOT and value is function):
            return None
    return Captured(record.captured.program, tuple(values), record.captured.places)


def _capture_function(function: FunctionType, lines: tuple[str, ...]) -> Captured:
    found = find_source(function, lines)
    builder = _Builder(_Unit(found, function, function.__globals__, function.__builtins__))
    captured = builder.build()
    code = function.__code__
    if len(_records) >= _MAX_RECORDS:
        _records.clear()
    _records[id(code)] = _Record(
        weakref.ref(code), function.__globals__, _shape(function), tuple(builder.watches), captured
    )
    return captured


def _capture_text(task: Recorded) -> Captured:
    if task.text is None:
        raise InvalidTaskError("the task holds neither a function nor text; nothing was sent")
    return _Builder(_Unit(task.text, None, {}, {})).build()


# --- the program that is captured now ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Unit:
    """A function to send: its text and the objects that its names stand for; `chain` is how it was reached."""

    found: Found
    function: FunctionType | None
    names: dict[str, object]
    builtins: Mapping[str, object]
    attributes: Mapping[str, object] | None = None
    chain: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """How messages name it."""
        reached = f" (reached by {' -> '.join((*self.chain, self.found.function.name))})" if self.chain else ""
        return f"function `{self.found.function.name}`{reached}"


_ATOMS: Final = frozenset({type(None), bool, int, float, complex, str, bytes})
_CONTAINERS: Final = frozenset({list, tuple, dict, set, frozenset, bytearray})
_HIDDEN: Final = frozenset({"globals"})
_EVALUATORS: Final = frozenset({"eval", "exec"})


class _Builder:
    """Collects functions, namespaces, cells and values, from the called function on."""

    def __init__(self, root: _Unit) -> None:
        self.root = root
        self.units: list[_Unit] = []
        self.watches: list[_Watch] = []
        self.values: list[object] = []
        self.places: list[str] = []
        self.submodules: set[str] = set()
        self._index: dict[int, int] = {}
        self._kept: list[object] = []  # objects whose id is a key must live as long as the keys
        self._namespaces: list[tuple[dict[str, object], dict[str, Binding]]] = []
        self._looked_up: set[tuple[int, str]] = set()
        self._cells: list[Binding | None] = []
        self._cell_index: dict[int, int] = {}
        self._functions: list[Function] = []
        self._attributes: dict[int, dict[str, Binding]] = {}

    def build(self) -> Captured:
        self._add(self.root, self.root.function)
        done = 0
        while done < len(self.units) or self._find_attributes():
            while done < len(self.units):
                self._functions.append(self._bind(self.units[done], is_root=done == 0))
                done += 1
        functions = tuple(
            msgspec.structs.replace(function, attributes=tuple(sorted(self._attributes.get(index, {}).items())))
            for index, function in enumerate(self._functions)
        )
        content = SourceProgram(
            name=self.root.found.function.name,
            functions=functions,
            namespaces=tuple(
                Namespace(_label(names), tuple(sorted(bound.items()))) for names, bound in self._namespaces
            ),
            cells=tuple(self._cells),
            global_writes=tuple(sorted({name for unit in self.units for name in unit.found.writes})),
            submodules=tuple(sorted(self.submodules)),
            value_count=len(self.values),
        )
        program = make_program(content, tuple(unit.found.place for unit in self.units))
        return Captured(program, tuple(self.values), tuple(self.places))

    def _add(self, unit: _Unit, key: object) -> int:
        self.units.append(unit)
        self._kept.append(key)
        self._index[id(key)] = len(self.units) - 1
        return len(self.units) - 1

    # --- one function

    def _bind(self, unit: _Unit, *, is_root: bool) -> Function:
        found, function = unit.found, unit.function
        namespace = self._namespace(unit.names)
        self._bind_globals(unit, self._namespaces[namespace][1])
        if function is None:
            return msgspec.structs.replace(
                found.function,
                namespace=namespace,
                defaults=tuple(self._literal(value) for value in found.defaults),
                keyword_defaults=tuple((name, self._literal(value)) for name, value in found.keyword_defaults.items()),
            )
        if not is_root:
            self._watch_definition(function)
        cells = tuple(
            self._bind_cell(unit, position, name, is_root=is_root)
            for position, name in enumerate(found.function.free_names)
        )
        defaults: list[Binding] = []
        for position, value in enumerate(function.__defaults__ or ()):
            read = _default_reader(None if is_root else function, position)
            defaults.append(self._resolve(value, read, f"default number {position + 1} of {unit.title}", unit, None))
        keyword_defaults: list[tuple[str, Binding]] = []
        for name, value in (function.__kwdefaults__ or {}).items():
            read = _keyword_reader(None if is_root else function, name)
            keyword_defaults.append(
                (name, self._resolve(value, read, f"default of `{name}` of {unit.title}", unit, None))
            )
        return msgspec.structs.replace(
            found.function,
            namespace=namespace,
            cells=cells,
            defaults=tuple(defaults),
            keyword_defaults=tuple(keyword_defaults),
        )

    def _literal(self, value: object) -> ValueRef:
        self.values.append(value)
        self.places.append(f"a default of {self.root.title}")
        return ValueRef(len(self.values) - 1)

    def _watch_definition(self, function: FunctionType) -> None:
        """A function that was named may be changed in place."""
        code, defaults, shape = function.__code__, function.__defaults__, _shape(function)
        self._watch(lambda _: function.__code__, code)
        self._watch(lambda _: function.__defaults__, defaults)
        self._watch(lambda _: _shape(function) == shape, True)  # noqa: FBT003 - the value expected

    def _watch(self, read: _Read, expected: object) -> None:
        self.watches.append(_Watch(read, expected, is_value=False))

    def _namespace(self, names: dict[str, object]) -> int:
        for index, (known, _) in enumerate(self._namespaces):
            if known is names:
                return index
        self._namespaces.append((names, {}))
        self._watch(lambda _, label=_label(names): _label(names) == label, True)  # type: ignore[misc]  # noqa: FBT003
        return len(self._namespaces) - 1

    # --- where names get their values

    def _bind_globals(self, unit: _Unit, bound: dict[str, Binding]) -> None:
        loads = unit.found.loads
        if _EVALUATORS.intersection(loads):
            # Names inside of evaluated text are not seen; those that hide a built-in would silently mean another thing.
            loads += tuple(sorted(name for name in unit.names if name in unit.builtins and not _is_dunder(name)))
        for name in loads:
            if (id(unit.names), name) in self._looked_up or name == "__name__":
                continue
            self._looked_up.add((id(unit.names), name))
            read = _global_reader(unit.names, unit.builtins, name)
            value = read(None)
            if value is _MISSING or (name not in unit.names and _is_standard(name, value)):
                if name in _HIDDEN:
                    raise InvalidTaskError(
                        f"{unit.title} calls `{name}()`, which on a server would hold only what travelled; nothing was "
                        "sent. Name the variables themselves, or pass them as arguments."
                    )
                self._watch(read, value)
                continue
            bound[name] = self._resolve(value, read, f"global variable `{name}` of {unit.title}", unit, name)

    def _bind_cell(self, unit: _Unit, position: int, name: str, *, is_root: bool) -> int:
        closure = unit.function.__closure__ if unit.function is not None else None
        if closure is None:
            raise InvalidTaskError(f"{unit.title} lost its closure; nothing was sent")
        cell = closure[position]
        known = self._cell_index.get(id(cell))
        if known is not None:
            if is_root or self._is_of_root(cell):
                self._watch_root_cell(cell)
            return known
        self._kept.append(cell)
        index = self._cell_index[id(cell)] = len(self._cells)
        self._cells.append(None)
        read = _cell_reader(None if is_root else cell, position)
        value = read(unit.function)
        if value is not _MISSING and name in unit.found.used_free:
            self._cells[index] = self._resolve(value, read, f"closure variable `{name}` of {unit.title}", unit, name)
        else:
            # Unused here, but another function of the program that shares the cell may use it.
            del self._cell_index[id(cell)]
            self._watch(lambda root: read(root) is _MISSING, value is _MISSING)
        return index

    def _is_of_root(self, cell: CellType) -> bool:
        return self.root.function is not None and cell in (self.root.function.__closure__ or ())

    def _watch_root_cell(self, cell: CellType) -> None:
        """A variable that the called function shares with others must be the same variable the next time."""
        closure = self.root.function.__closure__ if self.root.function is not None else None
        for position, own in enumerate(closure or ()):
            if own is cell:
                self._watch(lambda root, at=position: root.__closure__[at], cell)  # type: ignore[misc,union-attr,index]

    def _find_attributes(self) -> bool:
        """Bind attributes of function objects that some code of the program can ask for; whether one was found."""
        words = frozenset().union(*(unit.found.words for unit in self.units))
        found = False
        for index, unit in enumerate(list(self.units)):
            function = unit.function
            if function is None:
                continue
            held = unit.attributes if unit.attributes is not None else function.__dict__
            bound = self._attributes.setdefault(index, {})
            for name in sorted(words.intersection(held).difference(bound)):
                read = _attribute_reader(None if index == 0 else held, name)
                value = held[name]
                bound[name] = self._resolve(value, read, f"attribute `{name}` of {unit.title}", unit, None)
                found = True
            if "__name__" in words and function.__name__ != unit.found.function.name and "__name__" not in bound:
                read = _name_reader(None if index == 0 else function)
                bound["__name__"] = self._resolve(read(function), read, f"name of {unit.title}", unit, None)
                found = True
        return found

    # --- one value

    def _resolve(self, value: object, read: _Read, place: str, unit: _Unit, name: str | None) -> Binding:
        """Return how `value` travels.

        Raises:
            InvalidTaskError: it cannot.
        """
        kind = type(value)
        if kind in _ATOMS or kind in _CONTAINERS:
            return self._value(value, read, place)
        if value is self.root.function and value is not None:
            self._watch(read, _ROOT)
            return FunctionRef(0)
        binding = self._reference(value, place, unit, name)
        if binding is None:
            return self._value(value, read, place)
        self._watch(read, value)
        return binding

    def _value(self, value: object, read: _Read, place: str) -> ValueRef:
        self.watches.append(_Watch(read, type(value), is_value=True))
        self.values.append(value)
        self.places.append(place)
        return ValueRef(len(self.values) - 1)

    def _reference(self, value: object, place: str, unit: _Unit, name: str | None) -> Binding | None:
        """Return the binding of what is not data, None for data."""
        if isinstance(value, ModuleType):
            reference = module_ref(value)
            if reference is None:
                raise InvalidTaskError(f"{place} is the module {value.__name__!r}, which no import gives; nothing was sent")
            self.submodules.update(submodules(value, unit.found.words))
            return reference
        if isinstance(value, Recorded):
            return self._function(value, value.function, unit)
        if isinstance(value, FunctionType):
            return self._function(value, value, unit)
        reference = self._imported(value, unit, name)
        if reference is not None:
            return reference
        if isinstance(value, type):
            raise InvalidTaskError(
                f"{place} is a class of your own ({value.__module__}.{value.__qualname__}); classes do not travel and "
                "nothing was sent. Define it inside of the task, or install its module here and on the server."
            )
        if isinstance(value, MethodType):
            raise InvalidTaskError(
                f"{place} is a bound method ({value.__qualname__}) and its object would stay here; nothing was sent. "
                "Pass the object's data as an argument and call a function."
            )
        return None

    def _imported(self, value: object, unit: _Unit, name: str | None) -> ImportRef | None:
        if callable(value) and (reference := import_ref(value)) is not None:
            return reference
        source = unit.found.from_imports.get(name) if name is not None else None
        if source is not None and offers(*source, value):
            return ImportRef(*source)
        return None

    def _function(self, key: object, function: FunctionType | None, unit: _Unit) -> Binding:
        known = self._index.get(id(key))
        if known is None and function is not None:
            known = self._index.get(id(function))
        if known is not None:
            return FunctionRef(known)
        if function is not None and (reference := import_ref(function)) is not None:
            return reference
        chain = (*unit.chain, unit.found.function.name)
        recorded = key if isinstance(key, Recorded) else None
        if function is None:
            text = recorded.text if recorded is not None else None
            if text is None:
                raise InvalidTaskError(f"{unit.title} names a task that holds no text; nothing was sent")
            return FunctionRef(self._add(_Unit(text, None, {}, {}, chain=chain), key))
        try:
            found = find_source(function, tuple(recorded.lines) if recorded is not None else ())
        except InvalidTaskError as error:
            raise InvalidTaskError(f"{unit.title} names a function that cannot travel: {error}") from error
        attributes = vars(recorded) if recorded is not None and hasattr(recorded, "__dict__") else None
        made = _Unit(found, function, function.__globals__, function.__builtins__, attributes, chain)
        index = self._add(made, function)
        if key is not function:
            self._kept.append(key)
            self._index[id(key)] = index
        return FunctionRef(index)


def _label(names: Mapping[str, object]) -> str:
    """Return `__name__` of a namespace; without one Python finds that of its built-ins."""
    label = names.get("__name__", "builtins")
    return label if isinstance(label, str) else "builtins"


def _is_dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


_ALIASES: Final = frozenset({"EnvironmentError", "IOError", "WindowsError"})  # other names of OSError


def _is_standard(name: str, value: object) -> bool:
    """Whether the built-in `value` under this name is the one that every Python has."""
    if _is_dunder(name) or value in (None, NotImplemented, Ellipsis) or type(value).__module__ == "_sitebuiltins":
        return True
    if isinstance(value, BuiltinFunctionType | type):
        home = value.__module__ in ("builtins", "_io")
        return home and (value.__name__ == name or name in _ALIASES)
    return False


# --- how a place is read again: a function of the root, which is another object each time a lambda is made --------------


def _global_reader(names: dict[str, object], fallback: Mapping[str, object], name: str) -> _Read:
    return lambda _: names[name] if name in names else fallback.get(name, _MISSING)


def _cell_reader(cell: CellType | None, position: int) -> _Read:
    def read(root: FunctionType | None) -> object:
        own = cell
        if own is None:
            own = root.__closure__[position]  # type: ignore[union-attr,index] - the record's shape says that it is there
        try:
            contents: object = own.cell_contents
        except ValueError:
            return _MISSING
        return contents

    return read


def _default_reader(function: FunctionType | None, position: int) -> _Read:
    return lambda root: (function or root).__defaults__[position]  # type: ignore[union-attr,index]


def _keyword_reader(function: FunctionType | None, name: str) -> _Read:
    return lambda root: (function or root).__kwdefaults__.get(name, _MISSING)  # type: ignore[union-attr]


def _attribute_reader(held: Mapping[str, object] | None, name: str) -> _Read:
    return lambda root: (root.__dict__ if held is None else held).get(name, _MISSING)  # type: ignore[union-attr]


def _name_reader(function: FunctionType | None) -> _Read:
    return lambda root: (function or root).__name__  # type: ignore[union-attr]
