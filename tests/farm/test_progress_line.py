"""The line of a cognate: on a terminal and nowhere else, ended when the cognate is."""

from __future__ import annotations

import concurrent.futures
import io
import sys
from collections.abc import Callable

import pytest

from secfarm import pmapcar, preduce, progress, set_kernel
from secfarm.farm.progress_line import ProgressLine


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Closed(Terminal):
    def write(self, text: str) -> int:
        raise OSError("the terminal is gone")


@pytest.fixture(params=["plain", "rich"])
def with_terminal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Terminal]:
    """A terminal in place of stderr from the call on: pytest puts its own there after the fixtures were made."""
    if request.param == "plain":
        monkeypatch.setitem(sys.modules, "rich.console", None)
    else:
        pytest.importorskip("rich.progress")

    def use() -> Terminal:
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        return terminal

    return use


def test_a_terminal_shows_how_far_it_is(with_terminal, one_kernel) -> None:
    terminal = with_terminal()
    set_kernel(one_kernel)
    assert pmapcar(lambda x: x, range(20), progress=True) == list(range(20))
    assert "pmapcar" in terminal.getvalue()
    assert "20/20" in terminal.getvalue() or "100%" in terminal.getvalue()
    assert terminal.getvalue().count("\n") == 1


def test_nothing_is_shown_where_nobody_asked(with_terminal, one_kernel) -> None:
    terminal = with_terminal()
    set_kernel(one_kernel)
    pmapcar(lambda x: x, range(20))
    assert terminal.getvalue() == ""


def test_nothing_is_shown_where_stderr_is_no_terminal(one_kernel, capsys) -> None:
    set_kernel(one_kernel)
    assert preduce(lambda x, y: x + y, range(20), progress=True) == 190
    assert capsys.readouterr().err == ""


def test_what_is_done_after_the_end_is_not_shown(with_terminal) -> None:
    terminal = with_terminal()
    future: concurrent.futures.Future[int] = concurrent.futures.Future()
    line = ProgressLine("title")
    line.expect(future, 5)
    line.close()
    line.close()
    shown = terminal.getvalue()
    future.set_result(1)
    assert terminal.getvalue() == shown
    assert "0/5" in shown or "0%" in shown


def test_the_end_counts_what_is_done_although_nobody_has_told_of_it_yet(with_terminal) -> None:
    """Who waits for a future goes on before its done callbacks are called, and ends the line."""
    terminal = with_terminal()
    futures: list[concurrent.futures.Future[int]] = [concurrent.futures.Future() for _ in range(2)]
    line = ProgressLine("title")
    futures[1].add_done_callback(lambda _: line.close())
    for future in futures:
        line.expect(future, 5)
    for future in futures:
        future.set_result(1)
    assert "10/10" in terminal.getvalue() or "100%" in terminal.getvalue()


def test_what_tasks_tell_stands_behind_the_count(with_terminal, one_kernel) -> None:
    """Escaped, for it comes from a server, and neither as markup."""
    terminal = with_terminal()
    set_kernel(one_kernel)

    def task(x: int) -> int:
        progress(x, 8, f"row \x1b[31m[red]{x}")
        return x

    assert pmapcar(task, [7], progress=True) == [7]
    assert "7/8 row \\x1b[31m[red]7" in terminal.getvalue()


def test_without_items_a_task_s_own_count_is_shown(with_terminal) -> None:
    terminal = with_terminal()
    line = ProgressLine("title")
    line.reached(3, 4, "almost")
    line.close()
    line.reached(4, 4, "too late")
    assert "almost" in terminal.getvalue()
    assert "3/4" in terminal.getvalue() or "75%" in terminal.getvalue()
    assert "too late" not in terminal.getvalue()


def test_a_terminal_that_is_gone_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setattr(sys, "stderr", Closed())
    line = ProgressLine("title")
    line.expect(concurrent.futures.Future(), 5)
    line.close()
    monkeypatch.setattr(sys, "stderr", None)
    ProgressLine("title").close()
