"""What notebooks and rich show of kernels, channels and futures: text of others is text, secrets are nowhere."""

from __future__ import annotations

import html.parser

import pytest

from secfarm.farm.shown import html_table
from tests.farm.farms import WAIT_S, Daemon, results
from tests.meeting import Gate

NASTY = "<script>alert('&')</script>\x1b[2J\u202e"


class Text(html.parser.HTMLParser):
    """The tags and the text of a document."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.texts: list[str] = []
        self.feed(markup)

    def handle_starttag(self, tag, attrs) -> None:
        assert attrs == []
        self.tags.add(tag)

    def handle_data(self, text) -> None:
        self.texts.append(text)


def test_everything_in_a_table_is_text() -> None:
    read = Text(html_table(NASTY, (NASTY, "b"), [(NASTY, 1)]))
    assert read.tags == {"table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert "".join(read.texts).isprintable()
    assert read.texts == ["<script>alert('&')</script>\\x1b[2J\\u202e"] * 2 + ["b", read.texts[0], "1"]


def test_a_kernel_shows_its_servers() -> None:
    with Daemon(name="<b>node</b>") as daemon:
        kernel = daemon.connect(name="<i>mine</i>")
        shown = [Text(kernel._repr_html_()).texts, dict(kernel.__rich_repr__())]
        assert shown[0][0] == "secfarm.Kernel <i>mine</i>: 2 workers"
        assert shown[0][-4:-1] == [daemon.address, "<b>node</b>", shown[0][-2]]
        assert shown[1] == {"name": "<i>mine</i>", "servers": [daemon.address], "workers": 2}
        kernel.shutdown()
        assert "closed" in kernel._repr_html_()
        assert dict(kernel.__rich_repr__())["closed"] is True


def test_a_future_shows_its_task_and_state_but_not_its_value(one_kernel, gate: Gate) -> None:
    def echo(secret):
        return secret

    held = gate.hold(one_kernel)
    gate.wait()
    done, failed = one_kernel.submit(echo, "hidden"), one_kernel.submit(lambda: 1 // 0)
    assert done.result(WAIT_S) == "hidden"
    assert isinstance(failed.exception(WAIT_S), ZeroDivisionError)
    states = [dict(future.__rich_repr__())["state"] for future in (held, done, failed)]
    assert states == ["running", "finished", "failed: TaskExecutionError[ZeroDivisionError]"]
    for future, state in zip((held, done, failed), states, strict=True):
        shown = Text(future._repr_html_()).texts
        assert {future.task_id, state} < set(shown)
        assert "hidden" not in f"{shown}{future!r}{list(future.__rich_repr__())}"
    held.cancel()
    assert dict(held.__rich_repr__())["state"] == "cancelled"


def test_a_channel_shows_what_is_outstanding_and_ready(one_kernel) -> None:
    channel = one_kernel.channel()
    channel.submit(len, "abc")
    assert dict(channel.__rich_repr__())["outstanding"] == 1
    channel.receive()
    assert dict(channel.__rich_repr__()) == {"kernel": one_kernel.name, "outstanding": 0, "ready": 0}
    assert Text(channel._repr_html_()).texts == [
        "secfarm.Channel",
        "kernel",
        one_kernel.name,
        "outstanding",
        "0",
        "ready",
        "0",
    ]


def test_rich_prints_them(one_kernel) -> None:
    pretty = pytest.importorskip("rich.pretty")
    future = one_kernel.submit(len, "abc")
    results([future])
    assert pretty.pretty_repr(future, max_width=200).startswith("Future(task='builtins:len', task_id=")
