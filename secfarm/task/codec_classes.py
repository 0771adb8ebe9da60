"""The classes of records: which ones travel, what they are called, and which class a name means here.

A name is looked up among the classes that this process sent itself, and among modules that are loaded already, never
by import. What stands in for a class that is not at hand is made here too. Format: docs/codec.md.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
import types
from typing import Any, Final, cast
from weakref import WeakKeyDictionary, WeakValueDictionary

from secfarm.task.codec_answers import heap_types, made_in_c, minimal_exceptions, told_beside
from secfarm.task.codec_encode import TreeEncoder
from secfarm.task.codec_kinds import RECORD, CannotTravel, Node, shown
from secfarm.task.codec_standins import MIXINS, ClassName, Shape, loaded, make_stand_in

__all__ = [
    "ClassName",
    "Form",
    "Shape",
    "class_for",
    "form_of",
    "new_entry",
    "note_sent",
    "open_record",
    "slots_of",
]

_HOOKS: Final = ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__getnewargs__", "__getnewargs_ex__")
_NO_HOOK: Final = ""
_NO_CODE: Final = frozenset(
    {_NO_HOOK, "_dataclass_getstate", "_dataclass_setstate"}
)  # the latter of slotted dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Form:
    """How records of one class are read and made.

    Attributes:
        base: built-in that makes a new instance: `object`, `tuple`, an exception; of an enum, what its members are too.
        slotted: whether some attributes are in `__slots__`. The descriptors are not kept: they keep their class alive.
        stand_in: whether it is a class of ours, in place of one that is not at hand.
        hidden: what the class has and does beside its fields, as codec_answers tells it.
        entries: for the names of fields, the entry in a value's table of classes.
    """

    name: ClassName
    base: type
    slotted: bool = False
    stand_in: bool = False
    hidden: tuple[str, ...] = ()
    entries: dict[tuple[str, ...], tuple[object, ...]] = dataclasses.field(default_factory=dict, compare=False)


_forms: WeakKeyDictionary[type, Form] = WeakKeyDictionary()
_sent: WeakValueDictionary[ClassName, type] = WeakValueDictionary()
_placeholders: WeakValueDictionary[tuple[ClassName, tuple[str, ...], tuple[str, ...]], type] = WeakValueDictionary()
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


def slots_of(kind: type) -> dict[str, types.MemberDescriptorType]:
    """Return the descriptors of the class's `__slots__`, by name."""
    return {
        attribute: member
        for ancestor in reversed(heap_types(kind))
        for attribute, member in vars(ancestor).items()
        if type(member) is types.MemberDescriptorType
    }


def note_sent(form: Form, kind: type) -> None:
    """Remember that `kind` is what `form.name` means when it comes back."""
    if not form.stand_in:
        _sent.setdefault(form.name, kind)


def open_record(walk: TreeEncoder, node: Node, name: ClassName, fields: tuple[str, ...]) -> None:
    """Begin a record's node."""
    entry = (name.module, name.qualname, name.generation, int(name.shape), name.base, fields)
    try:
        "".join((name.module, name.qualname, *fields)).encode()
    except UnicodeEncodeError:
        raise CannotTravel("is of a class with names that are no text") from None
    node += (RECORD, walk.class_index(entry))


_MAX_ENTRIES: Final = 64  # kept for a class, whose instances may have any number of different attributes


def new_entry(form: Form, fields: tuple[str, ...]) -> tuple[object, ...]:
    """Return the entry of a class in the table of classes, and keep it in `form`.

    Raises:
        CannotTravel: its names are no text.
    """
    name, hidden = form.name, form.hidden
    entry: tuple[object, ...] = (name.module, name.qualname, name.generation, int(name.shape), name.base, fields)
    if hidden:
        entry += (hidden,)
    try:
        "".join((name.module, name.qualname, *fields, *hidden)).encode()
    except UnicodeEncodeError:
        raise CannotTravel("is of a class with names that are no text") from None
    if len(form.entries) >= _MAX_ENTRIES:
        form.entries.clear()
    form.entries[fields] = entry
    return entry


