"""Strict reading of TOML tables: every key is asked for, every other key is an error that names its line.

Pure: text in. The error class is the caller's, since a policy and a configuration are different troubles.
"""

from __future__ import annotations

import math
import re
import tomllib
from typing import Final, TypeAlias

from secfarm.errors import SecfarmError

_HEADER: Final = re.compile(r"\s*(?P<open>\[\[?)\s*(?P<name>[^\[\]#]+?)\s*\]")
_KEY: Final = re.compile(r"""\s*(?P<key>(?:"[^"]*"|'[^']*'|[A-Za-z0-9_.-]|\s(?=[.\s=]))+)\s*=""")

_Path: TypeAlias = tuple[str | int, ...]


def parse_toml(text: str, *, file: str, error: type[SecfarmError]) -> Table:
    """Return the root table of `text`.

    Raises:
        error: it is not TOML.
    """
    try:
        fields = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as problem:
        raise error(f"{file}: not TOML: {problem}; the file was not used") from problem
    return Table(fields, _Source(file, _line_numbers(text), error), ())


class _Source:
    """Where a table stands and how to complain about it."""

    __slots__ = ("error", "file", "lines")

    def __init__(self, file: str, lines: dict[_Path, int], error: type[SecfarmError]) -> None:
        self.file, self.lines, self.error = file, lines, error

    def fault(self, path: _Path, what: str) -> SecfarmError:
        """Return the error that `what` is wrong at `path`, with the nearest line known."""
        known = next((path[:length] for length in range(len(path), 0, -1) if path[:length] in self.lines), None)
        place = self.file if known is None else f"{self.file}:{self.lines[known]}"
        return self.error(f"{place}: {what}; the file was not used")


class Table:
    """One table. Each typed read marks its key as known; `finish` complains about the others."""

    __slots__ = ("_fields", "_known", "_path", "_source")

    def __init__(self, fields: dict[str, object], source: _Source, path: _Path) -> None:
        self._fields, self._source, self._path = fields, source, path
        self._known: set[str] = set()

    @property
    def place(self) -> str:
        """`file:line` of the table's header."""
        line = self._source.lines.get(self._path)
        return self._source.file if line is None else f"{self._source.file}:{line}"

    def fault(self, key: str, what: str) -> SecfarmError:
        """Return the error to raise about `key`, naming file and line."""
        return self._source.fault((*self._path, key), what)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that are given; for tables whose keys are the file's own."""
        return tuple(self._fields)

    def text(self, key: str) -> str | None:
        """Return a non-empty string without control characters, or None where the key is not given."""
        value = self._take(key)
        if value is None:
            return None
        return self._text(key, value)

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of such strings, empty where the key is not given."""
        value = self._take(key)
        if value is None:
            return ()
        if not isinstance(value, list):
            raise self.fault(key, f"{key} must be a list of strings, not {_kind(value)}")
        return tuple([self._text(key, item) for item in value])

    def count(self, key: str) -> int | None:
        """Return a whole number above zero, or None where the key is not given."""
        value = self._take(key)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.fault(key, f"{key} must be a whole number above 0, not {value!r}")
        return value

    def seconds(self, key: str) -> float | None:
        """Return a finite number above zero, or None where the key is not given."""
        value = self._take(key)
        if value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool) or not (value > 0 and math.isfinite(value)):
            raise self.fault(key, f"{key} must be a number of seconds above 0, not {value!r}")
        return float(value)

    def flag(self, key: str, *, default: bool) -> bool:
        """Return true or false, `default` where the key is not given."""
        value = self._take(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.fault(key, f"{key} must be true or false, not {_kind(value)}")
        return value

    def table(self, key: str) -> Table | None:
        """Return the table of that name, or None where there is none."""
        value = self._take(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.fault(key, f"{key} must be a table [{key}], not {_kind(value)}")
        return Table(value, self._source, (*self._path, key))

    def tables(self, key: str) -> tuple[Table, ...]:
        """Return the array of tables of that name, empty where there is none."""
        value = self._take(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.fault(key, f"{key} must be tables [[{key}]], not {_kind(value)}")
        return tuple([Table(item, self._source, (*self._path, key, index)) for index, item in enumerate(value)])

    def finish(self) -> None:
        """Complain about a key that nobody asked for: a misspelt restriction must not be skipped.

        Raises:
            SecfarmError: of the class given to `parse_toml`.
        """
        for key in self._fields:
            if key not in self._known:
                allowed = ", ".join(sorted(self._known))
                raise self.fault(key, f"unknown key {key!r}; known here: {allowed}")

    def _take(self, key: str) -> object:
        self._known.add(key)
        return self._fields.get(key)

    def _text(self, key: str, value: object) -> str:
        if not isinstance(value, str) or not value or not value.isprintable():
            raise self.fault(key, f"{key} must hold non-empty, printable strings, not {value!r}")
        return value


def _kind(value: object) -> str:
    return {dict: "a table", list: "a list", str: "a string", bool: "a truth value"}.get(type(value), repr(value))


def _line_numbers(text: str) -> dict[_Path, int]:
    """Return the line of each header and key, for messages; what multi-line values hide is merely not found."""
    lines: dict[_Path, int] = {}
    last: dict[_Path, int] = {}  # array of tables -> index of its newest
    here: _Path = ()
    for number, line in enumerate(text.split("\n"), start=1):
        if header := _HEADER.match(line):
            here = ()
            for name in (names := _names(header["name"])):
                here += (name,)
                if here in last and (header["open"] == "[" or name is not names[-1]):
                    here += (last[here],)
            if header["open"] == "[[":
                last[here] = last.get(here, -1) + 1
                here += (last[here],)
            lines.setdefault(here, number)
        elif key := _KEY.match(line):
            path = here
            for name in _names(key["key"]):
                path += (name,)
                lines.setdefault(path, number)
    return lines


def _names(dotted: str) -> list[str]:
    return [part.strip().strip("\"'") for part in dotted.split(".")]
