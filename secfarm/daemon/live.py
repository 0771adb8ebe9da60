"""What running tasks tell, on its way to a client that may read slowly: bounded, and never in anybody's way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from secfarm.task.outcome import Printed, Stream
from secfarm.wire.messages import Output, Progress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from secfarm.task.outcome import Progressed

_WAITING_CHARS: Final = 1 << 20  # for one client; what comes beyond is told with the outcomes only
_MESSAGE_CHARS: Final = 64 << 10  # one message stays short, so that a ping never waits long behind it
_PIECE_CHARS: Final = 64  # what a waiting piece counts for besides its text


class LiveBuffer:
    """Reports of one session's tasks that were not sent yet."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._pieces: list[tuple[bytes, Stream, list[str]]] = []
        self._chars = 0
        self._last_chars = 0  # of the last piece
        self._reached: dict[bytes, Progress] = {}  # the latest of each task
        self._dropped: dict[bytes, int] = {}

    def add(self, task_id: bytes, report: Printed | Progressed) -> None:
        """Take in what a task tells; what is too much is counted and dropped."""
        if not isinstance(report, Printed):
            self._reached[task_id] = Progress(task_id, report.done, report.total, report.message)
        elif self._chars >= _WAITING_CHARS or task_id in self._dropped:
            self._dropped[task_id] = self._dropped.get(task_id, 0) + len(report.text)
        else:
            self._append(task_id, report.stream, report.text)

    def _append(self, task_id: bytes, stream: Stream, text: str) -> None:
        last = self._pieces[-1] if self._pieces else None
        if last is not None and last[:2] == (task_id, stream) and self._last_chars < _MESSAGE_CHARS:
            last[2].append(text)
            self._last_chars += len(text)
        else:
            self._pieces.append((task_id, stream, [text]))
            self._last_chars = len(text)
            self._chars += _PIECE_CHARS
        self._chars += len(text)

    def take(self) -> Iterator[Output | Progress]:
        """Yield all that is to be sent, in order, and forget it."""
        if not (self._pieces or self._reached or self._dropped):
            return
        pieces, reached, dropped = self._pieces, self._reached, self._dropped
        self._clear()
        for task_id, stream, texts in pieces:
            yield Output(task_id, stream, "".join(texts))
        for task_id, chars in dropped.items():
            note = f"\n[{chars} characters were not shown: they came faster than they were read]\n"
            yield Output(task_id, Stream.STDERR, note)
        yield from reached.values()
