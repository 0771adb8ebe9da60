"""numpy's arrays and scalars as records of their bytes: no pickling, no object dtype.

numpy is imported here only when a value of it is met; where it is missing the record stays a placeholder. Format:
docs/codec.md.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any, Final

from secfarm.task.codec_classes import open_record
from secfarm.task.codec_encode import Fill, TreeEncoder, text_node
from secfarm.task.codec_kinds import LIST, CannotTravel, Malformed, Node
from secfarm.task.codec_standins import ClassName, Shape

__all__ = ["fill_for", "maker_for"]

_ARRAY: Final = ClassName("numpy", "ndarray", 0, Shape.PLAIN, "")
_SCALAR: Final = ClassName("numpy", "generic", 0, Shape.PLAIN, "")
_ARRAY_FIELDS: Final = ("dtype", "shape", "fortran", "writable", "data")
_SCALAR_FIELDS: Final = ("dtype", "data")

# One dtype without fields, as `dtype.str` writes it. Nothing else reaches numpy's own parser.
_SIMPLE: Final = re.compile(r"[<>|][biufcSUVmM]\d{1,9}(?:\[\d{0,9}[a-zA-Z]{1,2}\])?|[<>][lLqQ]")
MAX_DIMENSIONS: Final = 32  # of numpy 1; numpy 2 has 64


def fill_for(kind: type) -> Fill | None:
    """Return what writes values of a class in numpy's namespace, or None when it is not numpy's own."""
    numpy = _numpy()
    if numpy is None:
        return None
    if kind is numpy.ndarray:
        return _from_array
    return _from_scalar if issubclass(kind, numpy.generic) else None


def maker_for(qualname: str) -> Callable[..., object] | None:
    """Return what makes the value of a record, or None when numpy is not here."""
    if _numpy() is None:
        return None
    makers: dict[str, Callable[..., object]] = {"ndarray": _to_array, "generic": _to_scalar}
    return makers.get(qualname)


def _numpy() -> Any:  # noqa: ANN401 - a module that need not be there
    try:
        import numpy  # noqa: ICN001
    except ImportError:
        return None
    return numpy


def _from_array(walk: TreeEncoder, node: Node, value: object, _: int) -> None:
    array: Any = value
    dtype = _spelt(array.dtype)
    fortran = bool(array.flags.f_contiguous and not array.flags.c_contiguous)
    if array.flags.c_contiguous:
        held = array.reshape(-1).view("u1").data  # msgpack takes the bytes from there itself
    else:
        held = array.tobytes(order="F" if fortran else "C")
    open_record(walk, node, _ARRAY, _ARRAY_FIELDS)
    node += (dtype, _list(array.shape), fortran, bool(array.flags.writeable), held)


def _from_scalar(walk: TreeEncoder, node: Node, value: object, _: int) -> None:
    scalar: Any = value
    open_record(walk, node, _SCALAR, _SCALAR_FIELDS)
    held: object = scalar.tobytes()
    if isinstance(scalar, str | bytes):  # numpy's own reading of their bytes drops NULs at the end
        held = text_node(str.__str__(scalar)) if isinstance(scalar, str) else bytes.__bytes__(scalar)
    node += (_spelt(scalar.dtype), held)


def _spelt(dtype: Any) -> object:  # noqa: ANN401 - numpy.dtype, where numpy is there
    """Return a dtype as text, or as a node of its fields."""
    if dtype.hasobject or dtype.metadata:
        raise CannotTravel(f"has the dtype {dtype}, whose items are not bytes alone")
    if dtype.subdtype is not None:
        inner, shape = dtype.subdtype
        return _list(("sub", _spelt(inner), _list(shape)))
    if dtype.names is None:
        if not _SIMPLE.fullmatch(dtype.str):
            raise CannotTravel(f"has the dtype {dtype}, which has no wire form")
        # Of C's integer types two have the same size, and so the same text.
        alike = _numpy().dtype(dtype.str).num == dtype.num
        return dtype.str if alike else dtype.str[0] + dtype.char
    if dtype.type is not _numpy().void:
        raise CannotTravel(f"has the dtype {dtype}, whose items are of a class of their own")
    fields = [dtype.fields[name] for name in dtype.names]
    if any(len(field) > 2 for field in fields):  # noqa: PLR2004 - dtype and offset; the third is a title
        raise CannotTravel(f"has the dtype {dtype}, whose fields have titles")
    formats = _list(_spelt(field[0]) for field in fields)
    offsets = _list(field[1] for field in fields)
    return _list(
        ("fields", _list(map(text_node, dtype.names)), formats, offsets, dtype.itemsize, dtype.isalignedstruct)
    )


def _list(items: Iterable[object]) -> Node:
    return [LIST, *items]


def _dtype(spelt: object) -> Any:  # noqa: ANN401 - as above
    numpy = _numpy()
    match spelt:
        case str():
            if not _SIMPLE.fullmatch(spelt):
                raise Malformed("that is no dtype of ours")
            return numpy.dtype(spelt)
        case ["sub", inner, list() as shape]:
            return numpy.dtype((_dtype(inner), _shape(shape)))
        case ["fields", list() as names, list() as formats, list() as offsets, int() as itemsize, bool() as aligned]:
            if not len(names) == len(formats) == len(offsets):
                raise Malformed("a field of a dtype has a name, a format and an offset")
            fields = {"names": names, "formats": [_dtype(held) for held in formats], "offsets": offsets}
            return numpy.dtype(fields | {"itemsize": itemsize}, align=aligned)
        case _:
            raise Malformed("that is no dtype of ours")


def _shape(shape: object) -> tuple[int, ...]:
    if type(shape) is not list or len(shape) > MAX_DIMENSIONS:
        raise Malformed("the shape of an array is a list of at most 32 lengths")
    if not all(type(length) is int and 0 <= length <= sys.maxsize for length in shape):
        raise Malformed("a length in the shape of an array is a natural number")
    return tuple(shape)


def _to_array(spelt: object, lengths: object, fortran: object, writable: object, held: object) -> object:
    numpy, dtype, shape = _numpy(), _dtype(spelt), _shape(lengths)
    # Before anything of that size is allocated.
    if type(held) is not bytes or math.prod(shape) * dtype.itemsize != len(held):
        raise Malformed("the bytes of an array do not fit its dtype and shape")
    order = "F" if fortran is True else "C"
    array = numpy.empty(shape, dtype, order)
    if held:  # byte by byte, padding too: what was in that memory before is not for those who get the array next
        array.reshape(-1, order=order).view("u1")[:] = numpy.frombuffer(held, "u1")
    array.flags.writeable = writable is True
    return array


def _to_scalar(spelt: object, held: object) -> object:
    numpy, dtype = _numpy(), _dtype(spelt)
    if type(held) is str and dtype.kind == "U":
        return numpy.str_(held)
    if type(held) is not bytes:
        raise Malformed("a scalar is its bytes")
    if dtype.kind == "S":
        return numpy.bytes_(held)
    if dtype.itemsize != len(held) or dtype.kind == "U":
        raise Malformed("the bytes of a scalar do not fit its dtype")
    return (numpy.ndarray((), dtype, held) if held else numpy.empty((), dtype))[()]
