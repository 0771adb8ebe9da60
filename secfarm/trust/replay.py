"""Replay within a session: sequence numbers rise strictly, so there is nothing to remember but the last one."""

from __future__ import annotations

from secfarm.errors import ReplayedError


class SequenceWindow:
    """The numbers of one session. Asked only about batches whose signature was verified."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last = -1

    @property
    def last(self) -> int:
        """The number admitted last; -1 before the first."""
        return self._last

    def admit(self, sequence: int) -> int:
        """Return `sequence` and remember it, if it is above all before it, else raise.

        Raises:
            ReplayedError: it was seen, or comes too late.
        """
        if sequence <= self._last:
            raise ReplayedError(
                f"batch {sequence} came after batch {self._last}: sent before, or out of order; nothing was run"
            )
        self._last = sequence
        return sequence
