"""What passes between a server and its zygote: one message a packet of a unix socket, descriptors beside it.

Structs and their encodings; no I/O here. The zygote believes the server; the server believes the zygote, in which no
code of a task ever runs.
"""

from __future__ import annotations

from typing import Final

import msgspec

from secfarm.run.profile import Bounds, LayerState, Openings, Profile

MAX_MESSAGE_BYTES: Final = 64 << 10


class Start(msgspec.Struct, array_like=True, frozen=True, tag=0):
    """The first order: confine yourself, and be ready to fork."""

    profile: Profile
    openings: Openings


class Fork(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """Fork a worker; beside it the reading end of its requests and the writing end of its results."""

    number: int
    bounds: Bounds


class Stop(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """Stop a worker where it stands; `Stopped` follows."""

    number: int


class Go(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """Let a stopped worker go on."""

    number: int


class Kill(msgspec.Struct, array_like=True, frozen=True, tag=4):
    """End a worker and all that it started; `Exited` follows."""

    number: int


class Ready(msgspec.Struct, array_like=True, frozen=True, tag=0):
    """The zygote is confined as its profile demands."""

    states: list[LayerState]


class Refused(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """It is not, and ends."""

    text: str
    states: list[LayerState]


class Born(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """A worker was forked; beside it a descriptor of the process (pidfd), and of what its control group has used."""

    number: int


class Stopped(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """Answer to `Stop`."""

    number: int
    stands: bool


class Exited(msgspec.Struct, array_like=True, frozen=True, tag=4):
    """A worker is gone, with all that it started."""

    number: int
    signal: int | None
    status: int | None
    cpu_s: float
    out_of_memory: bool = False


Order = Start | Fork | Stop | Go | Kill
Report = Ready | Refused | Born | Stopped | Exited

encode: Final = msgspec.msgpack.Encoder().encode
decode_order: Final = msgspec.msgpack.Decoder(Order).decode
decode_report: Final = msgspec.msgpack.Decoder(Report).decode
