"""A relay: TLS on one side, the same bytes in the clear on a socket pair on the other, for a process that holds keys.

Bytes are passed on as fast as the slower side takes them; nothing of them is looked at. When one side ends, what it
said is delivered and the other ends too.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from typing import TYPE_CHECKING, cast

from secfarm.errors import AuthError
from secfarm.net.certificates import verified_certificate
from secfarm.net.listen import source_of
from secfarm.net.stream import Stream
from secfarm.wire.messages import Goodbyes

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from secfarm.auth.base import PeerCertificate
    from secfarm.errors import SecfarmError


class UnprovenError(AuthError):
    """A peer was not believed; whoever has the inside of its connection has written down why, or will."""


class Relay(Stream):
    """The TLS side of one connection."""

    def __init__(self, arrived: Callable[[Relay, PeerCertificate | None, bytes, socket.socket], None]) -> None:
        """Prepare the protocol object.

        Args:
            arrived: when TLS stands: given this relay, what TLS has verified of the peer's certificate, that
                certificate (DER, empty without one), and the other end of the socket pair.
        """
        super().__init__()
        self._arrived = arrived
        self._inner = _Inner(self)
        self._transport: asyncio.Transport | None = None
        self._joining: asyncio.Task[None] | None = None
        self.since_s = time.monotonic()  # on the clock that all processes share

    @property
    def source(self) -> str:
        """Where the connection came from, as penalties count it."""
        return "gone" if self._transport is None else source_of(self._transport.get_extra_info("socket"))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Open the way inside (asyncio's callback, after the TLS handshake)."""
        self._transport = cast("asyncio.Transport", transport)
        tls: ssl.SSLObject = transport.get_extra_info("ssl_object")
        near, far = socket.socketpair()
        self._joining = self._loop.create_task(self._join(near))
        self._arrived(self, verified_certificate(tls), tls.getpeercert(binary_form=True) or b"", far)

    async def _join(self, near: socket.socket) -> None:
        await self._loop.create_connection(lambda: self._inner, sock=near)

    def data_received(self, data: bytes) -> None:
        """Pass it in (asyncio's callback)."""
        self._inner.write(data)

    def eof_received(self) -> bool:
        """End the way inside (asyncio's callback)."""
        self._inner.close()
        return False

    def pause_writing(self) -> None:
        """The peer is slow (asyncio's callback)."""
        self._inner.pause_reading()

    def resume_writing(self) -> None:
        """The peer reads again (asyncio's callback)."""
        self._inner.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the way inside (asyncio's callback)."""
        del exc
        self._transport = None
        self._inner.close()
        if not self.ready.done():
            # Its inside may be the one that closed, with a reason; that it did is often heard before the verdict.
            self.ready.set_exception(UnprovenError("the connection ended before its peer was proven"))
        if not self.closed.done():
            self.closed.set_result(None)

    def write(self, data: bytes) -> None:
        """Send what the inside said."""
        if self._transport is not None:
            self._transport.write(data)

    def pause_reading(self) -> None:
        """The inside is slow."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """The inside reads again."""
        if self._transport is not None:
            self._transport.resume_reading()

    def close(self, code: Goodbyes = Goodbyes.DONE) -> None:
        """Send what is still to be sent, and close. The goodbye is the inside's to say."""
        del code
        if self._transport is not None:
            self._transport.close()

    def fail(self, error: SecfarmError) -> None:
        """End soon: what there is to say, the inside says."""
        del error
        self.abort_soon()

    def abort_soon(self) -> None:
        """Close at once unless the inside ends in order within a moment."""
        self._loop.call_later(1.0, self.abort)

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()


class _Inner(asyncio.Protocol):
    """The clear side."""

    def __init__(self, outer: Relay) -> None:
        self._outer = outer
        self._transport: asyncio.Transport | None = None
        self._early: deque[bytes] = deque()
        self._is_closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        for data in self._early:
            self._transport.write(data)
        self._early.clear()
        if self._is_closed:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._outer.write(data)

    def pause_writing(self) -> None:
        self._outer.pause_reading()

    def resume_writing(self) -> None:
        self._outer.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._transport = None
        self._outer.close()

    def write(self, data: bytes) -> None:
        if self._transport is None:
            self._early.append(data)
        elif not self._transport.is_closing():
            self._transport.write(data)

    def pause_reading(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def close(self) -> None:
        self._is_closed = True
        if self._transport is not None:
            self._transport.close()
