"""The standard library's value types as typed nodes, and back. Exact types only; loaded when first needed.

Each pair of functions stands together: to the node, from the node. Format: docs/codec.md.
"""

from __future__ import annotations

import array
import decimal
import ipaddress
import pathlib
import re
import sys
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Final, cast
from uuid import UUID, SafeUUID  # the types only: nothing is generated here

from secfarm.task import codec_dates
from secfarm.task import codec_kinds as kind
from secfarm.task.codec_decode import Make, TreeDecoder, parts, payload, text, whole
from secfarm.task.codec_encode import Fill, TreeEncoder, int_node, text_node
from secfarm.task.codec_kinds import MAX_PATTERN_CHARS, CannotTravel, Malformed, Node, shown

__all__ = ["FILLS", "MAKERS"]

_PATHS: Final = (pathlib.PosixPath, pathlib.WindowsPath, pathlib.PurePosixPath, pathlib.PureWindowsPath)
_ADDRESSES: Final = (
    ipaddress.IPv4Address,
    ipaddress.IPv6Address,
    ipaddress.IPv4Network,
    ipaddress.IPv6Network,
    ipaddress.IPv4Interface,
    ipaddress.IPv6Interface,
)
_FACTORIES: Final = {
    made.__name__: made
    for made in (list, dict, set, frozenset, tuple, int, float, complex, bool, str, bytes, bytearray)
} | {made.__name__: made for made in (deque, OrderedDict, Counter)}
_FACTORY_NAMES: Final[dict[object, str]] = {factory: name for name, factory in _FACTORIES.items()}
_VIEW_FORMATS: Final = frozenset("cbB?hHiIlLqQnNfd")
_REGEX_FLAGS: Final = int(re.ASCII | re.IGNORECASE | re.LOCALE | re.MULTILINE | re.DOTALL | re.UNICODE | re.VERBOSE)
# Its own: the caller's context may not trap, and would let garbage in as NaN.
_DECIMALS: Final = decimal.Context(traps=[decimal.InvalidOperation])


# --- scalars of the language -------------------------------------------------------------------------------------


def _from_complex(_: TreeEncoder, node: Node, value: complex, __: int) -> None:
    node += (kind.COMPLEX, value.real, value.imag)


def _to_complex(_: TreeDecoder, node: Node, __: int) -> complex:
    real, imaginary = parts(node, 2)
    if type(real) is not float or type(imaginary) is not float:
        raise Malformed("the parts of a complex are floats")
    return complex(real, imaginary)


def _from_bytearray(_: TreeEncoder, node: Node, value: bytearray, __: int) -> None:
    node += (kind.BYTEARRAY, bytes(value))


def _to_bytearray(_: TreeDecoder, node: Node, __: int) -> bytearray:
    return bytearray(payload(node))


def _from_view(_: TreeEncoder, node: Node, value: memoryview, __: int) -> None:
    try:
        layout, shape, held = value.format, list(value.shape or ()), value.tobytes()
        if layout not in _VIEW_FORMATS:
            raise CannotTravel(f"is a memoryview of items {layout!r}, which has no wire form")
        node += (kind.MEMORYVIEW, held, layout, shape, value.readonly)
        _view(held, layout, shape)
    except (TypeError, ValueError) as error:
        raise CannotTravel(f"is a memoryview that cannot be copied: {error}") from None


def _view(held: bytes | bytearray, layout: str, shape: list[int]) -> memoryview:
    view = memoryview(held)
    if len(shape) == 1:
        view = view.cast(cast("Any", layout))
        if view.nbytes != len(held) or view.shape != tuple(shape):
            raise ValueError("its shape does not fit its bytes")
        return view
    return view.cast(cast("Any", layout), shape)


def _to_view(_: TreeDecoder, node: Node, __: int) -> memoryview:
    held, layout, shape, readonly = parts(node, 4)
    if type(held) is not bytes or type(shape) is not list or type(readonly) is not bool:
        raise Malformed("a memoryview is bytes, a format, a shape and whether it is read-only")
    return _view(held if readonly else bytearray(held), layout, shape)


def _from_range(_: TreeEncoder, node: Node, value: range, __: int) -> None:
    node += (kind.RANGE, int_node(value.start), int_node(value.stop), int_node(value.step))


def _to_range(_: TreeDecoder, node: Node, __: int) -> range:
    return range(*map(whole, parts(node, 3)))


def _from_slice(walk: TreeEncoder, node: Node, value: slice, depth: int) -> None:
    node.append(kind.SLICE)
    node.extend(walk.within(getattr(value, part), depth, f".{part}") for part in ("start", "stop", "step"))
    walk.note_tuple(value, (value.start, value.stop, value.step))


def _to_slice(walk: TreeDecoder, node: Node, depth: int) -> slice:
    start, stop, step = (walk.build(item, depth) for item in parts(node, 3))
    made = slice(start, stop, step)
    walk.note_height(made, (start, stop, step))
    return made


