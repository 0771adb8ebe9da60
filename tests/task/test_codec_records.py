"""Records: real classes where they are at hand, placeholders elsewhere, real again at home; no code of theirs runs."""

from __future__ import annotations

import collections.abc
import copy
import dataclasses
import enum
import json
import subprocess
import sys
import tempfile
import threading
from collections import namedtuple
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import pytest

from secfarm.errors import ProtocolError, ValueTransferError
from secfarm.task.codec import decode, encode

if TYPE_CHECKING:
    from collections.abc import Callable

RAN: list[str] = []


@dataclass
class Point:
    x: int
    y: object = None

    def __post_init__(self) -> None:
        RAN.append("__post_init__")


@dataclass(frozen=True, slots=True)
class Fixed:
    a: int
    b: tuple[int, ...] = ()


class Pair(NamedTuple):
    left: object
    right: object = 2


class Colour(enum.Enum):
    RED = "r"
    BLUE = ("b", 2)


class Level(enum.IntEnum):
    LOW = 1


class Word(enum.StrEnum):
    YES = "yes"


class Bits(enum.Flag):
    A = 1
    B = 2


class Node:
    """A plain class, with everything that must not run."""

    def __new__(cls, *args: object) -> Self:
        RAN.append("__new__")
        return super().__new__(cls)

    def __init__(self, name: str) -> None:
        RAN.append("__init__")
        self.name = name
        self.peers: set[Node] = set()

    def __getattr__(self, name: str) -> object:
        RAN.append(name)
        raise AttributeError(name)

    @property
    def shown(self) -> str:
        RAN.append("shown")
        return self.name


class Slotted:
    __slots__ = ("__hidden", "a", "unset")

    def __init__(self) -> None:
        self.a, self.__hidden = 1, 2

    def hidden(self) -> int:
        return self.__hidden


class BrokenError(OSError):
    def __init__(self, code: int, why: str, extra: object) -> None:
        super().__init__(code, why)
        self.extra = extra


class Reducing:
    def __reduce__(self) -> tuple[Any, ...]:
        RAN.append("__reduce__")
        return (Reducing, ())


def test_records_come_back_as_their_real_class_and_nothing_of_it_runs() -> None:
    node = Node("n")
    node.peers = {node}
    fixed = Fixed(1, (2,))
    values: list[Any] = [Point(1, [2]), fixed, {fixed: 1}, Pair(1), Colour.BLUE, {Level.LOW: Word.YES}, node, Slotted()]
    RAN.clear()
    back: Any = decode(encode(values))
    assert RAN == []
    assert [type(item) for item in back] == [type(item) for item in values]
    assert back[0] == Point(1, [2])
    assert back[2] == {fixed: 1}
    assert next(iter(back[2])) is back[1]
    assert back[3] == (1, 2)
    assert back[4] is Colour.BLUE
    assert [(type(key), type(value)) for key, value in back[5].items()] == [(Level, Word)]
    assert back[6].name == "n"
    assert back[6].peers == {back[6]}
    assert (back[7].a, back[7].hidden()) == (1, 2)
    assert not hasattr(back[7], "unset")


def test_flags_come_back_combined() -> None:
    assert decode(encode([Bits.A | Bits.B, Bits(0), Bits.B])) == [Bits.A | Bits.B, Bits(0), Bits.B]
    assert type(decode(encode(Bits.A | Bits.B))) is Bits


def test_local_and_redefined_classes_are_told_apart() -> None:
    def make(value: object) -> object:
        @dataclass
        class Local:
            field: object

        return Local(value)

    first, second = make(1), make(2)
    back: Any = decode(encode([first, second]))
    assert [type(item) for item in back] == [type(first), type(second)]
    assert back == [first, second]


def test_named_tuples_made_by_the_function_travel() -> None:
    Local = namedtuple("Local", "a b")  # noqa: PYI024
    back = decode(encode(Local(1, [2])))
    assert type(back) is Local
    assert back == (1, [2])


def test_cycles_through_records_keep_their_shape() -> None:
    parent, child = Point(0), Point(1)
    parent.y, child.y = (child,), parent
    back: Any = decode(encode(parent.y))
    assert back[0].y.y is back
    pair = Pair([], 1)
    pair.left.append(pair)  # type: ignore[attr-defined]
    again: Any = decode(encode(pair))
    assert again.left[0] is again


