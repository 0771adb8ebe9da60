from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st

from secfarm.auth import Peer, Side
from secfarm.auth.base import transcript

LABELS = st.text(st.characters(max_codepoint=127), max_size=8)
FIELDS = st.lists(st.binary(max_size=8), max_size=4)


@given(LABELS, FIELDS, LABELS, FIELDS)
def test_two_transcripts_are_equal_only_when_label_and_fields_are(
    label: str, fields: list[bytes], other_label: str, other_fields: list[bytes]
) -> None:
    assume((label, fields) != (other_label, other_fields))
    assert transcript(label, *fields) != transcript(other_label, *other_fields)


@given(st.binary(min_size=1, max_size=8), st.integers(0, 8))
def test_moving_a_border_between_fields_changes_the_transcript(whole: bytes, cut: int) -> None:
    assume(0 < cut < len(whole))
    assert transcript("x", whole[:cut], whole[cut:]) != transcript("x", whole)


def test_a_transcript_is_label_and_fields_each_after_its_length() -> None:
    assert transcript("ab", b"c", b"") == b"\0\0\0\2ab\0\0\0\1c\0\0\0\0"


def test_sides_are_each_others_other() -> None:
    assert [side.other for side in Side] == [Side.SERVER, Side.CLIENT]


def test_a_peer_shows_no_key_object() -> None:
    assert "verifier" not in repr(Peer("ada", "shared-secret", "HMAC:x"))
