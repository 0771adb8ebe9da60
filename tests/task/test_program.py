"""Programs: what is decoded is what was encoded, its digest is free of locations, and every index holds."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfarm.errors import InvalidTaskError, ProtocolError
from secfarm.limits import MAX_PROGRAM_BYTES
from secfarm.task.payload import ProgramText
from secfarm.task.program import (
    Binding,
    Function,
    FunctionKind,
    FunctionRef,
    ImportRef,
    NameProgram,
    Namespace,
    Place,
    ProgramKind,
    Scope,
    ScopeKind,
    SourceProgram,
    ValueRef,
    check_name,
    decode_program,
    make_program,
)

PLACE = Place("file.py", 3, 4)
LAMBDA = Function(FunctionKind.LAMBDA, "<lambda>", "lambda x: x + n", 0, free_names=("n",), cells=(0,))
SOURCE = SourceProgram(
    "<lambda>",
    (LAMBDA,),
    (Namespace("__main__", (("os", ImportRef("os")), ("f", FunctionRef(0)), ("v", ValueRef(0)))),),
    cells=(ImportRef("os.path", "join"),),
    value_count=1,
)


def test_a_program_is_the_same_on_both_sides() -> None:
    for program in (make_program(SOURCE, (PLACE,)), make_program(NameProgram("operator:add"))):
        assert decode_program(program.wire) == program
    assert make_program(SOURCE, (PLACE,)).kind is ProgramKind.SOURCE
    assert make_program(NameProgram("operator:add")).kind is ProgramKind.NAME


def test_the_place_is_in_the_key_and_not_in_the_digest() -> None:
    one, other = make_program(SOURCE, (PLACE,)), make_program(SOURCE, (Place("file.py", 4, 4),))
    assert one.digest == other.digest
    assert one.key != other.key


def test_a_text_and_an_origin_cannot_be_shifted_against_each_other() -> None:
    """The key is over the text's digest, which has one length, and then the origin."""
    program = make_program(NameProgram("operator:add"))
    shifted = ProgramText(program.text + program.origin[:1], program.origin[1:])
    with pytest.raises(ProtocolError):
        decode_program(shifted)


@pytest.mark.parametrize("name", ["operator:add", "operator.add", "a.b:c.d", "builtins:len"])
def test_a_public_name_is_taken(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "len",
        ":",
        "a:",
        ":b",
        "a:b:c",
        "a..b",
        "a.b.",
        "os:_exit",
        "_os:exit",
        "a.__class__",
        "a b.c",
        "a.b\n",
        "a.1",
    ],
)
def test_any_other_name_is_refused_on_both_sides(name: str) -> None:
    with pytest.raises(InvalidTaskError):
        check_name(name)
    with pytest.raises(ProtocolError):
        decode_program(make_program(NameProgram(name)).wire)


def changed(**fields: object) -> SourceProgram:
    return msgspec.structs.replace(SOURCE, **fields)


def function(**fields: object) -> SourceProgram:
    return changed(functions=(msgspec.structs.replace(LAMBDA, **fields),))


def named(binding: Binding) -> SourceProgram:
    return changed(namespaces=(Namespace("m", (("x", binding),)),))


@pytest.mark.parametrize(
    "content",
    [
        changed(functions=()),
        changed(functions=(LAMBDA, LAMBDA)),
        changed(namespaces=()),
        changed(cells=()),
        changed(value_count=-1),
        changed(value_count=0),
        changed(submodules=("os;import",)),
        changed(imports=("os", "")),
        changed(imports=(".os",)),
        changed(requirements=("numpy>",)),
        changed(requirements=("numpy >= 2",)),
        changed(requirements=("b", "a")),
        changed(requirements=("a", "a")),
        changed(requirements=tuple(f"a{number:03}" for number in range(101))),
        changed(cells=(FunctionRef(1),)),
        function(namespace=1),
        function(namespace=-1),
        function(cells=(1,)),
        function(cells=(-1,)),
        function(cells=()),
        function(optimize=3),
        function(defaults=(ValueRef(1),)),
        function(keyword_defaults=(("a", ValueRef(-1)),)),
        function(attributes=(("a", FunctionRef(-1)),)),
        named(FunctionRef(7)),
        named(ValueRef(7)),
        named(ImportRef("")),
        named(ImportRef("a b")),
        named(ImportRef("os", "a.<locals>.b")),
    ],
)
def test_an_index_or_name_that_does_not_hold_is_refused(content: SourceProgram) -> None:
    with pytest.raises(ProtocolError):
        decode_program(make_program(content, (PLACE,)).wire)


@pytest.mark.parametrize(
    "place", [Place("f", 0), Place("f", -1), Place("f", 2**40), Place("f", 1, -1), Place("f\0", 1)]
)
def test_a_place_out_of_range_is_refused(place: Place) -> None:
    with pytest.raises(ProtocolError):
        decode_program(make_program(SOURCE, (place,)).wire)


def test_a_name_has_no_place() -> None:
    with pytest.raises(ProtocolError):
        decode_program(make_program(NameProgram("a.b"), (PLACE,)).wire)


def test_a_program_over_the_limit_is_refused_on_both_sides() -> None:
    large = function(text="#" * MAX_PROGRAM_BYTES)
    with pytest.raises(InvalidTaskError, match="limit"):
        make_program(large, (PLACE,))
    with pytest.raises(ProtocolError):
        decode_program(ProgramText(b"\0" * (MAX_PROGRAM_BYTES + 1), b""))


def test_text_that_no_message_can_hold_is_refused() -> None:
    with pytest.raises(InvalidTaskError, match="surrogate"):
        make_program(function(text="lambda: '\ud800'"), (PLACE,))


@given(st.binary(max_size=200), st.binary(max_size=50))
def test_garbage_is_a_protocol_error(text: bytes, origin: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_program(ProgramText(text, origin))


@given(st.data())
def test_a_changed_byte_gives_another_key_or_a_protocol_error(data: st.DataObject) -> None:
    program = make_program(SOURCE, (PLACE,))
    parts = {"text": bytearray(program.text), "origin": bytearray(program.origin)}
    part = parts[data.draw(st.sampled_from(sorted(parts)))]
    index = data.draw(st.integers(0, len(part) - 1))
    part[index] ^= data.draw(st.integers(1, 255))
    try:
        decoded = decode_program(ProgramText(bytes(parts["text"]), bytes(parts["origin"])))
    except ProtocolError:
        return
    assert decoded.key != program.key


def test_a_scope_is_one_of_those_that_python_has() -> None:
    program = make_program(function(scopes=(Scope(ScopeKind.GENERATOR),)), (PLACE,))
    assert decode_program(program.wire) == program
    wrong = msgspec.msgpack.decode(program.text)
    wrong[2][0][6][0][0] = 7
    with pytest.raises(ProtocolError):
        decode_program(ProgramText(msgspec.msgpack.encode(wrong), program.origin))
