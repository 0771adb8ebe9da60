"""Records: dataclasses, named tuples, enums, exceptions and plain Python objects, by class name and fields.

No constructor, hook or property of the class runs on either side. Where the class is not at hand the record becomes a
placeholder: an instance of an empty class of the same name, with the same fields. Sent back, it is the real thing
again. Format: docs/codec.md.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeAlias, cast
from weakref import WeakSet

from secfarm.task.codec_classes import Form, class_for, form_of, new_entry, note_sent, slots_of
from secfarm.task.codec_decode import TreeDecoder, Underway
from secfarm.task.codec_encode import Fill, TreeEncoder
from secfarm.task.codec_kinds import RECORD, CannotTravel, Malformed, Node, shown
from secfarm.task.codec_standins import ClassName, Shape, stand_in_member

__all__ = ["fill_for", "make_record"]

# What built-in exceptions hold beside `args`, `__dict__` and the links below: read and set by these names, where it is
# not what `args` make it. Not the object of an AttributeError, which is whatever failed.
_EXTRAS: Final[dict[type, tuple[str, ...]]] = {
    ImportError: ("msg", "name", "path", "name_from"),  # the last since Python 3.12
    NameError: ("name",),
    AttributeError: ("name",),
    OSError: ("errno", "strerror", "filename", "filename2"),
    StopIteration: ("value",),
    SyntaxError: ("msg", "filename", "lineno", "offset", "text", "end_lineno", "end_offset"),
    SystemExit: ("code",),
    UnicodeDecodeError: ("encoding", "object", "start", "end", "reason"),
    UnicodeEncodeError: ("encoding", "object", "start", "end", "reason"),
    UnicodeTranslateError: ("object", "start", "end", "reason"),
}
_LINKS: Final = ("__cause__", "__context__", "__suppress_context__")

_laid_out: WeakSet[type] = WeakSet()  # classes whose instances are known to hold no state outside of attributes


_Make: TypeAlias = "Callable[[TreeDecoder, Node, int, _Recipe], object]"


@dataclass(frozen=True, slots=True)
class _Recipe:
    """An entry of the table of classes, once it is met."""

    fields: tuple[str, ...]
    kind: type
    form: Form
    make: _Make


def fill_for(kind: type) -> Fill:
    """Return what writes records of `kind`.

    Raises:
        CannotTravel: it is no class of records.
    """
    if kind.__module__ == "numpy":
        from secfarm.task import codec_numpy  # only where somebody uses numpy already

        if (fill := codec_numpy.fill_for(kind)) is not None:
            return fill
    return _FILLS[form_of(kind).name.shape]


def make_record(walk: TreeDecoder, node: Node, depth: int) -> object:
    """Return the record of a node, or what stands in for it."""
    index = node[1] if len(node) > 1 else None
    if type(index) is not int or not 0 <= index < len(walk.classes):
        raise Malformed("a record names a class outside of the table")
    entry = walk.classes[index]
    if not isinstance(entry, _Recipe):
        entry = walk.classes[index] = _recipe(entry)
    if len(node) - 2 != len(entry.fields):
        raise Malformed("a record has as many values as its class has fields")
    return entry.make(walk, node, depth, entry)


def _recipe(entry: object) -> _Recipe:
    match entry:
        case [
            str() as module, str() as qualname, int() as generation, int() as shape, str() as base, list() as fields,
            *more,
        ]:  # fmt: skip
            if not all(type(field) is str for field in fields) or len(set(fields)) != len(fields):
                raise Malformed("the fields of a class are different texts")
        case _:
            raise Malformed("that is no entry of the table of classes")
    name = ClassName(module, qualname, generation, Shape(shape), base)
    if module == "numpy" and name.shape is Shape.PLAIN:
        from secfarm.task import codec_numpy

        if (make := codec_numpy.maker_for(qualname)) is not None:
            return _Recipe(tuple(fields), object, Form(name, object), partial(_to_numpy, make))
    kind = class_for(name, tuple(fields), _hidden_of(more))
    return _Recipe(tuple(fields), kind, form_of(kind), _MAKERS[name.shape])


def _hidden_of(more: list[object]) -> tuple[str, ...]:
    match more:
        case []:
            return ()
        case [list() as names] if all(type(name) is str for name in names):
            return tuple(cast("list[str]", names))
        case _:
            raise Malformed("what a class has beside its fields is a list of names")


def _to_numpy(make: Callable[..., object], walk: TreeDecoder, node: Node, depth: int, _: _Recipe) -> object:
    return make(*walk.items(node, depth, start=2))


def _begin(walk: TreeEncoder, node: Node, value: object, fields: tuple[str, ...]) -> None:
    form = form_of(type(value))
    note_sent(form, type(value))
    entry = form.entries.get(fields)
    node += (RECORD, walk.class_index(entry or new_entry(form, fields)))


# --- objects with attributes -------------------------------------------------------------------------------------


def _from_object(walk: TreeEncoder, node: Node, value: object, depth: int) -> None:
    kind = type(value)
    if kind not in _laid_out:
        try:
            object.__reduce_ex__(value, 2)  # knows whether C code holds state that no attribute shows
        except TypeError:
            raise CannotTravel(f"is of type {shown(kind)}, which holds more than its attributes") from None
        except Exception:  # noqa: BLE001 - a `__getattribute__` of the user's
            raise CannotTravel(f"is of type {shown(kind)}, which does not let its attributes be read") from None
        _laid_out.add(kind)
    state = _attributes(value)
    _begin(walk, node, value, tuple(state))
    for name, item in state.items():
        node.append(walk.within(item, depth, f".{name}"))


def _attributes(value: object) -> dict[str, object]:
    """Return what the instance holds, past any property or `__getattr__` of its class."""
    kind = type(value)
    held: dict[str, object] = {}
    if form_of(kind).slotted:
        for name, member in slots_of(kind).items():
            try:
                held[name] = member.__get__(value, kind)
            except AttributeError:
                continue  # not set
    own = _dict_of(value)
    if own is not None:
        held |= own
    if not all(type(name) is str for name in held):
        raise CannotTravel(f"is of type {shown(kind)} and has attributes whose names are no text")
    return held


def _dict_of(value: object) -> dict[str, object] | None:
    try:
        return cast("dict[str, object]", object.__getattribute__(value, "__dict__"))
    except AttributeError:
        return None


def _to_object(walk: TreeDecoder, node: Node, depth: int, recipe: _Recipe) -> object:
    made: object = object.__new__(recipe.kind)
    walk.born(node, made)
    slots: dict[str, Any] = slots_of(recipe.kind) if recipe.form.slotted else {}
    _fill(walk, made, slots, dict(zip(recipe.fields, node[2:], strict=True)), depth)
    return made


def _fill(walk: TreeDecoder, made: object, slots: dict[str, Any], fields: dict[str, object], depth: int) -> None:
    for name, item in fields.items():
        try:
            _set(made, slots, name, walk.build(item, depth))
        except Underway:
            if name not in slots:
                _set(made, slots, name, None)  # attributes have an order
            walk.later(partial(_set_later, walk, made, slots, name, item, depth))


def _set(made: object, slots: dict[str, Any], name: str, value: object) -> None:
    if name in slots:
        slots[name].__set__(made, value)
    elif (own := _dict_of(made)) is not None:
        own[name] = value
    else:
        raise Malformed("the class has no such field here")


def _set_later(walk: TreeDecoder, made: object, slots: dict[str, Any], name: str, item: object, depth: int) -> None:
    _set(made, slots, name, walk.build(item, depth))


# --- named tuples, enums, exceptions -----------------------------------------------------------------------------


def _from_named_tuple(walk: TreeEncoder, node: Node, value: object, depth: int) -> None:
    items = cast("tuple[object, ...]", value)
    fields = cast("tuple[str, ...]", vars(type(value)).get("_fields") or getattr(type(value), "_fields"))  # noqa: B009
    if len(items) != len(fields) or _dict_of(value):
        raise CannotTravel(f"is of type {shown(type(value))} and has more in it than its fields")
    _begin(walk, node, value, fields)
    for name, item in zip(fields, items, strict=True):
        node.append(walk.within(item, depth, f".{name}"))
    walk.note_tuple(value, items)


def _to_named_tuple(walk: TreeDecoder, node: Node, depth: int, recipe: _Recipe) -> object:
    items = walk.items(node, depth, start=2)
    made: object = tuple.__new__(cast("type[tuple[object, ...]]", recipe.kind), items)
    walk.note_height(made, items)
    return made


def _from_enum(walk: TreeEncoder, node: Node, value: object, depth: int) -> None:
    member = cast("enum.Enum", value)
    name, held = member._name_, member._value_
    _begin(walk, node, value, ("name", "value"))
    node += (walk.within(name, depth, ".name"), walk.within(held, depth, ".value"))


def _to_enum(walk: TreeDecoder, node: Node, depth: int, recipe: _Recipe) -> object:
    if recipe.fields != ("name", "value"):
        raise Malformed("a member of an enum has a name and a value")
    name, value = walk.items(node, depth, start=2)
    kind: Any = recipe.kind
    if not recipe.form.stand_in:
        return _member(kind, name, value)
    if (base := recipe.form.base) is not object and type(value) is not base:
        raise Malformed("the value of a member is not what its class says")
    return stand_in_member(kind, base, name, value)


def _member(kind: Any, name: object, value: object) -> object:  # noqa: ANN401 - an enum class
    member = vars(kind)["_member_map_"].get(name) if name is None or type(name) is str else None
    if member is not None:
        return member
    # A combination of flags. `_missing_` of the user's own could be any code.
    if issubclass(kind, enum.Flag) and type(value) is int and "_missing_" not in vars(kind):
        return kind(value)
    raise Malformed(f"there is no such member of {shown(kind)} here")


def _from_exception(walk: TreeEncoder, node: Node, value: object, depth: int) -> None:
    error = cast("BaseException", value)
    base: Any = form_of(type(value)).base
    # The built-in's own: OSError keeps file names beside `args`.
    args = base.__reduce__(error)[1]
    try:
        usual = _made_of(base, base, args)
        _check_start(error)
    except Exception as trouble:  # noqa: BLE001 - any built-in's own
        raise CannotTravel(f"is of type {shown(type(value))}, whose `args` do not make it: {trouble}") from None
    state = {"args": args} | _attributes(error)
    for name, member in _extras(base).items():
        held, made = member.__get__(error), member.__get__(usual)
        if held is not made and not (type(held) is type(made) is int and held == made):
            state[name] = held
    links = {name: vars(BaseException)[name].__get__(error) for name in _LINKS}
    state |= {name: item for name, item in links.items() if item is not None and item is not False}
    _begin(walk, node, value, tuple(state))
    for name, item in state.items():
        node.append(walk.within(item, depth, f".{name}"))


def _to_exception(walk: TreeDecoder, node: Node, depth: int, recipe: _Recipe) -> object:
    if recipe.fields[:1] != ("args",):
        raise Malformed("an exception begins with its arguments")
    args = walk.build(node[2], depth)
    if type(args) is not tuple:
        raise Malformed("the arguments of an exception are a tuple")
    made = _made_of(recipe.form.base, recipe.kind, args)
    walk.born(node, made)
    named = dict(zip(recipe.fields, node[2:], strict=True))
    del named["args"]
    slots: dict[str, Any] = {name: vars(BaseException)[name] for name in _LINKS}
    slots |= _extras(recipe.form.base) | slots_of(recipe.kind)
    _fill(walk, made, slots, named, depth)
    _check_start(made)
    return made


def _made_of(base: Any, kind: type, args: tuple[object, ...]) -> object:  # noqa: ANN401 - a built-in exception
    made: object = base.__new__(kind, *args)
    base.__init__(made, *args)
    _check_start(made)
    return made


def _extras(base: type) -> dict[str, Any]:
    """Return the descriptors of what exceptions of this built-in class hold beside their `args`."""
    return {
        name: vars(ancestor)[name]
        for ancestor, names in _EXTRAS.items()
        if issubclass(base, ancestor)
        for name in names
        if name in vars(ancestor)
    }


def _check_start(made: object) -> None:
    """Refuse what crashes the interpreter when it is shown: CPython reads at a negative start unchecked."""
    for kind in (UnicodeDecodeError, UnicodeEncodeError, UnicodeTranslateError):
        if issubclass(type(made), kind) and vars(kind)["start"].__get__(made) < 0:
            raise Malformed("a UnicodeError starts at a natural number")


_FILLS: Final[dict[Shape, Fill]] = {
    Shape.PLAIN: _from_object,
    Shape.VALUE: _from_object,
    Shape.NAMED_TUPLE: _from_named_tuple,
    Shape.ENUM: _from_enum,
    Shape.EXCEPTION: _from_exception,
}
_MAKERS: Final[dict[Shape, _Make]] = {
    Shape.PLAIN: _to_object,
    Shape.VALUE: _to_object,
    Shape.NAMED_TUPLE: _to_named_tuple,
    Shape.ENUM: _to_enum,
    Shape.EXCEPTION: _to_exception,
}
