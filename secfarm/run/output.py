"""What a task prints: kept up to a limit, and told at once where the submitter asked for that. Runs in the worker.

The two streams live as long as the process, because a logging handler that one task sets up keeps the stream that it
found; what is written to them belongs to the call that runs then.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Final

from secfarm.run.pipe import PIECE_CHARS, encode_report
from secfarm.task.outcome import Printed, Progressed, Stream
from secfarm.task.progress import report_to

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed import ReadableBuffer as Buffer

    from secfarm.run.pipe import Run

# As a terminal does it, a line goes out when it ends. A task that prints without pause would send each of its lines
# alone, so after some lines a piece goes out once in a while, or when it is full.
_PROMPT_PIECES: Final = 1000
_PAUSE_S: Final = 0.05
_LAST_WORDS_S: Final = 0.5  # of a call that has printed too much


class OutputExceededError(BaseException):
    """Ends a task that prints more than it may; no `except Exception` of the task is to take it."""


class Output:
    """The standard output and error of this process, call after call.

    Attributes:
        exceeded: the limit that the call has gone over, if it has.
    """

    def __init__(self, write: Callable[[bytes], None], give_up: Callable[[], None] = lambda: None) -> None:
        """Prepare the streams.

        Args:
            write: takes the frames of reports, and may be called by any thread of a task.
            give_up: ends the process, because a call prints on, whatever it is told.
        """
        self.exceeded: int | None = None
        self._write = write
        self._give_up = give_up
        self._limit: int | None = None
        self._printed = 0
        self._exceeded_s = 0.0
        self._pid = os.getpid()
        self._streams = _Text(self, Stream.STDOUT), _Text(self, Stream.STDERR)
        self._kept: list[str] = []
        self._room = self._dropped = 0
        self._teller: Teller | None = None

    def begin(self, call: Run) -> None:
        """From now on what is printed is this call's."""
        sys.stdout, sys.stderr = self._streams
        self._kept = []
        self._room, self._dropped = call.output_bytes, 0
        self._limit, self._printed, self.exceeded = call.output_limit, 0, None
        if call.live_output or call.live_progress:
            self._teller = Teller(call, self._write)

    def count_anew(self) -> None:
        """The next of several runs of one call begins: each may print as much."""
        self._printed = 0

    def end(self) -> str:
        """Return what the call has printed; what threads that it left behind still print is dropped."""
        self._limit = None
        for stream in self._streams:
            stream.end()
        kept, self._kept = self._kept, []
        self._room = 0
        note = f"\n[{self._dropped} more characters were printed and dropped]" if self._dropped else ""
        if self._teller is not None:
            self._teller.end(note)
            self._teller = None
        return "".join(kept) + note if kept or note else ""

    def take(self, stream: Stream, text: str) -> None:
        """Keep what was written to one of the streams, as far as there is room.

        Raises:
            OutputExceededError: that is more than the call may print; again each time.
        """
        self._keep(stream, text)
        self._printed += len(text)
        if self._limit is None or self._printed <= self._limit:
            return
        if self.exceeded is None:
            self.exceeded, self._exceeded_s = self._limit, time.monotonic()
        elif time.monotonic() - self._exceeded_s > _LAST_WORDS_S and os.getpid() == self._pid:
            self._give_up()
        raise OutputExceededError

    def _keep(self, stream: Stream, text: str) -> None:
        kept = _sendable(text[: self._room])
        self._dropped += len(text) - len(kept)
        if not kept:
            return
        self._room -= len(kept)
        self._kept.append(kept)
        if self._teller is not None:
            self._teller.add(stream, kept)

    def flush(self) -> None:
        """Tell at once what was printed so far, if the submitter listens."""
        if self._teller is not None:
            self._teller.flush()


