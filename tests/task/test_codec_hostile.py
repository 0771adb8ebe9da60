"""Whatever the bytes: a value or a ProtocolError, in bounded time and memory."""

from __future__ import annotations

import array
import datetime as dt
import decimal
import enum
import ipaddress
import pathlib
import re
import struct
import subprocess
import sys
import time
import tracemalloc
import types
import uuid
import zoneinfo
from collections import Counter, OrderedDict, defaultdict, deque
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from secfarm.errors import ProtocolError
from secfarm.task.codec import decode, decode_call, encode, encode_result
from secfarm.task.codec_kinds import COUNTER, DEQUE, FROZENSET, LIST, PAIRS, RECORD, REF, SET, TUPLE


@dataclass
class Point:
    x: object
    y: object = None


@dataclass(frozen=True, slots=True)
class Fixed:
    a: int


class Pair(NamedTuple):
    left: object
    right: object = 2


class Colour(enum.Enum):
    RED = "r"


class Level(enum.IntEnum):
    LOW = 1


EXACT: list[object] = [
    *(None, 2**70, -0.0, "\ud800", b"x", [[1]], (1, (2,)), {"a": [1]}, {(1,): {2}}, frozenset({"a"}), {1: None}, 1j),
    *(bytearray(b"a"), memoryview(b"abcd").cast("h"), range(2**70), slice(1, (2,)), ..., NotImplemented, dt.date.max),
    *(dt.datetime(2020, 1, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Paris")), dt.time(1, tzinfo=dt.UTC), dt.timedelta.max),
    *(dt.timezone(dt.timedelta(hours=1), "x"), decimal.Decimal("1.5E+7"), Fraction(1, 3), uuid.UUID(int=1)),
    *(pathlib.Path("/a"), ipaddress.ip_interface("fe80::1/64"), re.compile("a(b)"), array.array("d", [1.5])),
    *(deque([1], 3), OrderedDict(a=1), defaultdict(list, a=[1]), Counter("ab"), types.SimpleNamespace(a=[1])),
]
SEEDS = [encode(value) for value in EXACT]
SEEDS += [
    encode(value) for value in (Point(1), Fixed(1), Pair(1), Colour.RED, Level.LOW, KeyError(1), OSError(1, "a", "b"))
]
SEEDS += [encode([Point(1, EXACT), EXACT]), encode((Pair(Fixed(1), {Fixed(2): {Colour.RED: Level.LOW}}),))]

msgpack = msgspec.msgpack.encode
NODES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 300), st.floats(), st.text(max_size=4), st.binary(max_size=9)),
    lambda inside: st.one_of(
        st.tuples(st.integers(0, 46), inside, inside).map(list),
        st.builds(lambda kind, items: [kind, *items], st.integers(-1, 50), st.lists(inside, max_size=7)),
        st.builds(lambda slot: [0, slot], st.integers(0, 4)),
        st.dictionaries(st.text(max_size=3) | st.integers(-9, 9), inside, max_size=3),
    ),
    max_leaves=10,
)
ENTRIES = st.tuples(
    st.sampled_from([__name__, "builtins", "numpy", "nowhere", "decimal", "enum"]),
    st.sampled_from(
        ["Point", "Fixed", "Pair", "Colour", "Bits", "ValueError", "OSError", "ndarray", "generic", "a.b", ""]
    ),
    st.integers(0, 1),
    st.integers(-1, 5),
    st.sampled_from(["", "int", "str", "ValueError", "OSError", "int\0"]),
    st.lists(st.sampled_from(["x", "y", "a", "b", "left", "right", "name", "value", "args", "__dict__"]), max_size=4),
)
RECORDS = st.builds(lambda index, items: [RECORD, index, *items], st.integers(0, 2), st.lists(NODES, max_size=4))


def attempt(wire: bytes) -> None:
    for read in (decode, decode_call):
        with suppress(ProtocolError):
            read(wire)


