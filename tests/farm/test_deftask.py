"""`@deftask` with a kernel: still a function, submits, has settings, and the same digest everywhere."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

from secfarm import (
    InvalidTaskError,
    NoKernelError,
    Task,
    TaskTimeoutError,
    deftask,
    task_from_source,
    use_kernel,
)
from tests.farm.farms import ROOT, WAIT_S


@deftask
def add(x: int, y: int = 10) -> int:
    """Add."""
    return x + y


@deftask(name="sum of squares", category="etl", priority="low", timeout_s=WAIT_S)
def squares(*numbers):
    return sum(number * number for number in numbers)


@deftask
def even(n):
    return n == 0 or odd(n - 1)


@deftask
def odd(n):
    return n != 0 and even(n - 1)


def test_it_is_still_a_function() -> None:
    assert (add(3, 4), add(3), add(x=1, y=2)) == (7, 13, 3)
    assert (add.__name__, add.__doc__, add.__module__) == ("add", "Add.", __name__)
    assert list(inspect.signature(add).parameters) == ["x", "y"]
    assert callable(add)
    assert isinstance(add, Task)
    assert list(map(add, [1, 2], [3, 4])) == [4, 6]


def test_it_is_submitted_to_the_current_kernel(kernel) -> None:
    with use_kernel(kernel):
        assert add.submit(3, 4).result(WAIT_S) == 7
        assert add.submit(3).result(WAIT_S) == 13
        assert add.submit(y=1, x=2).result(WAIT_S) == 3
        assert squares.submit(1, 2, 3).result(WAIT_S) == 14
        assert even.submit(10).result(WAIT_S) is True
    with pytest.raises(NoKernelError):
        add.submit(1, 2)


def test_its_settings_hold_wherever_it_is_submitted(one_kernel) -> None:
    @deftask(timeout_s=0.05)
    def forever():
        while True:
            pass

    with use_kernel(one_kernel):
        for future in (forever.submit(), one_kernel.submit(forever)):
            assert isinstance(future.exception(WAIT_S), TaskTimeoutError)
    assert (squares.name, add.name) == ("sum of squares", "add")


@pytest.mark.parametrize(
    "settings", [{"timeout_s": 0}, {"timeout_s": -1}, {"timeout_s": float("nan")}, {"priority": "high"}]
)
def test_settings_out_of_range_are_refused_where_they_are_written(settings) -> None:
    with pytest.raises(InvalidTaskError):
        deftask(**settings)(lambda: 1)


@pytest.mark.parametrize("what", [1, "name", len, print, int, [].append])
def test_only_plain_functions_are_made_tasks(what) -> None:
    with pytest.raises(InvalidTaskError):
        deftask(what)


def test_source_is_what_would_travel() -> None:
    assert "return x + y" in add.source
    assert "def even" in odd.source
    assert "def odd" in odd.source
    assert "@deftask" not in add.source


_MODULE = """
from secfarm import deftask

SCALE = 3

@deftask
def helper(x):
    return {"a", "b", "c", x} and frozenset({1, 2, 3})

@deftask
def scaled(x):
    return helper(x) and x * SCALE
"""
_PRINT = "import task_module; print(task_module.scaled.digest, task_module.helper.digest)"


def test_the_digest_is_the_same_in_every_process_and_place(tmp_path: Path) -> None:
    """Neither the file's place, nor its line, nor the seed of hashes is in it."""
    seen = set()
    for number, above in enumerate(["", "\n\n\n# moved down\n", ""]):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "task_module.py").write_text(above + _MODULE)
        ran = subprocess.run(
            [sys.executable, "-c", _PRINT],
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{folder}", "PYTHONHASHSEED": str(number)},
            capture_output=True,
            text=True,
            check=True,
        )
        seen.add(ran.stdout)
    assert len(seen) == 1
    scaled, helper = seen.pop().split()
    assert scaled != helper
    assert len(scaled) == 64


def test_a_changed_text_is_another_digest() -> None:
    one, other = task_from_source("lambda x: x + 1"), task_from_source("lambda x: x + 2")
    assert one.digest == task_from_source("lambda x: x + 1").digest != other.digest


def test_a_task_from_text_runs_on_the_server_only(kernel) -> None:
    task = task_from_source("def mul(x, y=2): return x * y")
    assert kernel.submit(task, 3).result(WAIT_S) == 6
    with use_kernel(kernel):
        assert task.submit(3, 4).result(WAIT_S) == 12
    with pytest.raises(InvalidTaskError):
        task(3, 4)


@pytest.mark.parametrize(
    "text", ["", "1 + 1", "x = 1", "def f(): pass\ndef g(): pass", "def f(:", "class A: pass", "import os"]
)
def test_text_that_is_not_one_function_is_refused(text: str) -> None:
    with pytest.raises(InvalidTaskError):
        task_from_source(text)
