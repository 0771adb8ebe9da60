"""A line on a terminal that says how far a cognate or a task has come; nothing where stderr is not a terminal."""

from __future__ import annotations

import contextlib
import importlib
import sys
import threading
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    import concurrent.futures
    from typing import TypeVar

    T = TypeVar("T")

_NOTE_CHARS: Final = 60  # a line that wraps is not overwritten by the next


class _Bar(Protocol):
    """Shows `done` of `total`, and a note behind them."""

    def show(self, done: float, total: float, note: str) -> None: ...
    def close(self) -> None: ...


class ProgressLine:
    """Counts the items of futures as they are done, and shows the count, and what tasks say, while it is open."""

    def __init__(self, title: str) -> None:
        self._bar = _bar(title) if sys.stderr is not None and sys.stderr.isatty() else None
        self._lock = threading.Lock()
        self._expected: list[tuple[concurrent.futures.Future[Any], int]] = []
        self._done = self._total = 0
        self._note = ""

    @property
    def is_shown(self) -> bool:
        """Whether there is a terminal to show it on."""
        return self._bar is not None

    def expect(self, future: concurrent.futures.Future[T], items: int) -> None:
        """Add the items of a future to the total, and to the count once it is done."""
        if self._bar is not None:
            self._expected.append((future, items))
            self._add(0, items)
            future.add_done_callback(lambda _: self._add(items, 0))

    def _add(self, done: int, expected: int) -> None:
        with self._lock:
            self._done += done
            self._total += expected
            if self._bar is not None:
                self._bar.show(self._done, self._total, self._note)

    def reached(self, done: float, total: float, message: str) -> None:
        """Show what a task told by `secfarm.progress`; where no items are counted, that is the count."""
        note = "".join([char if char.isprintable() else ascii(char)[1:-1] for char in message[:_NOTE_CHARS]])
        with self._lock:
            if self._bar is None:
                return
            if self._total:
                self._note = f"{done:g}/{total:g} {note}".rstrip()
                self._bar.show(self._done, self._total, self._note)
            else:
                self._bar.show(done, total, note)

    def close(self) -> None:
        """End the line with what is done by now; what is done later is not shown."""
        with self._lock:
            bar, self._bar = self._bar, None
            if bar is None:
                return
            # Who waited for a future goes on before its callbacks are called.
            done = sum(items for future, items in self._expected if future.done())
            if done > self._done:
                bar.show(done, self._total, self._note)
            bar.close()


def _bar(title: str) -> _Bar:
    with contextlib.suppress(ImportError):
        return _RichBar(title)
    return _PlainBar(title)


class _PlainBar:
    def __init__(self, title: str) -> None:
        self._title = title

    def show(self, done: float, total: float, note: str) -> None:
        self._write(f"\r{self._title}: {done:g}/{total:g} {note}".rstrip(" ") + "\x1b[K")

    def close(self) -> None:
        self._write("\n")

    @staticmethod
    def _write(text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # the terminal is gone: the work is not
            sys.stderr.write(text)
            sys.stderr.flush()


class _RichBar:
    """`rich.progress`, an extra."""

    def __init__(self, title: str) -> None:
        console = importlib.import_module("rich.console").Console(file=sys.stderr)
        # It would send what the program prints to stderr.
        self._bar = importlib.import_module("rich.progress").Progress(console=console, redirect_stdout=False)
        self._title = title
        self._escape = importlib.import_module("rich.markup").escape
        self._row = self._bar.add_task(title)
        self._bar.start()

    def show(self, done: float, total: float, note: str) -> None:
        words = self._escape(f"{self._title} {note}".rstrip())
        self._bar.update(self._row, completed=done, total=total, description=words)

    def close(self) -> None:
        self._bar.stop()
