"""A line on a terminal that says how far a cognate has come; nothing where stderr is not a terminal."""

from __future__ import annotations

import contextlib
import importlib
import sys
import threading
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import concurrent.futures
    from typing import TypeVar

    T = TypeVar("T")


class _Bar(Protocol):
    """Shows `done` of `total`."""

    def show(self, done: int, total: int) -> None: ...
    def close(self) -> None: ...


class ProgressLine:
    """Counts the items of futures as they are done, and shows the count while it is open."""

    def __init__(self, title: str) -> None:
        self._bar = _bar(title) if sys.stderr is not None and sys.stderr.isatty() else None
        self._lock = threading.Lock()
        self._done = self._total = 0

    def expect(self, future: concurrent.futures.Future[T], items: int) -> None:
        """Add the items of a future to the total, and to the count once it is done."""
        if self._bar is not None:
            self._add(0, items)
            future.add_done_callback(lambda _: self._add(items, 0))

    def _add(self, done: int, expected: int) -> None:
        with self._lock:
            self._done += done
            self._total += expected
            if self._bar is not None:
                self._bar.show(self._done, self._total)

    def close(self) -> None:
        """End the line; what is done later is not shown."""
        with self._lock:
            bar, self._bar = self._bar, None
            if bar is not None:
                bar.close()


def _bar(title: str) -> _Bar:
    with contextlib.suppress(ImportError):
        return _RichBar(title)
    return _PlainBar(title)


class _PlainBar:
    def __init__(self, title: str) -> None:
        self._title = title

    def show(self, done: int, total: int) -> None:
        self._write(f"\r{self._title}: {done}/{total}\x1b[K")

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
        self._bar = importlib.import_module("rich.progress").Progress(console=console)
        self._row = self._bar.add_task(title)
        self._bar.start()

    def show(self, done: int, total: int) -> None:
        self._bar.update(self._row, completed=done, total=total)

    def close(self) -> None:
        self._bar.stop()
