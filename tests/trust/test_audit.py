"""The audit chain: any change of what was written shows, at its line; a line is safe on a terminal."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfarm.errors import VerifyError
from secfarm.trust.audit import GENESIS, MAX_TEXT_CHARS, AuditChain, AuditSummary, verify_chain

NOW_S = 1_700_000_000.25

_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_names = st.text(max_size=8).filter(lambda name: name not in {"seq", "time", "prev", "hash"})
_records = st.lists(st.dictionaries(_names, _values, max_size=4), max_size=5)


def chain(*records: dict[str, object]) -> list[bytes]:
    log = AuditChain()
    return [log.append(record, NOW_S + number) for number, record in enumerate(records)]


LINES = chain({"event": "accepted", "principal": "ada"}, {"event": "refused"}, {"event": "finished"})


@given(_records)
def test_what_was_appended_verifies_and_can_be_continued(records: list[dict[str, object]]) -> None:
    lines = chain(*records)
    summary = verify_chain(lines)
    assert summary.records == len(records)
    more = AuditChain(summary).append({"event": "more"}, NOW_S)
    assert verify_chain([*lines, more]).records == len(records) + 1
    assert verify_chain([more], after=summary) == verify_chain([*lines, more])


@given(_records)
def test_a_line_is_one_line_of_printable_ascii(records: list[dict[str, object]]) -> None:
    for line in chain(*records):
        assert line.endswith(b"\n")
        assert all(0x20 <= byte < 0x7F for byte in line[:-1])


@given(st.integers(0, 2), st.data())
def test_a_flipped_byte_shows_at_its_line(number: int, data: st.DataObject) -> None:
    line = bytearray(LINES[number])
    line[data.draw(st.integers(0, len(line) - 2))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(VerifyError, match=f"audit line {number + 1} "):
        verify_chain([*LINES[:number], bytes(line), *LINES[number + 1 :]])


@pytest.mark.parametrize(
    ("lines", "first_bad"),
    [
        (LINES[1:], 1),
        ([LINES[0], LINES[2]], 2),
        ([LINES[0], LINES[0]], 2),
        ([LINES[1], LINES[0]], 1),
        ([*LINES, b"\n"], 4),
        ([*LINES, b"{}\n"], 4),
        ([*LINES, b"[1]\n"], 4),
        ([*LINES, b"[" * 100_000], 4),
        ([LINES[0][:-5]], 1),
        ([LINES[0].replace(b'","', b'", "')], 1),
        ([b" " + LINES[0]], 1),
    ],
)
def test_a_missing_added_moved_or_respelt_line_shows(lines: list[bytes], first_bad: int) -> None:
    with pytest.raises(VerifyError, match=f"audit line {first_bad} "):
        verify_chain(lines)


def test_a_forged_record_needs_all_that_follow_to_be_forged() -> None:
    """Its own hash is put right, and the next line still shows it."""
    forged = AuditChain(AuditSummary(1, json.loads(LINES[0])["hash"])).append({"event": "accepted"}, NOW_S + 1)
    with pytest.raises(VerifyError, match="audit line 3 "):
        verify_chain([LINES[0], forged, LINES[2]])


def test_a_summary_tells_times_and_head() -> None:
    summary = verify_chain(LINES)
    assert (summary.first, summary.last) == ("2023-11-14T22:13:20.250000Z", "2023-11-14T22:13:22.250000Z")
    assert summary.head == json.loads(LINES[-1])["hash"]
    assert verify_chain([]) == AuditSummary(0, GENESIS)


def test_a_peers_text_is_capped_and_cannot_forge_a_field() -> None:
    text = 'x","event":"accepted\x1b[2J\x7f\n\u202e' + "y" * 10_000
    line = chain({"event": "refused", "name": text, "names": ["z"] * 5000})[0]
    fields = json.loads(line)
    assert fields["event"] == "refused"
    assert fields["name"].startswith(text[:MAX_TEXT_CHARS])
    assert fields["name"].endswith(f"[{len(text)} characters]")
    assert len(fields["names"]) == 1025
    assert len(line) < 10_000


def test_bytes_are_written_in_hexadecimal() -> None:
    assert json.loads(chain({"digest": b"\x00\xff"})[0])["digest"] == "00ff"


@pytest.mark.parametrize("name", ["seq", "time", "prev", "hash"])
def test_a_record_cannot_name_our_fields(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        AuditChain().append({name: 1}, NOW_S)
