"""Every type of docs/codec.md comes back exactly; what has no wire form is refused by path and type."""

from __future__ import annotations

import array
import datetime as dt
import decimal
import io
import ipaddress
import math
import pathlib
import re
import struct
import sys
import threading
import types
import uuid
import zoneinfo
from collections import Counter, OrderedDict, UserList, defaultdict, deque
from fractions import Fraction
from typing import Any, cast

import pytest

from secfarm.errors import ProtocolError, ValueTransferError
from secfarm.task.codec import decode, encode, encode_call

UTC = dt.UTC
PARIS = zoneinfo.ZoneInfo("Europe/Paris")
ODD_ZONE = dt.timezone(dt.timedelta(hours=-3, minutes=-30, seconds=7, microseconds=9), "odd")

EXACT: list[object] = [
    *(None, True, False, 0, -1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**400, -(10**400)),
    *(0.0, -0.0, math.inf, -math.inf, 5e-324, 1.7976931348623157e308, math.nan),
    *("", "é\0\U0010ffff", "\ud800", "a\udfffb", b"", b"\xc1\x00"),
    *([], [[]], (), ((),), {}, {1: {}}, {"a": None, None: "a", 1.5: b"", b"": 1, True: 0}, set(), frozenset()),
    *(
        [1, "a", (2, [3.0])],
        {(1, 2): {3}},
        {frozenset({1}): [()]},
        {2**70: 1, "\udc00": 2},
        {-1, "a", (None,)},
    ),
    *(1j, complex(-0.0, math.nan), bytearray(b"ab"), bytearray(), range(3), range(2**70, -(2**70), -7), range(0)),
    *(slice(1, None, -2), slice("a", (1, [2])), ..., NotImplemented),
    *(dt.date(1, 1, 1), dt.date.max, dt.time(), dt.time(23, 59, 59, 999999, UTC, fold=1), dt.time(1, tzinfo=PARIS)),
    *(
        dt.datetime.min,  # noqa: DTZ901 - one without a zone
        dt.datetime(2024, 10, 27, 2, 30, tzinfo=PARIS, fold=1),
        dt.datetime(2020, 2, 29, tzinfo=ODD_ZONE),
    ),
    *(
        dt.timedelta.min,
        dt.timedelta.max,
        dt.timedelta(microseconds=-1),
        UTC,
        ODD_ZONE,
        dt.timezone(-dt.timedelta(hours=5)),
    ),
    *(dt.timezone(dt.timedelta(0), "UTC"), dt.timezone.min, PARIS),
    *(
        decimal.Decimal(text)
        for text in ("0", "-0", "0E+10", "1.10", "NaN", "-sNaN12", "Infinity", "1E+999999", "7" * 60)
    ),
    *(Fraction(0), Fraction(-(10**50), 3), uuid.UUID(int=2**128 - 1), uuid.uuid1(0, 0)),
    *(
        pathlib.Path(),
        pathlib.Path("/a//b/../c"),
        pathlib.PurePosixPath("//a"),
        pathlib.PureWindowsPath("C:\\x"),
        pathlib.Path("\udcff"),
    ),
    *(ipaddress.ip_address("10.0.0.1"), ipaddress.ip_address("fe80::1%eth0"), ipaddress.ip_network("10.0.0.0/9")),
    *(ipaddress.ip_network("fe80::/64"), ipaddress.ip_interface("10.0.0.1/8"), ipaddress.ip_interface("fe80::1%x/64")),
    *(
        re.compile("a(?P<b>.)", re.IGNORECASE | re.VERBOSE),
        re.compile(rb"\xff*", re.LOCALE),
        re.compile("(?s)é"),
        re.compile("", re.ASCII),
    ),
    *(array.array("d", [1.5, -0.0]), array.array("b"), array.array("Q", [2**64 - 1]), array.array("f", [0.1])),
    *(deque([1, [2]], 5), deque(), deque(maxlen=0), OrderedDict([("b", 1), ("a", [2])]), Counter("abca"), Counter()),
    *(defaultdict(list, a=[1]), defaultdict(None, {(1,): 2}), defaultdict(Counter, x=Counter("a"))),
    *(types.SimpleNamespace(a=1, b=[2]), types.SimpleNamespace()),
]


def exact(value: object) -> object:  # noqa: C901, PLR0911 - a table of types
    """A form of `value` that differs where type, order, sign or bits do."""
    kind = type(value)
    match value:
        case float():
            return kind, value.hex()
        case complex():
            return kind, value.real.hex(), value.imag.hex()
        case set() | frozenset():
            return kind, sorted(repr(exact(item)) for item in value)
        case dict():
            head = getattr(value, "default_factory", None)
            return kind, head, [(exact(key), exact(item)) for key, item in value.items()]
        case list() | tuple() | deque():
            return kind, getattr(value, "maxlen", None), [exact(item) for item in value]
        case slice():
            return kind, exact((value.start, value.stop, value.step))
        case dt.time() | dt.datetime():
            return kind, repr(value), value.fold
        case re.Pattern():
            return kind, value.pattern, value.flags
        case uuid.UUID():
            return kind, value.int, value.is_safe
        case types.SimpleNamespace():
            return kind, exact(vars(value))
        case _:
            return kind, repr(value)


