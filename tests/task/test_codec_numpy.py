"""numpy's arrays and scalars: every dtype but objects, bit for bit; hostile dtypes and shapes allocate nothing."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import msgspec
import pytest

from secfarm.errors import ProtocolError, ValueTransferError
from secfarm.task.codec import decode, encode

np = pytest.importorskip("numpy")

ARRAYS = [
    np.arange(6.0).reshape(2, 3),
    np.asfortranarray(np.arange(6).reshape(2, 3)),
    np.arange(10)[::-3],
    np.array(5),
    np.zeros((0, 3)),
    np.array([np.nan, -0.0, np.inf], dtype=">f4"),
    np.array([1 + 2j], dtype="c8"),
    np.array([True, False]),
    np.array(["a", "é\0b"]),
    np.array([b"a", b"bcd"]),
    np.array(["2020-01-01", "NaT"], dtype="M8[D]"),
    np.array([5], dtype="m8[25s]"),
    np.array([(1, 2.5, b"x")], dtype=[("a", "i1"), ("b", "<f8"), ("c", "S3")]),
    np.array([((1, 2), [3, 4])], dtype=np.dtype([("p", [("x", "i2"), ("y", "i8")]), ("q", "u1", (2,))], align=True)),
    np.array([b"ab"], dtype="V2"),
    np.float16([1.5]),
    np.array([1.5], dtype=np.longdouble),
    np.zeros(3, dtype="U0"),
    np.zeros(1, dtype=[("\ud800", "i4")]),
    np.array([1, -2], dtype="q"),
    np.array([1, 2], dtype=">Q"),
]
SCALARS = [
    *(np.float64(-0.0), np.float32("nan"), np.int8(-5), np.uint64(2**64 - 1), np.bool_(True), np.complex128(1j)),
    *(
        np.str_("a\0"),
        np.str_(""),
        np.bytes_(b"a\0"),
        np.datetime64("2020-01-01T00:00", "m"),
        np.timedelta64("NaT", "s"),
    ),
    *(np.longlong(-1), np.ulonglong(1), np.longdouble(1) / 3, np.void(b"abc"), ARRAYS[12][0]),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: array.dtype.str)
def test_an_array_keeps_dtype_shape_bits_order_and_whether_it_may_be_written(array: Any) -> None:
    frozen = array.copy(order="K")
    frozen.flags.writeable = False
    for value in (array, frozen):
        back: Any = decode(encode({"a": [value]}))["a"][0]  # type: ignore[index]
        assert type(back) is np.ndarray
        assert back.dtype == value.dtype
        assert back.dtype.isalignedstruct == value.dtype.isalignedstruct
        assert back.shape == value.shape
        assert back.dtype.num == value.dtype.num
        assert back.tobytes() == value.tobytes()
        assert repr(back) == repr(value)
        assert back.flags.writeable == value.flags.writeable
        assert back.flags.f_contiguous == value.flags.f_contiguous or not value.flags.forc


@pytest.mark.parametrize("scalar", SCALARS, ids=lambda scalar: f"{type(scalar).__name__}")
def test_a_scalar_keeps_its_type_and_bits(scalar: Any) -> None:
    back: Any = decode(encode([scalar, scalar]))
    assert type(back[0]) is type(scalar)
    assert back[0].tobytes() == scalar.tobytes()
    assert repr(back[1]) == repr(scalar)


def test_a_shared_array_stays_one() -> None:
    array = np.zeros(3)
    back: Any = decode(encode([array, array]))
    assert back[0] is back[1]


@pytest.mark.parametrize(
    "value",
    [
        np.array([object()]),
        np.array([(1, None)], dtype=[("a", "i4"), ("b", "O")]),
        np.zeros(1).view(np.recarray),
        np.zeros(1, dtype=np.dtype((np.record, [("a", "i4")]))),
        np.ma.array([1]),
    ],
)
def test_objects_and_subclasses_are_refused(value: object) -> None:
    with pytest.raises(ValueTransferError):
        encode([value])


def _forged(qualname: str, fields: list[str], values: list[object]) -> object:
    return decode(b"\xc1" + msgspec.msgpack.encode([[9, 0, *values], [], [["numpy", qualname, 0, 0, "", fields]]]))


@pytest.mark.parametrize(
    ("dtype", "shape", "data"),
    [
        ("O", [1], bytes(8)),
        ("<i4,O", [1], bytes(12)),
        ("|O8", [1], bytes(8)),
        ("<i4", [2], bytes(4)),
        ("<i4", [2**62], bytes(4)),
        ("<i4", [-1], b""),
        ("<i4", [1] * 33, bytes(4)),
        ("<i4", 1, bytes(4)),
        ([1, "fields", [1, "a"], [1, "O"], [1, 0], 8, False], [1], bytes(8)),
        ([1, "fields", [1, "a"], [1, "<i8"], [1, 4], 8, False], [1], bytes(8)),
        ([1, "fields", [1, "a"], [1], [1], 8, False], [1], bytes(8)),
        ([1, "sub", "<i4", [1, 10**9]], [1], bytes(8)),
        (["what"], [1], bytes(8)),
    ],
)
def test_hostile_arrays_are_refused(dtype: object, shape: object, data: bytes) -> None:
    lengths = [1, *shape] if isinstance(shape, list) else shape
    with pytest.raises(ProtocolError):
        _forged("ndarray", ["dtype", "shape", "fortran", "writable", "data"], [dtype, lengths, False, True, data])


def test_without_numpy_an_array_is_a_placeholder_that_comes_home() -> None:
    array = np.arange(3)
    code = (
        "import sys\n"
        "sys.modules['numpy'] = None\n"
        "from secfarm.task.codec import decode, encode\n"
        "value = decode(sys.stdin.buffer.read())\n"
        "assert value[0].shape == [3] and type(value[0]).__qualname__ == 'ndarray', value\n"
        "sys.stdout.buffer.write(encode(value))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=encode([array, np.int8(3)]), capture_output=True, check=True
    )
    back: Any = decode(done.stdout)
    assert back[0].tolist() == [0, 1, 2]
    assert type(back[1]) is np.int8
