"""What waits for a slow client is bounded, in order, and told about where it was dropped."""

from __future__ import annotations

from secfarm.daemon.live import LiveBuffer
from secfarm.task.outcome import Printed, Progressed, Stream
from secfarm.wire.messages import Output, Progress

ONE, TWO = b"1" * 16, b"2" * 16
OUT, ERR = Stream.STDOUT, Stream.STDERR


def test_pieces_of_one_task_and_stream_are_joined_and_order_is_kept() -> None:
    buffer = LiveBuffer()
    for task_id, stream, text in ((ONE, OUT, "a"), (ONE, OUT, "b"), (ONE, ERR, "c"), (TWO, ERR, "d"), (ONE, ERR, "e")):
        buffer.add(task_id, Printed(1, stream, text))
    assert list(buffer.take()) == [
        Output(ONE, OUT, "ab"),
        Output(ONE, ERR, "c"),
        Output(TWO, ERR, "d"),
        Output(ONE, ERR, "e"),
    ]
    assert list(buffer.take()) == []


def test_of_progress_the_latest_counts() -> None:
    buffer = LiveBuffer()
    for done in range(10_000):
        buffer.add(ONE, Progressed(1, done, 10, "m"))
    buffer.add(TWO, Progressed(2, 1, 2, ""))
    assert list(buffer.take()) == [Progress(ONE, 9999, 10, "m"), Progress(TWO, 1, 2, "")]


def test_what_waits_is_bounded_and_the_note_says_what_was_dropped() -> None:
    buffer = LiveBuffer()
    for _ in range(4 << 20):
        buffer.add(ONE, Printed(1, OUT, "x"))
    *told, note = buffer.take()
    shown = sum(len(one.text) for one in told)  # type: ignore[union-attr]
    assert shown <= 1 << 20
    assert max(len(one.text) for one in told) <= 64 << 10  # type: ignore[union-attr]
    assert f"[{(4 << 20) - shown} characters were not shown" in note.text  # type: ignore[union-attr]
    buffer.add(ONE, Printed(1, OUT, "y"))
    assert list(buffer.take()) == [Output(ONE, OUT, "y")]


def test_tiny_pieces_of_many_tasks_are_bounded_by_more_than_their_text() -> None:
    buffer = LiveBuffer()
    for number in range(100_000):
        buffer.add(number.to_bytes(16, "big"), Printed(1, OUT, "x"))
    assert len(list(buffer._pieces)) < 20_000
