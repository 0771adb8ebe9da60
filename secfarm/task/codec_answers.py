"""Answers: what a class has and does beside the fields of its records, for those who will stand in for it.

Whatever a stand-in does not know is an error there and never a wrong answer, so it has to know of everything. Nothing
of the class runs. Format: docs/codec.md, records.
"""

from __future__ import annotations

import builtins
import collections
import dataclasses
import enum
import types
from typing import Any, Final, cast

from secfarm.task.codec_standins import (
    ALL_ANSWERED,
    ANCESTORS,
    ANY,
    ASKED,
    BLANK,
    COMPARED,
    CONSTRUCTOR,
    COVERING,
    DICT,
    DOCUMENTED,
    FIELDS,
    FORMAT,
    HASH,
    HEAP_TYPE,
    LACKING,
    NO_DICT,
    OF_ITS_OWN,
    SHOWN,
    TEXT,
    TRUTH,
    Shape,
    is_special,
)

__all__ = ["heap_types", "made_in_c", "minimal_exceptions", "told_beside"]

_GENERATED: Final = ("<string>", "__create_fn__.<locals>")  # where a dataclass's own methods say that they stand
_MAX_MEMBERS: Final = 64  # of an enum, told by name

_LOOKED_AT: Final = frozenset({TEXT, SHOWN, COMPARED, HASH})  # may be alike though they are the class's own
_FLAG_OPERATORS: Final = frozenset(
    {"__and__", "__or__", "__xor__", "__rand__", "__ror__", "__rxor__", "__invert__"}
    | {"__contains__", "__iter__", "__len__"}
)
_MACHINERY: Final = frozenset({"_abc_impl", "_field_defaults", "_fields", "_is_protocol"})
_TUPLES_OWN: Final = frozenset({"_asdict", "_make", "_replace"})


def told_beside(kind: type, shape: Shape, base: type) -> tuple[str, ...]:
    """Return what a stand-in has to know of the class: names, and lists of names behind what they are for.

    Args:
        kind: the class.
        shape: how its records travel.
        base: what its instances are made with.
    """
    if _is_built_in(kind):
        return ()
    held: dict[str, object] = {}
    for one in reversed(_own_types(kind)):
        held |= vars(one)
    names = {name for name, item in held.items() if not is_special(name) and not _is_slot(item)} - _MACHINERY
    if shape is Shape.NAMED_TUPLE:
        own = _TUPLES_OWN.union(getattr(kind, "_fields"))  # noqa: B009 - a tuple's
        names -= {name for name in own if _is_of_collections(held.get(name))}
    if shape is Shape.ENUM:
        if made_in_c(kind) is not base:
            names |= {name for name in vars(made_in_c(kind)) if not is_special(name)}
        names = {name for name in names | _of_members(kind) if not (name.startswith("_") and name.endswith("_"))}
    told = {COVERING + name if hasattr(type(held.get(name)), "__set__") else name for name in names}
    told |= _special_answers(kind, shape, base, held)
    return (*sorted(told), *_lists(kind, shape, base))


def heap_types(kind: type) -> list[type]:
    """Return those of the class and its ancestors that are no part of the interpreter."""
    return [one for one in kind.__mro__ if one.__flags__ & HEAP_TYPE]


def made_in_c(kind: type) -> type:
    """Return the ancestor that decides an instance's layout, whose `__new__` must make it."""
    while kind.__flags__ & HEAP_TYPE and kind.__base__ is not None:
        kind = kind.__base__
    return kind


def minimal_exceptions(kind: type) -> list[type]:
    """Return the built-in exceptions that the class descends from, without those that others of them descend from."""
    known = [one for one in kind.__mro__ if issubclass(one, BaseException) and _is_built_in(one)]
    return [one for one in known if not any(other is not one and issubclass(other, one) for other in known)]


def _is_built_in(kind: type) -> bool:
    return kind.__module__ == "builtins" and vars(builtins).get(kind.__name__) is kind


def _own_types(kind: type) -> list[type]:
    return [one for one in heap_types(kind) if one.__module__ not in ("enum", "typing") and not _is_built_in(one)]


def _is_slot(item: object) -> bool:
    return type(item) is types.MemberDescriptorType


def _is_of_collections(item: object) -> bool:
    """Whether this is what `namedtuple` made."""
    code = _code_of(getattr(item, "__func__", item))
    return type(item).__module__ in ("_collections", "collections") or (
        code is not None and code.co_filename == collections.__file__
    )


def _of_members(kind: type) -> set[str]:
    members = vars(kind)["_member_map_"]
    names = set(members) if len(members) <= _MAX_MEMBERS else set()
    return names.union(*(vars(member) for member in members.values()))


# --- what Python asks by special names ---------------------------------------------------------------------------


