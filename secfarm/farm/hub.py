"""The hub: a kernel that listens, for servers that dial in. Idea: dist-emacs, whose workers call home.

Only the dialling is turned around: who dials in has to prove a server's name, and verifies everything that we then ask
of it. The door is the one that servers have.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final

from secfarm.auth.base import End
from secfarm.errors import AuthError, ConfigError, ConnectionLostError, KernelCreationError, ProtocolError
from secfarm.farm.link import Link
from secfarm.limits import HANDSHAKE_TIMEOUT_S, MAX_SESSIONS
from secfarm.net.listen import Door, local_address, open_sockets
from secfarm.net.tls import acceptor_context

if TYPE_CHECKING:
    from collections.abc import Iterable

    from secfarm.auth.base import Auth
    from secfarm.farm.dispatch import Dispatch
    from secfarm.net.pump import Connection
    from secfarm.sign.keys import Signer
    from secfarm.wire.address import Address
    from secfarm.wire.messages import Welcome
    from secfarm.wire.session import Session

_log: Final = logging.getLogger("secfarm")


class Hub:
    """Listens for a kernel, and has a link to each server that has dialled in.

    Attributes:
        addresses: where it listens, with the ports that the system chose.
    """

    def __init__(self, dispatch: Dispatch, auth: Auth, signer: Signer | None) -> None:
        """Prepare it.

        Raises:
            KernelCreationError: `auth` does not say which servers may dial in, or cannot prove them.
        """
        self.addresses: list[Address] = []
        self._dispatch = dispatch
        try:
            self._auth = auth.at_hub()
        except ConfigError as error:
            raise KernelCreationError(str(error)) from error
        self._signer = signer
        self._guests: dict[Guest, asyncio.Task[None]] = {}
        self._came = asyncio.Event()
        self._last_error: Exception | None = None
        context, self.certificate = acceptor_context()
        self._door = Door(context, self._connection, self._turned_away)

    def open(self, addresses: Iterable[Address]) -> None:
        """Listen.

        Raises:
            KernelCreationError: an address cannot be listened on; none is then.
        """
        try:
            sockets = open_sockets(addresses)
        except ConfigError as error:
            raise KernelCreationError(str(error)) from error
        for sock in sockets:
            self._door.open(sock)
        self.addresses = [local_address(sock) for sock in sockets]

    async def first(self, timeout_s: float) -> None:
        """Wait until a server has dialled in.

        Raises:
            KernelCreationError: none did within `timeout_s` seconds.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._came.wait()
        except TimeoutError as error:
            tried = f"; the last that tried: {self._last_error}" if self._last_error is not None else ""
            listening = ", ".join(map(str, self.addresses))
            raise KernelCreationError(f"no server dialled in to {listening} within {timeout_s:g} s{tried}") from error

    def close(self) -> None:
        """Listen no more, and say goodbye to who is here; they dial on, for whoever listens here next."""
        self._door.close()
        for guest, watching in self._guests.items():
            watching.cancel()
            guest.close()

    def _connection(self) -> Connection:
        return Guest(self, self._dispatch, self._auth, self._signer).make_connection()

    def _turned_away(self, source: str, error: Exception) -> None:
        new = isinstance(error, AuthError) and str(error) != str(self._last_error)
        self._last_error = error
        _log.log(logging.WARNING if new else logging.INFO, "a connection from %s was turned away: %s", source, error)

    def check_room(self) -> None:
        """Raise an AuthError if there is no room for one more server."""
        if len(self._guests) >= MAX_SESSIONS:
            raise AuthError(f"{len(self._guests)} servers have dialled in already; one more was not let in")

    def enter(self, guest: Guest, connection: Connection) -> None:
        """A server is proven and has its seat."""
        for other in self._guests:
            if other.identity == guest.identity:
                other.doubt()
        self._guests[guest] = asyncio.get_running_loop().create_task(guest.watch(connection))
        self._came.set()

    def leave(self, guest: Guest) -> None:
        """A server has gone, or never came as far as to be proven."""
        if (watching := self._guests.pop(guest, None)) is not None:
            watching.cancel()


class Guest(Link):
    """The session with a server that dialled in; it ends with its connection."""

    def __init__(self, hub: Hub, dispatch: Dispatch, auth: Auth, signer: Signer | None) -> None:
        super().__init__(dispatch, "", auth, signer, "")
        self._hub = hub
        self._doubt: asyncio.Task[None] | None = None

    def _session(self, _peer_certificate: bytes) -> Session:
        # Who has not proven a name hears none.
        return self.client_session(End.ACCEPTOR, self._hub.certificate, "", "", "")

    def join(self, welcome: Welcome) -> None:
        """The server is proven and has let us in: give it its seat."""
        if self._connection is None:
            raise ProtocolError("a welcome came on a connection that is gone")
        self._hub.check_room()
        self.address = self._connection.far_address
        super().join(welcome)
        self._hub.enter(self, self._connection)

    def on_closed(self, error: Exception | None) -> None:
        """The session is gone, and this link with it."""
        super().on_closed(error)
        self._hub.leave(self)

    def doubt(self) -> None:
        """The server has dialled in once more: see whether it still hears us here as well."""
        if self._doubt is None or self._doubt.done():
            self._doubt = asyncio.get_running_loop().create_task(self._prove_alive())

    async def _prove_alive(self) -> None:
        connection = self._connection
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                with contextlib.suppress(ConnectionLostError):
                    await self.ping()
        except TimeoutError:
            if connection is not None:
                connection.abort()
