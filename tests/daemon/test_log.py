"""A record is one line of ASCII, whatever is in it."""

from __future__ import annotations

import io
import json
import logging
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfarm.daemon.log import LogForm, OneLine

HOSTILE = [
    "two\nlines",
    "carriage\rreturn",
    "\x1b[2Jescape\x07",
    "right\u202eto left\u2066",
    "half \ud800 a \udfff letter",
    "line\u2028separator\u2029\x85\x0b\x0c",
    '"}\n{"level": "forged"',
    "\x00\x7f\x9b",
    "ünï ☃ 🎲",
]
EVERY_FORM = pytest.mark.parametrize("form", list(LogForm))


def line(form: LogForm, message: str, *args: object, error: BaseException | None = None) -> str:
    caught = None if error is None else (type(error), error, error.__traceback__)
    record = logging.LogRecord("secfarm", logging.WARNING, "file.py", 1, message, args, caught)
    record.created = 1_800_000_000.1239
    return OneLine("gate", form).format(record)


def test_the_fields_of_a_record() -> None:
    assert json.loads(line(LogForm.JSON, "from %s", "ada")) == {
        "time": "2027-01-15T08:00:00.123Z",
        "level": "warning",
        "role": "gate",
        "message": "from ada",
    }
    assert line(LogForm.TEXT, "from %s", "ada") == "2027-01-15T08:00:00.123Z WARNING gate: from ada"
    assert datetime.fromisoformat("2027-01-15T08:00:00.123Z").tzinfo is UTC


@EVERY_FORM
@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_in_its_line_and_moves_nothing(form: LogForm, text: str) -> None:
    for written in (line(form, text), line(form, "%s", text), line(form, "broken", error=ValueError(text))):
        assert re.fullmatch("[ -~]+", written)
        assert not text.isascii() or form is LogForm.TEXT or "forged" not in json.loads(written)["level"]


@given(st.text(st.characters(), max_size=200))
def test_json_says_what_was_said(text: str) -> None:
    """Lone surrogates alone are spelt out: not every reader takes them."""
    written = line(LogForm.JSON, "%s", text)
    assert re.fullmatch("[ -~]+", written)
    assert json.loads(written)["message"] == text.encode("utf-8", "backslashreplace").decode()
    assert not re.search(r"\\ud[89a-f][0-9a-f]{2}", json.dumps(json.loads(written)["message"], ensure_ascii=False))


@EVERY_FORM
def test_long_text_is_cut_and_its_length_told(form: LogForm) -> None:
    assert "[100000 characters]" in (written := line(form, "%s", "x" * 100_000))
    assert len(written) < 5000
    error = ValueError("y" * 100_000 + " at the end")
    assert len(written := line(form, "broken", error=error)) < 20_000
    assert "characters] ...yyy" in written
    assert "at the end" in written


def test_an_exception_is_a_field_of_one_line() -> None:
    try:
        _ = {}["missing"]
    except KeyError as error:
        record = json.loads(line(LogForm.JSON, "broken", error=error))
    assert record["message"] == "broken"
    assert record["exception"].startswith("Traceback (most recent call last):\n")
    assert record["exception"].endswith("KeyError: 'missing'")


@pytest.mark.parametrize(
    ("breaks", "level", "words"),
    [
        ("raise ValueError('a\\nb')", "critical", "ends the keeper"),
        ("import warnings; warnings.warn('old\\nways')", "warning", "old\nways"),
        ("import threading; t = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()", "error", "a thread"),
        ("class Gone:\n    def __del__(self): 1 / 0\nGone()", "error", "Gone.__del__"),
        ("import logging; logging.getLogger('asyncio').error('of %s', 'a library')", "error", "of a library"),
    ],
)
def test_what_nobody_caught_is_a_record_too(breaks: str, level: str, words: str) -> None:
    script = f"import sys; from secfarm.daemon.log import *; log_to(sys.stderr, 'keeper', Log(LogForm.JSON))\n{breaks}"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    [written] = done.stderr.splitlines()
    record = json.loads(written)
    assert (record["level"], record["role"]) == (level, "keeper")
    assert words in record["message"]


def test_smaller_records_than_the_level_are_left_out() -> None:
    from secfarm.daemon.log import Log, log_to

    root, ours = logging.getLogger(), logging.getLogger("secfarm")
    before, stream = (root.handlers[:], ours.level, sys.excepthook, sys.unraisablehook), io.StringIO()
    import threading

    hook = threading.excepthook
    try:
        log_to(stream, "supervisor", Log(LogForm.JSON, logging.WARNING))
        ours.info("small")
        ours.warning("large")
    finally:
        root.handlers[:], _ = before[0], ours.setLevel(before[1])
        sys.excepthook, sys.unraisablehook, threading.excepthook = before[2], before[3], hook
        logging.captureWarnings(capture=False)
    assert [json.loads(one)["message"] for one in stream.getvalue().splitlines()] == ["large"]
