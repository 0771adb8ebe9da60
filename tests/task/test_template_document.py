"""docs/PROTOCOL.md is true of programs and the template: its vectors are what the code writes, reads and builds."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import msgspec
import pytest

from secfarm.errors import ExitStatus
from secfarm.task.payload import Call, ProgramText
from secfarm.task.program import (
    Function,
    FunctionKind,
    NameProgram,
    Namespace,
    Origin,
    Place,
    Scope,
    ScopeKind,
    SourceProgram,
    decode_program,
    make_program,
)
from secfarm.task.template import build_module, compile_function

TEXT = (Path(__file__).parents[2] / "docs/PROTOCOL.md").read_text(encoding="utf-8")
VECTORS = [line.strip() for line in TEXT.splitlines() if line.startswith("  ")]
ROWS = re.findall(r"^\| `(.+)` \| (def|lambda) \|(.*)\|(.*)\|(.*)\| `(.+)` \|$", TEXT, re.MULTILINE)


def test_programs_are_those_of_the_vectors() -> None:
    add = Function(FunctionKind.DEF, "add", "def add(x, y):\n    return x + y", 0)
    place = Place("tasks.py", 3)
    for content, places in (
        (SourceProgram("add", (add,), (Namespace("tasks"),)), (place,)),
        (NameProgram("operator:add"), ()),
    ):
        text = make_program(content, places).text
        origin = msgspec.msgpack.encode(Origin("3.11", places))
        program = decode_program(ProgramText(text, origin))
        assert {text.hex(), origin.hex()} <= set(VECTORS)
        assert program.content == content
        if places:
            assert {program.digest, program.key.hex()} <= set(VECTORS)


def names(cell: str) -> tuple[str, ...]:
    return tuple(filter(None, cell.replace(",", " ").split()))


def scopes(cell: str) -> tuple[Scope, ...]:
    made = []
    for one in filter(None, map(str.strip, cell.split(","))):
        kind, _, name = one.partition(" ")
        made.append(Scope(ScopeKind[kind.upper()], name))
    return tuple(made)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_template_builds_what_the_document_shows(row: tuple[str, ...]) -> None:
    text, kind, around, free, imports, module = row
    name = "<lambda>" if kind == "lambda" else text.split()[1].partition("(")[0]
    function = Function(
        FunctionKind[kind.upper()],
        name,
        text,
        0,
        scopes=scopes(around),
        free_names=names(free),
        import_names=names(imports),
    )
    built = ast.unparse(build_module(function, 3, 4))
    assert ast.dump(ast.parse(built)) == ast.dump(ast.parse(module.replace("⏎", "\n")))
    code = compile_function(function, "tasks.py", 3, 4)
    assert (code.co_name, code.co_freevars, code.co_firstlineno) == (name, names(free), 3)


def test_every_row_of_the_table_is_read() -> None:
    table = TEXT[TEXT.index("What the template compiles, as text:") :]
    assert len(ROWS) == table.count("\n| `")
    assert {scope.kind for row in ROWS for scope in scopes(row[2])} >= {ScopeKind.CLASS, ScopeKind.DEF, ScopeKind.LIST}


@pytest.mark.parametrize(
    ("kind", "start", "end"),
    [
        (SourceProgram, "text          = [0", "source\n"),
        (Function, "Function      =", "]\nScope"),
        (Call, "Call        =", "]\nOrder"),
    ],
)
def test_every_field_is_in_the_document_in_order(kind: type[msgspec.Struct], start: str, end: str) -> None:
    definition = TEXT.partition(f"\n{start}")[2].partition(end)[0]
    places = [re.search(rf"\b{field}\b", definition) for field in kind.__struct_fields__]
    assert all(places)
    assert [place.start() for place in places if place] == sorted(place.start() for place in places if place)


def test_a_version_that_does_not_fit_has_its_exit_status() -> None:
    from secfarm.errors import PythonVersionError

    assert f"`{PythonVersionError.code}`" in TEXT
    assert PythonVersionError.exit_status is ExitStatus.MISSING
