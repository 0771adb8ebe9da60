"""Stand-ins: the classes made here in place of those that a record names and that are not at hand.

A stand-in has the real class's name and answers what the record's fields tell. What only the real class could answer is
an error: a wrong answer would be silent. Format: docs/codec.md.
"""

from __future__ import annotations

import abc
import collections.abc
import enum
import numbers
import operator
import reprlib
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NoReturn, Self, TypeAlias, cast

from secfarm.task.codec_kinds import Malformed

__all__ = [
    "ALL_ANSWERED",
    "ANCESTORS",
    "ANY",
    "ASKED",
    "BLANK",
    "COMPARED",
    "CONSTRUCTOR",
    "COVERING",
    "DICT",
    "DOCUMENTED",
    "FIELDS",
    "FORMAT",
    "HASH",
    "HEAP_TYPE",
    "LACKING",
    "MIXINS",
    "NO_DICT",
    "OF_ITS_OWN",
    "SHOWN",
    "TEXT",
    "TRUTH",
    "ClassName",
    "Shape",
    "is_special",
    "loaded",
    "make_stand_in",
    "stand_in_member",
]

# What enums' members can be beside: their value alone tells it.
MIXINS: Final[dict[str, type]] = {kind.__name__: kind for kind in (int, str, float, bytes, tuple)}

# What a class can be told to have (docs/codec.md), beside names of attributes and methods.
TRUTH, TEXT, SHOWN, FORMAT, COMPARED, HASH = "__bool__", "__str__", "__repr__", "__format__", "__eq__", "__hash__"
ANY, ALL_ANSWERED, CONSTRUCTOR, DOCUMENTED = "__getattr__", "__getattribute__", "__init__", "__doc__"
DICT: Final = "__dict__"  # does not hold just what the fields are
NO_DICT: Final = "__slots__"  # and no attribute can be added
FIELDS: Final = "__dataclass_fields__"  # by it `is_dataclass` knows a class
COVERING: Final = "="  # before the name of what answers even where an attribute of that name is set, as properties do
LACKING: Final = "-"  # before the name of a method that is set to None: not even what an ancestor has
ANCESTORS: Final = "__mro__"
BLANK: Final = " "  # between what a list is for and its items
OF_ITS_OWN: Final = "?"  # in place of fields: nobody here knows how

# What Python itself asks of an object by a special method: `p + q`, `callable(p)`, `with p`, `copy(p)` and so on. What
# has to do with making and storing objects is not among them: no class comes into being from a record.
_MAKING: Final = ("__new__", "__init__", "__getattribute__", "__class_getitem__", "__reduce__", "__getnewargs__")
ASKED: Final = (
    frozenset(
        name
        for kind in (complex, int, float, str, bytes, dict, set, list, deque, property)
        for name, item in vars(kind).items()
        if name.startswith("__") and callable(item)
    )
    | {"__call__", "__bool__", "__bytes__", "__complex__", "__fspath__", "__next__", "__await__", "__aiter__"}
    | {"__anext__", "__enter__", "__exit__", "__aenter__", "__aexit__", "__copy__", "__deepcopy__", "__setattr__"}
    | {"__delattr__", "__matmul__", "__rmatmul__", "__imatmul__", "__length_hint__", "__missing__", "__reversed__"}
).difference(_MAKING)

HEAP_TYPE: Final = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a class statement, or by C code that copies one
_DECODER: Final = "secfarm.task.codec"
_KEPT: Final = "_members_sent_"
_OURS: Final = frozenset({"_fields", "_name_", "_value_", _KEPT})
_MAX_MEMBERS: Final = 1024  # of one enum, kept so that `is` holds
_ENUMS: Final = {kind.__name__: kind for kind in (enum.IntEnum, enum.StrEnum, enum.IntFlag, enum.Flag, enum.Enum)}
_ABSTRACT: Final = {"abc": abc, "collections.abc": collections.abc, "numbers": numbers}

_Refuse: TypeAlias = Callable[[str], NoReturn]


class Shape(enum.IntEnum):
    """What kind of class it is; the numbers are on the wire."""

    PLAIN = 0  # equal to itself only
    VALUE = 1  # says itself what equals it, as dataclasses do
    NAMED_TUPLE = 2
    ENUM = 3
    EXCEPTION = 4


@dataclass(frozen=True, slots=True)
class ClassName:
    """What a class is called on the wire.

    Attributes:
        generation: 0 when module and qualname lead to it; else its number among those that its process sent, which
            tells local and redefined classes of one name apart.
        base: of an exception, the built-in ones that it descends from, with commas; of an enum, what its members are,
            out of `MIXINS`.
    """

    module: str
    qualname: str
    generation: int
    shape: Shape
    base: str


