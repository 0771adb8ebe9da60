"""Stand-ins: what they know of a class that is not here they answer as it would; the rest is an error."""

from __future__ import annotations

import abc
import collections.abc
import copy
import dataclasses
import enum
import functools
import json
import numbers
import string
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import msgspec
import pytest

from secfarm.errors import ProtocolError
from secfarm.task.codec import decode, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def abroad(value: object) -> Any:
    """Return what a process without this module makes of a value."""
    return decode(encode(value).replace(__name__.encode(), b"m" * len(__name__)))


@dataclass
class Area:
    """A rectangle."""

    wide: int
    size: int = field(init=False)
    high: int = 3
    note: str = field(default="", repr=False, compare=False)

    def __post_init__(self) -> None:
        self.size = self.wide * self.high


@dataclass(frozen=True)
class Key:
    a: int
    b: object = 2
    c: int = field(default=3, compare=False)


@dataclass(frozen=True)
class Outer:
    inner: object
    more: tuple[object, ...] = ()


@dataclass(unsafe_hash=True)
class Changing:
    a: int


@dataclass(slots=True)
class Slim:
    a: int = 1
    b: int = 2


class Slots:
    __slots__ = ("a", "unset")

    def __init__(self) -> None:
        self.a = 1


class Both(Slots):
    def __init__(self) -> None:
        super().__init__()
        self.b = 2


class Setting:
    default = 4

    def __init__(self) -> None:
        self._x = 1

    @property
    def x(self) -> int:
        return self._x

    @x.setter
    def x(self, value: int) -> None:
        self._x = 2 * value

    @functools.cached_property
    def later(self) -> int:
        return 5

    def method(self) -> int:
        return 6


class Catching:
    def __init__(self) -> None:
        self.x = 1

    def __getattribute__(self, name: str) -> object:
        return 99 if name == "x" else object.__getattribute__(self, name)


class Hashing:
    def __hash__(self) -> int:
        return 42


class Items(collections.abc.MutableSequence[int]):
    """Abstract methods are its own, `index` and others are not."""

    def __init__(self) -> None:
        self.held = [1, 2]

    def __len__(self) -> int:
        return len(self.held)

    def __getitem__(self, at: Any) -> Any:
        return self.held[at]

    def __setitem__(self, at: Any, item: Any) -> None:
        self.held[at] = item

    def __delitem__(self, at: Any) -> None:
        del self.held[at]

    def insert(self, index: int, value: int) -> None:
        self.held.insert(index, value)


class Table(collections.abc.Mapping[str, int]):
    def __len__(self) -> int:
        return 0

    def __getitem__(self, key: str) -> int:
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(())


class Amount(numbers.Number):
    def __init__(self) -> None:
        self.v = 1

    __hash__ = numbers.Number.__hash__


class Shaped(abc.ABC):
    @abc.abstractmethod
    def area(self) -> int: ...


class Square(Shaped):
    def area(self) -> int:
        return 4


class Coder(json.JSONEncoder):
    pass


class Pair(NamedTuple):
    left: int
    right: int = 2


class Odd(Pair):
    __slots__ = ()

    def index(self, *_: object) -> int:
        return 9

    def _asdict(self) -> dict[str, object]:
        return {"mine": 1}


class Colour(enum.Enum):
    RED = 1
    GREEN = [2]  # noqa: RUF012 - a value that cannot be hashed

    def told(self) -> int:
        return 3


class Renamed(enum.Enum):
    A = 1

    @property
    def value(self) -> str:
        return "mine"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Labelled(enum.IntEnum):
    def __new__(cls, number: int, label: str) -> Self:
        made = int.__new__(cls, number)
        made._value_ = label  # type: ignore[assignment]
        return made

    A = 1, "label"


class Word(enum.StrEnum):
    YES = "yes"


class Bits(enum.Flag):
    A = 1
    B = 2


class Access(enum.IntFlag):
    READ = 4


class Half(float, enum.Enum):
    A = 0.5


class Duo(tuple[int, int], enum.Enum):  # noqa: SLOT001 - members are made once
    A = (1, 2)


Many = enum.Enum("Many", [f"M{number}" for number in range(100)])  # type: ignore[misc]


@dataclass(frozen=True)
class Mixed:
    a: int


class Planet(Mixed, enum.Enum):
    A = 1


class AppError(Exception):
    code = 1


class LostError(AppError, KeyError):
    pass


class WordedError(ValueError):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a}-{b}")


class NumberedError(OSError):
    errno = 7


class ManyError(ExceptionGroup[Exception]):
    def derive(self, errors: Any) -> Any:
        return ManyError("derived", errors)


def _set(one: Any, name: str) -> None:
    setattr(one, name, 7)


