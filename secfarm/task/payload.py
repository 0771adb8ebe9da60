"""What is signed: the batch and its parts, as msgpack arrays. Bytes in, values out.

A batch holds programs (source text, once a session each) and calls that name a program by its key. Arguments are
opaque bytes here: the gate never decodes them. Format: docs/PROTOCOL.md, "The batch".
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, TypeAlias

import msgspec

from secfarm.errors import ProtocolError

BATCH_VERSION: Final = 1


class Priority(IntEnum):
    """lparallel's two: `low` runs when nothing of `default` waits."""

    DEFAULT = 0
    LOW = 1


class Blob(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A large encoded value that travels as chunks beside the batch; the signature covers its digest."""

    digest: bytes  # SHA-256
    size_bytes: int


class ProgramText(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A program on the wire: what runs (`text`, see task/program.py) and where it stands at the client (`origin`)."""

    text: bytes
    origin: bytes


class Call(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One task: a program, its captured values, its arguments, and the settings that the signature must cover."""

    task_id: bytes  # 16 bytes, the client's; the same in every retry
    program: bytes  # the program's key: SHA-256, 32 bytes
    arguments: bytes | Blob
    values: int = -1  # index into the batch's `values`; -1: the program captured none
    category: str = "default"
    priority: Priority = Priority.DEFAULT
    timeout_s: float | None = None
    memory_bytes: int | None = None
    broadcast: bool = False
    spread: bool = False  # the arguments are a list of argument tuples; the value is the list of results (map's chunks)
    dry_run: bool = False  # everything but the call itself: the value says what would run
    live_output: bool = False  # what it prints is told while it runs
    live_progress: bool = False  # so is how far it says it is


class Order(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag_field="order"):
    """Something else that needs a grant or touches a task, signed like a call."""

    request_id: int  # the answer carries it


class Cancel(Order, frozen=True, tag=0):
    """Take back these tasks; running ones are killed. Only tasks of one's own principal are found."""

    task_ids: tuple[bytes, ...]


class Kill(Order, frozen=True, tag=1):
    """Kill the running tasks of a category in this session (lparallel's kill-tasks)."""

    category: str
    dry_run: bool = False


class EndServer(Order, frozen=True, tag=2):
    """No new connections; those in progress finish."""


class Status(Order, frozen=True, tag=3):
    """Workers, sessions and queues, for those with the admin grant."""


class Running(Order, frozen=True, tag=4):
    """The category that each worker runs for this session now (lparallel's task-categories-running)."""


class TakeBack(Order, frozen=True, tag=5):
    """Give back those of these tasks of this session that have not begun: another server is free for them."""

    task_ids: tuple[bytes, ...]


AnyOrder: TypeAlias = Cancel | Kill | EndServer | Status | Running | TakeBack


class Batch(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """The payload of one envelope."""

    version: int
    sequence: int  # strictly rising within a session
    programs: tuple[ProgramText, ...] = ()
    values: tuple[bytes | Blob, ...] = ()
    calls: tuple[Call, ...] = ()
    orders: tuple[AnyOrder, ...] = ()


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Batch)


def encode_batch(batch: Batch) -> bytes:
    """Return the bytes that are signed."""
    return _encoder.encode(batch)


def decode_batch(payload: bytes) -> Batch:
    """Return the batch in `payload`.

    Raises:
        ProtocolError: it is not one, or of a version that we do not speak.
    """
    try:
        batch = _decoder.decode(payload)
    # msgspec raises a bare UnicodeDecodeError for bad text and RecursionError for deep nesting.
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"the signed payload is not a batch: {error}; nothing of it was run") from error
    if batch.version != BATCH_VERSION:
        raise ProtocolError(f"the batch has version {batch.version}, this side speaks {BATCH_VERSION}; nothing was run")
    return batch