def loaded(module: str, qualname: str) -> object:
    """Return what the name leads to among loaded modules, without running a `__getattr__` of theirs."""
    found: object = sys.modules.get(module)
    for part in qualname.split("."):
        if not isinstance(found, types.ModuleType | type):
            return None
        found = vars(found).get(part)
    return found


def is_special(name: str) -> bool:
    """Whether Python gives such names their meaning."""
    return name.startswith("__") and name.endswith("__")


def _held(one: object) -> dict[str, object]:
    """Return an instance's attributes; `vars` is what its user may be refused."""
    return cast("dict[str, object]", object.__getattribute__(one, DICT))


# --- instances ---------------------------------------------------------------------------------------------------


class Placeholder:
    """An instance of a class that is not at hand. Its class has the real one's name; its fields are attributes."""

    def __init__(self, *_: object, **__: object) -> None:
        raise TypeError(
            f"{type(self).__module__}.{type(self).__qualname__} is not here, only objects of it are: none can be made"
        )

    def __getstate__(self) -> object:
        return _held(self).copy()

    def __setstate__(self, state: dict[str, object]) -> None:
        _held(self).update(state)

    @reprlib.recursive_repr()
    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in _held(self).items())
        return f"{type(self).__qualname__}({fields})"


class TuplePlaceholder(Placeholder):
    """One of a named tuple; a tuple too."""

    _fields: tuple[str, ...]

    @reprlib.recursive_repr()
    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._fields)
        return f"{type(self).__name__}({fields})"

    @classmethod
    def _make(cls, items: Iterable[object]) -> Self:
        values = tuple(items)
        if len(values) != len(cls._fields):
            raise TypeError(f"Expected {len(cls._fields)} arguments, got {len(values)}")
        return cast("Self", tuple.__new__(cast("type[tuple[object, ...]]", cls), values))

    def _asdict(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self._fields}

    def _replace(self, **changes: object) -> Self:
        if unknown := changes.keys() - set(self._fields):
            kind = ValueError if sys.version_info < (3, 13) else TypeError
            raise kind(f"Got unexpected field names: {sorted(unknown)!r}")
        return self._make((self._asdict() | changes).values())


class ValuePlaceholder(Placeholder):
    """One whose class says what equals it."""

    __slots__ = ("__hash_of_stand_in__",)  # kept: what is shared would be gone through again and again


del ValuePlaceholder.__slots__  # nothing that a class of a user's has to be taken for


class _Members(enum.EnumType):
    """Of which members there are a stand-in for an enum knows nothing."""

    def _refuse(cls, *_: object, **__: object) -> NoReturn:
        raise TypeError(f"the members of {cls.__module__}.{cls.__qualname__} are not here, only those that were sent")

    __call__ = __contains__ = __getitem__ = __iter__ = __len__ = __reversed__ = _refuse
    __members__ = property(_refuse)


_Members.__module__, _Members.__qualname__, _Members.__name__ = "enum", "EnumType", "EnumType"


def stand_in_member(kind: type, base: type, name: object, value: object) -> object:
    """Return the member of a stand-in for an enum, the same one for the same name and value as long as it is kept.

    Args:
        base: the built-in that members are too, or `object`.
    """
    kept: dict[tuple[object, ...], object] = vars(kind)[_KEPT]
    key: tuple[object, ...] = name, type(value), value
    try:
        if (known := kept.get(key)) is not None:
            return known
    except TypeError:
        key = ()  # its value is not hashable
    made: object = object.__new__(kind) if base is object else cast("Any", base).__new__(kind, value)
    _held(made).update(_name_=name, _value_=value)
    if key:
        if len(kept) >= _MAX_MEMBERS:
            kept.clear()
        kept[key] = made
    return made


# --- their classes -----------------------------------------------------------------------------------------------


def make_stand_in(name: ClassName, fields: tuple[str, ...], hidden: tuple[str, ...]) -> type:
    """Return a new, empty class of that name.

    Args:
        hidden: what the real class has and does beside its fields, as codec_answers tells it.

    Raises:
        Malformed, TypeError, ValueError: there is no such class.
    """
    names = {item for item in hidden if BLANK not in item}
    lists = {key: tuple(items) for key, *items in (item.split(BLANK) for item in hidden if BLANK in item)}
    ancestors = [
        (module, qualname) for module, _, qualname in (item.partition(":") for item in lists.get(ANCESTORS, ()))
    ]

    def refuse(what: str) -> NoReturn:
        raise TypeError(
            f"`{what}` of {name.module}.{name.qualname} is not here: of an object only its attributes travel. Define "
            "the class inside of the task, install its module here, or send what is needed of it"
        )

    class_of = property(_class_of(name, ancestors, refuse))
    made = _empty(name, fields, ancestors, class_of)
    members = _answers(name, lists, names, refuse) | _refusals(names, refuse)
    members |= _guards(names | ({DICT} if name.shape is Shape.ENUM else set()), refuse)
    for asked, member in members.items():
        type.__setattr__(made, asked, member)
    if type(made) is abc.ABCMeta:
        made.__abstractmethods__ = frozenset()
    return made