def _made(entry: list[object], *fields: object) -> Any:
    """Return what the bytes of one record mean."""
    return decode(b"\xc1" + msgspec.msgpack.encode([[9, 0, *fields], [], [entry]]))


ABSTRACT = [
    getattr(collections.abc, name) for name in collections.abc.__all__ if name != "ByteString"
]  # which is deprecated

ERRORS: list[tuple[object, Callable[[Any], object]]] = [
    (Area(2), lambda it: it.__doc__),
    (Area(2), lambda it: type(it)(1)),
    (Area(2), lambda it: dataclasses.replace(it)),
    (Changing(1), hash),
    (Hashing(), hash),
    (Hashing(), lambda it: it in {1: 2}),
    (Slim(), vars),
    (Slim(), lambda it: _set(it, "new")),
    (Slots(), lambda it: it.__dict__),
    (Slots(), lambda it: _set(it, "new")),
    (Both(), vars),
    (Setting(), lambda it: it.later),
    (Setting(), lambda it: _set(it, "x")),
    (Setting(), lambda it: type(it).default),
    (Setting(), lambda it: type(it)()),
    (Catching(), lambda it: it.x),
    (Items(), lambda it: it.index(1)),
    (Items(), len),
    (Square(), lambda it: it.area()),
    (Coder(), lambda it: isinstance(it, json.JSONEncoder)),
    (Pair(1), lambda it: _set(it, "new")),
    (Pair(1), vars),
    (Odd(1), lambda it: it.index(1)),
    (Odd(1), lambda it: it._asdict()),
    (Colour.RED, vars),
    (Colour.RED, lambda it: it.told()),
    (Colour.RED, lambda it: type(it).GREEN),
    (Colour.RED, lambda it: list(type(it))),
    (Colour.RED, lambda it: len(type(it))),
    (Colour.RED, lambda it: type(it)(1)),
    (Colour.RED, lambda it: type(it)["RED"]),
    (Colour.RED, lambda it: it in type(it)),
    (Colour.RED, lambda it: type(it).__members__),
    (Renamed.A, lambda it: it.value),
    (Word.YES, lambda it: type(it)("yes")),
    (Labelled.A, lambda it: it + 1),
    (Labelled.A, str),
    *[(Planet.A, repr) for _ in range(sys.version_info >= (3, 12))],  # its value is shown as the mixed-in class says
    (Planet.A, lambda it: it.a),
    (Labelled.A, lambda it: isinstance(it, int)),
    (Many["M3"], lambda it: it.M4),
    (Access.READ, lambda it: it | 1),
    (WordedError(1, 2), lambda it: type(it)("a")),
    (NumberedError(1, "why"), lambda it: it.errno),
    (LostError(1), lambda it: it.code),
    (ManyError("many", [ValueError()]), lambda it: it.subgroup(ValueError)),
]


@pytest.mark.parametrize(("value", "ask"), ERRORS)
def test_what_only_the_class_knows_is_an_error(value: object, ask: Callable[[Any], object]) -> None:
    for there in (abroad(value), decode(encode(abroad(value)))):
        assert type(there).__module__ != __name__
        with pytest.raises(TypeError, match=r"not here"):
            ask(there)


