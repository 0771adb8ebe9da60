"""Large values on their way from a client: announced in verified batches, complete when the last chunk has come."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from secfarm.task.payload import Blob
from secfarm.wire.blobs import BlobInbox

if TYPE_CHECKING:
    from collections.abc import Callable

    from secfarm.wire.messages import Chunk


@dataclass(slots=True)
class Value:
    """An encoded value of a batch: here already, or announced, with what is to be done when it has come."""

    here: bytes | Blob
    waiting: list[Callable[[bytes], None]] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        """Of the value, once it is here."""
        return self.here.size_bytes if isinstance(self.here, Blob) else len(self.here)


class Arrivals:
    """What one session's client has announced and not sent yet."""

    def __init__(self) -> None:
        self._blobs = BlobInbox()
        self._awaiting: defaultdict[Blob, deque[Value]] = defaultdict(deque)

    def expect(self, value: Value) -> None:
        """Let the chunks in of a value that stands in a verified batch, whoever still waits for it."""
        if isinstance(value.here, Blob):
            self._blobs.announce(value.here)
            self._awaiting[value.here].append(value)

    def take(self, chunk: Chunk) -> None:
        """Take a chunk in; with a value's last one, call what waits for it."""
        complete = self._blobs.add(chunk)
        if complete is None:
            return
        blob, whole = complete
        queue = self._awaiting[blob]
        for arrived in queue.popleft().waiting:
            arrived(whole)
        if not queue:
            del self._awaiting[blob]
