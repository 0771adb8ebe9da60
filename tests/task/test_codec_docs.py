"""docs/codec.md is true: its vectors are what the codec writes and reads, its kinds and limits are the code's."""

from __future__ import annotations

import re
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from secfarm.limits import MAX_DEPTH
from secfarm.task import codec_kinds, codec_numpy
from secfarm.task.codec import decode, encode

TEXT = (Path(__file__).parents[2] / "docs/codec.md").read_text(encoding="utf-8")


def _loop() -> list[object]:
    made: list[object] = []
    made.append(made)
    return made


def _twice() -> list[object]:
    made: list[object] = []
    return [made, made]


VECTORS: dict[str, object] = {
    "None": None,
    '[1, {"a": -0.0}]': [1, {"a": -0.0}],
    '(1, "a")': (1, "a"),
    '{1: (), b"k": [2]}': {1: (), b"k": [2]},
    "2**64": 2**64,
    r'"\ud800"': "\ud800",
    "{(1,): {2}}": {(1,): {2}},
    "1j": 1j,
    "range(3)": range(3),
    'Decimal("1.50")': Decimal("1.50"),
    "date(2024, 2, 29)": date(2024, 2, 29),
    "[x, x] where x = []": _twice(),
    "x where x = [x]": _loop(),
    'ValueError("a")': ValueError("a"),
}
WRITTEN = dict(re.findall(r"^\| `(.+?)` \| `([0-9a-f]+)` \|$", TEXT, re.MULTILINE))


def test_every_vector_of_the_document_is_tested() -> None:
    assert set(WRITTEN) == set(VECTORS)


@pytest.mark.parametrize("name", VECTORS)
def test_a_vector_is_what_the_codec_writes_and_reads(name: str) -> None:
    wire = bytes.fromhex(WRITTEN[name])
    assert encode(VECTORS[name]) == wire
    back: Any = decode(wire)
    assert type(back) is type(VECTORS[name])
    assert repr(back) == repr(VECTORS[name])


def test_every_kind_of_node_is_in_the_document() -> None:
    kinds = {
        value for name, value in vars(codec_kinds).items() if type(value) is int and not re.match("MAX|FEW|_", name)
    }
    rows = re.findall(r"^\| ([\d ]+) \| ", TEXT.partition("## Records")[0], re.MULTILINE)
    assert {int(number) for row in rows for number in row.split()} == kinds


def test_the_limits_of_the_document_are_the_codes() -> None:
    limits = TEXT.partition("## Limits")[2].partition("## ")[0]
    for words in (
        f"{MAX_DEPTH} containers deep",
        f"{codec_kinds.MAX_HEIGHT} tuples in tuples",
        f"{codec_kinds.MAX_CLASSES} classes",
        f"{codec_kinds.MAX_PATTERN_CHARS:,} characters",
        f"{codec_numpy.MAX_DIMENSIONS} dimensions",
    ):
        assert words in limits
