from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfarm.errors import ProtocolError
from secfarm.limits import MAX_FRAME_BEFORE_AUTH_BYTES, MAX_FRAME_BYTES
from secfarm.wire.frames import FrameBuffer, encode_frame


@given(st.lists(st.binary(min_size=1, max_size=64)), st.integers(1, 9))
def test_any_chunking_yields_the_same_frames(frames: list[bytes], step: int) -> None:
    """However the network cuts the stream, the same frames come out, in order."""
    stream, buffer = b"".join(map(encode_frame, frames)), FrameBuffer()
    cuts = [stream[start : start + step] for start in range(0, len(stream), step)]
    assert [frame for cut in cuts for frame in buffer.feed(cut)] == frames
    assert buffer.pending_bytes == 0


def read(stream: bytes, step: int, buffer: FrameBuffer) -> tuple[list[bytes], str]:
    """Return what came out before the error, and the error."""
    frames: list[bytes] = []
    try:
        for start in range(0, len(stream), step):
            for frame in buffer.feed(stream[start : start + step]):
                frames.append(frame)  # noqa: PERF402 - what came before an error counts
    except ProtocolError as error:
        return frames, str(error)
    return frames, ""


@given(st.binary(max_size=200), st.integers(1, 200))
def test_any_bytes_in_any_chunking_end_alike(stream: bytes, step: int) -> None:
    assert read(stream, step, FrameBuffer(max_bytes=20)) == read(stream, 201, FrameBuffer(max_bytes=20))


def test_a_frame_is_its_length_in_four_bytes_then_its_payload() -> None:
    assert encode_frame(b"abc") == b"\0\0\0\3abc"


@pytest.mark.parametrize("length", [0, MAX_FRAME_BEFORE_AUTH_BYTES + 1, 2**31, 2**32 - 1])
@pytest.mark.parametrize("step", [1, 4, 100])
def test_a_forbidden_length_is_refused_before_anything_of_it_is_kept(length: int, step: int) -> None:
    buffer = FrameBuffer()
    frames, error = read(encode_frame(b"first") + length.to_bytes(4, "big") + bytes(50), step, buffer)
    assert frames == [b"first"]
    assert f"a frame of {length} bytes" in error
    assert buffer.pending_bytes <= 4


def test_the_largest_frame_passes() -> None:
    assert [len(frame) for frame in FrameBuffer().feed(encode_frame(bytes(MAX_FRAME_BEFORE_AUTH_BYTES)))] == [
        MAX_FRAME_BEFORE_AUTH_BYTES
    ]


@pytest.mark.parametrize("step", [1, 50, 1000])
def test_a_raised_limit_holds_from_the_very_next_frame(step: int) -> None:
    """The peer's answer to a proof may share a segment with the first large frame after it."""
    buffer, stream = FrameBuffer(max_bytes=10), encode_frame(b"raise") + encode_frame(bytes(500))
    sizes = []
    for start in range(0, len(stream), step):
        for frame in buffer.feed(stream[start : start + step]):
            sizes.append(len(frame))
            buffer.max_bytes = MAX_FRAME_BYTES
    assert sizes == [5, 500]


def test_half_a_frame_is_pending() -> None:
    buffer = FrameBuffer()
    assert list(buffer.feed(encode_frame(b"abcdef")[:7])) == []
    assert buffer.pending_bytes == 7
