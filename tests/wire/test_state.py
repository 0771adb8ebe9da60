from __future__ import annotations

import itertools
import typing

import pytest

from secfarm.auth import Side
from secfarm.errors import ProtocolError
from secfarm.wire.messages import AuthToken, Chunk, Goodbye, Hello, Message, Ping, Pong, Submit, Welcome
from secfarm.wire.state import Event, Proven, State, Way, advance

KINDS = typing.get_args(Message)


def after(state: State, side: Side, way: Way, event: Event) -> State | None:
    try:
        return advance(state, side, way, event)
    except ProtocolError:
        return None


def allowed(state: State, side: Side, way: Way) -> set[str]:
    return {kind.__name__ for kind in KINDS if after(state, side, way, kind) is not None}


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize(
    ("state", "sent", "received"),
    [
        (State.NEW, {"Hello"}, set()),
        (State.HELLO, {"Goodbye"}, {"Hello", "Goodbye"}),
        (State.OUR_TOKEN, {"AuthToken", "Goodbye"}, {"Goodbye"}),
        (State.PEER_TOKEN, {"Goodbye"}, {"AuthToken", "Goodbye"}),
        (State.CLOSED, set(), set()),
    ],
)
def test_before_the_proof_and_after_the_end_both_sides_have_one_table(
    side: Side, state: State, sent: set[str], received: set[str]
) -> None:
    assert allowed(state, side, Way.SENT) == sent
    assert allowed(state, side, Way.RECEIVED) == received


CLIENT_SAYS = {"Submit", "Received", "Chunk", "Ping", "Pong", "Goodbye"}
SERVER_SAYS = {"Results", "Output", "Progress", "Workers", "OrderResult", "Chunk", "Ping", "Pong", "Goodbye"}


def test_when_ready_each_side_says_what_is_its_own() -> None:
    assert allowed(State.READY, Side.CLIENT, Way.SENT) == CLIENT_SAYS
    assert allowed(State.READY, Side.SERVER, Way.SENT) == SERVER_SAYS


@pytest.mark.parametrize(("state", "side"), list(itertools.product([State.WELCOME, State.READY], Side)))
def test_what_one_side_may_send_the_other_may_receive(state: State, side: Side) -> None:
    assert allowed(state, side, Way.SENT) == allowed(state, side.other, Way.RECEIVED)


def test_only_the_server_welcomes() -> None:
    assert advance(State.WELCOME, Side.SERVER, Way.SENT, Welcome) is State.READY
    assert advance(State.WELCOME, Side.CLIENT, Way.RECEIVED, Welcome) is State.READY
    assert after(State.WELCOME, Side.CLIENT, Way.SENT, Welcome) is None
    assert after(State.WELCOME, Side.SERVER, Way.RECEIVED, Welcome) is None


def test_the_client_has_the_first_token() -> None:
    assert advance(State.HELLO, Side.CLIENT, Way.RECEIVED, Hello) is State.OUR_TOKEN
    assert advance(State.HELLO, Side.SERVER, Way.RECEIVED, Hello) is State.PEER_TOKEN


@pytest.mark.parametrize(("state", "side", "way"), list(itertools.product(State, Side, (Way.SENT, Way.RECEIVED))))
def test_ready_is_reached_by_a_welcome_after_a_proof_and_by_nothing_else(state: State, side: Side, way: Way) -> None:
    for kind in KINDS:
        if after(state, side, way, kind) is State.READY and state is not State.READY:
            assert (state, kind) == (State.WELCOME, Welcome)
        assert after(state, side, way, kind) is not State.WELCOME
    proven = {state for state in State if after(state, side, Way.INNER, Proven) is not None}
    assert proven == {State.OUR_TOKEN, State.PEER_TOKEN}


@pytest.mark.parametrize("side", Side)
def test_a_goodbye_closes(side: Side) -> None:
    for state in (State.HELLO, State.OUR_TOKEN, State.PEER_TOKEN, State.WELCOME, State.READY):
        assert {advance(state, side, way, Goodbye) for way in (Way.SENT, Way.RECEIVED)} == {State.CLOSED}


@pytest.mark.parametrize("kind", [Ping, Pong, Chunk])
def test_some_messages_are_both_sides(kind: type[Message]) -> None:
    for side, way in itertools.product(Side, (Way.SENT, Way.RECEIVED)):
        assert advance(State.READY, side, way, kind) is State.READY


def test_a_violation_says_what_and_where() -> None:
    with pytest.raises(ProtocolError, match=r"Submit may not be received by a server .* state peer-token"):
        advance(State.PEER_TOKEN, Side.SERVER, Way.RECEIVED, Submit)
    with pytest.raises(ProtocolError):
        advance(State.OUR_TOKEN, Side.CLIENT, Way.RECEIVED, AuthToken)
