"""What a door and a dialler need of the protocol object of a connection."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from typing import TYPE_CHECKING

from secfarm.wire.messages import Goodbyes

if TYPE_CHECKING:
    from secfarm.errors import SecfarmError


class Stream(asyncio.Protocol):
    """One connection, from TLS to its end.

    Attributes:
        ready: set when the peer is proven, or to the error for which it never will be.
        closed: set at the end.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.ready.add_done_callback(lambda future: future.cancelled() or future.exception())  # it may have no reader

    @property
    def unheard(self) -> bool:
        """Whether TLS stands, and the peer has said nothing yet, for those who look at what it says."""
        return False

    @abstractmethod
    def fail(self, error: SecfarmError) -> None:
        """End the connection because of `error`: the peer hears its public word, nothing more."""

    @abstractmethod
    def close(self, code: Goodbyes = Goodbyes.DONE) -> None:
        """Say what is still to be said and goodbye, then close."""

    @abstractmethod
    def abort(self) -> None:
        """Close at once."""

    @abstractmethod
    def abort_soon(self) -> None:
        """Close at once unless the peer lets us close in order within a moment."""
