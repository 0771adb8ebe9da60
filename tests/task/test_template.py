"""The template: nothing but one function's code comes out of a text, and two codes are the same or they are not."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfarm.errors import InvalidTaskError
from secfarm.task.program import Function, FunctionKind, Scope, ScopeKind
from secfarm.task.template import compile_function, parse, same_code


def lambda_text(text: str, **fields: object) -> Function:
    return msgspec.structs.replace(Function(FunctionKind.LAMBDA, "<lambda>", text, 0), **fields)


def def_text(text: str, name: str = "f", **fields: object) -> Function:
    return msgspec.structs.replace(Function(FunctionKind.DEF, name, text, 0), **fields)


@pytest.mark.parametrize(
    "function",
    [
        lambda_text("1"),
        lambda_text("lambda: 1, 2"),
        lambda_text("lambda: 1), (lambda: 2"),
        lambda_text("lambda: 1)\nimport os\n(lambda: 2"),
        lambda_text("def f(): pass"),
        lambda_text("lambda: 1", name="f"),
        def_text("def f(): pass\nimport os"),
        def_text("    def f(): pass\nimport os"),
        def_text("    def f(): pass\n    import os"),
        def_text("    def f(): pass\nelse:\n    import os"),
        def_text("import os"),
        def_text("class f: pass"),
        def_text("lambda: 1"),
        def_text("def g(): pass"),
        def_text("def f(): return x", free_names=("y",)),
        def_text("def f(): return x, y", free_names=("y", "x")),
        def_text("def f(): pass", scopes=(Scope(ScopeKind.LIST),)),
        def_text("def f(): pass", scopes=(Scope(ScopeKind.LAMBDA),)),
        lambda_text("lambda: " + "(" * 500 + ")" * 500),
        lambda_text("lambda: " + "-" * 100_000 + "1"),
        lambda_text("lambda: x" + ".x" * 100_000),
    ],
)
def test_a_text_that_is_not_exactly_the_function_is_refused(function: Function) -> None:
    with pytest.raises((InvalidTaskError, SyntaxError)):
        compile_function(function, "f.py", 5, 0)


def test_what_would_run_when_a_function_is_made_is_not_there() -> None:
    """Decorators, defaults and annotations leave nothing in the code, and the code is the function's alone."""
    text = "def f(a: boom() = boom(), *b: boom(), k: boom() = boom(), **c: boom()) -> boom(): return a"
    code = compile_function(def_text(text), "f.py", 2, 0)
    assert (code.co_name, code.co_names, code.co_argcount, code.co_kwonlyargcount) == ("f", (), 1, 1)
    with pytest.raises(InvalidTaskError):
        compile_function(def_text(f"@boom()\n{text}"), "f.py", 2, 0)


@pytest.mark.parametrize(
    ("function", "column"),
    [
        (lambda_text("lambda x: 1 / x"), 17),
        (lambda_text("lambda x: (1\n  / x)"), 6),
        (def_text("    def f(x):\n        return 1 / x"), 0),
        (def_text("def f(x): return 1 / x"), 0),
    ],
)
def test_positions_are_those_of_the_clients_file(function: Function, column: int) -> None:
    code = compile_function(function, "/client/f.py", 41, column)
    above = "if 1:\n" if function.text.startswith(" ") else ""
    before, after = ("v" * (column - 4) + " = (", ")") if column else ("", "")
    text = "\n" * (40 - above.count("\n")) + above + before + function.text + after
    assert code.co_filename == "/client/f.py"
    assert code.co_firstlineno == 41
    assert list(code.co_positions()) == list(code_of(text).co_positions())


def code_of(text: str):
    outer = compile(text, "f.py", "exec", dont_inherit=True)
    return next(constant for constant in outer.co_consts if hasattr(constant, "co_code"))


DIFFERENT = [
    "def f(a): return 1",
    "def f(b): return 1",
    "def f(a): return 1.0",
    "def f(a): return True",
    "def f(a): return 0.0",
    "def f(a): return -0.0",
    "def f(a): return 0j",
    "def f(a): return -0j",
    "def f(a): return (1, 2)",
    "def f(a): return (1, 2.0)",
    "def f(a): return (1, (2,))",
    "def f(a): return (1, (2.0,))",
    "def f(a): return a in {1, 2}",
    "def f(a): return a in {1, 2.0}",
    "def f(a): return a in {1, True}",
    "def f(a): return 'a'",
    "def f(a): return b'a'",
    "def f(a): return a.x",
    "def f(a): return a.y",
    "def f(a): return x",
    "def f(*a): return 1",
    "def f(a, /): return 1",
    "def f(*, a): return 1",
    "async def f(a): return 1",
    "def f(a): yield 1",
    "def f(a): 'doc'; return 1",
    "def f(a): return lambda: 1",
    "def f(a): return lambda: 1.0",
    "def f(a): return lambda: a",
    "def g(a): return 1",
    "def f(a):\n try: return 1\n finally: a()",
    "def f(a):\n global x\n x = 1",
    "def f(a):\n x = 1",
    "class f: a = 1",
]


@given(st.sampled_from(DIFFERENT), st.sampled_from(DIFFERENT))
def test_two_codes_are_the_same_when_their_texts_are(one: str, other: str) -> None:
    assert (same_code(code_of(one), code_of(other)) is None) == (one == other)


def test_lines_and_columns_are_not_compared() -> None:
    assert same_code(code_of("def f(a): return 1"), code_of("\n\ndef f( a ):\n  # said\n  return 1")) is None


def test_a_source_text_is_only_parsed() -> None:
    """A cookie in it is a comment, for it is text and not bytes."""
    assert len(parse("# coding: no-such-thing\nx = 1").body) == 1
    with pytest.raises(SyntaxError):
        parse("def")
