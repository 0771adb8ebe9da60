"""The codec's vocabulary: what msgpack carries as it is, the numbers of the typed nodes, and the ways to fail.

Numbers are part of the wire and never change their meaning. Format: docs/codec.md.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, TypeAlias

from secfarm.limits import MAX_DEPTH

__all__ = ["SCALARS", "CannotTravel", "Malformed", "Node", "all_of", "shown"]

# A typed node on the wire: a msgpack array whose first item is its kind.
Node: TypeAlias = "list[object]"

# The first byte of a value that needs typed nodes. msgpack never uses it, so a plain value cannot begin with it.
TREE_MARK: Final = b"\xc1"

# Exactly these types are the same in Python and in msgpack; a subclass of one is none of them.
SCALARS: Final = frozenset({type(None), bool, int, float, str, bytes})

REF: Final = 0  # slot in the table of shared nodes
LIST: Final = 1
TUPLE: Final = 2
MAP: Final = 3  # dict with scalar keys, as one msgpack map
PAIRS: Final = 4  # dict with other keys: key, value, key, value, ...
SET: Final = 5
FROZENSET: Final = 6
INT: Final = 7  # one that needs more than 64 bits: two's complement, big-endian
TEXT: Final = 8  # str with lone surrogates: UTF-8, surrogates encoded like other code points
RECORD: Final = 9  # index into the table of classes, then the fields' values

COMPLEX: Final = 16
BYTEARRAY: Final = 17
MEMORYVIEW: Final = 18
RANGE: Final = 19
SLICE: Final = 20
ELLIPSIS: Final = 21
NOT_IMPLEMENTED: Final = 22
DATE: Final = 24
TIME: Final = 25
DATETIME: Final = 26
TIMEDELTA: Final = 27
TIMEZONE: Final = 28
ZONEINFO: Final = 29
DECIMAL: Final = 32
FRACTION: Final = 33
UUID: Final = 34
PATH: Final = 35
IP: Final = 36
PATTERN: Final = 37
ARRAY: Final = 40
DEQUE: Final = 41
ORDERED_DICT: Final = 42
DEFAULT_DICT: Final = 43
COUNTER: Final = 44
NAMESPACE: Final = 45

FEW: Final = 8  # items up to which a loop beats `all_of`
_LONG: Final = 256  # items from which counting one type beats collecting all


MAX_HEIGHT: Final = MAX_DEPTH + 2  # of tuples in tuples: a call adds its own two
MAX_CLASSES: Final = 1024  # of records in one value: each unknown one costs the receiver a class, about 1 KiB
MAX_PATTERN_CHARS: Final = 64 << 10  # compiling a regular expression costs far more than reading it


class CannotTravel(Exception):  # noqa: N818 - never leaves the codec; it becomes ValueTransferError there
    """What is wrong with a value, and the steps that lead to it, innermost first."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.steps: list[str] = []


class Malformed(Exception):  # noqa: N818 - never leaves the codec; it becomes ProtocolError there
    """Bytes that no encoder of ours makes."""


def shown(kind: type) -> str:
    """The name of a type for a message."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def all_of(kinds: frozenset[type], values: Collection[object]) -> bool:
    """Whether the exact type of each value is among `kinds`, at C speed."""
    if len(values) < _LONG:
        return kinds.issuperset(map(type, values))
    found = list(map(type, values))
    # Comparing with one type is by identity and so much faster than looking each up.
    return found[0] in kinds if found.count(found[0]) == len(found) else kinds.issuperset(found)
