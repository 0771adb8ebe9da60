"""The classes of records: which ones travel, what they are called, and which class a name means here.

A name is looked up among the classes that this process sent itself, and among modules that are loaded already, never
by import. What stands in for a class that is not at hand is made here too. Format: docs/codec.md.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
import operator
import reprlib
import sys
import types
from collections.abc import Iterable
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakValueDictionary

from secfarm.task.codec_kinds import CannotTravel, Malformed, shown

__all__ = ["ClassName", "Form", "Placeholder", "Shape", "class_for", "form_of"]

_HEAP_TYPE: Final = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a class statement, or by C code that copies one
_HOOKS: Final = ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__getnewargs__", "__getnewargs_ex__")
_DATACLASS_HOOKS: Final = frozenset({"_dataclass_getstate", "_dataclass_setstate"})
_MIXINS: Final[dict[str, type]] = {"int": int, "str": str}


class Shape(enum.IntEnum):
    """What kind of class it is; the numbers are on the wire."""

    PLAIN = 0  # equal to itself only
    VALUE = 1  # says itself what equals it, as dataclasses do
    NAMED_TUPLE = 2
    ENUM = 3
    EXCEPTION = 4


@dataclasses.dataclass(frozen=True, slots=True)
class ClassName:
    """What a class is called on the wire.

    Attributes:
        generation: 0 when module and qualname lead to it; else its number among those that its process sent, which
            tells local and redefined classes of one name apart.
        base: of an exception, its nearest built-in ancestor; of an enum, `int` or `str` when its members are such.
    """

    module: str
    qualname: str
    generation: int
    shape: Shape
    base: str


@dataclasses.dataclass(frozen=True, slots=True)
class Form:
    """How records of one class are read and made.

    Attributes:
        slots: descriptors of `__slots__`, by name.
        base: built-in that makes a new instance: `object`, `tuple`, an exception.
    """

    name: ClassName
    slots: dict[str, types.MemberDescriptorType]
    base: type


class Placeholder:
    """An instance of a class that is not at hand. Its class has the real one's name; its fields are attributes."""

    @reprlib.recursive_repr()
    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__module__}.{type(self).__qualname__}({fields})"


class ValuePlaceholder(Placeholder):
    """One that equals another of the same class with equal fields."""

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        scalars = (item for item in vars(self).values() if isinstance(item, int | str | float | bytes))
        return hash((type(self).__qualname__, *scalars))


_forms: WeakKeyDictionary[type, Form] = WeakKeyDictionary()
_sent: WeakValueDictionary[ClassName, type] = WeakValueDictionary()
_placeholders: WeakValueDictionary[tuple[ClassName, tuple[str, ...]], type] = WeakValueDictionary()
_generations: Final = itertools.count(1)


def form_of(kind: type) -> Form:
    """Return how records of `kind` travel.

    Raises:
        CannotTravel: they do not.
    """
    form = _forms.get(kind)
    if form is None:
        form = _forms[kind] = _form(kind)
    return form


def note_sent(form: Form, kind: type) -> None:
    """Remember that `kind` is what `form.name` means when it comes back."""
    _sent.setdefault(form.name, kind)


def class_for(name: ClassName, fields: tuple[str, ...]) -> type:
    """Return the class of this name, or one that stands in for it."""
    return _sent.get(name) or _loaded(name, fields) or _placeholder(name, fields)


def _form(kind: type) -> Form:
    module, qualname = kind.__module__, kind.__qualname__
    shape, base = _shape(kind)
    if type(module) is not str or type(qualname) is not str:
        raise CannotTravel("is of a class whose name is no text")
    label = base.__name__ if shape is Shape.EXCEPTION or base in _MIXINS.values() else ""
    name = ClassName(module, qualname, 0, shape, label)
    if _named(module, qualname) is not kind or _sent.get(name, kind) is not kind:
        name = dataclasses.replace(name, generation=next(_generations))
    slots = {
        attribute: member
        for ancestor in reversed(kind.__mro__)
        if ancestor.__flags__ & _HEAP_TYPE
        for attribute, member in vars(ancestor).items()
        if type(member) is types.MemberDescriptorType
    }
    return Form(name, slots, base)


