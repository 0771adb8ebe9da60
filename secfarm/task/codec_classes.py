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
from typing import Any, Final, cast
from weakref import WeakKeyDictionary, WeakValueDictionary

from secfarm.task.codec_encode import TreeEncoder
from secfarm.task.codec_kinds import RECORD, CannotTravel, Malformed, Node, shown

__all__ = [
    "ClassName",
    "Form",
    "Placeholder",
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
        base: built-in that makes a new instance: `object`, `tuple`, an exception; of an enum, what its members are too.
        slotted: whether some attributes are in `__slots__`. The descriptors are not kept: they keep their class alive.
        stand_in: whether it is a class of ours, in place of one that is not at hand.
        hidden: what the class has and does beside its fields, by name: a stand-in has to know what it cannot answer.
        covering: those of them that hide an attribute of that name, as properties do.
        entries: for the names of fields, the entry in a value's table of classes.
    """

    name: ClassName
    base: type
    slotted: bool = False
    stand_in: bool = False
    hidden: tuple[str, ...] = ()
    covering: frozenset[str] = frozenset()
    entries: dict[tuple[str, ...], tuple[object, ...]] = dataclasses.field(default_factory=dict, compare=False)


class Placeholder:
    """An instance of a class that is not at hand. Its class has the real one's name; its fields are attributes."""

    @reprlib.recursive_repr()
    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__qualname__}({fields})"


class TuplePlaceholder(Placeholder):
    """One of a named tuple; a tuple too."""

    _fields: tuple[str, ...]

    @reprlib.recursive_repr()
    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._fields)
        return f"{type(self).__name__}({fields})"


class ValuePlaceholder(Placeholder):
    """One that equals another of the same class with equal fields."""

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        scalars = (item for item in vars(self).values() if isinstance(item, int | str | float | bytes))
        return hash((type(self).__qualname__, *scalars))


class EnumPlaceholder(Placeholder):
    """One of an enum's member; shown as that."""

    def __repr__(self) -> str:
        held = vars(self)
        title = f"{type(self).__name__}.{held['name']}" if held["name"] is not None else type(self).__name__
        return f"<{title}: {held['value']!r}>"


class MemberPlaceholder(EnumPlaceholder, ValuePlaceholder):
    """One of a member that is neither an int nor a str."""

    __hash__ = ValuePlaceholder.__hash__

    def __str__(self) -> str:
        name = vars(self)["name"]
        return f"{type(self).__name__}.{name}" if name is not None else f"{type(self).__name__}({vars(self)['value']})"


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
    label = base.__name__ if shape is Shape.EXCEPTION or base in _MIXINS.values() else ""
    name = ClassName(module, qualname, 0, shape, label)
    if _named(module, qualname) is not kind or _sent.get(name, kind) is not kind:
        name = dataclasses.replace(name, generation=next(_generations))
    hidden, covering = _hidden(kind, shape)
    return Form(name, base, slotted=bool(slots_of(kind)), hidden=hidden, covering=covering)


# Of what a class says by special methods, the answers that would silently be others; the rest is a TypeError without.
_TRUTH, _TEXT, _FORMAT, _ANY = "__bool__", "__str__", "__format__", "__getattr__"
_MACHINERY: Final = frozenset(
    {"_abc_impl", "_asdict", "_field_defaults", "_fields", "_is_protocol", "_make", "_replace"}
)