@given(st.binary(max_size=64))
@example(b"")
@example(b"\xc1")
@example(b"\x91" * 100_000)
@example(b"\xc1" + b"\x92\x01" * 100_000)
@example(b"\x81\xa0" * 100_000)
@example(b"\xd6\xff\x00\x00\x00\x00")
@example(b"\xdd\xff\xff\xff\xff")
@example(b"\xdf\xff\xff\xff\xff")
@example(b"\xc6\xff\xff\xff\xff")
@example(b"\xdd\x00\x0f\x00\x00" * 900)
def test_any_bytes_are_a_value_or_a_protocol_error(wire: bytes) -> None:
    attempt(wire)
    attempt(b"\xc1" + wire)


@pytest.mark.parametrize(
    "tree",
    [
        [[SET, [REF, 0]], [[REF, 0]]],
        [[PAIRS, [REF, 0], 1], [[REF, 0]]],
        [[PAIRS, 1, [REF, 0]], [[REF, 0]]],
        [[LIST, [REF, 0]], [[TUPLE, [REF, 1]], [TUPLE, [REF, 0]]]],
        [[SET, [REF, 1], [REF, 0]], [[TUPLE, [REF, 1]], [TUPLE, 1, [REF, 2]], [TUPLE, [REF, 0]]]],
        [[SET, [FROZENSET, [REF, 0]]], [[FROZENSET, [REF, 0]]]],
        [[COUNTER, [REF, 0], 1], [[TUPLE, [DEQUE, None, [SET, [REF, 0]]], [REF, 0]]]],
    ],
)
def test_what_waits_for_itself_is_refused_and_not_waited_for(tree: list[object]) -> None:
    with pytest.raises(ProtocolError):
        decode(b"\xc1" + msgpack(tree))


@given(st.data())
def test_any_change_to_encoded_bytes_is_a_value_or_a_protocol_error(data: st.DataObject) -> None:
    wire = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(len(wire) - 1, 0)))
        what = data.draw(st.sampled_from(["flip", "cut", "insert", "splice"]))
        if what == "flip" and wire:
            wire[at] ^= data.draw(st.integers(1, 255))
        elif what == "cut":
            del wire[at : at + data.draw(st.integers(1, 9))]
        elif what == "insert":
            wire[at:at] = data.draw(st.binary(min_size=1, max_size=5))
        else:
            other = data.draw(st.sampled_from(SEEDS))
            wire[at:at] = other[data.draw(st.integers(0, len(other))) :]
    attempt(bytes(wire))


def test_every_byte_of_a_small_value_of_each_type_may_be_any_other() -> None:
    for seed in SEEDS:
        for at in range(min(len(seed), 24)):
            for byte in (0, 1, 2, 7, 0x20, 0x7F, 0x80, 0x90, 0x92, 0xC0, 0xC1, 0xC4, 0xCF, 0xFF):
                attempt(seed[:at] + bytes([byte]) + seed[at + 1 :])


@given(NODES, st.lists(NODES, max_size=4))
def test_any_nodes_are_a_value_or_a_protocol_error(root: object, table: list[object]) -> None:
    attempt(b"\xc1" + msgpack([root, table]))


@given(RECORDS, st.lists(NODES | RECORDS, max_size=3), st.lists(ENTRIES, max_size=3))
def test_any_records_are_a_value_or_a_protocol_error(root: object, table: list[object], classes: list[object]) -> None:
    attempt(b"\xc1" + msgpack([root, table, classes]))


def _array(kind: int, items: list[bytes]) -> bytes:
    return b"\xdd" + struct.pack(">I", len(items) + 1) + bytes([kind]) + b"".join(items)


def _table(root: bytes, table: list[bytes]) -> bytes:
    return b"\xc1\x92" + root + b"\xdd" + struct.pack(">I", len(table)) + b"".join(table)


def _sized(head: str, held: bytes) -> bytes:
    return bytes.fromhex(head) + struct.pack(">I", len(held)) + held


def _ref(slot: int) -> bytes:
    return b"\x92\x00\xcd" + struct.pack(">H", slot)


def _pairs_of(kind: int) -> list[bytes]:
    """A table of containers that each hold the one before twice."""
    return [bytes([0x92, kind, 0xC0]), *(_array(kind, [_ref(at)] * 2) for at in range(60))]


