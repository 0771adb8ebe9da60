from __future__ import annotations

import typing
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfarm.auth import Side
from secfarm.errors import ProtocolError
from secfarm.limits import CHUNK_BYTES, MAX_VALUE_BYTES
from secfarm.task.outcome import ErrorRecord
from secfarm.task.payload import Blob
from secfarm.wire.messages import (
    MAX_OUTCOMES,
    AuthToken,
    Chunk,
    Goodbye,
    Goodbyes,
    Hello,
    Message,
    OrderResult,
    Outcome,
    Output,
    Ping,
    Pong,
    Progress,
    Received,
    Results,
    Stream,
    Submit,
    Welcome,
    Workers,
    decode_message,
    encode_message,
)

ID = bytes(16)
DIGEST = bytes(32)
ERROR = ErrorRecord("raised", "ValueError: x", "Traceback ...", "ValueError", "kind", 1.5, 9, ("numpy",))
EXAMPLES: list[Message] = [
    Hello(1, bytes(32), Side.CLIENT, ("ed25519",), "laptop", "3.11.2"),
    AuthToken(b"token"),
    Welcome("node1", "3.11.2", 4, 20_000),
    Submit(b"envelope"),
    Results((Outcome(ID, b"v", None, 1.0, 2.0, "printed"), Outcome(ID, Blob(DIGEST, 9)), Outcome(ID, None, ERROR))),
    Chunk(DIGEST, 0, memoryview(b"piece")),
    Received(3),
    Output(ID, Stream.STDERR, "oops\n"),
    Workers(0),
    OrderResult(7, None, b"\x01"),
    OrderResult(7, ERROR),
    Ping(1),
    Pong(1),
    Goodbye(Goodbyes.REFUSED, ""),
    Progress(ID, 1, 2.5, "half way"),
]


def names(examples: Sequence[Message]) -> list[str]:
    return [type(example).__name__ for example in examples]


def test_the_examples_are_all_kinds() -> None:
    assert {type(example) for example in EXAMPLES} == set(typing.get_args(Message))


@pytest.mark.parametrize("message", EXAMPLES, ids=names(EXAMPLES))
def test_a_message_comes_back_as_it_was(message: Message) -> None:
    assert decode_message(encode_message(message)) == message


@pytest.mark.parametrize(
    ("tag", "message"), list(enumerate(dict(zip(names(EXAMPLES), EXAMPLES, strict=True)).values(), 1))
)
def test_the_tags_are_those_of_the_protocol(tag: int, message: Message) -> None:
    assert msgspec.msgpack.decode(encode_message(message))[0] == tag


@pytest.mark.parametrize("message", EXAMPLES, ids=names(EXAMPLES))
def test_a_cut_message_is_none(message: Message) -> None:
    whole = encode_message(message)
    for length in range(len(whole)):
        with pytest.raises(ProtocolError):
            decode_message(whole[:length])
    with pytest.raises(ProtocolError):
        decode_message(whole + b"\0")


@given(st.binary(max_size=80))
def test_any_bytes_are_a_message_or_a_protocol_error(payload: bytes) -> None:
    try:
        message = decode_message(payload)
    except ProtocolError:
        return
    assert decode_message(encode_message(message)) == message


@given(st.sampled_from(EXAMPLES), st.integers(0), st.integers(1, 255))
def test_a_flipped_byte_is_a_message_or_a_protocol_error(message: Message, place: int, mask: int) -> None:
    payload = bytearray(encode_message(message))
    payload[place % len(payload)] ^= mask
    try:
        decode_message(bytes(payload))
    except ProtocolError:
        return


@pytest.mark.parametrize(
    "hostile",
    [
        b"\x91" * 100_000,
        msgspec.msgpack.encode([8, ID, "stdout", 5]),
        b"\x92\x0d\xa1\xff",
        msgspec.msgpack.encode([99, 1]),
        msgspec.msgpack.encode(["Ping", 1]),
        msgspec.msgpack.encode({"type": 11, "nonce": 1}),
        msgspec.msgpack.encode([11, 1, 2]),
        msgspec.msgpack.encode([11, True]),
        msgspec.msgpack.encode([11, 1.0]),
        msgspec.msgpack.encode([11, -1]),
        msgspec.msgpack.encode([1, 1, b"short", "client", ["x"], "", ""]),
        msgspec.msgpack.encode([1, 1, bytes(32), "judge", ["x"], "", ""]),
        msgspec.msgpack.encode([1, 1, bytes(32), "client", [], "", ""]),
        msgspec.msgpack.encode([1, 1, bytes(32), "client", ["x"] * 17, "", ""]),
        msgspec.msgpack.encode([1, 1, bytes(32), "client", ["x"], "n" * 256, ""]),
        msgspec.msgpack.encode([5, []]),
        msgspec.msgpack.encode([5, [[ID, b"v", None, 0.0, 0.0, ""]] * (MAX_OUTCOMES + 1)]),
        msgspec.msgpack.encode([5, [[b"id", b"v", None, 0.0, 0.0, ""]]]),
        msgspec.msgpack.encode([5, [[ID, None, None, 0.0, 0.0, ""]]]),
        msgspec.msgpack.encode([6, b"digest", 0, b"x"]),
        msgspec.msgpack.encode([6, DIGEST, 0, b""]),
        msgspec.msgpack.encode([6, DIGEST, -1, b"x"]),
        msgspec.msgpack.encode([6, DIGEST, MAX_VALUE_BYTES, b"x"]),
        msgspec.msgpack.encode([6, DIGEST, 0, bytes(CHUNK_BYTES + 1)]),
        msgspec.msgpack.encode([8, ID, "stdlog", "text"]),
        msgspec.msgpack.encode([13, "c" * 65, ""]),
    ],
    ids=range(26),
)
def test_what_is_outside_its_bounds_is_refused(hostile: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_message(hostile)


def test_a_later_versions_hello_still_tells_its_version() -> None:
    later = msgspec.msgpack.encode([1, 2, bytes(32), "client", ["x"], "", "3.14", "more"])
    message = decode_message(later)
    assert isinstance(message, Hello)
    assert message.version == 2


def test_a_chunks_data_is_a_view_without_a_copy() -> None:
    payload = encode_message(Chunk(DIGEST, 0, memoryview(b"x" * CHUNK_BYTES)))
    message = decode_message(payload)
    assert isinstance(message, Chunk)
    assert message.data.obj is payload
