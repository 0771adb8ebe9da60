"""The classes of records: which ones travel, what they are called, and which class a name means here.

A name is looked up among the classes that this process sent itself, and among modules that are loaded already, never
by import. What stands in for a class that is not at hand is made here too. Format: docs/codec.md.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
import sys
import types
from typing import Final
from weakref import WeakKeyDictionary, WeakValueDictionary

from secfarm.task.codec_encode import TreeEncoder
from secfarm.task.codec_kinds import RECORD, CannotTravel, Node, shown
from secfarm.task.codec_standins import (
    ANY,
    ASKED,
    COMPARED,
    FIELDS,
    FORMAT,
    MIXINS,
    SHOWN,
    TEXT,
    TRUTH,
    UNHASHABLE,
    ClassName,
    Shape,
    is_special,
    make_stand_in,
)

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

_HEAP_TYPE: Final = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a class statement, or by C code that copies one
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
        hidden: what the class has and does beside its fields, by name: a stand-in has to know what it cannot answer.
        covering: those of them that hide an attribute of that name, as properties do.
        compared: the fields that `==` of the class compares; None where it is not by fields.
        entries: for the names of fields, the entry in a value's table of classes.
    """

    name: ClassName
    base: type
    slotted: bool = False
    stand_in: bool = False
    hidden: tuple[str, ...] = ()
    covering: frozenset[str] = frozenset()
    compared: frozenset[str] | None = None
    entries: dict[tuple[str, ...], tuple[object, ...]] = dataclasses.field(default_factory=dict, compare=False)


_forms: WeakKeyDictionary[type, Form] = WeakKeyDictionary()
_sent: WeakValueDictionary[ClassName, type] = WeakValueDictionary()
_placeholders: WeakValueDictionary[tuple[ClassName, tuple[str, ...], tuple[str, ...], frozenset[str]], type] = (
    WeakValueDictionary()
)
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
        for ancestor in reversed(kind.__mro__)
        if ancestor.__flags__ & _HEAP_TYPE
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
    if not form.stand_in:
        hidden = tuple(item for item in hidden if item in form.covering or item not in fields)
        if form.compared is not None and form.compared != set(fields):
            hidden += (COMPARED,)
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
    label = base.__name__ if shape is Shape.EXCEPTION or base in MIXINS.values() else ""
    name = ClassName(module, qualname, 0, shape, label)
    if _named(module, qualname) is not kind or _sent.get(name, kind) is not kind:
        name = dataclasses.replace(name, generation=next(_generations))
    hidden, covering = _hidden(kind, shape, base)
    by_fields = shape is Shape.VALUE and COMPARED not in hidden
    return Form(
        name,
        base,
        slotted=bool(slots_of(kind)),
        hidden=hidden,
        covering=covering,
        compared=_declared(kind) if by_fields else None,
    )


_GENERATED: Final = "<string>"  # where the code of a dataclass's own methods says that it stands
_LOOKED_AT: Final = frozenset({TEXT, SHOWN, COMPARED, UNHASHABLE})  # may be alike though they are the class's own
_FLAG_OPERATORS: Final = frozenset(
    {"__and__", "__or__", "__xor__", "__rand__", "__ror__", "__rxor__", "__invert__"}
    | {"__contains__", "__iter__", "__len__"}
)
_MACHINERY: Final = frozenset(
    {"_abc_impl", "_asdict", "_field_defaults", "_fields", "_is_protocol", "_make", "_replace"}
)


