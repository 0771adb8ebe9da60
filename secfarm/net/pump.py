"""The pump: an asyncio protocol that feeds a sans-I/O `Session` and writes what it wants to say.

Knows no task and no policy. Writes are gathered: whatever is said within one turn of the loop goes out together, and
the chunks of large values fill the gaps only as fast as the peer reads.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol, cast

from secfarm.errors import ProtocolError, SecfarmError
from secfarm.net.certificates import verified_certificate
from secfarm.net.offloop import run_outside
from secfarm.net.stream import Stream
from secfarm.wire.blobs import chunks
from secfarm.wire.messages import Goodbyes
from secfarm.wire.session import Established, Session, Stepped

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator

    from secfarm.auth.base import PeerCertificate
    from secfarm.task.payload import Blob
    from secfarm.wire.messages import Chunk, Message


_log: Final = logging.getLogger("secfarm")


class Listener(Protocol):
    """What a connection tells its owner."""

    def on_message(self, message: Message | Established) -> None:
        """One message of the ready session; may raise a `SecfarmError`, which ends the connection."""

    def on_writable(self) -> None:
        """The peer reads again, after `Connection.writable` was False."""

    def on_closed(self, error: Exception | None) -> None:
        """The connection is gone, once, whether or not it was ever ready."""


class Connection(Stream):
    """One session over one transport."""

    def __init__(
        self,
        make_session: Callable[[bytes], Session],
        owner: Callable[[Connection], Listener],
        certificate: bytes | None = None,
        verified: PeerCertificate | None = None,
    ) -> None:
        """Prepare the protocol object.

        Args:
            make_session: given the peer's certificate (DER, empty for an acceptor), returns the session.
            owner: given this connection, returns whom it reports to.
            certificate: the peer's, where TLS ends before this process; None: the transport speaks TLS itself.
            verified: likewise, what TLS has verified of it.
        """
        super().__init__()
        self._make_session = make_session
        self._certificate = certificate
        self._verified = verified
        self._transport: asyncio.Transport | None = None
        self._listener = owner(self)
        self._session: Session | None = None
        self._flush_scheduled = False
        self._stepping = False
        self.writable = True
        self._values: deque[Iterator[Chunk]] = deque()
        self._error: Exception | None = None

    @property
    def unheard(self) -> bool:
        """Whether TLS stood and we said hello, and the peer's hello did not come."""
        return self._session is not None and self._session.peer_hello is None

    @property
    def session(self) -> Session:
        """The session; there is one from the moment that TLS stands."""
        if self._session is None:
            raise ProtocolError("the connection has no session yet")
        return self._session

    @property
    def far_address(self) -> str:
        """Where the peer called from, for people; on a unix socket, where it found us."""
        if self._transport is None:
            return ""
        if host_and_port := self._transport.get_extra_info("peername"):
            host, port = host_and_port[:2]
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return f"unix:{self._transport.get_extra_info('sockname')}"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the session (asyncio's callback, after the TLS handshake)."""
        self._transport = cast("asyncio.Transport", transport)
        certificate = self._certificate
        if certificate is None:
            tls: ssl.SSLObject = transport.get_extra_info("ssl_object")
            certificate = tls.getpeercert(binary_form=True) or b""
            self._verified = verified_certificate(tls)
        self._session = self._make_session(certificate)
        self._session.peer_certificate = self._verified
        self._session.defers = True
        self._session.start()
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Feed the session (asyncio's callback); whatever is wrong with the bytes ends the connection."""
        session = self._session
        if session is not None and self._error is None:
            self._take(lambda: session.receive(data))

    def _take(self, receive: Callable[[], list[Message | Established]]) -> None:
        try:
            for message in receive():
                if not self.ready.done():
                    self.ready.set_result(None)
                self._listener.on_message(message)
            if self._session is not None and self._session.deferred is not None and not self._stepping:
                self._step(self._session.deferred)
        except SecfarmError as error:
            self.fail(error)
        except Exception:  # noqa: BLE001 - ours, not the peer's: it costs this connection, not the process
            _log.exception("an error inside secfarm ended a connection")
            self.fail(SecfarmError("an error inside secfarm"))
        else:
            self.flush_soon()

    def _step(self, step: Callable[[], Stepped]) -> None:
        """Let a step of the authentication wait where nobody else does, and go on with what it came to."""

        def resume(stepped: Stepped) -> None:
            self._stepping = False
            session = self._session
            if session is not None and self._error is None:
                self._take(lambda: session.resume(stepped))

        run_outside(step, resume)
        self._stepping = True

    def fail(self, error: SecfarmError) -> None:
        """End the connection because of `error`: the peer hears its public word, nothing more."""
        if self._error is None:
            self._error = _without_frames(error)
            if self._session is not None:
                self._session.close(Goodbyes(error.public) if error.public in set(Goodbyes) else Goodbyes.ERROR)
            self._flush()
            self.abort_soon()

    def send(self, message: Message) -> None:
        """Say `message` at the end of this turn of the loop."""
        if self._error is None and self._session is not None:
            self._session.send(message)
            self.flush_soon()

    def send_value(self, blob: Blob, value: bytes) -> None:
        """Send a large value behind those already on their way, between other messages."""
        self._values.append(chunks(blob, value))
        self.flush_soon()

    def flush(self) -> None:
        """Write what was said so far."""
        self._flush()

    def flush_soon(self) -> None:
        """Write at the end of this turn of the loop."""
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        if self._transport is None or self._session is None:
            return
        data = self._session.outgoing()
        if data and not self._transport.is_closing():
            self._transport.write(data)
        if self._values and self.writable and self._session.ready:
            chunk = next(self._values[0], None)
            if chunk is None:
                self._values.popleft()
            else:
                self._session.send(chunk)
            self.flush_soon()

    def pause_writing(self) -> None:
        """Hold large values back (asyncio's callback)."""
        self.writable = False

    def resume_writing(self) -> None:
        """Go on with large values (asyncio's callback)."""
        self.writable = True
        self._listener.on_writable()
        self.flush_soon()

    def close(self, code: Goodbyes = Goodbyes.DONE) -> None:
        """Say what is still to be said and goodbye, then close."""
        if self._session is not None:
            self._session.close(code)
        self._flush()
        self._close()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def abort_soon(self) -> None:
        """Close at once unless the peer lets us close in order within a moment."""
        self._close()
        self._loop.call_later(1.0, self.abort)

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def eof_received(self) -> bool:
        """Close our half as well (asyncio's callback); a stream that ends without a goodbye was cut."""
        if self._session is not None and self._error is None:
            try:
                self._session.receive_end()
            except ProtocolError as error:
                self._error = error
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the owner (asyncio's callback)."""
        # After the peer's goodbye it is no error that it does not wait for our last words.
        parted = self._session is not None and self._session.goodbye is not None
        error = self._error or (None if parted else exc)
        if not self.ready.done():
            lost = ConnectionResetError("the peer closed the connection before the session was ready")
            self.ready.set_exception(error or lost)
        if not self.closed.done():
            self.closed.set_result(None)
        self._values.clear()
        # The transport's end of a cycle: its 256 KiB of buffers must not wait for the garbage collector.
        self._transport = None
        self._listener.on_closed(error)


def _without_frames(error: SecfarmError) -> SecfarmError:
    """Return `error` without the tracebacks of its chain: their frames hold the connection and what it received."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error
