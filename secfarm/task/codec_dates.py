"""Dates, times and time zones as typed nodes, and back. Exact types only. Format: docs/codec.md."""

from __future__ import annotations

import datetime as dt
import re
import zoneinfo
from collections.abc import Iterable
from typing import Any, Final, cast

from secfarm.task import codec_kinds as kind
from secfarm.task.codec_decode import TreeDecoder, parts, text, whole
from secfarm.task.codec_encode import TreeEncoder, text_node
from secfarm.task.codec_kinds import CannotTravel, Malformed, Node

__all__ = ["ROWS"]

# Also what keeps a key from being a path outside of the zone files; zoneinfo checks that again.
_ZONE_KEY: Final = re.compile(r"[A-Za-z0-9_+-]+(?:/[A-Za-z0-9_+-]+){0,3}")


def _from_date(_: TreeEncoder, node: Node, value: dt.date, __: int) -> None:
    node += (kind.DATE, value.year, value.month, value.day)


def _to_date(_: TreeDecoder, node: Node, __: int) -> dt.date:
    return dt.date(*parts(node, 3))


def _clock(walk: TreeEncoder, value: dt.time | dt.datetime, depth: int) -> Iterable[object]:
    zone = walk.within(value.tzinfo, depth, ".tzinfo")
    return value.hour, value.minute, value.second, value.microsecond, value.fold, zone


def _from_time(walk: TreeEncoder, node: Node, value: dt.time, depth: int) -> None:
    node += (kind.TIME, *_clock(walk, value, depth))


def _to_time(walk: TreeDecoder, node: Node, depth: int) -> dt.time:
    hour, minute, second, microsecond, fold, zone = parts(node, 6)
    return dt.time(hour, minute, second, microsecond, _zone(walk, zone, depth), fold=fold)


def _from_datetime(walk: TreeEncoder, node: Node, value: dt.datetime, depth: int) -> None:
    node += (kind.DATETIME, value.year, value.month, value.day, *_clock(walk, value, depth))


def _to_datetime(walk: TreeDecoder, node: Node, depth: int) -> dt.datetime:
    year, month, day, hour, minute, second, microsecond, fold, zone = parts(node, 9)
    return dt.datetime(year, month, day, hour, minute, second, microsecond, _zone(walk, zone, depth), fold=fold)


def _zone(walk: TreeDecoder, node: object, depth: int) -> dt.tzinfo | None:
    zone = walk.build(node, depth)
    if zone is not None and type(zone) not in (dt.timezone, zoneinfo.ZoneInfo):
        raise Malformed("a time zone is needed here")
    return cast("dt.tzinfo | None", zone)


def _from_timedelta(_: TreeEncoder, node: Node, value: dt.timedelta, __: int) -> None:
    node += (kind.TIMEDELTA, value.days, value.seconds, value.microseconds)


def _to_timedelta(_: TreeDecoder, node: Node, __: int) -> dt.timedelta:
    return dt.timedelta(*map(whole, parts(node, 3)))


def _from_timezone(_: TreeEncoder, node: Node, value: dt.timezone, __: int) -> None:
    # The name that was given, if any: only these arguments tell it from the name made of the offset.
    offset, *name = value.__getinitargs__()  # type: ignore[attr-defined]
    node += (kind.TIMEZONE, offset.days, offset.seconds, offset.microseconds, *map(text_node, name))


def _to_timezone(_: TreeDecoder, node: Node, __: int) -> dt.timezone:
    offset = dt.timedelta(*map(whole, node[1:4]))
    return dt.timezone(offset, *map(text, node[4:]))


def _from_zoneinfo(_: TreeEncoder, node: Node, value: zoneinfo.ZoneInfo, __: int) -> None:
    if not value.key or not _ZONE_KEY.fullmatch(value.key):
        raise CannotTravel(f"is a ZoneInfo with the key {value.key!r}, which no other side could look up")
    try:
        value.__reduce__()  # alone knows whether it was made from a file, whatever its key
    except Exception:  # noqa: BLE001 - pickling's own error, which nothing here imports
        raise CannotTravel(f"is a ZoneInfo made from a file; the key {value.key!r} need not lead to it") from None
    node += (kind.ZONEINFO, value.key)


def _to_zoneinfo(_: TreeDecoder, node: Node, __: int) -> zoneinfo.ZoneInfo:
    (key,) = parts(node, 1)
    if not _ZONE_KEY.fullmatch(key):
        raise Malformed("that is no key of a time zone")
    return zoneinfo.ZoneInfo(key)


# Type, kind, to the node, from the node.
ROWS: Final[tuple[tuple[Any, int, Any, Any], ...]] = (
    (dt.date, kind.DATE, _from_date, _to_date),
    (dt.time, kind.TIME, _from_time, _to_time),
    (dt.datetime, kind.DATETIME, _from_datetime, _to_datetime),
    (dt.timedelta, kind.TIMEDELTA, _from_timedelta, _to_timedelta),
    (dt.timezone, kind.TIMEZONE, _from_timezone, _to_timezone),
    (zoneinfo.ZoneInfo, kind.ZONEINFO, _from_zoneinfo, _to_zoneinfo),
)
