"""docs/farm.md is true: what it shows comes out, and it names every function of the farm library."""

from __future__ import annotations

import doctest
import re
from typing import Final

import secfarm
from secfarm import set_kernel
from tests.farm.farms import ROOT

DOCUMENT: Final = ROOT / "docs/farm.md"
MODULES: Final = ("cognates", "promise", "ptree", "reductions", "search", "sorting")


def test_what_is_shown_comes_out(one_kernel) -> None:
    set_kernel(one_kernel)
    text = DOCUMENT.read_text("utf-8").replace("```", "")  # a fence would be part of what is expected
    examples = doctest.DocTestParser().get_doctest(text, {}, "farm.md", str(DOCUMENT), 0)
    assert len(examples.examples) > 20
    came: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL).run(examples, out=came.append)
    assert came == []


def test_every_public_name_is_named() -> None:
    named = set(re.findall(r"\w+", DOCUMENT.read_text("utf-8")))
    public = {name for module in MODULES for name in secfarm._HOMES[f"secfarm.farm.{module}"]}
    assert public - named - {"Promise", "Delay"} == set()