def _empty(name: ClassName, fields: tuple[str, ...], ancestors: list[tuple[str, str]], class_of: property) -> type:
    """Return the class before anything is said of it."""
    title = name.qualname.rpartition(".")[2]
    members: dict[str, Any] = {"__module__": name.module, "__qualname__": name.qualname, "__class__": class_of}
    bases: tuple[type, ...]
    match name.shape:
        case Shape.ENUM:
            return _empty_enum(name, title, members, ancestors)
        case Shape.EXCEPTION:
            bases = tuple(map(_exception, name.base.split(",")))
        case Shape.NAMED_TUPLE:
            if not all(field.isidentifier() and not field.startswith("__") for field in fields):
                raise Malformed("that is no name of a tuple's field")
            bases = TuplePlaceholder, tuple
            members |= {field: property(operator.itemgetter(at)) for at, field in enumerate(fields)}
            members["_fields"] = fields
        case Shape.PLAIN:
            bases = (Placeholder,)
        case _:
            bases = (ValuePlaceholder,)
    return type(title, (*bases, *filter(None, (_known_abc(*one) for one in ancestors))), members)


def _exception(name: str) -> type:
    base = getattr(sys.modules["builtins"], name, None)
    if not (isinstance(base, type) and issubclass(base, BaseException)):
        raise Malformed("there is no such built-in exception")
    return base


def _empty_enum(name: ClassName, title: str, members: dict[str, Any], ancestors: list[tuple[str, str]]) -> type:
    base = MIXINS[name.base] if name.base else object
    flavours = [_ENUMS[qualname] for module, qualname in ancestors if module == "enum" and qualname in _ENUMS]
    flavour = next((one for one in flavours if vars(one)["_member_type_"] in (object, base)), enum.Enum)
    bases = (flavour,) if issubclass(flavour, base) else (base, flavour)
    held: Any = enum.EnumType.__prepare__(title, bases)
    for key, member in members.items():
        held[key] = member
    made: Any = enum.EnumType(title, bases, held)
    type.__setattr__(made, _KEPT, {})
    made.__class__ = _Members
    return cast("type", made)


def _known_abc(module: str, qualname: str) -> type | None:
    """Return the abstract class of that name if it is one that every Python has."""
    found = vars(_ABSTRACT[module]).get(qualname) if module in _ABSTRACT else None
    return found if type(found) is abc.ABCMeta else None


# --- what is answered by fields ----------------------------------------------------------------------------------


def _answers(name: ClassName, lists: dict[str, tuple[str, ...]], names: set[str], refuse: _Refuse) -> dict[str, Any]:
    members: dict[str, Any] = {}
    is_value = name.shape is Shape.VALUE
    if (shown := lists.get(SHOWN)) is not None:
        members[SHOWN] = _shower(shown)
    if is_value:
        compared = lists.get(COMPARED)
        members[COMPARED] = _comparer(_held if compared is None else partial(_parts, compared), name, refuse)
    elif name.shape is Shape.ENUM and not name.base:
        members[COMPARED] = _comparer(_held, name, refuse)
    hashed = lists.get(HASH)
    if hashed is not None and is_value and OF_ITS_OWN not in hashed:
        members[HASH] = _hasher(hashed)
    elif hashed is not None or COMPARED in names:
        members[HASH] = _placer(refuse)
    return members


def _parts(fields: tuple[str, ...], one: object) -> tuple[object, ...]:
    return tuple([getattr(one, field) for field in fields])


def _shower(fields: tuple[str, ...]) -> Callable[[object], str]:
    @reprlib.recursive_repr()
    def show(one: object) -> str:
        return f"{type(one).__qualname__}({', '.join([f'{field}={getattr(one, field)!r}' for field in fields])})"

    return show


def _comparer(parts: Callable[[object], object], name: ClassName, refuse: _Refuse) -> Callable[[object, object], Any]:
    def compare(one: object, other: object) -> Any:  # noqa: ANN401 - NotImplemented too
        if type(other) is type(one):
            return bool(parts(one) == parts(other))
        if type(other) is loaded(name.module, name.qualname):  # its own `==` would say that the classes differ
            refuse(COMPARED)
        return NotImplemented

    return compare


