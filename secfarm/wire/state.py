"""The order of messages: one table for each side, the same for both dialling directions. Pure.

A pair that is not in the table is a violation. The table is docs/PROTOCOL.md, section 5.
"""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import TYPE_CHECKING, Final, TypeAlias

from secfarm.auth.base import Side
from secfarm.errors import ProtocolError
from secfarm.wire.messages import (
    AuthToken,
    Chunk,
    Goodbye,
    Hello,
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

if TYPE_CHECKING:
    from collections.abc import Mapping

    from secfarm.wire.messages import Message


class State(Enum):
    """Where a session stands, seen from our own side."""

    NEW = "new"  # our hello is not sent yet
    HELLO = "hello"  # the peer's hello is awaited
    OUR_TOKEN = "our-token"  # noqa: S105 - a state, not a password
    PEER_TOKEN = "peer-token"  # noqa: S105 - as above
    WELCOME = "welcome"  # both names are proven; the server's welcome comes next
    READY = "ready"
    CLOSED = "closed"


class Way(IntEnum):
    """Which way an event goes."""

    SENT = 0
    RECEIVED = 1
    INNER = 2  # no message


class Proven:
    """The inner event that the mechanism is complete and the peer is known."""


Event: TypeAlias = "type[Message | Proven]"
_Table: TypeAlias = "Mapping[tuple[State, Way, Event], State]"

_STARTED: Final = tuple(state for state in State if state not in {State.NEW, State.CLOSED})

_BOTH: Final[_Table] = {
    (State.NEW, Way.SENT, Hello): State.HELLO,
    # tokens alternate
    (State.OUR_TOKEN, Way.SENT, AuthToken): State.PEER_TOKEN,
    (State.PEER_TOKEN, Way.RECEIVED, AuthToken): State.OUR_TOKEN,
    # the last token of a mechanism is the peer's or our own
    (State.OUR_TOKEN, Way.INNER, Proven): State.WELCOME,
    (State.PEER_TOKEN, Way.INNER, Proven): State.WELCOME,
    **{(State.READY, way, kind): State.READY for way in (Way.SENT, Way.RECEIVED) for kind in (Chunk, Ping, Pong)},
    **{(state, way, Goodbye): State.CLOSED for state in _STARTED for way in (Way.SENT, Way.RECEIVED)},
}
_FROM_CLIENT: Final = (Submit, Received)
_FROM_SERVER: Final = (Results, Output, Progress, Workers, OrderResult)

_TABLES: Final[dict[Side, _Table]] = {
    Side.CLIENT: {
        **_BOTH,
        (State.HELLO, Way.RECEIVED, Hello): State.OUR_TOKEN,
        (State.WELCOME, Way.RECEIVED, Welcome): State.READY,
        **{(State.READY, Way.SENT, kind): State.READY for kind in _FROM_CLIENT},
        **{(State.READY, Way.RECEIVED, kind): State.READY for kind in _FROM_SERVER},
    },
    Side.SERVER: {
        **_BOTH,
        (State.HELLO, Way.RECEIVED, Hello): State.PEER_TOKEN,
        (State.WELCOME, Way.SENT, Welcome): State.READY,
        **{(State.READY, Way.SENT, kind): State.READY for kind in _FROM_SERVER},
        **{(State.READY, Way.RECEIVED, kind): State.READY for kind in _FROM_CLIENT},
    },
}


def advance(state: State, side: Side, way: Way, event: Event) -> State:
    """Return the state after `event`.

    Args:
        state: ours, before it.
        side: ours.
        way: whether we send it, receive it, or it is no message.
        event: the class of the message, or `Proven`.

    Raises:
        ProtocolError: it is not allowed in this state on this side.
    """
    if (after := _TABLES[side].get((state, way, event))) is None:
        raise ProtocolError(
            f"{event.__name__} may not be {way.name.lower()} by a {side.value} whose session is in state {state.value}"
        )
    return after
