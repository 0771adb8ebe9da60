"""Resolve: every name that a function's code uses, found as the code would find it, becomes part of its program.

Modules and what installed modules offer become imports; functions of the user's own travel as text with all that they
name in turn; everything else is data, a snapshot of now. Each place that was looked at leaves a watch, so that the
program can be kept and checked at the next submit.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Final

import msgspec

from secfarm.errors import InvalidTaskError
from secfarm.task.attributes import Held, asked, attribute, attributes_of, special_attributes, special_default
from secfarm.task.called import only_called
from secfarm.task.changed import Owner, unchanged
from secfarm.task.evaluated import evaluated_names, evaluates, is_dunder, namespace_asked_for
from secfarm.task.importable import import_ref, is_installed_module, module_ref, offers, submodules
from secfarm.task.imports import absolute_names
from secfarm.task.program import (
    Binding,
    Function,
    FunctionRef,
    ImportRef,
    Namespace,
    Place,
    Program,
    SourceProgram,
    TaskRef,
    ValueRef,
    make_program,
)
from secfarm.task.source import Found, Recorded, find_source
from secfarm.task.watch import (
    MISSING,
    ROOT,
    Read,
    Watch,
    closure_of,
    read_cell,
    read_default,
    read_global,
    read_keyword,
    read_own_cell,
)


@dataclass(frozen=True, slots=True)
class Resolved:
    """A program, the values found at its value watches in that order, where those are, and all watches."""

    program: Program
    values: tuple[object, ...]
    places: tuple[str, ...]
    watches: tuple[Watch, ...]


def resolve(root: FunctionType | Recorded) -> Resolved:
    """Return the program of a function of the user's own with all that it names.

    Raises:
        InvalidTaskError: something of it cannot travel; the message says what and how it was reached.
    """
    return _Builder(root).build()


@dataclass(frozen=True, slots=True)
class _Unit:
    """A function to send: its text and the objects that its names stand for; `chain` is how it was reached."""

    found: Found
    function: FunctionType | None
    chain: tuple[str, ...]
    names: dict[str, object]

    @property
    def title(self) -> str:
        """How messages name it."""
        name = self.found.function.name
        reached = f" (reached by {' -> '.join((*self.chain, name))})" if self.chain else ""
        return f"function `{name}`{reached}"


# Snapshots that need no second thought; all else may be something that goes by name.
_DATA: Final = frozenset(
    {type(None), bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset}
)


class _Builder:
    """Collects functions, namespaces, cells and values, from the called function on."""

    def __init__(self, root: FunctionType | Recorded) -> None:
        self._root = root.function if isinstance(root, Recorded) else root
        self._units: list[_Unit] = []
        self._index: dict[int, int] = {}  # by the id of functions and tasks
        self._kept: list[object] = [root]  # an id is a key only as long as its object lives
        self._functions: list[Function] = []
        self._namespaces: list[tuple[dict[str, object], dict[str, Binding]]] = []
        self._seen: set[tuple[int, str]] = set()  # namespaces' ids with names that were looked up in them
        self._cells: list[Binding | None] = []
        self._cell_index: dict[int, int] = {}
        self._held: dict[int, Held] = {}  # by the id of functions and tasks
        self._evaluating: set[Place] = set()  # functions that run text, which may name anything
        self._modules: list[ModuleType] = []
        self._classes: list[type] = []
        self._values: list[object] = []
        self._places: list[str] = []
        self._watches: list[Watch] = []
        self._imports: set[str] = set()
        self._requirements: set[str] = set()
        self._add_task(root, ())

    def build(self) -> Resolved:
        while self._bind_next() or self._bind_attributes():
            pass
        self._watch_closures()
        words = self._words()
        for held in self._held.values():
            self._watch_attributes(held, words)
        self._watch_installed(words)
        self._unwrap()
        program = make_program(
            SourceProgram(
                name=self._units[0].found.function.name,
                functions=tuple(self._functions_with_attributes()),
                namespaces=tuple(
                    Namespace(_label(names), tuple(sorted(bound.items()))) for names, bound in self._namespaces
                ),
                cells=tuple(self._cells),
                global_writes=tuple(sorted({name for unit in self._units for name in unit.found.writes})),
                submodules=self._submodules(words),
                value_count=len(self._values),
                imports=tuple(sorted(self._imports)),
                requirements=tuple(sorted(self._requirements)),
            ),
            tuple(unit.found.place for unit in self._units),
        )
        return Resolved(program, tuple(self._values), tuple(self._places), tuple(self._watches))

    def _submodules(self, words: frozenset[str]) -> tuple[str, ...]:
        return tuple(sorted({name for module in self._modules for name in submodules(module, words)}))

    def _watch_installed(self, words: frozenset[str]) -> None:
        """What the program may call of installed modules and classes has to be theirs, and stay so."""
        imported = [sys.modules.get(name) for name in (*self._submodules(words), *sorted(self._imports))]
        modules = [module for module in (*self._modules, *imported) if isinstance(module, ModuleType)]
        owners: list[Owner] = [*filter(is_installed_module, modules), *self._classes]
        for place, name, value in {found[:2]: found for owner in owners for found in unchanged(owner, words)}.values():
            held = vars(place)
            self._watch(lambda _, held=held, name=name: held.get(name), value)  # type: ignore[misc]

    # --- functions

    def _add_task(self, task: FunctionType | Recorded, chain: tuple[str, ...]) -> int:
        """Take a function into the program and return its index."""
        function = task.function if isinstance(task, Recorded) else task
        if isinstance(task, Recorded) and task.text is not None:
            unit = _Unit(task.text, None, chain, {"__name__": "__main__"})
        elif function is not None:
            unit = _Unit(
                find_source(function, task.lines if isinstance(task, Recorded) else ()),
                function,
                chain,
                function.__globals__,
            )
        else:
            raise InvalidTaskError("a task holds neither a function nor text; nothing was sent")
        self._units.append(unit)
        self._kept.append(task)
        self._imports.update(absolute_names(unit.found.needs, _label(unit.names)))
        self._require(task)
        index = self._index[id(task)] = len(self._units) - 1
        if function is not None:
            self._index[id(function)] = index
        return index

    def _require(self, task: FunctionType | Recorded) -> None:
        if isinstance(task, Recorded):
            self._requirements.update(task.requires)

    def _bind_next(self) -> bool:
        """Bind the names of the next function that was added; whether there was one."""
        if len(self._functions) == len(self._units):
            return False
        unit = self._units[len(self._functions)]
        function, text = unit.function, unit.found.function
        own = None if function is self._root else function
        if own is not None:
            self._watch_definition(own)
        defaults: Sequence[object] = unit.found.defaults
        keyword_defaults: Mapping[str, object] = unit.found.keyword_defaults
        if function is not None:
            defaults, keyword_defaults = function.__defaults__ or (), function.__kwdefaults__ or {}
        title = unit.title
        self._functions.append(
            msgspec.structs.replace(
                text,
                namespace=self._bind_globals(unit),
                cells=tuple(self._bind_cell(unit, position, name) for position, name in enumerate(text.free_names)),
                defaults=tuple(
                    self._resolve(value, read_default(own, position), f"default number {position + 1} of {title}", unit)
                    for position, value in enumerate(defaults)
                ),
                keyword_defaults=tuple(
                    (name, self._resolve(value, read_keyword(own, name), f"default of `{name}` of {title}", unit))
                    for name, value in keyword_defaults.items()
                ),
            )
        )
        return True

    def _watch_definition(self, function: FunctionType) -> None:
        """A function that was named may be changed in place."""
        defaults, names = function.__defaults__, tuple(function.__kwdefaults__ or ())
        self._watch(lambda _: function.__code__, function.__code__)
        self._watch(lambda _: function.__defaults__, defaults)
        self._watch(lambda _: tuple(function.__kwdefaults__ or ()) == names, expected=True)

    def _watch(self, read: Read, expected: object) -> None:
        self._watches.append(Watch(read, expected, is_value=False))

    # --- global names

    def _bind_globals(self, unit: _Unit) -> int:
        """Bind the global names of a function in its namespace and return the namespace's index."""
        index, bound = self._namespace(unit.names)
        fallback = _builtins_of(unit.names)
        names = unit.found.loads
        held = [read_global(unit.names, fallback, name)(None) for name in names]
        if (asked := namespace_asked_for(unit.found, held)) is not None:
            raise _asks_for_namespace(unit, asked)
        if evaluates(unit.found, unit.function, held):
            self._evaluating.add(unit.found.place)
            names += tuple(sorted(evaluated_names(unit.found, unit.names, fallback)))
        for name in names:
            if (id(unit.names), name) in self._seen or name == "__name__":
                continue
            self._seen.add((id(unit.names), name))
            read = read_global(unit.names, fallback, name)
            value = read(None)
            if value is MISSING or (name not in unit.names and _is_standard(name, value)):
                if value is builtins.globals:
                    raise _asks_for_namespace(unit, "globals()")
                self._watch(read, value)
            else:
                bound[name] = self._resolve(value, read, f"global variable `{name}` of {unit.title}", unit, name)
        self._bind_annotations(unit, bound)
        return index

    def _bind_annotations(self, unit: _Unit, bound: dict[str, Binding]) -> None:
        """Bind what annotations that are text name of the standard library: `dataclass` looks for `ClassVar` there.

        Nothing else: most annotations are never evaluated, and must not keep a task from travelling.
        """
        for name in sorted(unit.found.annotation_names.difference(bound).intersection(unit.names)):
            read = read_global(unit.names, {}, name)
            value = read(None)
            if type(value) in _DATA or isinstance(value, FunctionType | Recorded):
                continue
            reference = module_ref(value) if isinstance(value, ModuleType) else self._imported(value, unit, name)
            if reference is not None and reference.module.partition(".")[0] in sys.stdlib_module_names:
                self._seen.add((id(unit.names), name))
                bound[name] = self._resolve(value, read, f"global variable `{name}` of {unit.title}", unit, name)

    def _namespace(self, names: dict[str, object]) -> tuple[int, dict[str, Binding]]:
        for index, (known, bound) in enumerate(self._namespaces):
            if known is names:
                return index, bound
        self._namespaces.append((names, {}))
        return len(self._namespaces) - 1, self._namespaces[-1][1]

    # --- closure variables

    def _bind_cell(self, unit: _Unit, position: int, name: str) -> int:
        cell = closure_of(unit.function)[position]
        known = self._cell_index.get(id(cell))
        if known is not None:
            return known
        index = len(self._cells)
        self._cells.append(None)
        if name not in unit.found.used_free:
            return index  # and another function that shares the variable and uses it gets a cell of its own
        self._cell_index[id(cell)] = index
        self._kept.append(cell)
        read = read_cell(None if unit.function is self._root else cell, position)
        value = read(unit.function)
        if value is MISSING:
            self._watch(read, MISSING)
        else:
            self._cells[index] = self._resolve(value, read, f"closure variable `{name}` of {unit.title}", unit, name)
        return index

    def _watch_closures(self) -> None:
        """Which variables the called function shares with others is part of the program."""
        if any(closure_of(unit.function) for unit in self._units[1:]):
            for position, cell in enumerate(closure_of(self._root)):
                self._watch(read_own_cell(position), cell)

    def _unwrap(self) -> None:
        """Where tasks are only ever called by their name, let it be the function itself: nothing there can tell."""
        loaded: set[tuple[int, str]] = set()
        shared: set[int] = set()
        for unit, function in zip(self._units, self._functions, strict=True):
            called = frozenset() if unit.found.place in self._evaluating else only_called(unit.found)
            loaded.update((function.namespace, name) for name in unit.found.loads if name not in called)
            cells = zip(function.free_names, function.cells, strict=True)
            shared.update(index for name, index in cells if name in unit.found.used_free and name not in called)
        for space, (_, bound) in enumerate(self._namespaces):
            for name, binding in bound.items():
                if isinstance(binding, TaskRef) and (space, name) not in loaded:
                    bound[name] = FunctionRef(binding.index)
        for index, cell in enumerate(self._cells):
            if isinstance(cell, TaskRef) and index not in shared:
                self._cells[index] = FunctionRef(cell.index)

    # --- attributes of function objects

    def _hold(self, key: FunctionType | Recorded, index: int, function: FunctionType) -> None:
        """Take note that the program can reach this function as a value, and so its attributes."""
        if id(key) in self._held:
            return
        title = self._units[index].title
        if key is self._root:
            held = Held(index, title, lambda root: root, lambda root: attributes_of(root), {})  # noqa: PLW0108 - typed
        else:
            held = Held(index, title, lambda _: function, lambda _: attributes_of(key), {})
        self._held[id(key)] = held

    def _words(self) -> frozenset[str]:
        return frozenset[str]().union(*(unit.found.words for unit in self._units))

    def _bind_attributes(self) -> bool:
        """Bind the attributes that some code of the program asks for by name; whether there was a new one."""
        words = self._words()
        before = sum(len(held.bound) for held in self._held.values())
        for held in list(self._held.values()):
            unit = self._units[held.index]
            for name in sorted(asked(held.attributes(self._root), words).difference(held.bound)):
                read = attribute(held, name)
                place = f"attribute `{name}` of {held.title}"
                held.bound[name] = self._resolve(read(self._root), read, place, unit)
            for name, read in special_attributes(held, words):
                if name not in held.bound and (value := read(self._root)) != self._usual(held, name):
                    place = f"attribute `{name}` of {held.title}"
                    held.bound[name] = self._resolve(value, read, place, unit)
        return sum(len(held.bound) for held in self._held.values()) > before

    def _watch_attributes(self, held: Held, words: frozenset[str]) -> None:
        bound = frozenset(held.bound)
        self._watch(lambda root: asked(held.attributes(root), words) <= bound, expected=True)
        for name, read in special_attributes(held, words):
            if name not in bound:
                usual = self._usual(held, name)
                self._watch(lambda root, read=read, usual=usual: read(root) == usual, expected=True)  # type: ignore[misc]

    def _usual(self, held: Held, name: str) -> object:
        unit = self._units[held.index]
        return special_default(unit.function, _label(unit.names), name)

    def _functions_with_attributes(self) -> list[Function]:
        attributes: dict[int, dict[str, Binding]] = {}
        for held in self._held.values():
            attributes.setdefault(held.index, {}).update(held.bound)
        return [
            msgspec.structs.replace(function, attributes=tuple(sorted(attributes.get(index, {}).items())))
            for index, function in enumerate(self._functions)
        ]

    # --- one value

    def _resolve(self, value: object, read: Read, place: str, unit: _Unit, name: str | None = None) -> Binding:
        """Return how `value` travels; `name` is the variable's where it may have been imported.

        Raises:
            InvalidTaskError: it cannot.
        """
        if value is builtins.globals:
            raise _asks_for_namespace(unit, "globals()")
        binding = None if type(value) in _DATA else self._reference(value, place, unit, name)
        if binding is not None:
            self._watch(read, ROOT if value is self._root else value)
            return binding
        self._watches.append(Watch(read, type(value), is_value=True))
        self._values.append(value)
        self._places.append(place)
        return ValueRef(len(self._values) - 1)

    def _reference(self, value: object, place: str, unit: _Unit, name: str | None) -> Binding | None:
        """Return the binding of what is not data, None for data."""
        if isinstance(value, ModuleType):
            reference = module_ref(value)
            if reference is None:
                raise InvalidTaskError(f"{place} is {value!r}, which no import gives; nothing was sent")
            if reference.module.partition(".")[0] in sys.stdlib_module_names and not is_installed_module(value):
                raise InvalidTaskError(
                    f"{place} is {value!r}; a server would import the standard library's module of that name, so "
                    "nothing was sent. Give your own module another name."
                )
            self._modules.append(value)
            return reference
        if isinstance(value, FunctionType | Recorded):
            return self._function(value, unit)
        reference = self._imported(value, unit, name)
        if reference is not None:
            if isinstance(value, type):
                self._classes.append(value)
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
        return ImportRef(*source) if source is not None and offers(*source, value) else None

    def _function(self, value: FunctionType | Recorded, unit: _Unit) -> Binding:
        function = value.function if isinstance(value, Recorded) else value
        known = self._index.get(id(value), self._index.get(id(function)) if function is not None else None)
        if known is None:
            if function is not None and (reference := import_ref(function)) is not None:
                return reference
            try:
                known = self._add_task(value, (*unit.chain, unit.found.function.name))
            except InvalidTaskError as error:
                raise InvalidTaskError(f"{unit.title} names a function that cannot travel: {error}") from error
        self._require(value)
        if function is not None:
            self._kept.append(value)
            self._index[id(value)] = known
            self._hold(value, known, function)
        return FunctionRef(known) if isinstance(value, FunctionType) else TaskRef(known, getattr(value, "name", ""))