def _special_answers(kind: type, shape: Shape, base: type, held: dict[str, object]) -> set[str]:
    """Return the special methods whose answers a stand-in would not know, or would get wrong."""
    names = {
        name
        for name, item in held.items()
        if name in ASKED - _LOOKED_AT and not (shape is Shape.ENUM and _is_copied(item, getattr(base, name, None)))
    }
    if shape is Shape.ENUM:
        names |= _special_to_enums(kind, base)
    no_dict = kind.__dictoffset__ == 0
    answers = {
        TRUTH: "__len__" in names and not issubclass(kind, int),
        SHOWN: not _is_shown_alike(kind, shape, base),
        TEXT: TEXT in names or not _is_told_alike(kind, shape),
        COMPARED: not _is_compared_alike(kind, shape, base),
        FIELDS: dataclasses.is_dataclass(kind),
        ANY: ANY in held,
        ALL_ANSWERED: ALL_ANSWERED in held,
        CONSTRUCTOR: shape is Shape.EXCEPTION and not held.keys().isdisjoint({"__init__", "__new__"}),
        NO_DICT: no_dict,
        DICT: no_dict or any(_is_slot(item) for item in held.values()),
        DOCUMENTED: vars(kind).get(DOCUMENTED) is not None,
    }
    names |= {name for name, applies in answers.items() if applies}
    lacking = {name for name in ASKED & held.keys() if held[name] is None}
    return (names - lacking) | {LACKING + name for name in lacking}


def _is_copied(item: object, bases: object) -> bool:
    """Whether `enum` put the method into the class: one of its own, or one of what members are too."""
    return getattr(item, "__module__", None) == "enum" or item is bases


def _special_to_enums(kind: type, base: type) -> set[str]:
    names = set(_FLAG_OPERATORS) if issubclass(kind, enum.Flag) else set()
    if issubclass(kind, int | str) and not issubclass(kind, enum.ReprEnum):
        names |= {TEXT, FORMAT}
    if (made := made_in_c(kind)) is not base:  # members are of a type that no stand-in is of
        names |= (vars(made).keys() & ASKED) - {HASH} | {TEXT, SHOWN, FORMAT}
    if len(vars(kind)["_member_map_"]) > _MAX_MEMBERS:
        names.add(ANY)
    return names


def _is_told_alike(kind: type, shape: Shape) -> bool:
    """Whether `str` of an instance is that of a stand-in, which may be its `repr`."""
    text: object = kind.__str__
    if shape is Shape.ENUM:
        return text in (enum.Enum.__str__, int.__repr__, str.__str__, enum.Flag.__str__)
    return _is_as_made(kind, TEXT)


def _is_shown_alike(kind: type, shape: Shape, base: type) -> bool:
    """Whether `repr` of an instance is that of a stand-in."""
    shown_as: object = kind.__repr__
    if shape is Shape.ENUM:
        value_shown_as = vars(kind).get("_value_repr_")
        alike = value_shown_as in (None, repr, object.__repr__, base.__repr__)
        return alike and getattr(shown_as, "__module__", None) == "enum"
    if shape is Shape.NAMED_TUPLE:
        return _is_of_collections(shown_as)
    return _is_as_made(kind, SHOWN) or _is_generated(kind, shown_as, "repr")


def _is_compared_alike(kind: type, shape: Shape, base: type) -> bool:
    """Whether `==` of an instance is that of a stand-in."""
    compared: object = kind.__eq__
    return (
        compared is base.__eq__
        or _is_as_made(kind, COMPARED)
        or (shape is Shape.VALUE and _is_generated(kind, compared, "eq"))
    )


def _is_as_made(kind: type, name: str) -> bool:
    """Whether the method is a built-in class's, which a stand-in descends from as well."""
    return _is_built_in(next(one for one in kind.__mro__ if name in vars(one)))


def _is_generated(kind: type, method: object, parameter: str) -> bool:
    """Whether `dataclass` made the method for this class, or for the one that it has its fields from."""
    parameters, code = getattr(kind, "__dataclass_params__", None), _code_of(method)
    return (
        getattr(parameters, parameter, False) is True
        and code is not None
        and code.co_filename == _GENERATED[0]
        and code.co_qualname.startswith(_GENERATED[1])
    )


def _code_of(method: object) -> types.CodeType | None:
    return getattr(getattr(method, "__wrapped__", method), "__code__", None)


# --- lists -------------------------------------------------------------------------------------------------------


def _lists(kind: type, shape: Shape, base: type) -> list[str]:
    """Return what a class's methods are made from, and what it descends from."""
    lists = {ANCESTORS: _ancestors(kind, shape, base)}
    if dataclasses.is_dataclass(kind):
        fields = dataclasses.fields(kind)
        if _is_generated(kind, kind.__repr__, "repr"):
            lists[SHOWN] = [one.name for one in fields if one.repr]
        if _is_generated(kind, kind.__eq__, "eq"):
            lists[COMPARED] = [one.name for one in fields if one.compare]
    hashed: object = kind.__hash__
    if hashed not in (None, base.__hash__, enum.Enum.__hash__):
        lists[HASH] = [OF_ITS_OWN]
        # Of one whose fields may change a hash cannot be kept, and without that it may cost any time.
        if COMPARED in lists and _is_generated(kind, hashed, "frozen"):
            fields = dataclasses.fields(cast("Any", kind))
            lists[HASH] = [one.name for one in fields if (one.compare if one.hash is None else one.hash)]
    return [BLANK.join((name, *items)) for name, items in lists.items() if items or name != ANCESTORS]


def _ancestors(kind: type, shape: Shape, base: type) -> list[str]:
    """Return what the class descends from and a stand-in of its shape does not, unless told."""
    known = {object, base, tuple if shape is Shape.NAMED_TUPLE else object}
    others = [one for one in kind.__mro__[1:] if one not in known and one.__module__ != "typing"]
    names = [f"{one.__module__}:{one.__qualname__}" for one in others if not _is_exception(one)]
    return [name for name in names if BLANK not in name]


def _is_exception(kind: type) -> bool:
    return issubclass(kind, BaseException) and _is_built_in(kind)
