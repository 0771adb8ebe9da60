"""Programs: what travels of a task's code, as source text and names. Bytes in, values out; nothing is compiled here.

A program is either source (functions, the names they use, where each name's value comes from) or the name of a
function that exists on the server. Format: docs/PROTOCOL.md, "Programs".
"""

from __future__ import annotations

import hashlib
import re
import sys
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final

import msgspec

from secfarm.errors import InvalidTaskError, ProtocolError
from secfarm.limits import MAX_PROGRAM_BYTES
from secfarm.task.payload import ProgramText
from secfarm.task.requirement import parse_requirements


class ProgramKind(Enum):
    """Text that is compiled on the server (the grant `run`), or a name that is looked up there (`call`)."""

    SOURCE = "source"
    NAME = "name"


class FunctionKind(IntEnum):
    """The two forms of a function's text."""

    DEF = 0  # also `async def`
    LAMBDA = 1


class ScopeKind(IntEnum):
    """What may stand around a function and show in its code: by its qualified name, or in its private names."""

    CLASS = 0
    DEF = 1
    LAMBDA = 2
    LIST = 3  # comprehensions
    SET = 4
    DICT = 5
    GENERATOR = 6


class Scope(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One scope around a function; `name` is empty for all but classes and `def`s."""

    kind: ScopeKind
    name: str = ""


class FunctionRef(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=0):
    """The value is a function of the same program."""

    index: int


class ImportRef(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=1):
    """The value is found by import: `qualname` in `module`, or the module itself when `qualname` is empty."""

    module: str
    qualname: str = ""


class ValueRef(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=2):
    """The value is data that goes beside the program: number `slot` of the captured values."""

    slot: int


class TaskRef(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=3):
    """The value is a task: an object around a function of the same program, with the task's own name."""

    index: int
    name: str


Binding = FunctionRef | ImportRef | ValueRef | TaskRef


class Function(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One function: its exact text and all that the text alone does not say.

    Attributes:
        name: as in its code object: `add`, `<lambda>`.
        text: from the indentation before `def` or from `lambda` to the end of the node; no decorators.
        namespace: index of the namespace that its global names live in.
        flags: the `__future__` flags that it was compiled with.
        optimize: the optimisation level, 0 to 2 (python -O): it decides whether `assert` statements exist.
        scopes: what stands around it, outermost first.
        import_names: names of it that its module imports; the compiler treats calls of their attributes differently.
        free_names: its closure variables, in the order of the code object.
        cells: for each of those the index of its cell; functions that share a variable share the cell.
        defaults: values of the last positional parameters.
        keyword_defaults: values of keyword-only parameters.
        attributes: attributes of the function object that the program may read.
    """

    kind: FunctionKind
    name: str
    text: str
    namespace: int
    flags: int = 0
    optimize: int = 0
    scopes: tuple[Scope, ...] = ()
    import_names: tuple[str, ...] = ()
    free_names: tuple[str, ...] = ()
    cells: tuple[int, ...] = ()
    defaults: tuple[Binding, ...] = ()
    keyword_defaults: tuple[tuple[str, Binding], ...] = ()
    attributes: tuple[tuple[str, Binding], ...] = ()


class Namespace(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """The global names of one client module that the program uses; `label` becomes `__name__` there."""

    label: str
    names: tuple[tuple[str, Binding], ...] = ()


class SourceProgram(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=0):
    """Functions, the first of which is called, with their namespaces and cells.

    Attributes:
        cells: the closure variables; None is one that has no value.
        global_writes: names that `global` statements of it assign or delete.
        submodules: modules to import besides, so that `import a.b` makes `a.b` an attribute of `a` there too.
        value_count: how many captured values go beside it.
        imports: modules that import statements inside of its functions name; they have to be there before it runs.
        requirements: distributions that have to be installed, as task/requirement.py spells them.
    """

    name: str
    functions: tuple[Function, ...]
    namespaces: tuple[Namespace, ...]
    cells: tuple[Binding | None, ...] = ()
    global_writes: tuple[str, ...] = ()
    submodules: tuple[str, ...] = ()
    value_count: int = 0
    imports: tuple[str, ...] = ()
    requirements: tuple[str, ...] = ()


class NameProgram(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=1):
    """The name of a function on the server: `module:qualname`, or dotted where the client cannot tell the two apart."""

    name: str


class Place(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Where a function's text stands at the client: `line` from 1, `column` in UTF-8 bytes, 0 for a `def`."""

    file: str
    line: int
    column: int = 0


class Origin(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """What the client adds for tracebacks and messages: nothing in it changes what the program computes."""

    python_version: str
    places: tuple[Place, ...] = ()


@dataclass(frozen=True, slots=True)
class Program:
    """A program in both forms: the bytes that are signed and what they say.

    Attributes:
        text: what runs. Free of locations: the same function gives the same bytes in every process.
        origin: where its functions stand at the client, for tracebacks.
        digest: SHA-256 of `text`, hexadecimal.
        key: SHA-256 over the digest and `origin`, 32 bytes: what a call names it by.
    """

    text: bytes
    origin: bytes
    digest: str
    key: bytes
    content: SourceProgram | NameProgram
    places: tuple[Place, ...]
    python_version: str

    @property
    def kind(self) -> ProgramKind:
        """Which of the two it is."""
        return ProgramKind.SOURCE if isinstance(self.content, SourceProgram) else ProgramKind.NAME

    @property
    def name(self) -> str:
        """The function's name; for a name program `module:qualname`."""
        return self.content.name

    @property
    def source_text(self) -> str:
        """What travels, for people: the functions' texts, the called one first, or the name."""
        if isinstance(self.content, NameProgram):
            return self.content.name
        return "\n\n".join(function.text for function in self.content.functions)

    @property
    def wire(self) -> ProgramText:
        """The form that rides in a batch."""
        return ProgramText(self.text, self.origin)


_MAX_LINE: Final = 10_000_000  # a line number that no file reaches; compile() takes a C int
_MAX_COLUMN: Final = 1_000_000  # the template pads with that many blanks
_DOTTED: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")

_encoder = msgspec.msgpack.Encoder()
_content_decoder: msgspec.msgpack.Decoder[SourceProgram | NameProgram] = msgspec.msgpack.Decoder(
    SourceProgram | NameProgram
)
_origin_decoder = msgspec.msgpack.Decoder(Origin)


def check_name(name: str) -> str:
    """Return `name` if it may be the name of a function on a server, else raise.

    It is `module:qualname` or dotted; no part of it may be private, so that a grant of `math.*` covers what the
    module offers and not what it happens to hold.

    Raises:
        InvalidTaskError: it may not.
    """
    module, colon, qualname = name.partition(":")
    parts = (module, qualname) if colon else (module,)
    if not all(map(is_dotted, parts)) or not (colon or "." in name):
        raise InvalidTaskError(f"{name!r} is no function's name; write `module:name`, `module.name` or a built-in")
    if any(part.startswith("_") for part in re.split("[.:]", name)):
        raise InvalidTaskError(f"{name!r} has a private part; only public names can be called on a server")
    return name


def make_program(content: SourceProgram | NameProgram, places: tuple[Place, ...] = ()) -> Program:
    """Return the program with its bytes, digest and key.

    Raises:
        InvalidTaskError: it is larger than `MAX_PROGRAM_BYTES`.
    """
    python_version = ".".join(map(str, sys.version_info[:2]))
    try:
        text = _encoder.encode(content)
        origin = _encoder.encode(Origin(python_version, places))
    except UnicodeEncodeError as error:
        raise InvalidTaskError(f"the text of {content.name!r} holds a lone surrogate; nothing was sent") from error
    if len(text) + len(origin) > MAX_PROGRAM_BYTES:
        raise InvalidTaskError(
            f"the source of {content.name!r} with all that it names has {len(text) + len(origin)} bytes, the limit is "
            f"{MAX_PROGRAM_BYTES}; nothing was sent. Pass large constants as arguments."
        )
    return _program(text, origin, content, Origin(python_version, places))


def decode_program(wire: ProgramText) -> Program:
    """Return the program that `wire` holds, with every index in it checked.

    Raises:
        ProtocolError: it is malformed.
    """
    if len(wire.text) + len(wire.origin) > MAX_PROGRAM_BYTES:
        raise ProtocolError(f"a program has more than {MAX_PROGRAM_BYTES} bytes; nothing of it was compiled")
    try:
        content = _content_decoder.decode(wire.text)
        origin = _origin_decoder.decode(wire.origin)
    # msgspec raises a bare UnicodeDecodeError for bad text and RecursionError for deep nesting.
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"a program is malformed: {error}; nothing of it was compiled") from error
    if isinstance(content, NameProgram):
        try:
            check_name(content.name)
        except InvalidTaskError as error:
            raise ProtocolError(str(error)) from error
        if origin.places:
            raise ProtocolError(f"the name {content.name!r} comes with places; nothing was called")
    else:
        _check_source(content, origin.places)
    return _program(wire.text, wire.origin, content, origin)


def _program(text: bytes, origin: bytes, content: SourceProgram | NameProgram, decoded: Origin) -> Program:
    digest = hashlib.sha256(text)
    key = hashlib.sha256(digest.digest() + origin).digest()
    return Program(text, origin, digest.hexdigest(), key, content, decoded.places, decoded.python_version)


def _check_source(program: SourceProgram, places: tuple[Place, ...]) -> None:
    """Check what the types alone do not: indices, counts and ranges.

    Raises:
        ProtocolError: one of them does not hold.
    """
    _expect(len(program.functions) >= 1, "it has no function")
    _expect(len(places) == len(program.functions), "there is not one place for each function")
    _expect(0 <= program.value_count <= MAX_PROGRAM_BYTES, "its number of values is out of range")
    for place in places:
        _expect(1 <= place.line <= _MAX_LINE and 0 <= place.column <= _MAX_COLUMN, "a place is out of range")
        _expect("\0" not in place.file, "a file name holds a null character")
    for function in program.functions:
        _expect(0 <= function.namespace < len(program.namespaces), "a function's namespace does not exist")
        _expect(len(function.cells) == len(function.free_names), "a function's cells do not fit its free names")
        _expect(all(0 <= cell < len(program.cells) for cell in function.cells), "a function's cell does not exist")
        _expect(function.optimize in (0, 1, 2), "an optimisation level is out of range")
    for module in (*program.submodules, *program.imports):
        _expect(is_dotted(module), "a module's name is malformed")
    try:
        requirements = parse_requirements(program.requirements)
    except InvalidTaskError as error:
        raise ProtocolError(f"a program is malformed: {error}; nothing of it was compiled") from error
    _expect(requirements == program.requirements, "its requirements are not in their one spelling, sorted")
    for binding in bindings_of(program):
        match binding:
            case FunctionRef(index) | TaskRef(index):
                _expect(0 <= index < len(program.functions), "a function that it names does not exist")
            case ValueRef(slot):
                _expect(0 <= slot < program.value_count, "a value that it names does not exist")
            case ImportRef(module, qualname):
                _expect(is_dotted(module), "a module's name is malformed")
                _expect(not qualname or is_dotted(qualname), "a qualified name is malformed")


def is_dotted(name: str) -> bool:
    """Whether `name` is one identifier or several with dots between them."""
    return _DOTTED.fullmatch(name) is not None


def bindings_of(program: SourceProgram) -> list[Binding]:
    """Return every binding in it, those of cells, namespaces, defaults and attributes."""
    found = [binding for binding in program.cells if binding is not None]
    for namespace in program.namespaces:
        found += [binding for _, binding in namespace.names]
    for function in program.functions:
        found += function.defaults
        found += [binding for _, binding in (*function.keyword_defaults, *function.attributes)]
    return found


def _expect(condition: bool, violation: str) -> None:  # noqa: FBT001 - the condition reads best in its place
    if not condition:
        raise ProtocolError(f"a program is malformed: {violation}; nothing of it was compiled")