@pytest.mark.parametrize("value", EXACT, ids=[f"{number}-{type(value).__name__}" for number, value in enumerate(EXACT)])
def test_every_type_comes_back_exactly_alone_and_in_containers(value: object) -> None:
    assert exact(decode(encode(value))) == exact(value)
    assert exact(decode(encode([value, {"k": (value,)}]))) == exact([value, {"k": (value,)}])


def test_all_types_travel_together() -> None:
    assert exact(decode(encode(EXACT))) == exact(EXACT)


@pytest.mark.parametrize(
    "view",
    [
        memoryview(b"abc"),
        memoryview(bytearray(b"abc")),
        memoryview(b"abcdef")[::2],
        memoryview(b""),
        memoryview(array.array("d", [1.5, 2.5])),
        memoryview(bytes(12)).cast("i", [1, 3]),
        memoryview(bytes(4)).cast("i", []),
    ],
)
def test_a_memoryview_keeps_items_format_shape_and_whether_it_may_be_written(view: memoryview) -> None:
    back = decode(encode(view))
    assert type(back) is memoryview
    assert (back.tobytes(), back.format, back.shape, back.readonly) == (
        view.tobytes(),
        view.format,
        view.shape,
        view.readonly,
    )


def test_mutable_containers_shared_or_cyclic_keep_their_identity() -> None:
    shared = bytearray(b"x")
    queue: deque[object] = deque([shared], 3)
    queue.append(queue)
    ordered: OrderedDict[object, object] = OrderedDict(a=queue)
    ordered["me"] = ordered
    space = types.SimpleNamespace(o=ordered)
    space.me = space
    lazy: defaultdict[object, object] = defaultdict(list, [("s", space)])
    lazy["me"] = lazy
    back: Any = decode(encode((lazy, shared)))
    assert back[0]["me"] is back[0]
    found = back[0]["s"]
    assert found.me is found
    assert found.o["me"] is found.o
    assert found.o["a"][1] is found.o["a"]
    assert found.o["a"][0] is back[1]


class Text(str):
    __slots__ = ()


class Number(int):
    pass


class Items(list[object]):
    pass


class Table(dict[object, object]):
    pass


def _zone_file() -> io.BytesIO:
    """A zone file that says UTC, as RFC 8536 lays it out."""
    head = struct.pack(">4sc15x6l", b"TZif", b"2", 0, 0, 0, 0, 1, 4)
    return io.BytesIO((head + struct.pack(">lbb", 0, 0, 0) + b"UTC\0") * 2 + b"\nUTC0\n")


ODD_FILE = zoneinfo.ZoneInfo.from_file(_zone_file(), key="Europe/Paris")


def _extended() -> OrderedDict[str, int]:
    made = OrderedDict(a=1)
    made.note = 1  # type: ignore[attr-defined]
    return made


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (object(), "type object"),
        (Text("a"), "Text, a subclass of str"),
        (Number(3), "Number, a subclass of int"),
        (Items(), "Items, a subclass of list"),
        (Table(), "Table, a subclass of dict"),
        (threading.Lock(), "lock"),
        (len, "builtin_function_or_method"),
        (lambda: 1, "function"),
        (int, "type"),
        (iter([]), "list_iterator"),
        ({}.keys(), "dict_keys"),
        (types, "module"),
        ((item for item in [1]), "generator"),
        (defaultdict(lambda: 1), "default_factory"),
        (_extended(), "attributes of its own"),
        (re.compile("x" * 70_000), "65536"),
        ({(1,): 0, 10**5000: object()}, "type object"),
        (ODD_FILE, "made from a file"),
        (dt.datetime(2020, 1, 1, tzinfo=type("Zone", (dt.tzinfo,), {})()), "tzinfo"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_travel_is_refused_by_path_and_type(value: object, words: str) -> None:
    with pytest.raises(ValueTransferError) as caught:
        encode_call((1, {"x": [0, 0, 0, value]}), {})
    assert 'args[1]["x"][3]' in str(caught.value)
    assert words in str(caught.value)


def test_a_key_that_python_does_not_write_out_is_a_key() -> None:
    assert decode(encode({10**5000: 1, -(10**5000): 2})) == {10**5000: 1, -(10**5000): 2}


def test_a_windows_path_is_the_same_or_refused() -> None:
    """Before Python 3.12 the text of `./c:x` is that of a path on the drive c."""
    path = pathlib.PureWindowsPath("./c:x")
    try:
        assert cast("Any", decode(encode(path))).parts == path.parts
    except ValueTransferError as refusal:
        assert sys.version_info < (3, 12), refusal  # noqa: PT017 - either is right


def test_a_user_list_travels_as_the_record_that_it_is() -> None:
    back = decode(encode(UserList([1, 2])))
    assert type(back) is UserList
    assert back.data == [1, 2]


def test_a_callers_decimal_context_changes_nothing() -> None:
    with decimal.localcontext(decimal.Context(prec=1, capitals=0, traps=[])):
        assert exact(decode(encode(decimal.Decimal("1.234E+50")))) == exact(decimal.Decimal("1.234E+50"))
        with pytest.raises(ProtocolError):
            decode(b"\xc1\x91\x92\x20\xa3abc")