class Linked:
    held: object = None
    last: object = None


def test_a_cycle_in_which_one_tuple_waits_for_another_that_waits_for_a_third() -> None:
    first, second = Linked(), Linked()
    third = (second,)
    middle = (first, third)
    first.held = {(middle,)}
    second.held = frozenset({third})
    second.last = [middle]
    back: Any = decode(encode(third))
    assert list(vars(back[0])) == ["held", "last"]
    assert next(iter(back[0].held)) is back
    (again,) = back[0].last
    assert again[1] is back
    assert [type(key) for key in again[0].held] == [tuple]
    assert next(iter(again[0].held))[0] is again


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a", 1),
        KeyError(("k",)),
        FileNotFoundError(2, "gone", "a.txt", None, "b.txt"),
        StopIteration(5),
        SystemExit(3),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        ImportError("no", name="m", path="p"),
        NameError("no", name="n"),
        SyntaxError("bad", ("f.py", 1, 2, "text", 1, 3)),
        ExceptionGroup("many", [ValueError(1), TypeError()]),
        BrokenError(5, "io", [1]),
        json.JSONDecodeError("bad", "doc", 1),
        KeyboardInterrupt(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_exceptions_are_values_too(error: BaseException) -> None:
    error.add_note("noted")
    back: Any = decode(encode(error))
    assert type(back) is type(error)
    assert repr(back) == repr(error)
    assert str(back) == str(error)
    kept = ("args", "errno", "filename", "filename2", "code", "value", "name", "path", "extra", "doc", "start", "text")
    for name in (*kept, "__notes__", "__suppress_context__"):
        assert repr(getattr(back, name, None)) == repr(getattr(error, name, None)), name


def _set(error: BaseException, **fields: object) -> BaseException:
    for name, value in fields.items():
        setattr(error, name, value)
    return error


class StrictError(Exception):
    def __init__(self, code: int, *, detail: object = None) -> None:
        super().__init__(f"code {code}")
        self.code, self.detail, self.retry = code, detail, False


class SlotError(Exception):
    __slots__ = ("cause",)


@pytest.mark.parametrize(
    "error",
    [
        StrictError(5),
        subprocess.CalledProcessError(1, ["a"]),
        _set(SlotError(), cause=None),
        _set(StopIteration(1), value=2),
        _set(StopIteration(1), value=None),
        _set(SystemExit(1), code=False),
        _set(OSError(2, "x"), errno=5, filename="f"),
        _set(SyntaxError("bad", ("f.py", 1, 2, "text", 1, 3)), lineno=4, text=None),
        _set(UnicodeDecodeError("utf-8", b"a" * 999, 500, 501, "bad"), reason="worse", start=1),
        _set(ImportError("a"), msg="b"),
        *([_set(ImportError("a"), name_from="b")] if sys.version_info >= (3, 12) else []),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_exception_keeps_attributes_that_are_none_or_false_and_what_was_set_later(error: BaseException) -> None:
    back: Any = decode(encode(error))
    assert (str(back), vars(back)) == (str(error), vars(error))
    kept = ("cause", "value", "code", "errno", "filename", "lineno", "text", "reason", "start", "end", "msg")
    for name in (*kept, "name_from"):
        assert getattr(back, name, "unset") == getattr(error, name, "unset"), name


@pytest.mark.parametrize(
    "error",
    [
        _set(UnicodeDecodeError("utf-8", b"a", 0, 1, "bad"), args=("x",)),
        UnicodeEncodeError("utf-8", "a", -5, -4, "bad"),
        _set(UnicodeTranslateError("a", 0, 1, "bad"), start=-1),
    ],
)
def test_an_exception_that_nobody_could_make_again_is_refused(error: BaseException) -> None:
    with pytest.raises(ValueTransferError):
        decode(encode(error))


def test_an_exception_that_would_crash_whoever_shows_it_is_refused() -> None:
    """CPython reads the object of a UnicodeError at a negative start without a look."""
    import msgspec  # the tests' own forge

    entry = ["builtins", "UnicodeDecodeError", 0, 4, "UnicodeDecodeError", ["args", "start", "end"]]
    made, later = (-(2**62), 1 - 2**62), (0, 1)
    for args, fields in ((made, later), (later, made)):
        wire = [[9, 0, [2, "utf-8", b"abc", *args, "bad"], *fields], [], [entry]]
        with pytest.raises(ProtocolError, match="natural number"):
            decode(b"\xc1" + msgspec.msgpack.encode(wire))


class Guarded:
    def __getattribute__(self, name: str) -> object:
        raise PermissionError(name)


def test_an_object_that_hides_its_attributes_is_refused() -> None:
    with pytest.raises(ValueTransferError, match=r"value\[0\] is of type .*Guarded"):
        encode([Guarded()])


def test_an_exception_keeps_its_cause_and_context() -> None:
    error = ValueError("outer")
    error.__cause__ = KeyError("inner")
    error.__context__ = error.__cause__
    error.me = error  # type: ignore[attr-defined]
    back: Any = decode(encode(error))
    assert isinstance(back.__cause__, KeyError)
    assert back.__context__ is back.__cause__
    assert back.me is back
    assert back.__suppress_context__ is True


SENDER = """
import enum, sys
from dataclasses import dataclass
from typing import NamedTuple
from secfarm.task.codec import encode, decode

@dataclass(frozen=True)
class Key:
    n: int
class Plain:
    pass
class Pair(NamedTuple):
    left: int
    right: object
class Level(enum.IntEnum):
    LOW = 1
class Kind(enum.Enum):
    A = "a"
class Oops(LookupError):
    def __init__(self, code):
        super().__init__(f"code {code}")
        self.code = code

def value():
    one, two = Plain(), Plain()
    one.other, two.other, one.v = two, one, 5
    return {"keys": {Key(1): "one", Key(2): "two"}, "set": {one, two}, "pair": Pair(1, [Kind.A]), "level": Level.LOW,
            "oops": Oops(3), "kinds": {Kind.A: 1}}
if __name__ == "__main__":
    wire = encode(value())
    sys.stdout.buffer.write(len(wire).to_bytes(4, "big") + wire)
    sys.stdout.buffer.flush()
    back = decode(sys.stdin.buffer.read())
    keys, plain = back["keys"], back["set"]
    assert keys == {Key(1): "one", Key(2): "two"}, keys
    assert {type(item) for item in plain} == {Plain} and len(plain) == 2
    assert all(item.other in plain and item.other.other is item for item in plain)
    assert type(back["pair"]) is Pair and back["pair"].right == [Kind.A]
    assert back["level"] is Level.LOW and type(back["oops"]) is Oops and back["oops"].code == 3
    assert back["kinds"] == {Kind.A: 1}
    sys.stderr.write("home")
"""


def test_a_record_of_an_unknown_class_is_a_placeholder_and_comes_home_as_the_real_thing() -> None:
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "sender.py"
        script.write_text(SENDER, encoding="utf-8")
        pipe = subprocess.PIPE
        with subprocess.Popen([sys.executable, str(script)], stdin=pipe, stdout=pipe, stderr=pipe) as sender:
            assert sender.stdout is not None
            value: Any = decode(sender.stdout.read(int.from_bytes(sender.stdout.read(4), "big")))
            _, said = sender.communicate(encode(value))
    assert said == b"home", said.decode()
    keys = list(value["keys"])
    assert [key.n for key in keys] == [1, 2]
    kind = type(keys[0])
    assert (kind.__module__, kind.__qualname__) == ("__main__", "Key")
    assert repr(keys[0]) == "Key(n=1)"  # as at home
    assert keys[0] != keys[1]
    assert len(value["set"]) == 2
    assert {getattr(item, "v", None) for item in value["set"]} == {5, None}
    left, right = value["pair"]
    assert (value["pair"].left, value["pair"].right) == (left, right)
    assert (repr(right[0]), str(right[0])) == ("<Kind.A: 'a'>", "Kind.A")
    assert value["level"] + 1 == 2
    assert value["level"].name == "LOW"
    assert value["kinds"][right[0]] == 1
    assert isinstance(value["oops"], LookupError)
    assert (vars(value["oops"])["code"], str(value["oops"])) == (3, "code 3")


@pytest.mark.parametrize("value", [Reducing(), threading.local(), threading.Thread(), type("Heap", (bytearray,), {})()])
def test_an_object_that_is_more_than_its_attributes_is_refused(value: object) -> None:
    RAN.clear()
    with pytest.raises(ValueTransferError):
        encode([value])
    assert RAN == []


@dataclass
class Deleting:
    path: str

    def __del__(self) -> None:
        RAN.append(self.path)


@dataclass
class Unmet:
    x: int
    y: int


class Unsent:
    pass


def _forged(qualname: str, shape: int, fields: list[str], module: str = __name__) -> object:
    import msgspec  # the tests' own forge

    entry = [module, qualname, 0, shape, "", fields]
    return decode(b"\xc1" + msgspec.msgpack.encode([[9, 0, *("evil" for _ in fields)], [], [entry]]))


def test_a_peers_word_alone_makes_no_plain_object_and_none_with_a_finaliser() -> None:
    """A `__del__` may delete the file that a field names."""
    RAN.clear()
    for made in (
        _forged("Deleting", 1, ["path"]),
        _forged("Unsent", 0, ["path"]),
        _forged("_TemporaryFileCloser", 0, ["file", "name"], "tempfile"),
        _forged("Unmet", 1, ["x"]),  # a field is missing: not the class that it was there
        _forged("Pair", 2, ["right", "left"]),
    ):
        assert type(made) not in (Deleting, Unsent, Unmet, Pair)
        assert type(made).__mro__[1].__module__ == "secfarm.task.codec_standins"
    del made
    assert RAN == []


def test_decoding_imports_nothing_that_a_peer_names() -> None:
    assert "antigravity" not in sys.modules
    _forged("geohash", 1, ["x"], "antigravity")
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("name", ["__class__", "__init_subclass__", "a b", ""])
def test_a_placeholder_of_a_tuple_takes_only_names_of_fields(name: str) -> None:
    with pytest.raises(ProtocolError):
        _forged("Fake", 2, [name])


def test_a_member_that_the_enum_lacks_is_refused() -> None:
    with pytest.raises(ProtocolError):
        _forged("Colour", 3, ["name", "value"])


@dataclass
class Wide:
    items: list[int] = field(default_factory=list)


def test_many_records_of_a_class_name_it_once() -> None:
    assert encode([Wide([1]) for _ in range(50)]).count(b"Wide") == 1


# --- what a placeholder cannot know -------------------------------------------------------------------------------


class Behaving:
    limit = 10

    def __init__(self) -> None:
        self.x = 1
        self.__dict__["hidden"] = 2

    @property
    def hidden(self) -> int:
        return 7

    def close(self) -> None:
        RAN.append(self)

    def __bool__(self) -> bool:
        return False

    def __str__(self) -> str:
        return "told"

    def __format__(self, spec: str) -> str:
        return spec


class Answering:
    def __getattr__(self, name: str) -> str:
        return name


class Sized:
    def __len__(self) -> int:
        return 0


@dataclass
class Partly:
    shown: int
    secret: int = field(default=0, repr=False)


class Spoken(enum.Enum):
    A = 1

    def __str__(self) -> str:
        return "a"


class Tongue(str, enum.Enum):
    A = "a"


class Switches(enum.Flag):
    A = 1


class Access(enum.IntFlag):
    READ = 4
    WRITE = 2


class Status(enum.IntEnum):
    phrase: str

    def __new__(cls, value: int, phrase: str) -> Self:
        made = int.__new__(cls, value)
        made._value_ = value
        made.phrase = phrase
        return made

    OK = 200, "fine"


class Share(float, enum.Enum):
    HALF = 0.5


@dataclass
class Loose:
    name: str
    seen: int = field(default=0, compare=False)


class Folded:
    def __init__(self, text: str) -> None:
        self.text = text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Folded) and self.text.lower() == other.text.lower()

    def __hash__(self) -> int:
        return hash(self.text.lower())

    def __repr__(self) -> str:
        return self.text

    def __call__(self) -> str:
        return self.text

    def __copy__(self) -> Folded:
        return Folded("copy")


class FaultError(Exception):
    def __str__(self) -> str:
        return "told"


class Nearly(NamedTuple):
    x: int

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


class Doubling(NamedTuple):
    x: int

    @property
    def double(self) -> int:
        return 2 * self.x


def abroad(value: object) -> Any:
    """Return what a process without this module makes of a value."""
    return decode(encode(value).replace(__name__.encode(), b"m" * len(__name__)))


@pytest.mark.parametrize(
    ("value", "ask"),
    [
        (Behaving(), bool),
        (Behaving(), str),
        (Behaving(), format),
        (Behaving(), lambda it: it.hidden),
        (Behaving(), lambda it: hasattr(it, "close")),
        (Behaving(), lambda it: getattr(it, "limit", None)),
        (Answering(), lambda it: getattr(it, "other", None)),
        (Sized(), bool),
        (Spoken.A, str),
        (Tongue.A, str),
        (Switches(0), bool),
        (Doubling(1), lambda it: getattr(it, "double", None)),
        (Access.READ, lambda it: it & 4),
        (Access.READ, lambda it: 4 | it),
        (Access.READ, lambda it: ~it),
        (Access.READ, lambda it: list(it)),
        (Tongue.A, lambda it: f"{it:>3}"),
        (Status.OK, lambda it: getattr(it, "phrase", None)),
        (Loose("a"), dataclasses.fields),
        (Fixed(1), lambda it: setattr(it, "a", 2)),
        (Folded("a"), lambda it: it == 5),
        (Folded("a"), lambda it: it != 5),
        (Folded("a"), lambda it: it in ["a", "b"]),
        (Folded("a"), lambda it: {it}),
        (Folded("a"), repr),
        (Folded("a"), str),
        (Folded("a"), lambda it: it()),
        (Folded("a"), copy.copy),
        (FaultError(1), str),
        (Nearly(1), lambda it: it == (2,)),
    ],
)
def test_what_only_the_class_knows_is_an_error_and_no_wrong_answer(value: object, ask: Callable[[Any], object]) -> None:
    there = abroad(value)
    assert type(there) is not type(value)
    with pytest.raises(TypeError, match="is not here"):
        ask(there)
    again = decode(encode(there))
    with pytest.raises(TypeError, match="is not here"):
        ask(again)


def test_what_a_placeholder_does_know_it_answers() -> None:
    there = abroad([Behaving(), Partly(1), Spoken.A, Switches.A, Doubling(3), Wide([1])])
    assert there[0].x == 1
    assert not hasattr(there[0], "unheard_of")
    assert (there[1].shown, there[1].secret) == (1, 0)
    assert (there[2].name, there[2].value) == ("A", 1)
    assert there[4].x == 3
    assert [str(abroad(value)) for value in (Level.LOW, Word.YES)] == [str(value) for value in (Level.LOW, Word.YES)]
    assert str(there[5]) == "Wide(items=[1])" == f"{there[5]}"
    assert decode(encode(Behaving())).hidden == 7


def test_a_placeholder_is_of_the_kind_that_its_class_is() -> None:
    assert callable(abroad(Folded("a")))
    assert dataclasses.is_dataclass(abroad(Wide([1])))
    assert isinstance(abroad(Sized()), collections.abc.Sized)
    with pytest.raises(TypeError, match="unhashable"):
        hash(abroad(Wide([1])))
    with pytest.raises(TypeError, match="unhashable"):
        hash(abroad(Nearly(1)))


def test_records_that_compare_in_their_own_way_are_still_keys() -> None:
    held = {Folded("a"): 1, Folded("b"): 2}
    there = abroad([held, set(held), frozenset(held), (Folded("c"),)])
    assert [key.text for key in there[0]] == ["a", "b"]
    assert list(there[0].values()) == [1, 2]
    with pytest.raises(TypeError, match="is not here"):
        there[0].get(next(iter(there[0])))
    back = decode(encode(there).replace(b"m" * len(__name__), __name__.encode()))
    assert back == [held, set(held), frozenset(held), (Folded("c"),)]
    assert back[0][Folded("A")] == 1


def test_a_placeholder_of_a_named_tuple_does_what_named_tuples_do() -> None:
    there = abroad(Pair(1, 2))
    assert there._asdict() == {"left": 1, "right": 2}
    assert there._replace(right=3) == (1, 3)
    assert type(there._replace(right=3)) is type(there)
    assert there._make([5, 6]).left == 5
    with pytest.raises(ValueError if sys.version_info < (3, 13) else TypeError, match="top"):
        there._replace(top=1)
    with pytest.raises(TypeError, match="Expected 2"):
        there._make([1])


@pytest.mark.parametrize("hidden", [1, "a", [1], [["a"]], None])
def test_a_list_of_what_is_hidden_holds_names(hidden: object) -> None:
    import msgspec

    entry = ["m", "C", 0, 0, "", ["a"], hidden]
    with pytest.raises(ProtocolError):
        decode(b"\xc1" + msgspec.msgpack.encode([[9, 0, 1], [], [entry]]))
