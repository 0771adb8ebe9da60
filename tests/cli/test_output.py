"""What a peer wrote reaches a terminal as text and as nothing else."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfarm.cli.output import Output, json_line, printable


@given(st.text())
def test_nothing_that_controls_a_terminal_is_left(text: str) -> None:
    for char in printable(text):
        assert char in "\n\t" or unicodedata.category(char) not in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert "\n" not in printable(text, one_line=True)


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs"])))
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\rb", "a\\rb"),
        ("\u202etxt.exe", "\\u202etxt.exe"),
        ("line\nline\tcell", "line\nline\tcell"),
        ("\ud800", "\\ud800"),
    ],
)
def test_what_is_escaped_is_shown_as_python_writes_it(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.dictionaries(st.text(), st.text()))
def test_a_record_is_one_printable_line_of_ascii_and_comes_back(record: dict[str, str]) -> None:
    line = json_line(record)
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line) == record


def test_quiet_leaves_confirmations_and_notes_out_and_answers_in(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(quiet=True)
    output.confirm({"done": True}, "done")
    output.note("by the way")
    output.answer({"value": 7}, "7")
    assert tuple(capsys.readouterr()) == ("7\n", "")


def test_json_replaces_the_words_of_answers_and_confirmations(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(json=True, quiet=True)
    output.confirm({"done": True}, "done")
    output.answer({"value": 7}, "7")
    assert capsys.readouterr().out == '{"done": true}\n{"value": 7}\n'