SAME: list[tuple[object, Callable[[Any], object]]] = [
    (Area(2), str),
    (Area(2), lambda it: f"{it}|{[it]!r}"),
    (Area(2), lambda it: _set(it, "extra") or repr(it)),
    (Area(2), lambda it: it == copy.copy(it)),
    (Area(2), lambda it: _set(it, "note") or it == copy.deepcopy(it)),
    ([Area(2), Area(3)], lambda it: it[0] == it[1]),
    (Area(2), dataclasses.is_dataclass),
    (Key(1), hash),
    ([Key(1), Key(1, c=5), Key(2)], lambda it: (len(set(it)), it.index(it[1]), it[2] in it[:2])),
    ([Key(1), Key(2)], lambda it: [key.a for key in {it[1]: 1, it[0]: 2}]),
    (Outer(Key(1), (Key(2), Outer(3))), hash),
    (Outer(Key(1), (Key(2), Outer(3))), lambda it: ({it.inner: 1}[it.inner], it.more[0] in set(it.more))),
    ({Key(1): "a", Key(2): "b"}, lambda it: [it[key] for key in it]),
    (Slim(), lambda it: (copy.copy(it) == it, copy.deepcopy(it).a, str(it))),
    (Slim(), lambda it: _set(it, "a") or it.a),
    (Slots(), lambda it: (it.a, hasattr(it, "unset"))),
    (Setting(), lambda it: _set(it, "default") or it.default),
    (Setting(), lambda it: ("method" in dir(it), "x" in dir(it), "gone" in dir(it))),
    (Items(), lambda it: [isinstance(it, kind) for kind in (collections.abc.Sequence, collections.abc.Set, list, str)]),
    (Table(), lambda it: [isinstance(it, kind) for kind in ABSTRACT]),
    (Amount(), lambda it: (isinstance(it, numbers.Number), it.v)),
    (Square(), lambda it: (isinstance(it, abc.ABC), isinstance(it, dict))),
    (Pair(1), lambda it: (it == (1, 2), hash(it), copy.copy(it), it._asdict(), it[0], it.right)),
    (Colour.RED, lambda it: (isinstance(it, enum.Enum), isinstance(it, int), repr(it), str(it), f"{it:>12}")),
    (Colour.RED, lambda it: (it.name, it.value, it._name_, copy.deepcopy(it) is it, hasattr(it, "unheard_of"))),
    ([Colour.RED, Colour.GREEN, Colour.RED], lambda it: (it[0] is it[2], it[0] == it[1], len({*it}))),
    (Level.LOW, lambda it: (isinstance(it, enum.IntEnum), it + 1, it == 1, f"{it:03d}", hash(it))),
    (Word.YES, lambda it: (isinstance(it, enum.StrEnum), it + "!", it == "yes", str(it), {"yes": 1}[it])),
    (Bits.A | Bits.B, lambda it: (isinstance(it, enum.Flag), it.value, it.name, repr(it))),
    (Access.READ, lambda it: (isinstance(it, enum.IntFlag), it + 1, it.value, repr(it))),
    (Half.A, lambda it: (isinstance(it, float), it == 0.5, it * 2, {0.5: 1}[it], bool(it), it.hex())),
    (Duo.A, lambda it: (isinstance(it, tuple), it == (1, 2), it[0], it.value)),
    (Labelled.A, lambda it: (it.value, it.name)),
    (Many["M3"], lambda it: (it.value, it.name)),
    (LostError("k"), lambda it: (isinstance(it, KeyError), isinstance(it, ValueError), it.args, str(it), repr(it))),
    (
        ManyError("many", [ValueError()]),
        lambda it: (isinstance(it, Exception), isinstance(it, ExceptionGroup), it.message),
    ),
    (LostError("k"), lambda it: type(it)("other").args),
]


@pytest.mark.parametrize(("value", "ask"), SAME)
def test_what_fields_tell_is_answered_as_the_class_does(value: object, ask: Callable[[Any], object]) -> None:
    here = decode(encode(value))
    there, again = abroad(value), decode(encode(abroad(value)))
    expected = ask(here)
    assert ask(there) == expected
    assert ask(again) == expected


def test_a_stand_in_for_a_member_is_the_same_one_wherever_it_came_from() -> None:
    there = abroad(Colour.RED)
    assert abroad([Colour.RED])[0] is there
    assert abroad(Colour.GREEN) == abroad(Colour.GREEN)


@pytest.mark.parametrize("value", [Colour.RED, Key(1)])
def test_a_stand_in_does_not_say_that_the_real_thing_differs(value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its module may be imported after it was made."""
    there = abroad(value)
    assert there != 5
    assert isinstance(there, int) is False
    monkeypatch.setitem(sys.modules, type(there).__module__, sys.modules[__name__])
    with pytest.raises(TypeError, match="not here"):
        there == value  # noqa: B015 - it is the comparison that fails
    with pytest.raises(TypeError, match="not here"):
        [there].index(value)
    assert isinstance(there, type(value))
    assert isinstance(there, int) is False
    assert repr(there) == repr(value)


def test_a_plain_object_of_an_installed_class_does_not_deny_it() -> None:
    there = _made(["string", "Template", 0, 0, "", ["template"]], "$x")
    assert (there.template, type(there) is string.Template) == ("$x", False)
    assert isinstance(there, string.Template)
    assert isinstance(_made(["builtins", "int", 0, 0, "", []]), int) is False


def test_our_own_code_is_not_refused_what_class_a_stand_in_is_of() -> None:
    assert len(decode(encode([there := abroad(Coder()), (there,)]))) == 2


def test_a_class_that_cannot_be_is_a_protocol_error() -> None:
    for base, told in (
        ("OSError,ImportError", []),
        ("KeyError", ["__mro__ collections.abc:Sized collections.abc:Set"]),
    ):
        with pytest.raises(ProtocolError):
            _made(["m", "C", 0, 4, base, ["args"], told], [2])


def test_hashes_of_what_is_shared_take_no_longer_than_it_is() -> None:
    value: object = Key(1)
    for _ in range(60):
        value = Outer(value, (value,))
    entry = decode(encode({Key(1): 1}))
    assert len(entry) == 1
    wire = encode([value, None])
    there = decode(wire.replace(__name__.encode(), b"m" * len(__name__)))
    assert hash(there[0]) == hash(there[0])
