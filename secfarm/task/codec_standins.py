"""Stand-ins: the classes made here in place of those that a record names and that are not at hand.

A stand-in has the real class's name and answers what the record's fields tell. What only the real class could answer is
an error: a wrong answer would be silent. Format: docs/codec.md.
"""

from __future__ import annotations

import enum
import operator
import reprlib
import sys
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, NoReturn, Self, cast

from secfarm.task.codec_kinds import Malformed

__all__ = [
    "ANY",
    "ASKED",
    "COMPARED",
    "FIELDS",
    "FORMAT",
    "MIXINS",
    "SHOWN",
    "TEXT",
    "TRUTH",
    "UNHASHABLE",
    "ClassName",
    "Shape",
    "is_special",
    "make_stand_in",
]

MIXINS: Final[dict[str, type]] = {"int": int, "str": str}
TRUTH, TEXT, SHOWN, FORMAT, COMPARED, UNHASHABLE = "__bool__", "__str__", "__repr__", "__format__", "__eq__", "__hash__"
ANY: Final = "__getattr__"

FIELDS: Final = "__dataclass_fields__"  # by it `is_dataclass` knows a class
_DECODER: Final = "secfarm.task.codec"

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
        base: of an exception, its nearest built-in ancestor; of an enum, `int` or `str` when its members are such.
    """

    module: str
    qualname: str
    generation: int
    shape: Shape
    base: str


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
            raise ValueError(f"Got unexpected field names: {sorted(unknown)!r}")
        return self._make((self._asdict() | changes).values())


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


def make_stand_in(name: ClassName, fields: tuple[str, ...], hidden: frozenset[str], covering: frozenset[str]) -> type:
    """Return a new, empty class of that name.

    Args:
        hidden: what the real class has and does beside its fields, by name.
        covering: those of them that are fields too: the class does not answer with the field.

    Raises:
        Malformed: there is no such class.
    """
    bases, members = _ancestry(name, fields)
    members |= _refusals(name, hidden, covering)
    members |= {"__module__": name.module, "__qualname__": name.qualname}
    return type(name.qualname.rpartition(".")[2], bases, members)


def _refusals(name: ClassName, hidden: frozenset[str], covering: frozenset[str]) -> dict[str, Any]:
    """Return members that are errors where only the real class has the answer."""
    if not hidden:
        return {}

    def refuse(what: str) -> NoReturn:
        raise TypeError(
            f"`{what}` of {name.module}.{name.qualname} is not here: of an object only its attributes travel. Define "
            "the class inside of the task, install its module here, or send what is needed of it"
        )

    def missing(_: object, asked: str) -> object:
        if asked in hidden or (ANY in hidden and not is_special(asked)):
            refuse(asked)
        raise AttributeError(f"{name.qualname!r} object has no attribute {asked!r}", name=asked)

    def hashed(one: object) -> int:
        # A decoder puts keys where they are found by walking only; to look one up needs the real answer.
        if not sys._getframe(1).f_globals["__name__"].startswith(_DECODER):  # noqa: SLF001
            refuse("__hash__")
        return id(one)

    members: dict[str, Any] = {asked: _method(refuse, asked) for asked in hidden & ASKED}
    members |= {asked: property(_method(refuse, asked)) for asked in (*covering, *hidden & {FIELDS})}
    if UNHASHABLE in hidden:
        members["__hash__"] = None
    elif COMPARED in hidden:
        members["__hash__"] = hashed
    return members | {"__getattr__": missing}


def _method(refuse: Callable[[str], NoReturn], asked: str) -> Callable[..., NoReturn]:
    def method(*_: object, **__: object) -> NoReturn:
        refuse(asked)

    return method


def is_special(name: str) -> bool:
    """Whether Python gives such names their meaning."""
    return name.startswith("__") and name.endswith("__")


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
            mixin = MIXINS[name.base]
            return (EnumPlaceholder, mixin), {"__str__": int.__repr__ if mixin is int else str.__str__}
        case Shape.ENUM:
            return (MemberPlaceholder,), {}
        case Shape.PLAIN:
            return (Placeholder,), {}
        case _:
            return (ValuePlaceholder,), {}