def _shape(kind: type) -> tuple[Shape, type]:
    mro = kind.__mro__
    if issubclass(kind, enum.Enum):
        member_type = getattr(kind, "_member_type_", object)
        return Shape.ENUM, member_type if member_type in _MIXINS.values() else object
    if issubclass(kind, BaseException):
        return Shape.EXCEPTION, next(ancestor for ancestor in mro if ancestor.__module__ == "builtins")
    own = [ancestor for ancestor in mro if ancestor.__flags__ & _HEAP_TYPE]
    builtin = mro[len(own) :]
    _refuse_hooks(kind, own)
    if builtin == (tuple, object) and _is_names(getattr(kind, "_fields", None)):
        return Shape.NAMED_TUPLE, tuple
    if builtin != (object,):
        raise CannotTravel(f"is of type {shown(kind)}, {_why_not(own, builtin)}")
    return (Shape.PLAIN if kind.__eq__ is object.__eq__ else Shape.VALUE), object


def _why_not(own: list[type], builtin: tuple[type, ...]) -> str:
    if not own:
        return "which has no wire form"
    return f"a subclass of {shown(builtin[0])}, which would lose its type; convert it, or send its parts"


def _refuse_hooks(kind: type, own: list[type]) -> None:
    for hook in _HOOKS:
        found = next((vars(ancestor)[hook] for ancestor in own if hook in vars(ancestor)), None)
        if found is not None and getattr(found, "__name__", "") not in _DATACLASS_HOOKS and kind is not tuple:
            raise CannotTravel(f"is of type {shown(kind)}, which is copied by its own {hook}; send its parts instead")


def _is_names(names: object) -> bool:
    return isinstance(names, tuple) and all(type(name) is str for name in names)


def _named(module: str, qualname: str) -> object:
    """Return what the name leads to among loaded modules, without running a `__getattr__` of theirs."""
    found: object = sys.modules.get(module)
    for part in qualname.split("."):
        if not isinstance(found, types.ModuleType | type):
            return None
        found = vars(found).get(part)
    return found


def _loaded(name: ClassName, fields: Iterable[str]) -> type | None:
    """Return the class when it is loaded and is one whose records hold nothing but data.

    Plain classes are not made from a peer's word: a `__del__` of one may delete a file that a field names.
    """
    if name.generation or name.shape is Shape.PLAIN:
        return None
    found = _named(name.module, name.qualname)
    if not isinstance(found, type) or hasattr(found, "__del__"):
        return None
    try:
        if form_of(found).name != name:
            return None
    except CannotTravel:
        return None
    if dataclasses.is_dataclass(found):
        needed = {field.name for field in dataclasses.fields(found)}
    elif name.shape is Shape.NAMED_TUPLE:
        return found if tuple(fields) == getattr(found, "_fields", None) else None
    elif name.shape is Shape.VALUE:
        return None
    else:
        return found
    return found if needed <= set(fields) else None


def _placeholder(name: ClassName, fields: tuple[str, ...]) -> type:
    """Return an empty class of that name; the same one as long as an instance of it lives."""
    key = name, fields if name.shape is Shape.NAMED_TUPLE else ()
    made = _placeholders.get(key)
    if made is None:
        bases, members = _ancestry(name, fields)
        members |= {"__module__": name.module, "__qualname__": name.qualname}
        made = _placeholders[key] = type(name.qualname.rpartition(".")[2], bases, members)
        slots: dict[str, types.MemberDescriptorType] = {}
        _forms[made] = Form(name, slots, next(base for base in bases if base is not Placeholder))
    return made


def _ancestry(name: ClassName, fields: tuple[str, ...]) -> tuple[tuple[type, ...], dict[str, Any]]:
    match name.shape:
        case Shape.EXCEPTION:
            base = getattr(sys.modules["builtins"], name.base, None)
            if not (isinstance(base, type) and issubclass(base, BaseException)):
                raise Malformed("there is no such built-in exception")
            return (base,), {}
        case Shape.NAMED_TUPLE:
            if not all(field.isidentifier() and not field.startswith("__") for field in fields):
                raise Malformed("that is no name of a tuple's field")
            getters = {field: property(operator.itemgetter(at)) for at, field in enumerate(fields)}
            return (Placeholder, tuple), {"_fields": fields, "__slots__": (), **getters}
        case Shape.ENUM if name.base:
            return (Placeholder, _MIXINS[name.base]), {}
        case Shape.PLAIN:
            return (Placeholder,), {}
        case _:
            return (ValuePlaceholder,), {}
