"""What passes through a worker's two pipes. Structs and their encodings; no I/O here.

Requests go through a *packet* pipe (pipe(2), O_DIRECT): a frame of at most PIPE_BUF bytes is one packet, and a read
takes exactly one. Daemon and worker both hold the reading end, so a packet belongs to whoever read it: that is how
unstarted calls are taken back from a busy worker, and how it is known after a kill which calls never began.
A longer frame is written as several packets, and only to a worker that has nothing else to do.
Results come back through an ordinary pipe as length-prefixed frames.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from secfarm.errors import ProtocolError
from secfarm.limits import MAX_ERROR_TEXT_BYTES
from secfarm.task.outcome import Done, Report
from secfarm.task.payload import ProgramText

PACKET_BYTES: Final = 4096  # PIPE_BUF of Linux: larger writes are cut into several packets
LENGTH: Final = struct.Struct(">I")
_BIN32: Final = struct.Struct(">BI")  # with which msgpack begins long bytes
_COPIED_BYTES: Final = 1 << 20  # a value up to this size is copied into its frame: one write is faster than three
_FIRST_FIELDS: Final = 2  # bytes of a report before its number: msgpack's for an array, and the tag
_EMPTY_BIN: Final = 2
MAX_NOTE_CHARS: Final = 128  # behind a task's output, when some of it was dropped
PIECE_CHARS: Final = 1000  # of output in one report: under PIPE_BUF in any encoding, so that it is written whole
MAX_RECORD_CHARS: Final = 4 * MAX_ERROR_TEXT_BYTES  # all texts of an error together; our workers send about a quarter


class Run(msgspec.Struct, array_like=True, frozen=True):
    """One call for a worker, with what this worker still needs for it."""

    number: int
    program: bytes  # key
    arguments: bytes
    values: bytes | None = None  # captured values, encoded
    text: ProgramText | None = None  # the program, the first time this worker is to run it
    broadcast: bool = False  # what it defines stays for later calls
    spread: bool = False  # the arguments are a list of argument tuples
    memory_bytes: int | None = None
    output_bytes: int = 1 << 20
    dry_run: bool = False  # prepare it, and report instead of calling it
    live_output: bool = False  # report what it prints while it runs
    live_progress: bool = False  # report how far it says it is
    output_limit: int | None = None  # over which the call is ended; else what is over `output_bytes` is dropped


_encoder = msgspec.msgpack.Encoder()
_run_decoder = msgspec.msgpack.Decoder(Run)
_report_decoder: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)


def encode_run(run: Run) -> bytes:
    """Return the frame of `run`; one packet if it is at most `PACKET_BYTES` long."""
    return frame(_encoder.encode(run))


def decode_run(body: bytes | bytearray | memoryview) -> Run:
    """Return the call in a frame's body; only the daemon writes these, so an error here is ours."""
    return _run_decoder.decode(body)


def encode_report(report: Report) -> bytes:
    """Return the frame of `report`."""
    return frame(_encoder.encode(report))


def encode_done(done: Done) -> tuple[bytes, ...]:
    """Return the frame of a report in parts: a large value as it is, because memory may have no room for copies."""
    value = done.value
    if value is None or len(value) <= _COPIED_BYTES:
        return (encode_report(done),)
    body = _encoder.encode(msgspec.structs.replace(done, value=b""))
    start = _FIRST_FIELDS + len(_encoder.encode(done.number))
    head = body[:start] + _BIN32.pack(0xC6, len(value))
    tail = body[start + _EMPTY_BIN :]
    return LENGTH.pack(len(head) + len(value) + len(tail)) + head, value, tail


def decode_report(body: bytes | memoryview) -> Report:
    """Return what a worker reported.

    Raises:
        ProtocolError: the worker, where hostile code may run, wrote something else.
    """
    try:
        report = _report_decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"a worker's report is malformed: {error}; the worker is ended") from error
    if type(report) is Done:
        _check_done(report)
    return report


def _check_done(done: Done) -> None:
    if done.value is None and done.error is None:
        raise ProtocolError("a worker's report holds neither value nor error; the worker is ended")
    if (record := done.error) is not None:
        texts = (record.code, record.report, record.description, record.remote_type, record.kind, record.python_version)
        if sum(map(len, (*texts, *record.modules))) + len(record.modules) > MAX_RECORD_CHARS:
            raise ProtocolError(f"a worker's error has over {MAX_RECORD_CHARS} characters; the worker is ended")


def frame(body: bytes) -> bytes:
    """Return `body` behind its length."""
    return LENGTH.pack(len(body)) + body