def _from_ellipsis(_: TreeEncoder, node: Node, __: object, ___: int) -> None:
    node.append(kind.ELLIPSIS)


def _to_ellipsis(_: TreeDecoder, __: Node, ___: int) -> object:
    return ...


def _from_not_implemented(_: TreeEncoder, node: Node, __: object, ___: int) -> None:
    node.append(kind.NOT_IMPLEMENTED)


def _to_not_implemented(_: TreeDecoder, __: Node, ___: int) -> object:
    return NotImplemented


# --- numbers, names, patterns ------------------------------------------------------------------------------------


def _from_decimal(_: TreeEncoder, node: Node, value: decimal.Decimal, __: int) -> None:
    node += (kind.DECIMAL, str(value))


def _to_decimal(_: TreeDecoder, node: Node, __: int) -> decimal.Decimal:
    (digits,) = parts(node, 1)
    return decimal.Decimal(text(digits), _DECIMALS)


def _from_fraction(_: TreeEncoder, node: Node, value: Fraction, __: int) -> None:
    node += (kind.FRACTION, int_node(value.numerator), int_node(value.denominator))


def _to_fraction(_: TreeDecoder, node: Node, __: int) -> Fraction:
    numerator, denominator = map(whole, parts(node, 2))
    if denominator < 1:
        raise Malformed("the denominator of a fraction is above 0")
    # Not by its constructor: reducing numbers of a peer's choice costs the square of their length.
    made = object.__new__(Fraction)
    made._numerator, made._denominator = numerator, denominator  # type: ignore[attr-defined]
    return made


def _from_uuid(_: TreeEncoder, node: Node, value: UUID, __: int) -> None:
    node += (kind.UUID, value.bytes, value.is_safe.value)


def _to_uuid(_: TreeDecoder, node: Node, __: int) -> UUID:
    held, safe = parts(node, 2)
    return UUID(bytes=held, is_safe=SafeUUID(safe))


def _from_path(_: TreeEncoder, node: Node, value: pathlib.PurePath, __: int) -> None:
    spelt = str(value)
    if isinstance(value, pathlib.PureWindowsPath) and type(value)(spelt).parts != value.parts:
        # `./c:x` before Python 3.12
        raise CannotTravel(f"is a path whose text {spelt!r} is that of another one")
    node += (kind.PATH, _PATHS.index(type(value)), text_node(spelt))


def _to_path(_: TreeDecoder, node: Node, __: int) -> pathlib.PurePath:
    which, spelt = parts(node, 2)
    made: pathlib.PurePath = _of(_PATHS, which)(text(spelt))
    return made


def _from_address(_: TreeEncoder, node: Node, value: object, __: int) -> None:
    node += (kind.IP, _ADDRESSES.index(type(value)), text_node(str(value)))


def _to_address(_: TreeDecoder, node: Node, __: int) -> object:
    which, spelt = parts(node, 2)
    return _of(_ADDRESSES, which)(text(spelt))


def _of(classes: tuple[Any, ...], which: object) -> Callable[[str], Any]:
    if type(which) is not int or not 0 <= which < len(classes):
        raise Malformed("there is no such class of this kind")
    return cast("Callable[[str], Any]", classes[which])


def _from_pattern(_: TreeEncoder, node: Node, value: re.Pattern[Any], __: int) -> None:
    pattern: str | bytes = value.pattern
    if len(pattern) > MAX_PATTERN_CHARS:
        raise CannotTravel(f"is a regular expression of more than {MAX_PATTERN_CHARS} characters")
    node += (kind.PATTERN, pattern if isinstance(pattern, bytes) else text_node(pattern), value.flags & _REGEX_FLAGS)


def _to_pattern(_: TreeDecoder, node: Node, __: int) -> re.Pattern[Any]:
    held, flags = parts(node, 2)
    pattern: str | bytes = held if type(held) is bytes else text(held)
    if type(flags) is not int or flags & ~_REGEX_FLAGS or len(pattern) > MAX_PATTERN_CHARS:
        raise Malformed("that is no regular expression of ours")
    return re.compile(pattern, flags)


# --- containers --------------------------------------------------------------------------------------------------


def _from_array(_: TreeEncoder, node: Node, value: array.array[Any], __: int) -> None:
    node += (kind.ARRAY, value.typecode, value.itemsize, _little(value).tobytes())


def _to_array(_: TreeDecoder, node: Node, __: int) -> array.array[Any]:
    typecode, itemsize, held = parts(node, 3)
    made: array.array[Any] = array.array(typecode)
    if made.itemsize != itemsize:
        raise Malformed(f"an array of {typecode!r} has items of {made.itemsize} bytes here")
    made.frombytes(held)
    if typecode in "uw":
        made.tounicode()  # raises where an item is no code point
    return _little(made)


def _little(value: array.array[Any]) -> array.array[Any]:
    if sys.byteorder == "little":
        return value
    swapped = value[:]
    swapped.byteswap()
    return swapped


