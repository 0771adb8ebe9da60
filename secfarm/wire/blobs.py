"""Large values on their way: which chunks are awaited, and their reassembly. Sans-I/O.

A value is announced first (by a `Blob` in a verified batch or in an outcome), then its chunks come in order, one value
at a time; small messages may stand between any two chunks. What nobody announced is never kept.
Law: docs/PROTOCOL.md, "Large values".
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import TYPE_CHECKING

from secfarm.errors import ProtocolError
from secfarm.limits import CHUNK_BYTES, MAX_PENDING_VALUES_BYTES, MAX_VALUE_BYTES
from secfarm.task.payload import Blob
from secfarm.wire.messages import Chunk

if TYPE_CHECKING:
    from collections.abc import Iterator


def blob_of(value: bytes) -> Blob:
    """Return the announcement of `value`."""
    return Blob(hashlib.sha256(value).digest(), len(value))


def chunks(blob: Blob, value: bytes) -> Iterator[Chunk]:
    """Yield the chunks of `value`, without copying it."""
    view = memoryview(value)
    for offset in range(0, len(value), CHUNK_BYTES):
        yield Chunk(blob.digest, offset, view[offset : offset + CHUNK_BYTES])


class BlobInbox:
    """The values that the peer announced and has not finished sending."""

    def __init__(self) -> None:
        self._awaited: Counter[Blob] = Counter()
        self._pending_bytes = 0
        self._current: Blob | None = None
        self._parts: list[memoryview] = []
        self._length = 0
        self._hash = hashlib.sha256()

    def announce(self, blob: Blob) -> None:
        """Expect one more transfer of `blob`.

        Raises:
            ProtocolError: it is larger than one value may be, or too much is announced already.
        """
        if not 0 < blob.size_bytes <= MAX_VALUE_BYTES:
            raise ProtocolError(f"a value of {blob.size_bytes} bytes was announced; 1 to {MAX_VALUE_BYTES} are allowed")
        if self._pending_bytes + blob.size_bytes > MAX_PENDING_VALUES_BYTES:
            raise ProtocolError(f"more than {MAX_PENDING_VALUES_BYTES} bytes of values were announced and not sent")
        self._awaited[blob] += 1
        self._pending_bytes += blob.size_bytes

    def add(self, chunk: Chunk) -> tuple[Blob, bytes] | None:
        """Take a chunk; return the value that it completes.

        Raises:
            ProtocolError: the value was not announced, the chunk is out of order, or the digest is another.
        """
        if self._current is None:
            self._current = next((blob for blob in self._awaited if blob.digest == chunk.digest), None)
        blob = self._current
        if blob is None or blob.digest != chunk.digest:
            raise ProtocolError("a chunk of a value that nobody announced, or inside another value")
        self._length += len(chunk.data)
        if len(chunk.data) != CHUNK_BYTES and self._length != blob.size_bytes:
            # Many tiny chunks would cost many times the memory of the value that they make up.
            raise ProtocolError(f"a chunk of {len(chunk.data)} bytes; all but a value's last have {CHUNK_BYTES}")
        if chunk.offset != self._length - len(chunk.data) or self._length > blob.size_bytes:
            raise ProtocolError(f"a chunk at offset {chunk.offset} is out of order or runs past the announced size")
        self._hash.update(chunk.data)
        self._parts.append(chunk.data)
        return self._complete(blob) if self._length == blob.size_bytes else None

    def _complete(self, blob: Blob) -> tuple[Blob, bytes]:
        if self._hash.digest() != blob.digest:
            raise ProtocolError("a value is not the one that was announced: its SHA-256 differs")
        value = b"".join(self._parts)
        self._awaited[blob] -= 1
        if not self._awaited[blob]:
            del self._awaited[blob]
        self._pending_bytes -= blob.size_bytes
        self._current, self._parts, self._length, self._hash = None, [], 0, hashlib.sha256()
        return blob, value
