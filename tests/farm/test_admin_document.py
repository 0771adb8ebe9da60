"""docs/admin.md is true: what it shows comes out, and its tables name the fields that there are."""

from __future__ import annotations

import dataclasses
import doctest
import re
from typing import Final

from secfarm import Receipt
from secfarm.farm.launcher import server_status
from tests.farm.farms import ROOT, Daemon

DOCUMENT: Final = ROOT / "docs/admin.md"


def test_what_is_shown_comes_out() -> None:
    text = DOCUMENT.read_text("utf-8").replace("```", "")  # a fence would be part of what is expected
    examples = doctest.DocTestParser().get_doctest(text, {}, "admin.md", str(DOCUMENT), 0)
    assert len(examples.examples) > 5
    came: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL).run(examples, out=came.append)
    assert came == []


def test_every_field_is_in_its_table(one_daemon: Daemon) -> None:
    words = set(re.findall(r"`(\w+)`", DOCUMENT.read_text("utf-8")))
    status = server_status(one_daemon.address, auth=one_daemon.auth)
    fields = {field.name for field in dataclasses.fields(Receipt)} | set(status)
    for records in (status["worker_records"], status["session_records"]):
        fields |= set(records[0])  # type: ignore[index]
    assert fields - words == set()
