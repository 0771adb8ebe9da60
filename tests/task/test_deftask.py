"""A task is still a function here; made from text it is only that."""

from __future__ import annotations

import asyncio
import inspect

import pytest

from secfarm.errors import InvalidTaskError
from secfarm.task.capture import capture
from secfarm.task.deftask import Task, task_from_source
from secfarm.task.payload import Priority
from secfarm.task.program import SourceProgram
from tests.task.programs import remote


def add(x: int, y: int = 2) -> int:
    """Add."""
    return x + y


def test_a_task_is_still_its_function() -> None:
    task = Task(add)
    assert (task(1), task(1, y=5)) == (3, 6)
    assert (task.__name__, task.__doc__, task.__module__) == ("add", "Add.", __name__)
    assert str(inspect.signature(task)) == "(x: int, y: int = 2) -> int".replace("int", "'int'")
    assert repr(task) == "<task add>"


def test_a_task_in_a_class_is_a_method() -> None:
    class Holder:
        n = 4

        @Task
        def get(self, x: int) -> int:
            return self.n + x

    assert Holder().get(1) == 5
    assert isinstance(Holder.get, Task)


def test_settings_are_checked_when_the_task_is_made() -> None:
    task = Task(add, name="sum", timeout_s=1.5, category="etl", priority="low")
    assert task.name == "sum"
    assert (task.options.timeout_s, task.options.category, task.options.priority) == (1.5, "etl", Priority.LOW)
    for wrong in ({"timeout_s": 0}, {"timeout_s": -1}, {"timeout_s": float("nan")}, {"priority": "high"}):
        with pytest.raises(InvalidTaskError):
            Task(add, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("requires", ["numpy", ["numpy>"], ["numpy[x]"], [2], None])
def test_a_malformed_requirement_is_refused_when_the_task_is_made(requires: object) -> None:
    with pytest.raises(InvalidTaskError):
        Task(add, requires=requires)  # type: ignore[arg-type]


def requirements(task: object) -> tuple[str, ...]:
    content = capture(task).program.content
    assert isinstance(content, SourceProgram)
    return content.requirements


@Task
def plainly() -> object:
    return needy


def needy_function() -> int:
    return 1


needy = Task(needy_function, requires=["b >= 2", "a"])


def test_requirements_travel_with_the_task_and_with_those_that_name_it() -> None:
    assert requirements(needy) == ("a", "b>=2")
    assert requirements(plainly) == ("a", "b>=2")


def test_tasks_of_one_function_keep_their_own_requirements() -> None:
    """The cache of captured programs goes by code object, which they share."""
    other = Task(needy_function, requires=["c"])
    for _ in range(2):
        assert [requirements(task) for task in (needy, other, needy_function)] == [("a", "b>=2"), ("c",), ()]


@pytest.mark.parametrize("thing", [len, 5, "add", print, int, Task(add), staticmethod(add)])
def test_only_a_plain_function_becomes_a_task(thing: object) -> None:
    with pytest.raises(InvalidTaskError):
        Task(thing)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "args", "result"),
    [
        ("def mul(x, y): return x * y", (2, 3), 6),
        ("\n\n# said\n    def mul(x, y=[3]):\n        return x * y[0]\n\n    # more\n", (2,), 6),
        ("lambda x: x + 1", (1,), 2),
        ("  (lambda x:\n x + 1)  # said", (1,), 2),
        ("lambda x, y={'a': (1, 2)}, *, z=-3: (x, y, z)", (1,), (1, {"a": (1, 2)}, -3)),
        ("async def f(x):\n    return x", (1,), 1),
        ("def f(n): return 1 if n < 2 else n * (lambda m: m)(n - 1)", (5,), 20),
        ("def f(x: Nowhere) -> Nothing:\n\tif x:\n\t\treturn 'é'", (1,), "é"),
        ("def f(x):\r\n    return x\r\n", (1,), 1),
        ("def f(x):\n    global seen\n    seen = x\n    return seen", (1,), 1),
    ],
)
def test_a_text_becomes_a_task(text: str, args: tuple[object, ...], result: object) -> None:
    task = task_from_source(text)
    assert remote(task, *args) == result
    assert task.digest == task_from_source(text).digest
    with pytest.raises(InvalidTaskError, match="not compiled here"):
        task(*args)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x = 1",
        "def f(): pass\ndef g(): pass",
        "import os\ndef f(): pass",
        "class A: pass",
        "def f(:",
        "lambda",
        "1 + 1",
        "(lambda: 1, lambda: 2)",
        "f = lambda: 1",
        "@decorated\ndef f(): pass",
        "def f(x=g()): pass",
        "lambda x=open('f'): x",
        "def f(*, x=y): pass",
        "if 1:\n    def f(): pass",
        "def f(): '\0'",
        "lambda: " + "(" * 500,
    ],
)
def test_a_text_that_is_not_one_function_is_refused(text: str) -> None:
    with pytest.raises(InvalidTaskError):
        task_from_source(text)


def test_a_text_is_never_run_or_compiled_here(monkeypatch: pytest.MonkeyPatch) -> None:
    from secfarm.task import template

    def no_compile(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(template, "compile_function", no_compile)
    task = task_from_source("def f(x): return boom(x)")
    assert (task.name, task.source) == ("f", "def f(x): return boom(x)")


def test_an_async_task_is_a_coroutine_function_here() -> None:
    async def later(x: int) -> int:
        return x + 1

    assert asyncio.run(Task(later)(1)) == remote(Task(later), 1) == 2  # type: ignore[arg-type]