def _hidden(kind: type, shape: Shape, base: type) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return what the class has and does beside its fields, and what of it hides an attribute of that name."""
    own = [one for one in kind.__mro__ if one.__flags__ & _HEAP_TYPE and one.__module__ not in ("enum", "typing")]
    held: dict[str, object] = {}
    for one in reversed(own):
        held |= vars(one)
    names = {name for name, item in held.items() if type(item) is not types.MemberDescriptorType}
    names = {name for name in names if not is_special(name)} - _MACHINERY
    if shape is Shape.NAMED_TUPLE:
        names -= set(getattr(kind, "_fields"))  # noqa: B009 - a tuple's
    if shape is Shape.ENUM:
        names -= {"name", "value", *vars(kind)["_member_map_"]}
        names |= {name for member in vars(kind)["_member_map_"].values() for name in vars(member)}
        names = {name for name in names if not (name.startswith("_") and name.endswith("_"))}
    covering = frozenset(name for name in names if hasattr(type(held.get(name)), "__set__"))
    return tuple(sorted(names | _special_answers(kind, shape, base, held))), covering


def _special_answers(kind: type, shape: Shape, base: type, held: dict[str, object]) -> set[str]:
    """Return the special methods whose answers a stand-in would not know, or would get wrong."""
    names = {
        name
        for name, item in held.items()
        if name in ASKED - _LOOKED_AT and getattr(item, "__module__", None) != "enum"  # which copies its own into each
    }
    if shape is Shape.ENUM:
        names |= _special_to_enums(kind, base)
    answers = {
        TRUTH: "__len__" in names and not issubclass(kind, int),
        UNHASHABLE: getattr(kind, "__hash__", None) is None,
        SHOWN: not _is_shown_alike(kind, shape, base),
        TEXT: TEXT in names or not _is_told_alike(kind, shape, base),
        COMPARED: not _is_compared_alike(kind, shape, base),
        FIELDS: dataclasses.is_dataclass(kind),
        ANY: not held.keys().isdisjoint({ANY, "__getattribute__"}),
    }
    return names | {name for name, applies in answers.items() if applies}


def _special_to_enums(kind: type, base: type) -> set[str]:
    names = set(_FLAG_OPERATORS) if issubclass(kind, enum.Flag) else set()
    if issubclass(kind, int | str) and not issubclass(kind, enum.ReprEnum):
        names |= {TEXT, FORMAT}
    if (made := _made_in_c(kind)) is not base:  # members are of a type that no stand-in is of
        names |= vars(made).keys() & ASKED
    return names


def _is_told_alike(kind: type, shape: Shape, base: type) -> bool:
    """Whether `str` of an instance is that of a stand-in, which may be its `repr`."""
    text: object = kind.__str__
    if shape is Shape.ENUM:
        return text in (enum.Enum.__str__, int.__repr__, str.__str__, enum.Flag.__str__)
    return text is base.__str__


def _is_shown_alike(kind: type, shape: Shape, base: type) -> bool:
    """Whether `repr` of an instance is that of a stand-in."""
    shown_as: object = kind.__repr__
    if shape is Shape.ENUM:
        return getattr(shown_as, "__module__", None) == "enum"
    code = _code_of(shown_as)
    if shape is Shape.NAMED_TUPLE:
        return code is not None and code.co_filename.endswith(("collections/__init__.py", "<frozen collections>"))
    if shown_as is base.__repr__:
        return True
    parameters = getattr(kind, "__dataclass_params__", None)
    made = parameters is not None and parameters.repr and code is not None and code.co_filename == _GENERATED
    return made and all(one.repr for one in dataclasses.fields(kind))


def _is_compared_alike(kind: type, shape: Shape, base: type) -> bool:
    """Whether `==` of an instance is that of a stand-in."""
    compared: object = kind.__eq__
    if compared is base.__eq__:
        return True
    parameters, code = getattr(kind, "__dataclass_params__", None), _code_of(compared)
    made = parameters is not None and parameters.eq and code is not None and code.co_filename == _GENERATED
    return shape is Shape.VALUE and made and all(one.compare for one in dataclasses.fields(kind))


def _code_of(method: object) -> types.CodeType | None:
    return getattr(getattr(method, "__wrapped__", method), "__code__", None)


def _shape(kind: type) -> tuple[Shape, type]:
    mro = kind.__mro__
    if issubclass(kind, enum.Enum):
        member_type = getattr(kind, "_member_type_", object)
        return Shape.ENUM, member_type if member_type in MIXINS.values() else object
    if issubclass(kind, BaseException):
        return Shape.EXCEPTION, _made_in_c(kind)
    if (base := _made_in_c(kind)) is tuple and _is_names(getattr(kind, "_fields", None)):
        return Shape.NAMED_TUPLE, tuple
    if base is not object or kind is object:
        raise CannotTravel(f"is of type {shown(kind)}, {_why_not(kind, base)}")
    for ancestor in mro[:-1]:
        for hook in _HOOKS:
            if getattr(vars(ancestor).get(hook), "__name__", _NO_HOOK) not in _NO_CODE:
                raise CannotTravel(f"is of type {shown(kind)}, which has a {hook} of its own; send its parts instead")
    return (Shape.PLAIN if kind.__eq__ is object.__eq__ else Shape.VALUE), object


def _made_in_c(kind: type) -> type:
    """Return the ancestor that decides an instance's layout, whose `__new__` must make it."""
    while kind.__flags__ & _HEAP_TYPE and kind.__base__ is not None:
        kind = kind.__base__
    return kind


def _why_not(kind: type, base: type) -> str:
    if base is kind:
        return "which has no wire form"
    return f"a subclass of {shown(base)}, which would lose its type; convert it, or send its parts"


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


def _loaded(name: ClassName, fields: tuple[str, ...]) -> type | None:
    """Return the class when it is loaded and is one whose records hold nothing but data.

    Plain classes are not made from a peer's word: a `__del__` of one may delete a file that a field names.
    """
    found = _named(name.module, name.qualname)
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
    covering = frozenset(item for item in hidden if item in fields and not is_special(item))
    key = name, fields if name.shape is Shape.NAMED_TUPLE else (), hidden, covering
    made = _placeholders.get(key)
    if made is None:
        made = _placeholders[key] = make_stand_in(name, fields, frozenset(hidden), covering)
        _forms[made] = Form(name, _made_in_c(made), stand_in=True, hidden=hidden, covering=covering)
    return made