def _from_deque(walk: TreeEncoder, node: Node, value: deque[object], depth: int) -> None:
    node += (kind.DEQUE, value.maxlen)
    walk.items(node, value, depth)


def _to_deque(walk: TreeDecoder, node: Node, depth: int) -> deque[object]:
    if len(node) < 2 or (node[1] is not None and (type(node[1]) is not int or node[1] < len(node) - 2)):  # noqa: PLR2004
        raise Malformed("a deque holds at most its maximal length")
    made = deque(node[2:], node[1])
    walk.born(node, made)
    walk.fill_list(made, depth)
    return made


def _from_mapping(walk: TreeEncoder, node: Node, value: dict[object, object], depth: int) -> None:
    if getattr(value, "__dict__", None):
        raise CannotTravel(f"is of type {shown(type(value))} and has attributes of its own")
    node.append(kind.ORDERED_DICT if type(value) is OrderedDict else kind.COUNTER)
    walk.pairs(node, value, depth)


def _from_defaultdict(walk: TreeEncoder, node: Node, value: defaultdict[object, object], depth: int) -> None:
    factory = value.default_factory
    try:
        name = None if factory is None else _FACTORY_NAMES[factory]
    except (KeyError, TypeError):
        trouble = CannotTravel(f"is not one of the factories that travel: {', '.join(_FACTORIES)} or None")
        trouble.steps.append(".default_factory")
        raise trouble from None
    node += (kind.DEFAULT_DICT, name)
    walk.pairs(node, value, depth)


def _to_mapping(walk: TreeDecoder, node: Node, depth: int) -> dict[object, object]:
    start = 1
    made: dict[object, object]
    if node[0] == kind.ORDERED_DICT:
        made = OrderedDict()
    elif node[0] == kind.COUNTER:
        made = cast("dict[object, object]", Counter())
    else:
        start, name = 2, node[1]
        made = defaultdict(None if name is None else _FACTORIES[text(name)])
    if (len(node) - start) % 2:
        raise Malformed("a key lacks its value")
    walk.born(node, made)
    walk.fill_pairs(made, node, depth, start)
    return made


def _from_namespace(walk: TreeEncoder, node: Node, value: types.SimpleNamespace, depth: int) -> None:
    node.append(kind.NAMESPACE)
    for name, item in vars(value).items():
        node += (text_node(name), walk.within(item, depth, f".{name}"))


def _to_namespace(walk: TreeDecoder, node: Node, depth: int) -> types.SimpleNamespace:
    if not len(node) % 2:
        raise Malformed("a name lacks its value")
    made = types.SimpleNamespace()
    walk.born(node, made)
    fields = cast("dict[object, object]", vars(made))
    walk.fill_pairs(
        fields, [node[0], *(text(item) if at % 2 == 0 else item for at, item in enumerate(node[1:]))], depth
    )
    return made


# --- the two tables ----------------------------------------------------------------------------------------------

# Each function is written for its own type, which its key here says again.
_ROWS: Final[tuple[tuple[Any, int, Any, Any], ...]] = (
    (complex, kind.COMPLEX, _from_complex, _to_complex),
    (bytearray, kind.BYTEARRAY, _from_bytearray, _to_bytearray),
    (memoryview, kind.MEMORYVIEW, _from_view, _to_view),
    (range, kind.RANGE, _from_range, _to_range),
    (slice, kind.SLICE, _from_slice, _to_slice),
    (type(Ellipsis), kind.ELLIPSIS, _from_ellipsis, _to_ellipsis),
    (type(NotImplemented), kind.NOT_IMPLEMENTED, _from_not_implemented, _to_not_implemented),
    *codec_dates.ROWS,
    (decimal.Decimal, kind.DECIMAL, _from_decimal, _to_decimal),
    (Fraction, kind.FRACTION, _from_fraction, _to_fraction),
    (UUID, kind.UUID, _from_uuid, _to_uuid),
    *((path, kind.PATH, _from_path, _to_path) for path in _PATHS),
    *((address, kind.IP, _from_address, _to_address) for address in _ADDRESSES),
    (re.Pattern, kind.PATTERN, _from_pattern, _to_pattern),
    (array.array, kind.ARRAY, _from_array, _to_array),
    (deque, kind.DEQUE, _from_deque, _to_deque),
    (OrderedDict, kind.ORDERED_DICT, _from_mapping, _to_mapping),
    (defaultdict, kind.DEFAULT_DICT, _from_defaultdict, _to_mapping),
    (Counter, kind.COUNTER, _from_mapping, _to_mapping),
    (types.SimpleNamespace, kind.NAMESPACE, _from_namespace, _to_namespace),
)

FILLS: Final[dict[type, Fill]] = {type_: fill for type_, _, fill, _ in _ROWS}
MAKERS: Final[dict[int, Make]] = {number: make for _, number, _, make in _ROWS}