def _hasher(fields: tuple[str, ...]) -> Callable[[object], int]:
    kept: Any = vars(ValuePlaceholder)["__hash_of_stand_in__"]

    def hashed(one: object) -> int:
        try:
            return cast("int", kept.__get__(one))
        except AttributeError:
            kept.__set__(one, made := hash(_parts(fields, one)))
            return made

    return hashed


def _asking() -> str:
    """Return the name of the module whose code asks."""
    frame: types.FrameType | None = sys._getframe(1)  # noqa: SLF001
    while frame is not None and frame.f_globals.get("__name__") == __name__:
        frame = frame.f_back
    return "" if frame is None else str(frame.f_globals.get("__name__"))


def _placer(refuse: _Refuse) -> Callable[[object], int]:
    def placed(one: object) -> int:
        # A decoder puts keys where they are found by walking only; to look one up needs the real answer.
        if not _asking().startswith(_DECODER):
            refuse(HASH)
        return id(one)

    return placed


# --- what is refused ---------------------------------------------------------------------------------------------


class _Hidden:
    """In a stand-in's class: an attribute of the real one. What is set on the instance comes first."""

    __slots__ = ("_name", "_refuse")

    def __init__(self, name: str, refuse: _Refuse) -> None:
        self._name, self._refuse = name, refuse

    def __get__(self, one: object, owner: type | None = None) -> NoReturn:
        self._refuse(self._name)


class _Covering(_Hidden):
    """One that comes before what is set on the instance, as a property does."""

    __slots__ = ()

    def __set__(self, one: object, value: object) -> None:
        self._refuse(self._name)

    def __delete__(self, one: object) -> None:
        self._refuse(self._name)


def _refusals(names: set[str], refuse: _Refuse) -> dict[str, Any]:
    """Return members that are errors where only the real class has the answer."""
    members: dict[str, Any] = {}
    for name in names:
        if name.startswith(COVERING):
            members[name[1:]] = _Covering(name[1:], refuse)
        elif name.startswith(LACKING):
            members[name[1:]] = None
        elif name == FIELDS:
            members[name] = property(_method(refuse, name))
        elif name in ASKED or name == CONSTRUCTOR:
            members[name] = _method(refuse, name)
        elif not is_special(name) or name == DOCUMENTED:
            members[name] = _Hidden(name, refuse)
    return {name: member for name, member in members.items() if name not in _OURS}


def _guards(names: set[str], refuse: _Refuse) -> dict[str, Any]:
    """Return what stands before all attributes, where the real class has such a thing or lacks a `__dict__`."""

    def get(one: object, asked: str) -> object:
        if (asked in names and asked in (DICT, NO_DICT)) or (ALL_ANSWERED in names and not is_special(asked)):
            refuse(asked)
        return object.__getattribute__(one, asked)

    def get_missing(one: object, asked: str) -> object:
        if not is_special(asked):
            refuse(asked)
        raise AttributeError(f"{type(one).__name__!r} object has no attribute {asked!r}", name=asked, obj=one)

    def put(one: object, asked: str, value: object) -> None:
        if asked not in _held(one) and not hasattr(type(one), asked):
            refuse(asked)
        object.__setattr__(one, asked, value)

    members: dict[str, Any] = {}
    if not names.isdisjoint({DICT, NO_DICT, ALL_ANSWERED}):
        members[ALL_ANSWERED] = get
    if ANY in names:
        members[ANY] = get_missing
    if NO_DICT in names and "__setattr__" not in names:
        members["__setattr__"] = put
    return members


def _method(refuse: _Refuse, asked: str) -> Callable[..., NoReturn]:
    def method(*_: object, **__: object) -> NoReturn:
        refuse(asked)

    return method


def _class_of(name: ClassName, ancestors: list[tuple[str, str]], refuse: _Refuse) -> Callable[[object], type]:
    """Return what tells `isinstance` an object's class: the real one where that has come, else the stand-in.

    It is refused where the real one has an ancestor that is here: the stand-in would be taken for none of it.
    """

    def class_of(one: object) -> type:
        kind = type(one)
        real = None if name.generation else loaded(name.module, name.qualname)
        if isinstance(real, type) and real.__flags__ & HEAP_TYPE:
            return real
        asking = _asking()  # for ourselves, and for names, it is enough
        if asking == "enum" or asking.startswith("secfarm."):
            return kind
        if any(isinstance(found := loaded(*path), type) and found not in kind.__mro__ for path in ancestors):
            refuse("__class__")
        return kind

    return class_of
