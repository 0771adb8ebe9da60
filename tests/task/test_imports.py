"""Which imports inside of functions a server must have: those that run there whatever the machine."""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path

import pytest

from secfarm.task.capture import capture
from secfarm.task.deftask import task_from_source
from secfarm.task.imports import absolute_names, needed_modules
from secfarm.task.program import SourceProgram
from tests.task.programs import load


def needed(text: str) -> tuple[str, ...]:
    return needed_modules(ast.parse(textwrap.dedent(text)).body)


@pytest.mark.parametrize(
    ("text", "modules"),
    [
        ("import a", ["a"]),
        ("import a.b as c, d", ["a.b", "d"]),
        ("from a import b", ["a"]),
        ("from a.b import *", ["a.b"]),
        ("from . import a", ["."]),
        ("from ..a import b", ["..a"]),
        ("if x:\n import a\nelse:\n import b", ["a", "b"]),
        ("for x in y:\n while z:\n  with w:\n   import a", ["a"]),
        ("match x:\n case 1: import a", ["a"]),
        ("def f():\n import a\nclass C:\n import b", ["a", "b"]),
        ("try:\n import a\nexcept ValueError:\n import b\nelse:\n import c\nfinally:\n import d", ["a", "b", "c", "d"]),
        ("try:\n import a\nfinally:\n import b", ["a", "b"]),
        ("try:\n x\nexcept* ValueError:\n import a", ["a"]),
        ("with suppress(ValueError):\n import a", ["a"]),
    ],
)
def test_an_import_that_runs_is_needed(text: str, modules: list[str]) -> None:
    assert list(needed(text)) == modules


@pytest.mark.parametrize(
    "text",
    [
        *(
            f"try:\n import a\nexcept {caught}:\n import b\nelse:\n import c"
            for caught in ("ImportError", "ModuleNotFoundError", "Exception", "BaseException as e",
                           "(KeyError, ImportError)", "builtins.ImportError")
        ),
        "try:\n import a\nexcept:\n pass",
        "try:\n import a\nexcept* ImportError:\n pass",
        "try:\n if x:\n  import a\nexcept KeyError:\n pass\nexcept ImportError:\n pass",
        "with contextlib.suppress(KeyError, ImportError):\n import a",
        "if False:\n import a",
        "if 0:\n import a",
        "if TYPE_CHECKING:\n import a",
        "if sys.platform == 'win32':\n import a\nelse:\n import b",
        "if os.name == 'nt':\n import a",
        "if sys.version_info >= (3, 99):\n import a\nelif x:\n import b",
        "if importlib.util.find_spec('a'):\n import a",
        "importlib.import_module('a')",
    ],
)  # fmt: skip
def test_an_import_that_may_be_missing_is_not(text: str) -> None:
    assert needed(text) == ()


def test_what_runs_in_any_case_is_needed_beside_what_may_be_missing() -> None:
    assert needed("try:\n import a\nexcept ImportError:\n pass\nfinally:\n import b") == ("b",)
    assert needed("if False:\n import a\nelse:\n import b") == ("b",)


def test_nesting_does_not_exhaust_the_stack() -> None:
    body: list[ast.stmt] = [ast.Import([ast.alias("a")])]
    for _ in range(100_000):
        body = [ast.With([], body)]
    assert needed_modules(body) == ("a",)
    while body and isinstance(body[0], ast.With):  # their destruction would recurse
        body[0].body, body = [], body[0].body


def test_relative_names_are_those_of_the_module_and_leave_no_package() -> None:
    names = [".", ".a", "..b", "...c", "d.e"]
    assert list(absolute_names(names, "top.sub.module")) == ["top.sub", "top.sub.a", "top.b", "d.e"]
    assert list(absolute_names(names, "module")) == ["d.e"]


def test_a_program_says_what_all_its_functions_import(tmp_path: Path) -> None:
    module = load(
        tmp_path,
        "def other():\n    from json import dumps\n    return dumps\n"
        "def task():\n    import no_such_a.b\n    try:\n        import c\n    except ImportError: pass\n"
        "    def inner():\n        import d\n    return other, inner\n",
    )
    content = capture(module.task).program.content
    assert isinstance(content, SourceProgram)
    assert content.imports == ("d", "json", "no_such_a.b")
    for text in ("def f():\n    import a\n    import b", "async def f():\n    import a\n    import b"):
        content = capture(task_from_source(text)).program.content
        assert isinstance(content, SourceProgram)
        assert content.imports == ("a", "b")