def _hidden(kind: type, shape: Shape) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return what the class has and does beside its fields, and what of it hides an attribute of that name."""
    own = [one for one in kind.__mro__ if one.__flags__ & _HEAP_TYPE and one.__module__ not in ("enum", "typing")]
    held: dict[str, object] = {}
    for one in reversed(own):
        held |= vars(one)
    names = {name for name, item in held.items() if type(item) is not types.MemberDescriptorType}
    names = {name for name in names if not _is_special(name)} - _MACHINERY
    if shape is Shape.NAMED_TUPLE:
        names -= set(getattr(kind, "_fields"))  # noqa: B009 - a tuple's
    if shape is Shape.ENUM:
        names -= {"name", "value", *vars(kind)["_member_map_"]}
        names = {name for name in names if not (name.startswith("_") and name.endswith("_"))}
    covering = frozenset(name for name in names if hasattr(type(held[name]), "__set__"))
    has_truth = held.keys() & {"__bool__", "__len__"}
    if has_truth or (shape is Shape.ENUM and issubclass(kind, enum.Flag) and not issubclass(kind, int)):
        names.add(_TRUTH)
    if shape is not Shape.EXCEPTION and not _is_shown_alike(kind, shape):  # an error has to be shown somehow
        names.add(_TEXT)
    if "__format__" in held and shape is not Shape.ENUM:
        names.add(_FORMAT)
    if held.keys() & {"__getattr__", "__getattribute__"}:
        names.add(_ANY)
    return tuple(sorted(names)), covering


def _is_special(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _is_shown_alike(kind: type, shape: Shape) -> bool:
    """Whether `str` of an instance is that of a stand-in."""
    text: object = kind.__str__
    if shape is Shape.ENUM:
        known: tuple[object, ...] = (enum.Enum.__str__, int.__repr__, str.__str__, enum.Flag.__str__)
        mixed = issubclass(kind, int | str) and not issubclass(kind, enum.ReprEnum)
        return text in known and not mixed
    if text is not object.__str__:
        return False
    shown_as: object = kind.__repr__
    if shown_as is object.__repr__:
        return True
    code = getattr(getattr(kind.__repr__, "__wrapped__", kind.__repr__), "__code__", None)
    if shape is Shape.NAMED_TUPLE:
        return code is not None and code.co_filename.endswith(("collections/__init__.py", "<frozen collections>"))
    parameters = getattr(kind, "__dataclass_params__", None)
    made = parameters is not None and parameters.repr and code is not None and code.co_filename == "<string>"
    return made and all(one.repr for one in dataclasses.fields(kind))


def _shape(kind: type) -> tuple[Shape, type]:
    mro = kind.__mro__
    if issubclass(kind, enum.Enum):
        member_type = getattr(kind, "_member_type_", object)
        return Shape.ENUM, member_type if member_type in _MIXINS.values() else object
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


def _declared(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def _placeholder(name: ClassName, fields: tuple[str, ...], hidden: tuple[str, ...]) -> type:
    """Return an empty class of that name; the same one as long as an instance of it lives."""
    covering = frozenset(item for item in hidden if item in fields and not _is_special(item))
    key = name, fields if name.shape is Shape.NAMED_TUPLE else (), hidden, covering
    made = _placeholders.get(key)
    if made is None:
        bases, members = _ancestry(name, fields)
        members |= _refusals(name, frozenset(hidden), covering)
        members |= {"__module__": name.module, "__qualname__": name.qualname}
        made = _placeholders[key] = type(name.qualname.rpartition(".")[2], bases, members)
        _forms[made] = Form(name, _made_in_c(made), stand_in=True, hidden=hidden, covering=covering)
    return made


def _refusals(name: ClassName, hidden: frozenset[str], covering: frozenset[str]) -> dict[str, Any]:
    """Return members that are errors where only the real class has the answer: a wrong one would be silent."""
    if not hidden:
        return {}

    def refuse(what: str) -> TypeError:
        return TypeError(
            f"`{what}` of {name.module}.{name.qualname} is not here: of an object only its attributes travel. Define "
            "the class inside of the task, install its module here, or send what is needed of it"
        )

    def missing(_: object, asked: str) -> object:
        if asked in hidden or (_ANY in hidden and not _is_special(asked)):
            raise refuse(asked)
        raise AttributeError(f"{name.qualname!r} object has no attribute {asked!r}", name=asked)

    def covered(asked: str) -> property:
        def get(_: object) -> object:
            raise refuse(asked)

        return property(get)

    def special(asked: str) -> types.FunctionType:
        def method(_: object, *__: object) -> object:
            raise refuse(asked)

        return cast("types.FunctionType", method)

    members: dict[str, Any] = {asked: covered(asked) for asked in covering}
    members |= {asked: special(asked) for asked in (_TRUTH, _TEXT, _FORMAT) if asked in hidden}
    return members | {"__getattr__": missing}


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
            return (TuplePlaceholder, tuple), {"_fields": fields, **getters}
        case Shape.ENUM if name.base:
            mixin = _MIXINS[name.base]
            return (EnumPlaceholder, mixin), {"__str__": int.__repr__ if mixin is int else str.__str__}
        case Shape.ENUM:
            return (MemberPlaceholder,), {}
        case Shape.PLAIN:
            return (Placeholder,), {}
        case _:
            return (ValuePlaceholder,), {}
