"""The audit chain: records as JSON lines, each holding the hash of the one before it. Pure; disk/auditlog.py writes.

A record that was altered, removed or put in from elsewhere breaks the chain at its line. (Cutting the end off breaks
nothing by itself: keep a head elsewhere to notice that.) Form: docs/operations.md, "The audit log".
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TypeAlias

from secfarm.errors import VerifyError

GENESIS: Final = "0" * 64  # `prev` of the first record
MAX_TEXT_CHARS: Final = 2048  # of one peer-given text; the rest is counted, not kept
MAX_ITEMS: Final = 1024  # of one list; an audit line is read by people
_RESERVED: Final = ("seq", "time", "prev", "hash")

AuditValue: TypeAlias = "str | int | float | bool | Sequence[AuditValue] | Mapping[str, AuditValue] | None"


@dataclass(frozen=True, slots=True)
class AuditSummary:
    """What a whole chain is.

    Attributes:
        records: how many.
        head: hash of the last one, or `GENESIS`; what the next record's `prev` must be.
        first, last: their times (ISO 8601, UTC), empty where there is no record.
    """

    records: int = 0
    head: str = GENESIS
    first: str = ""
    last: str = ""


class AuditChain:
    """The growing end of a chain."""

    __slots__ = ("head", "records")

    def __init__(self, summary: AuditSummary | None = None) -> None:
        """Begin a chain, or go on with one that `verify_chain` summed up."""
        summary = summary or AuditSummary()
        self.head = summary.head
        self.records = summary.records

    def append(self, record: Mapping[str, AuditValue], now_s: float) -> bytes:
        """Return the next line for `record`, newline included.

        Texts are capped and written in ASCII with every control character escaped, so a line is safe on a terminal
        whatever a peer put in it.

        Args:
            now_s: Unix seconds.

        Raises:
            ValueError: the record has a name that is ours: seq, time, prev, hash.
        """
        if taken := [name for name in _RESERVED if name in record]:
            raise ValueError(f"an audit record may not have fields {taken}")
        fields: dict[str, object] = {name: _plain(value) for name, value in record.items()}
        fields |= {"seq": self.records, "time": _iso(now_s), "prev": self.head}
        fields["hash"] = self.head = _hash(fields)
        self.records += 1
        return _canonical(fields) + b"\n"


def verify_chain(lines: Iterable[bytes], *, after: AuditSummary | None = None) -> AuditSummary:
    """Return what the chain in `lines` is, if it is whole, else raise.

    Args:
        lines: with or without their newlines.
        after: what the lines continue; None: they are a chain from its beginning.

    Raises:
        VerifyError: it names the number, from 1, of the first line that is not the one that was written there.
    """
    summary = after or AuditSummary()
    for number, line in enumerate(lines, start=1):
        summary = _next(summary, line, number)
    return summary


def _next(summary: AuditSummary, line: bytes, number: int) -> AuditSummary:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise VerifyError(f"audit line {number} is not a record ({error}); the chain ends before it") from error
    if not isinstance(fields, dict) or not all(name in fields for name in _RESERVED):
        raise VerifyError(f"audit line {number} is not a record; the chain ends before it")
    claimed = fields.pop("hash")
    if fields["seq"] != summary.records or fields["prev"] != summary.head:
        raise VerifyError(f"audit line {number} does not follow the one before it: a line is missing, added or moved")
    # The line is compared whole: JSON has many spellings, a record has one.
    if claimed != _hash(fields) or line.rstrip(b"\n") != _canonical(fields | {"hash": claimed}):
        raise VerifyError(f"audit line {number} was altered after it was written")
    time = str(fields["time"])
    return AuditSummary(summary.records + 1, claimed, summary.first or time, time)


def _hash(fields: Mapping[str, object]) -> str:
    return hashlib.sha256(_canonical(fields)).hexdigest()


def _canonical(fields: Mapping[str, object]) -> bytes:
    text = json.dumps(fields, sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("\x7f", "\\u007f").encode("ascii")  # the one control character that JSON leaves as it is


def _plain(value: AuditValue) -> object:
    if isinstance(value, bytes):  # a sequence of numbers to the type checker, a digest to people
        value = value.hex()
    if isinstance(value, str):
        return value if len(value) <= MAX_TEXT_CHARS else f"{value[:MAX_TEXT_CHARS]}...[{len(value)} characters]"
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, Mapping):
        return {_plain_name(name): _plain(item) for name, item in value.items()}
    if isinstance(value, Sequence):
        kept = [_plain(item) for item in value[:MAX_ITEMS]]
        return kept if len(value) <= MAX_ITEMS else [*kept, f"...[{len(value)} items]"]
    return value


def _plain_name(name: str) -> str:
    return name[:MAX_TEXT_CHARS]


def _iso(now_s: float) -> str:
    return datetime.fromtimestamp(now_s, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
