"""The demo's attacks: a client that speaks the protocol by hand, and sends what an honest one never would.

It is made of the library's own parts (dialling, session, signing), holds a key that the server trusts, and still gets
nothing run that was changed after signing or was sent before.
"""

from __future__ import annotations

import asyncio
import os
import platform
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from secfarm.auth.base import End, Side
from secfarm.errors import ConnectionLostError
from secfarm.net.dial import dial
from secfarm.net.pump import Connection
from secfarm.sign.envelope import Envelope, encode_envelope, seal, session_type
from secfarm.task.capture import capture
from secfarm.task.codec import encode_call
from secfarm.task.payload import BATCH_VERSION, Batch, Call, encode_batch
from secfarm.wire.address import parse_address
from secfarm.wire.messages import NONCE_BYTES, TASK_ID_BYTES, Goodbye, Results, Submit
from secfarm.wire.session import Session

if TYPE_CHECKING:
    from secfarm.auth.base import Auth
    from secfarm.sign.keys import Signer
    from secfarm.wire.messages import Message
    from secfarm.wire.session import Established

_ANSWER_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Heard:
    """What the server did about an attack.

    Attributes:
        session_id: names the session in the server's audit log.
        outcomes: how many tasks it reported as over.
        goodbye: its last word, "" if it said none.
    """

    session_id: str
    outcomes: int
    goodbye: str


class ManualClient:
    """One session whose batches are put together by hand. A `net.pump.Listener`."""

    def __init__(self, address: str, auth: Auth) -> None:
        self._address = address
        self._auth = auth
        self._heard: asyncio.Queue[Message | Established | None] = asyncio.Queue()
        self._connection: Connection | None = None
        self.outcomes = 0
        self.goodbye = ""

    async def open(self) -> str:
        """Dial, prove both names, and return the session's id."""
        connection = await dial(parse_address(self._address), lambda: Connection(self._session, lambda _: self))
        self._connection = connection
        return connection.session.session_id

    def send(self, envelope: Envelope) -> None:
        """Send an envelope as it is."""
        if self._connection is None:
            raise ConnectionLostError(f"there is no session with {self._address}")
        self._connection.send(Submit(encode_envelope(envelope)))

    async def hear_outcome(self) -> None:
        """Wait until the server reports a task as over, or has closed."""
        before = self.outcomes
        while self.outcomes == before and await self._hear():
            pass

    async def hear_end(self) -> None:
        """Wait until the server has closed the connection."""
        while await self._hear():
            pass

    async def _hear(self) -> bool:
        async with asyncio.timeout(_ANSWER_S):
            message = await self._heard.get()
        if isinstance(message, Results):
            self.outcomes += len(message.outcomes)
        elif isinstance(message, Goodbye):
            self.goodbye = message.code
        return message is not None

    def _session(self, certificate: bytes) -> Session:
        return Session(
            end=End.INITIATOR,
            side=Side.CLIENT,
            auths={self._auth.mechanism: self._auth},
            nonce=os.urandom(NONCE_BYTES),
            certificate=certificate,
            address=self._address,
            name="demo",
            python_version=platform.python_version(),
            clock=time.time,
        )

    def on_message(self, message: Message | Established) -> None:
        """Keep a message (see `net.pump.Listener`)."""
        self._heard.put_nowait(message)

    def on_writable(self) -> None:
        """Nothing is held back here."""

    def on_closed(self, error: Exception | None) -> None:  # noqa: ARG002 - the server's log has the reason
        """Note that the connection is gone."""
        self._heard.put_nowait(None)


def _batch(task: str, argument: object) -> bytes:
    """Return the payload that asks to call a function of the server by name."""
    program = capture(task).program
    call = Call(os.urandom(TASK_ID_BYTES), program.key, encode_call((argument,), {}))
    return encode_batch(Batch(BATCH_VERSION, 1, (program.wire,), (), (call,)))


async def forge(address: str, auth: Auth, signer: Signer, command: str) -> Heard:
    """Sign a call of `len`, put a call of `os.system(command)` in its place, and send that under the signature."""
    client = ManualClient(address, auth)
    session_id = await client.open()
    honest = seal(session_type(session_id), _batch("len", "harmless"), signer)
    client.send(Envelope(honest.payload_type, _batch("os:system", command), honest.signatures))
    await client.hear_end()
    return Heard(session_id, client.outcomes, client.goodbye)


async def replay(address: str, auth: Auth, signer: Signer) -> Heard:
    """Sign one call of `len`, and send the very same envelope twice."""
    client = ManualClient(address, auth)
    session_id = await client.open()
    envelope = seal(session_type(session_id), _batch("len", "once"), signer)
    client.send(envelope)
    await client.hear_outcome()
    client.send(envelope)
    await client.hear_end()
    return Heard(session_id, client.outcomes, client.goodbye)
