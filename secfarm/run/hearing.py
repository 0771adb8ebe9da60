"""What the pool believes of what a call tells while it runs: no more than it may print, and no faster than is of use.

A worker of ours keeps far below these bounds; one in which hostile code reports for itself is ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from secfarm.errors import ProtocolError
from secfarm.run.pipe import MAX_NOTE_CHARS
from secfarm.task.outcome import Printed

if TYPE_CHECKING:
    from collections.abc import Callable

    from secfarm.task.outcome import Progressed

_BURST_REPORTS: Final = 8000  # twice what our workers send for 1 MiB that is printed at once
_REPORTS_PER_S: Final = 200  # five times what they send later


class Hearing:
    """Passes on what one call tells."""

    def __init__(self, tell: Callable[[Printed | Progressed], None], output_chars: int) -> None:
        self._tell = tell
        self._chars_left = output_chars + MAX_NOTE_CHARS
        self._reports_left: float = _BURST_REPORTS
        self._heard_s: float | None = None

    def take(self, report: Printed | Progressed, now_s: float) -> None:
        """Pass a report on.

        Raises:
            ProtocolError: it is more than the call may tell.
        """
        elapsed_s = 0.0 if self._heard_s is None else now_s - self._heard_s
        self._heard_s = now_s
        self._reports_left = min(_BURST_REPORTS, self._reports_left + _REPORTS_PER_S * elapsed_s) - 1
        if isinstance(report, Printed):
            self._chars_left -= len(report.text)
        if self._reports_left < 0 or self._chars_left < 0:
            raise ProtocolError("a worker tells more than the call may; the worker is ended")
        self._tell(report)