def _label(names: Mapping[str, object]) -> str:
    """Return `__name__` of a namespace; without one Python finds that of its built-ins."""
    label = names.get("__name__", "builtins")
    return label if isinstance(label, str) else "builtins"


def _asks_for_namespace(unit: _Unit, what: str) -> InvalidTaskError:
    return InvalidTaskError(
        f"{unit.title} uses `{what}`, which on a server would hold only what travelled; nothing was sent. Name the "
        "variables themselves, or pass them as arguments."
    )


def _builtins_of(names: Mapping[str, object]) -> Mapping[str, object]:
    found = names.get("__builtins__", builtins)
    if isinstance(found, ModuleType):
        return vars(found)
    return found if isinstance(found, dict) else {}


_OS_ERRORS: Final = frozenset({"EnvironmentError", "IOError", "WindowsError"})  # other names of OSError


def _is_standard(name: str, value: object) -> bool:
    """Whether the built-in `value` under this name is the one that every Python has."""
    if isinstance(value, BuiltinFunctionType | type):
        return value.__module__ in ("builtins", "io", "_io") and (value.__name__ == name or name in _OS_ERRORS)
    constant = value is NotImplemented or value is Ellipsis
    return constant or is_dunder(name) or type(value).__module__ == "_sitebuiltins"
