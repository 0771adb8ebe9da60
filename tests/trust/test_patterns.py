"""Patterns: what stars cover, and what they never do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfarm.trust.patterns import MAX_SUBJECT_CHARS, is_definite, matches, matches_list


@given(st.text(max_size=30))
def test_a_pattern_without_wildcards_is_equality(text: str) -> None:
    plain = text.replace("*", "").replace("?", "")
    assert matches(plain, plain)
    assert not matches(plain, plain + "x")
    assert not matches(plain, "x" + plain)


@pytest.mark.parametrize(
    ("pattern", "subject", "fits"),
    [
        ("*", "", True),
        ("*@EXAMPLE.COM", "ada@EXAMPLE.COM", True),
        ("*@EXAMPLE.COM", "ada@EXAMPLE.COM.evil", False),
        ("*@EXAMPLE.COM", "ada@EXAMPLExCOM", False),
        ("ada@EXAMPLE.COM", "Ada@EXAMPLE.COM", False),
        ("a?c", "abc", True),
        ("a?c", "ac", False),
        ("[ab]", "a", False),
        ("a.c", "abc", False),
        ("a*", "a\nb", True),
        ("a", "a\n", False),
    ],
)
def test_only_star_and_question_mark_are_special(pattern: str, subject: str, *, fits: bool) -> None:
    assert matches(pattern, subject) is fits


def test_no_wildcard_but_a_lone_star_covers_the_separator() -> None:
    assert matches("a.*", "a.b", separator=".")
    for pattern in ("a.*", "a?b.c", "*c", "**"):
        assert not matches(pattern, "a.b.c", separator=".")
    assert matches("*", "a.b.c", separator=".")


def test_a_negated_pattern_wins_wherever_it_stands() -> None:
    for patterns in (["*@lab", "!eve@lab"], ["!eve@lab", "*@lab"]):
        assert matches_list(patterns, "ada@lab")
        assert not matches_list(patterns, "eve@lab")
    assert not matches_list(["!eve@lab"], "ada@lab")


def test_an_overlong_subject_matches_nothing() -> None:
    """Several stars over a megabyte would take minutes."""
    assert not matches("*a*a*a*a*", "a" * (MAX_SUBJECT_CHARS + 1))


def test_a_definite_pattern_is_one_name() -> None:
    assert is_definite("ada@laptop")
    assert not any(map(is_definite, ["", "*", "ada*", "a?a", "!ada"]))