def class_for(name: ClassName, fields: tuple[str, ...], hidden: tuple[str, ...] = ()) -> type:
    """Return the class of this name, or one that stands in for it.

    Args:
        hidden: what the class has beside its fields.
    """
    known = _sent.get(name) or _loaded(name, fields)
    if known is not None and name.shape is Shape.NAMED_TUPLE and fields != getattr(known, "_fields", None):
        known = None  # by position, the values would be under other names
    return known or _placeholder(name, fields, hidden)


def _form(kind: type) -> Form:
    module, qualname = kind.__module__, kind.__qualname__
    shape, base = _shape(kind)
    if type(module) is not str or type(qualname) is not str:
        raise CannotTravel("is of a class whose name is no text")
    if shape is Shape.EXCEPTION:
        label = ",".join(one.__name__ for one in minimal_exceptions(kind))
    else:
        label = base.__name__ if base in MIXINS.values() else ""
    name = ClassName(module, qualname, 0, shape, label)
    if loaded(module, qualname) is not kind or _sent.get(name, kind) is not kind:
        name = dataclasses.replace(name, generation=next(_generations))
    return Form(name, base, slotted=bool(slots_of(kind)), hidden=told_beside(kind, shape, base))


def _shape(kind: type) -> tuple[Shape, type]:
    mro = kind.__mro__
    if issubclass(kind, enum.Enum):
        return Shape.ENUM, _member_type(kind)
    if issubclass(kind, BaseException):
        return Shape.EXCEPTION, made_in_c(kind)
    if (base := made_in_c(kind)) is tuple and _is_names(getattr(kind, "_fields", None)):
        return Shape.NAMED_TUPLE, tuple
    if base is not object or kind is object:
        raise CannotTravel(f"is of type {shown(kind)}, {_why_not(kind, base)}")
    for ancestor in mro[:-1]:
        for hook in _HOOKS:
            if getattr(vars(ancestor).get(hook), "__name__", _NO_HOOK) not in _NO_CODE:
                raise CannotTravel(f"is of type {shown(kind)}, which has a {hook} of its own; send its parts instead")
    return (Shape.PLAIN if kind.__eq__ is object.__eq__ else Shape.VALUE), object


def _member_type(kind: type[enum.Enum]) -> type:
    """Return the built-in that members are made from, where their values alone tell what they are."""
    base = made_in_c(kind)
    if base not in MIXINS.values() or getattr(kind, "_member_type_", object) is not base:
        return object
    values = [(member, member._value_) for member in vars(kind)["_member_map_"].values()]
    alike = all(type(value) is base and cast("Any", base).__eq__(member, value) is True for member, value in values)
    return base if alike else object


def _why_not(kind: type, base: type) -> str:
    if base is kind:
        return "which has no wire form"
    return f"a subclass of {shown(base)}, which would lose its type; convert it, or send its parts"


def _is_names(names: object) -> bool:
    return isinstance(names, tuple) and all(type(name) is str for name in names)


def _loaded(name: ClassName, fields: tuple[str, ...]) -> type | None:
    """Return the class when it is loaded and is one whose records hold nothing but data.

    Plain classes are not made from a peer's word: a `__del__` of one may delete a file that a field names.
    """
    found = loaded(name.module, name.qualname)
    if not isinstance(found, type) or name.generation or any("__del__" in vars(ancestor) for ancestor in found.__mro__):
        return None
    try:
        fits = form_of(found).name == name
    except CannotTravel:
        return None
    match name.shape:
        case Shape.PLAIN:
            fits = False
        case Shape.VALUE:
            fits = fits and dataclasses.is_dataclass(found) and _declared(found) <= set(fields)
    return found if fits else None


def _declared(kind: type) -> frozenset[str]:
    return frozenset(field.name for field in dataclasses.fields(kind))


def _placeholder(name: ClassName, fields: tuple[str, ...], hidden: tuple[str, ...]) -> type:
    """Return an empty class of that name; the same one as long as an instance of it lives."""
    key = name, fields if name.shape is Shape.NAMED_TUPLE else (), hidden
    made = _placeholders.get(key)
    if made is None:
        made = _placeholders[key] = make_stand_in(name, fields, hidden)
        _forms[made] = Form(name, made_in_c(made), stand_in=True, hidden=hidden)
    return made
