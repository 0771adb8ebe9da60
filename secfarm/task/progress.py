"""`secfarm.progress`: how a task says how far it has come. A worker process passes in where that goes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

_MAX_MESSAGE_CHARS: Final = 1000
_MAX_COUNT: Final = 2**53  # above, a float is as exact and has an encoding

Sink = Callable[[float, float, str], None]

_sink: Sink | None = None


def progress(i: float, n: float, message: str = "") -> None:
    """Tell the submitter of the running task that `i` of `n` is done.

    It reaches the submission's `on_progress` and `Future.progress`. Where nobody asked for it, and outside of a task,
    it does nothing. Some twenty times a second it is told on; of what comes faster, the latest counts.

    Args:
        i: how much is done; any finite number.
        n: of how much.
        message: for people; the first 1000 characters of it travel.

    Raises:
        TypeError, ValueError: `i` or `n` is no finite number, or `message` no text.
    """
    done, total = _number(i), _number(n)
    if not isinstance(message, str):
        raise TypeError(f"the message is a str, not {type(message).__name__}")
    if _sink is not None:
        _sink(done, total, message[:_MAX_MESSAGE_CHARS])


def report_to(sink: Sink | None) -> None:
    """Let `progress` go to `sink` from now on; for the worker."""
    global _sink  # noqa: PLW0603 - a worker is one process with one task at a time
    _sink = sink


def _number(value: float) -> float:
    if isinstance(value, int) and abs(value) < _MAX_COUNT:
        return int(value)
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"progress is counted in finite numbers, not {number}")
    return number
