"""A link: the client's side of its session with one server, kept up for ever.

Packs what the schedule assigns into batches, signs each once, and turns outcomes back into results. What a server
sends is decoded as hostile data. When the line breaks, dials again with jittered back-off.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import platform
import time
from typing import TYPE_CHECKING, Final, cast

import msgspec

from secfarm.auth.base import End, Side
from secfarm.errors import AuthError, ConfigError, ConnectionLostError, KeyFileError, ProtocolError, SecfarmError
from secfarm.farm.failure import error_of
from secfarm.farm.receipts import testimony_of
from secfarm.limits import (
    IDLE_PING_S,
    IDLE_TIMEOUT_S,
    INLINE_BYTES,
    MAX_BATCH_BYTES,
    MAX_BATCH_CALLS,
)
from secfarm.net.dial import BackOff, dial
from secfarm.net.pump import Connection
from secfarm.sign.envelope import encode_envelope, seal, session_type
from secfarm.task.payload import BATCH_VERSION, Batch, Blob, Call, encode_batch
from secfarm.wire.blobs import BlobInbox, blob_of
from secfarm.wire.messages import (
    NONCE_BYTES,
    Chunk,
    Goodbye,
    Goodbyes,
    OrderResult,
    Output,
    Ping,
    Pong,
    Progress,
    Received,
    Results,
    Submit,
    Welcome,
    Workers,
)
from secfarm.wire.session import Established, Session, TurnedAwayError

if TYPE_CHECKING:
    from collections.abc import Callable

    from secfarm.auth.base import Auth
    from secfarm.farm.dispatch import Dispatch
    from secfarm.farm.future import Submission
    from secfarm.farm.receipts import Testimony
    from secfarm.farm.schedule import Identity, Seat
    from secfarm.sign.keys import Signer
    from secfarm.task.payload import Order, ProgramText
    from secfarm.wire.address import Address
    from secfarm.wire.messages import Message, Outcome

_log: Final = logging.getLogger("secfarm")
_ACKNOWLEDGE_S: Final = 0.01  # after a result
_LONGEST_PAUSE_S: Final = 5.0  # between two attempts


class Link:
    """One server's session. A `net.pump.Listener`.

    Attributes:
        address: where the server is; text that only people read for one that dialled in.
        identity: key and name that the server proved itself with, whichever way the session came about.
    """

    def __init__(
        self, dispatch: Dispatch, address: Address | str, auth: Auth, signer: Signer | None, name: str
    ) -> None:
        self.address = address
        self.identity: Identity = ("", "")
        self.welcome: Welcome | None = None
        self.seat: Seat | None = None
        self.joined: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.last_error: Exception | None = None
        self._dispatch = dispatch
        self._auth = auth
        self._signer = signer
        self._name = name
        self._connection: Connection | None = None
        self._requests: dict[int, tuple[asyncio.Future[object], object]] = {}
        self._request_ids = itertools.count(1)
        self._reset()

    def _reset(self) -> None:
        self._sequence = itertools.count(1)
        self._announced: set[bytes] = set()
        self._blobs = BlobInbox()
        self._awaiting: dict[Blob, list[tuple[Outcome, Testimony | None]]] = {}
        self._received = 0
        self._acknowledging = False
        self._heard_s = time.monotonic()
        self._shut_down = False  # the server said that its process ends

    # --- staying connected ----------------------------------------------------------------------------------------

    async def run(self, address: Address) -> None:
        """Keep a session up until cancelled; `joined` fails if the two do not believe each other at first."""
        back_off = BackOff(_LONGEST_PAUSE_S)
        while True:
            try:
                connection = await dial(address, self.make_connection, self._auth)
                began_s = time.monotonic()
                await self.watch(connection)
                # A line that was cut is no fault of the server.
                back_off.ended(time.monotonic() - began_s, was_of_use=connection.session.goodbye is None)
            except (AuthError, ConfigError, KeyFileError) as error:
                if not self.joined.done():
                    self.last_error = error
                    self.joined.set_exception(error)
                    return
                if str(error) != str(self.last_error):
                    _log.warning("no session with %s, trying again: %s", self.address, error)
                self.last_error = error
                if isinstance(error, TurnedAwayError):  # and not only without a proof, as when a ticket has run out
                    self._dispatch.refused(self, error)
            except (OSError, SecfarmError) as error:
                self.last_error = error
                if isinstance(error, ConnectionRefusedError | FileNotFoundError):
                    self._dispatch.give_up(self.identity)  # nobody listens there: the process is gone
            except Exception as error:  # noqa: BLE001 - ours; the link must not end in silence
                _log.exception("an error inside secfarm ended a connection to %s", self.address)
                self.last_error = error
            await back_off.pause()

    async def watch(self, connection: Connection) -> None:
        """Wait for the connection's end; a server that says nothing for long is asked, then given up.

        When the proof ends (a ticket's life, a certificate's) the line is cut, without a goodbye: what runs goes on,
        and a new session with a fresh proof takes it up.
        """
        peer = connection.session.peer
        ends_s = None if peer is None else peer.expires_s
        while not connection.closed.done():
            left_s = IDLE_PING_S if ends_s is None else min(IDLE_PING_S, max(0.0, ends_s - time.time()))
            await asyncio.wait([connection.closed], timeout=left_s)
            if ends_s is not None and time.time() >= ends_s:
                connection.abort()
                return
            silent_s = time.monotonic() - self._heard_s
            if silent_s > IDLE_TIMEOUT_S:
                connection.abort()
            elif silent_s > IDLE_PING_S and not connection.closed.done():
                connection.send(Ping(0))

    def make_connection(self) -> Connection:
        """Return the protocol object for a new connection, of which there is one at a time."""
        self._reset()
        return Connection(self._session, self._own)

    def _own(self, connection: Connection) -> Link:
        self._connection = connection
        return self

    def _session(self, certificate: bytes) -> Session:
        return self.client_session(End.INITIATOR, certificate, str(self.address), self._name, platform.python_version())

    def client_session(self, end: End, certificate: bytes, address: str, name: str, python_version: str) -> Session:
        """Return a session in which we ask, whoever dialled."""
        return Session(
            end=end,
            side=Side.CLIENT,
            auths={self._auth.mechanism: self._auth},
            nonce=os.urandom(NONCE_BYTES),
            certificate=certificate,
            address=address,
            name=name,
            python_version=python_version,
            clock=time.time,
        )

    def close(self) -> None:
        """Say goodbye: the server ends what runs for us."""
        if self._connection is not None:
            self._connection.close()

    # --- asking ---------------------------------------------------------------------------------------------------

    def submit(self, submissions: list[Submission]) -> None:
        """Send tasks, in as few signed batches as the limits allow."""
        calls: list[Call] = []
        texts: list[ProgramText] = []
        values: dict[bytes, int] = {}
        encoded: list[bytes | Blob] = []
        large: list[tuple[Blob, bytes]] = []
        size = 0
        for submission in submissions:
            program = submission.program
            if program.key not in self._announced:
                self._announced.add(program.key)
                texts.append(program.wire)
                size += len(program.text) + len(program.origin)
            index = -1
            if submission.values is not None:
                index = values.setdefault(submission.values, len(encoded))
                if index == len(encoded):
                    encoded.append(_inline(submission.values, large))
            size += min(submission.size_bytes, 2 * INLINE_BYTES)
            options = submission.options
            calls.append(
                Call(
                    submission.task_id,
                    program.key,
                    _inline(submission.arguments, large),
                    index,
                    options.category,
                    options.priority,
                    options.timeout_s,
                    options.memory_bytes,
                    submission.broadcast,
                    submission.spread,
                    submission.dry_run,
                    options.on_output is not None,
                    options.on_progress is not None,
                )
            )
            if len(calls) == MAX_BATCH_CALLS or size > MAX_BATCH_BYTES:
                self._sign_and_send(tuple(calls), tuple(texts), tuple(encoded))
                calls, texts, values, encoded, size = [], [], {}, [], 0
        if calls:
            self._sign_and_send(tuple(calls), tuple(texts), tuple(encoded))
        if self._connection is not None:
            for blob, value in large:
                self._connection.send_value(blob, value)

    def _sign_and_send(
        self,
        calls: tuple[Call, ...] = (),
        programs: tuple[ProgramText, ...] = (),
        values: tuple[bytes | Blob, ...] = (),
        orders: tuple[Order, ...] = (),
    ) -> None:
        connection = self._connection
        if connection is None or not connection.session.ready:
            return  # on_closed follows, or has been: the schedule gets its tasks back there
        batch = Batch(BATCH_VERSION, next(self._sequence), programs, values, calls, orders)  # type: ignore[arg-type]
        peer = connection.session.peer
        signer = self._signer or (None if peer is None else peer.session_signer)
        if signer is None:
            raise ConfigError("nothing to sign with: the mechanism gives no key of the session; give the kernel a key")
        envelope = seal(session_type(connection.session.session_id), encode_batch(batch), signer)
        connection.send(Submit(encode_envelope(envelope)))

    async def order(self, make: Callable[[int], Order], answer: object) -> object:
        """Send a signed order and return the server's answer, converted to the type `answer`.

        Raises:
            TaskRefusedError: the server would not follow it.
            ConnectionLostError: the session broke before the answer.
        """
        if self._connection is None or self.seat is None:
            raise ConnectionLostError(f"there is no session with {self.address}; the order was not sent")
        request_id = next(self._request_ids)
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._requests[request_id] = (future, answer)
        self._sign_and_send(orders=(make(request_id),))
        return await future

    async def ping(self) -> None:
        """Ask whether the server is there and return when it has answered."""
        if self._connection is None:
            raise ConnectionLostError(f"there is no session with {self.address}")
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        nonce = next(self._request_ids)
        self._requests[nonce] = (future, int)
        self._connection.send(Ping(nonce))
        await future

    # --- hearing (net.pump.Listener) ------------------------------------------------------------------------------

    def on_message(self, message: Message | Established) -> None:
        """Take one message of the server."""
        self._heard_s = time.monotonic()
        match message:
            case Results():
                self._results(message)
            case Chunk():
                self._chunk(message)
            case Output() | Progress():
                self._dispatch.hear(self, message)
            case Welcome():
                self.join(message)
            case OrderResult():
                self._answer(message)
            case Pong():
                self._pong(message)
            case Workers():
                self._workers(message.count)
            case Goodbye():
                self._shut_down = message.code == Goodbyes.SHUTDOWN
                self.close()
            case _:
                raise ProtocolError(f"the server sent {type(message).__name__}")

    def _pong(self, message: Pong) -> None:
        if (request := self._requests.pop(message.nonce, None)) is not None:
            request[0].set_result(None)

    def join(self, welcome: Welcome) -> None:
        """The server has let us in: give it its seat."""
        peer = self._connection.session.peer if self._connection is not None else None
        if peer is None:
            raise ProtocolError("a welcome came before the server was proven")
        self.welcome = welcome
        self.identity = (peer.key_id or peer.principal, welcome.server)
        self._dispatch.join(self, welcome.workers, welcome.max_tasks)
        if not self.joined.done():
            self.joined.set_result(None)

    def _workers(self, count: int) -> None:
        if self.seat is not None:
            self.seat.workers = count
            self._dispatch.pump_soon()

    def on_writable(self) -> None:
        """Nothing is held back here: what a server may have outstanding is bounded."""

    def on_closed(self, error: Exception | None) -> None:
        """The session is gone: its tasks go back to the schedule."""
        self._connection = None
        seat, self.seat = self.seat, None
        lost = ConnectionLostError(f"the session with {self.address} broke: {error or 'the server said goodbye'}")
        for future, _ in self._requests.values():
            if not future.done():
                future.set_exception(lost)
        self._requests.clear()
        if seat is not None:
            self._dispatch.leave(seat, lost, may_return=not self._shut_down)

    def _results(self, message: Results) -> None:
        seat = self.seat
        if seat is None:
            raise ProtocolError("results came before the welcome")
        self._received += len(message.outcomes)
        testimony = testimony_of(message, None if self._connection is None else self._connection.session.peer)
        for outcome in message.outcomes:
            if isinstance(outcome.value, Blob):
                self._blobs.announce(outcome.value)
                self._awaiting.setdefault(outcome.value, []).append((outcome, testimony))
            else:
                self._dispatch.finish(self, seat, outcome, outcome.value, testimony)
        self._acknowledge()
        self._dispatch.pump_soon()

    def _chunk(self, chunk: Chunk) -> None:
        complete = self._blobs.add(chunk)
        if complete is None or self.seat is None:
            return
        blob, value = complete
        outcomes = self._awaiting[blob]
        outcome, testimony = outcomes.pop(0)
        self._dispatch.finish(self, self.seat, outcome, value, testimony)
        if not outcomes:
            del self._awaiting[blob]
        self._acknowledge()
        self._dispatch.pump_soon()

    def _acknowledge(self) -> None:
        """Tell the server soon what it may forget; not with every result, that would cost each one a message."""
        if not self._acknowledging:
            self._acknowledging = True
            asyncio.get_running_loop().call_later(_ACKNOWLEDGE_S, self._send_received)

    def _send_received(self) -> None:
        self._acknowledging = False
        # While a large value is on its way nothing is acknowledged: its arrival comes back to this.
        if not self._awaiting and self._connection is not None and self._connection.session.ready:
            self._connection.send(Received(self._received))

    def _answer(self, message: OrderResult) -> None:
        request = self._requests.pop(message.request_id, None)
        if request is None:
            raise ProtocolError(f"the server answered order {message.request_id}, which was not given")
        future, answer = request
        if future.done():
            return
        if message.error is not None:
            future.set_exception(error_of(message.error, self.server_name))
            return
        try:
            future.set_result(msgspec.msgpack.decode(message.value, type=cast("type", answer)))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            future.set_exception(ProtocolError(f"the server's answer to an order is malformed: {error}"))

    @property
    def python_version(self) -> str:
        """The server's Python; empty before it said so."""
        return self.welcome.python_version if self.welcome is not None else ""

    @property
    def server_name(self) -> str:
        """The server's name for itself; its address before it said so."""
        return self.welcome.server if self.welcome is not None else str(self.address)


def _inline(value: bytes, large: list[tuple[Blob, bytes]]) -> bytes | Blob:
    """Return `value` itself when it may ride inside a batch, else its announcement, noting it in `large`."""
    if len(value) <= INLINE_BYTES:
        return value
    blob = blob_of(value)
    large.append((blob, value))
    return blob
