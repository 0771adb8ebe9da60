"""A server that dials in: a line to one hub, kept up for ever.

The one who dials is still the one who verifies: the session is that of any client, with its ends exchanged.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from secfarm.errors import AuthError, ProtocolError, SecfarmError
from secfarm.net.dial import BackOff, dial

if TYPE_CHECKING:
    from collections.abc import Callable

    from secfarm.net.stream import Stream
    from secfarm.wire.address import Address

# Between two attempts: a user who starts a kernel is waiting. An attempt that nobody answers costs next to nothing.
_LONGEST_PAUSE_S: Final = 2.0
_log: Final = logging.getLogger("secfarm")


class Dialler:
    """Dials a hub, and again whenever the session has ended, until it is closed.

    Attributes:
        address: the hub's.
        connected: whether there is a session.
    """

    def __init__(
        self,
        address: Address,
        make: Callable[[], Stream],
        turned_away: Callable[[str, Exception], None],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin.

        Args:
            address: the hub's.
            make: returns the protocol object for one new connection.
            turned_away: told when hub and server did not believe each other, and why.
            changed: called whenever `connected` has changed.
        """
        self.address = address
        self.connected = False
        self._make = make
        self._turned_away = turned_away
        self._changed = changed
        self._last_error = ""
        self._task = asyncio.get_running_loop().create_task(self._run())

    def close(self) -> None:
        """Dial no more; a session lives on."""
        self._task.cancel()

    async def _run(self) -> None:
        back_off, loop = BackOff(_LONGEST_PAUSE_S), asyncio.get_running_loop()
        while True:
            try:
                connection = await dial(self.address, self._make)
                began_s = loop.time()
                self.connected, self._last_error = True, ""
                self._changed()
                _log.info("dialled in to %s", self.address)
                await asyncio.wait([connection.closed])
                back_off.ended(loop.time() - began_s)
            except (OSError, SecfarmError) as error:
                self._note(error)
            except Exception:  # noqa: BLE001 - an error of ours; the hub must not lose the server for it
                _log.exception("an error inside secfarm ended a connection to %s", self.address)
            finally:
                self.connected = False
                self._changed()
            await back_off.pause()

    def _note(self, error: Exception) -> None:
        """Say what is wrong, once: who dials for ever would fill the disk."""
        if str(error) == self._last_error:
            return
        self._last_error = str(error)
        if isinstance(error, AuthError | ProtocolError):
            self._turned_away(str(self.address), error)
        _log.info("cannot dial in to %s: %s; it is tried again", self.address, error)
