"""A user's file is loaded as importing it would, and the task in it is found without guessing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from secfarm.cli.script import choose_task, load_script
from secfarm.errors import InvalidTaskError


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Loading is for a process that ends with its command; here others follow."""
    modules, path = set(sys.modules), list(sys.path)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("test_script_"):
            del sys.modules[name]


def script(folder: Path, text: str) -> Path:
    file = folder / "test_script_of_a_user.py"
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    ("text", "wanted", "found"),
    [
        ("def f(): pass\n", "", "f"),
        ("def f(): pass\ndef main(): pass\n", "", "main"),
        ("from math import hypot\ndef f(): pass\n", "", "f"),
        ("def f(): pass\ndef g(): pass\n", "g", "g"),
        ("from secfarm import deftask\n@deftask\ndef f(): pass\n", "", "f"),
        ("f = lambda: 1\n", "f", "<lambda>"),
        ("from math import hypot\n", "hypot", "hypot"),
    ],
)
def test_which_function_is_meant(text: str, wanted: str, found: str, tmp_path: Path) -> None:
    file = script(tmp_path, text)
    assert choose_task(load_script(file), wanted, file).__name__ == found


@pytest.mark.parametrize(
    ("text", "wanted", "words"),
    [
        ("def f(): pass\ndef g(): pass\n", "", "it defines f, g"),
        ("x = 1\n", "", "it defines no function"),
        ("def f(): pass\nx = 1\n", "x", "has no function x"),
        ("def f(): pass\n", "g", "has no function g"),
    ],
)
def test_what_is_not_clear_is_refused_with_what_there_is(text: str, wanted: str, words: str, tmp_path: Path) -> None:
    file = script(tmp_path, text)
    names = load_script(file)
    with pytest.raises(InvalidTaskError, match=words):
        choose_task(names, wanted, file)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def f(:\n", "SyntaxError"),
        ("\n1 / 0\n", r"ZeroDivisionError: division by zero \(line 2\)"),
        ("raise SystemExit(3)\n", "SystemExit: 3"),
        ("import no_such_module\n", "ModuleNotFoundError"),
    ],
)
def test_a_file_that_fails_is_named_with_the_line(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidTaskError, match=words):
        load_script(script(tmp_path, text))


def test_no_file_is_an_error_and_no_cache_is_left(tmp_path: Path) -> None:
    with pytest.raises(InvalidTaskError, match="there is no file"):
        load_script(tmp_path / "none.py")
    load_script(script(tmp_path, "if __name__ == '__main__':\n    raise SystemExit\n"))
    assert [path.name for path in tmp_path.iterdir()] == ["test_script_of_a_user.py"]


def test_a_file_cannot_take_the_place_of_a_standard_module(tmp_path: Path) -> None:
    file = tmp_path / "json.py"
    file.write_text("def f(): pass\n")
    load_script(file)
    assert "f" not in vars(sys.modules["json"])
