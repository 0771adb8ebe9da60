"""Preflight: all that is missing is told at once, before any code of the user runs, and nothing named is imported."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from secfarm.errors import MissingModulesError, PythonVersionError
from secfarm.run.compiler import Prepared
from secfarm.task.capture import capture
from secfarm.task.deftask import Task, task_from_source
from secfarm.task.payload import ProgramText
from secfarm.task.program import (
    Function,
    FunctionKind,
    ImportRef,
    Namespace,
    Origin,
    Place,
    SourceProgram,
    decode_program,
    make_program,
)
from tests.task.programs import load

if TYPE_CHECKING:
    from secfarm.task.program import Program


def source(text: str = "lambda: n0", *references: ImportRef, **fields: object) -> Program:
    names = tuple((f"n{index}", reference) for index, reference in enumerate(references))
    kind = FunctionKind.LAMBDA if text.startswith("lambda") else FunctionKind.DEF
    function = Function(kind, "<lambda>" if text.startswith("lambda") else "f", text, 0)
    content = SourceProgram("f", (function,), (Namespace("m", names),), **fields)
    return make_program(content, (Place("/client/tasks.py", 7),))


def written_for(version: str, program: Program) -> Program:
    """The same, as a client with that Python sends it."""
    origin = msgspec.msgpack.encode(Origin(version, program.places))
    return decode_program(ProgramText(program.text, origin))


def missing(program: Program) -> MissingModulesError:
    with pytest.raises(MissingModulesError) as caught:
        Prepared(program)
    return caught.value


def test_captured_modules_imports_inside_and_requirements_are_told_at_once() -> None:
    program = source(
        "lambda: n0",
        ImportRef("no_such_a"),
        ImportRef("no_such_b.c", "d"),
        ImportRef("os.path", "join"),
        submodules=("xml.no_such_c",),
        imports=("json", "no_such_d", "os.no_such_e"),
        requirements=("msgspec", "msgspec<0.1", "no-such-f>=2"),
    )
    error = missing(program)
    assert error.modules == (
        "msgspec<0.1", "no-such-f>=2", "no_such_a", "no_such_b.c", "no_such_d", "os.no_such_e", "xml.no_such_c"
    )  # fmt: skip
    assert error.python_version == ".".join(map(str, sys.version_info[:3]))
    assert f"msgspec<0.1 (version {metadata.version('msgspec')} is installed)" in str(error)
    assert "no-such-f>=2 (not installed)" in str(error)


def test_a_module_that_is_named_is_found_and_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The packages around it are imported: that is how Python finds a dotted name."""
    for name in ("loud_module.py", "loud_package/__init__.py", "loud_package/inner.py"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"with open({str(tmp_path / 'loaded')!r}, 'a') as file:\n    file.write(__name__ + ' ')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    missing(source("lambda: 1", imports=("loud_module", "loud_package.inner", "no_such_a")))
    assert (tmp_path / "loaded").read_text() == "loud_package "
    missing(source("lambda: n0", ImportRef("loud_module"), imports=("no_such_a",)))
    assert (tmp_path / "loaded").read_text() == "loud_package "


def test_a_package_that_cannot_be_imported_is_not_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong with it, the import statement says when it runs."""
    for name, text in (("broken_a", "1 / 0"), ("broken_b", "import no_such_g")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    Prepared(source("lambda: 1", imports=("broken_a.x", "broken_b.x", "__main__")))


def test_a_name_inside_of_a_module_that_is_no_package_is_missing() -> None:
    assert missing(source("lambda: 1", imports=("json.decoder.x",))).modules == ("json.decoder.x",)


def test_a_task_says_what_it_requires() -> None:
    assert missing(capture(Task(lambda: 1, requires=["msgspec >= 0.1", "no-such-f"])).program).modules == ("no-such-f",)
    installed = f"msgspec=={metadata.version('msgspec')}"
    assert Prepared(capture(Task(lambda: 1, requires=[installed])).program).bind((), {})() == 1


# --- the Python version -------------------------------------------------------------------------------------------

NEWER = "def f():\n    x = 1\n    return x ?? 2\n"


def test_a_text_of_a_newer_python_is_refused_with_a_sentence() -> None:
    with pytest.raises(PythonVersionError) as caught:
        Prepared(written_for("3.99", source(NEWER)))
    ours = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert caught.value.report.startswith(f"written for Python 3.99, this server has {ours}: invalid syntax")
    assert "(tasks.py, line 9)" in caught.value.report
    assert (caught.value.remote_type, isinstance(caught.value, SyntaxError)) == ("SyntaxError", True)


@pytest.mark.parametrize("version", ["3.2", "3.11", "", "x", "3.99.1", "99999.1"])
def test_a_text_that_no_newer_python_explains_is_a_plain_syntax_error(version: str) -> None:
    with pytest.raises(SyntaxError) as caught:
        Prepared(written_for(version, source(NEWER)))
    assert not isinstance(caught.value, PythonVersionError)
    assert (caught.value.filename, caught.value.lineno) == ("/client/tasks.py", 9)


def test_a_newer_python_is_no_reason_when_the_text_compiles() -> None:
    assert Prepared(written_for("3.99", source("lambda: 5"))).bind((), {})() == 5


def test_a_scope_that_only_a_newer_compiler_knows_is_told_by_version_too() -> None:
    program = source("lambda: 1", imports=())
    odd = msgspec.structs.replace(program.content.functions[0], flags=1 << 29)
    program = make_program(msgspec.structs.replace(program.content, functions=(odd,)), program.places)
    with pytest.raises(PythonVersionError, match=r"written for Python 3\.99"):
        Prepared(written_for("3.99", program))


SENDER = """
import json, sys
from secfarm.task.deftask import task_from_source
program = task_from_source(sys.stdin.read()).captured().program
print(json.dumps([program.text.hex(), program.origin.hex()]))
"""


@pytest.mark.parametrize(
    ("version", "text"),
    [
        ("3.12", "def f[T](x: T) -> T:\n    type A = int\n    return x\n"),
        ("3.12", "def f(d):\n    return f'{d['a']}'\n"),
        ("3.14", "def f(x):\n    return t'{x}'\n"),
    ],
)
def test_a_real_newer_python_sends_what_this_one_refuses(version: str, text: str) -> None:
    """Asked of the interpreters that are there; one without our dependencies counts as absent."""
    if sys.version_info >= tuple(map(int, version.split("."))):
        pytest.skip(f"this is {sys.version}")
    sender = shutil.which(f"python{version}")
    if sender is None:
        pytest.skip(f"there is no python{version}")
    probe = [sender, "-c", "import msgspec, sys; print('%d.%d' % sys.version_info[:2])"]
    if subprocess.run(probe, capture_output=True, text=True, check=False).stdout != f"{version}\n":
        pytest.skip(f"{sender} is not Python {version} with our dependencies")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sender, "-c", SENDER], input=text, env=environment, capture_output=True, text=True, check=True
    )
    parts = msgspec.json.decode(done.stdout, type=list[str])
    with pytest.raises(PythonVersionError, match=f"written for Python {version}, this server has"):
        Prepared(decode_program(ProgramText(*map(bytes.fromhex, parts))))


def test_a_module_of_the_clients_own_that_travels_in_part_is_not_missing(tmp_path: Path) -> None:
    module = load(tmp_path, "def task():\n    from own_names import task\n    import no_such_i\n", name="own_names")
    assert missing(capture(module.task).program).modules == ("no_such_i",)


def test_what_is_missing_is_told_for_a_text_task_too() -> None:
    assert missing(task_from_source("def f():\n    import no_such_h\n").captured().program).modules == ("no_such_h",)