COSTLY = {
    # A long tuple that waits for an outer one, asked for again and again.
    "waiting": _table(_ref(0), [_array(2, [_array(1, [_ref(1)] * 20_000)]), _array(2, [b"\x01"] * 20_000 + [_ref(0)])]),
    "waiting in place": _table(_ref(0), [_array(2, [_array(1, [_array(2, [_ref(0)])] * 20_000)])]),
    "chain": _table(_ref(19_999), [b"\x92\x02\xc0", *(_array(2, [_ref(at)]) for at in range(19_999))]),
    "doubling lists": _table(_ref(40), _pairs_of(1)),
    "doubling tuples": _table(_ref(40), _pairs_of(2)),
    # A tuple's hash is worked out anew each time.
    "doubling tuples in a set": _table(_array(5, [_ref(40)]), _pairs_of(2)),
    "doubling tuples in a frozenset": _table(_array(6, [_ref(40)]), _pairs_of(2)),
    "doubling tuples as a key": _table(_array(4, [_ref(40), b"\x01"]), _pairs_of(2)),
    "doubling tuples as keys": _table(_array(4, [_ref(22), b"\x01"] * 50), _pairs_of(2)),
    "doubling tuples in an OrderedDict": _table(_array(42, [_ref(40), b"\x01"]), _pairs_of(2)),
    "empty lists": b"\xdd" + struct.pack(">I", 300_000) + b"\x90" * 300_000,
    "empty nodes": b"\xc1\x91" + _array(1, [b"\x91\x05"] * 100_000),
    "claims": b"".join(b"\xdd" + struct.pack(">I", 100_000 - 5 * at) for at in range(900)) + b"\x01" * 100_000,
    "classes": b"\xc1\x93\x90\x90\xdd" + struct.pack(">I", 2000) + b"\x90" * 2000,
    "huge fraction": b"\xc1\x91\x93\x21" + _sized("9207c6", b"\x11" * 200_000) + _sized("9207c6", b"\x13" * 200_000),
    "huge decimal": b"\xc1\x91\x92\x20" + _sized("db", b"7" * 400_000),
    "huge deque": bytes.fromhex("c1919329cf7fffffffffffffff01"),
    "pattern": b"\xc1" + msgpack([[37, "(" * 30_000 + ")" * 30_000, 32]]),
    "view": b"\xc1" + msgpack([[18, b"", "B", [2**62], True]]),
}


@pytest.mark.parametrize("name", COSTLY)
def test_costly_looking_bytes_cost_time_and_memory_in_proportion(name: str) -> None:
    wire = COSTLY[name]
    started = time.process_time()
    attempt(wire)
    assert time.process_time() - started < 5
    tracemalloc.start()  # which makes it several times as slow
    attempt(wire)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40_000_000 + 100 * len(wire)


def test_a_worker_of_bounded_memory_survives_claims_of_size() -> None:
    code = (
        "import resource, sys\n"
        "from secfarm.errors import ProtocolError\n"
        "from secfarm.task.codec import decode\n"
        "resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20))\n"
        "for wire in (b'\\xdd' + b'\\xff' * 4, b'\\xc1\\xdd' + b'\\xff' * 4, (b'\\xdf' + b'\\xff' * 4) * 50,\n"
        "             b'\\xdd' + (20_000_000).to_bytes(4, 'big') + b'\\x90' * 20_000_000):\n"
        "    try:\n"
        "        decode(wire)\n"
        "    except ProtocolError:\n"
        "        pass\n"
        "print('alive')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "alive\n", done.stderr


@pytest.mark.parametrize("value", [1, "x", [1, {"a": None}], (1, b"x"), 1 << 80, "\ud800", {1, 2}])
def test_a_result_is_encoded_as_any_value(value: object) -> None:
    assert encode_result(value) == encode(value)


@pytest.mark.parametrize("value", ["[b'x' * 1000] * 1_000_000", "bytes(900 << 20)", "(b'x' * 1000,) * 1_000_000"])
def test_a_result_for_which_there_is_no_memory_is_an_error_and_no_crash(value: str) -> None:
    script = f"""
import resource
from secfarm.task import codec
value = {value}
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
try:
    codec.encode_result(value)
except MemoryError:
    print("no room")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "no room\n"), done.stderr
