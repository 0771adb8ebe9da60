"""Messages: what one frame holds, as tagged msgpack arrays. Bytes in, values out; knows no order (see state.py).

Sizes are bounded here where the frame's own limit is too wide. Table: docs/PROTOCOL.md, section 4.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta, Struct

from secfarm.auth.base import Side
from secfarm.errors import ProtocolError
from secfarm.limits import (
    CHUNK_BYTES,
    MAX_BATCH_CALLS,
    MAX_FRAME_BEFORE_AUTH_BYTES,
    MAX_STATEMENT_BYTES,
    MAX_VALUE_BYTES,
)
from secfarm.task.outcome import ErrorRecord, Stream
from secfarm.task.payload import Blob

PROTOCOL_VERSION: Final = 1
NONCE_BYTES: Final = 32
TASK_ID_BYTES: Final = 16
MAX_OUTCOMES: Final = 2 * MAX_BATCH_CALLS

_Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]  # SHA-256
_TaskId = Annotated[bytes, Meta(min_length=TASK_ID_BYTES, max_length=TASK_ID_BYTES)]
_Name = Annotated[str, Meta(max_length=255)]
_Word = Annotated[str, Meta(max_length=64)]
_Line = Annotated[str, Meta(max_length=4096)]
_Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class Goodbyes(StrEnum):
    """Codes of `Goodbye`. A peer that hears another word treats it like `ERROR`."""

    DONE = "done"  # nothing is wrong, the sender needs the session no longer
    SHUTDOWN = "shutdown"  # the sender's process ends
    REFUSED = "refused"  # authentication or a whole batch was refused; the sender's log says why
    PROTOCOL = "protocol"  # the receiver's bytes were not what the protocol allows
    BUSY = "busy"  # too many sessions; later it may work
    TIMEOUT = "timeout"  # no proof or no life in time
    ERROR = "error"


class Hello(Struct, array_like=True, frozen=True, tag=1):
    """The first message of each end, sent without waiting for the other's.

    Later versions may add fields at the end, so that this side can still name the version that it does not speak.
    """

    version: int
    nonce: Annotated[bytes, Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
    side: Side
    mechanisms: Annotated[tuple[_Word, ...], Meta(min_length=1, max_length=16)]  # client: the one it will use
    name: _Name
    python_version: _Word


class AuthToken(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=2):
    """One token of the mechanism; opaque here."""

    token: Annotated[bytes, Meta(max_length=MAX_FRAME_BEFORE_AUTH_BYTES)]


class Welcome(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=3):
    """The server took the client's proof; the session is ready."""

    server: _Name
    python_version: _Word
    workers: _Count
    max_tasks: _Count  # outstanding at once, by the policy for this principal


class Submit(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=4):
    """A signed batch: an encoded envelope, opaque to this room."""

    envelope: bytes


class Outcome(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """How one call ended: `value`, or `error`.

    Of a call that was spread over many items both are there when one failed: `value` holds the results before it.

    `value` is the encoded result, or the `Blob` that announces one whose chunks follow. Times are Unix seconds by the
    server's clock, 0.0 for a call that never started.
    """

    task_id: _TaskId
    value: bytes | Blob | None = None
    error: ErrorRecord | None = None
    started_s: float = 0.0
    ended_s: float = 0.0
    output: str = ""


class Results(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=5):
    """Outcomes, in the order in which they came about, and the server's signed statement on them (trust/receipt.py)."""

    outcomes: Annotated[tuple[Outcome, ...], Meta(min_length=1, max_length=MAX_OUTCOMES)]
    statement: Annotated[bytes, Meta(max_length=MAX_STATEMENT_BYTES)] = (
        b""  # an envelope, opaque here; empty where the server has nothing to sign with
    )


class Chunk(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=6):
    """A piece of a large value, in either direction; `data` is a view into the received frame."""

    digest: _Digest  # of the whole value
    offset: Annotated[int, Meta(ge=0, lt=MAX_VALUE_BYTES)]
    data: memoryview  # 1 to CHUNK_BYTES bytes


class Received(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=7):
    """The client holds the first `count` outcomes of this session: the server may forget them."""

    count: _Count


class Output(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=8):
    """What a running task printed, for a call that asked for it (`live_output`)."""

    task_id: _TaskId
    stream: Stream
    text: str


class Workers(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=9):
    """The number of workers changed."""

    count: _Count


class OrderResult(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=10):
    """The answer to an order of a batch. `value` is msgpack; empty when there is an error."""

    request_id: int
    error: ErrorRecord | None = None
    value: bytes = b""


class Ping(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=11):
    """Are you there? Either side may ask."""

    nonce: _Count


class Pong(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=12):
    """Yes; the nonce is the question's."""

    nonce: _Count


class Goodbye(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=13):
    """The last message of its sender."""

    code: _Word  # one of `Goodbyes`
    text: _Line = ""


class Progress(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=14):
    """How far a running task says it is, for a call that asked for it (`live_progress`)."""

    task_id: _TaskId
    done: int | float
    total: int | float
    message: _Line = ""


Message: TypeAlias = (
    Hello
    | AuthToken
    | Welcome
    | Submit
    | Results
    | Chunk
    | Received
    | Output
    | Workers
    | OrderResult
    | Ping
    | Pong
    | Goodbye
    | Progress
)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def encode_message(message: Message) -> bytes:
    """Return the payload of one frame."""
    return _encoder.encode(message)


def decode_message(payload: bytes) -> Message:
    """Return the message in a frame's payload.

    Raises:
        ProtocolError: it is none, or one of its fields is outside its bounds.
    """
    try:
        message = _decoder.decode(payload)
    # msgspec raises a bare UnicodeDecodeError for bad text and RecursionError for deep nesting.
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"a frame of {len(payload)} bytes is no message: {error}") from error
    if type(message) is Chunk and not 1 <= message.data.nbytes <= CHUNK_BYTES:
        raise ProtocolError(f"a chunk holds {message.data.nbytes} bytes; 1 to {CHUNK_BYTES} are allowed")
    if type(message) is Results:
        for outcome in message.outcomes:
            if outcome.value is None and outcome.error is None:
                raise ProtocolError("an outcome holds neither a value nor an error")
    return message
