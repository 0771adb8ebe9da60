"""Large values: what was announced comes out whole, and nothing else is kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfarm.errors import ProtocolError
from secfarm.limits import CHUNK_BYTES, MAX_PENDING_VALUES_BYTES, MAX_VALUE_BYTES
from secfarm.task.payload import Blob
from secfarm.wire.blobs import BlobInbox, blob_of, chunks
from secfarm.wire.messages import Chunk

TWO_AND_A_BIT = b"x" * (2 * CHUNK_BYTES) + b"yz"


def inbox_for(*values: bytes) -> BlobInbox:
    inbox = BlobInbox()
    for value in values:
        inbox.announce(blob_of(value))
    return inbox


@given(st.lists(st.sampled_from([b"a", b"b" * CHUNK_BYTES, TWO_AND_A_BIT]), min_size=1, max_size=4))
def test_values_come_out_whole_and_in_order(values: list[bytes]) -> None:
    inbox = inbox_for(*values)
    out = [whole for value in values for chunk in chunks(blob_of(value), value) if (whole := inbox.add(chunk))]
    assert out == [(blob_of(value), value) for value in values]


def test_a_value_that_nobody_announced_is_refused() -> None:
    with pytest.raises(ProtocolError, match="nobody announced"):
        BlobInbox().add(next(chunks(blob_of(b"a"), b"a")))


def test_a_value_is_taken_as_often_as_it_was_announced() -> None:
    inbox = inbox_for(b"a")
    (chunk,) = chunks(blob_of(b"a"), b"a")
    assert inbox.add(chunk)
    with pytest.raises(ProtocolError, match="nobody announced"):
        inbox.add(chunk)


@pytest.mark.parametrize("order", [[1, 0], [0, 0], [0, 2], [2]])
def test_chunks_out_of_order_are_refused(order: list[int]) -> None:
    inbox = inbox_for(TWO_AND_A_BIT)
    parts = list(chunks(blob_of(TWO_AND_A_BIT), TWO_AND_A_BIT))
    with pytest.raises(ProtocolError):
        [inbox.add(parts[index]) for index in order]


def test_another_content_under_the_announced_digest_is_refused() -> None:
    inbox = inbox_for(b"abc")
    with pytest.raises(ProtocolError, match="SHA-256"):
        inbox.add(Chunk(blob_of(b"abc").digest, 0, memoryview(b"abd")))


def test_a_chunk_past_the_announced_size_is_refused() -> None:
    inbox = inbox_for(b"abc")
    with pytest.raises(ProtocolError):
        inbox.add(Chunk(blob_of(b"abc").digest, 0, memoryview(b"abcd")))


def test_a_chunk_inside_another_value_is_refused() -> None:
    inbox = inbox_for(TWO_AND_A_BIT, b"a")
    inbox.add(next(chunks(blob_of(TWO_AND_A_BIT), TWO_AND_A_BIT)))
    with pytest.raises(ProtocolError, match="inside another"):
        inbox.add(next(chunks(blob_of(b"a"), b"a")))


def test_tiny_chunks_are_refused() -> None:
    inbox = inbox_for(TWO_AND_A_BIT)
    with pytest.raises(ProtocolError, match="all but a value's last"):
        inbox.add(Chunk(blob_of(TWO_AND_A_BIT).digest, 0, memoryview(b"x")))


def test_a_value_over_the_limit_cannot_be_announced() -> None:
    for size in (0, -1, MAX_VALUE_BYTES + 1):
        with pytest.raises(ProtocolError):
            BlobInbox().announce(Blob(bytes(32), size))


def test_what_is_announced_and_not_sent_is_bounded() -> None:
    inbox = BlobInbox()
    for _ in range(MAX_PENDING_VALUES_BYTES // MAX_VALUE_BYTES):
        inbox.announce(Blob(bytes(32), MAX_VALUE_BYTES))
    with pytest.raises(ProtocolError, match="announced and not sent"):
        inbox.announce(Blob(bytes(32), 1))
