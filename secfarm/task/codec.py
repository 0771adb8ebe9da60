"""Values to bytes and back, with exact types: msgpack, and typed nodes where msgpack would lose something.

A *plain* value (scalars, lists, dicts with scalar keys, nothing shared) is its msgpack, made and read in C. Any other
is a tree of typed nodes behind one marking byte. Decoding makes data, never code: it imports no module that a peer
names and calls no constructor of a user's class. Format and limits: docs/codec.md.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final, TypeAlias, cast

import msgspec

from secfarm.errors import ProtocolError, ValueTransferError
from secfarm.limits import MAX_DEPTH
from secfarm.task.codec_decode import TreeDecoder
from secfarm.task.codec_encode import TreeEncoder
from secfarm.task.codec_kinds import (
    FEW,
    LIST,
    MAP,
    MAX_CLASSES,
    SCALARS,
    TREE_MARK,
    TUPLE,
    CannotTravel,
    Malformed,
    all_of,
)

__all__ = ["decode", "decode_call", "encode", "encode_call", "encode_result"]

Buffer: TypeAlias = "bytes | bytearray | memoryview"
Call: TypeAlias = "tuple[tuple[object, ...], dict[str, object]]"

_Pack: TypeAlias = "Callable[[object], bytes | bytearray]"

_KEYS_OF_KWARGS: Final = frozenset({str})
_PLAIN: Final = SCALARS | {list, dict}
_TABLES: Final = frozenset({list})
_TREE_PARTS: Final = 3
_REASON_CHARS: Final = 200
# What msgspec raises for bytes that it cannot read as the type asked for.
_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, MemoryError)
_PAIRS: Final = frozenset({tuple, list})
_CALL_LEVELS: Final = 2  # the pair and the tuple of arguments are not counted as containers of the user's
_SMALL_BYTES: Final = 256  # of a call that is looked at as a whole before the general ways are tried
_SIMPLE_LEVELS: Final = 8  # of containers in a call that goes without a walk
_BIN8: Final = 0xC4  # with which msgpack begins short bytes
_NO_STACK: Final = "the value cannot be walked: the caller's own calls nearly fill the stack; nothing was sent"

# msgspec checks these types in C, item by item, so that what they accept needs no look from Python. A union there
# cannot hold both str and bytes, and each level doubles the type: values with bytes, or deeper ones, go a slower way.
_Scalar: TypeAlias = bool | int | float | str | None
_Level1: TypeAlias = _Scalar | list[_Scalar] | dict[_Scalar, _Scalar]
_Level2: TypeAlias = _Scalar | list[_Level1] | dict[_Scalar, _Level1]
_Level3: TypeAlias = _Scalar | list[_Level2] | dict[_Scalar, _Level2]
_Level4: TypeAlias = _Scalar | list[_Level3] | dict[_Scalar, _Level3]

_encoder: Final = msgspec.msgpack.Encoder()
_plain_decoder: Final = msgspec.msgpack.Decoder(_Level4)
_call_decoder: Final = cast(
    "msgspec.msgpack.Decoder[Call]", msgspec.msgpack.Decoder(tuple[tuple[_Level4, ...], dict[str, _Level4]])
)
_any_decoder: Final = msgspec.msgpack.Decoder()


def encode(value: object) -> bytes:
    """Return the bytes that `decode` turns back into `value`.

    Raises:
        ValueTransferError: a part of it cannot travel; the message names its path and its type.
    """
    return bytes(_encode(value, _encoder.encode))  # which they are: not copied


def encode_result(value: object) -> bytes | bytearray:
    """As `encode`, in a process whose memory is limited.

    Raises:
        MemoryError: there is no room for the bytes.
        ValueTransferError: see `encode`.
    """
    return _encode(value, _packed)


def _encode(value: object, pack: _Pack) -> bytes | bytearray:
    try:
        if _is_plain((value,), set(), 0):
            return pack(value)
        return _encode_tree(value, pack, wide=False)
    except (OverflowError, UnicodeEncodeError):  # an int over 64 bits or a lone surrogate, somewhere
        return _encode_tree(value, pack, wide=True)
    except RecursionError:
        raise ValueTransferError(_NO_STACK) from None


def encode_call(args: tuple[object, ...], kwargs: dict[str, object]) -> bytes:
    """Return the bytes that `decode_call` turns back into `args` and `kwargs`.

    Raises:
        ValueTransferError: a part of them cannot travel; the message names its path, as in `args[0]["x"][3]`.
    """
    try:
        if not kwargs:
            if _is_plain(args, set(), 0):
                return _encoder.encode((args, kwargs))
        elif all_of(_KEYS_OF_KWARGS, kwargs):
            seen: set[int] = set()
            if _is_plain(args, seen, 0) and _is_plain(kwargs.values(), seen, 0):
                return _encoder.encode((args, kwargs))
        else:
            raise ValueTransferError("the name of a keyword argument is not exactly a str; nothing was sent")
        return _encode_simple_call(args, kwargs) or _encode_call_tree(args, kwargs, wide=False)
    except (OverflowError, UnicodeEncodeError):
        return _encode_call_tree(args, kwargs, wide=True)
    except RecursionError:
        raise ValueTransferError(_NO_STACK) from None


def decode(buffer: Buffer) -> object:
    """Return the value in `buffer`.

    Raises:
        ProtocolError: the bytes are not what `encode` makes, whatever they are.
    """
    if buffer[:1] == TREE_MARK:
        return _decode_tree(buffer, 0)
    try:
        return _plain_decoder.decode(buffer)
    except _UNREADABLE:
        return _decode_plain(buffer, 0)


def decode_call(buffer: Buffer) -> Call:
    """Return the positional and the keyword arguments in `buffer`.

    Raises:
        ProtocolError: the bytes are not what `encode_call` makes, whatever they are.
    """
    if buffer[:1] == TREE_MARK:
        if len(buffer) <= _SMALL_BYTES and (simple := _decode_simple_call(buffer[1:])) is not None:
            return simple
        call = _decode_tree(buffer, -_CALL_LEVELS)
    else:
        if len(buffer) <= _SMALL_BYTES and _BIN8 in buffer and (flat := _decode_scalar_call(buffer)) is not None:
            return flat  # the typed decoder takes no bytes
        try:
            return _call_decoder.decode(buffer)
        except _UNREADABLE:
            call = _decode_plain(buffer, -_CALL_LEVELS)
    # By exact type, not by pattern: a peer may send a range where a sequence is looked for.
    if type(call) not in _PAIRS or len(cast("list[object]", call)) != 2:  # noqa: PLR2004 - a pair
        raise ProtocolError("the bytes are not the arguments of a call: a tuple and a dict")
    args, kwargs = cast("tuple[object, object]", call)
    if type(args) is list and type(call) is list:
        args = tuple(args)
    if type(args) is not tuple or type(kwargs) is not dict or not all_of(_KEYS_OF_KWARGS, kwargs):
        raise ProtocolError("the bytes are not the arguments of a call: a tuple and a dict with texts for keys")
    return args, kwargs


def _is_plain(values: Collection[object], seen: set[int], depth: int) -> bool:
    """Whether msgpack alone carries `values`, which stand inside `depth` containers: exact, unshared, not too deep."""
    if len(values) > FEW and all_of(SCALARS, values):
        return True
    for item in values:
        if type(item) in SCALARS:
            continue
        if type(item) is list:
            inside: Collection[object] = item
        elif type(item) is dict:
            if not all_of(SCALARS, item):
                return False
            inside = item.values()
        else:
            return False
        if id(item) in seen or depth >= MAX_DEPTH:
            return False
        seen.add(id(item))
        if not _is_plain(inside, seen, depth + 1):
            return False
    return True


# --- calls of scalars, tuples, lists and dicts, with nothing shared: the same bytes, without a walk ---------------


def _encode_simple_call(args: tuple[object, ...], kwargs: dict[str, object]) -> bytes | None:
    """Return the tree of a call of few levels in which nothing is shared; None for others."""
    seen = {id(args), id(kwargs)}
    positional = _simple_nodes(args, seen, _SIMPLE_LEVELS)
    named = _simple_nodes(kwargs.values(), seen, _SIMPLE_LEVELS) if kwargs else []
    if positional is None or named is None:
        return None
    root = [TUPLE, [TUPLE, *positional], [MAP, dict(zip(kwargs, named, strict=True))]]
    return TREE_MARK + _encoder.encode([root])


def _simple_nodes(values: Collection[object], seen: set[int], levels: int) -> list[object] | None:
    nodes: list[object] = []
    for item in values:
        kind = type(item)
        if kind in SCALARS:
            nodes.append(item)
            continue
        if kind is tuple or kind is list:
            inside = cast("Collection[object]", item)
        elif type(item) is dict and all_of(SCALARS, item):
            inside = item.values()
        else:
            return None
        if id(item) in seen:
            return None
        seen.add(id(item))
        if not all_of(SCALARS, inside):
            if not levels or (deeper := _simple_nodes(inside, seen, levels - 1)) is None:
                return None
            inside = deeper
        if type(item) is dict:
            nodes.append([MAP, dict(zip(item, inside, strict=True))])
        else:
            nodes.append([TUPLE if kind is tuple else LIST, *inside])
    return nodes


def _decode_simple_call(tree: Buffer) -> Call | None:
    """Return what `_encode_simple_call` made these bytes of (the mark taken off), None if it did not."""
    try:
        (root,) = _any_decoder.decode(tree)
        kind, arguments, named_arguments = root
        kind_of_args, *positional = arguments
        kind_of_kwargs, kwargs = named_arguments
    except (*_UNREADABLE, TypeError, ValueError):
        return None
    # By exact type: texts, bytes and maps can be taken apart like arrays, and 2.0 equals 2.
    if not (
        type(root) is type(arguments) is type(named_arguments) is list
        and type(kwargs) is dict
        and type(kind) is type(kind_of_args) is type(kind_of_kwargs) is int
        and (kind, kind_of_args, kind_of_kwargs) == (TUPLE, TUPLE, MAP)
        and _build_simple(positional, _SIMPLE_LEVELS)
    ):
        return None
    if kwargs:
        named = list(kwargs.values())
        if not (all_of(_KEYS_OF_KWARGS, kwargs) and _build_simple(named, _SIMPLE_LEVELS)):
            return None
        kwargs = dict(zip(kwargs, named, strict=True))
    return tuple(positional), kwargs


def _build_simple(nodes: list[object], levels: int) -> bool:
    """Put values in the place of nodes; whether all are simple, and of few levels."""
    for index, node in enumerate(nodes):
        if type(node) in SCALARS:
            continue
        if type(node) is not list or not node or type(node[0]) is not int or not levels:
            return False
        kind = node[0]
        if kind == MAP:
            inside = node[1] if len(node) == 2 else None  # noqa: PLR2004 - kind and map
            if type(inside) is not dict or not all_of(SCALARS, inside):
                return False
            if not all_of(SCALARS, inside.values()):
                values = list(inside.values())
                if not _build_simple(values, levels - 1):
                    return False
                inside = dict(zip(inside, values, strict=True))
            nodes[index] = inside
        elif kind in (TUPLE, LIST):
            if not (all_of(SCALARS, node) or _build_simple(node, levels - 1)):
                return False
            del node[0]
            nodes[index] = tuple(node) if kind == TUPLE else node
        else:
            return False
    return True


def _decode_scalar_call(buffer: Buffer) -> Call | None:
    """Return a plain call whose arguments are scalars, bytes among them; None for others."""
    try:
        wire = _any_decoder.decode(buffer)
    except _UNREADABLE:
        return None
    if type(wire) is not list or len(wire) != 2:  # noqa: PLR2004 - a pair
        return None
    args, kwargs = wire
    if type(args) is not list or type(kwargs) is not dict or not all_of(SCALARS, args):
        return None
    if kwargs and not (all_of(_KEYS_OF_KWARGS, kwargs) and all_of(SCALARS, kwargs.values())):
        return None
    return tuple(args), kwargs


# --- the general ways ---------------------------------------------------------------------------------------------


def _packed(wire: object) -> bytearray:
    """As `_encoder.encode`, which ends the process (msgspec 0.22) where this raises MemoryError."""
    buffer = bytearray()
    _encoder.encode_into(wire, buffer)
    return buffer


def _encode_tree(value: object, pack: _Pack, *, wide: bool) -> bytes:
    walk = TreeEncoder(wide=wide)
    return _finished(walk, _root(walk, "value", value, 0), pack)


def _encode_call_tree(args: tuple[object, ...], kwargs: dict[str, object], *, wide: bool) -> bytes:
    walk = TreeEncoder(wide=wide)
    depth = 1 - _CALL_LEVELS
    root = [TUPLE, _root(walk, "args", args, depth), _root(walk, "kwargs", kwargs, depth) if kwargs else [MAP, {}]]
    return _finished(walk, root, _encoder.encode)


def _finished(walk: TreeEncoder, root: object, pack: _Pack) -> bytes:
    try:
        return TREE_MARK + pack(walk.finish(root))
    except CannotTravel as trouble:
        raise ValueTransferError(f"the value {trouble.reason}; nothing was sent") from None


def _root(walk: TreeEncoder, name: str, value: object, depth: int) -> object:
    try:
        return walk.node(value, depth)
    except CannotTravel as trouble:
        path = name + "".join(reversed(trouble.steps))
        raise ValueTransferError(f"{path} {trouble.reason}; nothing was sent") from None
    except RecursionError:
        raise ValueTransferError(_NO_STACK) from None


def _decode_plain(buffer: Buffer, depth: int) -> object:
    """Decode what the typed decoders do not take, or say what is wrong with it."""
    try:
        wire = _any_decoder.decode(buffer)
        _check_plain((wire,), depth)
    except (*_UNREADABLE, Malformed) as error:
        raise _refusal(error) from error
    return wire


def _decode_tree(buffer: Buffer, depth: int) -> object:
    try:
        wire = _any_decoder.decode(memoryview(buffer)[1:])
        if type(wire) is not list or not 1 <= len(wire) <= _TREE_PARTS:
            raise Malformed("a tree is its root and perhaps two tables")
        root, *tables = wire
        if not all_of(_TABLES, tables) or (len(tables) == 2 and len(tables[1]) > MAX_CLASSES):  # noqa: PLR2004
            raise Malformed("the tables of a tree are arrays, that of classes a short one")
        return TreeDecoder(*tables).root(root, depth)
    except Exception as error:  # a peer's bytes may make any type's constructor, or any hash, raise anything
        raise _refusal(error) from error


def _refusal(error: Exception) -> ProtocolError:
    reason = ascii(str(error) or type(error).__name__)[1:-1]  # it may quote the peer, at any length
    return ProtocolError(f"the bytes are not an encoded value: {reason[:_REASON_CHARS]}")


def _check_plain(values: Collection[object], depth: int) -> None:
    if all_of(SCALARS, values):
        return
    if not all_of(_PLAIN, values):
        raise Malformed("a plain value holds scalars, arrays and maps only")
    if depth >= MAX_DEPTH:
        raise Malformed(f"it is nested deeper than {MAX_DEPTH} containers")
    for item in values:
        if type(item) is list:
            _check_plain(item, depth + 1)
        elif type(item) is dict:
            if not all_of(SCALARS, item):
                raise Malformed("the keys of a map are scalars")
            _check_plain(item.values(), depth + 1)
