"""Short answers to one client: at once, or held back, within a bound, while it does not read."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from secfarm.errors import ProtocolError
from secfarm.limits import MAX_FRAME_BYTES
from secfarm.wire.messages import OrderResult, Ping, Pong

if TYPE_CHECKING:
    from secfarm.net.pump import Connection

_MAX_HELD: Final = 20_000  # a client that cancels as many tasks as it may have at once gets here


class Answers:
    """What one client is to hear at once when it reads."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._held: deque[OrderResult] = deque()
        self._held_bytes = 0
        self._ping: Ping | None = None  # the last one that came while the client did not read

    def order(self, answer: OrderResult) -> None:
        """Answer an order.

        Raises:
            ProtocolError: the client gives orders and does not read what they come to.
        """
        if self._connection.writable:
            self._connection.send(answer)
            return
        self._held_bytes += len(answer.value)
        self._held.append(answer)
        if self._held_bytes > MAX_FRAME_BYTES or len(self._held) > _MAX_HELD:
            raise ProtocolError(f"{len(self._held)} answers to orders were not read; the session was ended")

    def ping(self, ping: Ping) -> None:
        """Answer a ping; of those that come while the client does not read, the last."""
        if self._connection.writable:
            self._connection.send(Pong(ping.nonce))
        else:
            self._ping = ping

    def resume(self) -> None:
        """The client reads again."""
        ping, self._ping = self._ping, None
        held, self._held, self._held_bytes = self._held, deque(), 0
        if not self._connection.session.ready:
            return
        if ping is not None:
            self._connection.send(Pong(ping.nonce))
        for answer in held:
            self._connection.send(answer)
