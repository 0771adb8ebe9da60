"""The frames of a worker's pipes: one packet, one call; what a worker reports is hostile bytes."""

from __future__ import annotations

import fcntl
import os

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfarm.errors import ProtocolError
from secfarm.run.pipe import (
    LENGTH,
    MAX_RECORD_CHARS,
    PACKET_BYTES,
    Run,
    decode_report,
    decode_run,
    encode_done,
    encode_report,
    encode_run,
)
from secfarm.task.outcome import Done, ErrorRecord
from secfarm.task.payload import ProgramText

DONE = Done(7, b"value", None, 1.0, 2.0, "printed")
FAILED = Done(8, None, ErrorRecord("raised", "report", "text", "ValueError"), 1.0, 2.0)


def test_a_call_comes_out_as_it_went_in() -> None:
    run = Run(1, b"k" * 32, b"arguments", b"values", ProgramText(b"text", b"origin"), True, True, 10, 100)
    data = encode_run(run)
    assert decode_run(data[LENGTH.size :]) == run
    assert LENGTH.unpack_from(data) == (len(data) - LENGTH.size,)


@pytest.mark.parametrize("done", [DONE, FAILED])
def test_a_report_comes_out_as_it_went_in(done: Done) -> None:
    assert decode_report(encode_report(done)[LENGTH.size :]) == done


def test_a_packet_belongs_to_whoever_reads_it() -> None:
    """The kernel's promise that taking calls back rests on: one write, one read, never two readers of one packet."""
    read, write = os.pipe2(os.O_DIRECT | os.O_CLOEXEC)
    other = os.open(f"/proc/self/fd/{read}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 1 << 20)
        packets = [encode_run(Run(number, b"k" * 32, bytes(number))) for number in range(100)]
        for packet in packets:
            os.write(write, packet)
        taken = [os.read(other if number % 3 else read, PACKET_BYTES) for number in range(100)]
        assert taken == packets
        with pytest.raises(BlockingIOError):
            os.read(other, PACKET_BYTES)
    finally:
        for fd in (read, write, other):
            os.close(fd)


@pytest.mark.parametrize(
    "done",
    [
        Done(1, None, None, 0.0, 0.0),
        Done(1, None, ErrorRecord("x" * (MAX_RECORD_CHARS + 1), ""), 0.0, 0.0),
        Done(1, None, ErrorRecord("raised", "x" * (MAX_RECORD_CHARS + 1)), 0.0, 0.0),
        Done(1, None, ErrorRecord("raised", "", "x" * (MAX_RECORD_CHARS + 1)), 0.0, 0.0),
        Done(1, None, ErrorRecord("raised", "", "", "x" * (MAX_RECORD_CHARS + 1)), 0.0, 0.0),
        Done(1, None, ErrorRecord("raised", "", kind="x" * (MAX_RECORD_CHARS + 1)), 0.0, 0.0),
        Done(1, None, ErrorRecord("raised", "", python_version="x" * (MAX_RECORD_CHARS + 1)), 0.0, 0.0),
        Done(1, None, ErrorRecord("raised", "", modules=("",) * (MAX_RECORD_CHARS + 1)), 0.0, 0.0),
    ],
    ids=["neither", "code", "report", "description", "type", "kind", "version", "modules"],
)
def test_a_report_that_is_none_of_ours_is_refused(done: Done) -> None:
    with pytest.raises(ProtocolError, match="the worker is ended"):
        decode_report(encode_report(done)[LENGTH.size :])


@given(st.binary(max_size=64))
def test_garbage_is_a_protocol_error_and_nothing_else(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_report(body)


@given(st.data())
def test_a_damaged_report_is_a_protocol_error_or_a_report(data: st.DataObject) -> None:
    body = bytearray(encode_report(FAILED)[LENGTH.size :])
    for at in data.draw(st.lists(st.integers(0, len(body) - 1), min_size=1, max_size=4)):
        body[at] = data.draw(st.integers(0, 255))
    try:
        done = decode_report(bytes(body))
    except ProtocolError:
        return
    assert (done.value is None) is not (done.error is None)


def test_deep_nesting_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError):
        decode_report(b"\x91" * 100_000)
    with pytest.raises(ProtocolError):
        decode_report(msgspec.msgpack.encode([1, b"", None, 0.0, 0.0, ""]) + b"\x00")


@pytest.mark.parametrize("size", [0, 1 << 20, (1 << 20) + 1, 3 << 20])
@pytest.mark.parametrize("number", [1, 127, 128, 70_000, 1 << 40])
def test_a_report_in_parts_is_the_same_report(number: int, size: int) -> None:
    done = Done(number, b"x" * size, ErrorRecord("raised", "of a spread call"), 1.5, 2.5, "printed")
    data = b"".join(encode_done(done))
    assert LENGTH.unpack_from(data) == (len(data) - LENGTH.size,)
    assert decode_report(data[LENGTH.size :]) == done
