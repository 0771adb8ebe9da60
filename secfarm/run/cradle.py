"""Where worker processes come from, as the pool knows it. Those of every server come from run/sealed.py."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from secfarm.run.profile import Bounds, Openings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


@dataclass(frozen=True, slots=True)
class Terms:
    """What a worker is let out to, and what it may use in its whole life."""

    openings: Openings = field(default_factory=Openings)
    bounds: Bounds = field(default_factory=Bounds)


DEFAULT: Final = Terms()


@dataclass(frozen=True, slots=True)
class Exit:
    """How a worker process ended: by a signal, or by itself with a status.

    Attributes:
        cpu_s: the processor time that it has used, where the cradle knows that.
        out_of_memory: the kernel ended it, or what it started, for want of memory.
    """

    signal: int | None
    status: int | None
    cpu_s: float = 0.0
    out_of_memory: bool = False

    def __str__(self) -> str:
        if self.signal is None:
            return f"it exited with status {self.status}"
        try:
            return f"it was ended by {signal.Signals(self.signal).name}"
        except ValueError:
            return f"it was ended by signal {self.signal}"


class Child(Protocol):
    """One worker process, as whoever started it controls it. Nothing is an error once it is gone."""

    @property
    def pid(self) -> int | None:
        """Process id here, once it was born."""

    def cpu_s(self) -> float:
        """Processor time that it has used so far; 0 once that cannot be known."""

    def stop(self) -> bool:
        """Stop it where it stands, and return whether it does."""

    def go(self) -> None:
        """Let it go on after `stop`."""

    def kill(self) -> None:
        """End it and what it started; the call of `on_exit` follows."""

    def end(self) -> None:
        """As `kill`; where the process is a child of this one it is gone, and `on_exit` called, when this returns."""


class Cradle(Protocol):
    """Starts workers.

    Attributes:
        confinement: the name of the profile that its workers are confined by.
    """

    confinement: str

    def expect(self, openings: Iterable[Openings]) -> None:
        """Make ready for workers of these openings."""

    async def ready(self) -> None:
        """Return once workers of all openings that were expected can be started.

        Raises:
            ConfinementError: they cannot be; nothing may be served.
        """

    def start(self, requests_read: int, results_write: int, terms: Terms, on_exit: Callable[[Exit], None]) -> Child:
        """Start a worker on these ends of its pipes, which are given away: closed here."""

    def close(self) -> None:
        """End all workers; they are gone, and each `on_exit` was called, when this returns."""