class Teller:
    """Tells the pool what one call prints, and how far it is, while it runs."""

    def __init__(self, call: Run, write: Callable[[bytes], None]) -> None:
        self._number = call.number
        self._write = write
        self._output = call.live_output
        # A signal handler of the task may print while the task does.
        self._lock = threading.RLock()
        self._pid = os.getpid()  # a child that the task forks has the pipe, but the call is not its own
        self._over = False
        self._stream = Stream.STDOUT
        self._pending: list[str] = []
        self._size = self._sent = 0
        self._sent_s = self._reached_s = 0.0
        self._reached: Progressed | None = None
        if call.live_progress:
            report_to(self.progress)

    def add(self, stream: Stream, text: str) -> None:
        """Take what was printed; send it when a line has ended, or when it is much."""
        if not self._output or os.getpid() != self._pid:
            return
        with self._lock:
            if stream is not self._stream:
                self._send()
                self._stream = stream
            self._pending.append(text)
            self._size += len(text)
            if self._size >= PIECE_CHARS or ("\n" in text and self._is_prompt()):
                self._send()

    def flush(self) -> None:
        """Send what was printed so far."""
        if os.getpid() == self._pid:
            with self._lock:
                if self._is_prompt():
                    self._send()

    def progress(self, done: float, total: float, message: str) -> None:
        """Say how far the task is, unless that was said just now: then a moment later, or at its end."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            self._reached = Progressed(self._number, done, total, _sendable(message))
            if time.monotonic() - self._reached_s >= _PAUSE_S:
                self._send_progress()

    def end(self, note: str) -> None:
        """Send what is left, with `note` behind it; from now on nothing is told."""
        report_to(None)
        with self._lock:
            if note and self._output:
                self.add(Stream.STDERR, note)
            self._send()
            self._send_progress()
            self._over = True

    def _is_prompt(self) -> bool:
        return self._sent < _PROMPT_PIECES or time.monotonic() - self._sent_s >= _PAUSE_S

    def _send(self) -> None:
        text = "".join(self._pending)
        self._pending.clear()
        self._size = 0
        for start in range(0, 0 if self._over else len(text), PIECE_CHARS):
            self._write(encode_report(Printed(self._number, self._stream, text[start : start + PIECE_CHARS])))
            self._sent += 1
        if self._sent >= _PROMPT_PIECES:
            self._sent_s = time.monotonic()

    def _send_progress(self) -> None:
        reached, self._reached = self._reached, None
        if reached is not None and not self._over:
            self._write(encode_report(reached))
            self._reached_s = time.monotonic()


class _Text(io.TextIOBase):
    """A standard stream: `print`, `write`, `buffer.write` and logging handlers end here."""

    encoding = "utf-8"
    errors = "replace"

    def __init__(self, output: Output, stream: Stream) -> None:
        self._output = output
        self._stream = stream
        self._bytes: _Bytes | None = None

    @property
    def buffer(self) -> io.RawIOBase:
        """The stream beneath, for bytes."""
        if self._bytes is None:
            self._bytes = _Bytes(self)
        return self._bytes

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        self._output.take(self._stream, text)
        return len(text)

    def flush(self) -> None:
        self._output.flush()

    def reconfigure(self, **_: object) -> None:
        """Accept what `io.TextIOWrapper` takes; there is nothing here that could be set."""

    def end(self) -> None:
        """The call is over: half a character that its bytes ended in is no beginning of the next call's."""
        if self._bytes is not None:
            self.write(self._bytes.rest())


class _Bytes(io.RawIOBase):
    def __init__(self, text: _Text) -> None:
        self._text = text
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer) -> int:
        octets = bytes(memoryview(data))
        self._text.write(self._decoder.decode(octets))
        return len(octets)

    def flush(self) -> None:
        self._text.flush()

    def rest(self) -> str:
        """Return what is left of the bytes so far, and begin anew."""
        return self._decoder.decode(b"", final=True)


def _sendable(text: str) -> str:
    """Return `text` without what has no encoding."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
