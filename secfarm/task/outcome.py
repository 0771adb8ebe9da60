"""What became of a call: what a worker reports and what a server passes on. Bytes in, values out.

The value is opaque bytes to everybody but the client that asked. Everything here comes from where hostile code ran:
it is decoded strictly, and text in it is text, never a name to look up. Format: docs/PROTOCOL.md, "Results".
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, TypeAlias

import msgspec


class Stream(StrEnum):
    """Which of a task's two outputs."""

    STDOUT = "stdout"
    STDERR = "stderr"


class ErrorRecord(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """An error as text and codes; which class it becomes at the client is the client's decision."""

    code: str  # the `code` of a class in secfarm/errors.py
    report: str  # one line
    description: str = ""  # the remote traceback
    remote_type: str = ""
    kind: str = ""  # of a ResourceExceededError
    limit: float | None = None
    signal: int | None = None
    modules: tuple[str, ...] = ()
    python_version: str = ""


class Done(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=0):
    """A worker's report of one call: `value`, or `error`.

    Of a call that was spread over many items both are there when one failed: `value` holds the results before it.
    """

    number: int  # the pool's, of this call in this worker
    value: bytes | None
    error: ErrorRecord | None
    started_s: float  # Unix seconds by the server's clock
    ended_s: float
    output: str = ""  # what the task printed


class Printed(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=1):
    """A worker's report of what the running call has printed since the last one."""

    number: int
    stream: Stream
    text: str


class Progressed(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=2):
    """A worker's report of how far the running call says it is."""

    number: int
    done: int | float
    total: int | float
    message: Annotated[str, msgspec.Meta(max_length=1000)]


Report: TypeAlias = Done | Printed | Progressed
