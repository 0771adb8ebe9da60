"""Frames: length-prefixed records cut from a byte stream. Sans-I/O; knows no messages.

A length is judged before any of its payload is kept. Format: docs/PROTOCOL.md, section 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from secfarm.errors import ProtocolError
from secfarm.limits import MAX_FRAME_BEFORE_AUTH_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

HEADER_BYTES: Final = 4  # the payload's length, big-endian


def encode_frame(payload: bytes) -> bytes:
    """Return `payload` (at least one byte) as one frame."""
    return len(payload).to_bytes(HEADER_BYTES, "big") + payload


class FrameBuffer:
    """Cuts frames from a stream. After an error it must not be fed again.

    Attributes:
        max_bytes: the largest payload that is accepted from here on. It is read when a frame's turn comes, so raising
            it while frames are being taken holds for the very next frame, however the network cut the stream.
    """

    __slots__ = ("_pending", "_wanted_bytes", "max_bytes")

    def __init__(self, max_bytes: int = MAX_FRAME_BEFORE_AUTH_BYTES) -> None:
        self.max_bytes = max_bytes
        self._pending = bytearray()
        self._wanted_bytes = 0  # size that `_pending` must reach before looking at it again is worth the while

    @property
    def pending_bytes(self) -> int:
        """How much of an unfinished frame is held: zero at a frame's border."""
        return len(self._pending)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take more of the stream and yield the payloads that are complete now; take them all before the next call.

        Raises:
            ProtocolError: a frame is empty or longer than `max_bytes`; nothing of it is kept.
        """
        source: bytes | bytearray = data
        if self._pending:
            self._pending += data
            if len(self._pending) < self._wanted_bytes:
                return
            source, self._pending = self._pending, bytearray()
        view, start, end = memoryview(source), 0, len(source)
        while end - start >= HEADER_BYTES:
            stop = start + HEADER_BYTES + self._judged(int.from_bytes(view[start : start + HEADER_BYTES], "big"))
            if stop > end:
                self._wanted_bytes = stop - start
                break
            yield bytes(view[start + HEADER_BYTES : stop])
            start = stop
        else:
            self._wanted_bytes = HEADER_BYTES
        if start < end:
            self._pending += view[start:]

    def _judged(self, length: int) -> int:
        if not 1 <= length <= self.max_bytes:
            raise ProtocolError(f"a frame of {length} bytes was announced; 1 to {self.max_bytes} are allowed here")
        return length
