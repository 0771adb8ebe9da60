"""Strict TOML: what is unknown or of the wrong type is an error that names its line."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfarm.errors import ConfigError, TrustFileError
from secfarm.trust.strict_toml import Table, parse_toml

TEXT = """\
name = "n"
plain = 1
[a.b]
c = 2
[[list]]
x = 1

[list.inner]
y = 1
[[list]]
x = 2
"quoted key" = 3
[list.inner]
z = { deep = 1 }
"""


def parse(text: str) -> Table:
    return parse_toml(text, file="F", error=ConfigError)


def _inner(index: int) -> Table:
    table = parse(TEXT).tables("list")[index].table("inner")
    assert table is not None
    return table


@pytest.mark.parametrize(
    ("table", "key", "line"),
    [
        (lambda: parse(TEXT), "plain", 2),
        (lambda: parse(TEXT).table("a").table("b"), "c", 4),
        (lambda: parse(TEXT).tables("list")[0], "x", 6),
        (lambda: parse(TEXT).tables("list")[1], "x", 11),
        (lambda: parse(TEXT).tables("list")[1], "quoted key", 12),
        (lambda: _inner(0), "y", 9),
        (lambda: _inner(1), "z", 14),
        (lambda: _inner(1).table("z"), "deep", 14),
        (lambda: parse(TEXT).tables("list")[1], "missing", 10),
    ],
)
def test_an_error_names_the_line_of_its_key(table: Callable[[], Table], key: str, line: int) -> None:
    assert str(table().fault(key, "wrong")).startswith(f"F:{line}: wrong")


def test_a_key_that_nobody_asked_for_is_an_error() -> None:
    table = parse("nam = 1\nname = 'x'")
    table.text("name")
    with pytest.raises(ConfigError, match=r"^F:1: unknown key 'nam'; known here: name"):
        table.finish()


@pytest.mark.parametrize("text", ["a = ", "a = 1\na = 2", "[a]\n[a]", "\x00", "a = [" * 5000])
def test_what_is_not_toml_is_the_callers_error(text: str) -> None:
    with pytest.raises(TrustFileError, match=r"^F: not TOML"):
        parse_toml(text, file="F", error=TrustFileError)


@pytest.mark.parametrize(
    ("read", "wrong"),
    [
        (lambda table: table.text("k"), ["1", "true", "[]", "{}", "''", '"\\n"', '"\\u001b[2J"']),
        (lambda table: table.texts("k"), ["1", "'x'", "[1]", "['']", "[['x']]"]),
        (lambda table: table.count("k"), ["0", "-1", "1.0", "true", "'1'", "nan"]),
        (lambda table: table.seconds("k"), ["0", "-1", "inf", "nan", "true", "'1'", "1979-05-27"]),
        (lambda table: table.flag("k", default=False), ["0", "1", "'true'", "[]"]),
        (lambda table: table.table("k"), ["1", "[]", "[{}]"]),
        (lambda table: table.tables("k"), ["1", "{}", "[1]", "[{}, 1]"]),
    ],
)
def test_a_wrong_type_is_an_error(read: Callable[[Table], object], wrong: list[str]) -> None:
    for value in wrong:
        with pytest.raises(ConfigError, match=r"^F:1: k "):
            read(parse(f"k = {value}"))


def test_what_is_not_given_is_none_or_empty() -> None:
    table = parse("")
    assert (table.text("k"), table.count("k"), table.seconds("k"), table.table("k")) == (None,) * 4
    assert (table.texts("k"), table.tables("k")) == ((), ())
    assert table.flag("k", default=True)
    table.finish()


@given(st.text(max_size=60))
def test_any_text_is_a_table_or_the_callers_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        parse(text).finish()
